"""Images as arrays: decoding what may be anything, one size for all, augmentation.

Legend: B images, C channels (1 or 3), S the side of a square, H × W pixels.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
import stat
import urllib.parse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bigmodel_cli.errors import DataError

MOST_BYTES = 64 << 20  # of one encoded image
MOST_PIXELS = 64_000_000  # of one image: more fills the memory before anything is known of it
MOST_SIDE = 1 << 16  # of a square that an image may become
MOST_MEMORY = 512 << 20  # bytes that decoding one may take
# only these are tried: others call programs (EPS), or read what no one has looked at for long
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM")
BAND = 1 << 20  # pixels of a large image that are converted at a time
ORIENTATION = 0x0112  # of Exif: how the camera was held
GREY = {"1", "L", "LA", "La", "I", "F"}
DATA_URI = re.compile(r"data:[^,;]*(;[^,;]*)*,", re.ASCII)
ERASED = (0.02, 0.25)  # share of the image that an erased rectangle has
USUAL = 64  # pixels a side: images of one size up to that stay as they are, others become so
LOOKED_AT = 512  # images by which size and colour are chosen
RATIO = 3.0  # of its sides, at most

# what a person should know of so many images
REMARKS = {
    "faded": "the first images were grey, so that {:,} coloured ones became grey, too; --color "
    "rgb keeps colours",
    "halved": "of {:,} images in colour or with transparency, of 16 bits a value, the upper 8 "
    "bits are read: those that use only the lower ones become dark; save them with 8 bits, or as "
    "grey",
    "clipped": "{:,} images of more than 8 bits are brighter than any of the train split: what "
    "is above its white was cut",
}

# what warns here is refused by its size below
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(Exception):
    """Why some bytes are no image that is read: a reason of the ledger's."""


@dataclass(frozen=True)
class Form:
    """What all images become: `channels` (1 grey, 3 red, green and blue) × size × size. white:
    the value that is white in those of more than 8 bits, if training had any."""

    channels: int
    size: int
    white: float | None = None


def opened(data: bytes) -> Image.Image:
    """The image in some bytes, of which nothing but the head is decoded yet.

    Raises ImageError: `unreadable`, or `too_large` for what would take too much memory.
    """
    if len(data) > MOST_BYTES:
        raise ImageError("too_large")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too_large") from None
    except Exception:  # Pillow raises many kinds for broken files
        raise ImageError("unreadable") from None
    if image.width * image.height > MOST_PIXELS or weight(image) > MOST_MEMORY:
        raise ImageError("too_large")
    return image


def weight(image: Image.Image, size: int = MOST_SIDE) -> int:
    """About how many bytes of memory an opened image takes when it becomes one of `size` pixels a
    side: only its head is read. A JPEG is decoded at a fraction of its own size, unless it comes
    in several scans; for WebP and AVIF their libraries hold several copies."""
    pixels = image.width * image.height
    if image.format == "JPEG" and not image.info.get("progressive"):
        scale = 1
        while min(image.size) > 4 * size and scale < 8 and 4 * size * scale <= min(image.size):
            scale *= 2
        return 4 * pixels // scale**2
    if image.format in ("WEBP", "AVIF"):
        return 16 * pixels
    return pixels * (4 if image.mode[0] in "IF" or len(image.getbands()) > 1 else 1)


def halved(image: Image.Image) -> bool:
    """Whether an opened image has 16 bits a value of which Pillow reads the upper 8 alone: one in
    colour, or with transparency."""
    tiles: list[Any] = getattr(image, "tile", [])
    return image.mode[0] != "I" and any(";16" in str(tile[3]) for tile in tiles)


def array(image: Image.Image, form: Form) -> NDArray[np.uint8]:
    """An opened image as (C, S, S): its first frame, turned as its camera says, on white where
    nothing covers it; the shorter side gets the size, and the middle is kept.

    Raises ImageError for what cannot be decoded to its end.
    """
    return scaled(values(image, form), form)


