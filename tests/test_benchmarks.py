"""Every benchmark loads, and says how it is used. What they measure is no test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# the others are what these import
COMMANDS = sorted(p.name for p in BENCHMARKS.glob("*.py") if "__main__" in p.read_text("utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_says_how_it_is_used(name: str) -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / name, "--help"], capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    readme = (BENCHMARKS / "README.md").read_text("utf-8")
    assert f"python benchmarks/{name}" in readme
