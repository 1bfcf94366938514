"""Shards: examples as flat arrays plus offsets in safetensors files, memory-mapped, never copied.

A field that is one number per example is an array of n numbers; a field of varying length is all
values one after another, with `<field>.offsets` (int64, n + 1).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.artifacts.manifest import check_file, inside, write_atomic
from bigmodel_cli.artifacts.records import Shard
from bigmodel_cli.errors import ArtifactError
from bigmodel_cli.worker import PATIENCE, Worker

HINT = "build it again: bigmodel prepare SOURCE --force"
SHARD_BYTES = 32 << 20
MOST_HEADER, MOST_TENSORS, MOST_SIZES = 16 << 20, 1 << 16, 8  # of a safetensors file
DTYPES: dict[str, Any] = {
    "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32,
    "F64": np.float64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Columns:
    """Examples by column. `values[name]` is flat; `lengths[name]` (n,) only for ragged fields."""

    count: int
    values: Mapping[str, NDArray[Any]]
    lengths: Mapping[str, NDArray[Any]]


class ShardWriter:
    """Collects one split's columns and writes them as shards of bounded size.

    A shard ends only between two calls of `add`, so what one call adds stays together. It is
    hashed and written by a thread of its own; `close` waits for it, and raises what it raised.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self._pending: list[Columns] = []
        self._bytes = 0
        self._worker = Worker[Shard]()
        self._written: list[Shard] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.end(PATIENCE)  # nothing is written after what failed

    def add(self, columns: Columns) -> None:
        if columns.count:
            self._pending.append(columns)
            self._bytes += sum(array.nbytes for array in columns.values.values())
            if self._bytes >= SHARD_BYTES:
                self._flush()

    def close(self) -> list[Shard]:
        """Writes the rest; gives one record per shard for the manifest."""
        if self._pending:
            self._flush()
        self._wait()
        return self._written

    def _flush(self) -> None:
        self._wait()  # one at a time, which bounds memory
        number, pending = len(self._written), self._pending
        self._pending, self._bytes = [], 0
        self._worker.start(lambda: self._write(number, pending))

    def _wait(self) -> None:
        if self._worker.busy:
            self._written.append(self._worker.result())

    def _write(self, number: int, pending: list[Columns]) -> Shard:
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {}
        for name in pending[0].values:
            arrays[name] = _joined([part.values[name] for part in pending])
            if name in pending[0].lengths:
                lengths = np.concatenate([part.lengths[name] for part in pending])
                arrays[f"{name}.offsets"] = np.concatenate(
                    [np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]
                )
        count = sum(part.count for part in pending)
        pending.clear()
        data = save(arrays, {"examples": str(count)})
        digest = hashlib.sha256(data).hexdigest()
        name = f"{self.split}-{number:05d}-{digest[:12]}.safetensors"
        write_atomic(self.folder / name, data)
        return Shard(name=name, examples=count, bytes=len(data), sha256=digest)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_header(path: Path, what: str = "shard", hint: str = HINT) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, checked against the file's size, and where its data begins."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MOST_HEADER):
                raise ValueError("its header has an impossible length")
            header = json.loads(file.read(length))
        if len(header) > MOST_TENSORS:
            raise ValueError(f"it has {len(header):,} tensors, more than {MOST_TENSORS:,}")
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            (begin, end), sizes = entry["data_offsets"], entry["shape"]
            width = np.dtype(DTYPES[entry["dtype"]]).itemsize if entry["dtype"] in DTYPES else 2
            if len(sizes) > MOST_SIZES or not {int} >= {*map(type, (begin, end, *sizes))}:
                raise ValueError(f"`{name}` has an impossible shape")
            if not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"`{name}` lies outside of the file")
            if min(sizes, default=0) < 0 or math.prod(sizes) * width != end - begin:
                raise ValueError(f"`{name}` has the wrong size")
    except FileNotFoundError:
        raise ArtifactError(f"the {what} `{path}` is missing", hint) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"the {what} `{path}` is corrupt: {error}", hint) from None
    return header, 8 + length


def _check_columns(arrays: Mapping[str, NDArray[Any]], examples: int, path: Path) -> None:
    """Raises ArtifactError where a shard does not hold so many examples in each of its fields."""
    for name, values in arrays.items():
        field = name.removesuffix(".offsets")
        offsets = arrays.get(f"{field}.offsets")
        if offsets is None:
            right = len(values) == examples
        elif name == field:
            continue  # its offsets say where each example's values are
        else:
            last = len(arrays[field]) if field in arrays else -1
            right = (
                offsets.dtype == np.int64
                and len(offsets) == examples + 1
                and offsets[0] == 0
                and offsets[-1] == last
                and bool((np.diff(offsets) >= 0).all())
            )
        if not right:
            raise ArtifactError(
                f"the shard `{path}` is corrupt: `{field}` is not of {examples:,} examples", HINT
            )


