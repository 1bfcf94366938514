"""Cleaning text, column by column, with every drop in the ledger."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import Rows, Units

# C0 but tab, newline, form feed, carriage return; DEL; C1; a byte order mark inside of text
CONTROL = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{80}-\x{84}\x{86}-\x{9f}\x{feff}]"
TEXT_NAMES = ("text", "content", "body", "document", "story", "article", "code", "sentence")


def text_column(found: Mapping[str, str], wanted: str, where: str) -> str:
    """The column that holds the text: the wanted one, a usual name, or the only one of strings.

    Raises DataError when there is none, or none that is obvious.
    """
    columns = ", ".join(f"`{name}`" for name in found) or "none"
    if wanted:
        if wanted not in found:
            raise DataError(f"{where} has no column `{wanted}`", f"it has {columns}")
        return wanted
    for name in TEXT_NAMES:
        if name in found:
            return name
    strings = [name for name, kind in found.items() if kind == "string"]
    if len(strings) == 1:
        return strings[0]
    raise DataError(
        f"{where}: which column is the text?", f"say --text-column NAME; it has {columns}"
    )


def clean_text(rows: Rows, ledger: Ledger, shortest: int) -> Units | None:
    """Rows with a column `text` (and `follows`, `ends`: whether it goes on from the row before,
    and whether its document ends with it) as units; None if nothing is left.

    Control characters are cut out; rows without text, empty ones, and whole documents of under
    `shortest` characters are dropped.
    """
    table = rows.table
    text = table.column("text")
    count = len(text)
    sizes: NDArray[np.int64] = _int64(pc.fill_null(pc.binary_length(text), 0))
    ledger.came_in(count, int(sizes.sum()))
    kept = np.ones(count, bool)

    def drop(reason: str, which: np.ndarray) -> None:
        nonlocal kept
        for index in np.flatnonzero(which & kept).tolist():
            ledger.drop(reason, int(sizes[index]), rows.where(int(index)))
        kept &= ~which

    if text.null_count:
        drop("no_text", np.asarray(pc.is_null(text)))
        text = pc.fill_null(text, "")
    dirty = np.asarray(pc.match_substring_regex(text, CONTROL))
    if dirty.any():
        text = pc.replace_substring_regex(text, CONTROL, "")
        smaller = _int64(pc.binary_length(text))
        for index in np.flatnonzero(dirty & kept).tolist():
            ledger.remove(
                "control_characters", int(sizes[index] - smaller[index]), rows.where(int(index))
            )
        sizes = smaller
    drop("empty", np.asarray(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(text)), 0)))
    whole = np.asarray(table.column("ends")) & ~np.asarray(table.column("follows"))
    drop("too_short", whole & (np.asarray(pc.utf8_length(text)) < shortest))
    if not kept.any():
        return None
    places = np.flatnonzero(kept)
    chosen = pa.array(places)
    units = pa.RecordBatch.from_arrays(
        [text.take(chosen), *(table.column(n).take(chosen) for n in ("follows", "ends", "row"))],
        names=["text", "follows", "ends", "row"],
    )
    return Units(
        units, units.column("text"), sizes[places], rows.split, lambda i: rows.where(int(places[i]))
    )


def _int64(values: pa.Array) -> NDArray[np.int64]:
    return np.array(values, np.int64)
