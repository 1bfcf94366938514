"""Cleaning text, column by column, with every drop in the ledger.

What `prepare` does to the text of a row, `cleaned` does to that of a request, by the same
functions: what is served is what was evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.tasks import Rows, Units

# Classes of characters, which Arrow and Python both read: C0 but tab, newline, form feed, carriage
# return; DEL; C1; a byte order mark inside of text
CONTROL = "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]"
# All but spaces, and characters that have no width, or show nothing: Unicode's White_Space and
# Default_Ignorable_Code_Point, marks of annotations, the empty Braille pattern
VISIBLE = (
    "[^\t-\r\x1c- \x85\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f"
    "\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_CONTROL, _VISIBLE = re.compile(CONTROL), re.compile(VISIBLE)


def cut_control(text: str) -> str:
    """A text without control characters."""
    return _CONTROL.sub("", text)


def trimmed(texts: pa.Array) -> pa.Array:
    """Texts without the spaces around them."""
    return pc.utf8_trim_whitespace(texts)


def blank(texts: pa.Array) -> NDArray[np.bool_]:
    """Which texts show nothing: those that are empty, or have only spaces and characters without
    width."""
    found: NDArray[np.bool_] = ~as_array(pc.match_substring_regex(texts, VISIBLE))
    return found


def cleaned(text: str, trim: bool = False) -> tuple[str, bool]:
    """The text of a request as `prepare` has that of a row, and whether it is blank. trim: whether
    the task's rows lose the spaces around them."""
    text = cut_control(text)
    if trim:
        (text,) = trimmed(pa.array([text], pa.large_string())).to_pylist()
    return text, not _VISIBLE.search(text)


def as_column(values: NDArray[Any]) -> pa.Array:
    """Numbers or booleans (n,) as an Arrow array, and `as_array` back. Arrow's own ways load pandas
    first, which takes a fifth of a second."""
    data = np.packbits(values, bitorder="little") if values.dtype == bool else values
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(data)])


def as_array(column: pa.Array) -> NDArray[Any]:
    """The values of an Arrow array of whole numbers or booleans without nulls: (n,)."""
    data = column.buffers()[1] or b""
    if pa.types.is_boolean(column.type):
        values = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").view(bool)
    else:
        values = np.frombuffer(data, str(column.type))
    return values[column.offset : column.offset + len(column)]


def put_between(
    into: NDArray[Any], places: NDArray[np.int64], values: NDArray[Any], counts: NDArray[np.int64]
) -> None:
    """Writes each run of `counts` values to its place in a longer array; the rest stays."""
    ends = np.cumsum(counts)
    if len(counts) and len(values) >= 64 * len(counts):  # few long ones: copied as they are
        for place, begin, end in zip(places.tolist(), (ends - counts).tolist(), ends.tolist()):
            into[place : place + end - begin] = values[begin:end]
    else:
        into[np.arange(len(values)) + np.repeat(places - ends + counts, counts)] = values


class Cleaning:
    """Rows whose columns of text are being cleaned: which of them are left, and their sizes.

    Control characters are cut out; rows that lack one of the texts, or have a blank one, are
    dropped.
    """

    def __init__(self, rows: Rows, ledger: Ledger, names: Sequence[str]) -> None:
        self.rows, self.ledger, self.names = rows, ledger, names
        self.texts = [rows.table.column(name) for name in names]
        count = len(rows.table)
        self.kept = np.ones(count, bool)  # (n,)
        missing = np.zeros(count, bool)
        for place, text in enumerate(self.texts):
            if text.null_count:
                missing |= as_array(pc.is_null(text))
                self.texts[place] = pc.fill_null(text, "")
        self.sizes = self._sizes()  # (n,) bytes of all texts of a row
        ledger.came_in(count, int(self.sizes.sum()))
        self.drop("no_text", missing)
        dirty = np.zeros(count, bool)
        for text in self.texts:
            dirty |= as_array(pc.match_substring_regex(text, CONTROL))
        if dirty.any():
            cut = [pc.replace_substring_regex(text, CONTROL, "") for text in self.texts]
            self.replace("control_characters", cut)
        for text in self.texts:
            self.drop("empty", blank(text))

    def _sizes(self) -> NDArray[np.int64]:
        sizes: NDArray[np.int64] = np.zeros(len(self.kept), np.int64)
        for text in self.texts:
            sizes = sizes + as_array(pc.binary_length(text))
        return sizes

    def drop(self, reason: str, which: NDArray[np.bool_]) -> None:
        """Drops rows (n,) of those that are left."""
        for index in np.flatnonzero(which & self.kept).tolist():
            self.ledger.drop(reason, int(self.sizes[index]), self.rows.where(int(index)))
        self.kept &= ~which

    def replace(self, reason: str, texts: Sequence[pa.Array]) -> None:
        """Takes shorter texts instead; what is missing was removed for this reason."""
        before, self.texts = self.sizes, list(texts)
        self.sizes = self._sizes()
        for index in np.flatnonzero((before != self.sizes) & self.kept).tolist():
            size = int(before[index] - self.sizes[index])
            self.ledger.remove(reason, size, self.rows.where(int(index)))

    def units(self, keys: pa.Array, groups: pa.Array | None = None) -> Units | None:
        """What is left; None if nothing is."""
        if not self.kept.any():
            return None
        rows, places = self.rows, np.flatnonzero(self.kept)
        chosen = as_column(places)
        rest = [name for name in rows.table.schema.names if name not in self.names]
        columns = [*self.texts, *(rows.table.column(name) for name in rest)]
        table = pa.RecordBatch.from_arrays(
            [column.take(chosen) for column in columns], names=[*self.names, *rest]
        )
        return Units(
            table,
            keys.take(chosen),
            self.sizes[places],
            rows.split,
            lambda i: rows.where(int(places[i])),
            groups=None if groups is None else groups.take(chosen),
        )


def clean_text(rows: Rows, ledger: Ledger, shortest: int) -> Units | None:
    """Rows with a column `text` (and `follows`, `ends`: whether it goes on from the row before,
    and whether its document ends with it) as units; None if nothing is left.

    Whole documents of under `shortest` characters are dropped; one of a script that has no spaces,
    or whose characters are syllables, counts as three.
    """
    from bigmodel_cli.tasks.scripts import WIDE, lengths

    cleaning = Cleaning(rows, ledger, ["text"])
    (text,) = cleaning.texts
    short = as_array(rows.table.column("ends")) & ~as_array(rows.table.column("follows"))
    short &= cleaning.sizes < 4 * shortest  # bytes: a character has up to four
    places = np.flatnonzero(short)
    short[places] = lengths(text.take(as_column(places)), WIDE) < shortest
    cleaning.drop("too_short", short)
    return cleaning.units(text)
