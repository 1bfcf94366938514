"""Metrics as functions of summed statistics, so that one bootstrap over units serves them all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.tasks import Metric

Sums = NDArray[np.float64]


def ratio(
    name: str,
    top: int,
    bottom: int,
    *,
    higher_is_better: bool,
    scale: float = 1.0,
    ignores: tuple[str, ...] = (),
) -> Metric:
    """scale · Σ top ÷ Σ bottom; not a number where the bottom is 0."""

    def value(sums: Sums) -> Sums:
        with np.errstate(divide="ignore", invalid="ignore"):
            return scale * sums[..., top] / sums[..., bottom]

    return Metric(name, higher_is_better, value, ignores)


def exponential(name: str, inner: Metric) -> Metric:
    """e to the power of another metric, as perplexity is of the loss."""

    def value(sums: Sums) -> Sums:
        with np.errstate(over="ignore"):
            return np.exp(inner.value(sums))

    return Metric(name, inner.higher_is_better, value)
