"""What a model's figures are compared with: the baselines, and an earlier evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.artifacts.records import LARGEST, DifferenceRecord, EarlierEvaluation, Evaluation
from bigmodel_cli.artifacts.statistics import Statistics, UnitStatistics
from bigmodel_cli.errors import ArtifactError, UsageError
from bigmodel_cli.evaluate.bootstrap import Difference, Draws, difference, interval, resample
from bigmodel_cli.tasks import Metric

Z = 1.959964  # a normal distribution has 95 % within so many deviations
ANOTHER = "give another file to --against"
MODEL, PREVIOUS = "model", "previous"


@dataclass(frozen=True, slots=True)
class Earlier:
    """An evaluation to compare with. statistics: of its units, if they are still there."""

    path: Path
    evaluation: EarlierEvaluation
    statistics: UnitStatistics | None
    why: str  # there are none

    @staticmethod
    def read(name: str) -> Earlier:
        """Raises ArtifactError."""
        path = Path(name)
        document = manifest.read_record(
            path,
            EarlierEvaluation,
            "earlier evaluation",
            "give --against an evaluation.json",
            regular=False,
        )
        beside = path.with_suffix(".safetensors")
        info = document.statistics
        if info is None:
            return Earlier(path, document, None, "was made without statistics of single units")
        if not beside.exists():
            return Earlier(path, document, None, f"has no `{beside.name}` beside it")
        try:
            return Earlier(path, document, UnitStatistics.read(beside, info), "")
        except ArtifactError as error:
            raise ArtifactError(
                error.message,
                f"restore that file; or delete it, to compare without single units; or {ANOTHER}",
            ) from None


@dataclass(frozen=True, slots=True)
class Other:
    """A figure to compare with; draws: None if there are none for the same units; then `spread` is
    the standard deviation that it has by itself."""

    value: float
    draws: NDArray[np.float64] | None
    spread: float = 0.0


class Figures:
    """The figures of a model, its baselines and an earlier evaluation; those of the same units with
    the same draws, once `resample` made them."""

    def __init__(self, metrics: Sequence[Metric], evaluation: Evaluation) -> None:
        self.metrics, self.evaluation = metrics, evaluation
        self.draws: dict[str, Draws] = {}
        self.count = self.seed = 0
        self.earlier: Earlier | None = None

    def resample(
        self,
        own: UnitStatistics,
        earlier: Earlier | None,
        seed: int,
        progress: Callable[[int], None],
    ) -> None:
        """Draws units. Raises UsageError when the earlier evaluation scored other ones."""
        scored = {MODEL: own.model}
        scored |= {f"baseline {name}": part for name, part in own.baselines.items()}
        if earlier and (before := _aligned(own, self.evaluation, earlier)):
            scored[PREVIOUS] = before
        self.count, self.seed, self.earlier = own.model.units, seed, earlier
        self.draws = resample(scored, self.metrics, seed, progress)

    def value(self, metric: str) -> float:
        value = self.evaluation.metrics[metric].value
        return math.nan if value is None else float(value)

    def interval(self, metric: str) -> tuple[float | None, float | None]:
        return interval(self.draws[MODEL], metric, self.count)

    def other(self, source: str, metric: str) -> Other:
        """The figure that a rule means. Raises UsageError, ArtifactError."""
        if source == PREVIOUS:
            return self._previous(next(m for m in self.metrics if m.name == metric))
        entry = self.evaluation.baseline.get(metric)
        if entry is None:
            raise UsageError(f"no baseline gives `{metric}`", "compare with a number")
        return Other(entry.value, self.draws[f"baseline {entry.name}"].get(metric))

    def difference(
        self, metric: str, other: Other, factor: float = 1.0, shift: float = 0.0
    ) -> tuple[Difference, bool]:
        """The model's figure minus factor · the other one − shift, and whether it was paired."""
        ours, theirs = self.draws[MODEL].get(metric), other.draws
        value, bound = self.value(metric), other.value * factor + shift
        if ours is None:
            return difference(value, bound, self.count), False
        if theirs is None:
            random = np.random.default_rng([self.seed, 1])
            theirs = other.value + other.spread * random.standard_normal(len(ours))
        found = difference(value, bound, self.count, ours, theirs * factor + shift)
        return found, other.draws is not None

    def against_baseline(self, metric: Metric) -> tuple[DifferenceRecord, str]:
        """The difference to the strongest baseline, and what it says of the model."""
        found, _ = self.difference(metric.name, self.other("baseline", metric.name))
        worse, better = (found.most < 0, found.least > 0)
        if not metric.higher_is_better:
            worse, better = better, worse
        model_is = "better" if better else "worse" if worse else "unclear"
        return found.record(), model_is

    def _previous(self, metric: Metric) -> Other:
        assert self.earlier is not None
        protocol = self.earlier.evaluation.protocol
        try:
            entry = self.earlier.evaluation.metrics[metric.name]
            value, low, high = (entry[key] for key in ("value", "low", "high"))
            if not _number(value):
                raise TypeError
        except (KeyError, TypeError):
            raise ArtifactError(f"the earlier evaluation has no `{metric.name}`", ANOTHER) from None
        paired = PREVIOUS in self.draws
        ours = self.evaluation.protocol
        # the same units are the same data, in whatever order, beside whatever else
        ignored = {*metric.ignores, *(["data"] if paired else [])}
        differing = [
            f"{key}: {protocol.get(key)} → {ours.get(key)}"
            for key in sorted(ours.keys() | protocol.keys())
            if key not in ignored and ours.get(key) != protocol.get(key)
        ]
        if differing:
            raise UsageError(
                f"`{metric.name}` was measured in another way before, so it cannot be compared: "
                + "; ".join(differing),
                "evaluate both on the same data in the same way",
            )
        spread = (high - low) / (2 * Z) if _number(low) and _number(high) else 0.0
        return Other(
            float(value), self.draws[PREVIOUS].get(metric.name) if paired else None, spread
        )


def _number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def _aligned(own: UnitStatistics, evaluation: Evaluation, earlier: Earlier) -> Statistics | None:
    """The earlier statistics in the order of our units; None if there are none, or of other
    metrics. Raises UsageError if they are of other units."""
    theirs = earlier.statistics
    if theirs is None or theirs.model.columns != own.model.columns:
        return None
    if _retold(evaluation.protocol, earlier.evaluation.protocol, own, theirs):
        return theirs.model
    common = np.intersect1d(own.ids, theirs.ids, assume_unique=True)
    if not len(common) == len(own.ids) == len(theirs.ids):
        raise UsageError(
            f"`{earlier.path}` scored other {evaluation.unit}: {len(common):,} of its "
            f"{len(theirs.ids):,} are among the {len(own.ids):,} of this evaluation",
            "evaluate both on the same data, with the same --split, --limit and --seed",
        )
    order = np.empty(len(own.ids), np.int64)
    order[np.argsort(own.ids)] = np.argsort(theirs.ids)
    return theirs.model.take(order)


def _retold(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], own: UnitStatistics, other: UnitStatistics
) -> bool:
    """Whether both are the same data, of which tokenizers, of which one loses something, made
    other texts: the units are in the same order then."""
    same = all(ours.get(key) == theirs.get(key) for key in ("data", "sample"))
    other_tokens = ours.get("tokenization") != theirs.get("tokenization")
    return same and other_tokens and len(own.ids) == len(other.ids)
