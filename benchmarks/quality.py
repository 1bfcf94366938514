"""Quality on public data sets, from scratch, beside what is published.

    python benchmarks/quality.py --data FOLDER                  all of them
    python benchmarks/quality.py --data FOLDER sst2 sms digits  those

FOLDER holds sst2/stsa.binary.train (.dev, .test), sms_spam/SMSSpamCollection, digits/digits.csv.gz,
fashion_mnist/ (IDX), multi30k/ (gzipped lines), movielens100k/ml-100k.inter, beauty/Beauty.txt and
alpaca_demo/alpaca_en_demo.json. Budgets are in epochs, so that a slow machine gives the same
figures. Settings and checkpoints were chosen on validation data; each test split is scored once
for each seed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rounds import machine, table


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value for each seed, the goal, and what others have."""

    name: str
    values: Sequence[float]
    goal: float | None
    published: str = ""
    higher: bool = True

    def row(self) -> list[str]:
        mean = statistics.mean(self.values)
        spread = f" ± {statistics.stdev(self.values):.4f}" if len(self.values) > 1 else ""
        reached = ""
        if self.goal is not None:
            met = mean >= self.goal if self.higher else mean <= self.goal
            reached = f"{self.goal:g} " + ("reached" if met else "missed")
        return [self.name, f"{mean:.4f}{spread}", str(len(self.values)), reached, self.published]


def bigmodel(work: Path, command: str, *arguments: object) -> dict[str, Any]:
    words = [sys.executable, "-m", "bigmodel_cli", command, *map(str, arguments)]
    shown = subprocess.check_output([*words, "-w", str(work), "--json", "--quiet"], text=True)
    return dict(json.loads(shown))


def value(document: dict[str, Any], metric: str) -> float:
    return float(document["metrics"][metric]["value"])


SST2 = ["--model", "mlp", "--window", "3", "--width", "64", "--layers", "1", "--epochs", "8",
        "--dropout", "0.5", "--learning-rate", "0.001", "--token-dropout", "0.2"]  # fmt: skip


