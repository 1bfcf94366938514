"""Draws messages to a shop's customer service, and the dialogues that follow, from a known process.

    python data/make_service.py            # writes data/service/intents.jsonl and dialogues.jsonl

A customer has an intent. What he says depends on it, but some sentences are said with several
intents, so that nobody can always tell. Replies depend on the intent, on the article and on the
order's number. All probabilities are known, hence the best possible accuracy on `intents.jsonl`
(label: the intent) and the entropy of the replies in `dialogues.jsonl`, given what was said before:
`bits` of each row.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# intent → (its probability, {what is said: how often, of 10}); {a}: the article, {n}: the order
INTENTS: dict[str, tuple[float, dict[str, int]]] = {
    "refund": (0.3, {
        "I want my money back for the {a}": 3, "please refund the {a} from order {n}": 3,
        "the {a} arrived broken": 2, "I have a problem with order {n}": 1,
        "order {n} is not what I wanted": 1,
    }),
    "delivery": (0.3, {
        "where is my {a}": 3, "when will order {n} arrive": 3,
        "the parcel with the {a} has not come": 2, "I have a problem with order {n}": 2,
    }),
    "cancel": (0.2, {
        "please cancel order {n}": 4, "I no longer need the {a}": 3,
        "order {n} is not what I wanted": 2, "I have a problem with order {n}": 1,
    }),
    "invoice": (0.2, {
        "I need an invoice for the {a}": 4, "the bill for order {n} is wrong": 3,
        "can you send the receipt for order {n} again": 3,
    }),
}  # fmt: skip
# intent → {the reply: how often, of 4}
REPLIES: dict[str, dict[str, int]] = {
    "refund": {"We will send the money for the {a} back within {d} days.": 3,
               "Your refund for order {n} is on its way.": 1},
    "delivery": {"The {a} will be with you in {d} days.": 3,
                 "Order {n} left our store today.": 1},
    "cancel": {"Order {n} is cancelled.": 3, "Done: the {a} will not be sent.": 1},
    "invoice": {"The invoice for the {a} is in your mail.": 3,
                "We have sent the bill for order {n} again.": 1},
}  # fmt: skip
GREETINGS = ("", "Hello, ", "Hi, ", "Good morning, ", "Dear team, ")
ENDINGS = (".", ". Thanks.", ". Please help.", "!")
COLOURS = ("red", "blue", "green", "white", "black", "grey", "brown", "yellow", "silver", "golden")
ARTICLES = ("lamp", "teapot", "chair", "radio", "coat", "hose", "bicycle", "kettle", "desk", "hat",
            "mirror", "bag", "clock", "carpet", "basket", "phone", "towel", "vase", "scarf",
            "bench")  # fmt: skip
DAYS = ("two", "three", "five")  # equally likely
# after the reply: a question that the same intent answers, or thanks
SECOND = {"Thank you.": "You are welcome.", "Great, bye.": "Goodbye."}


def posterior(said: str) -> dict[str, float]:
    """The probability of each intent, given the sentence (its template)."""
    weights = {name: p * says.get(said, 0) / 10 for name, (p, says) in INTENTS.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items() if weight}


def best_accuracy() -> float:
    """How often the best classifier is right, on average over all messages."""
    sentences = {said for _, says in INTENTS.values() for said in says}
    return sum(
        max(p * says.get(said, 0) / 10 for p, says in INTENTS.values()) for said in sentences
    )


def least_loss() -> float:
    """The entropy of the intent given the message, in nats: no classifier has a lower loss."""
    total = 0.0
    for p, says in INTENTS.values():
        for said, count in says.items():
            name = next(n for n, (_, s) in INTENTS.items() if s is says)
            total -= p * count / 10 * math.log(posterior(said)[name])
    return total


def draw(chances: Mapping[str, float], dice: random.Random) -> str:
    return dice.choices(list(chances), list(chances.values()))[0]


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Customers: the message, its intent, the sentence that it holds, and the dialogue."""
    dice = random.Random(seed)
    for _ in range(count):
        intent = draw({name: p for name, (p, _) in INTENTS.items()}, dice)
        said = draw(INTENTS[intent][1], dice)
        article = f"{dice.choice(COLOURS)} {dice.choice(ARTICLES)}"
        facts = {"a": article, "n": str(dice.randint(1000, 9999))}
        message = dice.choice(GREETINGS) + said.format(**facts) + dice.choice(ENDINGS)
        message = message[0].upper() + message[1:]
        reply = draw(REPLIES[intent], dice)
        day = dice.choice(DAYS)
        second = dice.choice(list(SECOND))
        # an order's number or an article that was not named cannot be known: it is asked for
        missing = _missing(said, reply)
        prompt = message + "".join(
            f" It is the {facts['a']}." if name == "a" else f" My order is {facts['n']}."
            for name in missing
        )
        yield {
            "text": message, "label": intent, "said": said,
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": reply.format(**facts, d=day)},
                {"role": "user", "content": second},
                {"role": "assistant", "content": SECOND[second]},
            ],
            "reply": reply, "missing": missing,
        }  # fmt: skip


def write(folder: Path, messages: int, dialogues: int, seed: int) -> None:
    """The two files; customers of their own for each."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "intents.jsonl").open("w", encoding="utf-8") as file:
        for row in rows(messages, seed):
            file.write(json.dumps({"text": row["text"], "label": row["label"]}) + "\n")
    with (folder / "dialogues.jsonl").open("w", encoding="utf-8") as file:
        for row in rows(dialogues, seed + 1):
            bits = told_bits(row)
            file.write(json.dumps({"messages": row["messages"], "bits": round(bits, 6)}) + "\n")


def told_bits(row: Mapping[str, Any]) -> float:
    """−log2 of the probability of a dialogue's replies, given all that was said before each.

    What a prompt adds ("It is the lamp.") tells which replies are possible: only those that need
    just that. The second reply is decided by what the customer says before it.
    """
    said, reply, missing = row["said"], row["reply"], row["missing"]
    chances: dict[str, float] = {}
    for name, p in posterior(said).items():
        for other, count in REPLIES[name].items():
            if _missing(said, other) == missing:
                chances[other] = chances.get(other, 0.0) + p * count / 4
    days = math.log2(len(DAYS)) if "{d}" in reply else 0.0
    return days - math.log2(chances[reply] / sum(chances.values()))


def _missing(said: str, reply: str) -> list[str]:
    return [n for n in ("a", "n") if f"{{{n}}}" in reply and f"{{{n}}}" not in said]


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--folder", type=Path, default=Path(__file__).parent / "service")
    options.add_argument("--messages", type=int, default=2000)
    options.add_argument("--dialogues", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args(arguments)
    write(chosen.folder, chosen.messages, chosen.dialogues, chosen.seed)
    print(f"best accuracy {best_accuracy():.4f}, least loss {least_loss():.4f} nats")


if __name__ == "__main__":
    main()
