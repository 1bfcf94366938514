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
    """Columns of text, some of them inside of objects."""
    types: dict[str, Any] = {}
    for name in names:
        parent, dot, member = name.rpartition(".")
        if dot:
            types.setdefault(parent, {})[member] = pa.large_string()
        else:
            types[name] = pa.large_string()
    return pa.schema([(name, pa.struct(list(kind.items())) if isinstance(kind, dict) else kind)
                      for name, kind in types.items()])  # fmt: skip


def field(table: Any, name: str) -> Any:
    """A column of a table or batch, or a member of one that holds objects."""
    if name in table.schema.names:
        return table.column(name)
    parent, _, member = name.rpartition(".")
    return pc.struct_field(table.column(parent), member)
