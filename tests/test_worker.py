"""A thread beside the main one: order, errors, and signals at any moment."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from queue import Empty, SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from bigmodel_cli.errors import DataError
from bigmodel_cli.worker import Worker, ahead
from tests.stages import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_the_next_item_is_made_while_one_is_used_and_no_more() -> None:
    made: list[int] = []
    used = Event()

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 1:
                assert used.wait(10)  # item 0 is used before item 1 is made
            yield number

    found = []
    for number in ahead(items()):
        used.set()
        found.append(number)
        assert made[-1] <= number + 1
    assert found == [0, 1, 2, 3, 4]
    assert list(ahead(iter([]))) == []


def test_what_the_thread_raises_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise DataError("no more")

    found = []
    with pytest.raises(DataError, match="no more"):
        found.extend(ahead(items()))
    items_ = ahead(items())
    assert next(items_) == 0
    with pytest.raises(DataError, match="no more"):
        next(items_)


def test_nobody_waits_for_an_item_that_nobody_wants_and_its_file_is_closed() -> None:
    go_on, closed = Event(), Event()

    def items() -> Iterator[int]:
        try:
            yield 0
            assert go_on.wait(30)
            yield 1
        finally:
            closed.set()

    coming = ahead(items())
    assert next(coming) == 0
    began = time.monotonic()
    coming.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5
    assert not closed.is_set()  # it is being read from
    del coming
    go_on.set()
    assert closed.wait(10)


def test_the_end_waits_for_a_call_but_not_for_ever() -> None:
    for lasts, patience in ((0.3, 10), (30, 0.3)):
        hold, done = Event(), SimpleQueue[bool]()

        def call(hold: Event = hold, done: SimpleQueue[bool] = done, lasts: float = lasts) -> None:
            done.put(hold.wait(lasts))

        worker = Worker[None]()
        worker.start(call)
        began = time.monotonic()
        worker.end(patience)
        assert 0.2 < time.monotonic() - began < 5
        if lasts < 1:
            assert done.get_nowait() is False
            worker.end(60)  # there is nothing to wait for any more
            assert time.monotonic() - began < 5
        else:
            with pytest.raises(Empty):
                done.get_nowait()
        hold.set()


def test_a_signal_that_loses_the_last_word_makes_nobody_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when it is handled between what the queue gave and the line that would keep it."""
    main = threading.get_ident()

    class Interrupted(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            found = super().get(block, timeout)
            if found is None and threading.get_ident() == main:
                raise KeyboardInterrupt
            return found

    monkeypatch.setattr("bigmodel_cli.worker.SimpleQueue", Interrupted)
    worker = Worker[int]()
    worker.start(lambda: 3)
    assert worker.result() == 3
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        worker.end(30)
    worker.end(30)
    assert time.monotonic() - began < 5


ALARMS = """
import random, signal, sys
from bigmodel_cli.worker import Worker, ahead

class Alarm(BaseException):
    pass

def ring(*_):
    global rung
    rung += 1
    raise Alarm

rung = caught = 0
lost = []
sys.unraisablehook = lost.append
signal.signal(signal.SIGALRM, ring)
draw = random.Random(1)
while rung < 600:
    before = rung
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.0001, 0.002))
        while rung == before:
            assert list(ahead(iter([1, 2, 3]))) == [1, 2, 3]
            worker = Worker()
            worker.start(int)
            worker.result()
            worker.end(5)
    except Alarm:
        caught += 1
print(caught, len(lost))
"""


def test_signals_at_any_moment_are_neither_lost_nor_stop_the_program_for_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALARMS], cwd=ROOT, capture_output=True, text=True, timeout=100,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["600", "0"], done.stderr
