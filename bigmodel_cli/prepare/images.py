"""Images as rows: files in folders of classes, IDX files (the MNIST family), numpy arrays.

A row has an `image`, which is an encoded file, and a `label`. Images that come as arrays are
encoded as netpbm does (P5 or P6: a line that says the sizes, then the values), which costs nothing.
"""

from __future__ import annotations

import contextlib
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.records import Choose, Records
from bigmodel_cli.prepare.sources import Layout, Source, companion, open_bytes, printable
from bigmodel_cli.tasks import Rows
from bigmodel_cli.tasks.columns import LABEL_NAMES as LABELS
from bigmodel_cli.tasks.columns import usual

COLUMNS = {"image": "binary", "label": "string"}  # of every source here
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
IMAGE_NAMES, LABEL_NAMES = ("images", "image", "x", "X", "data"), ("labels", "label", "y", "Y")
MOST_LABELS = 1 << 28
HINT = "replace it, or leave it out with --exclude"


def files(
    group: Sequence[Source], choose: Choose, layout: Layout, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Image files, each labelled by the name of the folder that it lies in; or, where a folder's
    name is a pair such as `label=cat`, by that."""
    from bigmodel_cli.tasks.pixels import read_file

    records = Records(group[0], choose(COLUMNS, f"`{group[0].name}`"), layout)
    places: list[str] = []

    def take() -> Iterator[Rows]:
        names = list(places)
        for rows in records.take():
            yield Rows(rows.table, rows.split, lambda i: names[i])
        places.clear()

    for source in group:
        assert source.path is not None
        label = label_of(source)
        data = read_file(source.path)
        columns = {"image": data, "label": label}
        records.add([columns[name] for name in records.names.values()], 0)
        places.append(source.name)
        advance(len(data or b""))
        if records.size > sources.CHUNK:
            yield from take()
    yield from take()


def label_of(source: Source) -> str:
    """The class of an image file."""
    assert source.path is not None
    pair = usual(source.folders, LABELS)
    return source.folders[pair] if pair else printable(source.path.absolute().parent.name)


def arrays(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """The images of an IDX or numpy file, with the labels that belong to them."""
    del ledger
    chosen = choose(COLUMNS, f"`{source.name}`")
    with _opened(source) as (stream, labels):
        form = stream.form(source)
        if len(labels) != stream.shape[0]:
            raise DataError(
                f"`{source.name}` has {stream.shape[0]:,} images, but there are {len(labels):,} "
                "labels for them",
                "they are not of the same set, or one of them is truncated",
            )
        first = 0
        scale = None
        for part in stream.parts(source.name):
            if scale is None:
                scale = _scale(part)
            wide = part.dtype.itemsize == 2 and part.dtype.kind == "u" and form[2] == 1
            images = _encoded(part if wide else _bytes(part, scale, source.name), form)
            names = pa.array(labels[first : first + len(part)], pa.large_string())
            columns = {"image": images, "label": names}
            records = Records(source, chosen, layout)
            records.first = first
            rows = records.rows([columns[name] for name in chosen.values()], int)
            yield Rows(rows.table, rows.split, _where(source.name, first))
            first += len(part)
            advance(part.nbytes)


def _where(name: str, first: int) -> Callable[[int], str]:
    return lambda i: f"{name}, image {first + i + 1:,}"


class Stream:
    """An array that is read a few rows at a time: its shape, type, and the file that its values
    follow in. columnwise: the last axis changes slowest, so that it has to be read whole."""

    def __init__(
        self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], columnwise: bool
    ) -> None:
        self.file, self.shape, self.dtype, self.columnwise = file, shape, dtype, columnwise

    def form(self, source: Source) -> tuple[int, int, int]:
        """Height, width and channels. Raises DataError for what holds no images."""
        sizes = self.shape[1:]
        channels = sizes[2] if len(sizes) == 3 else 1
        if (
            len(sizes) not in (2, 3)
            or channels not in (1, 3, 4)
            or min(self.shape) < 1
            or self.dtype.kind not in "uifb"
            or math.prod(sizes) > 1 << 28
        ):
            raise DataError(
                f"`{source.name}` holds an array of shape {self.shape} and type {self.dtype}",
                "images are (number, height, width), or with 1, 3 or 4 channels at the end",
            )
        return sizes[0], sizes[1], channels

    def parts(self, name: str) -> Iterator[NDArray[Any]]:
        """Some rows at a time. Raises DataError for a file that ends before its array does."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        count = self.shape[0] if self.columnwise else max(1, sources.CHUNK // max(1, size))
        for first in range(0, self.shape[0], count):
            rows = min(count, self.shape[0] - first)
            data = _exactly(self.file, rows * size, name)
            part, shape = np.frombuffer(data, self.dtype), (rows, *self.shape[1:])
            yield part.reshape(shape[::-1]).T if self.columnwise else part.reshape(shape)

    def whole(self, name: str) -> NDArray[Any]:
        """All of it, which has to be small."""
        if math.prod(self.shape) * self.dtype.itemsize > MOST_LABELS:
            raise DataError(f"`{name}` has labels of shape {self.shape}", HINT)
        parts = list(self.parts(name))
        return np.concatenate(parts) if parts else np.zeros(self.shape, self.dtype)


def _exactly(file: IO[bytes], count: int, name: str) -> bytes:
    parts = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    if count:
        raise DataError(f"`{name}` is truncated: it ends {count:,} bytes too early", HINT)
    return b"".join(parts)


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[Stream, list[str]]]:
    """The images of a file, and the labels of all of them."""
    assert source.path is not None
    if source.kind == "numpy" and re.search(r"\.npz$", source.name, re.I):
        try:
            with zipfile.ZipFile(source.path) as archive:
                held = [name.removesuffix(".npy") for name in archive.namelist()]
                image = next((n for n in IMAGE_NAMES if n in held), None)
                label = next((n for n in LABEL_NAMES if n in held), None)
                if image is None or label is None:
                    shown = ", ".join(f"`{name}`" for name in held[:8]) or "nothing"
                    raise DataError(
                        f"`{source.name}` holds {shown}, but no `images` with `labels`",
                        "write it so: numpy.savez('train.npz', images=…, labels=…)",
                    )
                with archive.open(f"{label}.npy") as file:
                    labels = _labels(_numpy(file, source.name), source.name)
                with archive.open(f"{image}.npy") as file:
                    yield _numpy(file, source.name), labels
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            KeyError,
            lzma.LZMAError,
            zlib.error,
        ) as error:
            raise DataError(f"`{source.name}` is not an .npz archive: {error}", HINT) from None
        return
    beside = companion(source.path)
    if beside is None or not beside.is_file():
        raise DataError(
            f"`{source.name}` has no labels"
            + (f": `{beside.name}` is not beside it" if beside else " beside it"),
            "name the files so: train-images-idx3-ubyte and train-labels-idx1-ubyte, or "
            "train-images.npy and train-labels.npy",
        )
    head = _numpy if source.kind == "numpy" else _idx
    shown = printable(beside.name)
    with open_bytes(beside) as file:
        labels = _labels(head(file, shown), shown)
    with open_bytes(source.path) as file:
        yield head(file, source.name), labels


