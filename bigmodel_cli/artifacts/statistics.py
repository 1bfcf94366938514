"""evaluation.safetensors: the statistics of each unit that an evaluation sums up, of the model and
of each baseline, so that two evaluations can be compared unit by unit; and what an evaluation that
was stopped continues from.

Class tasks have thousands of statistics, of which a unit has a few: zeros are not kept. Legend:
n units, k statistics, m of these n · k that are not 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.artifacts.manifest import canonical, check_file, file_info, write_atomic
from bigmodel_cli.artifacts.records import File
from bigmodel_cli.errors import ArtifactError

KINDS = ("u1", "u2", "u4", "f4", "f8")  # in which values are kept: the first that holds them all
HEAD = "evaluation"  # the one entry of a file's metadata
HINT = "evaluate again: bigmodel evaluate --force"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Additive statistics (n, k). cells: unit · k + column, ascending, of the m values."""

    units: int
    columns: int
    cells: NDArray[np.int64]
    values: NDArray[np.float64]

    def sums(self) -> NDArray[np.float64]:
        """Over all units: (k,)."""
        sums = np.bincount(self.cells % self.columns, self.values, self.columns)
        return sums.astype(np.float64)

    def matrix(self) -> Any:
        """Itself as (n, k), of scipy or, where zeros are few, of numpy."""
        from scipy.sparse import csr_matrix

        rows, columns = np.divmod(self.cells, self.columns)
        ends = np.searchsorted(rows, np.arange(self.units + 1))
        whole = csr_matrix((self.values, columns, ends), (self.units, self.columns))
        dense = 4 * len(self.cells) > self.units * self.columns
        return whole.toarray() if dense else whole

    def take(self, units: NDArray[np.int64]) -> Statistics:
        """Its units in another order, each once."""
        place = np.empty(self.units, np.int64)
        place[units] = np.arange(self.units)
        rows, columns = np.divmod(self.cells, self.columns)
        cells = place[rows] * self.columns + columns
        order = np.argsort(cells)
        return Statistics(self.units, self.columns, cells[order], self.values[order])


