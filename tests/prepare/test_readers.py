"""Any source gives the same documents, whatever its format, its compression and the read size."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import random
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
import pytest

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.prepare import readers, sources
from bigmodel_cli.prepare import records as records_module
from bigmodel_cli.prepare.sources import Layout, Source, find
from bigmodel_cli.prepare.split_names import recognise_splits
from bigmodel_cli.tasks.columns import text_column

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TEXTS = [
    "plain words",
    'he said "no", and left',
    'two\nlines, "quoted"\n',
    "dos\r\nlines\r\n",
    "tab\tseparated",
    "",
    "   ",
    "naïve Straße 日本語 👨‍👩‍👧 e\u0301 שלום",
    "'single' ; semicolon | pipe \\ backslash \\n",
    '"',
    '""',
    "<|endoftext|>",
    "last, without a newline",
]
CHUNKS = (16, 100, 8 << 20)
EOT = "<|endoftext|>"


class Block(NamedTuple):
    text: str | None
    follows: bool
    ends: bool
    row: int
    where: str


def choose(found: Mapping[str, str], where: str) -> dict[str, str]:
    return {"text": text_column(found, "", where)}


def blocks(path: Path, separator: str = "", ledger: Ledger | None = None) -> list[Block]:
    (source,) = find([str(path)], (), path)
    read = readers.read(
        source, choose, Layout(separator), Ledger() if ledger is None else ledger, lambda _: None
    )
    found = []
    for rows in read:
        columns = [rows.table.column(n).to_pylist() for n in ("text", "follows", "ends", "row")]
        for index, values in enumerate(zip(*columns, strict=True)):
            found.append(Block(*values, rows.where(index)))
    assert [block.row for block in found] == list(range(len(found)))
    for before, after in itertools.pairwise(found):
        assert after.follows == (not before.ends)
    assert not found or (not found[0].follows and found[-1].ends)
    return found


def documents(path: Path, separator: str = "", ledger: Ledger | None = None) -> list[str | None]:
    """Each document of a file as one text."""
    whole: list[str | None] = []
    for block in blocks(path, separator, ledger):
        if block.follows:
            whole[-1] = (whole[-1] or "") + (block.text or "")
        else:
            whole.append(block.text)
    return whole


class LateError(Exception):
    """A test took too long. It is no OSError, which readers would explain."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails instead of going on forever: seconds of computing, whatever else the machine does."""

    def late(*_: object) -> None:
        raise LateError

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    in_time = True
    try:
        yield
    except LateError:
        in_time = False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    if not in_time:
        raise AssertionError(f"still running after {seconds} s") from None


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def packed(data: bytes, ending: str) -> bytes:
    return {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstd,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".lzma": functools.partial(lzma.compress, format=lzma.FORMAT_ALONE),
    }[ending](data)


def records(texts: Sequence[str], suffix: str) -> bytes:
    """The texts in a format of records, among another column."""
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        table = pa.table({"id": list(range(len(texts))), "text": list(texts)})
        pyarrow.parquet.write_table(table, sink, row_group_size=5)
        return bytes(sink.getvalue())
    if suffix in (".jsonl", ".ndjson"):
        lines = [json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)]
        return "".join(lines).encode()
    if suffix == ".tsv":
        return "".join(f"{i}\t{t}\n" for i, t in [("id", "text"), *enumerate(texts)]).encode()
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("id", "text"), *enumerate(texts)])
    return file.getvalue().encode()


def held(texts: Sequence[str], suffix: str) -> list[str]:
    """Those of the texts that a format can hold: in .tsv a quote is a character."""
    return [text for text in texts if suffix != ".tsv" or not {*text} & {*"\t\r\n"}]


# Formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("ending", ["", *sources.PACKED])
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"])
def test_every_format_of_records_gives_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, ending: str, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    path = tmp_path / f"data{suffix}{ending}"
    texts = held(TEXTS, suffix)
    path.write_bytes(packed(records(texts, suffix), ending))
    ledger = Ledger()
    if suffix == ".parquet" and ending:
        with pytest.raises(DataError, match="parquet"):
            documents(path)
        return
    assert documents(path, ledger=ledger) == texts
    assert ledger == Ledger()  # what is read is counted by the task


