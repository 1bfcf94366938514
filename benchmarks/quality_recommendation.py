"""Quality of recommendation on MovieLens-100K and Amazon Beauty.

    python benchmarks/quality_recommendation.py --data FOLDER --seeds 3 [--only 'ml-100k, SASRec']

FOLDER holds movielens100k/ml-100k.inter (RecBole's) and beauty/Beauty.txt (S3Rec's: one user a
line, then the items in order). Leave-one-out, users and items with 5 interactions, all items are
ranked, those that the user had are left out. Checkpoints are chosen by NDCG@10 on the validation
items, and so were the settings; the test items are looked at once, by `bigmodel evaluate`.

Half of MovieLens' ratings share their time with another of the same user, so their order is a
choice: that of the file, or drawn anew with each seed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rounds import machine, table

GOAL = 0.105  # NDCG@10 on MovieLens-100K; and twice that of the most popular items
MODELS: dict[str, list[str]] = {
    "SASRec": ["--width", "64", "--layers", "2", "--heads", "1"],
    "GRU4Rec": ["--model", "rnn", "--cell", "gru", "--width", "64", "--layers", "1"],
    "MLP, pooled history": ["--model", "mlp", "--window", "0", "--width", "64", "--layers", "2"],
    "MLP, last 16 items": ["--model", "mlp", "--window", "16", "--width", "64", "--layers", "2"],
}
EPOCHS = {"ml-100k": "30", "beauty": "20"}
SHOWN = ("ndcg@10", "hr@10", "mrr", "coverage")


def bigmodel(work: Path, command: str, *arguments: object) -> dict[str, Any]:
    words = [sys.executable, "-m", "bigmodel_cli", command, *map(str, arguments)]
    shown = subprocess.check_output([*words, "-w", str(work), "--json", "--quiet"], text=True)
    return dict(json.loads(shown))


def movielens(data: Path, folder: Path, seed: int | None) -> Path:
    """The ratings; with a seed in an order that is drawn, so that ties in time are, too."""
    source = data / "movielens100k" / "ml-100k.inter"
    if seed is None:
        return source
    header, *rows = source.read_text("utf-8").splitlines()
    random.Random(seed).shuffle(rows)
    path = folder / f"ml-100k-{seed}.inter"
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return path


def beauty(data: Path, folder: Path) -> Path:
    """One interaction a line, in order."""
    path = folder / "beauty.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("user,item\n")
        for line in (data / "beauty" / "Beauty.txt").read_text("utf-8").splitlines():
            user, *items = line.split()
            file.writelines(f"{user},{item}\n" for item in items)
    return path


def scored(
    source: Path, work: Path, name: str, model: Sequence[str], seed: int, threads: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of the test split, and the whole evaluation."""
    bigmodel(work, "prepare", source)
    common = ["--seed", seed, "--threads", threads]
    run = f"{'-'.join(model).strip('-') or 'default'}-{seed}"
    trained = bigmodel(work, "train", "--run", run, "--epochs", EPOCHS[name], *common, *model)
    document = bigmodel(work, "evaluate", "--run", run, "--samples", 0, "--threads", threads)
    found = {metric: document["metrics"][metric]["value"] for metric in SHOWN}
    found["validation"] = trained["validation"]["ndcg@10"]
    print(f"{name} {run}: {found}", file=sys.stderr, flush=True)
    return found, document


def run(
    data: Path, seeds: int, threads: int = 0, only: str = ""
) -> dict[str, list[dict[str, float]]]:
    """Every contestant's figures, one for each seed: `<data set>, <who>`. only: of those whose
    names begin so."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, drawn in (("ml-100k", False), ("ml-100k", True), ("beauty", False)):
            title = name + ", ties drawn" * drawn
            models = {"SASRec": MODELS["SASRec"]} if drawn else MODELS
            for who, model in models.items():
                for seed in range(seeds if f"{title}, {who}".startswith(only) else 0):
                    work = folder / (f"{name}-{seed}" if drawn else name)
                    path = (beauty(data, folder) if name == "beauty"
                            else movielens(data, folder, seed if drawn else None))  # fmt: skip
                    figures, document = scored(path, work, name, model, seed, threads)
                    found.setdefault(f"{title}, {who}", []).append(figures)
                    if who == "SASRec" and (seed == 0 or drawn):
                        for other, values in document["baselines"].items():
                            own = {metric: values[metric] for metric in SHOWN}
                            found.setdefault(f"{title}, {other}", []).append(own)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, metavar="FOLDER", required=True)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--threads", type=int, default=0)
    options.add_argument("--only", default="", metavar="NAME", help="what the names begin with")
    chosen = options.parse_args()
    found = run(chosen.data, chosen.seeds, chosen.threads, chosen.only)

    def mean(values: Sequence[float]) -> str:
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.4f}{spread}"

    print(f"{chosen.seeds} seeds, {machine()}; mean ± standard deviation on the test items")
    table([["", *SHOWN],
           *([who, *(mean([one[metric] for one in every]) for metric in SHOWN)]
             for who, every in found.items())])  # fmt: skip
    if "ml-100k, SASRec" not in found:
        return
    ours = statistics.mean(one["ndcg@10"] for one in found["ml-100k, SASRec"])
    bound = max(GOAL, 2 * found["ml-100k, most_popular"][0]["ndcg@10"])
    print(f"ml-100k, SASRec: ndcg@10 {ours:.4f}, goal {bound:.4f}: "
          + ("reached" if ours >= bound else "missed"))  # fmt: skip


if __name__ == "__main__":
    main()
