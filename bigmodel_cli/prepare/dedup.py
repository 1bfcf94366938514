"""Exact duplicates, and the split of a unit: functions of nothing but the units' content."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.tasks import Units
from bigmodel_cli.tasks.clean import as_column

if TYPE_CHECKING:
    from bigmodel_cli.prepare.spool import Spool

SPLITS = ("train", "val", "test")


def digests(keys: pa.Array) -> list[bytes]:
    """The 128-bit hash of each key's bytes (a string or binary array)."""
    if pa.types.is_large_string(keys.type) or pa.types.is_large_binary(keys.type):
        width: type[np.signedinteger[Any]] = np.int64
    else:
        width = np.int32
    offsets = np.frombuffer(keys.buffers()[1], width)[keys.offset : keys.offset + len(keys) + 1]
    data = memoryview(keys.buffers()[2] or b"")
    hashed = xxhash.xxh3_128_digest
    return [hashed(data[begin:end]) for begin, end in zip(offsets.tolist(), offsets[1:].tolist())]


class Seen:
    """Remembers hashes; 16 bytes decide, so that two different texts practically never meet."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def fresh(self, hashes: list[bytes]) -> NDArray[np.bool_]:
        """Which were never seen before: (n,). The first of equal ones counts as fresh."""
        known = self._known
        result = np.empty(len(hashes), bool)
        for index, digest in enumerate(hashes):
            before = len(known)
            known.add(digest)
            result[index] = len(known) > before
        return result


def shares_of(hashes: list[bytes], seed: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each unit, drawn by its content: (n,)."""
    drawn = [xxhash.xxh3_64_intdigest(digest, seed=seed) for digest in hashes]
    return np.array(drawn, np.uint64) / float(1 << 64)


def split_of(hashes: list[bytes], val: float, test: float, seed: int) -> NDArray[np.int8]:
    """The index in SPLITS of each unit: (n,). Adding units never moves another."""
    ends = shares_of(hashes, seed)
    return np.where(ends < test, 2, np.where(ends < test + val, 1, 0)).astype(np.int8)


def stratified(
    hashes: list[bytes], strata: list[str], val: float, test: float, seed: int
) -> NDArray[np.int8]:
    """The index in SPLITS of each unit: (n,). Of each stratum its share goes to val and to test,
    rounded so that all of them together have theirs; one unit of each stays in train."""
    drawn = shares_of(hashes, seed)
    splits = np.zeros(len(hashes), np.int8)
    names = {name: number for number, name in enumerate(sorted(set(strata)))}
    codes = np.array([names[name] for name in strata])
    before = 0
    for stratum in range(len(names)):
        places = np.flatnonzero(codes == stratum)
        places = places[np.argsort(drawn[places], kind="stable")]
        begin = 0
        for number, share in ((2, test), (1, val)):
            count = round((before + len(places)) * share) - round(before * share)
            end = min(begin + count, len(places) - 1)
            splits[places[begin:end]] = number
            begin = max(begin, end)
        before += len(places)
    return splits


def assign(
    stream: Iterator[Units], shares: Mapping[str, float], seed: int, ledger: Ledger, held: Spool
) -> Iterator[tuple[str, tuple[pa.RecordBatch, int, bytes]]]:
    """Drops exact duplicates and splits what is left: (split, (table, bytes, hashes)).

    Where the units have strata, they wait in `held` until all of them are known; a duplicate of
    another stratum, such as the same text with another label, has a reason of its own.
    """
    seen = Seen()
    held_out: set[bytes] = set()  # groups of units that are not to be learned from
    waiting: list[bytes] = []
    strata: list[str] = []
    sizes: list[NDArray[np.int64]] = []
    stratum_of: dict[bytes, str] = {}
    for units in stream:
        hashes = digests(units.keys)
        fresh = seen.fresh(hashes)
        reasons = ["duplicate_exact"] * len(hashes)
        names = [] if units.strata is None else list(map(sys.intern, units.strata.to_pylist()))
        for place, stratum in enumerate(names):
            if stratum_of.setdefault(hashes[place], stratum) != stratum:
                reasons[place] = "duplicate_contradicts"
        groups = hashes if units.groups is None else digests(units.groups)
        known = np.zeros(len(hashes), bool)
        if units.split in ("val", "test"):  # they come first
            held_out.update(groups if units.groups is not None else ())
        elif units.groups is not None:
            known = np.array([group in held_out for group in groups]) & fresh
            for index in np.flatnonzero(known):
                ledger.drop("in_held_out", int(units.sizes[index]), units.where(int(index)))
            fresh &= ~known
        rows = np.ones(len(hashes), np.int64) if units.rows is None else units.rows
        for index in np.flatnonzero(~fresh & ~known):
            size, count = int(units.sizes[index]), int(rows[index])
            ledger.drop(reasons[index], size, units.where(int(index)), count)
        chosen = np.flatnonzero(fresh)
        ledger.keep(int(rows[chosen].sum()), int(units.sizes[chosen].sum()))
        if units.split in ("val", "test"):
            splits = np.full(len(hashes), SPLITS.index(units.split))
        elif units.strata is not None:
            if len(chosen):
                waiting += [hashes[index] for index in chosen]
                strata += [names[index] for index in chosen]
                sizes.append(units.sizes[chosen])
                held.add("train", (units.table.take(as_column(chosen)), 0, b""))
            continue
        elif units.rows is not None:  # whose task has split them
            splits = np.zeros(len(hashes), np.int8)
        else:
            splits = split_of(groups, shares["val"], shares["test"], seed)
        yield from _cut(units.table, hashes, units.sizes, splits, fresh)
    held.close()
    if waiting:
        splits = stratified(waiting, strata, shares["val"], shares["test"], seed)
        first = 0
        for number, (table, _) in enumerate(held.parts("train")):
            part = slice(first, first := first + table.num_rows)
            yield from _cut(table, waiting[part], sizes[number], splits[part], True)


def _cut(
    table: pa.RecordBatch,
    hashes: list[bytes],
    sizes: NDArray[np.int64],
    splits: NDArray[np.integer[Any]],
    fresh: Any,
) -> Iterator[tuple[str, tuple[pa.RecordBatch, int, bytes]]]:
    for number, name in enumerate(SPLITS):
        chosen = np.flatnonzero(fresh & (splits == number))
        if len(chosen):
            content = b"".join(hashes[index] for index in chosen)
            yield name, (table.take(as_column(chosen)), int(sizes[chosen].sum()), content)
