"""Delimited files: what separates their columns is found and said, and a quote costs its line."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pytest

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.events import Context, Note
from bigmodel_cli.prepare import readers, texts
from bigmodel_cli.prepare.aligned import together
from bigmodel_cli.prepare.sources import Layout, find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.conftest import Cli

ROWS = [(f"第{i}句, really; this one | has {i}", "好" if i % 3 else "坏") for i in range(40)]


class Read(NamedTuple):
    rows: list[tuple[str, ...]]
    notes: list[str]
    ledger: Ledger


def read(path: Path, names: Sequence[str] = ("text", "label"), **layout: Any) -> Read:
    """The rows of a file's named columns; what was said; what was dropped."""
    notes: list[str] = []

    def emit(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.message)

    def choose(found: Mapping[str, str], where: str) -> dict[str, str]:
        if missing := {*names} - {*found}:
            raise DataError(f"{where} lacks {missing}; it has {[*found]}")
        return {name: name for name in names}

    (source,) = find([str(path)], (), path)
    ledger = Ledger()
    given = Layout(context=Context(emit), **layout)
    found = []
    for rows in readers.read(source, choose, given, ledger, lambda _: None):
        columns = [rows.table.column(name).to_pylist() for name in names]
        found.extend(zip(*columns, strict=True))
    return Read(found, notes, ledger)


def written(rows: Sequence[Sequence[str]], delimiter: str, header: Sequence[str] = ()) -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([header or ("text", "label"), *rows])
    return file.getvalue()


# What separates columns -----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_what_separates_columns_is_found_and_said(
    tmp_path: Path, suffix: str, delimiter: str
) -> None:
    rows = [(text.replace("\t", " "), label) for text, label in ROWS]
    if suffix == ".tsv" and delimiter != ",":  # in which a quote is a character
        rows = [(text.replace(delimiter, " "), label) for text, label in rows]
    path = tmp_path / f"a{suffix}"
    path.write_text(written(rows, delimiter), "utf-8")
    found = read(path)
    assert found.rows == rows
    assert found.ledger == Ledger()
    said = {",": "a comma", "\t": "a tab"}.get(delimiter, f"`{delimiter}`")
    usual = delimiter == {".csv": ",", ".tsv": "\t"}[suffix]
    expected = [] if usual else [f"{said} separates the columns of `a{suffix}` "
                                 "(another: --delimiter)"]  # fmt: skip
    assert found.notes == expected


