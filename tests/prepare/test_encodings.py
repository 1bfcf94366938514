"""Text in any encoding and compression is read, or named with the encoding that it may have."""

from __future__ import annotations

import bz2
import codecs
import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.events import Context, Note
from bigmodel_cli.prepare import readers, sources
from bigmodel_cli.prepare.aligned import together
from bigmodel_cli.prepare.sources import Layout, find
from bigmodel_cli.prepare.texts import encoding_named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import Cli

CHINESE = [f"今天天气很好,我们第{i}次一起去公园散步。" for i in range(30)]
FRENCH = [f"Un élève à côté de la forêt, déjà vu {i} fois." for i in range(30)]
RUSSIAN = [f"Сегодня хорошая погода, мы идём гулять в парк {i}." for i in range(30)]
TAIWAN = [f"今天天氣很好,我們第{i}次一起去公園散步。" for i in range(30)]
JAPAN = [f"今日は天気が良いので、公園へ{i}回行きました。" for i in range(30)]
SUFFIXES = [".txt", ".csv", ".tsv", ".jsonl", ".json", ".{de,en}"]


def table(lines: list[str], suffix: str) -> str:
    """The lines in a format, some with a label that is not ASCII."""
    labels = [line[:2] for line in lines]
    if suffix in (".csv", ".tsv"):
        end = {".csv": ",", ".tsv": "\t"}[suffix]
        quoted = [f'"{line}"' if suffix == ".csv" else line for line in lines]
        return "".join(f"{a}{end}{b}\n" for a, b in [("text", "label"), *zip(quoted, labels)])
    rows = [{"text": a, "label": b} for a, b in zip(lines, labels)]
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(rows, ensure_ascii=False) if suffix == ".json" else "".join(
        line + "\n" for line in lines
    )  # fmt: skip


def read(folder: Path, **layout: Any) -> tuple[list[str], list[str], Ledger]:
    """The texts of the one source in a folder; what was said; what was dropped."""
    notes: list[str] = []

    def emit(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.message)

    def choose(found: Mapping[str, str], where: str) -> dict[str, str]:
        del where
        return {name: name for name in ("text", "en") if name in found}

    found = find([str(folder)], (), folder / "x")
    (source,) = together(found) if len(found) > 1 else found
    ledger, texts = Ledger(), list[str]()
    given = Layout(documents=source.kind == "text", context=Context(emit), **layout)
    for rows in readers.read(source, choose, given, ledger, lambda _: None):
        name = "text" if "text" in rows.table.schema.names else "en"
        parts = (rows.table.column(each).to_pylist() for each in (name, "follows"))
        for text, follows in zip(*parts, strict=True):
            texts.append(texts.pop() + text if follows else text)
    return texts, notes, ledger


def write(folder: Path, lines: list[str], suffix: str, encoding: str, mark: bytes = b"") -> None:
    for end in suffix.strip(".{}").split(","):
        (folder / f"a.{end}").write_bytes(mark + table(lines, f".{end}").encode(encoding))


def joined(lines: list[str], suffix: str) -> list[str]:
    return ["".join(line + "\n" for line in lines)] if suffix == ".txt" else lines


@pytest.mark.parametrize("chunk", [16, 8 << 20])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("encoding", "lines"),
    [
        ("gbk", CHINESE), ("gb18030", CHINESE), ("big5", TAIWAN), ("utf-16-le", CHINESE),
        ("utf-16-be", CHINESE), ("latin-1", FRENCH), ("cp1251", RUSSIAN), ("utf-8", CHINESE),
        ("utf-16", FRENCH), ("utf-32", RUSSIAN), ("shift_jis", JAPAN),
    ],
)  # fmt: skip
def test_any_encoding_that_is_named_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, lines: list[str], suffix: str,
    chunk: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(sources, "CHUNK", chunk)
    write(tmp_path, lines, suffix, encoding)
    texts, _, ledger = read(tmp_path, encoding=encoding)
    assert texts == joined(lines, suffix)
    assert ledger == Ledger()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE), ("utf-8", codecs.BOM_UTF8),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", ["", "gbk"])
def test_a_byte_order_mark_says_the_encoding(
    tmp_path: Path, encoding: str, mark: bytes, suffix: str, named: str
) -> None:
    write(tmp_path, CHINESE, suffix, encoding, mark)
    texts, notes, ledger = read(tmp_path, encoding=named)
    assert texts == joined(CHINESE, suffix)
    assert ledger == Ledger()
    said = [note for note in notes if "byte order mark" in note]
    assert len(said) == (encoding != "utf-8" or bool(named))
    assert all(encoding.upper() in note for note in said)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(
    ("encoding", "lines", "likely"),
    [
        ("gbk", CHINESE, "gbk"), ("latin-1", FRENCH, "cp1252"), ("utf-16-le", FRENCH, "utf-16-le"),
        ("utf-16-be", CHINESE, "utf-16-be"), ("utf-16-le", CHINESE, "utf-16-le"),
        ("cp1251", RUSSIAN, "cp1251"), ("big5", TAIWAN, "big5"), ("shift_jis", JAPAN, "shift-jis"),
    ],
)  # fmt: skip
def test_what_is_not_utf8_is_counted_with_its_likely_encoding(
    tmp_path: Path, encoding: str, lines: list[str], likely: str, suffix: str
) -> None:
    (tmp_path / f"a{suffix}").write_bytes(table(lines, suffix).encode(encoding))
    if encoding.startswith("utf-16") and suffix in (".csv", ".tsv"):
        with pytest.raises(DataError, match=f"the header of `a{suffix}` is not UTF-8") as caught:
            read(tmp_path)
        name = caught.value.hint.rpartition("--encoding ")[2]
    else:
        texts, (note,), ledger = read(tmp_path)
        assert texts == []
        assert ledger.dropped["unreadable"].rows == ledger.rows_in
        assert ledger.rows_in in (1, len(lines), len(lines) + 1)  # a rest of zero in UTF-16
        name = note.rpartition("--encoding ")[2]
    assert name == likely
    assert read(tmp_path, encoding=name)[0] == joined(lines, suffix)


