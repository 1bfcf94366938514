"""What the user named, as files in a fixed order, and their bytes."""

from __future__ import annotations

import bz2
import dataclasses
import fnmatch
import functools
import gzip
import io
import lzma
import os
import re
import shutil
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import pyarrow as pa

from bigmodel_cli.artifacts.manifest import TEMPORARY, storage
from bigmodel_cli.artifacts.workdir import HashCache
from bigmodel_cli.errors import DataError, ResourceError, UsageError
from bigmodel_cli.events import Context, Note
from bigmodel_cli.prepare.walk import Aside, behind, below

CHUNK = 8 << 20  # bytes of rows in one batch
RECORDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".inter": "tsv",  # of RecBole, whose header has types
    ".json": "json",
}
WHOLE = "whole"  # the form of a text file that is one row, with columns from its folders' names
# of the formats that are decoded: PNG, JPEG, BMP, GIF, WebP, AVIF, TIFF, netpbm
IMAGES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".avif",
    ".avifs", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
)  # fmt: skip
ARRAYS = {".npy": "numpy", ".npz": "numpy"}
IDX = re.compile(r"[-.]idx([1-4])-ubyte$")
HIVE = re.compile(r"[^=\W][^=]*=.+").fullmatch  # a folder's name that gives a column
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Layout:
    """What files do not say themselves.

    separator: between the documents of a text file. header: the names of the columns, for
    delimited files that have no header; delimiter: between columns, or "" for what a file's first
    lines tell; encoding: of text, or "" for UTF-8.
    kinds: of columns, see Task; documents: whether what holds no records is a row, as text.
    context: where readers say what files did tell, once for each kind of file. cache: where they
    keep what they had to read all of a file for.
    """

    separator: str = ""
    header: tuple[str, ...] = ()
    delimiter: str = ""
    encoding: str = ""
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    documents: bool = True
    context: Context = dataclasses.field(default_factory=Context)
    cache: HashCache = dataclasses.field(default_factory=HashCache)
    said: set[str] = dataclasses.field(default_factory=set)

    def say(self, kind: str, message: str, level: Literal["info", "warning"] = "info") -> None:
        if kind not in self.said:
            self.said.add(kind)
            self.context.emit(Note(message, level))


@dataclass(frozen=True)
class Source:
    """One input: a file (`path`), or a split of a hub data set (`hub`). `name` is for people and
    for the fingerprint, so it is relative to what the user named. `split`: what it is named for.
    `columns`: of aligned files, which `path` is the first of. `pattern`: the folder or glob that it
    was found by; "" for what the user named itself. `form`: the reader that a look into it chose;
    `key`: what the list of records in a .json is called."""

    name: str
    path: Path | None
    hub: str = ""
    split: str | None = None
    columns: Mapping[str, Source] = dataclasses.field(default_factory=dict, hash=False)
    pattern: str = ""
    form: str = ""
    key: str = ""

    @functools.cached_property
    def kind(self) -> str:
        """A reader's name; `labels` for what belongs to the images beside it."""
        if self.form:
            return self.form
        suffix = Path(unpacked(self.name)).suffix.lower()
        if suffix in IMAGES:
            return "image"
        if dimensions := IDX.search(unpacked(self.name).lower()):
            return "idx" if dimensions.group(1) in "34" else "labels"
        if suffix == ".npy" and self.path and _labels_of(self.path):
            return "labels"
        return ARRAYS.get(suffix) or RECORDS.get(suffix, "text")

    @functools.cached_property
    def folders(self) -> dict[str, str]:
        """The columns that the names of its folders give: `lang=en/label=neg/part-0.parquet`."""
        pairs = (folder.partition("=") for folder in self.name.split("/")[:-1] if HIVE(folder))
        return {key: urllib.parse.unquote(value) for key, _, value in pairs}

    @property
    def records(self) -> bool:
        """Whether it holds rows that name their columns."""
        return bool(self.hub) or self.kind in (*RECORDS.values(), WHOLE)

    @property
    def textual(self) -> bool:
        """Whether it is text in some encoding."""
        return not self.hub and self.kind in ("text", WHOLE, "csv", "tsv", "jsonl", "json")

    @property
    def folder(self) -> Path:
        """What the paths in it are relative to."""
        spooled = self.path is None or self.path.name.startswith(TEMPORARY)
        return Path() if spooled or self.path is None else self.path.parent


def unpacked(name: str) -> str:
    """A file's name without what it is compressed by."""
    path = Path(name)
    return name[: -len(path.suffix)] if path.suffix.lower() in PACKED else name


def companion(path: Path) -> Path | None:
    """Where the labels of a file of images are: what is called `labels` where it says `images`,
    compressed or not; None if it does not say that."""
    if "images" not in path.name:
        return None
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    plain = unpacked(name)
    found = (path.with_name(other) for other in (name, *(plain + end for end in ("", *PACKED))))
    return next((other for other in found if other.is_file()), path.with_name(name))


def _labels_of(path: Path) -> bool:
    """Whether an array's file holds the labels of another."""
    return "labels" in path.name and path.with_name(path.name.replace("labels", "images")).is_file()


