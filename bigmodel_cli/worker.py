"""A thread beside the main one, made so that a signal may come at any moment."""

from __future__ import annotations

import contextlib
import weakref
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from bigmodel_cli.errors import NO_MEMORY, NO_THREAD, ResourceError

T = TypeVar("T")
PATIENCE = 5.0  # seconds for a write that goes on where all else has failed
PULSE = 1.0  # seconds after which it is checked that a thread which is waited for still runs


class Alive:
    """An object that only the thread holds: when it is gone, the thread is."""


class Worker(Generic[T]):
    """Makes one call after another in a thread of its own.

    A signal raises wherever the main thread is (see events.Stop). In the Python of threading or
    concurrent.futures it could leave a lock taken for ever, or be lost in a callback of a weak
    reference; here is nothing but what is written in C. Nobody has to wait for the thread: it ends
    after its call, or with the program. A thread that memory was too short for, in its first lines
    or in its last, is noticed by the death of what only it holds.
    """

    def __init__(self) -> None:
        """Raises ResourceError when the system has no thread to give."""
        self.busy = False  # with a call whose result nobody has taken
        self._over: list[bool] = []  # True in it, once the thread makes nothing more
        self._calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
        alive = Alive()
        self._alive = weakref.ref(alive)
        try:
            start_new_thread(_work, (self._calls, self._results, self._over, alive))
        except RuntimeError as error:
            raise ResourceError("the system has no thread to give", NO_THREAD) from error

    def start(self, call: Callable[[], T]) -> None:
        """Has a call made; its result is to be taken before the next."""
        self.busy = True
        self._calls.put(call)

    def result(self) -> T:
        """Waits for the call, and gives its result or raises what it raised."""
        while True:
            runs = self._alive() is not None
            try:
                found = self._results.get(timeout=PULSE if runs else 0)
                break
            except Empty:
                if not runs:
                    self.busy = False
                    raise ResourceError("out of memory in a thread", NO_MEMORY) from None
        self.busy = False
        if isinstance(found, BaseException):
            raise found
        assert found
        return found[0]

    def end(self, seconds: float = 0.0) -> None:
        """There will be no more calls. Waits at most so long for one that is being made."""
        self._calls.put(None)
        with contextlib.suppress(Empty):
            while not self._over:  # a signal between two lines would lose what get() gave
                self._results.get(timeout=seconds)


def _work(
    calls: SimpleQueue[Callable[[], T] | None],
    results: SimpleQueue[tuple[T] | BaseException | None],
    over: list[bool],
    _alive: Alive,
) -> None:
    try:
        while call := calls.get():
            try:
                results.put((call(),))
            except BaseException as error:
                results.put(error)
            del call  # and what it holds, while there is nothing to do
    except MemoryError as error:  # between two calls
        results.put(error)
    over.append(True)
    results.put(None)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items (none is None), of which a thread makes the next meanwhile, and no more. What they
    are made from is closed by the thread, where nobody wants the rest."""
    worker = Worker[T | None]()
    try:
        worker.start(lambda: next(items, None))
        while (item := worker.result()) is not None:
            worker.start(lambda: next(items, None))
            yield item
    finally:
        worker.end()


@contextlib.contextmanager
def beside(call: Callable[[], object]) -> Iterator[None]:
    """Has a call made by a thread meanwhile; waits for it at the end, and raises what it raised. A
    signal is answered while it is waited for, whatever the call does."""
    worker = Worker[object]()
    try:
        worker.start(call)
        yield
        worker.result()
    finally:
        worker.end()


def can_start(count: int) -> bool:
    """Whether the system has so many threads to give, and as many more. Libraries that start
    their own end the program (OpenMP) or interrupt it (OpenBLAS) where it has not."""
    gate = allocate_lock()
    with gate:  # they all run at once; twice as many, since they take a moment to be gone
        try:
            for _ in range(2 * count):
                start_new_thread(_pass, (gate,))
        except RuntimeError:
            return False
    return True


def _pass(gate: LockType) -> None:
    with gate:
        pass
