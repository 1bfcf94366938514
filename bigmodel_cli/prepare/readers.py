"""Any source, as batches of rows of bounded size.

Files (.jsonl, .csv, .tsv, .parquet hold records; all else is text, one document a file), folders,
globs, standard input, hub data sets; files also as .gz and .zst.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare.sources import Source, open_bytes
from bigmodel_cli.tasks import Rows

CHUNK = 8 << 20  # bytes of rows in one batch
LONGEST_ROW = 1 << 30
SHOWN_ROWS = 100  # of JSON lines, from which columns are chosen
BLOCK = 4096  # a long text file is cut into blocks of about this many bytes
ARROW = (pa.ArrowInvalid, pa.ArrowIOError, pa.ArrowNotImplementedError, pa.ArrowTypeError)
Choose = Callable[[Mapping[str, str], str], dict[str, str]]


def read(
    source: Source, choose: Choose, separator: str, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """A source's rows. `choose` picks the columns of records; `advance` is told of bytes read.

    Raises DataError for a file that cannot be read to its end.
    """
    readers = {"jsonl": _jsonl, "csv": _csv, "tsv": _csv, "parquet": _parquet}
    try:
        if source.hub:
            yield from _hub(source, choose)
        elif source.kind == "text":
            yield from _text(source, separator, ledger, advance)
        else:
            yield from readers[source.kind](source, choose, ledger, advance)
    except (EOFError, zlib.error, gzip.BadGzipFile, *ARROW) as error:
        raise DataError(
            f"`{source.name}` cannot be read to its end: {str(error).splitlines()[0]}",
            "it may be truncated; replace it, or leave it out with --exclude",
        ) from None
    except OSError as error:
        raise DataError(f"`{source.name}` cannot be read: {error}") from None


class _Records:
    """Records as they are collected, by the task's names for the columns that it chose."""

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self.source, self.names = source, names
        self.first = 0
        self._clear()

    def _clear(self) -> None:
        self.columns: dict[str, list[str | None]] = {name: [] for name in self.names}
        self.numbers: list[int] = []
        self.size = 0

    def add(self, values: Sequence[str | None], number: int) -> None:
        """One record: a value for each chosen column, and its line. Raises ValueError for a value
        that is no text, or half of a surrogate pair (which is a ValueError, too)."""
        for value in values:
            if value is not None:
                if not isinstance(value, str):
                    raise ValueError
                self.size += len(value.encode())
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        self.numbers.append(number)

    def take(self) -> Iterator[Rows]:
        """What was collected since the last time, if anything was."""
        numbers, count, source = self.numbers, len(self.numbers), self.source
        if not count:
            return
        arrays = [pa.array(column, pa.large_string()) for column in self.columns.values()]
        whole = [pa.array([False] * count), pa.array([True] * count)]
        row = pa.array(range(self.first, self.first + count), pa.int64())
        table = pa.RecordBatch.from_arrays(
            [*arrays, *whole, row], names=[*self.columns, "follows", "ends", "row"]
        )
        self.first += count
        self._clear()
        yield Rows(table, source.split, lambda i: f"{source.name}, line {numbers[i]}")


