"""Exact duplicates, and the split of a unit: both functions of nothing but its content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

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


def split_of(hashes: list[bytes], val: float, test: float, seed: int) -> NDArray[np.int8]:
    """The index in SPLITS of each unit: (n,). Adding units never moves another."""
    ends = np.array(
        [xxhash.xxh3_64_intdigest(digest, seed=seed) for digest in hashes], np.uint64
    ) / float(1 << 64)
    return np.where(ends < test, 2, np.where(ends < test + val, 1, 0)).astype(np.int8)