class Split:
    """The examples of one split, over all of its shards."""

    def __init__(self, folder: Path, shards: Sequence[Shard], verify: bool = True):
        self._maps: list[dict[str, NDArray[Any]]] = []
        for info in shards:
            path = inside(folder, info.name, "data", HINT)
            if verify:
                check_file(path, info, "shard", HINT)
            header, start = read_header(path)
            data: Any = (
                np.memmap(path, np.uint8, "r", offset=start) if path.stat().st_size > start else b""
            )
            arrays = {}
            for name, entry in header.items():
                if name != "__metadata__":
                    if entry["dtype"] not in DTYPES:
                        raise ArtifactError(
                            f"the shard `{path}` is corrupt: `{name}` is of the "
                            f"unknown type {entry['dtype']}",
                            HINT,
                        )
                    begin, end = entry["data_offsets"]
                    arrays[name] = np.frombuffer(
                        memoryview(data)[begin:end], DTYPES[entry["dtype"]]
                    )
            _check_columns(arrays, info.examples, path)
            self._maps.append(arrays)
        self.shards = list(shards)
        self.count = sum(info.examples for info in shards)
        self._first = np.cumsum([0] + [info.examples for info in shards])

    @staticmethod
    def of(columns: Mapping[str, NDArray[Any] | list[NDArray[Any]]], count: int) -> Split:
        """Examples in memory, as one shard: a list holds a ragged field's values of each."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, column in columns.items():
            if isinstance(column, list):
                sizes = [len(part) for part in column]
                arrays[f"{name}.offsets"] = np.append(0, np.cumsum(sizes, dtype=np.int64))
                column = np.concatenate(column) if column else np.zeros(0, np.int64)
            arrays[name] = column
        split = Split(Path(), [])
        split._maps, split.count, split._first = [arrays], count, np.array([0, count])
        return split

    @property
    def _fields(self) -> dict[str, bool]:
        """The fields' names, and whether they are ragged."""
        names = self._maps[0] if self._maps else {}
        return {n: f"{n}.offsets" in names for n in sorted(names) if not n.endswith(".offsets")}

    def columns(self, units: NDArray[np.int64]) -> dict[str, NDArray[Any] | list[NDArray[Any]]]:
        """Some examples, in this order, in the form of `of`."""
        return {
            name: [self.values(name, unit, unit + 1) for unit in units.tolist()]
            if ragged
            else self.column(name)[units]
            for name, ragged in self._fields.items()
        }

    def take(self, units: NDArray[np.int64]) -> Split:
        """Some examples, in this order, as a split of their own, in memory."""
        return Split.of(self.columns(units), len(units))

    def sizes(self) -> NDArray[np.int64]:
        """How many values the ragged fields of each example hold: (n,)."""
        sizes = np.zeros(len(self), np.int64)
        for name, ragged in self._fields.items():
            if ragged:
                sizes += self.lengths(name)
        return sizes

    def raw(self) -> Iterator[bytes]:
        """All that each example holds."""
        fields = self._fields
        flat = {name: self.column(name) for name, ragged in fields.items() if not ragged}
        for unit in range(len(self)):
            parts = (
                self.values(name, unit, unit + 1) if ragged else flat[name][unit : unit + 1]
                for name, ragged in fields.items()
            )
            yield b"\0".join(part.tobytes() for part in parts)

    def __len__(self) -> int:
        return int(self.count)

    def column(self, name: str) -> NDArray[Any]:
        """A field of one number per example, over all shards: (n,)."""
        parts = [arrays[name] for arrays in self._maps]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def lengths(self, name: str) -> NDArray[np.int64]:
        """The length of a ragged field in each example: (n,)."""
        parts = [np.diff(arrays[f"{name}.offsets"]) for arrays in self._maps]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def values(self, name: str, first: int, last: int) -> NDArray[Any]:
        """A ragged field's values of examples first..last-1, which must lie in one shard."""
        shard = int(np.searchsorted(self._first, first, side="right")) - 1
        offsets = self._maps[shard][f"{name}.offsets"]
        base = self._first[shard]
        return self._maps[shard][name][offsets[first - base] : offsets[last - base]]