@pytest.mark.parametrize(
    ("name", "content", "names", "rows"),
    [  # each is read as it was, whatever else its text holds
        ("a.csv", "text\nSo; a | b\nWell; c | d\n", ["text"], [("So; a | b",), ("Well; c | d",)]),
        ("a.csv", "id,text;label\n1,a;b\n2,c;d\n", ["id"], [("1",), ("2",)]),
        ("a.csv", "Wort;Wert\nHaus;1,5\nBaum;2,5\n", ["Wort", "Wert"],
         [("Haus", "1,5"), ("Baum", "2,5")]),
        ("a.csv", "v1,v2,,,\nham,see you,,,\n", ["v1", "v2"], [("ham", "see you")]),
        ("a.tsv", "text\na, b\nc, d\n", ["text"], [("a, b",), ("c, d",)]),
        ("a.tsv", "文本\t标签\n一, 二\t好\n", ["文本", "标签"], [("一, 二", "好")]),
        ("a.csv", "文本;标签\n一, 二;好\n", ["文本", "标签"], [("一, 二", "好")]),
    ],
)  # fmt: skip
def test_text_with_other_delimiters_is_no_reason_to_take_them(
    tmp_path: Path, name: str, content: str, names: list[str], rows: list[tuple[str, ...]]
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert read(tmp_path / name, names).rows == rows


def test_the_delimiter_that_was_given_always_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label;x\na,b;c\n")
    assert read(path, ["text,label"], delimiter=";").rows == [("a,b",)]
    assert read(path, ["label;x"], delimiter=",").rows == [("b;c",)]


def test_named_columns_without_a_header_are_found_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("good; very\tpos\nbad\tneg\n" * 3)
    found = read(path, header=("text", "label"))
    assert found.rows == [("good; very", "pos"), ("bad", "neg")] * 3
    assert "a tab separates" in found.notes[0]


# Quotes ---------------------------------------------------------------------------------------


def test_a_quote_in_tsv_is_a_character(tmp_path: Path) -> None:
    rows = [(f'"{i} begins' if i % 4 == 0 else f'{i}" ends', "pos") for i in range(400)]
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    found = read(path)
    assert found.rows == rows
    assert found.ledger == Ledger()
    path.write_text('text\tlabel\n"he said ""no"""\tpos\n')
    found = read(path)
    assert found.rows == [('"he said ""no"""', "pos")]
    assert "kept as characters" in found.notes[0]


@pytest.mark.parametrize("place", [0, 1, 250, 398, 399])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("closing", ["", '"', " or so"])
def test_a_quote_that_is_not_closed_costs_its_own_line(
    tmp_path: Path, place: int, delimiter: str, closing: str
) -> None:
    """Whatever follows: rows without quotes, rows with, or one that ends with another quote."""
    rows = [(f"text {i}", "neg" if i % 2 else "pos") for i in range(400)]
    lines = [delimiter.join(row) + "\n" for row in rows]
    lines[place] = f'"text{delimiter}pos\n'
    lost = 1
    if closing and place < 397:
        lines[place + 2] = f"more{closing}{delimiter}pos\n"
        rows[place + 2] = (f"more{closing}", "pos")
    if place < 390:
        lines[place + 7] = f'"quoted{delimiter} ""and"" closed"{delimiter}neg\n'
        rows[place + 7] = (f'quoted{delimiter} "and" closed', "neg")
        lines[place + 8] = f'"two\nlines"{delimiter}neg\n'
        rows[place + 8] = ("two\nlines", "neg")
    path = tmp_path / "a.csv"
    path.write_text(f"text{delimiter}label\n" + "".join(lines))
    found = read(path)
    assert found.rows == rows[:place] + rows[place + 1 :]
    entry = found.ledger.dropped["malformed"]
    assert (entry.rows, entry.where) == (lost, [f"a.csv, line {place + 2}"])
    assert found.ledger.rows_in == lost


def test_texts_with_line_ends_in_quotes_are_read_whole(tmp_path: Path) -> None:
    poem = "Roses are red, and so on\nViolets are blue, I know\nSugar is sweet, as are you\n" * 3
    draw = random.Random(1)
    odd = ["".join(draw.choices('ab,\n\r" 好', k=draw.randrange(1, 40))) for _ in range(300)]
    texts_ = [poem, "Dear Sir,\nthank you, friend\n\nBye, then", '"', '\n"\n', ",\n,", *odd]
    rows = [(text, "pos" if i % 2 else "neg") for i, text in enumerate(texts_)]
    for delimiter in ",;":
        path = tmp_path / "a.csv"
        path.write_bytes(written(rows, delimiter).encode())
        found = read(path)
        assert found.rows == rows
        assert found.ledger == Ledger()
    path.write_bytes(written([row[::-1] for row in rows], ",", ("label", "text")).encode())
    assert read(path).rows == rows


def test_one_column_of_long_texts_in_quotes_is_read_whole(tmp_path: Path) -> None:
    rows = [("line\n" * 50 + f"end {i}",) for i in range(5)]
    path = tmp_path / "a.csv"
    path.write_text(written(rows, ",", ["text"]), newline="")
    assert read(path, ["text"]).rows == rows


def test_line_numbers_after_texts_of_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a\nb",pos\n\nbad\n"open,pos\nok,pos\nx,y,z\n')
    found = read(path)
    assert found.rows == [("a\nb", "pos"), ("ok", "pos")]
    assert found.ledger.dropped["malformed"].where == [f"a.csv, line {n}" for n in (5, 6, 8)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_ends_a_line(tmp_path: Path, end: str) -> None:
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        lines = [f"text{delimiter}label", f"one{delimiter}pos", f"two{delimiter}neg"]
        (tmp_path / name).write_bytes(end.join(lines).encode())
        assert read(tmp_path / name).rows == [("one", "pos"), ("two", "neg")]


# Headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\ntext,label\na,b\n", "`a.csv` is empty"),
        (b",,\n1,2,3\n", "`a.csv` is empty"),
        (b"text,label,text\na,b,c\n", "2 columns named `text`"),
        ("文本,标签\n一,二\n".encode("gbk"), "`a.csv` is not UTF-8"),
    ],
)
def test_headers_that_name_nothing_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(DataError, match=says):
        read(tmp_path / "a.csv")


