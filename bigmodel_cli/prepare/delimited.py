"""Records as lines of text: CSV, TSV, and whatever else separates columns.

Where quotes enclose fields, one that is not closed costs its own line: the lines that it would
swallow are read again, each by itself.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.columns import check_names
from bigmodel_cli.prepare.records import Choose, Records
from bigmodel_cli.prepare.sniff import Looks, delimiter_of, split_quoted
from bigmodel_cli.prepare.sources import Layout, Source
from bigmodel_cli.prepare.texts import LONGEST_ROW, is_utf8, likely, lines, not_utf8, opened
from bigmodel_cli.tasks import Rows

EXCEL = re.compile(r'"?sep=(.)"?', re.I)  # its first line may say what separates columns
SHOWN_LINES, SHOWN_SIZE = 200, 1 << 20  # the first lines, by which the others are judged
CLOSING = re.compile(r'[^"]*+(?:""[^"]*+)*+"')  # to the end of a quoted field
OVERHEAD = 64  # bytes that a line takes beside its text


def delimited(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Separated columns, below a header unless the layout names them.

    In .csv, and between commas, quotes enclose a field. Anywhere else a quote is a character, and
    where the layout says how columns are separated, the last one takes the rest of its line.
    """
    csv.field_size_limit(LONGEST_ROW)
    with opened(source, layout) as file:
        text = Lines(
            line.decode(errors="surrogateescape")
            for line in lines(file, source.name, advance, returns=True)
        )
        shown = text.first(SHOWN_LINES, SHOWN_SIZE)
        if not any(line.strip() for line in shown) and len(shown) < SHOWN_LINES:
            _nothing(source, ledger, "")
            return
        if shown and (excel := EXCEL.fullmatch(shown[0].rstrip("\r\n"))):
            next(text)
            shown = shown[1:] or [""]
            layout = dataclasses.replace(layout, delimiter=layout.delimiter or excel[1])
        delimiter = delimiter_of(source, layout, shown)
        quoted = len(delimiter) == 1 and (delimiter == "," or source.kind == "csv")
        header = list(layout.header) or _header(source, layout, next(text), delimiter, quoted)
        if layout.delimiter and len(header) == 1:
            layout.say(
                "one column",
                f"no `{delimiter}` is in the header of `{source.name}`, so it has one column only",
                "warning",
            )
        elif len(header) == 1 and (other := re.search(r"\w([^\w\s.()/-])\w", header[0])):
            layout.say(
                f"one column {other[1]}",
                f"`{source.name}` has one column, `{header[0]:.60}`; if `{other[1]}` separates "
                f"columns: --delimiter '{other[1]}'",
                "warning",
            )
        chosen = choose(dict.fromkeys(header, "string"), f"`{source.name}`")
        check_names(source, header, chosen)
        records = Records(source, chosen, layout)
        places = [header.index(name) for name in records.names.values()]
        reader: Reader
        if quoted:
            reader = Quoted(text, delimiter, len(header), Looks(shown, delimiter, len(header)))
        else:
            if source.kind == "tsv" and any(
                len(field) > 1 and field[0] == field[-1] == '"'
                for line in shown
                for field in line.rstrip("\r\n").split(delimiter)
            ):
                layout.say(
                    "quotes",
                    f"`{source.name}` has fields in quotes, which are kept as "
                    "characters; where they enclose fields, name the file .csv",
                )
            rest = bool(layout.header or layout.delimiter)
            reader = Plain(text, delimiter, len(header) - 1 if rest else -1)
        rows = 0
        for row, line in reader:
            rows += 1
            where = f"{source.name}, line {text.number}"
            try:
                if len(row) != len(header) or "\x00" in line:
                    raise ValueError
                records.add([row[place] for place in places], text.number)
            except ValueError:
                lost = "".join(row).encode(errors="surrogateescape")
                if is_utf8(lost):
                    ledger.came_in(1, len(lost))
                    ledger.drop("malformed", len(lost), where)
                else:
                    not_utf8(source, layout, ledger, len(lost), where)
            if records.size > sources.CHUNK:
                yield from records.take()
        if not rows:
            _nothing(source, ledger, " (a header and no rows)")
        yield from records.take()


