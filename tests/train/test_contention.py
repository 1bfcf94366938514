"""A busy machine is told of, once, and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bigmodel_cli.train import contention
from tests.stages import Events, final_bytes, train

TICK = 1 / 100


def machine(folder: Path, waited: float, stolen: float, whole: float) -> None:
    """/proc as a system shows it: two threads, which waited as long together."""
    for number in (1, 2):
        task = folder / "self" / "task" / str(number)
        task.mkdir(parents=True, exist_ok=True)
        (task / "schedstat").write_text(f"123 {int(waited / 2 * 1e9)} 7\n")
    rest = int((whole - stolen) / TICK)
    (folder / "stat").write_text(f"cpu  {rest} 0 0 0 0 0 0 {int(stolen / TICK)} 0 0\ncpu0 1\n")


@pytest.mark.parametrize(
    ("threads", "waited", "stolen", "says"),
    [
        (2, 8.0, 0.0, "2 threads of this run wait 80% of their time"),
        (4, 0.0, 10.0, "4 threads of this run wait 50% of their time"),
        (2, 0.2, 0.4, ""),
        (1, 8.0, 0.0, ""),
    ],
)
def test_waiting_and_stolen_time_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, waited: float, stolen: float,
    says: str,
) -> None:  # fmt: skip
    now = [100.0]
    monkeypatch.setattr(contention, "PROC", tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: (now[0] - 100) / 5)
    machine(tmp_path, 3.0, 1.0, 50.0)
    subject = contention.Contention(threads)
    now[0] += 4
    machine(tmp_path, 3.0 + waited, 1.0 + stolen, 70.0)
    assert not subject.warning()  # too early to tell
    now[0] += 6
    found = subject.warning()
    assert (says in found) if says else not found
    assert not says or "--threads 1" in found
    now[0] += 10
    machine(tmp_path, 3.0 + 2 * waited, 1.0 + 2 * stolen, 90.0)
    assert not subject.warning()


def test_a_system_that_does_not_tell_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contention, "PROC", tmp_path / "nothing")
    monkeypatch.setattr(contention, "WINDOW", 0.0)
    assert contention.Contention(8).warning() == ""


@pytest.mark.slow
def test_a_run_on_a_busy_machine_says_so_and_computes_the_same_bytes(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(work, "quiet", threads=2)
    monkeypatch.setattr(contention, "WINDOW", 0.0)
    monkeypatch.setattr(contention, "MUCH", 0.0)
    events = Events()
    train(work, "busy", events.context(), threads=2)
    assert events.notes.count("--threads 1") == 1
    assert final_bytes(work, "busy") == final_bytes(work, "quiet")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how long a thread waited")
def test_processes_that_use_all_cpus_are_noticed() -> None:
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        time.sleep(0.5)
        subject, began = contention.Contention(2), time.monotonic()
        while time.monotonic() - began < contention.WINDOW + 0.1:
            pass
        assert "--threads 1" in subject.warning()
    finally:
        for process in busy:
            process.kill()
            process.wait()
