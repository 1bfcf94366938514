"""Histories of known optimum: reproducible, and what `data/make_sessions.py` says is so."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.stages import ROOT
from tests.tasks.test_recommendation import sessions


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for seed in ("0", "0", "1"):
        sessions.main(["--users", "20", "--seed", seed, "--output", str(tmp_path / "a" / "b.csv")])
        written.append((tmp_path / "a" / "b.csv").read_bytes())
    assert written[0] == written[1] != written[2]
    header, *rows = written[0].decode().splitlines()
    assert header == "user,item,timestamp"
    times = [int(row.split(",")[2]) for row in rows]
    assert times == sorted(times)


def test_no_users_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        sessions.main(["--users", "0", "--output", str(tmp_path / "none")])
    assert stopped.value.code == 2


def test_the_best_figures_are_those_of_the_best_ranking() -> None:
    rng = random.Random(1)
    pairs = [pair for _ in range(4000) for pair in pairwise(sessions.draw(rng))]
    ranks = [sessions.FOLLOW[last].index(item) + 1 for last, item in pairs]
    best, n = sessions.best(), len(ranks)
    measured = {
        "hr@10": sum(rank <= 10 for rank in ranks) / n,
        "ndcg@10": sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10) / n,
        "mrr": sum(1 / rank for rank in ranks) / n,
        "loss": -sum(math.log(sessions.SHARES[rank - 1]) for rank in ranks) / n,
    }
    for name, value in measured.items():
        assert value == pytest.approx(best[name], abs=4 * math.sqrt(1 / n))
    assert math.fsum(sessions.SHARES) == pytest.approx(1)
    assert all(a > b for a, b in pairwise(sessions.SHARES))
    text = (ROOT / "data" / "README.md").read_text("utf-8")
    assert "| " + " | ".join(f"{best[n]:.4f}" for n in measured) + " |" in text


def test_what_was_had_leaves_the_best_of_the_rest() -> None:
    first = 3
    assert sessions.best_unseen([first]) == pytest.approx(
        sum(p for p, item in zip(sessions.SHARES, sessions.FOLLOW[first]) if item != first)
        if len([i for i in sessions.FOLLOW[first] if i != first]) <= 10
        else sessions.best()["hr@10"]
    )
    history = [*sessions.FOLLOW[first][:15], first]
    assert sessions.best_unseen(history) == pytest.approx(sum(sessions.SHARES[15:]))


def test_every_item_is_drawn() -> None:
    rng = random.Random(2)
    counts = Counter(item for _ in range(500) for item in sessions.draw(rng))
    assert len(counts) == sessions.ITEMS
