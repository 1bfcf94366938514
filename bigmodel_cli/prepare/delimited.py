"""Records as lines of text: CSV, TSV, and whatever else separates columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.records import LONGEST_ROW, Choose, Records
from bigmodel_cli.prepare.sources import Layout, Source, open_bytes
from bigmodel_cli.tasks import Rows


def delimited(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Comma- or tab-separated rows, below a header unless the layout names the columns.

    Where it does, or names a delimiter, anything but commas is no CSV: then quotes mean nothing,
    and the last column takes the rest of its line.
    """
    assert source.path is not None
    delimiter = layout.delimiter or ("," if source.kind == "csv" else "\t")
    plain = delimiter != "," and bool(layout.header or layout.delimiter)
    csv.field_size_limit(LONGEST_ROW)
    with (
        open_bytes(source.path) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        lines = _counted(text, advance)
        reader: Any
        if plain:
            reader = _Plain(lines, delimiter, len(layout.header))
        else:
            reader = csv.reader(lines, delimiter=delimiter)
        try:
            header = list(layout.header) or next(reader)
        except StopIteration:
            return
        if source.path.suffix.lower() == ".inter":
            header = [name.partition(":")[0] for name in header]
        if plain:
            reader.columns = len(header)
        found = choose(dict.fromkeys(header, "string"), f"`{source.name}`")
        records = Records(source, found, layout)
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
            if records.size > sources.CHUNK:
                yield from records.take()
        yield from records.take()


class _Plain:
    """Lines cut at a delimiter, with csv.reader's interface."""

    def __init__(self, lines: Iterator[str], delimiter: str, columns: int) -> None:
        self.lines, self.delimiter, self.columns = lines, delimiter, columns
        self.line_num = 0

    def __next__(self) -> list[str]:
        line = next(self.lines).rstrip("\r\n")
        self.line_num += 1
        return line.split(self.delimiter, self.columns - 1) if line.strip() else []


def _counted(lines: Iterator[str], advance: Callable[[int], None]) -> Iterator[str]:
    for line in lines:
        advance(len(line))
        yield line
