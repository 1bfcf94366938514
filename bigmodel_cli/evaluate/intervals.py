"""Confidence intervals by the bootstrap over units (Efron 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.tasks import Metric

REPLICATES = 1000
LEVEL = 0.95


def bootstrap(
    statistics: NDArray[np.float64], metrics: Sequence[Metric], seed: int
) -> dict[str, tuple[float, float] | None]:
    """Each metric's 95 % percentile interval; None where one unit gives no interval.

    statistics: (n, k), one row of additive statistics per unit. Units are drawn with replacement,
    as many as there are, and each metric is a function of their sum: so ratios are resampled as
    the ratios that they are.
    """
    count = len(statistics)
    if count < 2:
        return {metric.name: None for metric in metrics}
    random = np.random.default_rng(seed)
    sums = np.empty((REPLICATES, statistics.shape[1]))
    for index in range(REPLICATES):
        drawn = np.bincount(random.integers(0, count, count), minlength=count)
        sums[index] = drawn @ statistics
    tail = (1 - LEVEL) / 2
    found: dict[str, tuple[float, float] | None] = {}
    for metric in metrics:
        if metric.of:  # which are not resampled
            found[metric.name] = None
            continue
        values = metric.value(sums)
        values = values[np.isfinite(values)]
        found[metric.name] = (
            (float(np.quantile(values, tail)), float(np.quantile(values, 1 - tail)))
            if len(values)
            else None
        )
    return found
