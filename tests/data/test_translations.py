"""The synchronous grammar: reproducible, unambiguous, and with the bits that it claims."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "data" / "make_translations.py"


def drawn(folder: Path, pairs: int, *more: str) -> Path:
    path = folder / "pairs.jsonl"
    subprocess.run([sys.executable, SCRIPT, path, "--pairs", str(pairs), *more], check=True,
                   capture_output=True)  # fmt: skip
    return path


def rows(path: Path) -> list[dict[str, str | float]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_same_seed_draws_the_same_pairs(tmp_path: Path) -> None:
    one, two, other = ((tmp_path / name) for name in "abc")
    for folder in (one, two, other):
        folder.mkdir()
    a, b = drawn(one, 50).read_bytes(), drawn(two, 50).read_bytes()
    assert a == b != drawn(other, 50, "--seed", "1").read_bytes()


@pytest.mark.slow
def test_a_source_has_one_target(tmp_path: Path) -> None:
    known: dict[str, str] = {}
    for row in rows(drawn(tmp_path, 20_000)):
        assert row["bits"] == 0
        source, target = str(row["source"]), str(row["target"])
        assert known.setdefault(source, target) == target


@pytest.mark.slow
def test_bits_are_those_of_the_synonyms(tmp_path: Path) -> None:
    """Of sources that are drawn often, targets are as frequent as their bits say."""
    targets: dict[str, Counter[str]] = defaultdict(Counter)
    bits: dict[tuple[str, str], float] = {}
    for row in rows(drawn(tmp_path, 60_000, "--synonyms", "0.25")):
        pair = str(row["source"]), str(row["target"])
        targets[pair[0]][pair[1]] += 1
        assert bits.setdefault(pair, float(row["bits"])) == row["bits"]
    assert any(bits.values())
    for source, found in targets.items():
        assert sum(2 ** -bits[source, target] for target in found) <= 1 + 1e-5
    mean = sum(b for b in bits.values()) / len(bits)
    assert 0 < mean < 8 * (0.25 * math.log2(4) + 0.75 * math.log2(4 / 3))


def test_bad_usage_is_refused(tmp_path: Path) -> None:
    for more in (["--pairs", "0"], ["--synonyms", "1"]):
        with pytest.raises(subprocess.CalledProcessError):
            drawn(tmp_path, 5, *more)
