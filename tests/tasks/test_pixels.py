"""Images as arrays: every kind of file, and augmentation as a function of its key."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bigmodel_cli.tasks import pixels
from bigmodel_cli.tasks.packing import AUGMENT, generator
from bigmodel_cli.tasks.pixels import (
    Augmentation,
    Form,
    ImageError,
    array,
    data_uri,
    opened,
    read_uri,
    thumbnails,
    white_of,
)


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def read(data: bytes, channels: int = 1, size: int = 16) -> NDArray[np.uint8]:
    return array(opened(data), Form(channels, size))


def ramp(size: int = 16) -> NDArray[np.uint8]:
    """Every pixel another one."""
    return np.arange(size * size).reshape(size, size).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_same(kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(read(saved(Image.fromarray(ramp()), kind, **how))[0], ramp())


def test_jpeg_is_close() -> None:
    smooth = np.linspace(0, 250, 256).reshape(16, 16).astype(np.uint8)
    found = read(saved(Image.fromarray(smooth), "JPEG", quality=95))[0].astype(int)
    assert np.abs(found - smooth).max() <= 8
    large = Image.fromarray(smooth).resize((400, 400), Image.Resampling.BILINEAR)
    found = read(saved(large, "JPEG", quality=95))[0].astype(int)  # decoded at a fraction
    assert np.abs(found - smooth).max() <= 12


def test_sixteen_bits_are_scaled() -> None:
    wide = ramp().astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read(saved(Image.fromarray(wide), kind))[0], ramp()), kind
    fractions = Image.fromarray(ramp().astype(np.float32) / 255)
    assert np.array_equal(read(saved(fractions, "TIFF"))[0], ramp())


@pytest.mark.parametrize("size", [16, 8])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_bits_beyond_eight_keep_their_range(bits: int, size: int) -> None:
    values = (ramp().astype(np.float64) / 255 * ((1 << bits) - 1)).round()
    wanted = array(opened(saved(Image.fromarray(ramp()), "PNG")), Form(1, size))[0].astype(int)
    for kind, dtype in (("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32),
                        ("TIFF", np.float32), ("PPM", np.int32)):  # fmt: skip
        data = saved(Image.fromarray(values.astype(dtype)), kind)
        found = array(opened(data), Form(1, size, white_of(float(values.max()))))
        assert np.abs(found[0] - wanted).max() <= 1, (kind, dtype)


@pytest.mark.parametrize(
    ("top", "white"),
    [(0.2, 1), (1, 1), (2, 255), (255, 255), (256, 1023), (1023, 1023), (1024, 4095),
     (4095, 4095), (4096, 16383), (65535, 65535), (65536, 262143)],
)  # fmt: skip
def test_white_is_the_largest_value_of_the_bits_that_are_used(top: float, white: float) -> None:
    assert white_of(top) == white


def test_avif_and_jpegs_of_another_name() -> None:
    smooth = Image.fromarray(np.linspace(0, 250, 256).reshape(16, 16).astype(np.uint8))
    for kind in ("AVIF", "JPEG"):
        found = read(saved(smooth.convert("RGB"), kind, quality=95))[0].astype(int)
        assert np.abs(found - np.asarray(smooth)).max() <= 10


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK")


@pytest.mark.parametrize("mode", MODES)
def test_large_images_are_read_in_bands_as_small_ones_are(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    grey = np.kron(random.integers(0, 256, (12, 20), np.uint8), np.ones((16, 16), np.uint8))
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode)
    image = Image.fromarray(grey.astype(deep) * 16 if deep else grey)
    image = image if deep else image.convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(255 - grey))
    data = saved(image, "TIFF" if mode in ("I", "F", "CMYK") else "PNG")
    for channels in (1, 3):
        whole = read(data, channels, 24)
        monkeypatch.setattr(pixels, "BAND", 5000)
        banded = read(data, channels, 24).astype(int)
        assert np.abs(banded - whole).max() <= (24 if mode == "1" else 12)
        assert np.abs(banded - whole).mean() <= 2
        exact = read(data, channels, 96)
        monkeypatch.undo()
        assert np.array_equal(exact, read(data, channels, 96))  # nothing is left out on the way


PEAK = """
import io, sys
from bigmodel_cli.tasks import pixels
data = open(sys.argv[1], "rb").read()
pixels.array(pixels.opened(data), pixels.Form(3, 64))
open("/proc/self/clear_refs", "w").write("5")
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before, image = peak(), pixels.opened(data)
print(pixels.weight(image, 64) >> 10)
pixels.array(image, pixels.Form(3, 64))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts pages as Linux does")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "WEBP", "JPEG"])
def test_decoding_takes_the_memory_of_the_pixels_once(tmp_path: Path, mode: str) -> None:
    grey = np.broadcast_to((np.arange(4000) % 256).astype(np.uint8), (4000, 4000))
    deep = mode == "I;16"
    image = Image.fromarray(np.ascontiguousarray(grey).astype(np.uint16 if deep else np.uint8))
    if mode in ("1", "L", "LA", "P", "RGBA"):
        image = image.convert(mode)
    kind = mode if mode in ("WEBP", "JPEG") else "PNG"
    (tmp_path / "image").write_bytes(saved(image, kind))
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "image")], check=True,
                          capture_output=True, text=True)  # fmt: skip
    said, peak = map(int, done.stdout.split())
    assert peak <= said + (24 << 10)


