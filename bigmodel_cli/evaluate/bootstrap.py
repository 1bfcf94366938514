"""Confidence intervals by the bootstrap over units (Efron 1979).

Units are drawn with replacement, as many as there are, and each metric is a function of their sum:
so ratios are resampled as the ratios that they are. Whatever was scored on the same units gets the
same draws, so that a difference has the noise of the difference alone. Legend: R draws, n units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.artifacts.records import DifferenceRecord
from bigmodel_cli.artifacts.statistics import Statistics
from bigmodel_cli.tasks import Metric

REPLICATES = 1000
TAIL = 0.05  # of each one-sided bound; an interval has half of it on each side
CELLS = 1 << 22  # counts, or sums, at a time
ROUNDING = 1e-6  # of a figure: a smaller difference is one of the order of sums

Draws = Mapping[str, NDArray[np.float64]]  # each metric's values (R,); none of one unit


def resample(
    scored: Mapping[str, Statistics],
    metrics: Sequence[Metric],
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Draws]:
    """The metrics of everything that was scored on the same units, each for the same draws. A
    metric of counts has none."""
    count, columns = next((s.units, s.columns) for s in scored.values())
    if count < 2:
        return {name: {} for name in scored}
    random = np.random.default_rng(seed)
    matrices = {name: statistics.matrix() for name, statistics in scored.items()}
    drawn_from = [metric for metric in metrics if not metric.of]
    found = {name: {m.name: np.empty(REPLICATES) for m in drawn_from} for name in scored}
    size = max(1, CELLS // max(count, columns))
    for begin in range(0, REPLICATES, size):
        part = slice(begin, min(begin + size, REPLICATES))
        rows = part.stop - begin
        places = random.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        drawn = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count)
        weights = drawn.astype(np.float64)
        for name, matrix in matrices.items():
            sums = weights @ matrix
            for metric in drawn_from:
                found[name][metric.name][part] = metric.value(sums)
        progress(part.stop)
    return dict(found)


def _quantiles(
    values: NDArray[np.float64], count: int, tail: float
) -> tuple[float | None, float | None]:
    """Bounds with so much beyond each, widened for few units (Hesterberg 2015, section 3.4): plain
    percentiles would be those of a normal distribution where Student's is due."""
    from scipy.special import ndtr, stdtrit

    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    share = float(ndtr(math.sqrt(count / (count - 1)) * stdtrit(count - 1, tail)))
    low, high = np.quantile(values, [share, 1 - share])
    return float(low), float(high)


def interval(draws: Draws, metric: str, count: int) -> tuple[float | None, float | None]:
    """A metric's 95 % interval over `count` units; of one unit, or of counts, there is none."""
    return _quantiles(draws[metric], count, TAIL / 2) if metric in draws else (None, None)


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two figures; it is above `low`, and below `high`, each with 95 % confidence. Without these
    it has to be taken as it is."""

    value: float
    low: float | None
    high: float | None

    def record(self) -> DifferenceRecord:
        return DifferenceRecord(value=self.value, low=self.low, high=self.high)

    @property
    def least(self) -> float:
        return self.value if self.low is None else self.low

    @property
    def most(self) -> float:
        return self.value if self.high is None else self.high


def difference(
    value: float,
    bound: float,
    count: int,
    draws: NDArray[np.float64] | None = None,
    bounds: NDArray[np.float64] | float = math.nan,
) -> Difference:
    """value − bound, with its limits from the draws of both."""

    def rounded(number: float | None) -> float | None:
        if number is not None and abs(number) <= ROUNDING * max(abs(value), abs(bound)):
            return 0.0
        return number

    low, high = (None, None) if draws is None else _quantiles(draws - bounds, count, TAIL)
    return Difference(value - bound, rounded(low), rounded(high))
