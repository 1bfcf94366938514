"""Sources of images: every format gives the same pixels and labels, and bad ones are counted or
refused by name."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.tasks import load_task
from tests.stages import Events, prepare

COUNT, SIDE = 24, 9
NAMES = ("cat", "dog", "owl")
TASK = "image-classification"


def pictures(seed: int = 0, channels: int = 1) -> tuple[NDArray[np.uint8], list[str]]:
    """COUNT images (n, SIDE, SIDE), or with channels, and their labels."""
    random = np.random.default_rng(seed)
    shape = (COUNT, SIDE, SIDE) + (channels,) * (channels > 1)
    return random.integers(0, 256, shape, np.uint8), [NAMES[i % 3] for i in range(COUNT)]


def png(pixels: NDArray[np.uint8], kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **how)
    return file.getvalue()


def idx(values: NDArray[Any], code: int = 8) -> bytes:
    head = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.tobytes()


def prepared(work: Path) -> dict[bytes, str]:
    """Each image's pixels in the shards, of all splits, with its label."""
    data = Workdir(work).read_data()
    task: Any = load_task(work / "data" / "preprocessor", "")
    found = {}
    for part in data.splits.values():
        split = Split(work / "data", part.shards)
        labels = split.column("label")
        for i in range(len(split)):
            found[split.values("pixels", i, i + 1).tobytes()] = task.labels[int(labels[i])]
    return found


