"""Columns of Arrow's types as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare.sources import Source

LARGEST = float(1 << 62)  # of the whole numbers that are written as such


def check_names(source: Source, names: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Raises DataError for a chosen column that is there twice; one that is not read may be."""
    for name in chosen.values():
        if names.count(name) > 1:
            raise DataError(
                f"`{source.name}` has {names.count(name)} columns named `{name}`",
                "rename all but one, or choose another column: --column",
            )


def columns_in(schema: Iterable[Any]) -> dict[str, str]:
    """The columns of an Arrow schema, and the texts inside of objects, with their types."""
    found: dict[str, str] = {}
    for column in schema:
        found[column.name] = kind_of(column.type)
        for inner in column.type if pa.types.is_struct(column.type) else ():
            if kind_of(inner.type) == "string":
                found[f"{column.name}.{inner.name}"] = "nested"
    return found


def kind_of(kind: Any) -> str:
    """What an Arrow type is to a task."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if is_text(kind):
        return "string"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "bool" if pa.types.is_boolean(kind) else "null" if pa.types.is_null(kind) else "other"


def is_text(kind: Any) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_large_string(kind)
    )


def decoded(batch: Any) -> Any:
    """A batch whose dictionaries are written out."""
    columns = [
        c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def as_texts(column: Any, name: str, source: Source) -> Any:
    """A column's values as text: whole numbers without a point, not a number as none.

    Raises DataError for a type that has no text.
    """
    kind = column.type
    try:
        texts = column.cast(pa.large_string())
        if pa.types.is_floating(kind):
            numbers = column.cast(pa.float64())
            whole = pc.and_(pc.equal(numbers, pc.floor(numbers)), pc.less(pc.abs(numbers), LARGEST))
            integers = pc.if_else(whole, numbers, 0.0).cast(pa.int64()).cast(pa.large_string())
            texts = pc.if_else(whole, integers, texts)
            texts = pc.if_else(pc.is_nan(numbers), None, texts)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(
            f"the column `{name}` of `{source.name}` holds {kind}, which cannot be read as text",
            "name another column: --column",
        ) from None
    return texts
