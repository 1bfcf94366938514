"""What no user should do, and what disks and other programs do: each ends with the documented exit
code, a message that names the culprit, a hint, and everything that was there before intact."""

from __future__ import annotations

import base64
import gzip
import json
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from bigmodel_cli.artifacts import manifest, tokenizer
from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from tests.conftest import DOCUMENTS, PREPARE, TRAIN, Cli, Result, environment, unchanged

GOOD = b"A good line of text, which is long enough to be kept.\n"
ALL_TRAIN = ("--tokenizer", "bytes", "--val", "0", "--test", "0")
RUN = "work/runs/default"
LAST = f"{RUN}/checkpoints/step-00000002"


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(table: Mapping[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(dict(table)), sink)
    return sink.getvalue().to_pybytes()


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def noise(count: int) -> bytes:
    """Random bytes: the same ones each time, and nothing that compresses."""
    return random.Random(0).randbytes(count)


def write(folder: Path, files: Mapping[str, bytes | None]) -> None:
    """Creates files; None is a folder."""
    for name, data in files.items():
        path = folder / name
        if data is None:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def documents(cli: Cli, split: str = "train") -> list[bytes]:
    """The bytes of each unit of a split, as its shards hold them."""
    codec = tokenizer.load(cli.work / "data" / "preprocessor")
    shards = Split(cli.work / "data", Workdir(cli.work).read_data().splits[split].shards)
    table = codec.token_bytes
    units = (shards.values("tokens", i, i + 1).tolist() for i in range(len(shards)))
    return [b"".join(table[token] for token in unit) for unit in units]


def edit(path: Path, **changes: Any) -> None:
    """Changes some keys of a JSON artifact, as if it had been written so."""
    document = {**json.loads(path.read_bytes()), **changes}
    document.pop("checksum", None)
    manifest.write_json(path, document)


def listed(wrong: list[Any]) -> str:
    return "\n".join(map(str, wrong))


def failure(result: Result, code: int) -> Mapping[str, Any]:
    """The one JSON document that a failed command with --json leaves on stdout."""
    assert result.code == code, str(result)
    document = json.loads(result.out)
    assert list(document) == ["error"], str(result)
    error = document["error"]
    assert set(error) == {"code", "message", "hint"}, str(result)
    assert error["code"] == code, str(result)
    assert error["message"], str(result)
    assert error["hint"], str(result)
    assert "error:" not in result.err, str(result)
    return dict(error)


# Sources -----------------------------------------------------------------------------------------

TABLE = {"text": [f"Row number {i} of the parquet file." for i in range(9)], "n": list(range(9))}
LIST = {"tags": [["a", "b"]], "text": ["Some text in the column."]}
UNUSABLE: dict[str, tuple[dict[str, bytes | None], str, list[str], str]] = {
    # what it is: (files, arguments, words in the message, word in the hint)
    "missing path": ({}, "nowhere.txt", ["`nowhere.txt`"], "file, folder, glob"),
    "glob that matches nothing": ({}, "'*.nope'", ["`*.nope`"], "glob"),
    "name longer than names can be": ({}, "x" * 5000, ["nothing at `xxx"], "file"),
    "name with a newline": ({}, "'a\nb.txt'", [r"`a\nb.txt`"], "file"),
    "empty file": ({"e.txt": b""}, "e.txt", ["nothing is left", "empty", "e.txt"], "source"),
    "file of spaces": ({"e.txt": b" \n\t \n"}, "e.txt", ["empty", "e.txt"], "source"),
    "byte order mark alone": ({"e.txt": b"\xef\xbb\xbf"}, "e.txt", ["empty", "e.txt"], "source"),
    "empty folder": ({"d": None}, "d", ["`d`"], ""),
    "folder of hidden files": ({"d/.hidden.txt": GOOD}, "d", ["`d`"], ""),
    "folder of binaries": ({"d/x.bin": noise(999)}, "d", ["unreadable", "x.bin"], "source"),
    "binary file": ({"x.bin": b"\x00\x01\x02" * 99}, "x.bin", ["unreadable", "binary"], "source"),
    "image": (
        {"x.png": b"\x89PNG\r\n\x1a\n" + noise(99)}, "x.png --task language", ["unreadable"],
        "source",
    ),
    "Latin-1": (
        {"l.txt": "Ça commence ici, à côté.".encode("latin-1")}, "l.txt",
        ["unreadable", "l.txt", "not UTF-8 at byte 0"], "source",
    ),
    "UTF-16 without its mark": (
        {"u.txt": "A line of text.\n".encode("utf-16-le") * 9}, "u.txt", ["u.txt"], "source",
    ),
    "JSON lines in UTF-16 without its mark": (
        {"u.jsonl": "".join(f'{{"text": "{t}"}}\n' for t in DOCUMENTS).encode("utf-16-be")},
        "u.jsonl", ["unreadable", "u.jsonl, line 1"], "",
    ),
    "JSON lines, all malformed": (
        {"m.jsonl": b'{"text": \nnonsense\n{]}\n'}, "m.jsonl",
        ["nothing is left", "3 malformed", "m.jsonl, line 1"], "source",
    ),
    "JSON that is one array of numbers": (
        {"m.jsonl": json.dumps([*range(60)]).encode()}, "m.jsonl",
        ["1 malformed", "m.jsonl, line 1"], "source",
    ),
    "JSON lines of numbers": ({"m.jsonl": b"1\n2\n"}, "m.jsonl", ["2 malformed"], "source"),
    "JSON lines with halves of surrogates": (
        {"m.jsonl": b'{"text": "half a \\ud83d pair"}\n' * 2}, "m.jsonl", ["2 malformed"], "source",
    ),
    "JSON lines without the column": (
        {"m.jsonl": jsonl({"text": "Some text here.", "id": "a"})}, "m.jsonl --column text=body",
        ["`m.jsonl`", "`body`"], "`text`, `id`",
    ),
    "JSON lines with two columns of text": (
        {"m.jsonl": jsonl({"left": "Some text here.", "right": "Some more."})}, "m.jsonl",
        ["`m.jsonl`", "column"], "`left`, `right`",
    ),
    "CSV of nothing": ({"c.csv": b""}, "c.csv", ["nothing is left"], "source"),
    "CSV that ends with its header": ({"c.csv": b"text,id\n"}, "c.csv", ["nothing"], "source"),
    "CSV that begins with an empty line": ({"c.csv": b"\ntext\n"}, "c.csv", ["column"], ""),
    "CSV without the column": (
        {"c.csv": b"text,id\nSome text here.,1\n"}, "c.csv --column text=body",
        ["`c.csv`", "`body`"], "`text`, `id`",
    ),
    "gzip, truncated": (
        {"t.txt.gz": half(gzip.compress(noise(9999).hex().encode()))}, "t.txt.gz",
        ["`t.txt.gz`", "cannot be read"], "truncated",
    ),
    "gzip in name only": ({"t.txt.gz": GOOD}, "t.txt.gz", ["`t.txt.gz`"], "--exclude"),
    "gzip with a flipped bit": (
        {"t.gz": (data := gzip.compress(GOOD * 99))[:-5] + b"\x55" + data[-4:]}, "t.gz",
        ["`t.gz`", "cannot be read"], "--exclude",
    ),
    "gzip of nothing at all": ({"t.gz": b""}, "t.gz", ["t.gz"], ""),
    "zstd, truncated": (
        {"t.txt.zst": half(zst(noise(9999).hex().encode()))}, "t.txt.zst",
        ["`t.txt.zst`", "cannot be read"], "truncated",
    ),
    "zstd in name only": ({"t.txt.zst": GOOD}, "t.txt.zst", ["`t.txt.zst`"], "--exclude"),
    "parquet, truncated": (
        {"p.parquet": half(parquet(TABLE))}, "p.parquet", ["`p.parquet`"], "truncated",
    ),
    "parquet of nothing at all": ({"p.parquet": b""}, "p.parquet", ["`p.parquet`"], ""),
    "parquet with a flipped bit": (
        {"p.parquet": b"PAR1" + b"\xff" * 60 + parquet(TABLE)[64:]}, "p.parquet",
        ["`p.parquet`"], "",
    ),
    "parquet without text": (
        {"p.parquet": parquet({"n": [1, 2], "m": [3, 4]})}, "p.parquet", ["column"], "`n`, `m`",
    ),
    "parquet without rows": ({"p.parquet": parquet({"text": pa.array([], "string")})}, "p.parquet",
                             ["nothing is left"], ""),
    "parquet whose column holds lists": (
        {"p.parquet": parquet(LIST)}, "p.parquet --column text=tags", ["`p.parquet`"], "",
    ),
    "parquet whose column holds no text": (
        {"p.parquet": parquet({"text": [b"\xff\xfe" * 9]})}, "p.parquet", ["`p.parquet`"], "",
    ),
    "parquet, compressed outside too": (
        {"p.parquet.gz": gzip.compress(parquet(TABLE))}, "p.parquet.gz", ["`p.parquet.gz`"],
        "decompress",
    ),
    "one document that is too short": ({"s.txt": b"tiny"}, "s.txt", ["1 too_short"], "--min-chars"),
    "one document for three splits": ({"s.txt": GOOD}, "s.txt", ["1 documents", "too few"], "--"),
    "everything excluded": ({"d/a.txt": GOOD}, "d --exclude '*'", ["`d`"], "--exclude"),
    "more lost than allowed": (
        {"m.jsonl": jsonl(*({"text": d} for d in DOCUMENTS)) + b"nonsense\n"},
        "m.jsonl --max-loss 0.01", ["1 of 61 rows", "--max-loss 0.01", "line 61"], "allow more",
    ),
    "test split that is not there": (
        {}, "corpus.jsonl --test nofile.txt", ["`nofile.txt`"], "file",
    ),
    "source that is its own test split": (
        {}, "corpus.jsonl --test corpus.jsonl", ["train split is empty"], "",
    ),
    "device that never ends": ({}, "/dev/zero", ["`/dev/zero`"], ""),
    "device of nothing": ({}, "/dev/null", ["`/dev/null`"], ""),
    "nothing on standard input": ({}, "-", ["nothing is left", "stdin"], ""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_sources_are_named_and_leave_the_old_data(cli: Cli, case: str) -> None:
    files, arguments, words, hint = UNUSABLE[case]
    write(cli.cwd, files)
    command = ["prepare", *shlex.split(arguments), "--tokenizer", "bytes"]
    with unchanged(cli.work):
        cli.fails(*command, code=4, says=words, hint=[hint], timeout=6)
    if case == "missing path":  # bytes that are the same stand for the others
        assert "up to date" in cli.prepare().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ["no source"]),
        ("corpus.jsonl --val 2", ["--val", "`2`"]),
        ("corpus.jsonl --val -1", ["--val", "`-1`"]),
        ("corpus.jsonl --val nan", ["--val", "`nan`"]),
        ("corpus.jsonl --test inf", ["--test", "`inf`"]),
        ("corpus.jsonl --test 1", ["--test", "`1`"]),
        ("corpus.jsonl --val 0.6 --test 0.6", ["0.6"]),  # more than there is
        ("corpus.jsonl --val 0.5 --test 0.5", ["0.5"]),  # nothing left to train on
        ("corpus.jsonl --task langage", ["`langage`"]),
        ("corpus.jsonl --vocab-size 10", ["`10`"]),
        ("corpus.jsonl --min-chars -1", ["`-1`"]),
        ("corpus.jsonl --max-loss 2", ["`2"]),
        ("corpus.jsonl --seed x", ["`x`"]),
        ("corpus.jsonl --seed 18446744073709551616", ["--seed", "`18446744073709551616`"]),
        ("corpus.jsonl --tokenizer nofile", ["`nofile`"]),
        ("corpus.jsonl --tokenizer corpus.jsonl", ["`corpus.jsonl`"]),
        ("-x.txt", ["-x"]),
        ("''", ["``"]),  # an unset variable of a script, not the current folder
        ("corpus.jsonl --val ''", ["--val"]),
        ("corpus.jsonl --workdir ''", ["--workdir"]),
        ("- -", ["`-`"]),  # standard input can be read once
        ("- --val -", ["`-`"]),
    ],
)
def test_wrong_usage_of_prepare_leaves_the_old_data(
    cli: Cli, arguments: str, words: list[str]
) -> None:
    with unchanged(cli.cwd):
        cli.fails("prepare", *shlex.split(arguments), code=2, says=words, stdin=GOOD * 40)
    assert "up to date" in cli.prepare().out


