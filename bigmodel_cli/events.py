"""What a stage says while it runs, and how it is asked to stop. Stages emit; `cli` renders."""

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
    """How far a phase is: `done` of `total` (None: unknown) in `unit`; `fields` are shown as is."""

    phase: str
    done: float
    total: float | None
    unit: str
    fields: Mapping[str, str] = field(default_factory=dict)


Emit = Callable[[Note | Progress], None]


class Stop:
    """The wish to stop. Outside of `deferred()` a signal raises at once, so that it is answered
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
