"""prepare loses nothing, counts everything, and gives the same bytes for the same inputs."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from bigmodel_cli.artifacts import tokenizer
from bigmodel_cli.artifacts.manifest import read_json, write_json
from bigmodel_cli.artifacts.records import Amount, as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir, lock
from bigmodel_cli.config import PrepareConfig
from bigmodel_cli.errors import ArtifactError, DataError, ResourceError, StoppedError, UsageError
from bigmodel_cli.events import Context, Note, Progress
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.dedup import SPLITS, Seen, digests, split_of
from bigmodel_cli.prepare.run import Prepared, run
from bigmodel_cli.prepare.spool import Spool
from bigmodel_cli.tasks import text as text_tasks
from bigmodel_cli.tasks.language import LanguageOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ALL = {"val": "0", "test": "0"}  # everything is for training
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufeff]")
EOT = "<|endoftext|>"


def prepare(
    work: Path, *sources: Path | str, notes: list[str] | None = None,
    reading: Callable[[], object] = lambda: None, **values: Any,
) -> Prepared:  # fmt: skip
    """Prepares text, by default with a tokenizer of bytes and without a least length. reading: is
    called while the sources are read."""
    options: dict[str, Any] = {"tokenizer": "bytes", "min_chars": 0}
    names = set(LanguageOptions.__dataclass_fields__)
    options |= {name: values.pop(name) for name in list(values) if name in names}

    def emit(event: Note | Progress) -> None:
        if notes is not None and isinstance(event, Note):
            notes.append(event.message)
        if isinstance(event, Progress) and event.phase == "read":
            reading()

    config = PrepareConfig(sources=tuple(map(str, sources)), **values)
    return run(config, options, Workdir(work), Context(emit))


def splits(work: Path) -> dict[str, Split]:
    manifest = Workdir(work).read_data()
    return {name: Split(work / "data", part.shards) for name, part in manifest.splits.items()}


def units(work: Path) -> dict[str, list[str]]:
    """The text of every unit, by split, decoded from the shards."""
    made = tokenizer.load(work / "data" / "preprocessor")
    found = {}
    for name, split in splits(work).items():
        texts = [made.decode(split.values("tokens", i, i + 1).tolist()) for i in range(len(split))]
        sizes = [len(text.encode()) for text in texts]
        assert split.column("bytes").tolist() == sizes
        assert Workdir(work).read_data().splits[name].bytes == sum(sizes)
        found[name] = texts
    return found


def where(work: Path) -> dict[str, str]:
    """The split of each unit."""
    return {text: name for name, texts in units(work).items() for text in texts}


def contents(work: Path) -> dict[str, bytes]:
    """Every file of the prepared data, but for locks, caches, and how long it took."""
    found = {}
    for path in sorted((work / "data").rglob("*")):
        name = path.relative_to(work / "data").as_posix()
        if path.is_file() and name not in (".lock", ".lock-holder", ".hashes.json"):
            found[name] = path.read_bytes()
    document = json.loads(found["manifest.json"])
    del document["checksum"], document["command"]
    found["manifest.json"] = json.dumps(document).encode()
    return found


def jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = [
        "the",
        "ship",
        "sails",
        "over",
        "a",
        "cold",
        "sea",
        "and",
        "naïve",
        "日本",
        "sailors",
        "sing",
        "loudly",
        "12",
        "times",
    ]
    return [f"{seed}.{i} " + " ".join(draw.choices(words, k=12)) for i in range(count)]


# Formats and sources --------------------------------------------------------------------------


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    texts = [*documents(12), 'quotes " and, commas', "two\r\nlines\n", "tab\there"]
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()

    file = io.StringIO(newline="")
    csv.writer(file).writerows([("id", "text"), *(row.values() for row in rows)])
    formats = {
        "a.jsonl": lines,
        "a.ndjson.gz": gzip.compress(lines),
        "a.jsonl.zst": pa.Codec("zstd").compress(lines, asbytes=True),
        "a.csv": file.getvalue().encode(),
        "a.txt": "##".join(texts).encode(),
        "a.md.gz": gzip.compress("##".join(texts).encode()),
    }
    for name, data in formats.items():
        (tmp_path / name).write_bytes(data)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    folder = tmp_path / "folder"
    for i, text in enumerate(texts):
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        (folder / "sub" / f"{i:02d}.py").write_bytes(text.encode())
    shards = set()
    for name in (*formats, "a.parquet", "folder"):
        work = tmp_path / f"work-{name}"
        made = prepare(work, tmp_path / name, document_separator="##", **ALL)
        assert units(work)["train"] == texts, name
        shards.add(made.manifest.splits["train"].content)
    assert len(shards) == 1


def test_several_sources_globs_and_exclusions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(Path("a/one.jsonl"), ["from one"])
    jsonl(Path("a/deep/two.jsonl"), ["from two"])
    jsonl(Path("a/tests/three.jsonl"), ["from three"])
    jsonl(Path("a/.four.jsonl"), ["from four"])
    Path("five.txt").write_text("from five")
    made = prepare(Path("work"), "five.txt", "a/**/*.jsonl", exclude=("*/tests/*",), **ALL)
    assert units(Path("work"))["train"] == ["from five", "from two", "from one"]
    inputs = [source.name for source in made.manifest.recipe.inputs]
    assert inputs == ["five.txt", "deep/two.jsonl", "one.jsonl"]


def test_the_column_of_text_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("title,text\nthe title,the text\n")
    prepare(tmp_path / "a", tmp_path / "a.csv", **ALL)
    prepare(tmp_path / "b", tmp_path / "a.csv", column=("text=title",), **ALL)
    assert units(tmp_path / "a")["train"] == ["the text"]
    assert units(tmp_path / "b")["train"] == ["the title"]
    (tmp_path / "b.csv").write_text("left,words\nall columns,are text\n")
    with pytest.raises(DataError, match="clearly the text"):
        prepare(tmp_path / "c", tmp_path / "b.csv", **ALL)
    (tmp_path / "b.jsonl").write_text('{"id": 1, "words": "the only text"}\n')
    prepare(tmp_path / "d", tmp_path / "b.jsonl", **ALL)
    assert units(tmp_path / "d")["train"] == ["the only text"]


def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has one data set, with a train and a test split."""
    datasets: Any = pytest.importorskip("datasets")
    parts = {
        "stories": datasets.Dataset.from_dict({"text": documents(80)}),
        "stories:test": datasets.Dataset.from_dict({"text": documents(20, seed=1)}),
    }
    monkeypatch.setattr(sources, "load_hub", parts.__getitem__)