TEXT = {"text": "A row of text that is good."}
COUNTED: dict[str, tuple[str, bytes, dict[str, int], str, int]] = {
    # what it is: (file, its bytes, rows lost by reason, where the first one is, rows kept)
    "binary": ("x.bin", b"\x00" * 99, {"unreadable": 1}, "x.bin (binary)", 0),
    "invalid UTF-8": (
        "l.txt", b"caf\xe9 au lait, s'il vous", {"unreadable": 1}, "l.txt (not UTF-8 at byte 3)", 0,
    ),
    "UTF-16": ("u.txt", GOOD.decode().encode("utf-16-le"), {"unreadable": 1}, "u.txt", 0),
    "empty": ("e.txt", b"", {"empty": 1}, "e.txt", 0),
    "malformed line": (
        "m.jsonl", jsonl(TEXT) + b'{"text": "cut o\n' + jsonl({"text": "Another good row."}),
        {"malformed": 1}, "m.jsonl, line 2", 2,
    ),
    "lines that are no objects": (
        "m.jsonl", jsonl(TEXT, [1], 5, "text", None, True), {"malformed": 5}, "m.jsonl, line 2", 1,
    ),
    "text that is null, a number, a list, absent": (
        "m.jsonl", jsonl(TEXT, {"text": None}, {"text": 5}, {"text": ["a"]}, {"id": 1}),
        {"no_text": 2, "malformed": 2}, "", 1,
    ),
    "first row without the column": (
        "m.jsonl", jsonl({"id": 1}, TEXT), {"no_text": 1}, "m.jsonl, line 1", 1,
    ),
    "first row that is empty": ("m.jsonl", jsonl({}, TEXT), {"no_text": 1}, "m.jsonl, line 1", 1),
    "first row whose text is a number": (
        "m.jsonl", jsonl({"text": 5}, TEXT), {"malformed": 1}, "m.jsonl, line 1", 1,
    ),
    "half of a surrogate pair": (
        "m.jsonl", jsonl(TEXT) + b'{"text": "broken \\udc00 off"}\n',
        {"malformed": 1}, "m.jsonl, line 2", 1,
    ),
    "half of a surrogate pair in another field": (
        "m.jsonl", b'{"text": "A good row of text.", "id": "\\ud800"}\n', {}, "", 1,
    ),
    "line that is nested too deep": (
        "m.jsonl", jsonl(TEXT) + b'{"text": ' + b"[" * 200_000 + b"\n",
        {"malformed": 1}, "m.jsonl, line 2", 1,
    ),
    "number of 10,000 digits": (
        "m.jsonl", jsonl(TEXT) + b'{"text": "Some text.", "n": ' + b"9" * 10_000 + b"}\n",
        {}, "", 2,
    ),
    "line of invalid UTF-8": (
        "m.jsonl", jsonl(TEXT) + b'{"text": "caf\xe9 au lait"}\n',
        {"unreadable": 1}, "m.jsonl, line 2", 1,
    ),
    "JSON lines with Windows line ends, a byte order mark and blank lines": (
        "m.jsonl", b"\xef\xbb\xbf" + jsonl(TEXT).replace(b"\n", b"\r\n\r\n"), {}, "", 1,
    ),
    "ragged rows": (
        "c.csv", b"id,text\n1,A row of text here.\n2\n3,Another row,with more\n,,\n",
        {"malformed": 3}, "c.csv, line 3", 1,
    ),
    "NUL in a cell": (
        "c.csv", b"id,text\n1,A row of text here.\n2,A NUL \x00 in a row.\n",
        {"malformed": 1}, "c.csv, line 3", 1,
    ),
    "cell of invalid UTF-8": (
        "c.csv", b"id,text\n1,A row of text here.\n2,Some caf\xe9 au lait\n",
        {"unreadable": 1}, "c.csv, line 3", 1,
    ),
    "control characters": (
        "s.txt", b"A line with \x1b[31mcolour and a bell\x07.\n", {}, "", 1,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", COUNTED)
def test_what_is_lost_is_counted_and_the_rest_goes_on(empty: Cli, case: str) -> None:
    name, data, lost, where, kept = COUNTED[case]
    write(empty.cwd, {name: data})
    empty.works("prepare", "corpus.jsonl", name, *ALL_TRAIN)
    ledger = empty.manifest()["ledger"]
    assert {reason: entry["rows"] for reason, entry in ledger["dropped"].items()} == lost
    if where:
        assert where in next(iter(ledger["dropped"].values()))["where"][0]
    assert ledger["kept"]["rows"] == len(DOCUMENTS) + kept
    assert ledger["in"]["rows"] == len(DOCUMENTS) + kept + sum(lost.values())
    assert len(documents(empty)) == len(DOCUMENTS) + kept


@pytest.mark.slow
def test_cells_with_newlines_quotes_and_commas_are_kept_as_they_are(empty: Cli) -> None:
    texts = ['She said "so", and left.', "Two lines,\nor\r\nthree,", "  spaces around, kept  "]
    cells = "".join('"' + text.replace('"', '""') + '",1\n' for text in texts)
    write(empty.cwd, {"c.csv": b"\xef\xbb\xbf" + ("text,n\n" + cells).encode()})
    empty.works("prepare", "c.csv", *ALL_TRAIN)
    assert [d.decode() for d in documents(empty)] == texts


def test_a_categorical_column_is_text(empty: Cli) -> None:
    column = pa.array(["A row of text.", "Another row of text."]).dictionary_encode()
    write(empty.cwd, {"p.parquet": parquet({"text": column})})
    empty.works("prepare", "p.parquet", *ALL_TRAIN)
    assert documents(empty) == [b"A row of text.", b"Another row of text."]


@pytest.mark.slow
def test_a_loop_of_links_is_no_obstacle_and_no_duplicate(empty: Cli) -> None:
    write(empty.cwd, {"d/a.txt": GOOD})
    (empty.cwd / "d" / "again").symlink_to(".", target_is_directory=True)
    (empty.cwd / "d" / "self.txt").symlink_to("self.txt")
    (empty.cwd / "d" / "gone.txt").symlink_to("nowhere")
    for source in ("d", "d/**/*.txt"):
        empty.works("prepare", source, *ALL_TRAIN)
        assert empty.manifest()["ledger"]["in"]["rows"] == 1, source
    for source in ("d/self.txt", "d/gone.txt"):
        empty.fails("prepare", source, code=4, says=[f"`{source}`"])


@pytest.mark.slow
def test_a_huge_number_of_tiny_documents(empty: Cli) -> None:
    rows = b"".join(b'{"text": "document %d"}\n' % i for i in range(100_000))
    write(empty.cwd, {"tiny.jsonl": rows})
    empty.works("prepare", "tiny.jsonl", "--tokenizer", "bytes")
    splits = empty.manifest()["splits"]
    assert sum(part["units"] for part in splits.values()) == 100_000
    assert set(documents(empty, "test")) < {b"document %d" % i for i in range(100_000)}


@pytest.mark.slow
def test_names_that_begin_with_dashes_or_hold_spaces_are_only_names(empty: Cli) -> None:
    names = ["--val.txt", "-w", "a b.txt", "ü.txt", "%s{x}`.txt", "[a].txt"]
    write(empty.cwd, {f"d/{n}": f"The text of the file {n}.".encode() for n in names})
    empty.works("prepare", "d", *ALL_TRAIN)
    assert len(documents(empty)) == len(names)
    shutil.copy(empty.cwd / "d" / "-w", empty.cwd / "-w")
    empty.works("prepare", *ALL_TRAIN, "--", "-w")
    empty.works("prepare", "d/[a].txt", *ALL_TRAIN)
    assert documents(empty) == [b"The text of the file [a].txt."]


@pytest.mark.slow
@pytest.mark.parametrize("name", [b"caf\xe9.txt", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_file_name_that_is_not_utf_8_is_only_a_name(empty: Cli, name: bytes) -> None:
    (empty.cwd / "d").mkdir()
    (empty.cwd / "d" / os.fsdecode(name)).write_bytes(GOOD)
    empty.works("prepare", "d", *ALL_TRAIN)
    assert documents(empty) == [GOOD]
    assert "up to date" in empty.works("prepare", "d", *ALL_TRAIN).out


def test_a_missing_file_with_a_name_that_is_not_utf_8_is_one_json_document(cli: Cli) -> None:
    result = cli("prepare", os.fsdecode(b"caf\xe9.txt"), "--json")
    assert "caf" in failure(result, 4)["message"]


@pytest.mark.slow
def test_the_work_directory_is_no_source_of_its_own(empty: Cli) -> None:
    command = ("prepare", ".", *ALL_TRAIN)
    empty.works(*command)
    names = [item["name"] for item in empty.manifest()["recipe"]["inputs"]]
    assert names == ["corpus.jsonl"]
    assert "up to date" in empty.works(*command).out


@pytest.mark.slow
def test_two_sources_of_one_name_stay_fresh(empty: Cli) -> None:
    write(empty.cwd, {"a/data.txt": GOOD, "b/data.txt": GOOD.upper()})
    command = ("prepare", "a/data.txt", "--val", "b/data.txt", "--test", "0", "--tokenizer",
               "bytes")  # fmt: skip
    empty.works(*command)
    assert "up to date" in empty.works(*command).out
    assert json.loads(empty.works("status", "--json").out)["data"]["state"] == "fresh"


@pytest.mark.slow
def test_a_pipe_that_can_be_read_once_is_not_taken_for_an_empty_file(empty: Cli) -> None:
    program = f"{shlex.quote(sys.executable)} -m bigmodel_cli"
    done = subprocess.run(
        ["bash", "-c", f"{program} prepare <(cat corpus.jsonl) {shlex.join(ALL_TRAIN)}"],
        cwd=empty.cwd, env=environment({}), capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if done.returncode == 0:
        assert empty.manifest()["ledger"]["in"]["bytes"] > 2000
    else:
        assert done.returncode in (2, 4), done.stderr
        assert "empty" not in done.stderr
        assert "`-`" in done.stderr


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe"])
def test_special_tokens_in_a_text_are_plain_text(empty: Cli, kind: str) -> None:
    texts = [
        "Before <|endoftext|> and after <|pad|>.",
        "<|im_start|>system<|im_end|> <|mask|>",
        "<|endoftext|>",
        "<|spare_0|><|endoftext|><|endoftext|>",
    ]
    write(empty.cwd, {"s.jsonl": jsonl(*({"text": t} for t in texts))})
    empty.works("prepare", "s.jsonl", "--val", "0", "--test", "0", "--tokenizer", kind)
    codec = tokenizer.load(empty.work / "data" / "preprocessor")
    shards = Split(empty.work / "data", Workdir(empty.work).read_data().splits["train"].shards)
    for number, text in enumerate(texts):
        start, *inside, end = shards.values("tokens", number, number + 1).tolist()
        assert start == end == codec.endoftext
        assert not set(inside) & set(codec.specials)
        assert codec.decode(inside) == text


# Values ------------------------------------------------------------------------------------------

USAGE = [
    # (command, words in the message, word in the hint)
    ("trian", ["trian"], ""),
    ("train --stepz 2", ["--stepz"], ""),
    ("train --steps", ["--steps"], ""),
    ("train extra", ["extra"], ""),
    ("train --steps x", ["--steps", "`x`"], ""),
    ("train --steps 0", ["--steps", "`0`"], ""),
    ("train --steps -3", ["--steps", "`-3`"], ""),
    ("train --steps 1.5", ["--steps", "`1.5`"], ""),
    ("train --steps ''", ["--steps", "``"], ""),
    ("train --learning-rate nan", ["--learning-rate", "`nan`"], ""),
    ("train --learning-rate 0", ["--learning-rate", "`0"], ""),
    ("train --learning-rate 1,5", ["--learning-rate", "`1,5`"], ""),
    ("train --minutes -1", ["--minutes", "`-1"], ""),
    ("train --minutes inf", ["--minutes", "`inf`"], ""),
    ("train --epochs 0", ["--epochs", "`0"], ""),
    ("train --tokens 0", ["--tokens", "`0`"], ""),
    ("train --dropout 1", ["--dropout", "`1"], ""),
    ("train --warmup 2", ["--warmup", "`2"], ""),
    ("train --batch-size 0", ["--batch-size", "`0`"], ""),
    ("train --micro-batch 0", ["--micro-batch", "`0`"], ""),
    ("train --keep 0", ["--keep", "`0`"], ""),
    ("train --context 1", ["--context", "`1`"], ""),
    ("train --seed -1", ["--seed", "`-1`"], ""),
    ("train --size huge", ["--size", "`huge`"], "nano"),
    ("train --size nan", ["--size", "`nan`"], "did you mean `nano`"),
    ("train --model transfomer", ["--model", "`transfomer`"], "did you mean `transformer`"),
    ("train --cell gruu", ["--cell", "`gruu`"], "did you mean `gru`"),
    ("train --optimizer sgd", ["--optimizer", "`sgd`"], "adamw"),
    ("train --precision fp8", ["--precision", "`fp8`"], "fp32"),
    ("train --device tpu", ["--device", "`tpu`"], "cpu"),
    ("train --objective masqued", ["--objective", "`masqued`"], "did you mean `masked`"),
    ("train --run new --steps 2 --minutes 1", ["--steps", "--minutes"], ""),
    ("train --run new --tokens 9 --epochs 1 --steps 2", ["--epochs", "--tokens"], ""),
    ("train --run new --steps 2 --context 100000", ["100,000", "1,835"], "shorter"),
    ("train --run new --steps 2 --width 32 --heads 3", ["--width 32", "--heads 3"], "multiple"),
    ("train --run new --steps 2 --width 32 --heads 2 --kv-heads 3", ["--kv-heads 3"], ""),
    ("train --run new --width 30 --heads 4 --steps 2", ["--width", "30"], "multiple"),
    ("train --set stepz=1", ["`stepz`", "--set"], "did you mean `steps`"),
    ("train --set steps", ["`--set steps`"], "--set val=0.1"),
    ("train --set =5", ["unknown key"], "steps"),
    ("train --set steps=x", ["`x`"], ""),
    ("evaluate --split tset", ["--split", "`tset`"], "did you mean `test`"),
    ("evaluate --samples -1", ["--samples", "`-1`"], ""),
    ("evaluate --checkpoint first", ["--checkpoint", "`first`"], "best"),
    ("evaluate --checkpoint ../x", ["--checkpoint", "`../x`"], "best"),
    ("evaluate --require 'bits_per_bite<=2'", ["bits_per_bite"], "did you mean `bits_per_byte`"),
    ("evaluate --require 'bits_per_byte=2'", ["`--require bits_per_byte=2`"], "<="),
    ("evaluate --require ''", ["--require"], "<="),
    ("evaluate --require 'bits_per_byte<=two words'", ["two words"], "<="),
    ("evaluate --require 'bits_per_byte<=nan'", ["`nan`"], "baseline"),
    ("evaluate --require 'bits_per_byte<=1e999'", ["1e999"], ""),
    ("evaluate --require 'bits_per_byte<=basline'", ["`basline`"], "did you mean `baseline`"),
    ("evaluate --require 'bits_per_byte<=baseline*1e999'", ["1e999"], ""),
    ("evaluate --require 'bits_per_byte<=previous'", ["previous"], "--against"),
    ("deploy --checkpoint newest", ["--checkpoint", "`newest`"], "best"),
    ("deploy --port 99999", ["--port", "`99999`"], ""),
    ("deploy --port http", ["--port", "`http`"], ""),
    ("predict a b", ["b"], ""),
    ("predict a --max-tokens 0", ["--max-tokens", "`0`"], ""),
    ("predict a --max-tokens 9999999999", ["--max-tokens", "`9999999999`"], ""),
    ("predict a --temperature -1", ["--temperature", "`-1"], ""),
    ("predict a --temperature nan", ["--temperature", "`nan`"], ""),
    ("predict a --top-p 2", ["--top-p", "`2"], ""),
    ("predict a --batch-size 0", ["--batch-size", "`0`"], ""),
    ("predict a --stop ''", ["--stop"], ""),
    ("predict a --seed 99999999999999999999", ["--seed", "`99999999999999999999`"], ""),
    ("status --run default", ["--run"], ""),
    ("evaluate --config nowhere.toml", ["`nowhere.toml`"], "TOML"),
    ("evaluate --config .", ["`.`"], ""),
    ("evaluate --config corpus.jsonl", ["`corpus.jsonl`", "line 1"], ""),
    *((f"{c} --run ../default", ["`../default`"], "letters")
      for c in ("train", "evaluate", "deploy", "predict a")),
    *((f"train --run {name}", [f"`{name.strip(chr(39))}`"], "letters")
      for name in ("''", ".hidden", "a/b", "..", "'a b'", "x" * 101, "ü")),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("command", "words", "hint"), USAGE, ids=[c[:60] for c, *_ in USAGE])
def test_wrong_usage_is_named_and_changes_nothing(
    cli: Cli, command: str, words: list[str], hint: str
) -> None:
    cli.refuses(*shlex.split(command), code=2, says=words, hint=[hint])


@pytest.mark.parametrize(
    "more", ["--seed 99999999999999999999", "--threads 99999999999", "--epochs 1e308"]
)
def test_a_number_that_no_machine_has_is_wrong_usage(cli: Cli, more: str) -> None:
    length = () if "epochs" in more else ("--steps", "2")
    flag, value = more.split()
    cli.fails(*TRAIN[:-2], *length, flag, value, "--run", "new", code=2, says=[flag])


@pytest.mark.parametrize(
    ("stage", "text", "words", "hint"),
    [
        ("train", "[train]\nsteps = 2\nlearning = 3\n", ["`learning`", "recipe"], "learning_rate"),
        ("train", "[trian]\nsteps = 2\n", ["`trian`", "r.toml"], "did you mean `train`"),
        ("train", "steps = 2\n", ["`steps`", "r.toml"], "train"),
        ("train", "[train\nsteps = 2\n", ["r.toml", "line 1"], ""),
        ("train", "[train]\nsteps = 2\nsteps = 3\n", ["r.toml", "line 3"], ""),
        ("train", '[train]\nsteps = "many"\n', ["--steps", "`many`"], ""),
        ("train", "[train]\nsteps = 2.5\n", ["--steps", "`2.5`"], ""),
        ("train", "[train]\nsteps = true\n", ["--steps", "rue`"], ""),
        ("train", "[train]\nsteps = [1, 2]\n", ["--steps", "[1, 2]"], ""),
        ("train", "[train.steps]\nmost = 2\n", ["--steps"], ""),
        ("train", "[train]\nlearning_rate = 2020-01-01\n", ["--learning-rate"], ""),
        ("train", "[train]\nlearning_rate = nan\n", ["--learning-rate", "`nan`"], ""),
        ("train", "[train]\nsize = ['nano']\n", ["--size", "nano"], ""),
        ("prepare", "[prepare]\nval = [0.1]\n", ["--val", "0.1"], ""),
        ("evaluate", "[evaluate]\nrequire = 'loss<=x'\n", ["`x`"], ""),
        ("evaluate", "[evaluate]\nforce = 'perhaps'\n", ["--force", "`perhaps`"], ""),
        ("predict", "[predict]\nmax_tokens = {a = 1}\n", ["--max-tokens"], ""),
    ],
)
def test_a_bad_recipe_is_named_and_changes_nothing(
    cli: Cli, stage: str, text: str, words: list[str], hint: str
) -> None:
    write(cli.cwd, {"r.toml": text.encode()})
    argument = {"prepare": ["corpus.jsonl"], "predict": ["a"]}.get(stage, [])
    with unchanged(cli.work):
        cli.fails(stage, *argument, "--config", "r.toml", code=2, says=words, hint=[hint])


def test_a_recipe_that_is_not_utf_8_or_nested_too_deep_is_named(cli: Cli) -> None:
    for data in (b"[train]\nsize = '\xff'\n", b"a = " + b"[" * 100_000):
        write(cli.cwd, {"r.toml": data})
        cli.fails("train", "--config", "r.toml", code=2, says=["`r.toml`"])


@pytest.mark.parametrize(
    ("name", "value", "words", "hint"),
    [
        ("BIGMODEL_TRAIN_STEPZ", "2", ["`stepz`", "environment"], "did you mean `steps`"),
        ("BIGMODEL_TRAIN_STEPS", "x", ["--steps", "`x`"], ""),
        ("BIGMODEL_TRAIN_SIZE", "nan", ["--size", "`nan`"], "did you mean `nano`"),
        ("BIGMODEL_TRAIN_TIE", "perhaps", ["--tie", "`perhaps`"], ""),
    ],
)
def test_a_bad_environment_is_named(
    cli: Cli, name: str, value: str, words: list[str], hint: str
) -> None:
    cli.refuses("train", code=2, says=words, hint=[hint], env={name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    ["--steps 2 --minutes 1", "--steps 2 --heads 3", "--steps 2 --kv-heads 3",
     "--steps 2 --context 100000", "--steps 2 --size huge", "--width 30 --heads 4"],
)  # fmt: skip
def test_a_restart_with_wrong_options_does_not_destroy_the_run(cli: Cli, more: str) -> None:
    with unchanged(cli.work):
        cli.fails(*TRAIN[:-2], "--restart", *more.split(), code=2)
    assert "up to date" in cli.train().out


def test_options_that_differ_from_the_runs_are_listed(cli: Cli) -> None:
    with unchanged(cli.work):
        cli.fails(
            *TRAIN, "--width", "64", "--seed", "7", code=2,
            says=["`default`", "width: 32 → 64", "seed: 0 → 7"], hint=["--restart", "--run"],
        )  # fmt: skip
    assert "up to date" in cli.train().out


@pytest.mark.slow
def test_data_prepared_anew_are_not_mixed_with_the_run(cli: Cli) -> None:
    cli.prepare("--min-chars", "1")
    with unchanged(cli.work):
        cli.fails(*TRAIN, code=2, says=["the data have changed"], hint=["--restart"])
        for command in ("evaluate", "deploy --force"):
            cli.fails(*command.split(), code=5, says=["`default`", "other data"], hint=["train"])


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "steps"), [("1e30", "3"), ("1e38", "1"), ("1e38", "2")])
def test_a_step_too_large_is_divergence_even_at_the_last_update(
    cli: Cli, rate: str, steps: str
) -> None:
    command = (*TRAIN[:-1], steps, "--optimizer", "adamw", "--learning-rate", rate, "--run", "new")
    cli.fails(*command, code=6, says=["diverged"], hint=["--learning-rate"])


def test_a_rate_that_a_float_does_not_hold_is_named(cli: Cli) -> None:
    result = cli(*TRAIN, "--run", "new", "--learning-rate", "1e39")
    assert result.code in (2, 6), str(result)
    assert "--learning-rate" in " ".join(result.error())


@pytest.mark.slow
def test_a_perplexity_beyond_all_numbers_is_no_bug(cli: Cli) -> None:
    command = (*TRAIN[:-1], "3", "--optimizer", "adamw", "--learning-rate", "1000", "--run", "new")
    result = cli(*command)
    assert result.code in (0, 6), str(result)
    log = (cli.work / "runs" / "new" / "log.jsonl").read_text()
    assert "Infinity" not in log  # which is no JSON
    if not result.code:
        for stage in ("evaluate", "status", "deploy"):
            cli.works(stage, *(() if stage == "status" else ("--run", "new")))


@pytest.mark.slow
def test_a_model_larger_than_memory_leaves_the_way_free_for_a_smaller_one(cli: Cli) -> None:
    huge = [*TRAIN, "--run", "new", "--width", "2000000000"]
    cli.fails(*huge, code=7, says=["memory"], hint=["--size"], memory=16 << 30)
    cli.train("--run", "new")


# Order -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("train", "bigmodel prepare"),
        ("evaluate", "bigmodel train"),
        ("deploy", "bigmodel train"),
        ("predict a", "bigmodel deploy"),
        ("predict", "bigmodel deploy"),
    ],
)
def test_a_stage_before_its_turn_names_the_command_to_run(
    empty: Cli, command: str, hint: str
) -> None:
    with unchanged(empty.cwd):
        empty.fails(*command.split(), code=5, says=["work"], hint=[hint])
    empty.prepare()
    if command != "train":
        with unchanged(empty.cwd):
            empty.fails(*command.split(), code=5, says=["work"], hint=[hint])


@pytest.mark.parametrize("command", ["evaluate", "deploy", "predict a"])
def test_a_run_that_is_not_there_lists_those_that_are(cli: Cli, command: str) -> None:
    cli.refuses(*command.split(), "--run", "defualt", code=5, says=["`defualt`"], hint=["default"])


@pytest.mark.parametrize("command", ["evaluate", "deploy"])
def test_a_checkpoint_that_is_not_there_lists_those_that_are(cli: Cli, command: str) -> None:
    words = ["`step-00000099`"]
    cli.refuses(command, "--checkpoint", "step-99", code=5, says=words, hint=["step-00000002"])


@pytest.mark.parametrize("folder", ["nowhere", "corpus.jsonl", ".", "work/data"])
def test_a_folder_that_is_no_bundle_is_named(cli: Cli, folder: str) -> None:
    cli.refuses("predict", "a", "--bundle", folder, code=5, says=[folder], hint=["deploy"])


@pytest.mark.slow
def test_an_evaluation_without_its_split_says_how_to_get_one(empty: Cli) -> None:
    empty.works("prepare", "corpus.jsonl", *ALL_TRAIN)
    empty.train()
    empty.fails("evaluate", code=4, says=["test split is empty"], hint=["--test"])
    empty.works("evaluate", "--split", "train")
    empty.works("deploy")


# Damage ------------------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    """One bit in the middle; JSON is no UTF-8 after it."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated": half,
    "flipped": flip,
    "emptied": lambda _: b"",
    "gone": lambda _: None,
    "zeroed": lambda data: bytes(len(data)),
}
NEW = " ".join((*TRAIN, "--run", "new"))
AGAIN = " ".join(TRAIN)
VICTIMS = [
    # (file, the command that reads it)
    ("work/data/train-*.safetensors", NEW),
    ("work/data/val-*.safetensors", NEW),
    ("work/data/test-*.safetensors", "evaluate --force"),
    ("work/data/test-*.safetensors", "deploy --force"),
    ("work/data/preprocessor/tokenizer.json", NEW),
    ("work/data/preprocessor/task.json", NEW),
    ("work/data/manifest.json", NEW),
    ("work/data/manifest.json", "evaluate"),
    ("work/data/manifest.json", "deploy"),
    (f"{RUN}/config.json", AGAIN),
    (f"{RUN}/config.json", "evaluate"),
    (f"{RUN}/config.json", "deploy"),
    (f"{RUN}/preprocessor/tokenizer.json", "evaluate --force"),
    (f"{RUN}/preprocessor/task.json", "evaluate --force"),
    (f"{RUN}/preprocessor/tokenizer.json", "deploy --force"),
    (f"{RUN}/preprocessor/task.json", "deploy --force"),
    (f"{LAST}/model.safetensors", "evaluate --force"),
    (f"{LAST}/model.safetensors", "deploy --force"),
    (f"{LAST}/state.json", "evaluate --force"),
    (f"{RUN}/checkpoints/best.json", "evaluate --force"),
    (f"{RUN}/checkpoints/best.json", "deploy --force"),
    *((f"{RUN}/bundle/{name}", "predict a") for name in (
        "bigmodel.json", "model.safetensors", "tokenizer.json", "task.json", "config.json",
        "README.md", "receipt.json",
    )),
]  # fmt: skip


def damage(cli: Cli, pattern: str, how: Callable[[bytes], bytes | None]) -> Path:
    (path,) = cli.cwd.glob(pattern)
    data = how(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "flipped"])