def test_lines_of_another_encoding_among_utf8_are_counted_without_a_guess(tmp_path: Path) -> None:
    lines = [line.encode() for line in CHINESE]
    lines[7] = lines[7].decode().encode("gbk")
    rows = (b'{"text": "' + line + b'"}\n' for line in lines)
    (tmp_path / "a.jsonl").write_bytes(b"".join(rows))
    texts, notes, ledger = read(tmp_path)
    assert texts == CHINESE[:7] + CHINESE[8:]
    assert notes == []
    assert ledger.dropped["unreadable"].where == ["a.jsonl, line 8 (not UTF-8)"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".{de,en}"])
def test_what_the_encoding_that_was_named_lacks_costs_its_row(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, CHINESE, suffix, "gbk")
    for path in tmp_path.iterdir():
        lines = path.read_bytes().split(b"\n")
        lines[9] = lines[9].replace("天气".encode("gbk"), b"\xff\xff")
        path.write_bytes(b"\n".join(lines))
    texts, _, ledger = read(tmp_path, encoding="gbk")
    assert len(texts) == len(CHINESE) - 1
    assert {*texts} < {*CHINESE}
    assert ledger.dropped["unreadable"].rows == 1
    assert "not GBK" in ledger.dropped["unreadable"].where[0]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("gbkk", "`gbk`"), ("utf8x", "utf8"), ("latin1x", "latin"), ("hex", ""), ("rot13", "")],
)
def test_an_unknown_encoding_is_wrong_usage(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}`, which is unknown") as caught:
        encoding_named(name)
    assert hint in caught.value.hint


# The command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_classes_of_another_encoding_go_by_their_names(empty: Cli) -> None:
    rows = [(f"第{i}句话,非常有意思", "正面" if i % 2 else "负面") for i in range(60)]
    lines = "".join(f'"{text}",{label}\n' for text, label in [("text", "label"), *rows])
    (empty.cwd / "a.csv").write_bytes(lines.encode("gbk"))
    command = ["prepare", "a.csv", "--tokenizer", "bytes", "--min-chars", "1"]
    for more in ((), ("--task", "text-classification")):
        empty.fails(*command, *more, code=4, says=["not", "UTF-8"])
    assert "--encoding gbk" in empty.seen[0].err
    empty.works(*command, "--encoding", "GBK")
    made = empty.manifest()
    assert made["ledger"]["dropped"] == {}
    labels = json.loads((empty.work / "data" / "preprocessor" / "labels.json").read_bytes())
    assert "正面" in json.dumps(labels, ensure_ascii=False)
    assert made["recipe"]["options"]["encoding"] == "gbk"
    assert "up to date" in empty.works(*command, "--encoding", "gbk").out
    empty.fails(*command, "--encoding", "gbkk", code=2, says=["`gbkk`"], hint=["`gbk`"])


@pytest.mark.slow
def test_aligned_files_of_any_compression_are_translations(empty: Cli) -> None:
    for name, lines, pack in (
        ("a.fr.xz", FRENCH, lzma.compress), ("a.zh.bz2", CHINESE, bz2.compress),
    ):  # fmt: skip
        text = "".join(line + "\n" for line in lines)
        (empty.cwd / name).write_bytes(pack(text.encode("utf-16")))
    plain = ("--tokenizer", "bytes", "--val", "0", "--test", "0")
    command = ("prepare", "a.fr.xz", "a.zh.bz2", *plain)
    done = empty.works(*command)
    assert "`a.fr.xz` is read as UTF-16-LE, as its byte order mark says" in done.err
    made = empty.manifest()
    assert made["task"] == "translation"
    assert made["ledger"]["kept"]["rows"] == 30
    half = (empty.cwd / "a.fr.xz").read_bytes()
    (empty.cwd / "a.fr.xz").write_bytes(half[: len(half) // 2])
    empty.fails(*command, code=4, says=["cannot be read to its end"], hint=["truncated"])


def test_an_encoding_where_nothing_is_text_is_said(empty: Cli) -> None:
    table = pa.table({"text": CHINESE})
    pyarrow.parquet.write_table(table, empty.cwd / "a.parquet")
    done = empty.works("prepare", "a.parquet", "--val", "0", "--test", "0",
                       "--tokenizer", "bytes", "--encoding", "gbk")  # fmt: skip
    assert "--encoding changes nothing: no source is text" in done.err