def test_a_data_set_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch)
    assert not prepare(tmp_path / "hub", "hf:stories", val="0.2", test="0.2").fresh
    assert prepare(tmp_path / "hub", "hf:stories", val="0.2", test="0.2").fresh
    prepare(tmp_path / "file", jsonl(tmp_path / "a.jsonl", documents(80)), val="0.2", test="0.2")
    assert where(tmp_path / "hub") == where(tmp_path / "file")


def test_a_split_of_a_data_set_can_be_the_test_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch)
    prepare(tmp_path, "hf:stories", val="0.2", test="hf:stories:test")
    found = units(tmp_path)
    assert found["test"] == documents(20, seed=1)
    assert sorted(found["train"] + found["val"]) == sorted(documents(80))


# Nothing is lost ------------------------------------------------------------------------------


def nasty(seed: int) -> str:
    """A long text of unlike lines, with what troubles decoders, and no newline at its end."""
    draw = random.Random(seed)
    pieces = [
        "👨‍👩‍👧‍👦🏳️‍🌈👍🏽🇪🇺", "e\u0301a\u0308\u0323\u1100\u1161\u11a8",
        "שלום \u202eمرحبا\u202c\u200f",
        "\ud7ff\ue000\ufffd\ufffe\uffff\U00010000\U0010ffff", "1234567890" * 30, "٣٤٥ ⅷ ½ Ⅻ",
        EOT, "<|pad|><|mask|>", "<|im_start|>user", "\r\n", "\n\n\n", " \t \u3000 \xa0", "   ",
        "they'll I'M x's", "def f(x):\n\treturn {}\n", "\u2028\u2029\x85\x0c",
        "zero\u200bwidth\u200d",
        "\x01\x02cut\x7f\x80", "\ufeffmark", "İstanbul ﬁ Å", "x" * 300,
    ]  # fmt: skip
    lines = []
    for number in range(400):
        line = "".join(draw.choices(pieces, k=draw.randrange(1, 4)))
        lines.append(f"{seed}.{number} {line}")
        lines += [" " * draw.randrange(9)] * draw.randrange(2)
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_the_units_of_a_text_file_are_its_bytes(tmp_path: Path, kind: str) -> None:
    for seed in range(2):
        text = nasty(seed)
        path = tmp_path / f"{seed}.txt"
        path.write_bytes(text.encode())
        clean = CONTROL.sub("", text)
        assert len(clean) < len(text)
        work = tmp_path / f"work-{seed}"
        made = prepare(work, path, tokenizer=kind, vocab_size=500, **ALL)
        found = units(work)["train"]
        assert len(found) > 5
        assert "".join(found) == clean
        ledger = made.manifest.ledger
        assert ledger.came_in.bytes == len(text.encode())
        assert ledger.kept.bytes == len(clean.encode())
        assert not ledger.dropped
        tokens = int(splits(work)["train"].lengths("tokens").sum()) - 2
        expected = {"bytes": len(clean.encode()), "chars": len(clean)}
        assert tokens == expected.get(kind, tokens) <= len(clean.encode())


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_the_units_of_all_splits_tile_a_text_file(tmp_path: Path, kind: str) -> None:
    text = nasty(3)
    clean = CONTROL.sub("", text)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    prepare(tmp_path / "work", path, tokenizer=kind, vocab_size=500, val="0.3", test="0.3")
    found = units(tmp_path / "work")
    assert all(found.values())
    ordered = sorted(itertools.chain(*found.values()), key=clean.index)
    assert "".join(ordered) == clean


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_records_are_kept_to_the_byte(tmp_path: Path, kind: str) -> None:
    draw = random.Random(4)
    planes = [(0x20, 0xD800), (0xE000, 0x110000), (0x20, 0x7F)]
    texts = [
        f"{i}"
        + "".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(draw.randrange(40)))
        for i in range(300)
    ]
    source = jsonl(tmp_path / "a.jsonl", texts)
    prepare(tmp_path / "work", source, tokenizer=kind, vocab_size=400, val="0.2", test="0.2")
    found = units(tmp_path / "work")
    assert sorted(itertools.chain(*found.values())) == sorted(CONTROL.sub("", t) for t in texts)


def test_endoftext_stands_at_starts_and_at_true_ends_only(tmp_path: Path) -> None:
    """Long documents are cut into blocks that land in several splits."""
    long = ["".join(f"{d} line {i} of many more\n" for i in range(2500)) for d in range(3)]
    texts = [long[0], "short one", long[1], f"{EOT} spelled out", long[2]]
    (tmp_path / "a.txt").write_text("##".join(texts))
    work = tmp_path / "work"
    prepare(work, tmp_path / "a.txt", document_separator="##", val="0.3", test="0.3")
    made = tokenizer.load(work / "data" / "preprocessor")
    ends = 0
    for split in splits(work).values():
        starts = split.column("start").tolist()
        texts_before = ""
        for index in range(len(split)):
            tokens = split.values("tokens", index, index + 1).tolist()
            text = made.decode(tokens)
            body = made.encode(text)
            start, end = tokens[0] == made.endoftext, tokens[-1] == made.endoftext
            assert tokens == [made.endoftext] * start + body + [made.endoftext] * end
            assert start == bool(starts[index])
            whole = next(document for document in texts if text in document)
            assert end == whole.endswith(text)
            if not start:  # it goes on where the unit before it ended
                assert texts_before + text in whole
                texts_before += text
            else:
                texts_before = text
            ends += end
    assert ends == len(texts)