def test_the_head_says_how_much_memory_an_image_takes() -> None:
    image = Image.new("RGB", (1000, 2000))
    found = {
        kind: pixels.weight(opened(saved(image, kind)), 64) for kind in ("PNG", "JPEG", "WEBP")
    }
    assert found == {"PNG": 8_000_000, "JPEG": 8_000_000 // 16, "WEBP": 32_000_000}
    assert pixels.weight(opened(saved(image, "JPEG")), 300) == 8_000_000
    assert pixels.weight(opened(saved(image, "JPEG", progressive=True)), 64) == 8_000_000
    assert pixels.weight(opened(saved(image.convert("L"), "PNG")), 64) == 2_000_000


def test_images_that_would_take_too_much_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = Image.new("RGB", (100, 100))
    monkeypatch.setattr(pixels, "MOST_MEMORY", 50_000)
    assert read(saved(image, "PNG"), 3).shape == (3, 16, 16)
    for kind in ("WEBP", "AVIF"):
        with pytest.raises(ImageError, match="too_large"):
            opened(saved(image, kind))


def test_what_nothing_covers_is_white() -> None:
    seen = np.zeros((16, 16, 4), np.uint8)
    seen[:8, :, 3] = 255
    found = read(saved(Image.fromarray(seen), "PNG"))[0]
    assert (found[:8] == 0).all()
    assert (found[8:] == 255).all()
    flat = Image.fromarray(seen[..., :3]).convert("P")
    assert (read(saved(flat, "GIF", transparency=flat.getpixel((0, 0))))[0] == 255).all()


def test_colours() -> None:
    red = Image.new("RGB", (16, 16), (200, 10, 30))
    assert read(saved(red, "PNG"), channels=3)[:, 0, 0].tolist() == [200, 10, 30]
    assert read(saved(red.convert("P"), "PNG"), channels=3)[0].mean() == pytest.approx(200, abs=30)
    print_ = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = read(saved(print_, "TIFF"), channels=3)[:, 0, 0]
    assert found[0] > 200
    assert found[1:].max() < 60


def test_the_first_frame_of_what_moves() -> None:
    frames = [Image.fromarray(ramp()), Image.fromarray(255 - ramp())]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(read(data)[0], ramp())


def test_turned_as_the_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    data = saved(Image.fromarray(ramp()), "PNG", exif=exif)
    assert np.array_equal(read(data)[0], np.rot90(ramp(), -1))


def test_the_middle_of_an_oblong() -> None:
    wide = np.zeros((16, 40), np.uint8)
    wide[:, 12:28] = ramp()
    assert np.array_equal(read(saved(Image.fromarray(wide), "PNG"))[0], ramp())
    assert np.array_equal(read(saved(Image.fromarray(wide.T), "PNG"))[0], ramp().T)


def test_resized_to_one_size() -> None:
    checks = np.kron(np.array([[0, 200], [100, 50]], np.uint8), np.ones((32, 32), np.uint8))
    small = read(saved(Image.fromarray(checks), "PNG"))[0]
    assert small.shape == (16, 16)
    assert [int(small[y, x]) for y, x in ((2, 2), (2, 13), (13, 2), (13, 13))] == [0, 200, 100, 50]
    assert read(saved(Image.fromarray(ramp(4)), "PNG")).shape == (1, 16, 16)


@pytest.mark.parametrize("cut", [1, 20, 60, 90])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_truncated_is_unreadable(kind: str, cut: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match="unreadable"):
        read(data[: len(data) * cut // 100])


def test_flipped_bits_never_raise_anything_else() -> None:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        data = saved(noise, kind)
        for _ in range(60):
            broken = bytearray(data)
            for place in random.integers(0, len(data), 4):
                broken[place] ^= 1 << int(random.integers(8))
            with contextlib.suppress(ImageError):
                assert read(bytes(broken), 3).shape == (3, 16, 16)


def test_uris() -> None:
    pixels = ramp()[None]
    assert np.array_equal(read(read_uri(data_uri(pixels)) or b""), pixels)
    assert read_uri("data:,a%20b") == b"a b"
    assert read_uri("data:text/plain;charset=x;base64,YQ==") == b"a"
    for bad in ("data:image/png;base64,?", "data:image/png;base64", "http://a/b.png", ""):
        assert read_uri(bad) is None


# Augmentation ----------------------------------------------------------------------------------

FILL = np.array([100], np.uint8)


def augmented(
    augment: Augmentation, examples: list[int], epoch: int = 0, seed: int = 0
) -> NDArray[np.uint8]:
    pixels = np.stack([np.roll(ramp(12), e)[None] | 1 for e in examples])  # no pixel is 0
    return augment(pixels, FILL, seed, np.array(examples), np.full(len(examples), epoch))


def test_augmentation_is_a_function_of_its_key() -> None:
    augment = Augmentation(2, True, 0.5)
    together = augmented(augment, list(range(40)))
    for example in (0, 7, 39):  # whatever else is in the batch
        assert np.array_equal(augmented(augment, [example])[0], together[example])
    assert np.array_equal(augmented(augment, list(range(40))), together)
    for other in ({"epoch": 1}, {"seed": 1}):
        differing = (augmented(augment, list(range(40)), **other) != together).any((1, 2, 3))
        assert differing.sum() > 30


def test_what_is_off_changes_nothing() -> None:
    plain = np.stack([np.roll(ramp(12), e)[None] | 1 for e in range(30)])
    assert np.array_equal(augmented(Augmentation(0, False, 0.0), list(range(30))), plain)


def test_shift_moves_by_all_places_and_loses_the_rest() -> None:
    found = augmented(Augmentation(1, False, 0.0), list(range(400)))
    seen = set()
    for example, picture in enumerate(found[:, 0]):
        plain = np.pad(np.roll(ramp(12), example) | 1, 1)
        moved = [(y, x) for y in range(3) for x in range(3)
                 if np.array_equal(plain[y : y + 12, x : x + 12], picture)]  # fmt: skip
        assert len(moved) == 1
        seen.update(moved)
    assert len(seen) == 9


def test_flip_mirrors_half() -> None:
    found = augmented(Augmentation(0, True, 0.0), list(range(400)))
    plain = np.stack([np.roll(ramp(12), e)[None] | 1 for e in range(400)])
    same, mirrored = (
        np.array([np.array_equal(a, b) for a, b in zip(found, which, strict=True)])
        for which in (plain, plain[..., ::-1])
    )
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250


def test_erase_hides_a_rectangle_in_its_share() -> None:
    drawn = np.stack([np.full((1, 12, 12), 7, np.uint8)] * 1000)
    found = Augmentation(0, False, 0.3)(
        drawn, FILL, 0, np.arange(1000), np.zeros(1000, np.int64)
    )[:, 0]  # fmt: skip
    hidden = found == 100
    assert ((found == 7) | hidden).all()
    share = hidden.any((1, 2)).mean()
    assert 0.24 < share < 0.36
    for picture in hidden[hidden.any((1, 2))]:
        rows, columns = picture.any(1), picture.any(0)
        assert np.array_equal(picture, rows[:, None] & columns[None])  # one block of both
        assert np.ptp(np.flatnonzero(rows)) == rows.sum() - 1
        assert np.ptp(np.flatnonzero(columns)) == columns.sum() - 1
    sizes = hidden[hidden.any((1, 2))].mean((1, 2))
    assert sizes.max() <= 0.36  # of a quarter, to whole pixels
    assert 0.08 < sizes.mean() < 0.19


def test_streams_are_not_shared() -> None:
    from bigmodel_cli.tasks import packing

    names = ("ORDER", "MASKS", "SAMPLES", "BASELINE", "AUGMENT")
    assert len({getattr(packing, name) for name in names}) == len(names)
    assert generator(AUGMENT, 0, 0, 1).random() != generator(AUGMENT, 0, 1, 0).random()


def test_thumbnails_are_means() -> None:
    pixels = np.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).astype(np.uint8)
    assert np.array_equal(thumbnails(pixels, 8), pixels.reshape(2, -1) / np.float32(255))
    halves = thumbnails(pixels, 4).reshape(2, 3, 4, 4)
    assert halves[1, 2, 1, 3] == pytest.approx(pixels[1, 2, 2:4, 6:8].mean() / 255)
