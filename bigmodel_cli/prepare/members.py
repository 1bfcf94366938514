"""Columns inside of objects: `translation.en` is the member `en` of what `translation` holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def leaf(row: Mapping[str, Any], name: str) -> Any:
    """A column's value; that of `translation.en` may be a member of the object `translation`."""
    parent, dot, member = name.rpartition(".")
    if dot and name not in row and isinstance(inner := row.get(parent), Mapping):
        return inner.get(member)
    return row.get(name)


def schema(names: Iterable[str]) -> pa.Schema:
    """Columns of text; those with a dot may also be inside of objects."""
    types: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name in names:
        parent, dot, member = name.rpartition(".")
        if dot:
            inner.setdefault(parent, {})[member] = pa.large_string()
        types[name] = pa.large_string()
    whole = {**types, **{n: pa.struct([*kind.items()]) for n, kind in inner.items()}}
    return pa.schema([*whole.items()])


def field(table: Any, name: str) -> Any:
    """A column of a table or batch, or a member of one that holds objects."""
    parent, dot, member = name.rpartition(".")
    names = table.schema.names
    if not dot or parent not in names or not pa.types.is_struct(table.schema.field(parent).type):
        return table.column(name)
    nested = pc.struct_field(table.column(parent), member)
    return pc.coalesce(table.column(name), nested) if name in names else nested