def _nothing(source: Source, ledger: Ledger, why: str) -> None:
    ledger.came_in(1, 0)
    ledger.drop("empty", 0, source.name + why)


def _header(source: Source, layout: Layout, line: str, delimiter: str, quoted: bool) -> list[str]:
    """The names of the columns. Raises DataError."""
    if "\x00" in line or not is_utf8(line.encode(errors="surrogateescape")):
        raise DataError(
            f"the header of `{source.name}` is not {layout.encoding or 'UTF-8'}",
            f"name its encoding: --encoding {likely(source) or 'gbk'}",
        )
    body = line.rstrip("\r\n")
    names = split_quoted(body, delimiter) if quoted else body.split(delimiter)
    if not any(name.strip() for name in names):
        raise DataError(
            f"the header of `{source.name}` is empty, and must name its columns",
            "remove blank lines above it, or name them: --header label,text",
        )
    types = source.path and sources.unpacked(source.path.name).lower().endswith(".inter")
    return [name.partition(":")[0] if types else name for name in names]


class Lines:
    """Lines that can be given back. `number`: of those that were taken for good."""

    def __init__(self, found: Iterable[str]) -> None:
        self.found, self.again = iter(found), deque[str]()
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else next(self.found)
        self.number += 1
        return line

    def give_back(self, taken: Sequence[str]) -> None:
        self.again.extendleft(reversed(taken))
        self.number -= len(taken)

    def first(self, count: int, size: int) -> list[str]:
        """The next lines, which stay."""
        taken: list[str] = []
        for line in self:
            taken.append(line)
            size -= len(line)
            if len(taken) == count or size < 0:
                break
        self.give_back(taken)
        return taken


class Reader(Protocol):
    """Rows, each with the line or lines that it was made of; of a line that is lost the only field
    is the whole line. Blank lines are none."""

    def __iter__(self) -> Iterator[tuple[list[str], str]]: ...


class Plain:
    """Lines cut at a delimiter, `cuts` times at most (−1: wherever it is)."""

    def __init__(self, text: Lines, delimiter: str, cuts: int) -> None:
        self.text, self.delimiter, self.cuts = text, delimiter, cuts

    def __iter__(self) -> Iterator[tuple[list[str], str]]:
        for line in self.text:
            body = line.rstrip("\r\n")
            if body.strip() if self.cuts >= 0 else body:
                yield body.split(self.delimiter, self.cuts), line


class Quoted:
    """Lines with fields in quotes, which may hold delimiters and line ends."""

    def __init__(self, text: Lines, delimiter: str, columns: int, looks: Looks) -> None:
        self.text, self.delimiter, self.columns, self.looks = text, delimiter, columns, looks

    def __iter__(self) -> Iterator[tuple[list[str], str]]:
        for line in self.text:
            body = line.rstrip("\r\n")
            if '"' not in line:
                if body:
                    yield body.split(self.delimiter), line
                continue
            row = split_quoted(body + "\n", self.delimiter)
            if not row[-1].endswith("\n"):
                yield row, line
            elif whole := self._whole(line, len(row) - 1):
                yield whole
            else:
                yield [body], line

    def _whole(self, line: str, place: int) -> tuple[list[str], str] | None:
        """The row of a line whose field `place` is not closed, with the lines that close it; None,
        and no more than that line, where none does, or the lines look like rows of their own."""
        taken = [line]
        size = len(line)
        for more in self.text:
            taken.append(more)
            size += len(more) + OVERHEAD
            closed = CLOSING.match(more)
            if size > LONGEST_ROW:
                break
            if not closed:
                continue
            rest = more[closed.end() :].rstrip("\r\n")
            if rest and not rest.startswith(self.delimiter):
                break
            if rest and split_quoted(rest + "\n", self.delimiter)[-1].endswith("\n"):
                continue  # another field begins, and goes on in the next line
            whole = "".join(taken)
            row = split_quoted(whole.removesuffix("\n").removesuffix("\r"), self.delimiter)
            if len(row) == self.columns and not self.looks.rows(taken, place):
                return row, whole
            break
        self.text.give_back(taken[1:])
        return None
