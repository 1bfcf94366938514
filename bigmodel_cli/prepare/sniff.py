"""What the first lines of a delimited file tell: its delimiter, and what its columns hold."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence

from bigmodel_cli.prepare.sources import Layout, Source

DELIMITERS = ",;|\t"
SHARE = 0.8  # of the lines that must have as many columns as the header
LONGEST_NAME = 64
NUMBER = re.compile(r"[+-]?[0-9.,]+([eE][+-]?[0-9]+)?")
FEW = 8  # rows at least, to say what a column holds
FEWEST_SPANS, SHARE_OF_SPANS = 3, 0.05  # of rows with fields of several lines
LONGEST_FIELD = 40  # lines
ALIKE = 4  # lines that have the columns of a row, before they are more than chance


def split_quoted(text: str, delimiter: str) -> list[str]:
    """The fields of one row, some of them in quotes; none of what is not one row."""
    try:
        for row in csv.reader((text,), delimiter=delimiter):
            return row
    except csv.Error:
        pass
    return []


def delimiter_of(source: Source, layout: Layout, shown: Sequence[str]) -> str:
    """What separates the columns of a file: what the layout says, else what is usual, unless its
    first lines tell of another, which is said."""
    usual = "," if source.kind == "csv" else "\t"
    if layout.delimiter:
        return layout.delimiter
    ordered = [usual, *(one for one in DELIMITERS if one != usual)]
    counts = {one: _columns(shown, one, len(layout.header)) for one in ordered}
    found = max(ordered, key=lambda one: counts[one])  # the first of those that have as many
    if not counts[found] or counts[usual]:
        return usual
    name = {"\t": "a tab", ",": "a comma"}.get(found, f"`{found}`")
    message = f"{name} separates the columns of `{source.name}` (another: --delimiter)"
    layout.say(f"delimiter {source.kind} {found}", message)
    return found


def _columns(shown: Sequence[str], delimiter: str, named: int) -> int:
    """How many columns the lines have, if it is this that separates them; 0 if it does not. named:
    how many there must be, where there is no header."""
    first, *rest = shown
    header = split_quoted(first.rstrip("\r\n"), delimiter)
    wide = named or len(header)
    if named:
        rest = list(shown)
    elif not all(map(_is_name, filter(None, header))) or sum(map(bool, header)) < 2:
        return 0
    body = [line.rstrip("\r\n") for line in rest if line.strip()]
    plain = sum(len(line.split(delimiter)) == wide for line in body)
    quoted = [len(row) == wide for row in csv.reader(body, delimiter=delimiter)]
    fits = plain >= SHARE * len(body) or sum(quoted) >= SHARE * len(quoted)
    return wide if wide > 1 and fits else 0


def _is_name(text: str) -> bool:
    """Whether it may be the name of a column."""
    return 0 < len(text.strip()) <= LONGEST_NAME and not NUMBER.fullmatch(text.strip())


class Looks:
    """What rows look like, by the first lines: as quotes tell, or, where one that is not closed
    spoils that, as each line by itself does."""

    def __init__(self, shown: Sequence[str], delimiter: str, columns: int) -> None:
        self.delimiter, self.columns = delimiter, columns
        every = list(csv.reader(shown[1:], delimiter=delimiter))
        rows = [row for row in every if len(row) == columns]
        # of a file that has many of them, fields of several lines are no accident
        several = [max(field.count("\n") for field in row) for row in rows]
        spans = [span for span in several if 0 < span <= LONGEST_FIELD]
        self.several = len(spans) >= max(FEWEST_SPANS, SHARE_OF_SPANS * len(every))
        if len(rows) < max(FEW, SHARE * len(every)):
            rows = [row for line in shown[1:] if '"' not in line and (row := self._row(line))]
        self.known: dict[int, set[str] | None] = {}  # by place: all values, or None for numbers
        for place, values in enumerate(zip(*rows) if len(rows) >= FEW else ()):
            if all(map(NUMBER.fullmatch, values)):
                self.known[place] = None
            elif len({*values}) * 3 <= len(values):
                self.known[place] = {*values}

    def _row(self, line: str) -> list[str]:
        """A line's fields, where quotes mean nothing; none if they are too many, or too few."""
        row = line.rstrip("\r\n").split(self.delimiter)
        return row if len(row) == self.columns else []

    def rows(self, lines: Sequence[str], place: int) -> bool:
        """Whether each of the lines is a row by itself, rather than a part of the field `place` of
        one row."""
        if self.several and len(lines) <= LONGEST_FIELD:
            return False
        known = {p: values for p, values in self.known.items() if p != place}
        rows = [self._row(line) for line in lines]
        if not all(rows) or not (known or (self.columns > 1 and len(lines) >= ALIKE)):
            return False
        return all(
            row[p].strip('"') in values if values else NUMBER.fullmatch(row[p].strip('"'))
            for row in rows
            for p, values in known.items()
        )