@pytest.mark.parametrize(("victim", "command"), VICTIMS, ids=[f"{v}, {c}" for v, c in VICTIMS])
def test_damage_is_named_and_never_worked_with(
    cli: Cli, victim: str, command: str, kind: str
) -> None:
    path = damage(cli, victim, DAMAGE[kind])
    name, hint = path.name, "bigmodel"
    if kind == "gone" and name == "config.json" and command == AGAIN:
        cli.train()  # without its configuration there is no run, so it begins anew
        return
    if kind == "gone" and name == "state.json":  # what makes it a checkpoint
        name, hint = path.parent.name, "there are"
    with unchanged(cli.work / "data"), unchanged(cli.work / "runs" / "default"):
        cli.fails(*command.split(), code=5, says=[name], hint=[hint])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gone", "emptied", "zeroed"])
@pytest.mark.parametrize(("victim", "command"), VICTIMS, ids=[f"{v}, {c}" for v, c in VICTIMS])
def test_missing_emptied_and_zeroed_files_are_named(
    cli: Cli, victim: str, command: str, kind: str
) -> None:
    test_damage_is_named_and_never_worked_with(cli, victim, command, kind)


def swap(data: bytes) -> bytes:
    """A preprocessor with as many bytes that is valid JSON, but another one."""
    if b'"context": 32' in data:
        return data.replace(b'"context": 32', b'"context": 99')
    if b'"context": 256' in data:
        return data.replace(b'"context": 256', b'"context": 999')
    first, second = (re.search(rb'"%c": (\d+)' % letter, data) for letter in b"ab")
    assert first
    assert second
    assert len(first[1]) == len(second[1])
    swapped = data.replace(first[0], b"\0").replace(second[0], b'"b": ' + first[1])
    return swapped.replace(b"\0", b'"a": ' + second[1])


