"""What is served is what was evaluated: `predict` over the raw rows of a test split, with dirt of
every kind in them, gives the figures of `evaluate`."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
from PIL import Image

from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy.predict import Predictor
from tests.conftest import Cli

SMALL = ("--size", "nano", "--width", "32", "--layers", "1", "--heads", "2", "--batch-size", "16",
         "--precision", "fp32", "--seed", "1")  # fmt: skip
# control characters, byte order marks, spaces of all kinds, characters without width
DIRT = ["\x00", "\x01\x02", "\ufeff", "\x7f", "\x85", "\x9f", "\u200b", "\xad", "\u2060", " ",
        "\xa0", "\u3000", "\t", "\x0b", "\x0c", "\x1c\x1f", "\u2028", "\r\n", "\u0301"]  # fmt: skip


def dirty(text: str, seed: int) -> str:
    """The text with dirt before, after and inside of it."""
    draw = random.Random(seed)
    for _ in range(4):
        place = draw.randrange(len(text) + 1)
        text = text[:place] + draw.choice(DIRT) + text[place:]
    return draw.choice(DIRT) + text + draw.choice(DIRT)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def trained(cli: Cli, steps: int, *prepare: str) -> dict[str, Any]:
    """Takes a folder's data all the way; the evaluation."""
    cli.works("prepare", *prepare)
    cli.works("train", *SMALL, "--steps", str(steps))
    document = json.loads(cli.works("evaluate", "--json").out)
    cli.works("deploy")
    return document


def predicted(cli: Cli, field: str, values: list[Any], **more: Any) -> list[dict[str, Any]]:
    lines = "".join(json.dumps({field: value, **more}) + "\n" for value in values)
    out = cli.works("predict", stdin=lines.encode()).out
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == len(values)
    return answers


def value(document: dict[str, Any], metric: str) -> float:
    return float(document["metrics"][metric]["value"])


