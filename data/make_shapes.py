"""Draw small noisy images of shapes whose best possible accuracy is known.

An image of SIDE × SIDE black or white pixels shows one of the SHAPES at one of the places where
all of it fits, each as likely as the others; then every pixel is flipped, independently, with the
same probability (`noise`). So the probability of an image for each class is a sum over places of
noise^flipped · (1 − noise)^kept, and the class with the largest one is the best answer there is:
no model can be right more often on average than `chances()` says.

Pixels are kept as the bits of one whole number, so that flips are counted by `bit_count`.
"""

import argparse
import math
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

SIDE = 12
NOISE = 0.1
_DRAWN = {
    "bar": "...#...|...#...|...#...|...#...|...#...|...#...|...#...",
    "dash": ".......|.......|.......|#######|.......|.......|.......",
    "plus": ".......|...#...|...#...|.#####.|...#...|...#...|.......",
    "cross": "#.....#|.#...#.|..#.#..|...#...|..#.#..|.#...#.|#.....#",
    "ring": "..###..|.#...#.|#.....#|#.....#|#.....#|.#...#.|..###..",
    "box": ".......|.#####.|.#...#.|.#...#.|.#...#.|.#####.|.......",
}


def _placed(rows: Sequence[str]) -> list[int]:
    """A shape at each of its places."""
    room = SIDE - len(rows)
    return [
        sum(
            1 << ((y + down) * SIDE + x + right)
            for y, row in enumerate(rows)
            for x, mark in enumerate(row)
            if mark == "#"
        )
        for down in range(room + 1)
        for right in range(room + 1)
    ]


SHAPES: dict[str, list[int]] = {name: _placed(text.split("|")) for name, text in _DRAWN.items()}


def draw(rng: random.Random, noise: float = NOISE) -> tuple[str, int]:
    """Draw an image; return its class and its pixels."""
    name = rng.choice(list(SHAPES))
    pixels = rng.choice(SHAPES[name])
    for place in range(SIDE * SIDE):
        pixels ^= (rng.random() < noise) << place
    return name, pixels


def chances(pixels: int, noise: float = NOISE) -> dict[str, float]:
    """Return the probability of each class, given an image."""
    odds = noise / (1 - noise)
    likely = {
        name: math.fsum(odds ** (pixels ^ shape).bit_count() for shape in places) / len(places)
        for name, places in SHAPES.items()
    }
    total = math.fsum(likely.values())
    return {name: value / total for name, value in likely.items()}


def optimum(pictures: Sequence[tuple[str, int]], noise: float = NOISE) -> tuple[float, float]:
    """Return how often the best answers are right for these images, and how often they are on
    average where such images are drawn."""
    told = [(name, chances(pixels, noise)) for name, pixels in pictures]
    right = sum(max(each, key=lambda k: each[k]) == name for name, each in told)
    return right / len(told), math.fsum(max(each.values()) for _, each in told) / len(told)


def png(pixels: int) -> bytes:
    """Encode an image as a grey PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    lines = (
        bytes([0]) + bytes(255 * (pixels >> (y * SIDE + x) & 1) for x in range(SIDE))
        for y in range(SIDE)
    )
    head = struct.pack(">2I5B", SIDE, SIDE, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(lines), 9))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def main(argv: list[str] | None = None) -> None:
    """Write images into folders of classes; exit with status 2 on bad usage."""
    parser = argparse.ArgumentParser(description="Draw shapes with a known best accuracy.")
    parser.add_argument("--images", type=int, default=6000, help="how many (default 6000)")
    parser.add_argument("--noise", type=float, default=NOISE, help=f"flips (default {NOISE})")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")
    parser.add_argument("--output", type=Path, default=Path("shapes"), help="the folder to write")
    options = parser.parse_args(argv)
    if options.images < 1:
        parser.error("--images must be at least 1")
    if not 0 < options.noise < 0.5:
        parser.error("--noise must be above 0 and below 0.5")
    rng = random.Random(options.seed)
    pictures = [draw(rng, options.noise) for _ in range(options.images)]
    for name in SHAPES:
        (options.output / name).mkdir(parents=True, exist_ok=True)
    for number, (name, pixels) in enumerate(pictures):
        (options.output / name / f"{number:05d}.png").write_bytes(png(pixels))
    here, average = optimum(pictures, options.noise)
    print(f"{options.images:,} images in {options.output}; the best answers are right for "
          f"{here:.4f} of them, and for {average:.4f} on average")  # fmt: skip


if __name__ == "__main__":
    main()