@pytest.mark.parametrize(
    ("folder", "command"),
    [("work/data/preprocessor", NEW), (f"{RUN}/preprocessor", "evaluate --force"),
     (f"{RUN}/preprocessor", "deploy --force"), (f"{RUN}/bundle", "predict a")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tokenizer.json", "task.json"])
def test_a_preprocessor_that_was_exchanged_is_not_worked_with(
    cli: Cli, folder: str, name: str, command: str
) -> None:
    damage(cli, f"{folder}/{name}", swap)
    cli.fails(*command.split(), code=5, says=[name], hint=["bigmodel"])


def unfinish(cli: Cli) -> None:
    """The run as it is when training was stopped right after its last checkpoint but for the end:
    of a finished run, only sizes are looked at, as nothing more is learned from it."""
    edit(cli.cwd / LAST / "state.json", finished=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_training_falls_back_aloud_to_the_checkpoint_before(cli: Cli, name: str, kind: str) -> None:
    whole = (cli.cwd / LAST / "model.safetensors").read_bytes()
    unfinish(cli)
    damage(cli, f"{LAST}/{name}", DAMAGE[kind])
    result = cli(*TRAIN)
    assert result.code == 0, str(result)
    assert "resuming at step 1" in result.err
    if (name, kind) != ("state.json", "gone"):  # without it, there was no checkpoint
        assert f"step-00000002/{name}" in result.err
        assert "warning" in result.err
    assert (cli.cwd / LAST / "model.safetensors").read_bytes() == whole
    assert "up to date" in cli.train().out


@pytest.mark.slow
def test_training_without_a_whole_checkpoint_says_so(cli: Cli) -> None:
    unfinish(cli)
    for step in ("1", "2"):
        damage(cli, f"{RUN}/checkpoints/step-0000000{step}/model.safetensors", flip)
    cli.fails(*TRAIN, code=5, says=["no checkpoint", "whole"], hint=["--restart"])
    cli.train("--restart")


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_of_the_best_checkpoint_is_mended_or_named(cli: Cli, kind: str) -> None:
    damage(cli, f"{RUN}/checkpoints/best.json", DAMAGE[kind])
    result = cli(*TRAIN)
    if result.code == 0:
        cli.works("evaluate", "--force")
        assert "best.json" in result.err
    else:
        assert result.code == 5, str(result)
        assert "best.json" in result.error()[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "flipped", "emptied"])
def test_a_damaged_manifest_is_rebuilt_aloud(cli: Cli, kind: str) -> None:
    before = cli.manifest()
    damage(cli, "work/data/manifest.json", DAMAGE[kind])
    assert json.loads(cli.works("status", "--json").out)["data"]["state"] == "corrupt"
    result = cli.prepare()
    assert "manifest.json" in result.err
    assert "corrupt" in result.err
    assert cli.manifest()["splits"] == before["splits"]
    assert "up to date" in cli.train().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "gone"])