def check_classes(
    document: dict[str, Any], answers: list[dict[str, Any]], labels: list[str]
) -> None:
    """Accuracy is the same to the last digit, and the loss to the six digits of a probability."""
    assert document["metrics"]["accuracy"]["n"] == len(labels)
    right = [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
    assert sum(right) / len(right) == value(document, "accuracy")
    nats = [-math.log(a["probabilities"][label]) for a, label in zip(answers, labels, strict=True)]
    assert sum(nats) / len(nats) == pytest.approx(value(document, "loss"), abs=2e-5)


GOOD = ["a good film", "splendid and warm", "这部电影非常好看", "值得一看的作品"]
BAD = ["a bad film", "dull and cold", "这部电影非常难看", "浪费时间的作品"]


@pytest.mark.slow
def test_texts_are_classified_as_they_were_scored(empty: Cli) -> None:
    def rows(first: int, count: int) -> list[dict[str, Any]]:
        return [
            {"text": f"{words[i // 2 % 4]}, number {i}", "label": label}
            for i in range(first, first + count)
            for words, label in [((GOOD, "good"), (BAD, "bad"))[i % 2]]
        ]

    held = [{**row, "text": dirty(row["text"], i)} for i, row in enumerate(rows(100, 40))]
    held[3]["text"] += " and so on" * 20  # beyond the context
    held[8]["label"] = f" \u3000{held[8]['label']}\xa0"
    write(empty.cwd / "rows.jsonl", rows(0, 100))
    write(empty.cwd / "held.jsonl", held)
    document = trained(empty, 60, "rows.jsonl", "--test", "held.jsonl", "--val", "0", "--context",
                       "64", "--tokenizer", "bytes")  # fmt: skip
    assert value(document, "accuracy") > 0.7
    answers = predicted(empty, "text", [row["text"] for row in held])
    check_classes(document, answers, [row["label"].strip() for row in held])
    assert {i for i, answer in enumerate(answers) if "truncated" in answer} == {3}
    cleaned = re.sub("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]", "", held[3]["text"])
    assert answers[3]["truncated"] == 1 + len(cleaned.encode()) - 64


@pytest.mark.slow
def test_images_are_classified_as_they_were_scored(empty: Cli) -> None:
    draw = np.random.default_rng(0)
    held: list[tuple[str, str]] = []
    for i in range(60):
        label = ("left", "right")[i % 2]
        part = "test" if i >= 40 else "train"
        side = 12 if i % 3 else 20
        pixels = draw.integers(0, 120, (side, side + i % 4, 3), np.uint8)
        half = slice(0, side // 2) if label == "left" else slice(side // 2, None)
        pixels[:, half] += 100
        image = Image.fromarray(pixels)
        if i % 5 == 4:
            image = image.convert("LA" if i % 2 else "L")
        kind = ("png", "jpg", "bmp", "tiff")[i % 4] if image.mode != "LA" else "png"
        path = empty.cwd / "pictures" / part / label / f"{i}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        if part == "test":
            uri = "data:;base64," + base64.b64encode(path.read_bytes()).decode()
            held.append((uri if i % 2 else str(path), label))
    document = trained(empty, 20, "pictures/train", "--test", "pictures/test", "--val", "0")
    answers = predicted(empty, "image", [image for image, _ in held])
    check_classes(document, answers, [label for _, label in held])


@pytest.mark.slow
def test_sentences_are_translated_as_they_were_scored(empty: Cli) -> None:
    words = {"dog": "Hund", "cat": "Katze", "fox": "Fuchs", "狗": "Hund", "猫": "Katze"}
    nouns = list(words)

    def rows(first: int, count: int) -> list[dict[str, Any]]:
        pairs = [(nouns[i % 5], nouns[i // 5 % 5], i) for i in range(first, first + count)]
        return [{"source": f"{a} sees {b} {i}", "target": f"{words[a]} sieht {words[b]} {i}"}
                for a, b, i in pairs]  # fmt: skip

    held = [{n: dirty(text, 2 * i + (n == "target")) for n, text in row.items()}
            for i, row in enumerate(rows(200, 20))]  # fmt: skip
    write(empty.cwd / "rows.jsonl", rows(0, 200))
    write(empty.cwd / "held.jsonl", held)
    document = trained(empty, 120, "rows.jsonl", "--test", "held.jsonl", "--val", "0",
                       "--tokenizer", "chars")  # fmt: skip
    answers = [a["target"] for a in predicted(empty, "source", [row["source"] for row in held])]
    place = Workdir(empty.work)
    split = Split(place.data, place.read_data().splits["test"].shards)
    assert len(split) == len(held)
    texts = {
        tuple(split.values(name, unit, unit + 1).tobytes().decode() for name in row)
        for unit, row in enumerate(held)
    }
    predictor = Predictor(place.run("default").bundle, "cpu", 1)
    sources = [predictor.request({"source": row["source"]}, {}).prompt for row in held]
    targets = dict(texts)
    assert set(sources) == set(targets)  # as they are in the shards
    references = [[targets[source] for source in sources]]
    chrf = sacrebleu.corpus_chrf(answers, references).score
    assert chrf > 10
    assert chrf == pytest.approx(value(document, "chrf"), abs=1e-9)
    tokens = re.search(r"tok:([^|]+)", document["protocol"]["bleu"])
    assert tokens
    bleu = sacrebleu.corpus_bleu(answers, references, tokenize=tokens[1]).score
    assert bleu == pytest.approx(value(document, "bleu"), abs=1e-9)


@pytest.mark.slow
def test_items_are_ranked_as_they_were_scored(empty: Cli) -> None:
    """Ids are numbers, which requests write as 7, 7.0 or " 7"; items that come again, items that
    are too rare to be known, and histories longer than the context."""
    draw = random.Random(0)
    histories: list[list[int]] = []
    for user in range(60):
        items = [draw.randrange(20)]
        for _ in range(draw.randint(6, 16)):
            items.append((items[-1] * 3 + draw.choice([1, 1, 2, 5])) % 20)
        items.insert(2, 1000 + user)  # which nobody else has
        histories.append(items)
    lines = ["user,item,timestamp"]
    lines += [f"{u},\u3000{item} ,{n}" for u, items in enumerate(histories)
              for n, item in enumerate(items)]  # fmt: skip
    (empty.cwd / "log.csv").write_text("\n".join(lines) + "\n")
    empty.works("prepare", "log.csv", "--min-count", "3")
    empty.works("train", *SMALL, "--steps", "40", "--context", "8")
    document = json.loads(empty.works("evaluate", "--json").out)
    empty.works("deploy")
    forms = (int, float, lambda item: f" {item}\u2003")
    asked = [[forms[(u + n) % 3](item) for n, item in enumerate(items[:-1])]
             for u, items in enumerate(histories)]  # fmt: skip
    answers = predicted(empty, "history", asked)
    gains, hits = [], []
    for items, answer in zip(histories, answers, strict=True):
        found = [entry["item"] for entry in answer["items"]]
        target = str(items[-1])
        rank = found.index(target) + 1 if target in found else None
        hits.append(rank is not None)
        gains.append(1 / math.log2(rank + 1) if rank else 0)
        assert answer["unknown"] == 1
        assert answer.get("truncated", 0) == max(0, len(items) - 2 - 8)
    assert document["metrics"]["ndcg@10"]["n"] == len(histories)
    assert 0 < sum(hits) < len(hits)
    assert sum(hits) / len(hits) == pytest.approx(value(document, "hr@10"), abs=1e-12)
    assert sum(gains) / len(gains) == pytest.approx(value(document, "ndcg@10"), abs=1e-12)


@pytest.mark.slow
def test_a_model_of_language_reads_the_tokens_that_were_scored(empty: Cli) -> None:
    texts = [
        f"The fox number {i} ran over hill {i * 7}. 狐狸跑过了第 {i} 座山。" for i in range(60)
    ]
    held = [dirty(text, i) for i, text in enumerate(texts[40:])]
    write(empty.cwd / "rows.jsonl", [{"text": text} for text in texts[:40]])
    write(empty.cwd / "held.jsonl", [{"text": text} for text in held])
    empty.works(
        "prepare", "rows.jsonl", "--test", "held.jsonl", "--val", "0", "--vocab-size", "300"
    )
    empty.works("train", *SMALL, "--steps", "1")
    empty.works("deploy")
    place = Workdir(empty.work)
    split = Split(place.data, place.read_data().splits["test"].shards)
    predictor = Predictor(place.run("default").bundle, "cpu", 1)
    scored = [split.values("tokens", unit, unit + 1).tolist() for unit in range(len(split))]
    read = [predictor.request({"prompt": text}, {}).prompt for text in held]
    end = scored[0][-1]
    assert sorted(scored) == sorted([*ids, end] for ids in read)