def sst2(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """The official split; sentences only, as labelled (Kim's figure is from phrases, too)."""
    source, work = data / "sst2", folder / "sst2"
    bigmodel(work, "prepare", source / "stsa.binary.train", "--val", source / "stsa.binary.dev",
             "--test", source / "stsa.binary.test", "--header", "label,text", "--delimiter", " ",
             "--vocab-size", "8192")  # fmt: skip
    found, document = [], {}
    for seed in range(seeds):
        bigmodel(work, "train", "--run", seed, "--seed", seed, *SST2)
        document = bigmodel(work, "evaluate", "--run", seed, "--samples", "0")
        found.append(value(document, "accuracy"))
    words = document["baselines"]["tfidf_logistic"]["accuracy"]
    return [
        Figure("SST-2, accuracy", found, 0.82, "CNN-rand, with phrases .827 (Kim 2014)"),
        Figure("SST-2, TF-IDF with logistic regression, accuracy", [words], None),
    ]


def sms(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """Stratified 80/10/10, another split and another model with each seed."""
    found, words = [], []
    for seed in range(seeds):
        work = folder / f"sms-{seed}"
        bigmodel(work, "prepare", data / "sms_spam" / "SMSSpamCollection", "--header", "label,text",
                 "--val", "0.1", "--test", "0.1", "--seed", seed)  # fmt: skip
        bigmodel(work, "train", "--seed", seed, "--epochs", "6")
        document = bigmodel(work, "evaluate", "--samples", "0")
        found.append(value(document, "macro_f1"))
        words.append(document["baselines"]["tfidf_logistic"]["macro_f1"])
    return [
        Figure("SMS spam, macro-F1", found, 0.97),
        Figure("SMS spam, TF-IDF with logistic regression, macro-F1", words, None),
    ]


def alpaca(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """Replies, after a language model of the same text was tuned to dialogues; beside that language
    model on the same bytes, which is what it is tuned from with nothing learned."""
    del seeds
    source, work = data / "alpaca_demo" / "alpaca_en_demo.json", folder / "alpaca"
    texts = folder / "alpaca.jsonl"
    rows = json.loads(source.read_text("utf-8"))
    train = folder / "train.json"
    test = folder / "test.json"
    cut = len(rows) * 9 // 10
    train.write_text(json.dumps(rows[:cut]), "utf-8")
    test.write_text(json.dumps(rows[cut:]), "utf-8")
    with texts.open("w", encoding="utf-8") as file:
        for row in rows[:cut]:
            whole = "\n\n".join(filter(None, (row["instruction"], row["input"], row["output"])))
            file.write(json.dumps({"text": whole}) + "\n")
    language = folder / "alpaca-language"
    bigmodel(language, "prepare", texts, "--vocab-size", "2048", "--test", "0")
    bigmodel(language, "train", "--epochs", "10", "--size", "micro", "--context", "1024")
    origin = language / "runs" / "default"
    bigmodel(
        work,
        "prepare",
        train,
        "--test",
        test,
        "--val",
        "0.1",
        "--tokenizer",
        origin / "preprocessor",
    )
    still = ["--steps", "1", "--learning-rate", "1e-30", "--weight-decay", "0"]
    bigmodel(work, "train", "--run", "before", "--from", origin, *still)
    bigmodel(work, "train", "--run", "tuned", "--from", origin, "--epochs", "4",
             "--learning-rate", "0.002")  # fmt: skip
    before, after = (
        value(bigmodel(work, "evaluate", "--run", run, "--samples", "0"), "bits_per_byte")
        for run in ("before", "tuned")
    )
    return [
        Figure("Alpaca, replies, bits per byte", [after], before, higher=False),
        Figure("Alpaca, its language model before, bits per byte", [before], None),
    ]


DIGITS = [
    "--model",
    "mlp",
    "--width",
    "64",
    "--layers",
    "2",
    "--batch-size",
    "32",
    "--epochs",
    "20",
]
FASHION: dict[str, list[str]] = {
    "mlp": ["--model", "mlp", "--width", "128", "--layers", "4", "--patch", "2", "--epochs", "24"],
    "transformer": ["--width", "96", "--layers", "3", "--heads", "3", "--epochs", "10"],
    "rnn": ["--model", "rnn", "--cell", "gru", "--width", "128", "--layers", "2", "--epochs", "10"],
}
FASHION_ALL = ["--batch-size", "64", "--flip", "--shift", "2", "--erase", "0.25"]


def digits(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """The first half trains, the second half tests, neither is shuffled."""
    rows = np.loadtxt(data / "digits" / "digits.csv.gz", delimiter=",")
    images = (rows[:, :64].reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    labels, half = rows[:, 64].astype(int), len(rows) // 2
    sources, work = folder / "digits", folder / "digits-work"
    sources.mkdir()
    for name, part in (("train", slice(half)), ("test", slice(half, None))):
        np.savez(sources / f"{name}.npz", images=images[part], labels=labels[part])
    bigmodel(work, "prepare", sources, "--val", "0.15")
    found = []
    for seed in range(seeds):
        bigmodel(work, "train", "--run", seed, "--seed", seed, *DIGITS)
        found.append(value(bigmodel(work, "evaluate", "--run", seed), "accuracy"))
    return [Figure("digits, accuracy", found, 0.969, "SVC .969, MLP .949")]


def fashion(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """The official split; one seed of each family."""
    del seeds
    work = folder / "fashion"
    files = sorted((data / "fashion_mnist").glob("*ubyte*"))
    bigmodel(work, "prepare", *files, "--val", "0.08334")
    found = {}
    for family, options in FASHION.items():
        bigmodel(work, "train", "--run", family, *options, *FASHION_ALL)
        found[family] = value(bigmodel(work, "evaluate", "--run", family), "accuracy")
    best = max(found, key=found.__getitem__)
    others = "two convolutions .925, MLP .900, GRU .897, XGBoost .898"
    return [
        Figure(
            f"Fashion-MNIST, accuracy, {family}",
            [found[family]],
            0.93 if family == best else None,
            others if family == best else "",
        )
        for family in FASHION
    ]


TRANSLATION = ["--width", "256", "--layers", "3", "--heads", "4", "--batch-size", "64",
               "--epochs", "8"]  # fmt: skip


def multi30k(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """test2016, cased, detokenized; one seed of each direction."""
    del seeds
    figures = []
    published = {"en-de": "", "de-en": "Transformer 36.1, RNN 33.5, of lowercased tokens"}
    for pair, goal in (("en-de", 33.0), ("de-en", 36.0)):
        source, target = pair.split("-")
        work = folder / pair
        files = [
            data / "multi30k" / f"{part}.{side}.gz"
            for part in ("train", "val", "test_2016_flickr")
            for side in (source, target)
        ]
        bigmodel(work, "prepare", *files, "--task", "translation", "--column", f"source={source}",
                 "--column", f"target={target}", "--vocab-size", "8192")  # fmt: skip
        bigmodel(work, "train", *TRANSLATION)
        document = bigmodel(work, "evaluate", "--samples", "0")
        name = f"Multi30k {pair}, BLEU ({document['protocol']['bleu']})"
        figures.append(Figure(name, [value(document, "bleu")], goal, published[pair]))
    return figures


RECOMMENDERS: dict[str, list[str]] = {
    "SASRec": ["--width", "64", "--layers", "2", "--heads", "1"],
    "GRU4Rec": ["--model", "rnn", "--cell", "gru", "--width", "64", "--layers", "1"],
    "MLP, last 16 items": ["--model", "mlp", "--width", "64", "--layers", "2"],
    "MLP, pooled history": ["--model", "mlp", "--window", "0", "--width", "64", "--layers", "2"],
}


def _recommend(
    source: Path, work: Path, name: str, epochs: int, seeds: int, goal: float | None, published: str
) -> list[Figure]:
    figures, document = [], {}
    bigmodel(work, "prepare", source)
    for model, options in RECOMMENDERS.items():
        found = []
        for seed in range(seeds if not figures else 1):  # of the others, one
            run = f"{len(figures)}-{seed}"
            bigmodel(work, "train", "--run", run, "--seed", seed, "--epochs", epochs, *options)
            document = bigmodel(work, "evaluate", "--run", run, "--samples", "0")
            found.append(value(document, "ndcg@10"))
        first = not figures
        figures.append(
            Figure(
                f"{name}, NDCG@10, {model}",
                found,
                goal if first else None,
                published if first else "",
            )
        )
    for other, values in document["baselines"].items():
        figures.append(Figure(f"{name}, NDCG@10, {other}", [values["ndcg@10"]], None))
    return figures


def movielens(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """Leave-one-out, all items ranked, those that were had left out; ties in time in the order of
    the file, and (the last line) in an order that is drawn with each seed."""
    source = data / "movielens100k" / "ml-100k.inter"
    figures = _recommend(
        source, folder / "ml", "MovieLens-100K", 30, seeds, 0.105, ".0945, most popular .0450"
    )
    header, *rows = source.read_text("utf-8").splitlines()
    found = []
    for seed in range(seeds):
        random.Random(seed).shuffle(rows)
        path, work = folder / f"ml-{seed}.inter", folder / f"ml-{seed}"
        path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
        bigmodel(work, "prepare", path)
        bigmodel(work, "train", "--seed", seed, "--epochs", "30", *RECOMMENDERS["SASRec"])
        found.append(value(bigmodel(work, "evaluate", "--samples", "0"), "ndcg@10"))
    return [*figures, Figure("MovieLens-100K, NDCG@10, ties in time drawn", found, None)]


def beauty(data: Path, folder: Path, seeds: int) -> list[Figure]:
    """Leave-one-out: one user a line, then the items in order."""
    path = folder / "beauty.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("user,item\n")
        for line in (data / "beauty" / "Beauty.txt").read_text("utf-8").splitlines():
            user, *items = line.split()
            file.writelines(f"{user},{item}\n" for item in items)
    return _recommend(path, folder / "beauty", "Amazon Beauty", 20, min(seeds, 1), None, "")


SETS: dict[str, Callable[[Path, Path, int], list[Figure]]] = {
    "fashion": fashion,
    "digits": digits,
    "sst2": sst2,
    "sms": sms,
    "multi30k": multi30k,
    "movielens": movielens,
    "beauty": beauty,
    "alpaca": alpaca,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "sets", nargs="*", choices=[*SETS, []], metavar="NAME", help=", ".join(SETS)
    )
    options.add_argument("--data", type=Path, metavar="FOLDER", required=True)
    options.add_argument("--seeds", type=int, default=5)
    chosen = options.parse_args()
    lines = []
    for name in chosen.sets or SETS:
        with tempfile.TemporaryDirectory() as folder:
            for figure in SETS[name](chosen.data, Path(folder), chosen.seeds):
                lines.append(figure.row())
                print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    print(f"{machine()}; mean ± standard deviation over the seeds, on test splits")
    table([["", "figure", "seeds", "goal", "published"], *lines])


if __name__ == "__main__":
    main()
