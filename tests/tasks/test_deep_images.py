"""Images of more than 8 bits a value: one white for a whole data set, at prediction as well."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.tasks import load_task
from tests.conftest import TINY, Cli
from tests.stages import Events, prepare


def values(place: int, brightest: int, size: int = 16) -> np.ndarray:
    """A ramp of 8 bits, darker in half of the images."""
    ramp = np.arange(size * size).reshape(size, size) / (size * size - 1)
    return np.roll(ramp, place, 0) * (brightest if place % 2 else brightest / 4)


def folder(place: Path, brightest: int, kind: str, dtype: Any, count: int = 40) -> Path:
    for i in range(count):
        label = place / "亮" if i % 2 else place / "暗"
        label.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values(i, brightest).round(3).astype(dtype))
        image.save(label / f"{i:02}.{kind}")
    return place


def shards(work: Path, split: str = "train") -> np.ndarray:
    data = Workdir(work).read_data().splits[split]
    rows = Split(work / "data", data.shards)
    return np.stack([rows.values("pixels", i, i + 1) for i in range(len(rows))])


CASES = [(4095, "png", np.uint16, 4095), (1023, "tif", np.uint16, 1023),
         (65535, "png", np.uint16, 65535), (1, "tiff", np.float32, 1),
         (4095, "tiff", np.int32, 4095), (200, "png", np.uint16, 255)]  # fmt: skip


@pytest.mark.parametrize(("brightest", "kind", "dtype", "white"), CASES)
def test_bits_that_are_used_are_learned_and_said(
    tmp_path: Path, brightest: int, kind: str, dtype: Any, white: int
) -> None:
    source = folder(tmp_path / "in", brightest, kind, dtype)
    events = Events()
    prepare(tmp_path / "w", source, val="0.2", test="0.2", told=events.context())
    assert f"40 have more than 8 bits a value, of which the largest in training is {brightest:,}" \
        in events.notes  # fmt: skip
    assert f"{white:,} is white" in events.notes
    pixels = shards(tmp_path / "w")
    assert sorted({int(row.max()) for row in pixels}) == pytest.approx(
        [255 * brightest / white / 4, 255 * brightest / white], abs=1
    )
    task: Any = load_task(tmp_path / "w" / "data" / "preprocessor", "")
    task.opens_files = True
    known = {row.tobytes() for split in ("train", "val", "test")
             for row in shards(tmp_path / "w", split)}  # fmt: skip
    for path in source.glob("*/*"):  # what a request gets is what was learned and evaluated
        assert task.request({"image": str(path)}).prompt.tobytes() in known


def test_arrays_of_twelve_bits_keep_their_range(tmp_path: Path) -> None:
    grey = np.stack([values(i, 4095) for i in range(40)]).round().astype(np.uint16)
    labels = np.arange(40) % 2
    for name, images in {"grey": grey, "rgb": np.repeat(grey[..., None], 3, 3)}.items():
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
        prepare(tmp_path / name, tmp_path / f"{name}.npz", val="0", test="0")
        assert sorted({int(row.max()) for row in shards(tmp_path / name)}) == [64, 255]


def test_deep_images_beside_others_and_brighter_ones_are_counted(tmp_path: Path) -> None:
    folder(tmp_path / "in", 1000, "png", np.uint16)
    for label in ("亮", "暗"):
        Image.fromarray(values(1, 255).astype(np.uint8)).save(tmp_path / "in" / label / "flat.png")
    held = folder(tmp_path / "held", 5000, "png", np.uint16, 20)
    events = Events()
    prepare(tmp_path / "w", tmp_path / "in", val="0.2", test=str(held), told=events.context())
    assert "60 have more than 8 bits" in events.notes
    assert "1,023 is white" in events.notes
    assert "16 images of more than 8 bits are brighter than any of the train" in events.notes
    assert shards(tmp_path / "w", "test").max() == 255


def test_colours_of_sixteen_bits_are_said_to_be_read_by_half(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    folder(tmp_path / "in", 255, "png", np.uint8)
    for place, (kind, bands) in enumerate({2: 3, 6: 4, 4: 2}.items()):
        rows = np.full((16, 1 + 16 * 2 * bands), 200 + place, np.uint8)
        rows[:, 0] = 0  # no filter
        head = struct.pack(">IIBBBBB", 16, 16, 16, kind, 0, 0, 0)
        parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        whole = b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")
        (tmp_path / "in" / "亮" / f"rgb{place}.png").write_bytes(whole)
    events = Events()
    prepare(tmp_path / "w", tmp_path / "in", val="0.2", test="0.2", told=events.context())
    assert "of 3 images in colour or with transparency, of 16 bits a value, the upper 8 bits" \
        in events.notes  # fmt: skip


@pytest.mark.slow
def test_the_chain_answers_as_it_was_evaluated(empty: Cli) -> None:
    source = folder(empty.cwd / "in", 4095, "png", np.uint16)
    empty.works("prepare", "in", "--val", "0.2", "--test", "0.2")
    empty.works("train", *TINY[:8], "--steps", "20", "--patch", "4")
    empty.works("evaluate")
    empty.works("deploy")
    found = json.loads((empty.work / "runs/default/evaluation.json").read_bytes())
    assert found["metrics"]["accuracy"]["value"] == 1.0  # light and dark ones
    paths = sorted(source.glob("*/*.png"))
    lines = "\n".join(json.dumps({"image": str(path)}) for path in paths)
    answers = empty.works("predict", stdin=lines.encode()).out.splitlines()
    assert [json.loads(line)["label"] for line in answers] == [path.parent.name for path in paths]
