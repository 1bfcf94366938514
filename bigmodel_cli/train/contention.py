"""Whether other processes keep the CPUs busy. Only to say so: the number of threads decides which
bytes are computed, so it is never chosen by what is measured here."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PROC = Path("/proc")
WINDOW = 5.0  # seconds that are judged together
MUCH = 0.2  # the share of waiting that is worth a warning


class Contention:
    """Says once when the threads of this process wait for CPUs much of the time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._said = threads < 2  # one thread waits for no other
        self._began, self._before = time.monotonic(), _times()

    def warning(self) -> str:
        """What to warn of; nothing for the most part. Called again and again."""
        if self._said or time.monotonic() - self._began < WINDOW:
            return ""
        now = _times()
        waited, computed, stolen, whole = (max(0.0, b - a) for a, b in zip(self._before, now))
        share = max(waited / max(waited + computed, 1e-9), stolen / max(whole, 1e-9))
        self._began, self._before = time.monotonic(), now
        if share < MUCH:
            return ""
        self._said = True
        return (
            f"the CPUs are busy with other work: the {self._threads} threads of this run wait "
            f"{share:.0%} of their time for one, and for each other; one thread may be faster: "
            "--threads 1 (with --restart, since a run keeps its threads to resume exactly)"
        )


def _times() -> tuple[float, float, float, float]:
    """Seconds that this process's threads were ready but had to wait for a CPU, and that they
    computed; that a hypervisor took from all CPUs, and of all CPUs in all. 0 where a system does
    not tell."""
    waited = stolen = whole = 0.0
    for path in (PROC / "self" / "task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            waited += int(path.read_text().split()[1]) / 1e9
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = [int(word) for word in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        stolen, whole = ticks[7] / os.sysconf("SC_CLK_TCK"), sum(ticks) / os.sysconf("SC_CLK_TCK")
    return waited, time.process_time(), stolen, whole