def test_a_document_with_a_long_blank_tail_has_its_end(tmp_path: Path) -> None:
    text = "".join(f"line {i} of many more\n" for i in range(400))
    (tmp_path / "a.txt").write_text(text + "\n" * 20_000)
    prepare(tmp_path / "work", tmp_path / "a.txt", **ALL)
    train = splits(tmp_path / "work")["train"]
    made = tokenizer.load(tmp_path / "work" / "data" / "preprocessor")
    tokens = [train.values("tokens", i, i + 1).tolist() for i in range(len(train))]
    assert made.decode(itertools.chain(*tokens)).startswith(text)
    assert tokens[0][0] == tokens[-1][-1] == made.endoftext


def test_long_texts_become_one_sequence(tmp_path: Path) -> None:
    text = "".join(f"line {i} of many more\n" for i in range(2500))
    (tmp_path / "a.txt").write_text(text)
    prepare(tmp_path / "work", tmp_path / "a.txt", **ALL)
    train = splits(tmp_path / "work")["train"]
    assert len(train) > 5
    assert train.column("start").tolist() == [1] + [0] * (len(train) - 1)


# The ledger -----------------------------------------------------------------------------------


def test_every_row_of_a_messy_mixture_is_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        '{"text": "the first good document"}',
        "{",
        '{"text": null}',
        '{"text": "   "}',
        '{"text": "short"}',
        '{"text": "the first good document"}',
        '{"text": "with\\u0000 control\\u0007 characters"}',
        "",
        '{"text": "with control characters"}',
    ]
    (folder / "a.jsonl").write_text("\n".join(rows))
    (folder / "b.txt").write_bytes(b"\xff\xffno text at all")
    (folder / "c.jsonl").write_text('{"text": "a document of records"}\n{"text": 1}\n')
    (folder / "d.txt").write_text("a document of records")
    (folder / "e.txt").write_bytes(b"")
    made = prepare(tmp_path / "work", *sorted(folder.iterdir()), min_chars=10, **ALL)
    assert as_json(made.manifest.ledger) == {
        "in": {"rows": 13, "bytes": 23 + 1 + 0 + 3 + 5 + 23 + 25 + 23 + 16 + 21 + 11 + 21 + 0},
        "kept": {"rows": 3, "bytes": 23 + 23 + 21},
        "dropped": {
            "duplicate_exact": {
                "rows": 3, "bytes": 23 + 23 + 21,
                "where": ["a.jsonl, line 6", "a.jsonl, line 9", "d.txt, block 1"],
            },
            "empty": {"rows": 2, "bytes": 3, "where": ["a.jsonl, line 4", "e.txt"]},
            "malformed": {"rows": 2, "bytes": 12, "where": ["a.jsonl, line 2", "c.jsonl, line 2"]},
            "no_text": {"rows": 1, "bytes": 0, "where": ["a.jsonl, line 3"]},
            "too_short": {"rows": 1, "bytes": 5, "where": ["a.jsonl, line 5"]},
            "unreadable": {"rows": 1, "bytes": 16, "where": ["b.txt (not UTF-8 at byte 0)"]},
        },
        "removed": {"control_characters": {"rows": 1, "bytes": 2, "where": ["a.jsonl, line 7"]}},
    }  # fmt: skip
    assert units(tmp_path / "work")["train"] == [
        "the first good document", "with control characters", "a document of records",
    ]  # fmt: skip


@pytest.mark.slow
def test_random_mixtures_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(5)
    pool = [*documents(30), "", " ", "tiny", "bell\x07 and more", None, 7, "é" * 12]
    for number in range(6):
        monkeypatch.setattr(sources, "CHUNK", draw.choice([64, 1000, 8 << 20]))
        folder = tmp_path / f"data-{number}"
        folder.mkdir()
        came = 0
        for file in range(4):
            chosen = draw.choices(pool, k=40)
            lines = [json.dumps({"text": text}) for text in chosen]
            lines += ["not json"] * draw.randrange(3)
            draw.shuffle(lines)
            came += len(lines)
            (folder / f"{file}.jsonl").write_text("\n".join(lines))
        made = prepare(tmp_path / f"work-{number}", folder, min_chars=5, val="0.3", test="0.3")
        ledger = made.manifest.ledger
        kept = list(itertools.chain(*units(tmp_path / f"work-{number}").values()))
        assert ledger.came_in.rows == came
        assert ledger.kept == Amount(rows=len(kept), bytes=sum(len(t.encode()) for t in kept))
        for field, removed in (("rows", 0), ("bytes", 1)):
            lost = sum(getattr(entry, field) for entry in ledger.dropped.values())
            cut = sum(getattr(entry, field) for entry in ledger.removed.values()) * removed
            kept_and_cut = getattr(ledger.kept, field) + lost + cut
            assert getattr(ledger.came_in, field) == kept_and_cut
        assert len(set(kept)) == len(kept)
        assert set(kept) <= {CONTROL.sub("", text) for text in pool if isinstance(text, str)}