@pytest.mark.parametrize(
    "name", ["train-*.safetensors", "preprocessor/tokenizer.json", "preprocessor/task.json"]
)
def test_damaged_data_are_built_again(cli: Cli, name: str, kind: str) -> None:
    path = damage(cli, f"work/data/{name}", DAMAGE[kind])
    result = cli.prepare()
    assert "up to date" not in result.out
    assert path.stat().st_size
    assert "up to date" in cli.prepare().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "flipped", "emptied"])
def test_a_damaged_evaluation_is_scored_again_and_never_shipped_in_silence(
    cli: Cli, kind: str
) -> None:
    metrics = json.loads((cli.cwd / RUN / "evaluation.json").read_bytes())["metrics"]
    damage(cli, f"{RUN}/evaluation.json", DAMAGE[kind])
    states = json.loads(cli.works("status", "--json").out)["runs"]["default"]
    assert [s["state"] for s in states if s["stage"] == "evaluate"] == ["corrupt"]
    result = cli("deploy", "--force")
    assert result.code in (0, 5), str(result)
    assert "evaluation.json" in result.err
    assert json.loads(cli.works("evaluate", "--json").out)["metrics"] == metrics


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["truncated", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "bigmodel.json", "receipt.json"])
def test_a_damaged_bundle_is_made_again(cli: Cli, name: str, kind: str) -> None:
    damage(cli, f"{RUN}/bundle/{name}", DAMAGE[kind])
    result = cli.works("deploy")
    assert "up to date" not in result.out
    cli.works("predict", "a", "--max-tokens", "2")


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"\xff\x00\n", b"5\n[]\n", b'{"loss": 1}\n', b'{"loss": "x"}\n'])
def test_a_damaged_log_does_not_stand_in_the_way_of_an_evaluation(cli: Cli, data: bytes) -> None:
    write(cli.cwd, {f"{RUN}/log.jsonl": data})
    result = cli("evaluate", "--force")
    if result.code:
        assert result.code == 5, str(result)
        assert "log.jsonl" in result.error()[0]


JSON_FILES = [
    ("work/data/manifest.json", NEW),
    ("work/data/manifest.json", " ".join(PREPARE)),
    ("work/data/preprocessor/task.json", NEW),
    (f"{RUN}/config.json", AGAIN),
    (f"{RUN}/config.json", "evaluate --force"),
    (f"{RUN}/preprocessor/task.json", "deploy --force"),
    (f"{RUN}/checkpoints/best.json", "evaluate --force"),
    (f"{LAST}/state.json", "evaluate --force"),
    (f"{RUN}/bundle/bigmodel.json", "predict a"),
]
ODD = [b"null", b"5", b"{}", b'{"schema": 1}', b'{"schema": "1"}', b"[" * 100_000]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), JSON_FILES, ids=[f"{n}, {c}" for n, c in JSON_FILES])
def test_json_of_another_shape_is_corrupt_and_no_bug(cli: Cli, name: str, command: str) -> None:
    whole = (cli.cwd / name).read_bytes()
    wrong = []
    for data in ODD:
        write(cli.cwd, {name: data})
        result = cli(*command.split())
        names = (Path(name).name, Path(name).parent.name)
        well = result.code == 5 and any(n in result.error()[0] for n in names)
        # prepare builds what is corrupt again, and says so
        well |= command.startswith("prepare") and result.code == 0 and names[0] in result.err
        if not well:
            wrong.append((data[:20], result.code, result.err.splitlines()[-2:]))
        write(cli.cwd, {name: whole})
    assert not wrong, listed(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), JSON_FILES, ids=[f"{n}, {c}" for n, c in JSON_FILES])
