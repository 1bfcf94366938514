"""What sources are for, which are read, and that prepare says so: the rows are the proof."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from bigmodel_cli.artifacts import tokenizer
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import json_forms, readers
from bigmodel_cli.prepare.sources import Layout, Source, find
from tests.conftest import Cli

ALL = ("--tokenizer", "bytes", "--val", "0", "--test", "0")
LABELLED = [
    {"text": f"这部电影第{i}次看还是很{'好' if i % 2 else '差'} film {i}",
     "label": "好" if i % 2 else "bad"}
    for i in range(20)
]  # fmt: skip
TEXTS = [{"text": row["text"]} for row in LABELLED]
PAIRS = [
    {"en": f"The cat number {i} sat down.", "zh": f"第{i}只猫坐下了，它很高兴。"} for i in range(20)
]
NESTED = [{"id": f"pair-{i}", "translation": pair} for i, pair in enumerate(PAIRS)]


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def split(cli: Cli, name: str = "train") -> Split:
    return Split(cli.work / "data", Workdir(cli.work).read_data().splits[name].shards)


def labelled(cli: Cli, name: str = "train") -> set[tuple[str, str]]:
    """Texts and their labels."""
    made = tokenizer.load(cli.work / "data" / "preprocessor")
    labels = json.loads((cli.work / "data" / "preprocessor" / "labels.json").read_text("utf-8"))[
        "labels"
    ]
    part = split(cli, name)
    texts = [made.decode(part.values("tokens", i, i + 1).tolist()) for i in range(len(part))]
    return {
        (text.removeprefix("<|endoftext|>"), labels[code])
        for text, code in zip(texts, part.column("label").tolist(), strict=True)
    }


def pairs(cli: Cli, name: str = "train") -> set[tuple[str, str]]:
    part = split(cli, name)
    return {
        (part.values("source", i, i + 1).tobytes().decode(),
         part.values("target", i, i + 1).tobytes().decode())
        for i in range(len(part))
    }  # fmt: skip


def texts(cli: Cli) -> set[str]:
    made = tokenizer.load(cli.work / "data" / "preprocessor")
    part = split(cli)
    return {
        made.decode(part.values("tokens", i, i + 1).tolist()).replace("<|endoftext|>", "")
        for i in range(len(part))
    }


def prepared(cli: Cli, *arguments: str, twice: bool = False) -> str:
    """What prepare says. twice: a second one is up to date, and status agrees."""
    result = cli.works("prepare", *arguments)
    if twice:
        again = cli.works("prepare", *arguments)
        assert again.out.startswith("up to date"), str(again)
        assert [line for line in again.err.splitlines() if " task " in line], str(again)
        status = cli.works("status").out
        assert "prepare  fresh" in status, status
    return result.err


WANTED = {(row["text"], row["label"]) for row in LABELLED}
FORMS = {
    "lines": lines(LABELLED),
    "lines of which the first is broken": '{"text": "cut\n' + lines(LABELLED),
    "a list": json.dumps(LABELLED),
    "a list with a byte order mark": "\ufeff" + json.dumps(LABELLED),
    "a list with a name": json.dumps({"version": 1.1, "data": LABELLED}),
    "a list with another name": json.dumps({"rows": LABELLED, "count": 20}, indent=1),
    "a list with a name in an answer": json.dumps({"code": 0, "message": "ok", "data": LABELLED}),
    "objects over several lines": "\n".join(json.dumps(row, indent=2) for row in LABELLED),
    "objects on one line": "".join(json.dumps(row) for row in LABELLED),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_json_is_read_in_every_form(empty: Cli, form: str) -> None:
    content = FORMS[form].encode()
    packed = "name" in form
    write(empty.cwd, {"in/a.json.gz" if packed else "in/a.json":
                      gzip.compress(content) if packed else content})  # fmt: skip
    said = prepared(empty, "in", *ALL, twice=packed)
    assert "text-classification: text from `text`, label from `label`" in said
    assert labelled(empty) == WANTED
    if "list" in form:  # whatever the end of its name
        write(empty.cwd, {"b.jsonl": content})
        prepared(empty, "b.jsonl", *ALL)
        assert labelled(empty) == WANTED


@pytest.mark.slow
def test_the_form_of_a_long_file_is_known_by_its_beginning(tmp_path: Path) -> None:
    long = {"version": 2, "text": "x" * 900_000, "items": LABELLED * 1000}
    (tmp_path / "a.json").write_text(json.dumps(long))
    (tmp_path / "b.json").write_text(json.dumps(LABELLED * 10_000, indent=1))
    with (tmp_path / "a.json").open("rb") as file:
        form = json_forms.peek(file, 5)
    assert (form.kind, form.lists) == ("object", {"items": LABELLED[:5]})
    with (tmp_path / "b.json").open("rb") as file:
        assert json_forms.peek(file, 7) == json_forms.Form("json", LABELLED[:7])
    for text in ("", " ", "[1, 2]", "[Scene 1] Enter", "{x}", '{"a": ', '"a"', "[" * 99_999):
        (tmp_path / "c.json").write_text(text)
        with (tmp_path / "c.json").open("rb") as file:
            assert json_forms.peek(file, 7).kind == "text", text


@pytest.mark.slow
def test_lists_named_for_splits_are_splits(empty: Cli) -> None:
    parts = {"train": LABELLED[:12], "validation": LABELLED[12:15], "test": LABELLED[15:]}
    write(empty.cwd, {"a.json": json.dumps(parts)})
    prepared(empty, "a.json", "--tokenizer", "bytes", twice=True)
    for name, rows in zip(("train", "val", "test"), parts.values(), strict=True):
        assert labelled(empty, name) == {(row["text"], row["label"]) for row in rows}


def test_other_lists_must_be_chosen(empty: Cli) -> None:
    write(empty.cwd, {"a.json": json.dumps({"users": [{"a": 1}], "items": [{"b": 2}]})})
    empty.fails("prepare", "a.json", code=4, says=["`users`, `items`"], hint=[".users[]", "a.json"])


@pytest.mark.slow
def test_an_object_is_a_row_where_a_task_knows_its_columns(empty: Cli) -> None:
    """A list inside of a dialogue is no list of rows."""
    for number in range(5):
        words = [{"role": "user", "content": f"你好 {number}?"},
                 {"role": "assistant", "content": f"Hello {number}!"}]  # fmt: skip
        write(
            empty.cwd,
            {f"in/{number}.json": json.dumps({"id": number, "messages": words}, indent=1)},
        )
    said = prepared(empty, "in", *ALL)
    assert "task chat: messages from `messages`, in 5 files of records" in said
    assert Workdir(empty.work).read_data().splits["train"].units == 5


@pytest.mark.slow
def test_texts_in_json_are_rows_and_settings_are_said(empty: Cli) -> None:
    write(empty.cwd, {"a.json": json.dumps(TEXTS), "notes/a.md": "A note about cats and dogs.",
                      "notes/settings.json": '{"theme": "dark", "size": 12}'})  # fmt: skip
    prepared(empty, "a.json", *ALL)
    assert texts(empty) == {row["text"] for row in TEXTS}
    write(empty.cwd, {"b.json": json.dumps([row["text"] for row in TEXTS])})  # a list of texts
    assert "text from `text`, in 1 file of records" in prepared(empty, "b.json", *ALL)
    assert texts(empty) == {row["text"] for row in TEXTS}
    said = prepared(empty, "notes", *ALL)
    assert (
        "task language: 2 files as text (`a.md`, `settings.json`), of which .json without records "
        "(`settings.json`)"
    ) in said


# What lies beside ------------------------------------------------------------------------------

BESIDE = {
    "LICENSE": "Permission is hereby granted. " * 900, "README.md": "# Films\n" * 90,
    "sub/notes.txt": "todo", "Thumbs.db": b"\0\1\2", "desktop.ini": "[x]", ".DS_Store": b"\0",
}  # fmt: skip


@pytest.mark.slow
def test_text_beside_records_is_skipped_and_named(empty: Cli) -> None:
    write(empty.cwd, {"in/a.jsonl": lines(LABELLED), **{f"in/{n}": c for n, c in BESIDE.items()}})
    said = prepared(empty, "in", *ALL, twice=True)
    assert labelled(empty) == WANTED
    (line,) = [line for line in said.splitlines() if "skipped" in line]
    assert "skipped 6: " in line
    for name in BESIDE:
        assert f"`{name}`" in line
    before = empty.manifest()["fingerprint"]
    write(empty.cwd, {"in/COPYING": "more"})  # is not data: nothing changes
    prepared(empty, "in", *ALL)
    assert empty.manifest()["fingerprint"] == before
    empty.fails("prepare", "in/a.jsonl", "in/sub/notes.txt", code=4,
                says=["`notes.txt`", "no records"], hint=["--exclude"])  # fmt: skip
    # a shell's `in/*` names LICENSE, too
    prepared(empty, "in/a.jsonl", "in/LICENSE", *ALL)
    assert labelled(empty) == WANTED


@pytest.mark.slow
def test_records_that_the_task_cannot_use_are_an_error_that_helps(empty: Cli) -> None:
    write(empty.cwd, {"in/a.jsonl": lines(LABELLED), "in/sub/sizes.csv": "width,height\n1,2\n"})
    result = empty.fails("prepare", "in", code=4, says=["`sub/sizes.csv`", "the label"],
                         hint=["`width`, `height`", "--exclude 'sub/sizes.csv'"])  # fmt: skip
    _, _, advice = result.error()[1].partition("--exclude ")
    prepared(empty, "in", "--exclude", advice.strip("'"), *ALL)
    assert labelled(empty) == WANTED


@pytest.mark.slow
def test_a_working_directory_among_the_sources_is_not_mentioned(empty: Cli) -> None:
    write(empty.cwd, {"a.jsonl": lines(LABELLED)})
    for _ in range(2):
        said = prepared(empty, ".", "--exclude", "corpus.jsonl", *ALL)
        assert "skipped" not in said
    assert labelled(empty) == WANTED


@pytest.mark.slow
def test_for_language_text_beside_records_is_skipped_unless_it_is_named(empty: Cli) -> None:
    write(empty.cwd, {"in/a.jsonl": lines(TEXTS), "in/LICENSE": "All rights are reserved here.",
                      "in/books/b.txt": "A book of its own in a folder of texts."})  # fmt: skip
    said = prepared(empty, "in", *ALL)
    assert "skipped 1: text beside records (`LICENSE`)" in said
    assert "text from `text`, in 1 file of records; 1 file as text" in said
    wanted = {row["text"] for row in TEXTS}
    book = {"A book of its own in a folder of texts."}
    assert texts(empty) == wanted | book
    prepared(empty, "in/a.jsonl", "in/LICENSE", *ALL)
    assert texts(empty) == wanted | {"All rights are reserved here."}


@pytest.mark.slow
def test_a_table_among_source_code_says_nothing(empty: Cli) -> None:
    code = {f"in/src/part{i}.py": f"def part{i}():\n    return {i} * 'x'\n" * 40 for i in range(9)}
    write(
        empty.cwd, {**code, "in/data/sizes.csv": "name,size\na,1\n", "in/package.json": '{"a": 1}'}
    )
    said = prepared(empty, "in", *ALL, twice=True)
    assert "task language: 10 files as text" in said
    assert "skipped 1: records with no clear column of text (`data/sizes.csv`)" in said


def images(folder: Path, ends: Iterable[str] = (".png",)) -> None:
    for label in ("cat", "狗"):
        for number in range(6):
            for end in ends:
                path = folder / label / f"{number}{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                shade = 9 * number + (label == "cat") * 100 + (end == ".jfif") * 4
                pixels = np.full((8, 8), shade, np.uint8)
                Image.fromarray(pixels).save(path, format="JPEG" if end == ".jfif" else None)


@pytest.mark.slow
def test_images_with_files_beside(empty: Cli) -> None:
    images(empty.cwd / "in", (".png", ".jfif"))
    write(empty.cwd, {f"in/{name}": content for name, content in BESIDE.items()})
    write(empty.cwd, {"in/cat/Thumbs.db": b"\0", "in/counts.csv": "class,count\ncat,6\n"})
    said = prepared(empty, "in", "--val", "0", "--test", "0.3", twice=True)
    assert "task image-classification: 24 images, labelled by 2 folders (`cat`, `狗`)" in said
    assert "`cat/Thumbs.db`" in said
    assert "records that name no images (`counts.csv`)" in said
    assert empty.manifest()["ledger"]["kept"]["rows"] == 24
    assert empty.manifest()["ledger"]["in"]["rows"] == 24


@pytest.mark.slow
def test_a_few_images_among_texts_are_skipped(empty: Cli) -> None:
    images(empty.cwd / "in" / "img")
    pages = {f"in/page{i}.md": f"Page {i} of the manual says more." for i in range(14)}
    write(empty.cwd, pages)
    said = prepared(empty, "in", *ALL)
    assert "task language: 14 files as text" in said
    assert "images (12: `img/cat/0.png`" in said
    assert texts(empty) == set(pages.values())


# Columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([{"uuid": f"{i:032x}", "n": i} for i in range(20)], "`uuid`, `n`"),
        ([{"url": f"https://example.org/{i}"} for i in range(20)], "`url`"),
        ([{"productId": f"A-{i}", "price": 2.5} for i in range(20)], "`productId`, `price`"),
        ([{"编号": f"第{i}号", "n": i} for i in range(20)], "`编号`, `n`"),
        ([{"n": i, "x": i / 2} for i in range(20)], "`n`, `x`"),
        ([{"part": f"A-10{i}", "n": i} for i in range(20)], "`part`"),
        ([{"when": f"2026-01-{i + 10} 10:00:00", "n": i} for i in range(20)], "`when`"),
    ],
)
@pytest.mark.parametrize("end", [".jsonl", ".csv", ".parquet", ".json"])
def test_an_id_is_not_a_text(empty: Cli, rows: list[dict[str, Any]], names: str, end: str) -> None:
    if end == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), empty.cwd / "a.parquet")
    elif end == ".csv":
        values = [",".join(map(str, row.values())) + "\n" for row in rows]
        write(empty.cwd, {"a.csv": ",".join(rows[0]) + "\n" + "".join(values)})
    else:
        write(empty.cwd, {f"a{end}": lines(rows) if end == ".jsonl" else json.dumps(rows)})
    empty.fails("prepare", f"a{end}", code=4, says=[f"`a{end}`", "text"],
                hint=[names, "--column text=", "--task"])  # fmt: skip


@pytest.mark.slow
def test_the_only_text_beside_an_id_is_read_and_said(empty: Cli) -> None:
    rows = [{"id": f"x{i}", "url": "http://x", "Memo": row["text"]} for i, row in enumerate(TEXTS)]
    write(empty.cwd, {"a.jsonl": lines(rows), "one.csv": "heading\nthe only one\nand another\n"})
    assert "task language: text from `Memo`" in prepared(empty, "a.jsonl", *ALL)
    assert texts(empty) == {row["text"] for row in TEXTS}
    assert "task language: text from `heading`" in prepared(
        empty, "one.csv", *ALL, "--min-chars", "1"
    )
    assert texts(empty) == {"the only one", "and another"}


@pytest.mark.slow
@pytest.mark.parametrize("end", [".jsonl", ".json", ".parquet", ".csv"])
@pytest.mark.parametrize("nested", [True, False])
def test_columns_of_two_languages_are_a_translation(empty: Cli, end: str, nested: bool) -> None:
    rows: list[dict[str, Any]] = NESTED if nested else PAIRS
    if end == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), empty.cwd / "a.parquet")
    elif end == ".csv":
        if nested:
            return
        write(empty.cwd, {"a.csv": "en,zh\n" + "".join(f"{r['en']},{r['zh']}\n" for r in rows)})
    else:
        write(empty.cwd, {f"a{end}": lines(rows) if end == ".jsonl" else json.dumps(rows)})
    before = "translation." if nested else ""
    said = prepared(empty, f"a{end}", *ALL)
    assert f"task translation: source from `{before}en`, target from `{before}zh`" in said
    assert pairs(empty) == {(row["en"], row["zh"]) for row in PAIRS}
    for columns in (("source=zh", "target=en"), ("source=zh",), (f"source={before}zh",)):
        chosen = [word for column in columns for word in ("--column", column)]
        prepared(empty, f"a{end}", *ALL, *chosen)
        assert pairs(empty) == {(row["zh"], row["en"]) for row in PAIRS}


@pytest.mark.slow
def test_rows_without_one_of_a_pair_are_counted(empty: Cli) -> None:
    odd = [{"translation": {"en": "Only one side of it."}}, {"translation": None}, {"id": "x"},
           {"translation": {"zh": "只有一边。", "en": None}}]  # fmt: skip
    write(empty.cwd, {"a.jsonl": lines([*NESTED, *odd])})
    prepared(empty, "a.jsonl", *ALL)
    assert empty.manifest()["ledger"]["dropped"]["no_text"]["rows"] == 4
    assert len(pairs(empty)) == 20


@pytest.mark.slow
def test_three_languages_must_be_chosen(empty: Cli) -> None:
    rows = [{**row, "fr": f"Le chat numéro {i}."} for i, row in enumerate(PAIRS)]
    write(empty.cwd, {"a.jsonl": lines(rows)})
    empty.fails("prepare", "a.jsonl", code=4, says=["3 languages: `en`, `zh`, `fr`"],
                hint=["--column source=en --column target=zh"])  # fmt: skip
    said = prepared(empty, "a.jsonl", *ALL, "--column", "source=fr", "--column", "target=zh")
    assert "source from `fr`, target from `zh`" in said


@pytest.mark.slow
def test_ids_are_not_indonesian(empty: Cli) -> None:
    rows = "".join(f"{i},A sentence number {i} of this table.\n" for i in range(20))
    write(empty.cwd, {"a.csv": "id,text\n" + rows, "b.csv": "id,en\n" + rows})
    assert "task language: text from `text`" in prepared(empty, "a.csv", *ALL)
    assert "task language: text from `en`" in prepared(empty, "b.csv", *ALL)


def test_a_data_set_of_nested_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    write(tmp_path, {"set/train.jsonl": lines(NESTED)})
    (source,) = find([f"hf:{tmp_path / 'set'}"], (), tmp_path)
    names = {"source": "translation.zh", "target": "translation.en"}
    from bigmodel_cli.artifacts.ledger import Ledger

    found = [*readers.read(source, lambda *_: names, Layout(), Ledger(), lambda _: None)]
    assert {"translation.en", "translation.zh"} <= {*readers.columns(source, Layout())}
    rows = [row for part in found for row in part.table.select(["source", "target"]).to_pylist()]
    assert rows == [{"source": row["zh"], "target": row["en"]} for row in PAIRS]


# Folders that give columns ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("end", [".parquet", ".jsonl", ".csv"])
def test_the_names_of_folders_are_columns(empty: Cli, end: str) -> None:
    wanted = set()
    for label in ("neg", "很好", "a%2Fb"):
        rows = [{"review": f"{label} film {i} was long", "stars": i} for i in range(5)]
        path = empty.cwd / "in" / "lang=en" / f"label={label}" / f"part-0{end}"
        path.parent.mkdir(parents=True)
        if end == ".parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        elif end == ".csv":
            path.write_text("review\n" + "".join(f"{row['review']}\n" for row in rows))
        else:
            path.write_text(lines(rows))
        wanted |= {(row["review"], label.replace("%2F", "/")) for row in rows}
    said = prepared(empty, "in", *ALL, twice=True)
    assert "text from `review`, label from `label` of the folders, in 3 files" in said
    assert labelled(empty) == wanted
    before = empty.manifest()["fingerprint"]
    prepared(empty, "in/lang=en", *ALL)  # what is named may begin lower
    assert labelled(empty) == wanted
    prepared(empty, f"in/*/*/*{end}", *ALL)
    assert labelled(empty) == wanted
    files = (str(p.relative_to(empty.cwd)) for p in (empty.cwd / "in").rglob(f"*{end}"))
    prepared(empty, *sorted(files), *ALL)
    assert labelled(empty) == wanted
    shutil.move(empty.cwd / "in/lang=en/label=neg", empty.cwd / "in/lang=en/label=pos")
    prepared(empty, "in", *ALL)
    assert empty.manifest()["fingerprint"] != before
    assert {label for _, label in labelled(empty)} == {"pos", "很好", "a/b"}


@pytest.mark.slow
def test_text_files_in_folders_that_give_their_label(empty: Cli) -> None:
    wanted = set()
    for label in ("neg", "很好"):
        folder = empty.cwd / "in" / f"label={label}"
        folder.mkdir(parents=True)
        (folder / "README.md").write_text("about these films")
        for i in range(5):
            text = f"{label} film {i} was long\n\nin {i + 2} parts"
            (folder / f"{i}.txt").write_text(text, "utf-8")
            wanted.add((text, label))
    said = prepared(empty, "in", *ALL, twice=True)
    assert "text from `text`, label from `label` of the folders, each file a row, in 10" in said
    assert "skipped 2: no records" in said
    assert {(" ".join(text.split()), label) for text, label in labelled(empty)} == {
        (" ".join(text.split()), label) for text, label in wanted
    }
    prepared(empty, "in", *ALL, "--task", "language")
    assert empty.manifest()["splits"]["train"]["units"] == 10


@pytest.mark.slow
def test_splits_and_classes_of_images_in_folders_names(empty: Cli) -> None:
    for part, count in (("train", 8), ("test", 4)):
        for label in ("cat", "dog"):
            for i in range(count):
                path = empty.cwd / "in" / f"split={part}" / f"label={label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.full(
                    (6, 6), i * 9 + 100 * (label == "cat") + (part == "test"), np.uint8
                )
                Image.fromarray(pixels).save(path)
    said = prepared(empty, "in", "--val", "0")
    assert "24 images, labelled by 2 folders (`cat`, `dog`)" in said
    found = {name: part["units"] for name, part in empty.manifest()["splits"].items()}
    assert found == {"train": 16, "val": 0, "test": 8}
    labels = json.loads((empty.work / "data" / "preprocessor" / "labels.json").read_text("utf-8"))
    assert labels["labels"] == ["cat", "dog"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["held_out.csv", "train_2.csv", "val_2.csv"])
def test_what_is_named_for_a_split_by_an_option_stays_there(empty: Cli, name: str) -> None:
    for file, count in (("train.csv", 30), ("val.csv", 20), (name, 10)):
        rows = "".join(f"{file} row {i} 很好,{'ab'[i % 2]}\n" for i in range(count))
        (empty.cwd / file).write_text("text,label\n" + rows, "utf-8")
    prepared(empty, "train.csv", "val.csv", "--test", name)
    found = {split: part["units"] for split, part in empty.manifest()["splits"].items()}
    assert found == {"train": 30, "val": 20, "test": 10}


def test_a_link_to_a_hidden_folder_is_followed(empty: Cli) -> None:
    hidden = empty.cwd / "in" / ".versions" / "v3"
    hidden.mkdir(parents=True)
    (hidden / "a.jsonl").write_text(
        lines([{"text": f"film {i} was long and slow"} for i in range(9)])
    )
    (empty.cwd / "in" / "current").symlink_to(".versions/v3")
    assert "followed 1 linked folder" in prepared(empty, "in", *ALL)
    assert empty.manifest()["splits"]["train"]["units"] == 9


@pytest.mark.slow
def test_columns_of_dialogues_may_have_capitals(empty: Cli) -> None:
    rows = [{"Instruction": f"第{i}问", "Output": f"第{i}答"} for i in range(40)]
    (empty.cwd / "a.jsonl").write_text(lines(rows), "utf-8")
    assert "task chat" in prepared(empty, "a.jsonl", *ALL)


# Aligned files ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_other_side_is_not_read_where_it_is_excluded(empty: Cli) -> None:
    aligned(empty.cwd / "mt")
    said = prepared(empty, "mt", "--exclude", "*val.zh.gz", "--val", "0", "--test", "0")
    assert "task translation" in said
    assert "`val.en.gz`" in said.partition("skipped")[2]


@pytest.mark.slow
def test_what_lies_beside_aligned_files_is_skipped(empty: Cli) -> None:
    folder = empty.cwd / "Books.de-zh"
    for end in ("de", "zh", "ids"):
        text = "".join(f"{end} Satz {i} 很好\n" for i in range(60))
        write(folder, {f"Books.de-zh.{end}": text, "notes.txt": "Of books.", "LICENSE": "free"})
    for task in ("auto", "translation"):
        said = prepared(empty, "Books.de-zh", *ALL, "--task", task)
        assert "task translation: source from `de`, target from `zh`, in 1 pair" in said
        assert "`Books.de-zh.ids`" in said.partition("skipped")[2]
        assert empty.manifest()["splits"]["train"]["units"] == 60


@pytest.mark.slow
@pytest.mark.parametrize("names", [("traindata.csv", "testset.csv"), ("訓練集.csv", "測試集.csv"),
                                   ("train.csv", "开发集.csv")])  # fmt: skip
def test_more_names_of_splits(empty: Cli, names: tuple[str, str]) -> None:
    for name, count in zip(names, (30, 10)):
        rows = "".join(f"{name} row {i} 很好,{'ab'[i % 2]}\n" for i in range(count))
        (empty.cwd / name).write_text("text, label\n" + rows, "utf-8")
    assert "splits by name" in prepared(empty, *names, "--val", "0", "--test", "0")
    assert empty.manifest()["splits"]["train"]["units"] == 30


@pytest.mark.slow
def test_columns_that_are_not_read_are_named(empty: Cli) -> None:
    rows = [{**row, "split": "train", "context": "…"} for row in LABELLED]
    (empty.cwd / "a.jsonl").write_text(lines(rows), "utf-8")
    assert "columns that are not read: `split`, `context`" in prepared(empty, "a.jsonl", *ALL)


@pytest.mark.slow
def test_a_label_late_in_a_list(empty: Cli) -> None:
    rows = [{"text": f"a film number {i}"} for i in range(150)]
    (empty.cwd / "a.json").write_text(json.dumps([*rows, *LABELLED]), "utf-8")
    for task in ("auto", "text-classification"):
        prepared(empty, "a.json", *ALL, "--task", task)
        assert empty.manifest()["task"] == "text-classification"


@pytest.mark.slow
def test_codes_are_no_texts_whatever_their_column_is_called(empty: Cli) -> None:
    rows = "".join(f"A-10{i},a thing {i},b{i % 2}\n" for i in range(30))
    (empty.cwd / "a.csv").write_text("code,description,category\n" + rows)
    empty.fails("prepare", "a.csv", code=4, says=("`A-100`",), hint=("description",))


@pytest.mark.slow
def test_folders_of_images_that_are_only_splits(empty: Cli) -> None:
    for part in ("train", "test1"):
        for i in range(6):
            path = empty.cwd / "in" / part / f"cat.{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((6, 6), i * 9 + 100 * (part == "train"), np.uint8)
            Image.fromarray(pixels).save(path)
    said = prepared(empty, "in", "--val", "0", "--test", "0")
    assert "warning: the classes `test1`, `train` are named for splits" in said


def aligned(folder: Path) -> None:
    for part, count in (("train", 12), ("val", 5), ("test_2016_flickr", 4)):
        for end in ("en", "zh"):
            text = "".join(f"{part} {row[end]}\n" for row in PAIRS[:count])
            write(folder, {f"{part}.{end}.gz": gzip.compress(text.encode())})
    write(folder, {"README.md": "Sentences of cats."})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "counts", "direction"),
    [
        (["mt"], (12, 5, 4), ("en", "zh")),
        (["mt/train.en.gz", "mt/train.zh.gz", "--val", "mt/val.*.gz", "--test",
          "mt/test_2016_flickr.*"], (12, 5, 4), ("en", "zh")),
        (["mt/train.zh.gz", "mt/train.en.gz", "--val", "mt/val.en.gz", "--test", "0"],
         (12, 5, 0), ("zh", "en")),
        (["mt/train.en.gz", "mt/train.zh.gz", "--val", "mt/val.zh.gz", "--test",
          "mt/test_2016_flickr.en.gz"], (12, 5, 4), ("en", "zh")),
    ],
)  # fmt: skip
def test_aligned_files_with_files_to_hold_out(
    empty: Cli, arguments: list[str], counts: tuple[int, ...], direction: tuple[str, str]
) -> None:
    aligned(empty.cwd / "mt")
    said = prepared(empty, *arguments, "--tokenizer", "bytes")
    source, target = direction
    assert f"task translation: source from `{source}`, target from `{target}`" in said
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        prefix = "test_2016_flickr" if part == "test" else part
        assert pairs(empty, part) == {
            (f"{prefix} {row[source]}", f"{prefix} {row[target]}") for row in PAIRS[:count]
        }


@pytest.mark.slow
@pytest.mark.parametrize("names", ["a.{}.txt", "{}.txt", "my_{}.txt", "deep.{}_CN.txt.gz"])
def test_a_language_may_be_a_word_of_the_name(empty: Cli, names: str) -> None:
    for end in ("en", "zh"):
        text = "".join(f"{row[end]}\n" for row in PAIRS).encode()
        name = f"in/{names.format(end)}"
        write(empty.cwd, {name: gzip.compress(text) if name.endswith(".gz") else text})
    said = prepared(empty, "in", *ALL)
    code = "_CN" if "_CN" in names else ""
    assert f"task translation: source from `en{code}`, target from `zh{code}`, in 1 pair" in said
    assert pairs(empty) == {(row["en"], row["zh"]) for row in PAIRS}


@pytest.mark.slow
def test_notes_in_two_languages_among_others_are_texts(empty: Cli) -> None:
    write(empty.cwd, {"in/a.en": "A note of words in it.", "in/a.de": "Eine Notiz von Wörtern.",
                      "in/b.txt": "Another note of words in it."})  # fmt: skip
    assert "task language: 3 files as text" in prepared(empty, "in", *ALL)


# Links ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_linked_folders_are_read_and_circles_end(empty: Cli) -> None:
    write(
        empty.cwd,
        {"far/good/a.jsonl": lines(LABELLED[:10]), "far/deep/b.jsonl": lines(LABELLED[10:])},
    )
    top = empty.cwd / "in"
    top.mkdir()
    for name, target in {
        "one": "../far/good", "two": "../far/deep", "again": "../far/good", "up": "..", "here": ".",
        "gone": "nowhere", "ring": "gnir", "gnir": "ring",
    }.items():  # fmt: skip
        (top / name).symlink_to(target)
    (empty.cwd / "far" / "deep" / "back").symlink_to("../../in")
    (empty.cwd / "far" / "deep" / "above").symlink_to("..")
    said = prepared(empty, "in", *ALL, twice=True)
    assert labelled(empty) == WANTED
    assert "followed 3 linked folders: `again`, `two`, `two/above`" in said
    assert "a link to nothing (`gnir`, `gone`, `ring`)" in said
    for name in ("one", "up", "here", "two/back"):
        assert f"`{name}`" in said
    for pattern in ("in/**/*.jsonl", "in/*/*.jsonl", "**/*.jsonl"):
        prepared(empty, pattern, "--exclude", "*corpus.jsonl", *ALL)
        assert labelled(empty) == WANTED


@pytest.mark.slow
def test_linked_folders_of_classes_have_their_own_names(empty: Cli) -> None:
    images(empty.cwd / "store")
    (empty.cwd / "in").mkdir()
    (empty.cwd / "in" / "katze").symlink_to("../store/cat")
    (empty.cwd / "in" / "hund").symlink_to("../store/狗")
    said = prepared(empty, "in", "--val", "0", "--test", "0")
    assert "12 images, labelled by 2 folders (`hund`, `katze`)" in said


# Names of splits --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "held", "kind"),
    [
        ("reviews_train.csv", "reviews_test.csv", "test"),
        ("train_reviews.csv", "test_reviews.csv", "test"),
        ("my-train-set.csv", "my-dev-set.csv", "val"),
        ("data.train.csv", "data.val.csv", "val"),
        ("评论训练.csv", "评论测试.csv", "test"),
        ("reviewsTrain.csv", "reviewsTest.csv", "test"),
        ("part-train-00001.csv", "part-test-00001.csv", "test"),
        ("train2017/a.csv", "val2017/a.csv", "val"),
        ("x_training/a.csv", "x_evaluation/a.csv", "test"),
    ],
)
def test_a_word_of_a_name_is_its_split(empty: Cli, train: str, held: str, kind: str) -> None:
    rows = [f"film number {i} was fine,{'ab'[i % 2]}\n" for i in range(60)]
    write(empty.cwd, {f"in/{train}": "text,label\n" + "".join(rows[:40]),
                      f"in/{held}": "text,label\n" + "".join(rows[40:])})  # fmt: skip
    other = "val" if kind == "test" else "test"
    said = prepared(empty, "in", "--tokenizer", "bytes", f"--{other}", "0")
    assert f"splits by name: train `{train}`; {kind} `{held}`" in said
    wanted = {tuple(row.strip().split(",")) for row in rows[40:]}
    assert labelled(empty, kind) == wanted
    assert not labelled(empty) & wanted


@pytest.mark.slow
def test_names_that_say_no_split(empty: Cli) -> None:
    rows = "text,label\n" + "".join(f"film {i} was fine,{'ab'[i % 2]}\n" for i in range(60))
    for number, name in enumerate(("latest", "contest", "trained", "attrain", "train_test_mixed")):
        write(empty.cwd, {f"in/{name}.csv": rows.replace("film", f"film {number}")})
    said = prepared(empty, "in", *ALL)
    assert "splits by name" not in said
    assert "`train_test_mixed.csv`: named for several splits" in said
    assert empty.manifest()["splits"]["train"]["units"] == 300
    write(
        empty.cwd, {"one/reviews.csv": rows, "one/reviews_test.csv": rows.replace("film", "movie")}
    )
    said = prepared(empty, "one", *ALL)
    assert "to hold it out: --test one/reviews_test.csv" in said
    prepared(empty, "one", "--tokenizer", "bytes", "--val", "0", "--test", "one/reviews_test.csv")
    assert len(labelled(empty, "test")) == 60


def test_a_source_knows_its_folders() -> None:
    assert Source("a=b/label=c%20d/x=/=y/plain/e=f.csv", Path("x")).folders == {
        "a": "b",
        "label": "c d",
    }
    with pytest.raises(DataError):
        find(["no=where"], (), Path())
