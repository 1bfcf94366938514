"""The customers' messages: reproducible, and with the optimum that the script claims."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture(scope="module")
def service() -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("make_service", DATA / "make_service.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_writes(service: ModuleType, tmp_path: Path) -> None:
    service.main(["--folder", str(tmp_path)])
    for name in ("intents.jsonl", "dialogues.jsonl"):
        assert (tmp_path / name).read_bytes() == (DATA / "service" / name).read_bytes()


def test_probabilities_add_up(service: ModuleType) -> None:
    assert sum(p for p, _ in service.INTENTS.values()) == pytest.approx(1)
    assert all(sum(says.values()) == 10 for _, says in service.INTENTS.values())
    assert all(sum(replies.values()) == 4 for replies in service.REPLIES.values())


@pytest.mark.slow
def test_the_best_accuracy_is_that_of_counting(service: ModuleType) -> None:
    """Of many messages, a table of the most frequent intent of each sentence is about as good."""
    drawn = list(service.rows(40_000, seed=7))
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for row in drawn[:20_000]:
        table[row["said"]][row["label"]] += 1
    rest = drawn[20_000:]
    right = sum(table[row["said"]].most_common(1)[0][0] == row["label"] for row in rest)
    assert right / len(rest) == pytest.approx(service.best_accuracy(), abs=0.006)
    nats = -sum(math.log(service.posterior(row["said"])[row["label"]]) for row in rest)
    assert nats / len(rest) == pytest.approx(service.least_loss(), abs=0.01)


@pytest.mark.slow
def test_bits_are_the_entropy_of_replies(service: ModuleType) -> None:
    """The frequencies of replies after the same sentence and addition give the same bits."""
    drawn = list(service.rows(60_000, seed=9))
    told: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for row in drawn:
        told[row["said"], *row["missing"]][row["reply"]] += 1
    counted = 0.0
    for row in drawn:
        replies = told[row["said"], *row["missing"]]
        days = math.log2(len(service.DAYS)) if "{d}" in row["reply"] else 0.0
        counted += days - math.log2(replies[row["reply"]] / replies.total())
    exact = sum(service.told_bits(row) for row in drawn)
    assert counted / exact == pytest.approx(1, abs=0.003)


def test_replies_name_only_what_was_said(service: ModuleType) -> None:
    lines = (DATA / "service" / "dialogues.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 1000
    for row in rows:
        asked, reply = (row["messages"][i]["content"] for i in (0, 1))
        named = [article for article in service.ARTICLES if f" {article} " in f" {reply} "]
        assert all(article in asked for article in named)
        digits = [word.strip(".") for word in reply.split() if word.strip(".").isdigit()]
        assert all(number in asked for number in digits)