def test_json_with_a_key_gone_or_of_another_type_is_never_a_bug(
    cli: Cli, name: str, command: str
) -> None:
    """The checksum is right again: that is what somebody would write who means harm."""
    path = cli.cwd / name
    whole = manifest.read_json(path, "document", "")
    before = path.read_bytes()
    wrong = []
    places = [(key,) for key in whole if key != "schema"]
    places += [(k, inner) for k in whole if isinstance(whole[k], dict) for inner in whole[k]]
    for number, place in enumerate(places, len(command)):  # other values for each command
        value = ("delete", "x", -1, None, [])[number % 5]
        document = json.loads(json.dumps(whole))
        owner = document if len(place) == 1 else document[place[0]]
        if value == "delete":
            del owner[place[-1]]
        else:
            owner[place[-1]] = value
        manifest.write_json(path, document)
        result = cli(*command.split())
        if result.code not in (0, 2, 5):
            wrong.append((*place, value, result.code, result.err.splitlines()[-2:]))
        shutil.rmtree(cli.work / "runs" / "new", ignore_errors=True)
        if result.code == 0 and command.startswith("prepare"):
            cli.works(*PREPARE, "--force")
        path.write_bytes(before)
    assert not wrong, listed(wrong)


@pytest.mark.slow
def test_status_shows_what_is_damaged_instead_of_failing(cli: Cli) -> None:
    odd: list[tuple[str, Any]] = [
        ("evaluation.json", {"schema": 1, "metrics": {}}),
        ("evaluation.json", {"schema": 1, "metrics": {"loss": {"value": "x"}}, "weights": 1}),
        ("config.json", {"schema": 1}),
        ("checkpoints/step-00000002/state.json", {"schema": 1}),
        ("checkpoints/best.json", {"schema": 1}),
        ("bundle/receipt.json", {"schema": 1, "weights": []}),
    ]
    for name, document in odd:
        path = cli.cwd / RUN / name
        whole = path.read_bytes()
        if "weights" in document and name == "evaluation.json":
            document["weights"] = json.loads(whole)["weights"]
        path.write_text(json.dumps(document))
        states = json.loads(cli.works("status", "--json").out)["runs"]["default"]
        assert "corrupt" in [state["state"] for state in states], name
        path.write_bytes(whole)


NEWER = [
    # (file, commands that must refuse it, and must not write over it)
    ("work/data/manifest.json",
     [" ".join(PREPARE), f"{' '.join(PREPARE)} --force", NEW, "evaluate", "deploy"]),
    ("work/data/preprocessor/task.json", [NEW]),
    (f"{RUN}/config.json", [AGAIN, "evaluate", "deploy"]),
    (f"{RUN}/evaluation.json", ["evaluate", "evaluate --force", "deploy --force"]),
    (f"{RUN}/checkpoints/best.json", [AGAIN, "evaluate", "deploy"]),
    (f"{LAST}/state.json", [AGAIN, "evaluate", "deploy"]),
    (f"{RUN}/bundle/bigmodel.json", ["predict a", "deploy"]),
    (f"{RUN}/bundle/task.json", ["predict a"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for name, commands in NEWER for command in commands]
)
def test_what_a_newer_version_wrote_is_refused_and_kept(cli: Cli, name: str, command: str) -> None:
    path = cli.cwd / name
    edit(path, schema=999)
    records = {"work/data/preprocessor": ("work/data/manifest.json", "codec"),
               f"{RUN}/bundle": (f"{RUN}/bundle/bigmodel.json", "files")}  # fmt: skip
    record, key = records.get(str(Path(name).parent), (name, ""))
    if path.name == "task.json":  # so that the record of its hash agrees
        files = json.loads((cli.cwd / record).read_bytes())[key]
        edit(cli.cwd / record, **{key: {**files, path.name: as_json(manifest.file_info(path))}})
    with unchanged(cli.work):
        cli.fails(*command.split(), code=5, says=[path.name, "999"], hint=["upgrade"])


def test_status_names_a_newer_format(cli: Cli) -> None:
    edit(cli.work / "data" / "manifest.json", schema=999)
    with unchanged(cli.work):
        data = json.loads(cli.works("status", "--json").out)["data"]
    assert data["state"] != "fresh"
    assert "999" in data["detail"]


def earlier(cli: Cli, **changed: Any) -> None:
    shutil.copy(cli.cwd / RUN / "evaluation.json", cli.cwd / "main.json")
    edit(cli.cwd / "main.json", **changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "word"),
    [(None, "main.json"), (b"{", "main.json"), (b"[]", "main.json"), (b"\xff", "main.json"),
     (b'{"schema": 1}', "main.json"), (b'{"schema": 1, "metrics": []}', "main.json"),
     (b'{"schema": 999}', "999")],
)  # fmt: skip
def test_an_earlier_evaluation_that_cannot_be_read_is_named(
    cli: Cli, data: bytes | None, word: str
) -> None:
    if data is not None:
        write(cli.cwd, {"main.json": data})
    rule = ("--against", "main.json", "--require", "bits_per_byte<=previous*1.01")
    with unchanged(cli.work):
        cli.fails("evaluate", *rule, code=5, says=[word])
    earlier(cli)
    cli.works("evaluate", *rule)


@pytest.mark.parametrize("value", ["x", None, True, {}])
def test_an_earlier_figure_that_is_no_number_is_named(cli: Cli, value: Any) -> None:
    earlier(cli, metrics={"bits_per_byte": {"value": value}})
    rule = ("--against", "main.json", "--require", "bits_per_byte<=previous")
    with unchanged(cli.work):
        cli.fails("evaluate", *rule, code=5, says=["`bits_per_byte`"], hint=["--against"])


@pytest.mark.parametrize("key", ["split", "data", "objective", "bytes"])
def test_an_earlier_figure_of_another_protocol_is_not_compared(cli: Cli, key: str) -> None:
    protocol = json.loads((cli.cwd / RUN / "evaluation.json").read_bytes())["protocol"]
    earlier(cli, protocol={**protocol, key: "other"})
    rule = ("--against", "main.json", "--require", "bits_per_byte<=previous")
    with unchanged(cli.work):
        cli.fails("evaluate", *rule, code=2, says=["`bits_per_byte`", f"{key}: other"])


# Disks, folders, locks ---------------------------------------------------------------------------


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_while_preparing_leaves_the_old_data(cli: Cli, cold: bool) -> None:
    command = (*PREPARE, "--min-chars", "9")
    for most in (0, 100, 1500, 3000, 6000):
        with unchanged(cli.work):
            cli.fails(*command, code=7, says=["`", "work"], hint=["space"], file=most, cold=cold)
    assert "up to date" in cli.prepare().out
    cli.works(*command)


@pytest.mark.slow
def test_a_disk_that_is_full_for_the_manifest_alone_leaves_the_old_data(cli: Cli) -> None:
    unmatched = [word for i in range(400) for word in ("--exclude", f"{i}" * 40)]
    cli.prepare("--exclude", "x")  # so that the hashes of the sources are known
    command = (*PREPARE, "--min-chars", "9", *unmatched)
    with unchanged(cli.work):  # the manifest, the last of all, is what has no room
        cli.fails(*command, code=7, says=["manifest.json"], hint=["space"], file=30_000)
    assert "up to date" in cli.prepare().out


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_while_training_loses_nothing(cli: Cli, cold: bool) -> None:
    for most in (0, 100, 1000, 9500, 50_000, 90_000):
        with unchanged(cli.cwd / RUN), unchanged(cli.work / "data"):
            cli.fails(
                *TRAIN, "--run", "new", code=7, says=["`"], hint=["space"], file=most,
                cold=cold,
            )  # fmt: skip
    cli.train("--run", "new")
    new = cli.work / "runs" / "new" / "checkpoints" / "step-00000002"
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (new / name).read_bytes() == (cli.cwd / LAST / name).read_bytes()


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_while_deploying_leaves_the_old_bundle(cli: Cli, cold: bool) -> None:
    before = cli.works("predict", "The fox", "--max-tokens", "4").out
    for most in (0, 100, 1000, 10_000, 70_000):
        with unchanged(cli.work):
            cli.fails("deploy", "--force", code=7, says=["`"], hint=["space"], file=most, cold=cold)
    assert "up to date" in cli.works("deploy").out
    assert cli.works("predict", "The fox", "--max-tokens", "4").out == before


@pytest.mark.slow
def test_a_full_disk_while_evaluating_is_named(cli: Cli) -> None:
    for most in (0, 1000, 10_000):
        cli.fails("evaluate", "--force", code=7, says=["`", RUN], hint=["space"], file=most)
    cli.works("evaluate")
    assert (cli.cwd / RUN / "report.html").read_text().endswith("</html>\n")


@pytest.mark.parametrize(
    "folder",
    ["corpus.jsonl", "corpus.jsonl/below", "/proc/bigmodel", "/sys/bigmodel", "loop", "dangling/x",
     "x" * 300, "/dev/null"],
)  # fmt: skip
def test_a_work_directory_that_cannot_be_written_is_named(empty: Cli, folder: str) -> None:
    (empty.cwd / "loop").symlink_to("loop")
    (empty.cwd / "dangling").symlink_to("/proc/nowhere")
    with unchanged(empty.cwd):
        empty.fails(*PREPARE, "-w", folder, code=7, says=[f"`{folder}"], hint=["--workdir"])


