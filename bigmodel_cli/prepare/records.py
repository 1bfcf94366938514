"""Sources that hold records with types: JSON lines, JSON, Parquet, hub data sets."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.columns import as_texts, check_names, columns_in, decoded, is_text
from bigmodel_cli.prepare.json_keys import chunks, columns_of
from bigmodel_cli.prepare.members import field, leaf, schema
from bigmodel_cli.prepare.sources import Layout, Source
from bigmodel_cli.prepare.texts import is_utf8, not_utf8, opened
from bigmodel_cli.tasks import Rows
from bigmodel_cli.tasks.clean import as_column
from bigmodel_cli.worker import ahead

BLOCK = 1 << 20  # bytes of JSON lines that one core parses at once
SHOWN_ROWS = 100  # by which a source is looked into
FILES = 128  # that are read at once
FEWEST, MOST = 16, 4096  # rows of Parquet that are read at once
LONGEST_INTEGER = 4000  # digits; Python refuses to read more than 4,300
ARROW = (pa.ArrowInvalid, pa.ArrowIOError, pa.ArrowNotImplementedError, pa.ArrowTypeError)
Choose = Callable[[Mapping[str, str], str], dict[str, str]]


class Number(float):
    """A number of JSON's, as it was written."""

    text: str

    def __new__(cls, text: str) -> Number:
        number = super().__new__(cls, text)
        number.text = text
        return number


def whole(text: str) -> int | Number:
    """A whole number of JSON's, of any number of digits."""
    return int(text) if len(text) <= LONGEST_INTEGER else Number(text)


def _as_text(value: Any, kind: str) -> str | None:
    """A value as its kind's text. Raises ValueError for what the kind cannot be."""
    if value is None or (kind in ("text", "path") and isinstance(value, str)):
        return value
    if kind == "json":
        return json.dumps(value, ensure_ascii=False, default=str)  # dates of Parquet
    if kind == "value":
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, Number):
            return value.text
        if isinstance(value, str | int):
            return str(value)
    raise ValueError


def _as_file(value: Any, folder: Path) -> bytes | None:
    """The bytes that a value holds, is a data: URI of, or is the path to; None where there are
    none. Raises ValueError for what is neither."""
    from bigmodel_cli.tasks.pixels import read_file, read_uri

    if isinstance(value, Mapping):  # of a hub data set
        value = value.get("bytes") or value.get("path")
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError
    return read_uri(value) if value.startswith("data:") else read_file(folder / value)


class Records:
    """Records as they are collected, by the task's names for the columns that it chose."""

    def __init__(self, source: Source, names: Mapping[str, str], layout: Layout) -> None:
        self.source, self.names = source, names
        other = layout.kinds.get("*", "text")
        self.kinds = [layout.kinds.get(name, other) for name in names]
        self.first = 0
        self._clear()

    def _clear(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in self.names}
        self.numbers: list[int] = []
        self.size = 0

    def add(self, values: Sequence[Any], number: int) -> None:
        """One record: a value for each chosen column, and its line. Raises ValueError for a value
        that is not of its kind, or half of a surrogate pair (which is a ValueError, too)."""
        found = [self.value(value, kind) for value, kind in zip(values, self.kinds, strict=True)]
        self.size += sum(len(v.encode() if isinstance(v, str) else v) for v in found if v)
        for column, each in zip(self.columns.values(), found, strict=True):
            column.append(each)
        self.numbers.append(number)

    def value(self, value: Any, kind: str) -> str | bytes | None:
        """A value as its kind wants it. Raises ValueError."""
        if kind == "path":
            if isinstance(value, Mapping):
                value = None if value.get("bytes") else value.get("path")
            return value if isinstance(value, str) else None
        return _as_file(value, self.source.folder) if kind == "file" else _as_text(value, kind)

    def take(self) -> Iterator[Rows]:
        """What was collected since the last time, if anything was."""
        numbers = np.array(self.numbers)  # which a task may keep, to say where a row was
        if len(numbers):
            arrays = [
                pa.array(column, pa.large_binary() if kind == "file" else pa.large_string())
                for column, kind in zip(self.columns.values(), self.kinds, strict=True)
            ]
            self._clear()
            yield self.rows(arrays, numbers.__getitem__)

    def rows(self, columns: Sequence[pa.Array], line: Callable[[int], int]) -> Rows:
        """Whole columns at once. `line` says where a record is. Raises ArrowInvalid for what is
        no UTF-8."""
        count, name = len(columns[0]), self.source.name
        for column in columns:
            column.validate(full=True)
        whole = [as_column(np.zeros(count, bool)), as_column(np.ones(count, bool))]
        row = as_column(np.arange(self.first, self.first + count))
        table = pa.RecordBatch.from_arrays(
            [*columns, *whole, row], names=[*self.names, "follows", "ends", "row"]
        )
        self.first += count
        return Rows(table, self.source.split, lambda i: f"{name}, line {line(i)}")