def test_too_much_loss_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    texts = documents(40)
    source = jsonl(tmp_path / "a.jsonl", texts)
    prepare(tmp_path / "work", source, **ALL)
    before = contents(tmp_path / "work")
    jsonl(source, texts + texts[:20])
    with pytest.raises(DataError, match="20 of 60 rows were dropped"):
        prepare(tmp_path / "work", source, max_loss=0.33, **ALL)
    assert {k: v for k, v in contents(tmp_path / "work").items() if ".tmp-" not in k} == before
    assert not prepare(tmp_path / "work", source, max_loss=0.34, **ALL).fresh


def test_too_much_loss_is_an_error_when_up_to_date_too(tmp_path: Path) -> None:
    texts = documents(40)
    source = jsonl(tmp_path / "a.jsonl", texts + texts[:20])
    prepare(tmp_path / "work", source, **ALL)
    assert prepare(tmp_path / "work", source, max_loss=0.34, **ALL).fresh
    with pytest.raises(DataError, match="20 of 60 rows were dropped"):
        prepare(tmp_path / "work", source, max_loss=0.33, **ALL)


# Duplicates -----------------------------------------------------------------------------------


def test_a_duplicate_is_dropped_from_the_train_split_first(tmp_path: Path) -> None:
    texts = documents(60)
    train = jsonl(tmp_path / "a.jsonl", texts)  # holds all of the others
    val = jsonl(tmp_path / "b.jsonl", texts[:10])
    test = jsonl(tmp_path / "c.jsonl", texts[5:20])
    made = prepare(tmp_path / "work", train, val=str(val), test=str(test))
    assert units(tmp_path / "work") == {
        "train": texts[20:], "val": texts[:5], "test": texts[5:20]
    }  # fmt: skip
    entry = made.manifest.ledger.dropped["duplicate_exact"]
    assert entry.rows == 25
    assert entry.where[0] == "b.jsonl, line 6"


def test_duplicates_are_found_across_files_and_formats(tmp_path: Path) -> None:
    texts = documents(9)
    jsonl(tmp_path / "data" / "a.jsonl", texts)
    (tmp_path / "data" / "b.txt").write_text(texts[3])
    jsonl(tmp_path / "data" / "c.jsonl", [*texts[5:], "x", "x"])
    files = sorted((tmp_path / "data").iterdir())
    made = prepare(tmp_path / "work", *files, **ALL)
    assert units(tmp_path / "work")["train"] == [*texts, "x"]
    assert made.manifest.ledger.dropped["duplicate_exact"].rows == 6


def test_no_text_is_in_two_splits(tmp_path: Path) -> None:
    texts = documents(200)
    source = jsonl(tmp_path / "a.jsonl", [*texts, *texts[::-1], *texts[::3]])
    prepare(tmp_path / "work", source, val="0.3", test="0.3")
    found = units(tmp_path / "work")
    assert Counter(itertools.chain(*found.values())) == Counter(texts)


def test_hashes_are_those_of_each_keys_bytes() -> None:
    texts = ["one", "", "zwei", "日本", "one"]
    for kind in (pa.string(), pa.large_string()):
        whole = digests(pa.array(texts, kind))
        assert whole[0] == whole[4]
        assert len(set(whole)) == 4
        assert digests(pa.array(texts, kind).slice(2, 2)) == whole[2:4]
        assert digests(pa.array([], kind)) == []
        assert digests(pa.array(texts, kind).cast(pa.large_binary())) == whole
    seen = Seen()
    assert seen.fresh(whole).tolist() == [True, True, True, True, False]
    assert seen.fresh(whole[:1]).tolist() == [False]


# Splits ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_unit_never_moves_to_another_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, more = documents(300), documents(200, seed=1)
    shares = {"val": "0.2", "test": "0.3"}
    prepare(tmp_path / "base", jsonl(tmp_path / "base.jsonl", texts), **shares)
    expected = where(tmp_path / "base")
    assert set(expected.values()) == set(SPLITS)
    shuffled = random.Random(6).sample(texts + more, 500)
    jsonl(tmp_path / "reversed" / "a.jsonl", texts[::-1])
    jsonl(tmp_path / "more" / "renamed.jsonl", shuffled)
    jsonl(tmp_path / "fewer" / "a.jsonl", texts[::7])
    for number in range(10):
        jsonl(tmp_path / "many" / f"{9 - number}" / "x.jsonl", shuffled[number::10])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("##".join(texts))
    for name in ("reversed", "more", "fewer", "many", "texts"):
        for chunk in (500, 8 << 20):
            monkeypatch.setattr(sources, "CHUNK", chunk)
            work = tmp_path / f"work-{name}-{chunk}"
            prepare(work, tmp_path / name, document_separator="##", tokenizer="chars", **shares)
            found = where(work)
            shared = found.keys() & expected.keys()
            assert len(shared) >= 40
            assert {text: found[text] for text in shared} == {t: expected[t] for t in shared}