@pytest.mark.parametrize("folder", ["corpus.jsonl", "loop", "x" * 300])
@pytest.mark.parametrize("command", ["train", "evaluate", "deploy", "predict a", "status"])
def test_a_work_directory_that_is_none_is_named(empty: Cli, command: str, folder: str) -> None:
    (empty.cwd / "loop").symlink_to("loop")
    result = empty(*command.split(), "-w", folder)
    if (command, folder) == ("status", "loop"):
        assert "missing" in result.out  # which is true
        return
    assert result.code in (2, 5, 7), str(result)
    assert folder in result.error()[0], str(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "command"),
    [("work/data", " ".join(PREPARE)), ("work/data/preprocessor", " ".join(PREPARE)),
     ("work/runs", AGAIN), ("work/runs/default", AGAIN), (f"{RUN}/checkpoints", AGAIN),
     (f"{RUN}/preprocessor", AGAIN), (f"{RUN}/bundle", "deploy")],
)  # fmt: skip
def test_a_file_in_place_of_a_folder_is_named(empty: Cli, path: str, command: str) -> None:
    if not path.startswith("work/data"):
        empty.prepare()
    if path.endswith("bundle"):
        empty.train()
    write(empty.cwd, {path: b"not a folder"})
    result = empty(*command.split())
    if result.code:
        assert result.code in (5, 7), str(result)
        assert path.rpartition("/")[0] in result.error()[0], str(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "command"),
    [("work/data/manifest.json", " ".join(PREPARE)), (f"{RUN}/log.jsonl", NEW.replace("new", "b")),
     (f"{RUN}/config.json", "evaluate"), (f"{RUN}/evaluation.json", "evaluate"),
     (f"{RUN}/report.html", "evaluate --force"), (f"{RUN}/checkpoints/best.json", "deploy")],
)  # fmt: skip
def test_a_folder_in_place_of_a_file_is_named(cli: Cli, path: str, command: str) -> None:
    if "log" in path:
        path = path.replace("default", "b")
    else:
        (cli.cwd / path).unlink()
    (cli.cwd / path / "inside").mkdir(parents=True)
    result = cli(*command.split())
    if result.code:
        assert result.code in (5, 7), str(result)
        assert Path(path).name in result.error()[0], str(result)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if path.exists() and path.stat().st_size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.fixture
def stopping() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended, whatever happens to the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_run_that_is_being_trained_names_who_holds_it(
    cli: Cli, stopping: list[subprocess.Popen[bytes]]
) -> None:
    command = (*TRAIN[:-2], "--minutes", "5", "--run", "long")
    first = cli.start(*command)
    stopping.append(first)
    run = cli.work / "runs" / "long"
    wait_for(run / ".lock-holder", first)
    words = [f"process {first.pid}", "long"]
    cli.fails(*command, code=75, says=words, hint=["--run"])
    assert failure(cli(*command, "--json"), 75)["message"]
    wait_for(run / "log.jsonl", first)
    for other in ("evaluate", "deploy"):
        cli.fails(other, "--run", "long", code=75, says=words, hint=["wait"])
    cli.fails(*command, "--restart", code=75, says=words)
    cli.works("evaluate", "--run", "default")  # another run is free
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 75
    cli.works("evaluate", "--run", "long")


@pytest.mark.slow
def test_a_folder_that_is_being_prepared_names_who_holds_it(
    cli: Cli, stopping: list[subprocess.Popen[bytes]]
) -> None:
    first = cli.start("prepare", "-", *ALL_TRAIN, stdin=subprocess.PIPE)
    stopping.append(first)
    wait_for(cli.work / "data" / ".lock-holder", first)
    with unchanged(cli.work):
        cli.fails(*PREPARE, code=75, says=["data", f"process {first.pid}"], hint=["--workdir"])
    out, err = first.communicate(GOOD * 3)
    assert first.returncode == 0, err
    assert documents(cli) == [GOOD * 3]
    assert out


@pytest.mark.slow
def test_a_lock_of_a_process_that_is_gone_does_not_hold(cli: Cli) -> None:
    for folder in (cli.work / "data", cli.cwd / RUN):
        (folder / ".lock").touch()
        (folder / ".lock-holder").write_text("process 1 on elsewhere\n")
        (folder / ".tmp-build").mkdir()
    cli.prepare("--force")
    cli.works("evaluate", "--force")
    assert not list(cli.work.rglob(".tmp-*"))


# Requests ----------------------------------------------------------------------------------------

BAD_LINES: list[tuple[bytes, str]] = [
    # (a line, a word in its error)
    (b"{", "JSON"),
    (b"nonsense", "JSON"),
    (b'{"prompt": "caf\xe9"}', "JSON"),
    (b"[" * 200_000, "JSON"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "JSON"),
    (b"[]", "object"),
    (b"5", "object"),
    (b"null", "object"),
    (b'"a text"', "object"),
    (b"{}", "`prompt`"),
    (b'{"promt": "a"}', "`prompt`"),
    *((b'{"prompt": %s}' % value, "`prompt`")
      for value in (b"null", b"5", b"true", b'["a"]', b'{"a": 1}', b'"half \\ud800"')),
    *((b'{"prompt": "a", "max_tokens": %s}' % value, "`max_tokens`")
      for value in (b"0", b"-1", b"1.5", b'"5"', b"true", b"[]", b"{}", b"1000000000", b"1e9",
                    b"1" + b"0" * 30)),
    *((b'{"prompt": "a", "temperature": %s}' % value, "`temperature`")
      for value in (b"-1", b"101", b'"hot"', b"true", b"[]")),
    *((b'{"prompt": "a", "temperature": %s}' % value, value.decode())
      for value in (b"NaN", b"Infinity", b"-Infinity", b"1e999")),
    *((b'{"prompt": "a", "top_k": %s}' % value, "`top_k`") for value in (b"-1", b"0.5", b'"a"')),
    *((b'{"prompt": "a", "top_p": %s}' % value, "`top_p`") for value in (b"-0.1", b"2", b'"a"')),
    *((b'{"prompt": "a", "seed": %s}' % value, "`seed`")
      for value in (b"-1", b"1.5", b'"a"', b"9223372036854775808")),
    *((b'{"prompt": "a", "stop": %s}' % value, "`stop`")
      for value in (b'""', b"5", b'[""]', b'["a", 5]', b'{"a": 1}',
                    json.dumps(["a"] * 17).encode(), json.dumps("a" * 2000).encode())),
    (b'{"prompt": "' + b"very long " * 2000 + b'"}', "20,001 tokens"),
    (b'{"prompt": "\\u0000"}', "blank"),
]  # fmt: skip


def ask(cli: Cli, *lines: bytes, more: tuple[str, ...] = ()) -> tuple[Result, list[dict[str, Any]]]:
    command = ("predict", "--max-tokens", "3", *more)
    result = cli(*command, stdin=b"\n".join(lines) + b"\n")

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON: {result}")

    lines = result.out.removesuffix("\n").split("\n") if result.out else []
    return result, [json.loads(line, parse_constant=constant) for line in lines]


def test_bad_lines_are_answered_in_their_place(cli: Cli) -> None:
    lines = []
    for number, (line, _) in enumerate(BAD_LINES):
        lines += [b'{"id": %d, "prompt": "The fox"}' % number, line, b""]
    result, answers = ask(cli, *lines, more=("--batch-size", "7"))
    assert result.code == 4, str(result)
    assert f"{len(BAD_LINES)} of {2 * len(BAD_LINES)} lines" in result.error()[0]
    assert len(answers) == 2 * len(BAD_LINES)
    good, bad = answers[::2], answers[1::2]
    assert [answer["id"] for answer in good] == list(range(len(BAD_LINES)))
    assert all(set(answer) == {"id", "text", "finish_reason"} for answer in good)
    wrong = [
        (line[:60], answer)
        for (line, word), answer in zip(BAD_LINES, bad, strict=True)
        if answer.get("error", {}).get("code") != 4 or word not in answer["error"]["message"]
    ]
    assert not wrong, listed(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "a", "max_tokens": 1%s}' % (b"0" * 400),
        b'{"prompt": "a", "temperature": 1%s}' % (b"0" * 400),
        b'{"prompt": ["\\ud800"]}',
        b'{"prompt": "a", "top_k": "\\udfff"}',
        b'{"id": "\\ud800", "prompt": 5}',
        b'{"id": NaN, "prompt": 5}',
        b'{"id": %s%s, "prompt": 5}' % (b"[" * 900, b"]" * 900),
    ],
    ids=lambda line: line[:40].decode(),
)
def test_a_line_that_is_hard_to_answer_is_answered(cli: Cli, line: bytes) -> None:
    result, answers = ask(cli, b'{"prompt": "a", "id": 1}', line, b'{"prompt": "b", "id": 3}')
    assert result.code == 4, str(result)
    assert [answer.get("id") for answer in (answers[0], answers[2])] == [1, 3]
    assert "message" in answers[1]["error"]


@pytest.mark.parametrize(
    "value",
    [
        "1",
        '"a"',
        "null",
        "[1, 2]",
        '{"a": null}',
        "true",
        "1.5",
        '"\\ud83d\\ude00 \\u001b\\u2028"',
        '"\\ud800"',
        "9" * 40,
    ],
)
def test_an_id_of_any_kind_is_passed_through(cli: Cli, value: str) -> None:
    result, answers = ask(cli, b'{"id": %s, "prompt": "a"}' % value.encode(), b"nonsense")
    assert result.code == 4, str(result)
    assert answers[0]["id"] == json.loads(value)
    assert "text" in answers[0]


def test_an_id_that_json_does_not_have_is_no_bug(cli: Cli) -> None:
    result, answers = ask(cli, b'{"id": NaN, "prompt": "a"}', b'{"id": 2, "prompt": "a"}')
    assert result.code in (0, 4), str(result)
    assert answers[1]["id"] == 2


def test_lines_that_are_merely_odd_are_answered(cli: Cli) -> None:
    lines = [
        b'\xef\xbb\xbf{"prompt": ""}\r',
        b'{"prompt": "<|endoftext|> and <|pad|>"}',
        b'{"prompt": "a\\u0000b"}',
        b'{"prompt": "a", "max_tokens": null, "temperature": null, "stop": null}',
        b'{"prompt": "a", "unknown": [1]}',
        b'{"prompt": "a", "temperature": 100, "top_k": 2147483648, "top_p": 0, "seed": 1}',
        b'{"prompt": "a", "temperature": 1e-300}',
        b'{"prompt": "a", "prompt": "b"}',
    ]
    result, answers = ask(cli, *lines)
    assert result.code == 0, str(result)
    assert len(answers) == len(lines)
    assert all(answer["finish_reason"] in ("stop", "length") for answer in answers)