def values(image: Image.Image, form: Form) -> NDArray[Any]:
    """The same before it is scaled: what has more than 8 bits a value is grey, (S, S) of float32,
    since only all images together tell which value is white."""
    size = form.size
    try:
        if image.format == "JPEG" and min(image.size) > 4 * size:
            image.draft(None, (2 * size, 2 * size))  # decodes no more than is needed
        image.load()
        turn = 1 if image.format == "PPM" else image.getexif().get(ORIENTATION, 1)
        image = _small(image, size)
        if turn != 1:
            image.getexif()[ORIENTATION] = turn
            ImageOps.exif_transpose(image, in_place=True)
        range_ = image.getextrema() if image.mode == "F" else ()
        side = min(image.size)
        if image.size != (size, size):
            left, top = (image.width - side) / 2, (image.height - side) / 2
            image = image.resize(
                (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
            )
        if image.mode == "F":  # resizing goes a little beyond the values
            return np.asarray(image).clip(*range_)
        pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB" if form.channels == 3 else "L"))
    except Image.DecompressionBombError:
        raise ImageError("too_large") from None
    except Exception:
        raise ImageError("unreadable") from None
    return pixels.transpose(2, 0, 1) if form.channels == 3 else pixels[None]


def scaled(pixels: NDArray[Any], form: Form) -> NDArray[np.uint8]:
    """`values` with 8 bits each: (C, S, S)."""
    if pixels.dtype == np.uint8:
        return pixels
    top = pixels.max(initial=0)
    white = form.white or (65535 if top > 255 else 255 if top > 1 else 1)
    whole = (pixels * (255 / white)).round().clip(0, 255).astype(np.uint8)
    return np.repeat(whole[None], form.channels, 0)


def deep(image: bytes, form: Form) -> NDArray[np.float32] | None:
    """The `values` (S, S) in the bytes of an image of more than 8 bits; None of others."""
    size = form.size
    if len(image) != 4 * size * size:
        return None
    return np.frombuffer(image, np.float32).reshape(size, size)


def white_of(top: float) -> float:
    """The value that is white where `top` is the largest one of many images: 1 of fractions, else
    the largest of the fewest bits, in twos from 8 on."""
    if top <= 1:
        return 1.0
    bits = max(8, math.ceil(math.log2(top + 1)))
    return float((1 << bits + bits % 2) - 1)


def _small(image: Image.Image, size: int) -> Image.Image:
    """A loaded image as `plain` makes it, a few rows at a time, so that beside the decoded
    pixels little is in memory; one that is far larger than needed is made smaller on the way."""
    width, height = image.size
    if width * height <= BAND:
        return plain(image)
    step = max(1, min(width, height) // (4 * size))
    rows = max(1, BAND // width // step) * step
    whole = None
    for top in range(0, height, rows):
        part = plain(image.crop((0, top, width, min(top + rows, height)))).reduce(step)
        if whole is None:
            whole = Image.new(part.mode, (part.width, -(-height // step)))
        whole.paste(part, (0, top // step))
    assert whole is not None
    return whole


def plain(image: Image.Image) -> Image.Image:
    """A loaded image as grey or red, green and blue of 8 bits each; what has more bits as F."""
    if image.mode[0] in "IF":  # grey of 16 bits or more, or fractions
        deep = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.nan_to_num(deep, nan=0, posinf=0, neginf=0))
    if image.has_transparency_data:
        covered = image.convert("RGBA")
        white = Image.new("RGBA", covered.size, "white")
        white.alpha_composite(covered)
        return white.convert("L" if image.mode in GREY else "RGB")
    return image.convert("L" if image.mode in GREY else "RGB")


def is_grey(pixels_CSS: NDArray[np.uint8]) -> bool:
    """Whether an image has no colour, however it is stored."""
    first = pixels_CSS[:1]
    return bool((pixels_CSS == first).all())


def usual_form(images: Any, size: int | None, color: str) -> Form | None:
    """The form that was given, or that the first encoded images of a column have; None if
    there is none that can be read."""
    sizes, grey, looked_at = set(), True, 0
    for index in range(len(images)):
        if looked_at == LOOKED_AT:
            break
        try:
            image = opened(images[index].as_py() or b"")
            own = image.size
            grey &= is_grey(array(image, Form(3, min(*own, USUAL))))
        except ImageError:
            continue
        sizes.add(own)
        looked_at += 1
    if not looked_at:
        return None
    if size is None:
        width, height = min(sizes, default=(0, 0))
        size = width if len(sizes) == 1 and width == height and 4 <= width <= USUAL else USUAL
    return Form(1 if color == "grey" or (color == "auto" and grey) else 3, size)


def requested_image(text: str, form: Form, opens_files: bool) -> NDArray[np.uint8]:
    """The image that a request names: a data: URI or, where files may be opened, a path.

    Raises DataError. Nothing is fetched from elsewhere.
    """
    shown = text if len(text) <= 60 else text[:57] + "…"
    if text.startswith("data:"):
        data = read_uri(text)
    elif not opens_files:
        raise DataError(
            "`image` must be a data: URI here: files are not opened for others",
            'for example {"image": "data:image/png;base64,…"}',
        )
    elif "://" in text:
        raise DataError(
            f"`image` is `{shown}`, and nothing is fetched from elsewhere",
            "give a path, or a data: URI",
        )
    elif (data := read_file(Path(text))) is None:
        raise DataError(
            f"`image` is `{shown}`, which is not a readable file", "give a path, or a data: URI"
        )
    try:
        return array(opened(data or b""), form)
    except ImageError as error:
        what = {"too_large": "is too large"}.get(str(error), "is not a readable image")
        raise DataError(
            f"`image` is `{shown}`, which {what}",
            "PNG, JPEG, BMP, GIF, TIFF and PPM are read, of up to 64 million pixels, and WebP and "
            "AVIF, of up to 32 million",
        ) from None


def announced(text: object) -> int:
    """The pixels of the image in a data: URI, as its head says; 0 if nothing will be decoded."""
    try:
        image = opened(read_uri(text) or b"") if isinstance(text, str) else None
    except ImageError:
        return 0
    return image.width * image.height if image else 0


def read_file(path: Path) -> bytes | None:
    """A regular file's bytes, at most one more than an image may have; None if it cannot be
    read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device may have no end
            return None
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError):  # such as a name with a zero byte
        return None


def read_uri(text: str) -> bytes | None:
    """What a data: URI holds; None if it holds nothing that can be read."""
    head = DATA_URI.match(text)
    if not head:
        return None
    body = text[head.end() :]
    try:
        if head.group().endswith(";base64,"):
            return base64.b64decode(urllib.parse.unquote_to_bytes(body), validate=True)
        return urllib.parse.unquote_to_bytes(body)
    except (binascii.Error, ValueError):
        return None


def data_uri(pixels_CSS: NDArray[np.uint8]) -> str:
    """An image as a PNG in a data: URI."""
    whole = pixels_CSS[0] if len(pixels_CSS) == 1 else pixels_CSS.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(whole)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Augmentation:
    """How images differ from epoch to epoch: a pure function of (seed, epoch, example).

    shift: most pixels that an image moves by in either direction, zero coming in; flip: whether
    half of them are mirrored; erase: the share in which a rectangle becomes `fill` (Zhong 2017).
    """

    shift: int
    flip: bool
    erase: float

    def __call__(
        self,
        pixels_BCSS: NDArray[np.uint8],
        fill_C: NDArray[np.uint8],
        seed: int,
        examples: NDArray[np.int64],
        epochs: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        """The images as they are in these epochs: (B, C, S, S)."""
        from bigmodel_cli.tasks.packing import AUGMENT, generator  # loads torch

        if not (self.shift or self.flip or self.erase):
            return pixels_BCSS
        B, C, S = pixels_BCSS.shape[:3]
        keys = zip(epochs.tolist(), examples.tolist(), strict=True)
        drawn = np.stack([generator(AUGMENT, seed, *key).random(8) for key in keys])
        result = pixels_BCSS.copy()
        if self.flip:
            mirrored = drawn[:, 0] < 0.5
            result[mirrored] = result[mirrored][..., ::-1]
        if self.shift:
            s = self.shift
            padded = np.zeros((B, C, S + 2 * s, S + 2 * s), np.uint8)
            padded[:, :, s : s + S, s : s + S] = result
            windows = np.lib.stride_tricks.sliding_window_view(padded, (S, S), (2, 3))
            down, right = (drawn[:, 1:3] * (2 * s + 1)).astype(np.int64).T
            result = windows[np.arange(B), :, down, right]
        if self.erase:
            area = ERASED[0] + drawn[:, 3] * (ERASED[1] - ERASED[0])
            stretch = RATIO ** (drawn[:, 4] - 0.5)  # √ of the ratio of the sides
            sides = np.minimum(np.sqrt(area) * np.stack([stretch, 1 / stretch]), 1) * S
            begins = drawn[:, 5:7].T * (S - sides)
            places = np.arange(S) + 0.5
            tall, broad = (
                (places >= begin[:, None]) & (places < (begin + side)[:, None])
                for begin, side in zip(begins, sides, strict=True)
            )
            tall &= (drawn[:, 7] < self.erase)[:, None]
            erased = (tall[:, :, None] & broad[:, None, :])[:, None]
            result = np.where(erased, fill_C[:, None, None], result)
        return result


def thumbnails(pixels: NDArray[np.uint8], most: int) -> NDArray[np.float32]:
    """Images (B, C, S, S) as features (B, n) from 0 to 1, of at most `most` a side."""
    B, C, S = pixels.shape[:3]
    step = -(-S // most)
    cut = S // step * step
    parts = pixels[:, :, :cut, :cut].reshape(B, C, cut // step, step, cut // step, step)
    means: NDArray[np.float32] = parts.mean((3, 5), dtype=np.float32)
    return means.reshape(B, -1) / np.float32(255)
