"""Hashes, fingerprints, and files that are either whole or not there.

A manifest is written last, atomically: temporary name, fsync, rename, fsync of the folder. What
has no manifest does not exist for the next stage.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bigmodel_cli.artifacts.records import SCHEMA, Artifact, File, Files, as_json
from bigmodel_cli.errors import ArtifactError, FormatError, ResourceError

R = TypeVar("R", bound=Artifact)
TEMPORARY = ".tmp-"
MOST_JSON = 256 << 20  # bytes of a JSON artifact
LOADED = (".json", ".safetensors")  # what is read from a folder whose files are listed
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EISDIR, errno.EINVAL,
)  # fmt: skip


def canonical(document: Any) -> bytes:
    """One byte string for one JSON document, whatever the order of its keys."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def fingerprint(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of what decides a stage's result."""
    return hashlib.sha256(canonical({"schema": SCHEMA, **document})).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Names what a failed write means: disk full, not writable (exit 7)."""
    try:
        yield
    except OSError as error:
        named = str(error.filename2 or error.filename or "")
        if TEMPORARY not in named and Path(named).is_relative_to(path):
            path = Path(named)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"no room to write `{path}`: {error.strerror}", "free some space and run again"
            ) from error
        if error.errno in UNWRITABLE:
            raise ResourceError(
                f"cannot write `{path}`: {error.strerror}",
                "choose another folder with --workdir, or fix its permissions",
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, or a machine that lost power, sees the old or the new one."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a manifest, atomically, with its schema and the checksum of all the rest."""
    whole = {"schema": SCHEMA, **document}
    whole["checksum"] = _checksum(whole)
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def _checksum(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return hashlib.sha256(canonical(rest)).hexdigest()[:16]


def write_record(path: Path, record: Artifact) -> None:
    """Writes an artifact, atomically."""
    write_json(path, as_json(record))


def read_record(path: Path, kind: type[R], what: str, hint: str, regular: bool = True) -> R:
    """Reads an artifact, as `read_json` does. Raises ArtifactError for a field that is missing, or
    not what it may be."""
    document = read_json(path, what, hint, regular)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        place = place.strip("`.")
        problem = f"`{place}`: {problem[:1].lower()}{problem[1:]}" if place else problem
        raise ArtifactError(f"the {what} `{path}` is corrupt: {problem}", hint) from None


def read_json(path: Path, what: str, hint: str, regular: bool = True) -> dict[str, Any]:
    """Reads a manifest. `what` names it in an error, `hint` says which command makes it; `regular`:
    whether it must be a regular file, which a pipe that the user named is not.

    Raises ArtifactError when it is missing, corrupt, or of a newer format.
    """
    try:
        if regular and not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            data = file.read(MOST_JSON + 1)
        if len(data) > MOST_JSON:
            raise ValueError(f"over {MOST_JSON >> 20} MiB")
        document = json.loads(data, parse_constant=_no_number)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        raise ArtifactError(f"there is no {what} at `{path}`", hint) from None
    except NotADirectoryError:
        raise ArtifactError(f"`{path.parent}` is not a folder", hint) from None
    except PermissionError:
        raise ResourceError(f"`{path}` may not be read", "fix its permissions") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the {what} `{path}` is corrupt: {error}", hint) from None
    schema = document.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise ArtifactError(f"the {what} `{path}` has no schema number", hint)
    if schema > SCHEMA:
        raise FormatError(
            f"the {what} `{path}` is of format {schema}; this version reads up to {SCHEMA}",
            "upgrade bigmodel: pip install --upgrade bigmodel",
        )
    try:
        same = document.pop("checksum", None) == _checksum(document)
    except (ValueError, RecursionError):  # half of a surrogate pair, or a number beyond all
        same = False
    if not same:
        raise ArtifactError(f"the {what} `{path}` is corrupt: its checksum differs", hint)
    return document


def _no_number(constant: str) -> None:
    raise ValueError(f"`{constant}` is not a number")


def check_files(folder: Path, files: Files, what: str, hint: str, own: str = "") -> None:
    """Raises ArtifactError unless each listed file of a folder has its size and hash, and each one
    that may be loaded is listed. own: the file that holds the list."""
    for name, info in files.items():
        check_file(inside(folder, name, what, hint), info, what, hint)
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if path.suffix in LOADED and path.name not in (own, *files):
                raise ArtifactError(f"the {what} `{path}` is not listed with its hash", hint)


def folder_info(folder: Path) -> Files:
    """The sizes and hashes that `check_files` compares."""
    return {path.name: file_info(path) for path in sorted(folder.iterdir())}


def inside(folder: Path, name: str, what: str, hint: str) -> Path:
    """The path of a listed file. Raises ArtifactError for one that leads out of the folder, by its
    name or by a link."""
    path = folder / name
    plain = name not in ("", ".", "..") and not {"/", "\0"} & {*name}
    try:
        within = plain and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        within = False
    if not within:
        raise ArtifactError(f"the {what} `{folder}` lists `{name}`, which is not in it", hint)
    return path


def check_file(path: Path, info: File, what: str, hint: str) -> None:
    """Raises ArtifactError unless it is a regular file of the recorded size and hash."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"the {what} `{path}` is corrupt: not a regular file", hint)
        if found.st_size != info.bytes:
            raise ArtifactError(
                f"the {what} `{path}` has {found.st_size:,} bytes where {info.bytes:,} were "
                "written",
                hint,
            )
        if sha256(path) != info.sha256:
            raise ArtifactError(f"the {what} `{path}` is corrupt: its hash differs", hint)
    except FileNotFoundError:
        raise ArtifactError(f"the {what} `{path}` is missing", hint) from None
    except OSError as error:
        raise ArtifactError(f"the {what} `{path}` cannot be read: {error}", hint) from None


def file_info(path: Path) -> File:
    """The size and hash that `check_file` compares."""
    return File(path.stat().st_size, sha256(path))


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two documents, as `key: old → new`, for a person."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changes(before, after, f"{prefix}{key}.")
        elif canonical(before) != canonical(after):
            found.append(f"{prefix}{key}: {_short(before)} → {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-12:]}"
