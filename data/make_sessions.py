"""Draw users' histories from a Markov chain whose best possible ranking is known exactly.

The next item depends on the last one alone: each of the ITEMS items has its own SUCCESSORS, in an
order of their own, and the r-th of them follows with probability p_r, which falls as 1/r and is the
same for every item. So no recommender can, on average and with repeats allowed, do better than the
one that ranks the successors in their order: its hit rate at k is p_1 + … + p_k, whatever the items
are, and the others follow likewise (`best`). Where what a user had is left out of the answers, the
best ranking of one history is that of the successors which are left (`best_unseen`).
"""

import argparse
import math
import random
from collections.abc import Sequence
from pathlib import Path

ITEMS, SUCCESSORS = 100, 20
SHORTEST, LONGEST = 10, 30  # items of a history, each number as likely
WEIGHTS = [1 / rank for rank in range(1, SUCCESSORS + 1)]
SHARES = [weight / sum(WEIGHTS) for weight in WEIGHTS]  # p_1, p_2, …
FOLLOW = [random.Random(1_000 + item).sample(range(ITEMS), SUCCESSORS) for item in range(ITEMS)]


def best() -> dict[str, float]:
    """The exact figures of the best recommender that may repeat items; `loss` in nats."""
    ranked = list(enumerate(SHARES, 1))
    return {
        "hr@10": sum(p for rank, p in ranked if rank <= 10),
        "ndcg@10": sum(p / math.log2(rank + 1) for rank, p in ranked if rank <= 10),
        "mrr": sum(p / rank for rank, p in ranked),
        "loss": -sum(p * math.log(p) for p in SHARES),
    }


def best_unseen(history: Sequence[int], k: int = 10) -> float:
    """The chance that the next item is among the k best that the history does not hold."""
    left = [p for item, p in zip(FOLLOW[history[-1]], SHARES, strict=True) if item not in history]
    return sum(left[:k])


def draw(rng: random.Random) -> list[int]:
    """Draw one user's items, in order."""
    history = [rng.randrange(ITEMS)]
    for _ in range(rng.randint(SHORTEST, LONGEST) - 1):
        history += rng.choices(FOLLOW[history[-1]], SHARES)
    return history


def main(argv: list[str] | None = None) -> None:
    """Write rows `user,item,timestamp`, as they happen; exit with status 2 on bad usage."""
    parser = argparse.ArgumentParser(description="Draw histories whose best ranking is known.")
    parser.add_argument("--users", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")
    parser.add_argument("--output", type=Path, required=True, help="the file to write (.csv)")
    options = parser.parse_args(argv)
    if options.users < 1:
        parser.error("--users must be at least 1")
    rng = random.Random(options.seed)
    rows = []
    for user in range(options.users):
        begin = rng.uniform(0, 1_000_000)
        rows += [(round(begin + 60 * n), user, item) for n, item in enumerate(draw(rng))]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="ascii", newline="\n") as lines:
        lines.write("user,item,timestamp\n")
        for time, user, item in sorted(rows):
            lines.write(f"u{user},i{item},{time}\n")


if __name__ == "__main__":
    main()