def find(
    patterns: Sequence[str],
    exclude: Sequence[str],
    spool: Path,
    own: Path | None = None,
    delimited: str = "",
    aside: Aside = lambda _name, _why: None,
) -> list[Source]:
    """The files behind what the user named, in a fixed order; none that lies in the working
    directory `own`. delimited: what separates the columns of standard input, if it is not JSON.

    Raises UsageError, DataError.
    """
    if not patterns:
        raise UsageError("no source", "for example: bigmodel prepare data/stories")
    if any(not pattern.strip() for pattern in patterns):
        raise UsageError("the source `` is empty", "give a file, folder, glob, `-`, or hf:NAME")
    if list(patterns).count("-") > 1 or ("-" in patterns and spool.exists()):
        raise UsageError("standard input, `-`, can be read only once", "name it once, or use files")
    found: dict[str, Source] = {}
    own = own.resolve() if own else None
    for pattern in patterns:
        for source in _expand(pattern, exclude, spool, delimited, aside, own):
            for each in (source, *_beside(source)):
                path = each.path and each.path.resolve()
                if own and path and each.path != spool and path.is_relative_to(own):
                    continue
                found.setdefault(str(path or each.hub), each)
    if not found:
        raise DataError(
            "nothing to read in " + ", ".join(f"`{p}`" for p in patterns), "check --exclude"
        )
    return list(found.values())


def _beside(source: Source) -> Iterator[Source]:
    """The labels of a file of images, which are part of it, named or not."""
    if source.path and source.kind in ("idx", "numpy"):
        path = companion(source.path)
        if path and path.is_file():
            name = (Path(source.name).parent / printable(path.name)).as_posix()
            yield dataclasses.replace(source, name=name, path=path)


def printable(name: str) -> str:
    """A file's name for people, manifests and terminals: what is no plain character is escaped."""
    text = os.fsencode(name).decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(sources: Sequence[Source]) -> str:
    """How many sources, and the names of the first."""
    names = ", ".join(f"`{source.name}`" for source in sources[:SHOWN])
    more = ", …" if len(sources) > SHOWN else ""
    return f"{len(sources):,} ({names}{more})" if len(sources) > 1 else names


def _expand(
    pattern: str,
    exclude: Sequence[str],
    spool: Path,
    delimited: str,
    aside: Aside,
    own: Path | None,
) -> Iterator[Source]:
    def excluded(name: str) -> bool:
        return any(fnmatch.fnmatch(n, glob) for n in (name, "/" + name) for glob in exclude)

    def unread(name: str, why: str) -> None:
        if not excluded(name):
            aside(printable(name), why)

    if pattern == "-":
        with storage(spool):
            spool.parent.mkdir(parents=True, exist_ok=True)
            if not hasattr(sys.stdin, "buffer"):
                raise DataError("standard input is closed", "pipe something into it")
            with spool.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        with spool.open("rb") as written:
            json = re.match(rb"({)|\s*\[\s*{", written.read(4096))
        table = ".tsv" if delimited == "\t" or len(delimited) > 1 else ".csv"
        end = (".jsonl" if json[1] else ".json") if json else table if delimited else ".txt"
        yield Source(f"stdin{end}", spool)
        return
    if pattern.startswith("hf:"):
        yield Source(pattern, None, pattern.removeprefix("hf:"))
        return
    path = Path(pattern)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):
        is_folder = exists = False
    if is_folder:
        base, paths = path, below(path, unread, own)
    elif exists:
        if not path.is_file():
            raise DataError(
                f"`{pattern}` is not a regular file",
                "send a pipe's content through standard input: `-`",
            )
        base, paths = path.parent, [path]
    else:
        base, paths = behind(pattern, unread, own)
        if not paths:
            raise DataError(
                f"there is nothing at `{pattern}`", "give a file, folder, glob, `-`, or hf:NAME"
            )
    while HIVE(base.name):  # whose name gives a column
        base = base.parent
    for item in paths:
        name = item.relative_to(base).as_posix()
        if not excluded(name):
            yield Source(printable(name), item, pattern="" if exists and not is_folder else pattern)


def open_bytes(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed as they are read."""
    try:
        unpack = PACKED.get(path.suffix.lower(), open)
        return cast(IO[bytes], unpack(path, "rb"))
    except PermissionError:
        raise ResourceError(f"`{path}` may not be read", "fix its permissions") from None
    except FileNotFoundError:
        raise DataError(f"there is nothing at `{path}`") from None


class _Raw(io.RawIOBase):
    """An Arrow stream as Python's."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _zstd(path: Path, _mode: str) -> IO[bytes]:
    return io.BufferedReader(_Raw(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")))


# what opens compressed files, by their ends
PACKED: Mapping[str, Callable[..., Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".lzma": lzma.LZMAFile,
    ".zst": _zstd,
}


def load_hub(spec: str) -> Any:
    """The data set behind NAME[:SPLIT] (default: train). Raises DataError."""
    import datasets

    name, _, split = spec.partition(":")
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # datasets raises many kinds
        raise DataError(
            f"hf:{spec} cannot be loaded: {str(error).splitlines()[0]}",
            "check the name, the split and the network",
        ) from None
