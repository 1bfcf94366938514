"""Draw pairs of sentences, English and German, from one grammar, so that the best score is known.

Both sentences of a pair are derived together, so the source determines its target: words move
(verbs come second, participles and verbs of a dass clause last), and articles, adjectives and verbs
agree in gender, number and case. A perfect translator gets every sentence right: BLEU 100, no nats
lost. With `--synonyms`, some German words have a rarer synonym that is chosen by chance; then
`bits` is -log2 of the probability of the target given the source, and no model does better on
average.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# English singular and plural; gender; German singular and plural, and a synonym's
NOUNS = (
    ("dog", "dogs", "m", ("Hund", "Hunde")),
    ("cat", "cats", "f", ("Katze", "Katzen")),
    ("horse", "horses", "n", ("Pferd", "Pferde"), ("Ross", "Rosse")),
    ("man", "men", "m", ("Mann", "Männer")),
    ("woman", "women", "f", ("Frau", "Frauen"), ("Dame", "Damen")),
    ("child", "children", "n", ("Kind", "Kinder")),
    ("bird", "birds", "m", ("Vogel", "Vögel")),
    ("cow", "cows", "f", ("Kuh", "Kühe")),
    ("pig", "pigs", "n", ("Schwein", "Schweine")),
    ("teacher", "teachers", "m", ("Lehrer", "Lehrer")),
    ("mouse", "mice", "f", ("Maus", "Mäuse")),
    ("king", "kings", "m", ("König", "Könige")),
)
ADJECTIVES = (
    ("small", "klein"), ("old", "alt"), ("young", "jung"), ("brave", "mutig"), ("red", "rot"),
    ("quick", "schnell", "rasch"), ("clever", "klug", "schlau"),
)  # fmt: skip
# third person singular, plural, participle, in both languages
VERBS = (
    (("sees", "see", "seen"), ("sieht", "sehen", "gesehen")),
    (("finds", "find", "found"), ("findet", "finden", "gefunden")),
    (("hears", "hear", "heard"), ("hört", "hören", "gehört")),
    (("chases", "chase", "chased"), ("jagt", "jagen", "gejagt")),
    (("carries", "carry", "carried"), ("trägt", "tragen", "getragen")),
    (("calls", "call", "called"), ("ruft", "rufen", "gerufen")),
)
HAVE = (("has", "have"), ("hat", "haben"))
ADVERBS = (("today", "heute"), ("now", "jetzt"), ("here", "hier"), ("in spring", "im Frühling"))
SPEAKERS = (("Anna says", "Anna sagt"), ("Ben hopes", "Ben hofft"), ("I think", "Ich glaube"))
NUMBERS = (("two", "zwei"), ("three", "drei"))
# article and adjective ending, by gender and case (n: subject, a: object)
THE = {"mn": ("der", "e"), "ma": ("den", "en"), "fn": ("die", "e"), "fa": ("die", "e"),
       "nn": ("das", "e"), "na": ("das", "e")}  # fmt: skip
A = {"mn": ("ein", "er"), "ma": ("einen", "en"), "fn": ("eine", "e"), "fa": ("eine", "e"),
     "nn": ("ein", "es"), "na": ("ein", "es")}  # fmt: skip


class Drawing:
    """One pair being drawn: its random choices, and the bits of those that the source hides."""

    def __init__(self, rng: random.Random, synonyms: float) -> None:
        self.rng, self.synonyms = rng, synonyms
        self.bits = 0.0

    def word(self, words: tuple[T, ...]) -> T:
        """A German word, or its synonym."""
        if len(words) == 1 or not self.synonyms:
            return words[0]
        rare = self.rng.random() < self.synonyms
        self.bits -= math.log2(self.synonyms if rare else 1 - self.synonyms)
        return words[rare]

    def noun_phrase(self, case: str) -> tuple[str, str, bool]:
        """English, German, and whether it is plural; case n or a."""
        rng = self.rng
        singular, plural, gender, *words = rng.choice(NOUNS)
        adjective = rng.choice(ADJECTIVES) if rng.random() < 0.6 else None
        kind = rng.choice(("the", "a", "the many", "number"))
        many = kind in ("the many", "number")
        number = rng.choice(NUMBERS)
        if kind == "the":
            english, (german, ending) = "the", THE[gender + case]
        elif kind == "a":
            an = (adjective[0] if adjective else singular)[0] in "aeiou"
            english, (german, ending) = "an" if an else "a", A[gender + case]
        elif kind == "the many":
            english, german, ending = "the", "die", "en"
        else:
            english, german, ending = *number, "e"
        if adjective:
            english += f" {adjective[0]}"
            german += f" {self.word(adjective[1:])}{ending}"
        noun = self.word(tuple(words))
        return f"{english} {plural if many else singular}", f"{german} {noun[many]}", many


def pair(rng: random.Random, synonyms: float = 0.0) -> tuple[str, str, float]:
    """Draws a pair: source, target, and -log2 of the probability of the target given the source."""
    draw = Drawing(rng, synonyms)
    subject, topic, many = draw.noun_phrase("n")
    thing, matter, _ = draw.noun_phrase("a")
    english, german = rng.choice(VERBS)
    if rng.random() < 0.4:  # the perfect
        said = f"{HAVE[0][many]} {english[2]}"
        verb, rest = HAVE[1][many], german[2]
    else:
        said, verb, rest = english[many], german[many], ""
    form = rng.choice(("plain", "adverb", "that"))
    source = f"{subject} {said} {thing}"
    if form == "that":
        speaker, sprecher = rng.choice(SPEAKERS)
        source = f"{speaker} that {source}"
        words = [f"{sprecher}, dass", topic, matter, rest, verb]
    elif form == "adverb":
        adverb, umstand = rng.choice(ADVERBS)
        source = f"{adverb} {source}"
        words = [umstand, verb, topic, matter, rest]
    else:
        words = [topic, verb, matter, rest]
    target = " ".join(word for word in words if word)
    return f"{source[0].upper()}{source[1:]}.", f"{target[0].upper()}{target[1:]}.", draw.bits


def main(argv: list[str] | None = None) -> None:
    """Write pairs as lines of JSON with `source`, `target` and `bits`; exit 2 on bad usage."""
    parser = argparse.ArgumentParser(description="Draw pairs of sentences with a known best score.")
    parser.add_argument("output", type=Path, help="the file to write: pairs.jsonl")
    parser.add_argument("--pairs", type=int, default=4000, help="how many (default 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")
    parser.add_argument(
        "--synonyms", type=float, default=0.0, metavar="SHARE",
        help="how often a word that has a synonym gives way to it (default 0: never)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    if options.pairs < 1 or not 0 <= options.synonyms < 1:
        parser.error("--pairs must be at least 1, and --synonyms from 0 to below 1")
    rng = random.Random(options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="utf-8", newline="\n") as lines:
        for _ in range(options.pairs):
            source, target, bits = pair(rng, options.synonyms)
            row = {"source": source, "target": target, "bits": round(bits, 6)}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
