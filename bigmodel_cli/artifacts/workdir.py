"""The working directory: every path in it, its locks, its cache of hashes.

work/
├── data/                        prepare: manifest.json, preprocessor/, shards
└── runs/<run>/                  train: config.json, preprocessor/, log.jsonl, checkpoints/
                                 evaluate: evaluation.json, evaluation.safetensors, report.html
                                 deploy: bundle/
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel_cli.artifacts.manifest import TEMPORARY, read_record, sha256, storage, write_atomic
from bigmodel_cli.artifacts.records import DataManifest, RunConfig
from bigmodel_cli.errors import (
    ArtifactError,
    BigmodelError,
    ResourceError,
    StoppedError,
    UsageError,
)

if TYPE_CHECKING:
    from filelock import BaseFileLock

SOFT_LOCK = ".lock-soft"  # where the file system has no locks
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTTY)

PREPROCESSORS = ("preprocessor", "codec")  # the folder's name, and what it was called before


def _preprocessor(folder: Path) -> Path:
    """What `prepare` learned, in the folder of data or of a run, by whichever name it has."""
    paths = [folder / name for name in PREPROCESSORS]
    return next((path for path in paths if path.exists()), paths[0])


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
    def preprocessor(self) -> Path:
        return _preprocessor(self.folder)

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

    def read_config(self) -> RunConfig:
        """The run's resolved configuration. Raises ArtifactError, naming the runs that exist."""
        if not self.config.exists():
            known = sorted(path.parent.name for path in self.root.glob("runs/*/config.json"))
            if known:
                raise ArtifactError(
                    f"there is no run `{self.name}` in `{self.root}`",
                    "choose one with --run: " + ", ".join(known),
                )
        return read_record(self.config, RunConfig, "run", "train it first: bigmodel train")


@dataclass(frozen=True)
class Workdir:
    """The working directory's paths; nothing is created before it is written to. shared: data that
    were prepared elsewhere, and are only read here."""

    root: Path
    shared: Path | None = None

    @property
    def data(self) -> Path:
        return self.shared or self.root / "data"

    @property
    def manifest(self) -> Path:
        return self.data / "manifest.json"

    @property
    def preprocessor(self) -> Path:
        return _preprocessor(self.data)

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

    def read_data(self) -> DataManifest:
        """The data's manifest. Raises ArtifactError when nothing was prepared."""
        hint = "prepare some first: bigmodel prepare SOURCE"
        return read_record(self.manifest, DataManifest, "prepared data", hint)

    def check_data(self, run: RunConfig, data: DataManifest) -> None:
        """Raises ArtifactError unless a run was trained on these data."""
        if run.data_fingerprint != data.fingerprint or run.task != data.task:
            raise ArtifactError(
                f"run `{run.run}` was trained on other data than are in `{self.data}` now",
                "train on these: bigmodel train --restart, or another --run",
            )

    def keep_traceback(self, error: BaseException) -> Path | None:
        """Writes an unexpected error's traceback for a bug report."""
        path = self.root / "traceback.txt"
        with contextlib.suppress(OSError, BigmodelError):
            write_atomic(path, "".join(traceback.format_exception(error)).encode())
            return path
        return None


@contextlib.contextmanager
def lock(folder: Path, root: Path) -> Iterator[None]:
    """Holds a folder of the working directory `root` for writing.

    Raises StoppedError (75), naming the holder, if it is held; ResourceError where nothing can be
    locked, or where what is written would go elsewhere.
    """
    holder = folder / ".lock-holder"
    with storage(folder):
        for path in (folder / ".lock", folder, *folder.parents):
            if path == root:
                break
            if path.is_symlink():
                raise _elsewhere(path, "a link")
        folder.mkdir(parents=True, exist_ok=True)
        claim = _claim(folder, holder)
    try:
        clean(folder)
        _check_entries(folder)
        with contextlib.suppress(OSError):
            holder.write_text(f"process {os.getpid()} on {os.uname().nodename}\n", "utf-8")
        yield
    finally:
        clean(folder)
        holder.unlink(missing_ok=True)
        claim.release()


def _check_entries(folder: str | Path) -> None:
    """Raises ResourceError where a folder holds anything but files and folders, at any depth."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _check_entries(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                raise _elsewhere(entry, "a link" if entry.is_symlink() else "a pipe or device")


def _elsewhere(path: os.PathLike[str], what: str) -> ResourceError:
    """Whoever writes to a link changes what lies elsewhere."""
    return ResourceError(
        f"`{os.fspath(path)}` is {what}, and a stage writes to its own files only",
        "remove it; to keep the data elsewhere, let --workdir name the folder there",
    )


def _claim(folder: Path, holder: Path) -> BaseFileLock:
    """A lock on the folder, for which a file stands where the file system has none of its own."""
    from filelock import FileLock, SoftFileLock, Timeout

    reason = ""
    claims = (FileLock(folder / ".lock", fallback_to_soft=False), SoftFileLock(folder / SOFT_LOCK))
    for claim in claims:
        try:
            claim.acquire(timeout=0)
            return claim
        except Timeout:
            who = holder.read_text("utf-8").strip() if holder.is_file() else "another process"
            hint = "wait for it, or choose another --workdir or --run"
            if claim is claims[1]:
                hint += f"; if it runs no more, remove `{folder / SOFT_LOCK}`"
            raise StoppedError(f"`{folder}` is in use by {who}", hint) from None
        except (OSError, NotImplementedError) as error:
            reason = str(error)
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
    raise ResourceError(
        f"`{folder}` is on a file system without locks: {reason}",
        "choose a folder on another file system with --workdir",
    )


def clean(folder: Path) -> None:
    """Removes what a writer, killed or failed, left behind. Only for the holder of the lock."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class HashCache:
    """(path, size, time, inode) → SHA-256, or what else all of a file was read for, so that an
    unchanged input is not read again.

    Only a cache: losing it costs time. Times never enter a fingerprint. Without a folder it is
    never saved.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = folder and folder / ".hashes.json"
        self.known: dict[str, str] = {}
        self.used: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            loaded = json.loads(self.path.read_bytes()) if self.path and self.path.is_file() else {}
            items = loaded.items() if isinstance(loaded, dict) else ()
            self.known = {key: value for key, value in items if isinstance(value, str) and value}

    def sha256(self, path: Path) -> str:
        return self.value(path, "", lambda: sha256(path))

    def value(self, path: Path, name: str, read: Callable[[], str]) -> str:
        """What `read` finds in a file, as text; `name` tells it from what else is found there."""
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        key += f"|{name}" if name else ""
        if key not in self.used:
            self.used[key] = self.known.get(key) or read()
        return self.used[key]

    def save(self) -> None:
        if self.path and self.used != self.known:
            with contextlib.suppress(OSError, ResourceError):
                write_atomic(self.path, json.dumps(self.used).encode())