class Collector:
    """Adds up the statistics of predictions, of which several may belong to one unit: in the order
    in which they come, so that a sum that was interrupted ends at the same bits."""

    def __init__(
        self,
        units: int,
        columns: int,
        cells: NDArray[np.int64] | None = None,
        values: NDArray[np.float64] | None = None,
    ) -> None:
        self.units, self.columns = units, columns
        self._cells = [] if cells is None else [cells]
        self._values = [] if values is None else [values]

    def add(self, units: NDArray[np.int64], statistics: NDArray[np.float64]) -> None:
        """units (p,), statistics (p, k)."""
        known, places = np.unique(units, return_inverse=True)
        part = np.zeros((len(known), self.columns))
        if len(known) == len(units):
            part[places] = statistics
        else:
            np.add.at(part, places, statistics)
        rows, columns = part.nonzero()
        self._cells.append(known[rows] * self.columns + columns)
        self._values.append(part[rows, columns])

    def so_far(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What came, as it came."""
        self._cells = [np.concatenate([np.zeros(0, np.int64), *self._cells])]
        self._values = [np.concatenate([np.zeros(0), *self._values])]
        return self._cells[0], self._values[0]

    def statistics(self) -> Statistics:
        cells, values = self.so_far()
        order = np.argsort(cells, kind="stable")
        begins = np.flatnonzero(np.diff(cells[order], prepend=-1))
        sums = np.add.reduceat(values[order], begins) if len(begins) else values
        return Statistics(self.units, self.columns, cells[order][begins], sums)


def identify(contents: Iterable[bytes]) -> NDArray[np.uint64]:
    """A unit's id is the hash of what it says, and of how many before it say the same: (n,)."""
    import xxhash

    seen: dict[int, int] = {}
    found = []
    for content in contents:
        digest = xxhash.xxh3_64_intdigest(content)
        again = seen[digest] = seen.get(digest, -1) + 1
        found.append(xxhash.xxh3_64_intdigest(content, again) if again else digest)
    return np.array(found, np.uint64)


def _kind(values: NDArray[np.float64]) -> str:
    with np.errstate(invalid="ignore", over="ignore"):
        return next(k for k in KINDS if np.array_equal(values.astype(k), values, equal_nan=True))


def pack(name: str, statistics: Statistics) -> dict[str, NDArray[Any]]:
    """Statistics column by column, those of one type together. A column of which every unit has a
    value needs no list of its units."""
    columns = statistics.cells % statistics.columns
    order = np.argsort(columns, kind="stable")
    units, values = (statistics.cells // statistics.columns)[order], statistics.values[order]
    ends = np.searchsorted(columns[order], np.arange(statistics.columns + 1))
    groups: dict[str, list[int]] = {}
    for column in np.flatnonzero(np.diff(ends)).tolist():
        groups.setdefault(_kind(values[ends[column] : ends[column + 1]]), []).append(column)
    arrays: dict[str, NDArray[Any]] = {}
    for kind, chosen in groups.items():
        spans = [slice(ends[column], ends[column + 1]) for column in chosen]
        some = [units[span] for span in spans if span.stop - span.start < statistics.units]
        arrays |= {
            f"{name}:{kind}:columns": np.array(chosen, np.uint32),
            f"{name}:{kind}:sizes": np.array([s.stop - s.start for s in spans], np.uint32),
            f"{name}:{kind}:units": np.concatenate([np.zeros(0), *some]).astype(np.uint32),
            f"{name}:{kind}:values": np.concatenate([values[s] for s in spans]).astype(kind),
        }
    return arrays


def unpack(name: str, arrays: Mapping[str, NDArray[Any]], units: int, columns: int) -> Statistics:
    """What `pack` was given. Raises ValueError, KeyError for arrays that it cannot have made."""
    cells, values = [np.zeros(0, np.int64)], [np.zeros(0)]
    for kind in KINDS:
        if f"{name}:{kind}:columns" not in arrays:
            continue
        chosen, sizes, some, found = (
            arrays[f"{name}:{kind}:{part}"] for part in ("columns", "sizes", "units", "values")
        )
        all_, sizes = np.arange(units), sizes.astype(np.int64)
        rows, place = [], 0
        for size in sizes.tolist():
            rows.append(all_ if size == units else some[place : place + size].astype(np.int64))
            place += 0 if size == units else size
        cells.append(np.concatenate(rows) * columns + np.repeat(chosen.astype(np.int64), sizes))
        values.append(found.astype(np.float64))
    whole, kept = np.concatenate(cells), np.concatenate(values)
    order = np.argsort(whole)
    if len(whole) != len(kept) or (
        len(whole) and not 0 <= whole.min() <= whole.max() < units * columns
    ):
        raise ValueError("the numbers of units and statistics do not fit")
    return Statistics(units, columns, whole[order], kept[order])


@dataclass(frozen=True, slots=True)
class UnitStatistics:
    """What evaluation.safetensors holds: the units' ids (n,), and the model's and each baseline's
    statistics."""

    ids: NDArray[np.uint64]
    model: Statistics
    baselines: dict[str, Statistics]

    def write(self, path: Path) -> File:
        """Writes the file; gives its size and hash, which evaluation.json keeps."""
        arrays: dict[str, NDArray[Any]] = {"ids": self.ids, **pack("model", self.model)}
        for number, statistics in enumerate(self.baselines.values()):
            arrays |= pack(str(number), statistics)
        head = {"columns": self.model.columns, "baselines": list(self.baselines)}
        _write(path, arrays, head)
        return file_info(path)

    @staticmethod
    def read(path: Path, info: File) -> UnitStatistics:
        """Raises ArtifactError unless the file is the one that was written."""
        check_file(path, info, "evaluation's statistics", HINT)
        try:
            arrays, head = _read(path)
            ids, columns = arrays["ids"], int(head["columns"])
            baselines = {
                name: unpack(str(number), arrays, len(ids), columns)
                for number, name in enumerate(head["baselines"])
            }
            return UnitStatistics(ids, unpack("model", arrays, len(ids), columns), baselines)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"the statistics `{path}` are corrupt: {error}", HINT) from None


def _write(path: Path, arrays: Mapping[str, NDArray[Any]], head: Mapping[str, Any]) -> None:
    from safetensors.numpy import save

    write_atomic(path, save(dict(arrays), {HEAD: canonical(head).decode()}))


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = path.read_bytes()
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        return arrays, json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEAD])
    except (SafetensorError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _digest(arrays: Mapping[str, NDArray[Any]], head: Mapping[str, Any]) -> str:
    found = hashlib.sha256(canonical(head))
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


class Partial:
    """What an evaluation has so far: how many steps of each phase are done, their statistics and
    counts, and the baselines. `key`: everything that decides its bytes."""

    def __init__(self, path: Path, key: str, units: int, columns: int) -> None:
        self.path, self._key = path, key
        self.done: dict[str, int] = {}
        self.model = Collector(units, columns)
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.baselines: dict[str, tuple[Statistics, dict[str, NDArray[np.int64]]]] = {}

    def load(self) -> str:
        """Takes what an evaluation of the same key left; says why it cannot, or nothing."""
        units, columns = self.model.units, self.model.columns
        try:
            arrays, head = _read(self.path)
            seal = head.pop("seal")
            if seal != _digest(arrays, head):
                raise ValueError("its hash differs")
            if head["key"] != self._key:
                return "it was another evaluation, or on other hardware or versions"
            self.model = Collector(units, columns, arrays["cells"], arrays["values"])
            self.counts = _counts(arrays, "model")
            self.baselines = {
                name: (unpack(str(number), arrays, units, columns), _counts(arrays, str(number)))
                for number, name in enumerate(head["baselines"])
            }
            self.done = head["done"]
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"what it left is corrupt: {error}"
        return ""

    def add(self, phase: str, found: Iterable[Any]) -> None:
        """The predictions of one more step of a phase."""
        for predictions in found:
            self.model.add(predictions.units, predictions.statistics)
            for name, count in predictions.counts.items():
                self.counts[name] = self.counts[name] + count if name in self.counts else count
        self.done[phase] = self.done.get(phase, 0) + 1

    def save(self) -> None:
        """Writes the file, atomically."""
        cells, values = self.model.so_far()
        arrays: dict[str, NDArray[Any]] = {"cells": cells, "values": values}
        arrays |= {f"model:counts:{name}": count for name, count in self.counts.items()}
        for number, (statistics, counts) in enumerate(self.baselines.values()):
            arrays |= pack(str(number), statistics)
            arrays |= {f"{number}:counts:{name}": count for name, count in counts.items()}
        head = {"key": self._key, "done": self.done, "baselines": list(self.baselines)}
        _write(self.path, arrays, {**head, "seal": _digest(arrays, head)})


def _counts(arrays: Mapping[str, NDArray[Any]], owner: str) -> dict[str, NDArray[np.int64]]:
    start = f"{owner}:counts:"
    return {n.removeprefix(start): array for n, array in arrays.items() if n.startswith(start)}
