"""Cleaned units on disk between the two passes, so that memory stays bounded."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigmodel_cli.artifacts.manifest import storage
from bigmodel_cli.prepare.dedup import SPLITS
from bigmodel_cli.tasks.clean import as_column
from bigmodel_cli.worker import PATIENCE, Worker


class Spool:
    """Per split, a file of Arrow record batches. Read back without a memory map, which would count
    towards the resident size. A thread of its own writes, one batch at a time; the next call raises
    what it raised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with storage(folder):
            folder.mkdir(parents=True)
        self.units = dict.fromkeys(SPLITS, 0)
        self.bytes = dict.fromkeys(SPLITS, 0)
        self.content = {split: hashlib.sha256() for split in SPLITS}  # of the units, in order
        self._sizes: dict[str, list[int]] = {split: [] for split in SPLITS}
        self._writers: dict[str, Any] = {}
        self._worker = Worker[None]()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}.arrow"

    def add(self, split: str, part: tuple[pa.RecordBatch, int, bytes]) -> None:
        batch, size, hashes = part
        self._wait()
        self._worker.start(lambda: self._write(split, batch))
        self.units[split] += batch.num_rows
        self.bytes[split] += size
        self.content[split].update(hashes)
        self._sizes[split].append(size)

    def _write(self, split: str, batch: pa.RecordBatch) -> None:
        with storage(self._path(split)):
            if split not in self._writers:
                self._writers[split] = pa.ipc.new_file(str(self._path(split)), batch.schema)
            self._writers[split].write_batch(batch)

    def _wait(self) -> None:
        if self._worker.busy:
            self._worker.result()

    def close(self) -> None:
        self._wait()
        for split, writer in self._writers.items():
            with storage(self._path(split)):
                writer.close()

    def parts(self, split: str) -> Iterator[tuple[pa.RecordBatch, int]]:
        """The batches with their bytes of text, in order."""
        if split not in self._writers:
            return
        with pa.OSFile(str(self._path(split))) as file:
            reader = pa.ipc.open_file(file)
            for index, size in enumerate(self._sizes[split]):
                yield reader.get_batch(index), size

    def sample(self, split: str, limit: int) -> Iterator[pa.RecordBatch]:
        """About `limit` bytes, spread evenly over the split."""
        share = min(1.0, limit / max(1, self.bytes[split]))
        row = 0
        for batch, _ in self.parts(split):
            taken = np.floor(np.arange(row, row + batch.num_rows + 1) * share)
            row += batch.num_rows
            chosen = np.flatnonzero(np.diff(taken))
            if len(chosen):
                yield batch.take(as_column(chosen))

    def remove(self) -> None:
        self._worker.end(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)
