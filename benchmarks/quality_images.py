"""How good image classification is on real pictures, beside published figures.

    python benchmarks/quality_images.py DATA [--seeds 5] [--skip fashion_mnist]

DATA holds `digits/digits.csv.gz` (64 pixels from 0 to 16 and the digit in each row, as scikit-learn
has it) and `fashion_mnist/` (the four IDX files). Budgets are in epochs; settings were chosen on
validation pictures that are cut out of the training half; the test pictures are scored once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Figure = tuple[str, float, str]
# the first half trains, the second half tests, neither is shuffled
DIGITS = ["--model", "mlp", "--width", "64", "--layers", "2", "--batch-size", "32",
          "--epochs", "20"]  # fmt: skip
DIGITS_PUBLISHED = "SVC .969, MLP .949, logistic regression .934"
FASHION = ["--model", "mlp", "--width", "128", "--layers", "4", "--batch-size", "64",
           "--epochs", "10", "--flip", "--shift", "2"]  # fmt: skip
FASHION_PUBLISHED = "two convolutions .925, MLP .900, GRU .897, XGBoost .898"


def bigmodel(*arguments: object) -> str:
    command = [sys.executable, "-m", "bigmodel_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def accuracies(work: Path, options: Sequence[str], seeds: int) -> list[float]:
    """The test accuracy of a run for each seed."""
    found = []
    for seed in range(seeds):
        run = ("--run", f"seed-{seed}", "-w", work)
        bigmodel("train", *options, "--seed", seed, "--threads", 1, *run)
        found.append(
            json.loads(bigmodel("evaluate", "--json", *run))["metrics"]["accuracy"]["value"]
        )
    return found


def digits(data: Path, folder: Path, seeds: int) -> Figure:
    rows = np.loadtxt(data / "digits" / "digits.csv.gz", delimiter=",")
    images = (rows[:, :64].reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    labels, half = rows[:, 64].astype(int), len(rows) // 2
    sources, work = folder / "digits", folder / "work"
    sources.mkdir()
    for name, part in (("train", slice(half)), ("test", slice(half, None))):
        np.savez(sources / f"{name}.npz", images=images[part], labels=labels[part])
    bigmodel("prepare", sources, "--val", "0.15", "-w", work)
    found = accuracies(work, DIGITS, seeds)
    shown = ", ".join(f"{value:.4f}" for value in found)
    return f"digits, accuracy, mean of {seeds} ({shown})", float(np.mean(found)), DIGITS_PUBLISHED


def fashion_mnist(data: Path, folder: Path, seeds: int) -> Figure:
    del seeds  # one is enough for 10,000 pictures, and takes long
    work = folder / "work"
    files = sorted((data / "fashion_mnist").glob("*ubyte*"))
    bigmodel("prepare", *files, "--val", "0.08334", "-w", work)
    return "Fashion-MNIST, accuracy", accuracies(work, FASHION, 1)[0], FASHION_PUBLISHED


def run(data: Path, seeds: int, skip: Sequence[str] = ()) -> list[Figure]:
    """(what was measured, our figure, published ones)."""
    found = []
    for measure in (digits, fashion_mnist):
        if measure.__name__ not in skip:
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(data, Path(folder), seeds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--skip", action="append", default=[])
    options = parser.parse_args()
    for name, value, published in run(options.data, options.seeds, options.skip):
        print(f"{name}: {value:.4f} (published: {published})")


if __name__ == "__main__":
    main()