def _jsonl(
    source: Source, choose: Choose, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """JSON lines. A malformed line is counted and named; the rest goes on."""
    assert source.path is not None
    records: _Records | None = None
    line = 1
    with open_bytes(source.path) as file:
        for chunk in _line_chunks(file, source.name):
            for raw in chunk.split(b"\n"):
                number, line = line, line + 1
                if not raw.strip():
                    continue
                try:
                    row = json.loads(raw)
                    if not isinstance(row, dict):
                        raise ValueError
                    if records is None:
                        found = _keys(chunk)
                        records = _Records(source, choose(found, f"`{source.name}`"))
                    records.add([row.get(name) for name in records.names.values()], number)
                except (ValueError, RecursionError):
                    ledger.came_in(1, len(raw))
                    ledger.drop("malformed", len(raw), f"{source.name}, line {number}")
            line -= 1 if chunk.endswith(b"\n") else 0
            if records:
                yield from records.take()
            advance(len(chunk))


def _keys(chunk: bytes) -> dict[str, str]:
    """The keys of the first rows, each with the type of its first value."""
    kinds = {str: "string", int: "number", float: "number"}
    found: dict[str, str] = {}
    for raw in itertools.islice(chunk.split(b"\n"), SHOWN_ROWS):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(raw)
            if isinstance(row, dict):
                for key, value in row.items():
                    if value is not None:
                        found.setdefault(key, kinds.get(type(value), "other"))
    return found


def _line_chunks(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Chunks of about CHUNK bytes that end at line ends."""
    rest = b""
    while data := file.read(CHUNK):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
            if len(rest) > LONGEST_ROW:
                raise DataError(f"`{name}` has a line of over {LONGEST_ROW >> 30} GiB")
    if rest:
        yield rest


def _csv(
    source: Source, choose: Choose, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Comma- or tab-separated rows below a header."""
    assert source.path is not None
    csv.field_size_limit(LONGEST_ROW)
    with (
        open_bytes(source.path) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        lines = _counted(text, advance)
        reader = csv.reader(lines, delimiter="\t" if source.kind == "tsv" else ",")
        try:
            header = next(reader)
        except StopIteration:
            return
        records = _Records(source, choose(dict.fromkeys(header, "string"), f"`{source.name}`"))
        places = [header.index(name) for name in records.names.values()]
        while True:
            row: list[str] = []
            try:
                row = next(reader)
                if not row:  # a blank line is no row
                    continue
                if len(row) != len(header) or any("\x00" in field for field in row):
                    raise ValueError
                records.add([row[place] for place in places], reader.line_num)
            except StopIteration:
                break
            except (csv.Error, ValueError):
                lost = sum(len(field.encode(errors="surrogateescape")) for field in row)
                ledger.came_in(1, lost)
                ledger.drop("malformed", lost, f"{source.name}, line {reader.line_num}")
            if records.size > CHUNK:
                yield from records.take()
        yield from records.take()


def _counted(lines: Iterator[str], advance: Callable[[int], None]) -> Iterator[str]:
    for line in lines:
        advance(len(line))
        yield line


def _parquet(
    source: Source, choose: Choose, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Parquet, a few rows at a time, so that long ones do not fill the memory."""
    del ledger
    assert source.path is not None
    if source.path.suffix.lower() != ".parquet":
        raise DataError(
            f"`{source.name}`: parquet is compressed inside already", "decompress it first"
        )
    with pyarrow.parquet.ParquetFile(source.path) as file:
        if not file.metadata.num_rows:
            return
        found = {
            field.name: "string" if _is_text(field.type) else "other" for field in file.schema_arrow
        }
        records = _Records(source, choose(found, f"`{source.name}`"))
        average = source.path.stat().st_size / file.metadata.num_rows
        count = int(min(max(CHUNK / max(average * 4, 1), 16), 65536))
        names = list(dict.fromkeys(records.names.values()))
        for batch in file.iter_batches(count, columns=names):
            yield from _columns(records, batch)
            advance(int(batch.num_rows * average))


def _columns(records: _Records, batch: Any) -> Iterator[Rows]:
    """An Arrow batch's rows."""
    columns = [
        batch.column(name).cast(pa.large_string()).to_pylist() for name in records.names.values()
    ]
    for number, values in enumerate(zip(*columns, strict=True), records.first + 1):
        records.add(values, number)
    yield from records.take()


def _is_text(kind: Any) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_dictionary(kind)
    )


def _hub(source: Source, choose: Choose) -> Iterator[Rows]:
    """A hub data set's rows, through datasets; hf:NAME[:SPLIT]."""
    data = load_hub(source.hub)
    found = {
        name: "string" if getattr(kind, "dtype", "") in ("string", "large_string") else "other"
        for name, kind in data.features.items()
    }
    records = _Records(source, choose(found, f"`{source.name}`"))
    names = list(dict.fromkeys(records.names.values()))
    for batch in data.select_columns(names).with_format("arrow").iter(512):
        yield from _columns(records, batch)


def load_hub(spec: str) -> Any:
    """The data set behind NAME[:SPLIT] (default: train). Raises DataError."""
    import datasets

    name, _, split = spec.partition(":")
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # datasets raises many kinds
        raise DataError(
            f"hf:{spec} cannot be loaded: {str(error).splitlines()[0]}",
            "check the name, the split and the network",
        ) from None


def _text(
    source: Source, separator: str, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """A text file: one document, or many between separators; a long one as blocks."""
    assert source.path is not None
    blocks: list[tuple[str, bool, bool]] = []
    size = row = documents = 0

    def rows() -> Rows:
        first = row - len(blocks)
        table = pa.RecordBatch.from_arrays(
            [pa.array([b[0] for b in blocks], pa.large_string()), pa.array([b[1] for b in blocks]),
             pa.array([b[2] for b in blocks]), pa.array(range(first, row), pa.int64())],
            names=["text", "follows", "ends", "row"],
        )  # fmt: skip
        return Rows(table, source.split, lambda i: f"{source.name}, block {first + i + 1}")

    with open_bytes(source.path) as file:
        follows = False
        for data, ends in _documents(file, separator.encode(), advance):
            if not follows:
                documents += 1
            broken = _undecodable(data)
            if broken:
                ledger.came_in(1, len(data))
                ledger.drop("unreadable", len(data), f"{source.name} ({broken})")
                follows = False
                continue
            for text, last in _blocks(data):
                blocks.append((text, follows, last and ends))
                follows = True
                row += 1
                size += len(text)
                if size > CHUNK:
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
    fresh = True
    parts = False
    while True:
        data = file.read(CHUNK)
        advance(len(data))
        if fresh and data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
        fresh = False
        rest += data
        if separator:
            *whole, rest = rest.split(separator)
            for part in whole:
                if part.strip() or parts:
                    yield part, True
                parts = False
        if not data:
            break
        while len(rest) > 2 * CHUNK:
            end = rest.rfind(b"\n", 0, CHUNK) + 1 or _character_end(rest, CHUNK)
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
