"""A thread beside the main one: order, errors, and signals at any moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest

from bigmodel_cli.cli.app import as_known
from bigmodel_cli.errors import DataError, ResourceError
from bigmodel_cli.worker import Worker, ahead, can_start
from tests.conftest import environment, write_corpus
from tests.stages import ROOT, as_a_stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Cli


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_signals_at_any_moment_are_neither_lost_nor_stop_the_program_for_ever() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALARMS], cwd=ROOT, capture_output=True, text=True, timeout=100,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["600", "0"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("last_words", [[], [MemoryError()], [(5,), MemoryError()]])
def test_a_thread_that_memory_was_too_short_for_makes_nobody_wait(
    monkeypatch: pytest.MonkeyPatch, last_words: list[Any]
) -> None:
    """It ends before its first line, between two calls, or after a result."""

    def ends(_calls: Any, results: SimpleQueue[Any], *_: Any) -> None:
        for word in last_words:
            results.put(word)

    monkeypatch.setattr("bigmodel_cli.worker._work", ends)
    began = time.monotonic()
    worker = Worker[int]()
    if (5,) in last_words:
        worker.start(lambda: 5)
        assert worker.result() == 5
    worker.start(lambda: 5)
    with pytest.raises((MemoryError, ResourceError)) as caught:
        worker.result()
    known = as_known(caught.value)
    assert isinstance(known, ResourceError)
    assert known.hint
    worker.end(1)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("queue", ["calls", "results"])
def test_no_memory_between_two_calls(monkeypatch: pytest.MonkeyPatch, queue: str) -> None:
    main = threading.get_ident()

    class Short(SimpleQueue[Any]):
        used = 0

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if threading.get_ident() != main and queue == "calls":
                raise MemoryError
            return super().get(block, timeout)

        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            if threading.get_ident() != main and queue == "results":
                Short.used += 1
                if Short.used < 3:
                    raise MemoryError
            super().put(item, block, timeout)

    monkeypatch.setattr("bigmodel_cli.worker.SimpleQueue", Short)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    worker = Worker[int]()
    worker.start(lambda: 5)
    with pytest.raises((MemoryError, ResourceError)):
        worker.result()


def test_no_thread_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise RuntimeError("can't start new thread")

    assert can_start(2)
    monkeypatch.setattr("bigmodel_cli.worker.start_new_thread", refuse)
    with pytest.raises(ResourceError, match="no thread") as caught:
        Worker()
    assert "--threads 1" in caught.value.hint
    assert not can_start(1)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("can't allocate lock"),
        # as rayon's panics and C++'s errors come here
        BaseException("The global thread pool has not been initialized.: ThreadPoolBuildError "
                      '{ kind: IOError(Os { code: 11, kind: WouldBlock }) }'),
        BlockingIOError(11, "Resource temporarily unavailable"),
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=str,
)  # fmt: skip
def test_what_libraries_say_without_threads_or_memory(error: BaseException) -> None:
    known = as_known(error)
    assert known
    assert (known.code, bool(known.hint)) == (7, True)
    assert as_known(ValueError("of another kind")) is None


PATCHED = """
import sys
import bigmodel_cli.worker as worker
from bigmodel_cli.cli.app import main

def dies(*_):
    {first}

if sys.argv.pop(1) == "start":
    worker.start_new_thread = dies
else:
    worker._work = dies
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "first"),
    [("work", "raise MemoryError"), ("start", 'raise RuntimeError("can\'t start new thread")')],
)
def test_a_command_without_threads_says_so(tmp_path: Path, where: str, first: str) -> None:
    write_corpus(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PATCHED.format(first=first), where, "prepare", "corpus.jsonl",
         "--tokenizer", "bytes"],
        cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        env=environment({"PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "error: " in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_few_processes(cli: Cli, threads: int) -> None:
    """OpenMP would end the program with 1, OpenBLAS interrupt it."""
    own = sum(1 for p in Path("/proc").glob("[0-9]*/task/*") if p.stat().st_uid == 65534)
    limit = ["prlimit", f"--nproc={own + 2}"] if not os.geteuid() else []
    if not limit or not shutil.which("prlimit"):
        pytest.skip("the processes of this user cannot be counted")
    done = subprocess.run(
        [*as_a_stranger(), *limit, sys.executable, "-m", "bigmodel_cli", "predict", "The fox",
         "--max-tokens", "2", "--threads", str(threads)],
        cwd=cli.cwd, capture_output=True, text=True, timeout=60, check=False,
        env={**environment({"PYTHONPATH": str(ROOT)}), "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == (7 if threads == 2 else 0), done.stderr
    assert threads == 1 or ("error: " in done.stderr and "--threads 1" in done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [300, 800, 900])
def test_little_memory(cli: Cli, megabytes: int) -> None:
    """Libraries report it as errors of many kinds, in the middle of their imports, too."""
    done = cli("predict", "The fox", "--max-tokens", "2", cold=True, memory=megabytes << 20)
    assert done.code in ((7,) if megabytes <= 500 else (0, 7)), str(done)
    if done.code:
        assert done.error()[0].startswith("out of memory")
