"""How long a run is, and the learning rate along it.

A run is measured in steps, or in seconds: then its progress is elapsed time, so that the decay of
the learning rate is complete when time is up, however fast the machine is meanwhile.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import UsageError
from bigmodel_cli.train import parallel

DEFAULT_MINUTES = 5.0


@dataclass(frozen=True)
class Length:
    """Either `steps`, or `seconds`; `text` says it and why."""

    steps: int | None
    seconds: float | None
    text: str


def length(config: TrainConfig, rows_per_epoch: int, batch_size: int, row_tokens: float) -> Length:
    """The run's length from --steps, --epochs, --tokens or --minutes. Raises UsageError."""
    given = [n for n in ("steps", "epochs", "tokens", "minutes") if getattr(config, n) is not None]
    if len(given) > 1:
        raise UsageError(
            "a run has one length, but " + " and ".join(f"--{n}" for n in given) + " are given",
            "leave all but one out",
        )
    if config.steps is not None:
        return Length(config.steps, None, f"{config.steps:,} steps")
    if config.epochs is not None:
        steps = max(1, math.ceil(config.epochs * rows_per_epoch / batch_size))
        return Length(steps, None, f"{steps:,} steps (--epochs {config.epochs:g})")
    if config.tokens is not None:
        steps = max(1, math.ceil(config.tokens / (batch_size * row_tokens)))
        return Length(steps, None, f"{steps:,} steps (--tokens {config.tokens:,})")
    minutes = config.minutes or DEFAULT_MINUTES
    why = (
        ""
        if config.minutes
        else ", a first try's budget; say --minutes, --steps, --epochs or --tokens"
    )
    return Length(None, minutes * 60, f"{minutes:g} minutes{why}")


class Clock:
    """How far a run is. `elapsed`: its seconds over all of its processes, when they were last
    looked at; all ranks see the same. `reserve` is kept for the end: the last validation and
    saving, as long as they took at worst so far."""

    def __init__(self, length: Length, elapsed: float, began: float) -> None:
        self.length = length
        self.reserve = 0.0
        self.elapsed = elapsed
        self._offset = elapsed - began
        self._last = elapsed
        self._step_seconds = 0.0

    def look(self) -> float:
        """Takes the time."""
        self.elapsed = parallel.told(time.monotonic() + self._offset)
        return self.elapsed

    def tick(self) -> float:
        """Called after each update: the seconds that one takes, lately."""
        before, self._last = self._last, self.look()
        took, mean = self._last - before, self._step_seconds
        self._step_seconds = 0.9 * mean + 0.1 * took if mean else took
        return self._step_seconds

    def pause(self) -> None:
        """Called after a validation or checkpoint, which is no part of a step's time."""
        self._last = self.look()

    def progress(self, step: int) -> float:
        """From 0 to 1, before update number `step`."""
        if self.length.steps is not None:
            return min(1.0, step / self.length.steps)
        assert self.length.seconds is not None
        usable = max(1e-3, self.length.seconds - self.reserve)
        return min(1.0, self.elapsed / usable)

    def done(self, step: int) -> bool:
        """Whether there is no room for another update. There is always room for one."""
        if self.length.steps is not None:
            return step >= self.length.steps
        assert self.length.seconds is not None
        left = self.length.seconds - self.reserve - self.elapsed
        return step > 0 and left < self._step_seconds

    def left(self, step: int) -> float:
        """Seconds to go, by the pace so far."""
        if self.length.seconds is not None:
            return max(0.0, self.length.seconds - self.elapsed)
        assert self.length.steps is not None
        return (self.length.steps - step) * self._step_seconds + self.reserve


def rate(progress: float, step: int, total: int | None, warmup: float, decay: float) -> float:
    """The share of the peak learning rate: linear warm-up, stable, linear decay to 0.

    In a run of known length the warm-up reaches its peak with a whole step; `step` counts from 0.
    """
    if total is not None:
        risen = (step + 1) / max(1.0, warmup * total)
    else:  # at least ten updates, however slow
        risen = min(progress / warmup if warmup else 1.0, (step + 1) / 10)
    fall = (1 - progress) / decay if decay else 1.0
    return max(0.0, min(1.0, risen, fall))