def _numpy(file: IO[bytes], name: str) -> Stream:
    """The array behind a .npy file's head. Objects, which only pickle reads, are refused."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, columnwise, dtype = read(file)
    except (ValueError, KeyError, SyntaxError, OverflowError, TypeError) as error:
        raise DataError(f"`{name}` is not a NumPy array: {error}", HINT) from None
    if dtype.itemsize == 0 or any(size < 0 for size in shape):
        raise DataError(f"`{name}` has an impossible head: {shape} of {dtype}", HINT)
    if dtype.hasobject:
        raise DataError(
            f"`{name}` holds Python objects, which are never unpickled",
            "save numbers: numpy.savez('train.npz', images=…, labels=…)",
        )
    return Stream(file, shape, dtype, columnwise and len(shape) > 1)


def _idx(file: IO[bytes], name: str) -> Stream:
    """The array behind an IDX file's head: two zeros, a type, how many sizes, the sizes."""
    head = _exactly(file, 4, name)
    if head[:2] != b"\0\0" or head[2] not in IDX_TYPES or not 1 <= head[3] <= 4:
        raise DataError(f"`{name}` is not an IDX file: it begins with {head.hex()}", HINT)
    sizes = np.frombuffer(_exactly(file, 4 * head[3], name), ">u4")
    return Stream(file, tuple(sizes.tolist()), np.dtype(IDX_TYPES[head[2]]), columnwise=False)


