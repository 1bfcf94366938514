"""Cleaning text, column by column, with every drop in the ledger."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import Rows, Units

# C0 but tab, newline, form feed, carriage return; DEL; C1; a byte order mark inside of text
CONTROL = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{80}-\x{84}\x{86}-\x{9f}\x{feff}]"
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")  # the same
TEXT_NAMES = ("text", "content", "body", "document", "story", "article", "code", "sentence")


def cut_control(text: str) -> str:
    """A text without control characters."""
    return _CONTROL.sub("", text)


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


def text_column(found: Mapping[str, str], wanted: str, where: str) -> str:
    """The column that holds the text: the wanted one, a usual name, or the only one of strings.

    Raises DataError when there is none, or none that is obvious.
    """
    columns = ", ".join(f"`{name}`" for name in found) or "none"
    if wanted:
        if wanted not in found:
            raise DataError(f"{where} has no column `{wanted}`", f"it has {columns}")
        return wanted
    known = [name for name in TEXT_NAMES if name in found]
    strings = [name for name, kind in found.items() if kind == "string"]
    empty = [name for name in known if found[name] == "null"]  # in all rows that were looked at
    for names in ([name for name in known if name not in empty], strings, empty):
        if len(names) == 1 or (names and names is not strings):
            return names[0]
    raise DataError(
        f"{where}: which column is the text?", f"say --column text=NAME; it has {columns}"
    )


def named_column(
    found: Mapping[str, str], name: str, wanted: str | None, usual: Sequence[str], where: str
) -> str:
    """The column that the task calls `name`: the wanted one, or the first of its usual names.

    Raises DataError when there is none.
    """
    chosen = wanted or next((other for other in usual if other in found), "")
    if chosen not in found:
        columns = ", ".join(f"`{column}`" for column in found) or "none"
        missing = f"has no column `{wanted}`" if wanted else f"has no column for the {name}"
        raise DataError(f"{where} {missing}", f"say --column {name}=NAME; it has {columns}")
    return chosen


def clean_text(rows: Rows, ledger: Ledger, shortest: int) -> Units | None:
    """Rows with a column `text` (and `follows`, `ends`: whether it goes on from the row before,
    and whether its document ends with it) as units; None if nothing is left.

    Control characters are cut out; rows without text, empty ones, and whole documents of under
    `shortest` characters are dropped.
    """
    table = rows.table
    text = table.column("text")
    count = len(text)
    missing = np.zeros(count, bool)
    if text.null_count:
        missing, text = as_array(pc.is_null(text)), pc.fill_null(text, "")
    sizes = as_array(pc.binary_length(text))
    ledger.came_in(count, int(sizes.sum()))
    kept = np.ones(count, bool)

    def drop(reason: str, which: np.ndarray) -> None:
        nonlocal kept
        for index in np.flatnonzero(which & kept).tolist():
            ledger.drop(reason, int(sizes[index]), rows.where(int(index)))
        kept &= ~which

    drop("no_text", missing)
    dirty = as_array(pc.match_substring_regex(text, CONTROL))
    if dirty.any():
        text = pc.replace_substring_regex(text, CONTROL, "")
        smaller = as_array(pc.binary_length(text))
        for index in np.flatnonzero(dirty & kept).tolist():
            ledger.remove(
                "control_characters", int(sizes[index] - smaller[index]), rows.where(int(index))
            )
        sizes = smaller
    drop("empty", (sizes == 0) | as_array(pc.utf8_is_space(text)))
    whole = as_array(table.column("ends")) & ~as_array(table.column("follows"))
    drop("too_short", whole & (as_array(pc.utf8_length(text)) < shortest))
    if not kept.any():
        return None
    places = np.flatnonzero(kept)
    chosen = as_column(places)
    names = [name for name in table.schema.names if name != "text"]
    units = pa.RecordBatch.from_arrays(
        [text.take(chosen), *(table.column(name).take(chosen) for name in names)],
        names=["text", *names],
    )
    return Units(
        units, units.column("text"), sizes[places], rows.split, lambda i: rows.where(int(places[i]))
    )