ODD_LINES = [
    b'{"text": "a", "text": "b"}', b'{"text": 1}', b'{"text": "a"}{"text": "b"}',
    b'{"text": "a\x01"}', b'{"text": "\\ud83d"}', b'{"text": "\\ud83d\\ude42"}',
    b'{"text": "\\u0000x"}', b"", b'{"text": "a", "n": NaN}', b'{"text": "a", "n": 1e999}',
    b'{"text": "\xff"}', b"  ", b'{"text": "a", "n": "\xff"}', b'{"te\\u0078t": "a"}',
    b'{"text": "a"} junk', b'{"text": "a",}', b'{"text": ["a"]}', b'{"text": "a"} \r',
    b'{"text": "a"}\r', b' {"text": "a"}', b'{"text":', b'{"text": "a", "n": "\\ud83d"}',
    b'{"text": "a", "n": 01}', b"[1]", b"null", b'{"x": {"text":1}',
    b'{"text": "a", "m": {"text": "b"}}', b'{"text": "a"}\x00', b'{"text": null}', b"{}", b"}",
    b"{", b'{"text": "2020-01-01"}', b'{"text": "\xed\xa0\x80"}', b"{'text': 'a'}",
    b'{"x":\n{"b":1}}', b'{"text": "a", "n": 1' + b"0" * 5000 + b"}",
    b'{"text": "a\xe2\x80\xa8b"}', b'{"text": "a" "n": 1}', b'\xef\xbb\xbf{"text": "a"}',
    b'{"text": "a"}/* c */', b'{"text": "\\/\\b"}', b'{"text": "\\x"}',
]  # fmt: skip


def test_columns_are_known_by_name_where_the_first_rows_are_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CHUNK", 16)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null, "id": 1}\n' * 9 + '{"text": "a line", "id": 2}\n')
    ledger = Ledger()
    assert documents(path, ledger=ledger) == [None] * 9 + ["a line"]
    assert ledger == Ledger()


def test_a_column_of_nulls_gives_way_to_one_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null, "content": "real words"}\n' * 3)
    assert documents(path) == ["real words"] * 3


def test_numbers_of_any_length_are_no_reason_to_drop_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": {"1" * 5000}, "text": "a line"}}\n' * 3)
    assert documents(path) == ["a line"] * 3


@pytest.mark.parametrize("beside", ["", "malformed\n"])
def test_deep_rows_are_kept_whatever_stands_beside_them(tmp_path: Path, beside: str) -> None:
    path = tmp_path / "a.jsonl"
    deep = "[" * 50_000 + "]" * 50_000
    path.write_text(f'{{"text": "a"}}\n{{"x": {deep}, "text": "deep"}}\n{beside}')
    assert documents(path) == ["a", "deep"]


@pytest.mark.slow
def test_json_lines_read_at_once_are_those_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    path = tmp_path / "a.jsonl"
    at_once = 0
    parsed = records_module._parsed

    def counting(chunk: bytes, names: Sequence[str]) -> Any:
        nonlocal at_once
        found = parsed(chunk, names)
        at_once += found is not None
        return found

    for number in range(400):
        good = b'{"text": "a good line", "n": 1}'
        odd = draw.choices([*ODD_LINES, good], k=draw.randrange(1, 4))
        lines = [good] * draw.randrange(4) + odd + [good] * draw.randrange(1, 3)
        draw.shuffle(lines)
        if number < len(ODD_LINES):  # each by itself, too
            lines = [good, ODD_LINES[number]]
        path.write_bytes(b"\n".join(lines) + draw.choice([b"", b"\n", b"\n\n"]))
        seen = []
        for way in (counting, lambda *_: None):
            monkeypatch.setattr(records_module, "_parsed", way)
            ledger = Ledger()
            seen.append((blocks(path, ledger=ledger), ledger.record()))
        assert seen[0] == seen[1], path.read_bytes()
    assert at_once > 40  # so that there was something to compare


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("ending", ["", *sources.PACKED])
@pytest.mark.parametrize("suffix", [".txt", ".md", ".py", "", ".TXT", ".v1.2", ".csv.bak"])
def test_any_other_file_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, ending: str, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    text = "".join(TEXTS)
    path = tmp_path / f"data{suffix}{ending}"
    path.write_bytes(packed(text.encode(), ending))
    assert documents(path) == [text]


