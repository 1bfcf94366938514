"""Contestants side by side: alternating rounds in one process tree, medians, ratios.

Machines are shared and noisy, so each round runs every contestant once, and CPU seconds stand
beside wall time.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Contestant:
    """A command; `before` makes each round the same (removes what the last one left)."""

    name: str
    command: Sequence[str]
    before: Callable[[], None] = lambda: None
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # MB at the peak of the largest process
    output: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Once. Raises RuntimeError with its output when it fails."""
        self.before()
        began = time.monotonic()
        process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.env},
            cwd=self.cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{self.name} failed ({process.returncode}):\n{text[-3000:]}")
        self.wall.append(time.monotonic() - began)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.memory.append(usage.ru_maxrss / 1024)
        self.output.append(text)


def alternate(contestants: Sequence[Contestant], rounds: int) -> None:
    for _ in range(rounds):
        for contestant in contestants:
            contestant.run()
            print(
                f"round {len(contestant.wall)}: {contestant.name}: {contestant.wall[-1]:.1f} s "
                f"wall, {contestant.cpu[-1]:.1f} s CPU",
                file=sys.stderr,
                flush=True,
            )


def machine() -> str:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if "model name" in x), name)
    return f"{len(os.sched_getaffinity(0))} cores of {name}, Python {platform.python_version()}"


def table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows, the first of which is the header, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths))
            )
        )


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and extremes."""
    return (
        f"{statistics.median(values):,.{digits}f} "
        f"({min(values):,.{digits}f}–{max(values):,.{digits}f})"
    )