def jsonl(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """JSON lines. A malformed line is counted and named; the rest goes on."""
    begin = 1  # the first line of the chunk
    for chunk, records, columns in ahead(_parsed_chunks(source, choose, layout)):
        lines = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
        if records and columns:
            yield records.rows(columns, functools.partial(int.__add__, begin))
        else:
            for number, raw in enumerate(chunk.split(b"\n"), begin):
                if raw.strip():
                    _add_line(raw, number, records, source, layout, ledger)
                if records and records.size > 2 * sources.CHUNK:  # lines that name long files
                    yield from records.take()
            if records:
                yield from records.take()
        begin += lines
        advance(len(chunk))


def _parsed_chunks(
    source: Source, choose: Choose, layout: Layout
) -> Iterator[tuple[bytes, Records | None, list[pa.Array] | None]]:
    """Chunks of whole lines; the records that theirs belong to, once there is one; and the chosen
    columns of those that could be parsed at once."""
    records: Records | None = None
    if found := columns_of(source, layout):
        records = Records(source, choose(found, f"`{source.name}`"), layout)
    with opened(source, layout) as file:
        for chunk in chunks(file, source.name, sources.CHUNK):
            flat = records and not {"json", "file"} & {*records.kinds}
            columns = _parsed(chunk, list(records.names.values())) if records and flat else None
            yield chunk, records, columns


def _parsed(chunk: bytes, names: Sequence[str]) -> list[pa.Array] | None:
    """The chosen columns of JSON lines; None where anything but one good object is on a line, which
    is then looked at line by line. Arrow alone would take several objects on one line."""
    codes = np.frombuffer(chunk, np.uint8)
    ends = np.append(np.flatnonzero(codes == ord("\n")), len(chunk))
    ends = ends[: len(ends) - chunk.endswith(b"\n")]
    begins = np.append(0, ends[:-1] + 1)
    last = codes[ends - 1]
    last = np.where(last == ord("\r"), codes[np.maximum(ends - 2, 0)], last)
    if (codes[begins] != ord("{")).any() or (last != ord("}")).any():
        return None
    longest = int(np.diff(ends, prepend=0).max())
    offsets = pa.py_buffer(np.array([0, len(chunk)]))
    types = schema(names)
    try:
        whole = pa.py_buffer(chunk)
        pa.LargeStringArray.from_buffers(1, offsets, whole).validate(full=True)  # all is UTF-8
        table = pyarrow.json.read_json(
            pa.BufferReader(whole),
            pyarrow.json.ReadOptions(
                block_size=min(max(BLOCK, 2 * longest), 2**31 - 1)
            ),  # blocks go to all cores
            pyarrow.json.ParseOptions(types, unexpected_field_behavior="ignore"),
        )
    except ARROW:
        return None
    if table.num_rows != len(ends):
        return None
    return [field(table, name).combine_chunks() for name in names]


def _add_line(
    raw: bytes, number: int, records: Records | None, source: Source, layout: Layout, ledger: Ledger
) -> None:
    """One line that may be anything."""
    where = f"{source.name}, line {number}"
    if b"\x00" in raw or not is_utf8(raw):  # UTF-16 has zeros
        not_utf8(source, layout, ledger, len(raw), where)
        return
    try:
        if records is None:
            raise ValueError
        columns = list(records.names.values())
        try:
            row = json.loads(raw, parse_int=whole, parse_float=Number)
        except RecursionError:  # Arrow takes any depth
            found = _parsed(raw, columns)
            row = found and {name: part[0].as_py() for name, part in zip(columns, found)}
        if not isinstance(row, dict):
            raise ValueError
        records.add([leaf(row, column) for column in columns], number)
    except ValueError:
        ledger.came_in(1, len(raw))
        ledger.drop("malformed", len(raw), where)


def parquet(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Parquet, a few rows at a time, so that long ones do not fill the memory."""
    del ledger
    for records, batch, size in ahead(_batches(source, choose, layout)):
        yield _columns(records, batch)
        advance(size)


def _batches(
    source: Source, choose: Choose, layout: Layout
) -> Iterator[tuple[Records, pa.RecordBatch, int]]:
    """The records that all rows belong to, some of the rows, and about how many bytes of the file
    hold them."""
    assert source.path is not None
    if source.path.suffix.lower() != ".parquet":
        raise DataError(
            f"`{source.name}`: parquet is compressed inside already", "decompress it first"
        )
    with pyarrow.parquet.ParquetFile(source.path) as file:
        if not file.metadata.num_rows:
            return
        chosen = choose(columns_in(file.schema_arrow), f"`{source.name}`")
        check_names(source, file.schema_arrow.names, chosen)
        records = Records(source, chosen, layout)
        names = list(dict.fromkeys(chosen.values()))
        first = decoded(next(file.iter_batches(FEWEST, columns=names)))
        mean = max(first.nbytes // FEWEST, 1)  # in the file, a text that comes again takes no room
        count = min(max(sources.CHUNK // mean, FEWEST), MOST)
        if "file" in records.kinds:  # whose bytes may be elsewhere
            count = min(count, FILES)
        average = source.path.stat().st_size / file.metadata.num_rows
        for batch in file.iter_batches(count, columns=names):
            yield records, decoded(batch), int(batch.num_rows * average)


def _columns(records: Records, batch: Any) -> Rows:
    """An Arrow batch's rows."""
    columns = []
    for name, kind in zip(records.names.values(), records.kinds, strict=True):
        column = field(batch, name)
        if kind == "path" and not is_text(column.type):
            paths = [records.value(value, kind) for value in column.to_pylist()]
            columns.append(pa.array(paths, pa.large_string()))
        elif kind == "file":
            files = [records.value(value, kind) for value in column.to_pylist()]
            columns.append(pa.array(files, pa.large_binary()))
        elif kind == "json" and not is_text(column.type):
            texts = [_as_text(value, kind) for value in column.to_pylist()]
            columns.append(pa.array(texts, pa.large_string()))
        elif pa.types.is_nested(column.type):
            raise DataError(
                f"the column `{name}` of `{records.source.name}` holds {column.type}, not values",
                "name another column: --column",
            )
        else:
            columns.append(as_texts(column, name, records.source))
    return records.rows(columns, functools.partial(int.__add__, records.first + 1))


def hub(source: Source, choose: Choose, layout: Layout) -> Iterator[Rows]:
    """A hub data set's rows, through datasets; hf:NAME[:SPLIT]. Classes go by their names."""
    data = sources.load_hub(source.hub)
    found = columns_in(data.features.arrow_schema)
    records = Records(source, choose(found, f"`{source.name}`"), layout)
    outer = (n if n in data.features else n.rpartition(".")[0] for n in records.names.values())
    names = list(dict.fromkeys(outer))
    classes = {n: pa.array(k.names) for n, k in data.features.items() if hasattr(k, "names")}
    for batch in data.select_columns(names).with_format("arrow").iter(512):
        for name in set(names) & set(classes):
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(place, name, classes[name].take(batch.column(name)))
        for part in batch.combine_chunks().to_batches():
            yield _columns(records, decoded(part))
