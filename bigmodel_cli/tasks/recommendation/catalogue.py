"""The items of requests, found by their names in what training knew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

import pyarrow as pa

from bigmodel_cli.tasks.clean import trimmed

# as JSON writes it; `007` is a name
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?([eE][+-]?[0-9]{1,3})?")
SURROGATE = re.compile("[\ud800-\udfff]")  # which no name holds


class Catalogue:
    """The place of each item among all.

    A name counts without the spaces around it, as `prepare` reads it. A number stands for the item
    of that name or, where there is none, for the one whose name is the same number: programs write
    1 as 1.0, and the other way round.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._numbers: dict[Decimal, int] = {}
        for place, name in enumerate(names):  # the most popular first
            if NUMBER.fullmatch(name):
                self._numbers.setdefault(Decimal(name), place)

    def known(self, items: Sequence[str | float]) -> list[int]:
        """The places of those items that are known, in their order."""
        texts = ["" if SURROGATE.search(text := str(item)) else text for item in items]
        names = trimmed(pa.array(texts, pa.large_string())).to_pylist()
        found = []
        for item, name in zip(items, names, strict=True):
            place = self._places.get(name)
            if place is None and not isinstance(item, str):
                place = self._numbers.get(Decimal(name))
            found += [] if place is None else [place]
        return found