def _labels(stream: Stream, name: str) -> list[str]:
    """Each label as text. Raises DataError for what is no list of numbers or texts."""
    if stream.dtype.kind not in "uifbUS" or math.prod(stream.shape[1:]) != 1:
        raise DataError(
            f"`{name}` has labels of shape {stream.shape} and type {stream.dtype}",
            "one number or text for each image",
        )
    values = stream.whole(name).reshape(-1)
    if values.dtype.kind == "S":
        return [value.decode(errors="replace") for value in values.tolist()]
    if values.dtype.kind == "U":
        codes = values.view(np.uint32)
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise DataError(f"`{name}` has labels that are not text", HINT)
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == values.round()).all():
        values = values.astype(np.int64)
    return [str(value) for value in values.tolist()]


def _scale(part: NDArray[Any]) -> float:
    """What makes an array's values those of bytes, from its first rows: fractions and truth go
    from 0 to 1, two bytes to the largest value of the bits that are used."""
    from bigmodel_cli.tasks.pixels import white_of

    if part.dtype.kind == "b" or (
        part.dtype.kind == "f" and np.isfinite(part).any() and float(np.nanmax(part)) <= 1
    ):
        return 255.0
    wide = part.dtype.itemsize == 2 and part.dtype.kind == "u"
    return 255 / white_of(max(255, float(part.max()))) if wide else 1.0


def _bytes(part: NDArray[Any], scale: float, name: str) -> NDArray[np.uint8]:
    if part.dtype.itemsize == 1 and part.dtype.kind == "u":
        return part.astype(np.uint8, copy=False)
    values = part.astype(np.float64) * scale
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255.5):
        raise DataError(
            f"`{name}` has values from {part.min()} to {part.max()}",
            "pixels go from 0 to 255, or as fractions from 0 to 1",
        )
    return values.round().clip(0, 255).astype(np.uint8)


def _encoded(images: NDArray[Any], form: tuple[int, int, int]) -> pa.Array:
    """Images (n, H, W) or (n, H, W, C) as files of netpbm's; what does not cover is on white.
    Grey ones of two bytes a value stay so: which is white, their task learns from all of them."""
    height, width, channels = form
    if channels == 4:
        cover = images[..., 3:].astype(np.uint16)
        images = ((images[..., :3] * cover + 255 * (255 - cover) + 127) // 255).astype(np.uint8)
    most = 255 if images.dtype == np.uint8 else 65535
    head = b"P%d %d %d %d\n" % (5 if channels == 1 else 6, width, height, most)
    if most > 255:
        images = np.ascontiguousarray(images, ">u2").view(np.uint8)
    flat = images.reshape(len(images), -1)
    whole = np.empty((len(flat), len(head) + flat.shape[1]), np.uint8)
    whole[:, : len(head)], whole[:, len(head) :] = np.frombuffer(head, np.uint8), flat
    offsets = np.arange(len(flat) + 1, dtype=np.int64) * whole.shape[1]
    return pa.Array.from_buffers(
        pa.large_binary(), len(flat), [None, pa.py_buffer(offsets), pa.py_buffer(whole)]
    )