def test_a_column_that_is_there_twice_may_be_one_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,text,id,label\n1,a,2,b\n")
    assert read(tmp_path / "a.csv").rows == [("a", "b")]


@pytest.mark.parametrize("data", [b"", b"\n \n", b"text,label\n", b"\xef\xbb\xbftext,label\n\n"])
def test_a_file_without_rows_is_counted(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    found = read(tmp_path / "a.csv")
    assert found.rows == []
    assert found.ledger.dropped["empty"].rows == found.ledger.rows_in == 1


# The command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_prepare_says_what_separates_the_columns_and_counts_every_line(empty: Cli) -> None:
    lines = [f"第{i}句, 很好;{'好' if i % 2 else '坏'}\n" for i in range(60)]
    lines[30] = '"没有结束;好\n'
    (empty.cwd / "a.csv").write_text("text;label\n" + "".join(lines), "utf-8")
    done = empty.works("prepare", "a.csv", "--tokenizer", "bytes", "--min-chars", "1")
    assert "`;` separates the columns of `a.csv` (another: --delimiter)" in done.err
    made = empty.manifest()
    assert made["task"] == "text-classification"
    assert made["ledger"]["in"]["rows"] == 60
    assert made["ledger"]["dropped"]["malformed"]["where"] == ["a.csv, line 32"]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.jsonl.xz", "a.tsv.zst", "a.{en,de}"]
)
def test_a_line_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(texts, "LONGEST_ROW", 3 << 20)
    monkeypatch.setattr(texts, "PIECE", 1 << 16)
    long = b"text,label\n" + b"\x00" * (4 << 20) + b"\n"
    if name == "a.{en,de}":
        (tmp_path / "a.en").write_bytes(long)
        (tmp_path / "a.de").write_bytes(b"eins\nzwei\n")
        (source,) = together(find([str(tmp_path)], (), tmp_path / "x"))
    else:
        (tmp_path / name).write_bytes(PACK.get(Path(name).suffix, bytes)(long))
        (source,) = find([str(tmp_path)], (), tmp_path / "x")
    rows = readers.read(source, lambda f, _: {n: n for n in f}, Layout(), Ledger(), lambda _: None)
    with pytest.raises(DataError, match=r"line of over 3 MiB, the maximum"):
        list(rows)


@pytest.mark.slow
def test_lists_in_quotes_stay_in_their_field(empty: Cli) -> None:
    """Although each of their lines looks like a row."""
    rows = "".join(
        f'What is in shop {i}?,"In shop {i} today:\nred apple, 0.95\n'
        f'green pear, 0.9{i % 9}\nplum, 1"\n'
        for i in range(60)
    )
    (empty.cwd / "a.csv").write_text("question,answer\n" + rows, "utf-8")
    empty.works("prepare", "a.csv", "--tokenizer", "bytes", "--val", "0", "--test", "0")
    ledger = empty.manifest()["ledger"]
    assert (ledger["in"]["rows"], ledger["kept"]["rows"]) == (60, 60)


@pytest.mark.slow
def test_excel_says_what_separates_columns(empty: Cli) -> None:
    rows = "".join(f"好 film, {i};{'ab'[i % 2]}\r\n" for i in range(40))
    (empty.cwd / "a.csv").write_text("\ufeffsep=;\r\ntext;label\r\n" + rows, "utf-8")
    empty.works("prepare", "a.csv", "--tokenizer", "bytes", "--val", "0", "--test", "0",
                "--min-chars", "1")  # fmt: skip
    assert empty.manifest()["task"] == "text-classification"
    assert empty.manifest()["splits"]["train"]["units"] == 40


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["^", ":"])
def test_one_column_whose_name_has_a_mark_in_it_is_warned_of(empty: Cli, mark: str) -> None:
    rows = "".join(f"好看的电影 number {i}{mark}{'ab'[i % 2]}\n" for i in range(40))
    (empty.cwd / "a.csv").write_text(f"text{mark}label\n{rows}", "utf-8")
    command = ("prepare", "a.csv", "--tokenizer", "bytes", "--val", "0", "--test", "0")
    assert f"--delimiter '{mark}'" in empty.works(*command).err
    empty.works(*command, "--delimiter", mark)
    assert empty.manifest()["task"] == "text-classification"
