"""Any source, as batches of rows of bounded size.

Files (.jsonl, .csv, .tsv and .parquet hold records, .json may; all else is text, one document a
file), images, folders, globs, standard input, hub data sets; also compressed, see sources.PACKED.
Folders whose names are pairs (`label=neg/`) give their sources a column more; a text file among
them is one row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import pyarrow as pa

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import images, records, sources
from bigmodel_cli.prepare.aligned import aligned
from bigmodel_cli.prepare.delimited import delimited
from bigmodel_cli.prepare.json_forms import json_whole, peek
from bigmodel_cli.prepare.json_keys import types_of
from bigmodel_cli.prepare.records import ARROW, SHOWN_ROWS, Choose, hub, jsonl, parquet
from bigmodel_cli.prepare.sources import WHOLE, Layout, Source
from bigmodel_cli.prepare.texts import LONGEST_ROW, check_length, not_utf8, opened
from bigmodel_cli.tasks import Rows
from bigmodel_cli.tasks.columns import listed


def whole(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """A text file that is one row. Raises DataError for one that is too long."""
    row = records.Records(source, choose({"text": "string"}, f"`{source.name}`"), layout)
    with opened(source, layout) as file:
        data = file.read(LONGEST_ROW + 1)
    check_length(len(data), source.name)
    advance(len(data))
    if broken := _undecodable(data):
        not_utf8(source, layout, ledger, len(data), source.name, broken)
        return
    row.add([data.decode()], 1)
    yield from row.take()


READERS = {
    "jsonl": jsonl,
    "json": json_whole,
    "csv": delimited,
    "tsv": delimited,
    "parquet": parquet,
    "idx": images.arrays,
    "numpy": images.arrays,
    WHOLE: whole,
}
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, *ARROW)
BLOCK = 4096  # a long text file is cut into blocks of about this many bytes


def columns(source: Source, layout: Layout, whole: bool = False) -> dict[str, str]:
    """The columns (name → type) of a source, by its beginning, or by all of its rows; none if it
    holds no records."""
    found: dict[str, str] = {}
    if source.kind in ("json", "jsonl") and source.path and not whole:
        with contextlib.suppress(DataError, *BROKEN), opened(source, layout) as file:
            form = peek(file, SHOWN_ROWS)
            found.update(types_of(form.lists.get(source.key, form.rows)))

    def choose(columns: Mapping[str, str], _where: str) -> dict[str, str]:
        found.update(columns)
        raise _Enough

    if not found:
        with contextlib.suppress(_Enough, DataError):
            next(read(source, choose, dataclasses.replace(layout, documents=False), Ledger(),
                      lambda _: None), None)  # fmt: skip
    return {**dict.fromkeys(source.folders, "folder"), **found} if found else {}


class _Enough(Exception):  # noqa: N818 (no error)
    pass


def read_all(
    sources: Sequence[Source],
    choose: Choose,
    layout: Layout,
    ledger: Ledger,
    advance: Callable[[int], None],
) -> Iterator[Rows]:
    """The rows of all sources, in order. Images that follow each other come together."""
    for (alone, _), group in itertools.groupby(
        sources, lambda s: (s.kind == "image" and not layout.documents, s.split)
    ):
        if not alone:
            for source in group:
                yield from read(source, choose, layout, ledger, advance)
        else:
            yield from images.files(list(group), choose, layout, advance)


def named_files(source: Source, choose: Choose, layout: Layout) -> set[str]:
    """The paths in a source's columns of files, as they are written there: what is behind them is
    part of the source."""
    if "file" not in layout.kinds.values() or not source.records or source.hub:
        return set()
    types = columns(source, layout)
    chosen = choose(types, f"`{source.name}`") if types else {}
    names = [name for name in chosen if layout.kinds.get(name) == "file"]
    if not names:
        return set()
    kinds = {**layout.kinds, **dict.fromkeys(names, "path")}
    found: set[str] = set()
    for rows in read(
        source, choose, dataclasses.replace(layout, kinds=kinds), Ledger(), lambda _: None
    ):
        for name in names:
            found.update(path for path in rows.table.column(name).to_pylist() if path)
    return {path for path in found if not path.startswith("data:")}


def read(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """A source's rows. `choose` picks the columns of records, and of what the source's folders are
    named for; `advance` gets the bytes that were read.

    Raises DataError for a file that cannot be read to its end.
    """
    given: dict[str, str] = {}

    def own(found: Mapping[str, str], where: str) -> dict[str, str]:
        chosen = choose({**dict.fromkeys(source.folders, "folder"), **found}, where)
        given.update(
            {name: source.folders[column] for name, column in chosen.items() if column not in found}
        )
        if len(given) == len(chosen):
            raise DataError(
                f"{where} has none of the columns itself",
                f"name one of its own: --column {next(iter(chosen))}=NAME; it has {listed(found)}",
            )
        return {name: column for name, column in chosen.items() if name not in given}

    for rows in _read(source, own if source.folders else choose, layout, ledger, advance):
        table = rows.table
        for name, value in given.items():
            whole = pa.repeat(pa.scalar(value, pa.large_string()), table.num_rows)
            table = table.append_column(name, whole)
        yield dataclasses.replace(rows, table=table)


def _read(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    as_text = ("image", "idx", "labels", "numpy") if layout.documents else ()
    text = source.kind in ("text", *as_text)
    try:
        if source.columns:
            yield from aligned(source, choose, layout, ledger, advance)
        elif source.hub:
            yield from hub(source, choose, layout)
        elif layout.header and source.kind in ("text", "csv", "tsv"):
            yield from delimited(source, choose, layout, ledger, advance)
        elif text and layout.documents:
            yield from _text(source, layout, ledger, advance)
        elif text:
            raise DataError(
                f"`{source.name}` holds no records that this task could use",
                "if it has columns, name them: --header label,text --delimiter '\\t'; "
                "or leave it out with --exclude",
            )
        elif source.kind == "image":
            yield from images.files([source], choose, layout, advance)
        elif source.kind != "labels":  # which are read with their images
            yield from READERS[source.kind](source, choose, layout, ledger, advance)
    except pa.ArrowNotImplementedError as error:
        raise DataError(
            f"`{source.name}` holds what cannot be read yet: {str(error).splitlines()[0]}",
            "leave it out with --exclude",
        ) from None
    except BROKEN as error:
        raise DataError(
            f"`{source.name}` cannot be read to its end: {str(error).splitlines()[0]}",
            "it may be truncated; replace it, or leave it out with --exclude",
        ) from None
    except OSError as error:
        raise DataError(f"`{source.name}` cannot be read: {error}") from None


def _text(
    source: Source, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """A text file: one document, or many between separators; a long one as blocks."""
    blocks: list[tuple[str, bool, bool]] = []
    size = row = documents = 0

    def rows() -> Rows:
        first = row - len(blocks)
        table = pa.RecordBatch.from_arrays(
            [
                pa.array([b[0] for b in blocks], pa.large_string()),
                pa.array([b[1] for b in blocks]),
                pa.array([b[2] for b in blocks]),
                pa.array(range(first, row), pa.int64()),
            ],
            names=["text", "follows", "ends", "row"],
        )
        return Rows(table, source.split, lambda i: f"{source.name}, block {first + i + 1}")

    with opened(source, layout) as file:
        follows = False
        for data, ends in _documents(file, layout.separator.encode(), advance):
            if not follows:
                documents += 1
            broken = _undecodable(data)
            if broken:
                not_utf8(source, layout, ledger, len(data), source.name, broken)
                follows = False
                continue
            for text, last in _blocks(data):
                blocks.append((text, follows, last and ends))
                follows = True
                row += 1
                size += len(text)
                if size > sources.CHUNK:
                    yield rows()
                    blocks, size = [], 0
            follows = not ends
    if blocks:
        yield rows()
    elif not row and not documents:
        ledger.came_in(1, 0)
        ledger.drop("empty", 0, source.name)


def _undecodable(data: bytes) -> str:
    if b"\x00" in data[:8192]:
        return "binary"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start:,}"
    return ""


def _documents(
    file: IO[bytes], separator: bytes, advance: Callable[[int], None]
) -> Iterator[tuple[bytes, bool]]:
    """(bytes, whether the document ends with them). A huge document comes in several parts, cut at
    line ends, else at spaces, else between characters."""
    rest = b""
    parts = False
    while True:
        data = file.read(sources.CHUNK)
        advance(len(data))
        rest += data
        if separator:
            *whole, rest = rest.split(separator)
            for part in whole:
                if part.strip() or parts:
                    yield part, True
                parts = False
        if not data:
            break
        while len(rest) > 2 * sources.CHUNK:
            end = rest.rfind(b"\n", 0, sources.CHUNK) + 1 or _character_end(rest, sources.CHUNK)
            yield rest[:end], False
            rest = rest[end:]
            parts = True
    if rest.strip() or parts:
        yield rest, True


def _character_end(data: bytes, end: int) -> int:
    space = data.rfind(b" ", max(0, end - BLOCK) + 1, end)  # not the first: it would cut nothing
    if space > 0:
        return space
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return end


def _blocks(data: bytes) -> Iterator[tuple[str, bool]]:
    """(text, whether it is the last). About BLOCK bytes each, cut at line ends where there are."""
    start = 0
    stop = len(data.rstrip())
    while len(data) - start > 2 * BLOCK:
        newline = data.find(b"\n", start + BLOCK, start + 2 * BLOCK)
        end = newline + 1 if newline >= 0 else _character_end(data, start + BLOCK)
        if end >= stop:
            break
        yield data[start:end].decode(), False
        start = end
    yield data[start:].decode(), True