@pytest.mark.parametrize("suffix", [".CSV", ".Jsonl", ".csv.GZ", ".jsonl.gz", ".parquet"])
def test_the_case_of_a_suffix_does_not_matter(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    data = records(TEXTS, suffix.lower().removesuffix(".gz"))
    path.write_bytes(packed(data, ".gz" if suffix.lower().endswith(".gz") else ""))
    assert documents(path) == TEXTS


@pytest.mark.parametrize("chunk", [16, 37, 8 << 20])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_random_records_survive_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    draw = random.Random(0)
    texts = ["".join(draw.choices("ab,\t\"'\n\r é😀\\{", k=draw.randrange(60))) for _ in range(200)]
    path = tmp_path / f"data{suffix}"
    texts = held(texts, suffix)
    path.write_bytes(records(texts, suffix))
    assert documents(path) == texts


@pytest.mark.parametrize("ending", sources.PACKED)
def test_compressed_parts_one_after_another_are_all_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.txt{ending}"
    path.write_bytes(b"".join(packed(part, ending) for part in (b"one, ", b"", b"two, ", b"three")))
    assert documents(path) == ["one, two, three"]


@pytest.mark.parametrize("ending", sources.PACKED)
def test_a_truncated_file_is_named(tmp_path: Path, ending: str) -> None:
    whole = packed(random.Random(0).randbytes(5000).hex().encode(), ending)
    for size in (len(whole) - 1, len(whole) // 2, 20):
        path = tmp_path / f"data.txt{ending}"
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=f"data.txt{ending}"):
            documents(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".txt"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    data = b"plain text" if suffix == ".txt" else records(["plain text"], suffix)
    path.write_bytes(b"\xef\xbb\xbf" + data)
    assert documents(path) == ["plain text"]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_dos_line_ends_are_kept_in_text_and_taken_from_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    text = "first line\r\nsecond line\r\n\r\nthird line"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert documents(tmp_path / "a.txt") == [text]
    lines = [json.dumps({"text": t}) for t in ("one\r\n", "two")]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(lines).encode() + b"\r\n")
    assert documents(tmp_path / "a.jsonl") == ["one\r\n", "two"]
    (tmp_path / "a.csv").write_bytes(b'id,text\r\n1,"one\r\n"\r\n2,two\r\n')
    assert documents(tmp_path / "a.csv") == ["one\r\n", "two"]


def test_rows_of_parquet_may_be_null_dictionaries_or_views(tmp_path: Path) -> None:
    texts = ["one", None, "two", "one"]
    plain = pa.array(texts, pa.string())
    for name, column in {
        "string": plain,
        "large": plain.cast(pa.large_string()),
        "dictionary": plain.dictionary_encode(),
        "view": plain.cast(pa.string_view()),
    }.items():
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pa.table({"id": range(4), "words": column}), path)
        assert documents(path) == texts, name


def test_a_column_that_holds_no_text_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": [["a", "b"], ["c"]]}), path)
    with pytest.raises(DataError, match=r"a\.parquet"):
        documents(path)


def test_a_missing_value_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": null}\n{"other": 1}\n')
    assert documents(path) == ["one", None, None]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_an_empty_file_has_no_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert documents(tmp_path / name) == []
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b""))
    assert documents(tmp_path / f"{name}.gz") == []


# What is malformed ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 16, 50, 8 << 20])
def test_bad_json_lines_are_counted_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    good = [json.dumps({"text": f"document {i}"}).encode() for i in range(4)]
    bad = [b"{", b"[1]", b'{"text": 1}', b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"[" * 5000]
    lines = [good[0], bad[0], b"", good[1], bad[1], b"  ", bad[2], bad[3], good[2], bad[4], bad[5],
             good[3]]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    ledger = Ledger()
    found = blocks(path, ledger=ledger)
    assert [block.text for block in found] == [f"document {i}" for i in range(4)]
    assert [block.where for block in found] == [f"a.jsonl, line {n}" for n in (1, 4, 9, 12)]
    malformed, unreadable = ledger.dropped["malformed"], ledger.dropped["unreadable"]
    assert (malformed.rows, unreadable.rows, ledger.rows_in) == (5, 1, 6)
    assert malformed.bytes + unreadable.bytes == ledger.bytes_in == sum(map(len, bad))
    assert malformed.where == [f"a.jsonl, line {n}" for n in (2, 5, 7)]
    assert unreadable.where == ["a.jsonl, line 8 (not UTF-8)"]


def test_rows_of_another_width_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,one\n2\n\n3,three,3\n,,,\n4,f\x00ur\n5,\xff\n6,six\n")
    ledger = Ledger()
    found = blocks(path, ledger=ledger)
    assert [(block.text, block.where) for block in found] == [
        ("one", "a.csv, line 2"),
        ("six", "a.csv, line 9"),
    ]
    assert ledger.rows_in == 5
    assert ledger.dropped["malformed"].rows == 4
    assert ledger.dropped["unreadable"].where == ["a.csv, line 8 (not UTF-8)"]
    assert ledger.dropped["malformed"].where == [f"a.csv, line {n}" for n in (3, 5, 6)]


def test_lost_bytes_are_bytes_of_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,one\n2,é,日本\n", "utf-8")
    ledger = Ledger()
    assert documents(path, ledger=ledger) == ["one"]
    assert ledger.dropped["malformed"].bytes == len("2é日本".encode())


