"""Labels: what cannot be learned is said when it is read, and again when it is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import TINY, Cli

PREPARE = ("prepare", "rows.jsonl", "--tokenizer", "bytes", "--context", "32")


def write(folder: Path, pairs: list[tuple[str, str]], name: str = "rows.jsonl") -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in pairs]
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")


def kinds(count: int, names: str) -> list[tuple[str, str]]:
    return [(f"text {i} of kind {names[i % len(names)]}", names[i % len(names)])
            for i in range(count)]  # fmt: skip


@pytest.mark.slow
def test_a_class_that_only_held_out_rows_have_is_named_and_scored_as_0(empty: Cli) -> None:
    write(empty.cwd, kinds(60, "ab"))
    write(empty.cwd, [*kinds(30, "ab"), *((f"中文第{i}句", "中文") for i in range(10))], "t.jsonl")
    said = empty.works(*PREPARE, "--test", "t.jsonl", "--val", "0.1").err
    assert "no training row has the labels `中文`" in said
    empty.works("train", *TINY[:-4], "--steps", "2")
    shown = empty.works("evaluate").out
    table = json.loads((empty.work / "runs/default/evaluation.json").read_bytes())["tables"]
    (found,) = [part for part in table if part["title"] == "Classes without a training row"]
    assert found["rows"] == [["中文", "10", "0.0000"]]
    assert shown


@pytest.mark.slow
def test_classes_that_only_one_row_each_has_are_refused_for_that_reason(empty: Cli) -> None:
    rows = [{"words": f"text {i}", "name": f"label {i}"} for i in range(200)]
    (empty.cwd / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    empty.refuses(
        *PREPARE, "--task", "text-classification", "--column", "text=words", "--column",
        "label=name", code=4, says=["`name` has 200 different labels in 200 rows", "too many"],
        hint=["--column label=NAME"],
    )  # fmt: skip


@pytest.mark.slow
def test_one_class_that_is_left_after_cleaning_is_said_to_be(empty: Cli) -> None:
    write(empty.cwd, [*kinds(40, "a"), *[("", "b")] * 7])
    empty.refuses(*PREPARE, code=4, says=["only one label in the column `label`: 40 rows with `a`",
                                          "7 empty"], hint=["--column label=NAME"])  # fmt: skip


@pytest.mark.slow
def test_one_class_in_training_is_refused(empty: Cli) -> None:
    write(empty.cwd, kinds(40, "a"))
    write(empty.cwd, kinds(40, "bc"), "t.jsonl")
    empty.refuses(*PREPARE, "--test", "t.jsonl", code=4,
                  says=["the train split has only one label, `a`: `b`, `c`"])  # fmt: skip


@pytest.mark.slow
def test_labels_that_are_nearly_alike_are_a_warning(empty: Cli) -> None:
    names = [
        "Spam",
        "spam",
        "ＳＰＡＭ",
        "not spam",
        "not  spam",
        "正面",
        " 正面 ",
        "a\u200bb",
        "ab",
    ]
    rows = [(f"text {i} {j}", name) for j, name in enumerate(names) for i in range(10)]
    write(empty.cwd, [*rows, ("alone", "once")])
    said = empty.works(*PREPARE).err
    assert "`Spam`, `spam`, `ＳＰＡＭ` differ only in case, spaces, unseen characters or" in said
    assert "`ab`, `a" in said
    assert "spaces around the labels of 10 rows were cut off" in said
    assert "`not  spam`, `not spam` differ only" in said
    assert "`正面`" not in said  # outer spaces are cut off
    assert "9 classes, 1 of them with a single row, which is not held out" in said


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
def test_image_classes_are_judged_alike(empty: Cli, plain: bool) -> None:
    for split, names in (("train", ["猫", "狗"]), ("test", ["猫", "狗", "鸟"])):
        for name in names if plain or split == "test" else names[:1]:
            folder = empty.cwd / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                shade = 20 * i + 7 * "猫狗鸟".index(name) + (split == "test")
                Image.new("L", (8, 8), shade).save(folder / f"{i}.png")
    if plain:
        assert "no training row has the labels `鸟`" in empty.works("prepare", "pets").err
    else:
        empty.refuses(
            "prepare", "pets", "--val", "0.3", code=4, says=["only one label, `猫`: `狗`, `鸟`"]
        )
