"""How long a run is, and the learning rate along it.

A run is measured in steps, or in seconds: then its progress is elapsed time, so that the decay of
the learning rate is complete when time is up, however fast the machine is meanwhile.
"""

from __future__ import annotations

import math
import time

from bigmodel_cli.artifacts.records import AllowanceState, Length
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import UsageError
from bigmodel_cli.train import distributed

DEFAULT_MINUTES = 5.0
SHARE = 0.1  # of a run in minutes, for all of its validations and checkpoints
FIRST_ROWS = 16  # of the validation that is measured first
LEAST = 8  # a validation has this part of the task's rows at least, before there are fewer of them
SPARE = 0.9  # of what fits by what was measured
SAVING = 12 / 200e6  # seconds for each weight, before the first checkpoint was measured


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
    saving, as long as the ones before took, and longer where updates have become slower since:
    then they took `pace` seconds each."""

    def __init__(
        self, length: Length, elapsed: float, began: float, reserve: float, pace: float
    ) -> None:
        self.length = length
        self.elapsed = elapsed
        self._reserve, self.pace = reserve, pace
        self._offset = elapsed - began
        self._last = elapsed
        self._step_seconds = self._latest = 0.0

    @property
    def reserve(self) -> float:
        return self._reserve * (max(1.0, self._step_seconds / self.pace) if self.pace else 1.0)

    def keep(self, seconds: float) -> None:
        """Reserves as much for the last validation and saving."""
        self._reserve, self.pace = seconds, max(self._step_seconds, self._latest)

    def look(self) -> float:
        """Takes the time."""
        self.elapsed = distributed.of_rank_0(time.monotonic() + self._offset)
        return self.elapsed

    def tick(self) -> float:
        """Called after each update: the seconds that one takes, lately."""
        before, self._last = self._last, self.look()
        self._latest = took = self._last - before
        mean = self._step_seconds
        self._step_seconds = 0.9 * mean + 0.1 * took if mean else took
        return self._step_seconds

    def pause(self) -> None:
        """Called after a validation or checkpoint, which is no part of a step's time."""
        self._last = self.look()

    def progress(self, step: int) -> float:
        """From 0 to 1, before update number `step`: 1 is when the last one that there is time for
        is over."""
        if self.length.steps is not None:
            return min(1.0, step / self.length.steps)
        assert self.length.seconds is not None
        left = self.length.seconds - self.reserve - self.elapsed
        if self._step_seconds:
            left -= left % self._step_seconds
        return self.elapsed / max(1e-3, self.elapsed + max(0.0, left))

    def done(self, step: int) -> bool:
        """Whether there is no room for another update. There is always room for one."""
        if self.length.steps is not None:
            return step >= self.length.steps
        assert self.length.seconds is not None
        left = self.length.seconds - self.reserve - self.elapsed
        return step > 0 and left < self._step_seconds

    def checkpoints(self, every: int) -> int:
        """How many there will be, one each so many updates, and one at the end."""
        assert self.length.seconds is not None
        left = self.length.seconds - self.elapsed
        return 1 + math.ceil(left / max(1e-9, every * self._step_seconds))

    def left(self, step: int) -> float:
        """Seconds to go, by the pace so far."""
        if self.length.seconds is not None:
            return max(0.0, self.length.seconds - self.elapsed)
        assert self.length.steps is not None
        return (self.length.steps - step) * self._step_seconds + self.reserve


class Allowance:
    """What a run in minutes may spend on its validations and checkpoints: a tenth of its time.

    full: the rows of a validation where time does not matter. rows: those that each one has here,
    fixed before the first one, so that checkpoints stay comparable; None until then. spent: seconds
    so far. saving: seconds of a checkpoint alone. next: the progress at which one is due again.
    """

    def __init__(
        self,
        clock: Clock,
        full: int,
        parts: int,
        weights: int,
        state: AllowanceState | None,
        at: float,
    ) -> None:
        assert clock.length.seconds is not None
        self._clock, self.full, self.parts = clock, full, parts
        self._whole = SHARE * clock.length.seconds
        state = state or AllowanceState()
        self.rows, self.spent = state.rows, state.spent
        self.saving = weights * SAVING if state.saving is None else state.saving
        self.more = True  # whether others than the last one are to be expected
        self.next = 0.0
        self.plan(at)

    def state(self) -> AllowanceState:
        pace = self._clock.pace
        return AllowanceState(rows=self.rows, spent=self.spent, saving=self.saving, pace=pace)

    @property
    def left(self) -> float:
        """Seconds that may still be spent."""
        return max(0.0, self._whole - self.spent)

    @property
    def affordable(self) -> int:
        """How many validations with their checkpoints there is time for, the last one included."""
        return int(self.left / max(self._clock.reserve, 1e-9))

    def plan(self, progress: float) -> None:
        """Says when the next one is due: after a part of the run, or where there is no time for so
        many, spread evenly over the rest."""
        self.next = (math.floor(progress * self.parts) + 1) / self.parts
        if self.affordable > 1:
            self.next = max(self.next, progress + (1 - progress) / self.affordable)

    def saved(self, seconds: float) -> None:
        """Called after a checkpoint, whose time was a guess before."""
        self.spent += seconds - self.saving
        self.saving = seconds

    def enough(self, rows: int, seconds: float) -> bool:
        """Whether a validation of `rows` that took so long tells how long others will take."""
        return rows >= self.full or seconds > self.left / self.parts / 4

    def fix(self, rows: int, seconds: float) -> str:
        """Fixes the rows of each validation, of which `rows` took so long; says what is less than
        usual. Sooner than with less than an eighth of the task's rows, there are fewer of them."""
        each = max(seconds, 1e-9) / rows

        def fitting(count: int) -> int:
            return int(SPARE * (self.left / count - self.saving) / each)

        least = min(max(FIRST_ROWS, self.full // LEAST), fitting(1))
        self.rows = min(self.full, max(fitting(self.parts), least, min(FIRST_ROWS, rows)))
        self._clock.keep(self.rows * each + self.saving)
        said = []
        if self.rows < self.full:
            said.append(f"each validation takes at most {self.rows:,} rows, not {self.full:,}")
        if self.affordable < self.parts:
            said.append(f"there are about {max(1, self.affordable)} of them, not {self.parts}")
            self.more = self.affordable > 1
        return " and ".join(said)


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