def test_only_the_document_that_is_not_utf8_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one##tw\xff##thr\x00ee##four")
    ledger = Ledger()
    assert documents(path, "##", ledger) == ["one", "four"]
    entry = ledger.dropped["unreadable"]
    assert (entry.rows, entry.bytes) == (2, len(b"tw\xffthr\x00ee"))
    assert "not UTF-8 at byte 2" in entry.where[0]
    assert "binary" in entry.where[1]


# Separators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [*range(16, 32), 64, 1000, 8 << 20])
def test_a_separator_is_found_wherever_a_read_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    draw = random.Random(chunk)
    for separator in (EOT, "\n\n", "%", "é😀", "aa"):
        for ending in ("", ".gz", ".zst"):
            pieces = [
                "a",
                "b",
                "é",
                "😀",
                " ",
                "\n",
                "<|",
                "|>",
                separator,
                separator * 2,
                separator,
            ]
            text = "".join(draw.choices(pieces, k=draw.randrange(300)))
            path = tmp_path / f"a.txt{ending}"
            path.write_bytes(packed(text.encode(), ending))
            expected = [part for part in text.split(separator) if part.encode().strip()]
            assert documents(path, separator) == expected


def test_documents_do_not_run_together_after_a_blank_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that is read in parts ends, even if its last part is blank."""
    text = "a" * 40 + "\n" * 60 + EOT + "the next document"
    path = tmp_path / "a.txt"
    path.write_text(text)
    assert documents(path, EOT) == text.split(EOT)
    monkeypatch.setattr(sources, "CHUNK", 16)
    assert documents(path, EOT) == text.split(EOT)


def test_without_a_separator_special_tokens_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"one{EOT}two\n\n\nthree")
    assert documents(path) == [f"one{EOT}two\n\n\nthree"]


# Blocks of long texts -------------------------------------------------------------------------


def test_long_texts_are_cut_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {i} of many lines\n" for i in range(3000)) + "the end"
    path = tmp_path / "a.txt"
    path.write_text(text)
    found = blocks(path)
    assert "".join(block.text or "" for block in found) == text
    assert len(found) > 10
    assert [block.follows for block in found] == [False] + [True] * (len(found) - 1)
    assert [block.ends for block in found] == [False] * (len(found) - 1) + [True]
    for block in found[:-1]:
        assert block.text is not None
        assert block.text.endswith("\n")
        assert readers.BLOCK <= len(block.text) <= 2 * readers.BLOCK
    assert [block.where for block in found[:2]] == ["a.txt, block 1", "a.txt, block 2"]


def test_blocks_do_not_depend_on_the_read_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"line {i} of many lines\n" for i in range(3000))
    path = tmp_path / "a.txt"
    path.write_text(text + EOT + text)
    monkeypatch.setattr(sources, "CHUNK", len(text))
    expected = [block.text for block in blocks(path, EOT)]
    for chunk in (len(text) // 2 + 1, 3 * len(text), 8 << 20):
        monkeypatch.setattr(sources, "CHUNK", chunk)
        assert [block.text for block in blocks(path, EOT)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "x" * 30_000,
        "a " + "x" * 30_000,
        "a " + "x" * 30_000 + " b " + "y" * 30_000,
        " " + "é" * 20_000,
        "😀" * 20_000,
        ("e\u0301" * 5000 + " ") * 4,
        " " * 30_000 + "x",
        "\n" * 30_000 + "x",
        ("word " * 900 + "\n") * 9,
        "x\n" + "y" * 8191 + "\n" + "z" * 8193 + "\n",
    ],
)
def test_long_lines_are_cut_too_and_nothing_is_lost(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    found: list[Block] = []
    with within(1):
        found = blocks(path)
    assert "".join(block.text or "" for block in found) == text
    for block in found:
        assert 0 < len((block.text or "").encode()) <= 2 * readers.BLOCK + 4


@pytest.mark.parametrize("chunk", [5000, 20_000, 8 << 20])
def test_random_long_texts_are_cut_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    draw = random.Random(chunk)
    for number in range(20):
        text = "".join(
            draw.choice("xé😀") * draw.choice([1, 5, 100, 5000])
            + draw.choice([" ", "\n", "", "\r\n"])
            for _ in range(40)
        )
        path = tmp_path / f"{number}.txt"
        path.write_bytes(text.encode())
        with within(1):
            assert documents(path) == [text]


# Sources --------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "data/b.txt", "data/a.jsonl", "data/sub/deep/c.txt.gz", "data/sub/a.txt",
        "data/.hidden.txt",
        "data/.git/config.txt", "data/sub/.cache/x.txt", "data/tests/t.txt", "data/[odd].txt",
        "other.txt",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*patterns: str, exclude: Sequence[str] = ()) -> list[str]:
    return [
        source.name for source in find(patterns, exclude, pytest.importorskip("pathlib").Path())
    ]


def test_a_folder_is_read_recursively_in_order_without_hidden_files(tree: Path) -> None:
    expected = ["[odd].txt", "a.jsonl", "b.txt", "sub/a.txt", "sub/deep/c.txt.gz", "tests/t.txt"]
    assert names("data") == expected
    assert names("./data/") == expected
    assert names(str(tree / "data")) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("data/*.txt", ["[odd].txt", "b.txt"]),
        ("data/**/*.txt", ["[odd].txt", "b.txt", "sub/a.txt", "tests/t.txt"]),
        ("data/**/c.*", ["sub/deep/c.txt.gz"]),
        ("data/?.txt", ["b.txt"]),
        ("**/a.*", ["data/a.jsonl", "data/sub/a.txt"]),
        ("data/[odd].txt", ["[odd].txt"]),  # a file of that name comes before the pattern
        ("data/.hidden.txt", [".hidden.txt"]),  # what is named is read
    ],
)
@pytest.mark.usefixtures("tree")
def test_globs(pattern: str, expected: list[str]) -> None:
    assert names(pattern) == expected


@pytest.mark.usefixtures("tree")
def test_several_sources_keep_their_order_and_no_file_comes_twice() -> None:
    assert names("other.txt", "data/sub", "data/**/a.*", "./other.txt") == [
        "other.txt", "a.txt", "deep/c.txt.gz", "a.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        (["*/tests/*", "*.jsonl"], ["[odd].txt", "b.txt", "sub/a.txt", "sub/deep/c.txt.gz"]),
        (["sub/*", "*odd*"], ["a.jsonl", "b.txt", "tests/t.txt"]),
        (["a.*"], ["[odd].txt", "b.txt", "sub/a.txt", "sub/deep/c.txt.gz", "tests/t.txt"]),
        (["*/a.*"], ["[odd].txt", "b.txt", "sub/deep/c.txt.gz", "tests/t.txt"]),
    ],
)
@pytest.mark.usefixtures("tree")
def test_excluded_files_are_left_out(exclude: list[str], expected: list[str]) -> None:
    assert names("data", exclude=exclude) == expected


@pytest.mark.usefixtures("tree")
def test_nothing_found_is_an_error() -> None:
    for patterns, exclude in ((["none"], ()), (["data/*.none"], ()), (["data"], ["*"])):
        with pytest.raises(DataError, match=r"nothing"):
            names(*patterns, exclude=exclude)
    with pytest.raises(UsageError):
        names()


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.txt", "test.txt"], ["train", "test"]),
        (["train.jsonl.gz", "valid.jsonl.gz", "x.txt"], ["train", "val", None]),
        (["training/a.txt", "dev/a.txt", "test/a.txt"], ["train", "val", "test"]),
        (["TRAIN-00001.txt", "validation_2.txt"], ["train", "val"]),
        (["wiki.train.txt", "test.txt"], [None, None]),  # nothing begins with train
        (["a/train/b.txt", "a/test/train.txt", "test/b.txt"], ["train", "train", "test"]),
        (["test.txt", "val.txt"], [None, None]),
        (["train.txt", "other.txt"], [None, None]),
        (["trainer.txt", "tests.txt", "training.txt"], [None, None, None]),
    ],
)
def test_names_tell_splits_only_together(
    tmp_path: Path, files: list[str], splits: list[str | None]
) -> None:
    sources = [Source(name, tmp_path / name) for name in files]
    assert [source.split for source in recognise_splits(sources)] == splits


# Data sets ------------------------------------------------------------------------------------


def test_a_data_set_gives_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(records(TEXTS, ".jsonl"))
    (folder / "test.jsonl").write_bytes(records(["held out"], ".jsonl"))

    def texts(spec: str) -> list[str]:
        (source,) = find([spec], (), tmp_path)
        read = readers.read(source, choose, Layout(), Ledger(), lambda _: None)
        return [text for rows in read for text in rows.table.column("text").to_pylist()]

    assert texts(f"hf:{folder}") == TEXTS
    assert texts(f"hf:{folder}:test") == ["held out"]
    with pytest.raises(DataError, match="cannot be loaded"):
        texts(f"hf:{folder}:nonsense")
    with pytest.raises(DataError, match="cannot be loaded"):
        texts(f"hf:{tmp_path / 'none'}")