def test_another_seed_moves_units(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", documents(300))
    for seed in (0, 1, 2**63):
        prepare(tmp_path / str(seed), source, seed=seed, val="0.3", test="0.3")
    first, second, third = (where(tmp_path / str(seed)) for seed in (0, 1, 2**63))
    assert first != second != third != first


def test_a_larger_share_only_adds_units(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", documents(400))
    found = []
    for share in ("0.1", "0.2", "0.5"):
        prepare(tmp_path / share, source, val="0", test=share)
        found.append(set(units(tmp_path / share)["test"]))
    assert found[0] < found[1] < found[2]


def test_shares_are_near_what_was_asked() -> None:
    hashes = digests(pa.array([f"document {i}" for i in range(20_000)]))
    for val, test in ((0.05, 0.05), (0.1, 0.3), (0.0, 0.5), (0.7, 0.0)):
        shares = np.bincount(split_of(hashes, val, test, 0), minlength=3) / len(hashes)
        assert shares == pytest.approx([1 - val - test, val, test], abs=0.015)


def test_a_share_of_nothing_is_empty(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", documents(50))
    made = prepare(tmp_path / "work", source, val="0", test="0.0")
    assert [made.manifest.splits[name].units for name in SPLITS] == [50, 0, 0]
    assert made.manifest.splits["val"].shards == []


@pytest.mark.parametrize("share", ["1", "1.5", "-0.1", "nan", "inf"])
def test_a_share_must_be_a_fraction(tmp_path: Path, share: str) -> None:
    source = jsonl(tmp_path / "a.jsonl", documents(50))
    with pytest.raises(UsageError, match=re.escape(share)):
        prepare(tmp_path / "work", source, val=share)


def test_too_little_to_split_is_an_error(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", ["only one"])
    with pytest.raises(DataError, match="split is empty") as caught:
        prepare(tmp_path / "work", source)
    assert "--val 0" in caught.value.hint or "--test 0" in caught.value.hint


def test_splits_are_recognised_by_name(tmp_path: Path) -> None:
    texts = documents(90)
    for name, part in (("train", texts[:50]), ("valid", texts[50:70]), ("test", texts[70:])):
        jsonl(tmp_path / "data" / f"{name}.jsonl", part)
    notes: list[str] = []
    prepare(tmp_path / "work", tmp_path / "data", notes=notes)
    assert units(tmp_path / "work") == {
        "train": texts[:50], "val": texts[50:70], "test": texts[70:]
    }  # fmt: skip
    assert any(
        "train `train.jsonl`; val `valid.jsonl`; test `test.jsonl`" in note for note in notes
    )


@pytest.mark.parametrize(("given", "missing"), [("test", "val"), ("val", "test")])
def test_a_split_that_no_file_is_named_for_is_taken_from_train(
    tmp_path: Path, given: str, missing: str
) -> None:
    texts = documents(300)
    jsonl(tmp_path / "data" / "train.jsonl", texts[:250])
    jsonl(tmp_path / "data" / f"{given}.jsonl", texts[250:])
    prepare(tmp_path / "work", tmp_path / "data", **{missing: "0.2"})
    found = units(tmp_path / "work")
    assert found[given] == texts[250:]
    assert sorted(found["train"] + found[missing]) == sorted(texts[:250])
    assert 20 < len(found[missing]) < 80
    prepare(tmp_path / "work", tmp_path / "data", **{missing: "0"})
    assert units(tmp_path / "work")["train"] == texts[:250]


def test_a_named_source_is_a_split_of_its_own(tmp_path: Path) -> None:
    texts = documents(200)
    jsonl(tmp_path / "data" / "a.jsonl", texts[:150])
    held = jsonl(tmp_path / "data" / "b.jsonl", texts[150:])
    prepare(tmp_path / "work", tmp_path / "data", test=str(held), val="0.3")
    found = units(tmp_path / "work")
    assert found["test"] == texts[150:]
    assert sorted(found["train"] + found["val"]) == sorted(texts[:150])
    assert found["val"]


# Determinism ----------------------------------------------------------------------------------


def corpus(folder: Path, count: int = 300) -> Path:
    """Files of several formats."""
    texts = documents(count)
    jsonl(folder / "a.jsonl", texts[: count // 2])
    jsonl(folder / "sub" / "b.jsonl", texts[count // 2 :])
    (folder / "texts").mkdir()  # beside records they would be skipped
    (folder / "texts" / "c.txt").write_text(nasty(9), "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_two_builds_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    one, two = corpus(tmp_path / "one" / "data"), corpus(tmp_path / "two" / "data")
    for folder, threads in ((one, 1), (two, 2)):
        prepare(folder.parent / "work", folder, tokenizer=kind, vocab_size=700, threads=threads)
    first, second = contents(one.parent / "work"), contents(two.parent / "work")
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "val": {"val": "0.1"},
    "test": {"test": "0.1"},
    "tokenizer": {"tokenizer": "chars"},
    "vocabulary": {"vocab_size": 300},
    "min_chars": {"min_chars": 1},
    "separator": {"document_separator": "##"},
    "exclude": {"exclude": ("texts/c.txt",)},
}
NO_CHANGES: dict[str, dict[str, Any]] = {
    "threads": {"threads": 3},
    "max_loss": {"max_loss": 0.9},
    "exclude": {"exclude": ("nothing-of-that-name",)},
    "val": {"val": "0.050"},
}


@pytest.mark.slow
def test_options_that_matter_change_the_fingerprint_and_others_do_not(tmp_path: Path) -> None:
    data, work = corpus(tmp_path / "data", 100), tmp_path / "work"
    first = prepare(work, data)
    before = contents(work)
    for change in NO_CHANGES.values():
        again = prepare(work, data, **change)
        assert again.fresh
        assert contents(work) == before
    forced = prepare(work, data, force=True)
    assert not forced.fresh
    assert contents(work) == before
    prints = {first.manifest.fingerprint}
    for name, change in CHANGES.items():
        notes: list[str] = []
        made = prepare(work, data, notes=notes, **change)
        assert not made.fresh, name
        prints.add(made.manifest.fingerprint)
        assert any("building again" in note for note in notes), name
    assert len(prints) == len(CHANGES) + 1
    prepare(work, data)
    assert contents(work) == before  # and nothing of the others is left


def test_inputs_change_the_fingerprint_by_content_and_name(tmp_path: Path) -> None:
    data, work = corpus(tmp_path / "data", 100), tmp_path / "work"
    prints = [prepare(work, data).manifest.fingerprint]

    def changed() -> None:
        notes: list[str] = []
        made = prepare(work, data, notes=notes)
        assert not made.fresh
        assert made.manifest.fingerprint not in prints
        prints.append(made.manifest.fingerprint)
        assert any("building again, because of" in note for note in notes)

    text = (data / "a.jsonl").read_bytes()
    stat = (data / "a.jsonl").stat()
    (data / "a.jsonl").write_bytes(text.replace(b"0.7 ", b"1.7 "))  # of the same size
    os.utime(data / "a.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed()
    jsonl(data / "z.jsonl", ["one document more"])
    changed()
    (data / "z.jsonl").rename(data / "y.jsonl")
    changed()
    (data / "y.jsonl").unlink()
    (data / "a.jsonl").write_bytes(text)
    assert prepare(work, data).manifest.fingerprint == prints[0]


def test_times_and_places_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, work = corpus(tmp_path / "here" / "data", 100), tmp_path / "here" / "work"
    prepare(work, data)
    before = contents(work)
    for path in data.rglob("*"):
        os.utime(path, (1, 1))
    assert prepare(work, data).fresh
    (work / "data" / ".hashes.json").unlink()
    assert prepare(work, data).fresh
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert prepare(Path("work"), "data").fresh
    assert contents(Path("work")) == before
    shutil.copytree("work", "restored")  # as from a cache
    assert prepare(Path("restored"), "./data/").fresh
    monkeypatch.chdir("data")
    assert prepare(Path("../work"), ".").fresh


@pytest.mark.slow
def test_a_damaged_build_is_built_again(tmp_path: Path) -> None:
    data, work = corpus(tmp_path / "data", 100), tmp_path / "work"
    made = prepare(work, data)
    before = contents(work)
    (shard,) = made.manifest.splits["train"].shards
    for name in (
        shard.name,
        "preprocessor/tokenizer.json",
        "preprocessor/task.json",
        "manifest.json",
    ):
        path = work / "data" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        assert not prepare(work, data).fresh, name
        assert contents(work) == before
        path.unlink()
        assert not prepare(work, data).fresh, name
        assert contents(work) == before


def test_data_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    data, work = corpus(tmp_path / "data", 60), tmp_path / "work"
    prepare(work, data)
    path = work / "data" / "manifest.json"
    document = read_json(path, "", "") | {"schema": 99}
    write_json(path, document)
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="format 99"):
        prepare(work, data)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_brought_tokenizer_counts_by_its_content(tmp_path: Path) -> None:
    data, work, other = corpus(tmp_path / "data", 60), tmp_path / "work", tmp_path / "other"
    folder = tmp_path / "preprocessor"
    prepare(other, data, tokenizer="bpe", vocab_size=300)
    shutil.copytree(other / "data" / "preprocessor", folder)
    named = {"file": folder / "tokenizer.json", "folder": folder}
    for name, path in named.items():
        assert not prepare(work / name, data, tokenizer=str(path)).fresh
        assert prepare(work / name, data, tokenizer=str(path)).fresh
    prepare(other, data, tokenizer="bpe", vocab_size=310)
    shutil.copy(other / "data" / "preprocessor" / "tokenizer.json", folder)
    for name, path in named.items():
        assert not prepare(work / name, data, tokenizer=str(path)).fresh, name
        assert tokenizer.load(work / name / "data" / "preprocessor").size == 310
    moved = folder.rename(tmp_path / "moved")
    assert prepare(work / "folder", data, tokenizer=str(moved)).fresh


def test_a_file_that_is_called_like_an_option_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(Path("a.jsonl"), documents(30))
    prepare(Path("work"), "a.jsonl", tokenizer="bytes", column=("text=text",), **ALL)
    Path("bytes").write_text("not a tokenizer")
    Path("text").write_text("not a column")
    assert prepare(Path("work"), "a.jsonl", tokenizer="bytes", column=("text=text",), **ALL).fresh


def test_the_working_directory_is_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus(tmp_path, 100)
    monkeypatch.chdir(tmp_path)
    prepare(Path("work"), ".")
    before = contents(Path("work"))
    again = prepare(Path("work"), ".")
    inputs = [source.name for source in again.manifest.recipe.inputs]
    assert inputs == ["a.jsonl", "sub/b.jsonl", "texts/c.txt"]
    assert again.fresh
    assert contents(Path("work")) == before


def test_the_manifest_that_is_given_is_the_one_on_disk(tmp_path: Path) -> None:
    data, work = corpus(tmp_path / "data", 60), tmp_path / "work"
    for _ in range(2):
        made = prepare(work, data)
        on_disk = json.loads((work / "data" / "manifest.json").read_bytes())
        del on_disk["checksum"]
        assert as_json(made.manifest) == on_disk


def test_only_one_process_writes(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", documents(30))
    with (
        lock(tmp_path / "work" / "data", tmp_path / "work"),
        pytest.raises(StoppedError, match="in use by process"),
    ):
        prepare(tmp_path / "work", source, **ALL)
    prepare(tmp_path / "work", source, **ALL)


def test_nothing_temporary_is_left(tmp_path: Path) -> None:
    work = tmp_path / "work"
    prepare(work, corpus(tmp_path / "data", 100))
    left = [path.name for path in (work / "data").iterdir() if path.name.startswith(".tmp")]
    assert left == []
    shards = [path.name for path in (work / "data").glob("*.safetensors")]
    listed = [s.name for part in Workdir(work).read_data().splits.values()
              for s in part.shards]  # fmt: skip
    assert sorted(shards) == sorted(listed)


def test_a_sample_for_the_tokenizer_is_of_about_the_size_asked(tmp_path: Path) -> None:
    """However many batches the units came in: a folder of small files is one batch for each."""
    for number, rows in enumerate((1, 3, 50, 600)):
        spool = Spool(tmp_path / str(number))
        for first in range(0, 600, rows):
            texts = [f"{i:03d}" + "x" * 97 for i in range(first, first + rows)]
            spool.add("train", (pa.RecordBatch.from_pydict({"text": texts}), 100 * rows, b""))
        spool.close()
        for limit in (6_000, 30_000, 60_000, 1 << 30):
            sample = [
                text
                for part in spool.sample("train", limit)
                for text in part.column("text").to_pylist()
            ]
            wanted = min(limit, 60_000)
            assert len(sample) * 100 == pytest.approx(wanted, rel=0.3), (rows, limit)
            places = [int(text[:3]) for text in sample]
            assert places == sorted(set(places))
            assert places[0] < 120
            assert places[-1] >= 480  # it reaches over the whole split


def test_what_the_spool_could_not_write_is_said_by_its_next_call(tmp_path: Path) -> None:
    part = (pa.RecordBatch.from_pydict({"text": ["a"]}), 1, b"")
    for ends in (lambda spool: spool.add("train", part), Spool.close):
        spool = Spool(tmp_path / "spool")
        (spool.folder / "train.arrow").symlink_to("/dev/full")
        spool.add("train", part)
        with pytest.raises(ResourceError, match=r"no room to write .*train.arrow"):
            ends(spool)
        spool.remove()


# Killed ---------------------------------------------------------------------------------------

# Forks a child for each moment, which kills itself there: at its n-th event, that is whenever it
# opens, renames, makes or removes a file, or says something. Then another child builds again.
KILLER = """
import json, os, pathlib, shutil, signal, sys
import filelock, numpy, pyarrow, safetensors.numpy, tokenizers
import bigmodel_cli.artifacts.shards, bigmodel_cli.artifacts.tokenizer, bigmodel_cli.tasks.clean
import bigmodel_cli.prepare.dedup, bigmodel_cli.prepare.readers, bigmodel_cli.prepare.spool
from bigmodel_cli.artifacts.manifest import sha256
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import PrepareConfig
from bigmodel_cli.events import Context
from bigmodel_cli.prepare.run import run
from bigmodel_cli.tasks import language, text, text_classification

pyarrow.array([""])  # loads what it loads when it is first used
source, root, start = sys.argv[1], sys.argv[2] + "/killed", sys.argv[3]
KINDS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
options = {"tokenizer": "bytes", "min_chars": 0}

def build(folder, seed, moment=0):
    events = []
    def tick(name):
        events.append(name)
        if len(events) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, args):
        if event in KINDS or (event == "open" and str(args[0]).startswith(folder)):
            tick(f"{event} {os.path.basename(str(args[0]))}")
    sys.addaudithook(hook)
    run(PrepareConfig(sources=(source,), val="0.2", test="0.2", seed=seed), options,
        Workdir(pathlib.Path(folder)), Context(lambda event: tick(type(event).__name__)))
    pathlib.Path(folder + ".events").write_text(json.dumps(events))

def child(*args):
    pid = os.fork()
    if not pid:
        try:
            build(*args)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def contents(folder):
    found = {}
    for path in sorted(pathlib.Path(folder, "data").rglob("*")):
        if path.is_file() and path.name not in (".lock", ".lock-holder"):
            found[path.relative_to(folder).as_posix()] = sha256(path)
    document = json.loads(pathlib.Path(folder, "data/manifest.json").read_bytes())
    found["data/manifest.json"] = {k: v for k, v in document.items() if k != "checksum"}
    return found

def begin(folder):
    shutil.rmtree(folder, ignore_errors=True)
    if start == "rebuild":
        shutil.copytree(root + ".old", folder)

def whole(folder):
    path = pathlib.Path(folder, "data/manifest.json")
    if not path.exists():
        return True
    document = json.loads(path.read_bytes())
    shards = [s for part in document["splits"].values() for s in part["shards"]]
    files = [(s["name"], s) for s in shards]
    files += [("preprocessor/" + name, info) for name, info in document["codec"].items()]
    return all(sha256(path.parent / name) == info["sha256"] for name, info in files)

assert child(root + ".old", 1) == 0
begin(root)
assert child(root, 0) == 0
expected = contents(root)
events = json.loads(pathlib.Path(root + ".events").read_text())
problems, killed = [], 0
moments = range(1, len(events) + 1)
last = 22 if start == "rebuild" else 0  # it publishes there
for moment in [m for m in moments if m % 6 == 1 or m > len(events) - last]:
    begin(root)
    code = child(root, 0, moment)
    killed += code == -signal.SIGKILL
    where = f"killed before event {moment}, {events[moment - 1]}: "
    try:
        if not whole(root):
            problems.append(where + "the manifest lists what is not there")
        if child(root, 0) != 0:
            problems.append(where + "the next build failed")
        after = contents(root)
        names = sorted(n for n in expected.keys() | after.keys() if expected.get(n) != after.get(n))
        if names:
            problems.append(where + "other files: " + ", ".join(names))
    except Exception as error:
        problems.append(where + repr(error))
json.dump({"problems": problems, "killed": killed}, sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fresh", "rebuild"])
def test_killed_at_any_moment_the_next_run_gives_the_same_bytes(tmp_path: Path, start: str) -> None:
    jsonl(tmp_path / "a.jsonl", documents(60))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "a.jsonl"), str(tmp_path), start],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["killed"] > 8
    assert result["problems"] == []


# On the command line --------------------------------------------------------------------------


def program(folder: Path, *argv: str, stdin: bytes = b"", code: int = 0, **environ: str) -> Any:
    """Runs `bigmodel prepare --json` in a process of its own; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", "prepare", *argv, "--json"],
        cwd=folder, env={**environment(), **environ}, input=stdin, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout)


def environment() -> Mapping[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("BIGMODEL_")}


QUICK = ("--tokenizer", "bytes", "--min-chars", "0", "--val", "0", "--test", "0")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "records"])
def test_standard_input_is_a_source(tmp_path: Path, kind: str) -> None:
    texts = documents(9)
    data = "\n".join(texts) if kind == "text" else "".join(
        json.dumps({"text": text}) + "\n" for text in texts
    )  # fmt: skip
    first = program(tmp_path, "-", *QUICK, stdin=data.encode())
    assert not first["up_to_date"]
    found = units(tmp_path / "work")["train"]
    assert found == (["\n".join(texts)] if kind == "text" else texts)
    assert program(tmp_path, "-", *QUICK, stdin=data.encode())["up_to_date"]
    assert not [p.name for p in (tmp_path / "work" / "data").iterdir() if ".tmp-" in p.name]


@pytest.mark.slow
def test_processes_and_their_settings_give_the_same_bytes(tmp_path: Path) -> None:
    corpus(tmp_path / "data", 200)
    settings = [
        {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"},
    ]
    for number, environ in enumerate(settings):
        program(tmp_path, "data", "-w", f"work-{number}", "--vocab-size", "800", **environ)
    assert contents(tmp_path / "work-0") == contents(tmp_path / "work-1")


@pytest.mark.parametrize("change", ["grows", "shrinks", "goes"])
def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    """Its hash, by which everybody would know the shards, is that of other bytes."""
    source = tmp_path / "a.jsonl"
    jsonl(source, documents(40))
    before = prepare(tmp_path / "work", source, **ALL).manifest
    jsonl(source, documents(60))
    whole = source.read_bytes()

    def write() -> None:
        if change == "goes":
            source.unlink()
        else:
            source.write_bytes(whole * 2 if change == "grows" else whole[: len(whole) // 2])

    with pytest.raises(DataError, match=r"`a.jsonl` changed while it was being read"):
        prepare(tmp_path / "work", source, reading=write, **ALL)
    assert Workdir(tmp_path / "work").read_data() == before  # nothing was lost
    source.write_bytes(whole)
    after = prepare(tmp_path / "work", source, **ALL).manifest
    assert after == prepare(tmp_path / "new", source, **ALL).manifest


@pytest.mark.slow
def test_little_is_loaded_and_less_when_all_is_up_to_date(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", documents(40))
    script = (
        "import os, sys, json\n"
        "leave = os._exit\n"
        "def show(code):\n"
        "    heavy = {'torch', 'tokenizers', 'datasets', 'transformers', 'matplotlib', 'pandas'}\n"
        "    sys.stderr.write(json.dumps([code, sorted(heavy & set(sys.modules))]))\n"
        "    sys.stderr.flush()\n"
        "    leave(code)\n"
        "os._exit = show\n"
        "from bigmodel_cli.__main__ import main\n"
        f"sys.argv = ['bigmodel', 'prepare', 'a.jsonl', *{QUICK!r}]\n"
        "main()\n"
    )
    for said, loaded in (("prepared", ["tokenizers"]), ("up to date", [])):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.stdout.startswith(said), done.stderr
        assert json.loads(done.stderr.splitlines()[-1]) == [0, loaded]


@contextlib.contextmanager
def started(folder: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bigmodel_cli", *argv],
        cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_killed_in_the_middle_of_a_longer_build(tmp_path: Path) -> None:
    draw = random.Random(7)
    jsonl(tmp_path / "a.jsonl", documents(12_000))
    command = ("prepare", "a.jsonl", "--vocab-size", "1000")
    began = time.monotonic()
    with started(tmp_path, *command, "-w", "undisturbed") as process:
        assert process.wait(timeout=60) == 0
    took = time.monotonic() - began
    killed = 0
    for _ in range(2):
        with started(tmp_path, *command) as process:
            time.sleep(draw.uniform(0.3, 0.95) * took)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed
    with started(tmp_path, *command) as process:
        assert process.wait(timeout=60) == 0
    assert contents(tmp_path / "work") == contents(tmp_path / "undisturbed")


# Two encoders ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars"])
def test_the_fast_encoder_gives_the_same_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source = jsonl(tmp_path / "a.jsonl", [*documents(300), EOT * 3, "long " * 30000])
    prepare(tmp_path / "slow", source, tokenizer=kind)
    monkeypatch.setattr(text_tasks, "HASTE_BYTES", 0)
    notes: list[str] = []
    prepare(tmp_path / "fast", source, tokenizer=kind, notes=notes)
    assert contents(tmp_path / "slow") == contents(tmp_path / "fast")
    assert "gigatoken" not in "".join(notes)


def test_another_encoding_is_warned_of_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gigatoken

    source = jsonl(tmp_path / "a.jsonl", documents(300))
    prepare(tmp_path / "slow", source, tokenizer="bpe")
    monkeypatch.setattr(text_tasks, "HASTE_BYTES", 0)
    right = gigatoken.Tokenizer.encode_batch
    monkeypatch.setattr(
        gigatoken.Tokenizer, "encode_batch", lambda self, texts: right(self, texts) + 1
    )
    notes: list[str] = []
    prepare(tmp_path / "fast", source, tokenizer="bpe", notes=notes)
    assert contents(tmp_path / "slow") == contents(tmp_path / "fast")
    (note,) = (note for note in notes if "gigatoken" in note)
    assert "another way; tokenizers encoded" in note


@pytest.mark.slow
def test_standard_input_has_columns_where_a_delimiter_is_named(tmp_path: Path) -> None:
    rows = [f"hello number {i},{'ab'[i % 2]}" for i in range(60)]
    made = {}
    for name, text, more in (
        ("comma", "\n".join(["text,label", *rows]), ["--delimiter", ","]),
        ("tab", "\n".join(["text,label", *rows]).replace(",", "\t"), ["--delimiter", "\\t"]),
        ("header", "\n".join(rows), ["--delimiter", ",", "--header", "text,label"]),
    ):
        made[name] = program(tmp_path, "-", "-w", name, *more, stdin=text.encode())
        assert made[name]["task"] == "text-classification"
    assert len({str(m["ledger"]) for m in made.values()}) == 1
