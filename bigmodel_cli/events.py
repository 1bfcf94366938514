"""What a stage reports while it runs, as data, and how it is stopped. `cli` renders it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from bigmodel_cli.errors import InterruptError, StopError, StoppedError


@dataclass(frozen=True, slots=True)
class Note:
    """One line for a person: what was chosen and why, or what to look out for."""

    message: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a phase is: `done` of `total` (None: unknown) in `unit`; detail: what is done now."""

    phase: str
    done: float = 0
    total: float | None = None
    unit: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StepDone:
    """An update of the weights.

    loss: in nats per term; tokens: so far, or what `unit` says; speed: of these per second, lately,
    and as a share of what the processor can do at most; seconds: of the run so far; left: until it
    ends; done: the share that is over.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    unit: str
    speed: float
    share_of_peak: float
    seconds: float
    left: float
    done: float


@dataclass(frozen=True, slots=True)
class Validated:
    """A validation after an update: its metrics, the headline first; None is not a number."""

    step: int
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint is on disk. best: the name of the best one so far."""

    step: int
    name: str
    best: str


Event = Note | Progress | StepDone | Validated | CheckpointSaved
Emit = Callable[[Event], None]


class Stop:
    """The request to stop. Outside of `deferred()` a signal raises at once, so that it is answered
    wherever the program is; inside, it waits in `requested` until the work is saved."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = False

    def on_signal(self, number: int, _frame: object = None) -> None:
        # SIGTERM may come twice: a launcher passes on what its processes got as well
        second = self.requested is not None and number == signal.SIGINT
        self.requested = number
        if second or not self._deferred:
            self.raise_()

    def error(self) -> StopError:
        """What the program ends with once it is to stop."""
        if self.requested == signal.SIGINT:
            return InterruptError("interrupted", "run the same command again to continue")
        return StoppedError("stopped by SIGTERM", "run the same command again to continue")

    def raise_(self) -> None:
        raise self.error()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals set `requested` instead of raising; a second Ctrl-C raises after all."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False


@dataclass(frozen=True, slots=True)
class Context:
    """What every stage is given beside its configuration. `started`: time.monotonic() when the
    process began, from which a time budget counts."""

    emit: Emit = lambda _event: None
    stop: Stop = field(default_factory=Stop)
    started: float = field(default_factory=time.monotonic)

    def note(self, message: str) -> None:
        self.emit(Note(message))

    def warn(self, message: str) -> None:
        self.emit(Note(message, "warning"))
