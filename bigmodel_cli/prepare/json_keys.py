"""The columns of JSON lines: the keys of all rows, wherever they are.

Legend: K ends of keys.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.prepare.sources import Layout, Source
from bigmodel_cli.prepare.texts import check_length, opened
from bigmodel_cli.worker import beside

VERSION = 1  # counts up whenever the same file gives other columns than before
MOST_KEYS = 256  # different ones in a file: rows with more are looked at no further
BLOCK = 1 << 18  # bytes that are looked at together, so that they stay near the core
TYPES = {str: "string", bool: "bool", int: "number", float: "number"}  # a bool is an int
NULL, NESTED = "null", "nested"


def columns_of(source: Source, layout: Layout) -> dict[str, str]:
    """The keys of a file's rows, in the order in which they come, each with the type of its first
    value that is not null."""
    path = source.path
    assert path is not None

    def read() -> str:
        with beside(partial(_hash, layout, path)):  # which has to read all of it as well
            return json.dumps(_columns(path, layout.encoding))

    text = layout.cache.value(path, f"keys {VERSION} {layout.encoding}", read)
    try:
        found = {str(key): str(kind) for key, kind in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError):  # somebody wrote into the cache
        found = _columns(path, layout.encoding)
    if len(found) > MOST_KEYS:
        layout.say(
            "keys",
            f"`{source.name}` has over {MOST_KEYS} different keys: rows after those "
            "that have them are not searched for more",
        )
    return found


def _hash(layout: Layout, path: Path) -> None:
    with contextlib.suppress(OSError):  # a file that is gone is noticed where it is needed
        layout.cache.sha256(path)


def _columns(path: Path, encoding: str) -> dict[str, str]:
    found: dict[str, str] = {}
    with opened(Source(path.name, path), Layout(encoding=encoding)) as file:
        for block in chunks(file, path.name, BLOCK):
            if _has_other(np.frombuffer(block, np.uint8), found):
                add_types(found, _rows(block))
            if len(found) > MOST_KEYS:
                break
    return found


def chunks(file: IO[bytes], name: str, size: int) -> Iterator[bytes]:
    """Chunks of about `size` bytes that end at line ends. Raises DataError for a line that is too
    long."""
    rest: list[bytes] = []
    while data := file.read(size):
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, data[:end]])
            rest = []
        rest.append(data[end:])
        check_length(sum(map(len, rest)), name)
    if whole := b"".join(rest):
        yield whole


def _rows(block: bytes) -> Iterator[Mapping[str, Any]]:
    for line in block.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line, parse_int=float)
            if isinstance(row, dict):
                yield row


def add_types(found: dict[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds the keys of rows to those that were found, with the types of their values."""
    for row in rows:
        for key, value in row.items():
            if found.get(key, NULL) == NULL:
                kinds = (name for kind, name in TYPES.items() if isinstance(value, kind))
                found[key] = NULL if value is None else next(kinds, "other")
            for name, inner in value.items() if isinstance(value, dict) else ():
                if isinstance(inner, str):
                    found.setdefault(f"{key}.{name}", NESTED)


def types_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The keys of some rows, and those of the objects that they hold, with their types."""
    found: dict[str, str] = {}
    add_types(found, rows)
    return found


def _has_other(codes: NDArray[np.uint8], found: Mapping[str, str]) -> bool:
    """Whether lines (n,) may hold another key than those that were found, or a first value of one
    of these. A key of an object inside of a row counts if it has a text."""
    likely = codes[:-1] <= ord('"')  # a quote, or a space after it; most colons come after others
    colons_K = 1 + np.flatnonzero(likely & (codes[1:] == ord(":")))
    ends_K = _skipped(codes, colons_K - 1, -1)
    quoted = codes[ends_K] == ord('"')
    colons_K, ends_K = colons_K[quoted], ends_K[quoted]
    inside = _escaped(codes, ends_K)  # of a text
    colons_K, ends_K = colons_K[~inside], ends_K[~inside]
    for key, kind in found.items():
        if kind != NESTED:
            other = ~_spells(codes, ends_K, key)
            if kind == NULL:
                other |= codes[_skipped(codes, colons_K + 1, 1)] != ord("n")
            colons_K, ends_K = colons_K[other], ends_K[other]
    if not len(ends_K):
        return False
    depths_K = _depths(codes, ends_K)
    if (depths_K == 1).any():
        return True
    texts = (depths_K == 2) & (codes[_skipped(codes, colons_K + 1, 1)] == ord('"'))
    ends_K = ends_K[texts]
    for key in {key.rpartition(".")[2] for key, kind in found.items() if kind == NESTED}:
        ends_K = ends_K[~_spells(codes, ends_K, key)]
    return len(ends_K) > 0


def _spells(codes: NDArray[np.uint8], ends: NDArray[np.int64], key: str) -> NDArray[np.bool_]:
    """Whether a key ends at each place."""
    spelled: NDArray[np.bool_] = np.zeros(len(ends), bool)
    for text in {json.dumps(key), json.dumps(key, ensure_ascii=False)}:
        raw = np.frombuffer(text.encode(errors="surrogateescape"), np.uint8)
        spelled |= (codes[ends[:, None] + np.arange(1 - len(raw), 1)] == raw).all(1)
    return spelled


def _depths(codes: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many brackets are open at each place of a line."""
    quotes = np.flatnonzero(codes == ord('"'))
    quotes = quotes[~_escaped(codes, quotes)]
    ends = np.flatnonzero(codes == ord("\n"))
    begins = np.append(0, ends + 1)
    folded = codes | 32  # of which [ and {, ] and } are the same
    brackets = np.flatnonzero((folded == ord("{")) | (folded == ord("}")))
    before = np.searchsorted(quotes, begins)[np.searchsorted(ends, brackets)]  # its line
    brackets = brackets[(np.searchsorted(quotes, brackets) - before) % 2 == 0]  # in no text
    depths = np.append(0, np.cumsum(np.where(folded[brackets] == ord("{"), 1, -1)))
    first = np.searchsorted(brackets, begins)[np.searchsorted(ends, places)]
    found: NDArray[np.int64] = depths[np.searchsorted(brackets, places)] - depths[first]
    return found


def _escaped(codes: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether an odd number of backslashes is before each place. Of very many, it is not."""
    odd: NDArray[np.bool_] = np.zeros(len(places), bool)
    before = places - 1
    for _ in range(64):
        slash = codes[before] == ord("\\")
        if not slash.any():
            break
        odd ^= slash
        before = before - slash
    odd &= codes[before] != ord("\\")
    return odd


def _skipped(codes: NDArray[np.uint8], places: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """The next places from these, forwards or backwards, without spaces."""
    places = places % len(codes)
    while (spaces := codes[places] <= ord(" ")).any():
        places = (places + step * spaces) % len(codes)
    return places
