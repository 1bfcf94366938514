"""The working directory: every path in it, its locks, its cache of hashes.

work/
├── data/                        prepare: manifest.json, codec/, shards
└── runs/<run>/                  train: config.json, codec/, log.jsonl, checkpoints/
                                 evaluate: evaluation.json, evaluation.safetensors, report.html
                                 deploy: bundle/
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.artifacts.manifest import TEMPORARY, read_json, sha256, storage, write_atomic
from bigmodel_cli.errors import ArtifactError, StoppedError, UsageError


@dataclass(frozen=True)
class Run:
    """One training run's folder."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.root / "runs" / self.name

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def codec(self) -> Path:
        return self.folder / "codec"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def statistics(self) -> Path:
        """The statistics of single units that evaluation.json sums up."""
        return self.folder / "evaluation.safetensors"

    @property
    def partial(self) -> Path:
        """What a stopped evaluation continues from."""
        return self.folder / "evaluation.partial.safetensors"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    def read_config(self) -> dict[str, Any]:
        """The run's resolved configuration. Raises ArtifactError, naming the runs that exist."""
        if not self.config.exists():
            known = sorted(path.parent.name for path in self.root.glob("runs/*/config.json"))
            if known:
                raise ArtifactError(
                    f"there is no run `{self.name}` in `{self.root}`",
                    "choose one with --run: " + ", ".join(known),
                )
        return read_json(self.config, "run", "train it first: bigmodel train")


@dataclass(frozen=True)
class Workdir:
    """The working directory's paths; nothing is created before it is written to."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def manifest(self) -> Path:
        return self.data / "manifest.json"

    @property
    def codec(self) -> Path:
        return self.data / "codec"

    def run(self, name: str) -> Run:
        """Raises UsageError for a name that is no plain folder name."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise UsageError(
                f"`{name}` cannot be a run's name", "use letters, digits, `.`, `_` and `-`"
            )
        return Run(self.root, name)

    def runs(self) -> list[Run]:
        return [
            Run(self.root, path.parent.name)
            for path in sorted(self.root.glob("runs/*/config.json"))
        ]

    def read_data(self) -> dict[str, Any]:
        """The data's manifest. Raises ArtifactError when nothing was prepared."""
        return read_json(
            self.manifest, "prepared data", "prepare some first: bigmodel prepare SOURCE"
        )

    def keep_traceback(self, error: BaseException) -> Path | None:
        """Writes an unexpected error's traceback for a bug report."""
        path = self.root / "traceback.txt"
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(traceback.format_exception(error)), "utf-8")
            return path
        return None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the folder for writing. Raises StoppedError (75), naming the holder, if it is held."""
    from filelock import FileLock, Timeout

    path = folder / ".lock"
    holder = folder / ".lock-holder"
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        claim = FileLock(path)
        try:
            claim.acquire(timeout=0)
        except Timeout:
            who = holder.read_text("utf-8").strip() if holder.exists() else "another process"
            raise StoppedError(
                f"`{folder}` is in use by {who}",
                "wait for it, or choose another --workdir or --run",
            ) from None
        except NotImplementedError:
            raise StoppedError(f"`{folder}` is on a file system without locks") from None
    try:
        with contextlib.suppress(OSError):
            holder.write_text(f"process {os.getpid()} on {os.uname().nodename}\n", "utf-8")
        clean(folder)
        yield
    finally:
        clean(folder)
        holder.unlink(missing_ok=True)
        claim.release()


def clean(folder: Path) -> None:
    """Removes what a writer, killed or failed, left behind. Only for the holder of the lock."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class HashCache:
    """(path, size, time, inode) → SHA-256, so that an unchanged input is not read again.

    Only a cache: losing it costs time. Times never enter a fingerprint.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".hashes.json"
        try:
            loaded = json.loads(self.path.read_bytes())
            self.known: dict[str, str] = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError):
            self.known = {}
        self.used: dict[str, str] = {}

    def sha256(self, path: Path) -> str:
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if key not in self.used:
            self.used[key] = self.known.get(key) or sha256(path)
        return self.used[key]

    def save(self) -> None:
        if self.used != self.known:
            with contextlib.suppress(OSError):
                write_atomic(self.path, json.dumps(self.used).encode())