@pytest.mark.parametrize("prompt", ["", " ", "<|endoftext|>", "<|mask|> <|im_start|>", "ü 😀", "-"])
def test_any_text_is_a_prompt(cli: Cli, prompt: str) -> None:
    result = cli.works("predict", "--max-tokens", "2", "--", prompt)
    assert result.out.startswith(prompt)


def test_a_prompt_that_is_not_utf_8_is_refused(cli: Cli) -> None:
    cli.refuses("predict", os.fsdecode(b"caf\xe9"), code=4, says=["`prompt`"])
    error = failure(cli("predict", os.fsdecode(b"caf\xe9"), "--json"), 4)
    assert "`prompt`" in error["message"]


def test_no_lines_at_all_are_no_error(cli: Cli) -> None:
    result, answers = ask(cli, b"", b"  ", b"\r")
    assert (result.code, answers) == (0, [])


def test_with_json_a_bad_line_adds_no_answer_of_its_own(cli: Cli) -> None:
    result, answers = ask(cli, b'{"id": 1, "prompt": "a"}', b"nonsense", more=("--json",))
    assert result.code == 4, str(result)
    assert len(answers) == 2


# One JSON document -------------------------------------------------------------------------------

FAILURES = [
    ("train --steps x", 2),
    ("train --stepz 2", 2),
    ("train --steps", 2),
    ("trian", 2),
    ("evaluate --require nonsense", 2),
    ("evaluate --config nowhere.toml", 2),
    ("train --run ../x", 2),
    ("prepare", 2),
    ("prepare corpus.jsonl --val 2", 2),
    ("prepare nowhere", 4),
    ("prepare /dev/null", 4),
    ("evaluate --run nope", 5),
    ("deploy --checkpoint 77", 5),
    ("predict a --bundle nowhere", 5),
    ("train --workdir nowhere", 5),
    ("prepare corpus.jsonl --workdir corpus.jsonl", 7),
]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "code"), FAILURES)
def test_with_json_a_failure_is_one_document(cli: Cli, command: str, code: int) -> None:
    failure(cli(*command.split(), "--json"), code)
    if " " in command:
        name, rest = command.split(" ", 1)
        failure(cli(name, "--json", *rest.split()), code)


@pytest.mark.slow
def test_a_server_that_cannot_be_begins_with_no_document_of_success(cli: Cli) -> None:
    failure(cli("deploy", "--serve", "--host", "0.0.0.0", "--json"), 2)


def test_a_prompt_that_looks_like_an_option_is_still_a_prompt(cli: Cli) -> None:
    shutil.rmtree(cli.cwd / RUN / "bundle")
    cli.fails("predict", "--", "--json", code=5, says=["bundle"])


# Terminals, streams, environments ----------------------------------------------------------------


def on_terminal(cli: Cli, *argv: str, env: Mapping[str, str]) -> tuple[int, str]:
    """The exit code of a fresh process, and all that a terminal got from it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bigmodel_cli", *argv], cwd=cli.cwd, stdin=theirs, stdout=theirs,
        stderr=theirs, env=environment({"TERM": "xterm", "COLUMNS": "80", **env}),
    )  # fmt: skip
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    return process.wait(), b"".join(parts).decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*[0-9]m")


@pytest.mark.slow
def test_no_color_is_honoured_on_a_terminal(empty: Cli) -> None:
    code, plain = on_terminal(empty, "prepare", "nowhere", env={"NO_COLOR": "1"})
    assert (code, "error: " in plain, "\x1b" in plain) == (4, True, False)
    code, coloured = on_terminal(empty, "prepare", "nowhere", env={})
    assert code == 4
    assert COLOUR.search(coloured)
    code, text = on_terminal(empty, *PREPARE, env={"NO_COLOR": "1"})
    assert code == 0
    assert "prepared" in text
    assert not COLOUR.search(text)


@pytest.mark.slow
def test_requests_are_not_awaited_from_a_terminal(cli: Cli) -> None:
    code, text = on_terminal(cli, "predict", env={"NO_COLOR": "1"})
    assert code == 2
    assert "hint: " in text


HOSTILE = "\x1b]0;owned\x07\x1b[2J\nfake: line\r.txt"


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"\x00\x01", b"caf\xe9 " * 9, b"", b"tiny"])
def test_a_hostile_file_name_does_not_reach_the_terminal(empty: Cli, content: bytes) -> None:
    write(empty.cwd, {"d/good.txt": GOOD, f"d/{HOSTILE}": content})
    code, text = on_terminal(empty, "prepare", "d", *ALL_TRAIN, env={})
    assert code == 0, text
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert "\nfake" not in text


@pytest.mark.parametrize(
    "command",
    [("prepare", HOSTILE), ("predict", "a", "--bundle", HOSTILE), ("train", "--run", HOSTILE),
     ("train", "--set", f"{HOSTILE}=1"), ("train", f"--{HOSTILE}"), (HOSTILE,),
     ("status", "-w", "corpus.jsonl", "--config", HOSTILE)],
)  # fmt: skip
def test_hostile_words_are_shown_escaped(empty: Cli, command: tuple[str, ...]) -> None:
    result = empty(*command)  # which looks for escape codes
    assert result.code in (2, 4, 5), str(result)
    assert "\nfake" not in result.err
    assert "\r" not in result.err


@pytest.mark.slow
def test_a_hostile_name_in_what_changed_is_shown_escaped(empty: Cli) -> None:
    write(empty.cwd, {"d/good.txt": GOOD, f"d/{HOSTILE}": GOOD.upper()})
    empty.works("prepare", "d", *ALL_TRAIN)
    write(empty.cwd, {f"d/{HOSTILE}": GOOD.lower()})
    assert "\nfake" not in empty.works("status").out
    result = empty.works("prepare", "d", *ALL_TRAIN)
    assert "\nfake" not in result.out + result.err


def sh(cli: Cli, redirect: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A fresh process with odd streams."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "bigmodel_cli", *argv],
        cwd=cli.cwd, env=environment({}), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirect", "command", "codes"),
    [
        ("<&-", "prepare - --tokenizer bytes", (2, 4)),
        ("<&-", "predict", (0, 2, 4)),
        (">&-", "status", (0, 7)),
        (">&-", "status --json", (0, 7)),
        ("2>&-", "status", (0,)),
        ("2>&-", "prepare nowhere", (4,)),
        (">/dev/full", "status", (7,)),
        (">/dev/full", "status --json", (7,)),
        (">/dev/full", "predict a --max-tokens 2", (7,)),
        ("2>/dev/full", "prepare nowhere", (4, 7)),
    ],
)
def test_streams_that_are_closed_or_full_are_no_bug(
    cli: Cli, redirect: str, command: str, codes: tuple[int, ...]
) -> None:
    done = sh(cli, redirect, *command.split())
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "bug" not in done.stderr
    assert not (cli.work / "traceback.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "status --json", "train --help", "predict a"])
def test_a_reader_that_is_gone_is_no_bug(cli: Cli, command: str) -> None:
    """`bigmodel status | head -1`: as a shell says it of any program."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", *command.split()], cwd=cli.cwd, check=False,
        env=environment({"PYTHONUNBUFFERED": "1"}), stdout=write, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 141, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train --help", "evaluate", "status", "train"])
def test_a_terminal_that_knows_only_ascii_is_no_bug(cli: Cli, command: str) -> None:
    result = cli(*command.split(), env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}, cold=True)
    assert result.code in ((2,) if command == "train" else (0,)), str(result)


@pytest.mark.slow
def test_a_summary_file_that_cannot_be_written_is_named(cli: Cli) -> None:
    for place in ("nowhere/summary.md", "work", "corpus.jsonl/x"):
        result = cli("evaluate", env={"GITHUB_STEP_SUMMARY": place})
        assert result.code in (0, 7), str(result)
        assert place in result.err


@pytest.mark.slow
def test_hub_names_that_are_none_are_named(empty: Cli) -> None:
    for name in ("hf:", "hf:no-such-owner/no-such-set"):
        empty.fails("prepare", name, *ALL_TRAIN, code=4, says=[name], hint=["network"])


# Size --------------------------------------------------------------------------------------------

PEAK = """
import os, resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line.txt", "line.jsonl", "line.csv"])
def test_a_line_of_200_megabytes_is_kept_whole_in_bounded_memory(empty: Cli, name: str) -> None:
    text = base64.b64encode(noise(150 << 20))
    wrapped = {
        "line.txt": text,
        "line.jsonl": b'{"text": "' + text + b'"}\n',
        "line.csv": b"text\n" + text + b"\n",
    }[name]
    write(empty.cwd, {name: wrapped})
    done = subprocess.run(
        [sys.executable, "-c", PEAK, sys.executable, "-m", "bigmodel_cli", "prepare", name,
         *ALL_TRAIN, "--quiet"],
        cwd=empty.cwd, env=environment({}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    codec = tokenizer.load(empty.work / "data" / "preprocessor")
    values = np.array([raw[0] if raw else 0 for raw in codec.token_bytes], np.uint8)
    shards = Workdir(empty.work).read_data().splits["train"].shards
    kept = [Split(empty.work / "data", [shard]).values("tokens", 0, shard.examples)
            for shard in shards]  # fmt: skip
    tokens = np.concatenate(kept)
    assert values[tokens[tokens != codec.endoftext]].tobytes() == text
    # a record is one piece: it and its tokens (one for each byte here) are held several times
    most = 1500 if name.endswith(".txt") else 4000
    assert int(done.stdout.split()[-1]) < most, "MB at the peak"