def folder(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{i:03d}.png").write_bytes(png(pixels))
    return root


def csv_of_paths(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    (root / "files").mkdir(parents=True)
    lines = ["file_name,class"]
    for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
        (root / "files" / f"{i}.png").write_bytes(png(pixels))
        lines.append(f"files/{i}.png,{label}")
    (root / "rows.csv").write_text("\n".join(lines))
    return root


def jsonl_of_uris(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    root.mkdir()
    with (root / "rows.jsonl").open("w") as file:
        for pixels, label in zip(x, y, strict=True):
            uri = "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
            file.write(json.dumps({"image": uri, "label": label}) + "\n")
    return root


def parquet(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    root.mkdir()
    table = pa.table({"image": [png(pixels) for pixels in x], "label": y})
    pyarrow.parquet.write_table(table, root / "rows.parquet")
    return root


def parquet_of_structs(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    root.mkdir()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": png(pixels), "path": None} for pixels in x], kind)
    pyarrow.parquet.write_table(pa.table({"image": images, "label": y}), root / "rows.parquet")
    return root


def idx_files(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    root.mkdir()
    (root / "some-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
    codes = np.array([NAMES.index(label) for label in y], np.uint8)
    (root / "some-labels-idx1-ubyte").write_bytes(idx(codes))
    return root


def npz(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    root.mkdir()
    np.savez_compressed(root / "a.npz", images=x, labels=np.array(y))
    return root


def npy(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
    root.mkdir()
    np.save(root / "my-images.npy", np.asfortranarray(x))
    np.save(root / "my-labels.npy", np.array([y]).T)
    return root


Writer = Callable[[Path, NDArray[np.uint8], list[str]], Path]
WRITERS = (folder, csv_of_paths, jsonl_of_uris, parquet, parquet_of_structs, idx_files, npz, npy)


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_every_format_gives_the_same(write: Writer, tmp_path: Path) -> None:
    x, y = pictures()
    source = write(tmp_path / "in", x, y)
    done = prepare(tmp_path / "work", source, val="0.2", test="0.2")
    assert done.manifest.task == TASK  # told by the sources
    wanted = {pixels.tobytes(): label for pixels, label in zip(x, y, strict=True)}
    if write is idx_files:
        wanted = {k: str(NAMES.index(v)) for k, v in wanted.items()}
    assert prepared(tmp_path / "work") == wanted
    assert done.manifest.ledger.kept.rows == COUNT
    assert not done.manifest.ledger.dropped
    assert prepare(tmp_path / "work", source, val="0.2", test="0.2").fresh


@pytest.mark.slow
def test_hub_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their images are structs, and their classes numbers with names."""
    import datasets

    x, y = pictures()
    features = datasets.Features({"image": datasets.Image(),
                                  "label": datasets.ClassLabel(names=list(NAMES))})  # fmt: skip
    rows = {"image": [{"bytes": png(pixels), "path": None} for pixels in x],
            "label": [NAMES.index(label) for label in y]}  # fmt: skip
    data = datasets.Dataset.from_dict(rows, features)
    monkeypatch.setattr(sources, "load_hub", lambda _: data)
    done = prepare(tmp_path / "work", "hf:somebody/pictures", val="0", test="0.2")
    assert done.manifest.task == TASK
    assert prepared(tmp_path / "work") == {
        pixels.tobytes(): label for pixels, label in zip(x, y, strict=True)
    }


@pytest.mark.parametrize("write", [folder, npz, parquet])
def test_colour(write: Writer, tmp_path: Path) -> None:
    x, y = pictures(channels=3)
    prepare(tmp_path / "work", write(tmp_path / "in", x, y), val="0", test="0.2")
    wanted = {p.transpose(2, 0, 1).tobytes(): label for p, label in zip(x, y, strict=True)}
    assert prepared(tmp_path / "work") == wanted


@pytest.mark.slow
def test_small_parts_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read a few rows at a time is what is read at once; places stay right."""
    from bigmodel_cli.tasks import image_classification

    x, y = pictures()
    monkeypatch.setattr(sources, "CHUNK", 3 * SIDE * SIDE)
    monkeypatch.setattr(image_classification, "TOGETHER", 2)
    wanted = {pixels.tobytes(): label for pixels, label in zip(x, y, strict=True)}
    for write in (folder, csv_of_paths, jsonl_of_uris, npz):
        work, name = tmp_path / f"work-{write.__name__}", tmp_path / write.__name__
        prepare(work, write(name, x, y), val="0", test="0.2")
        assert prepared(work) == wanted
    x[17], y[17] = x[3], y[3]
    idx_files(tmp_path / "twice", x, y)
    done = prepare(tmp_path / "work", tmp_path / "twice", val="0", test="0.2")
    where = done.manifest.ledger.dropped["duplicate_exact"].where
    assert where == ["some-images-idx3-ubyte.gz, image 18"]


def test_fractions_wide_numbers_and_cover(tmp_path: Path) -> None:
    x, y = pictures()
    wanted = {pixels.tobytes(): label for pixels, label in zip(x, y, strict=True)}
    for name, values in {
        "fractions": x / np.float32(255), "wide": x.astype(np.uint16) * 257,
        "whole": x.astype(np.int64), "reals": x.astype(np.float64),
    }.items():  # fmt: skip
        npz(tmp_path / name, values, y)
        prepare(tmp_path / f"work-{name}", tmp_path / name, val="0", test="0.2")
        assert prepared(tmp_path / f"work-{name}") == wanted, name
    covered = np.stack([x, x, x, np.full_like(x, 255)], -1)
    covered[:, 0, 0] = (7, 8, 9, 0)  # seen through
    npz(tmp_path / "rgba", covered, y)
    prepare(tmp_path / "work", tmp_path / "rgba", val="0", test="0.2")
    x[:, 0, 0] = 255
    assert prepared(tmp_path / "work") == {
        pixels.tobytes(): label for pixels, label in zip(x, y, strict=True)
    }


def test_splits_by_folder_and_by_name(tmp_path: Path) -> None:
    x, y = pictures()
    folder(tmp_path / "a" / "train", x[:16], y[:16])
    folder(tmp_path / "a" / "test", x[16:], y[16:])
    for name, part in (("train", slice(0, 16)), ("t10k", slice(16, None))):
        idx_files(tmp_path / name, x[part], y[part])
        for file in (tmp_path / name).iterdir():
            (tmp_path / "b").mkdir(exist_ok=True)
            file.replace(tmp_path / "b" / file.name.replace("some", name))
    for name in ("a", "b"):
        done = prepare(tmp_path / f"work-{name}", tmp_path / name, val="0")
        counts = {k: v.units for k, v in done.manifest.splits.items()}
        assert counts == {"train": 16, "val": 0, "test": 8}, name


def test_a_class_may_have_a_splits_name(tmp_path: Path) -> None:
    x, y = pictures()
    y = [{"cat": "train", "dog": "test", "owl": "val"}[label] for label in y]
    prepare(tmp_path / "work", folder(tmp_path / "in", x, y), val="0", test="0.2")
    assert set(prepared(tmp_path / "work").values()) == {"train", "test", "val"}


def bomb(width: int, height: int) -> bytes:
    """A PNG of 100 kB or less that is so large, all of it black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    x, y = pictures()
    root = folder(tmp_path / "in", x, y)
    whole = png(np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8))
    bad = {
        "truncated.png": whole[: len(whole) // 2], "text.png": b"no image at all\n",
        "empty.jpg": b"", "bomb.png": bomb(9_000, 9_000), "large.png": bomb(60_000, 60_000),
        "vector.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }  # fmt: skip
    for name, data in bad.items():
        (root / "owl" / name).write_bytes(data)
    good = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE), np.uint8)
    (root / "owl" / "misnamed.jpg").write_bytes(png(good))  # a PNG, which is read all the same
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = prepare(tmp_path / "work", root, val="0", test="0.2")
    ledger = done.manifest.ledger
    assert {k: v.rows for k, v in ledger.dropped.items()} == {"unreadable": 4, "too_large": 2}
    assert ledger.dropped["too_large"].bytes == len(bad["bomb.png"]) + len(bad["large.png"])
    assert sorted(ledger.dropped["too_large"].where) == ["owl/bomb.png", "owl/large.png"]
    assert ledger.kept.rows == COUNT + 1
    assert prepared(tmp_path / "work")[good.tobytes()] == "owl"


def test_rows_that_name_no_picture_are_counted(tmp_path: Path) -> None:
    x, y = pictures()
    root = csv_of_paths(tmp_path / "in", x, y)
    rows = ["missing.png,cat", "https://example.org/a.png,cat", "data:image/png;base64,!!!,cat",
            "/dev/zero,cat", ".,dog", "files/0.png,"]  # fmt: skip
    with (root / "rows.csv").open("a") as file:
        file.write("\n" + "\n".join(rows))
    done = prepare(tmp_path / "work", root / "rows.csv", val="0", test="0.2")
    dropped = {k: v.rows for k, v in done.manifest.ledger.dropped.items()}
    assert dropped == {"unreadable": 4, "malformed": 1, "no_label": 1}
    assert done.manifest.ledger.dropped["unreadable"].where[0] == "rows.csv, line 26"


def test_a_named_file_is_part_of_its_source(tmp_path: Path) -> None:
    """An image that a row names and that changes makes the data stale, and is named."""
    x, y = pictures()
    root = csv_of_paths(tmp_path / "in", x, y)
    events = Events()
    prepare(tmp_path / "work", root / "rows.csv", val="0", test="0.2")
    assert prepare(tmp_path / "work", root / "rows.csv", val="0", test="0.2").fresh
    (root / "files" / "3.png").write_bytes(png(255 - x[3]))
    again = prepare(tmp_path / "work", root / "rows.csv", val="0", test="0.2",
                    told=events.context())  # fmt: skip
    assert not again.fresh
    assert "named files.rows.csv" in events.notes
    assert (255 - x[3]).tobytes() in prepared(tmp_path / "work")


def test_labels_are_part_of_their_pictures(tmp_path: Path) -> None:
    """Also where only the images were named."""
    x, y = pictures()
    root = idx_files(tmp_path / "in", x, y)
    images = root / "some-images-idx3-ubyte.gz"
    prepare(tmp_path / "work", images, val="0", test="0.2")
    (root / "some-labels-idx1-ubyte").write_bytes(idx(np.arange(COUNT, dtype=np.uint8) % 2))
    assert not prepare(tmp_path / "work", images, val="0", test="0.2").fresh
    assert set(prepared(tmp_path / "work").values()) == {"0", "1"}


class Evil:
    """What unpickling would call."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("unpickled"),))


def bad_idx(kind: str) -> Writer:
    def write(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
        root.mkdir()
        images, labels = idx(x), idx(np.arange(len(y), dtype=np.uint8))
        if kind == "fewer labels":
            labels = idx(np.arange(len(y) - 1, dtype=np.uint8))
        elif kind == "truncated":
            images = images[:-100]
        elif kind == "wrong head":
            images = b"\x89PNG" + images
        elif kind == "empty":
            images = b""
        elif kind == "flat":
            images = idx(x.reshape(len(x), -1))
        elif kind == "huge":
            images = b"\0\0\x08\x03" + struct.pack(">3I", len(x), 1 << 31, 1 << 31)
        (root / "a-images-idx3-ubyte").write_bytes(images)
        if kind != "no labels":
            (root / "a-labels-idx1-ubyte").write_bytes(labels)
        return root

    return write


def bad_numpy(**arrays: Any) -> Writer:
    def write(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
        root.mkdir()
        np.savez(root / "a.npz", **{"images": x, "labels": np.array(y), **arrays})
        return root

    return write


def broken_numpy(data: bytes, name: str = "a.npz") -> Writer:
    def write(root: Path, x: NDArray[np.uint8], y: list[str]) -> Path:
        del x, y
        root.mkdir()
        (root / name).write_bytes(data)
        return root

    return write


BAD = {
    "idx, fewer labels": (bad_idx("fewer labels"), "but there are 23 labels"),
    "idx, truncated": (bad_idx("truncated"), "ends 100 bytes too early"),
    "idx, wrong head": (bad_idx("wrong head"), "begins with 89504e47"),
    "idx, empty": (bad_idx("empty"), "ends 4 bytes too early"),
    "idx, flat": (bad_idx("flat"), "array of shape (24, 81)"),
    "idx, huge": (bad_idx("huge"), "array of shape"),
    "idx, no labels": (bad_idx("no labels"), "`a-labels-idx1-ubyte` is not beside it"),
    "npz, objects": (bad_numpy(images=np.array([Evil()] * COUNT)), "never unpickled"),
    "npz, object labels": (bad_numpy(labels=np.array([Evil()] * COUNT)), "never unpickled"),
    "npz, other names": (broken_numpy(b"PK\x05\x06" + bytes(18)), "no `images` with `labels`"),
    "npz, no archive": (broken_numpy(b"no archive"), "is not an .npz archive"),
    "npz, out of range": (bad_numpy(images=np.full((COUNT, 9, 9), 300.0)), "values from 300.0"),
    "npz, no numbers": (bad_numpy(images=np.full((COUNT, 9, 9), np.nan)), "values from nan"),
    "npz, one-hot": (bad_numpy(labels=np.eye(COUNT)), "labels of shape (24, 24)"),
    "npy, no labels": (broken_numpy(b"", "a.npy"), "has no labels beside it"),
    "npy, broken": (broken_numpy(b"\x93NUMPY\x01", "a-images.npy"), "a-labels.npy` is not beside"),
}


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("what", BAD)
def test_arrays_that_cannot_be_are_refused(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, says = BAD[what]
    monkeypatch.chdir(tmp_path)
    x, y = pictures()
    with pytest.raises(DataError) as raised:
        prepare(tmp_path / "work", write(tmp_path / "in", x, y), task=TASK, test="0.2")
    assert says in raised.value.message
    assert raised.value.hint
    assert not (tmp_path / "unpickled").exists()
    assert not (tmp_path / "work" / "data" / "manifest.json").exists()


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    x, y = pictures()
    root = idx_files(tmp_path / "in", x, y)
    path = root / "some-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match="cannot be read to its end"):
        prepare(tmp_path / "work", root)


def test_images_among_texts_are_not_text(tmp_path: Path) -> None:
    """For other tasks they are skipped, unless they are named: then they are unreadable."""
    x, y = pictures()
    root = folder(tmp_path / "in", x[:3], y[:3])
    for number in range(4):
        (root / f"page{number}.md").write_text(f"Words about cat {number} and dogs.\n" * 20)
    done = prepare(tmp_path / "work", root, val="0", test="0")
    assert done.manifest.task == "language"
    assert done.manifest.ledger.came_in.rows == 4
    assert not done.manifest.ledger.dropped
    files = sorted(path for path in root.rglob("*") if path.is_file())
    done = prepare(tmp_path / "work", *files, task="language", val="0", test="0")
    assert done.manifest.ledger.dropped["unreadable"].rows == 3


def test_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("words")
    with pytest.raises(DataError, match="holds no records"):
        prepare(tmp_path / "work", tmp_path / "in", task=TASK)
    x, _ = pictures()
    folder(tmp_path / "one", x, ["cat"] * COUNT)
    with pytest.raises(DataError, match="only one label"):
        prepare(tmp_path / "work", tmp_path / "one", test="0")


def test_a_file_that_an_object_names_is_part_of_its_source(tmp_path: Path) -> None:
    x, y = pictures()
    root = csv_of_paths(tmp_path / "in", x, y)
    lines = (root / "rows.csv").read_text("utf-8").splitlines()[1:]
    named = [line.split(",") for line in lines]
    rows = [{"image": {"path": path}, "label": label} for path, label in named]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    prepare(tmp_path / "work", root / "rows.jsonl", val="0", test="0.2")
    assert prepare(tmp_path / "work", root / "rows.jsonl", val="0", test="0.2").fresh
    (root / "files" / "3.png").write_bytes(png(255 - x[3]))
    assert not prepare(tmp_path / "work", root / "rows.jsonl", val="0", test="0.2").fresh


@pytest.mark.parametrize(
    ("kind", "shape", "data"),
    [("<i4", (-60,), b"\0" * 240), ("|S0", (60,), b""), ("<U1", (60,), b"\xff\xff\xff\x7f" * 60),
     ("<U1", (60,), b"\x00\xd8\x00\x00" * 60)],
    ids=["negative", "no width", "no character", "half a surrogate"],
)  # fmt: skip
def test_hostile_labels_of_numpy_are_refused(
    tmp_path: Path, kind: str, shape: tuple[int, ...], data: bytes
) -> None:
    x, _ = pictures()
    np.save(tmp_path / "a-images.npy", x)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    (tmp_path / "a-labels.npy").write_bytes(head.getvalue() + data)
    with pytest.raises(DataError, match=r"a-labels\.npy"):
        prepare(tmp_path / "work", tmp_path / "a-images.npy", val="0", test="0.2")


@pytest.mark.slow
def test_the_form_is_that_of_pictures_that_can_be_read(tmp_path: Path) -> None:
    """Also where a thousand broken ones come before them."""
    x, y = pictures()
    for number in range(1100):
        (tmp_path / "in" / "0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "0" / f"{number:05d}.png").write_bytes(b"no image")
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        (tmp_path / "in" / f"1{label}").mkdir(exist_ok=True)
        (tmp_path / "in" / f"1{label}" / f"{number}.png").write_bytes(png(image))
    made = prepare(tmp_path / "work", tmp_path / "in", val="0", test="0.2").manifest
    assert made.ledger.dropped["unreadable"].rows == 1100
    assert x[3].tobytes() in prepared(tmp_path / "work")
