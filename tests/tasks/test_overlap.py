"""BLEU and chrF are sacrebleu's own, whole and over any part of a corpus."""

from __future__ import annotations

import random

import numpy as np
import pytest
import sacrebleu

from bigmodel_cli.tasks.overlap import bleu, chrf

WORDS = [
    "the",
    "a",
    "cat",
    "dog's",
    "saw",
    "runs,",
    "red",
    "3.5",
    "naïve",
    "Straße",
    "日本",
    "—",
    "«",
    "ok",
    "»",
    "end.",
    "Ein!",
]
CORPUS_SCORES = {"bleu": sacrebleu.corpus_bleu, "chrf": sacrebleu.corpus_chrf}


def corpus(count: int, seed: int) -> tuple[list[str], list[str]]:
    """References, and answers that differ from them more or less; some are empty."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 12))) for _ in range(count)]
    answers = []
    for text in references:
        kept = [word for word in text.split() if draw.random() < 0.8]
        draw.shuffle(kept) if draw.random() < 0.3 else None
        answers.append(" ".join(kept) + draw.choice(["", " ", ".", " cat"]))
    return ["", *answers], ["Not empty.", *references]


@pytest.mark.parametrize("make", [bleu, chrf])
def test_sums_of_counts_give_the_very_score_of_sacrebleu(make: object) -> None:
    overlap = make(3)  # type: ignore[operator]
    answers, references = corpus(60, 0)
    counts = overlap.counts(answers, references)
    assert counts.shape == (61, overlap.size)
    statistics = np.concatenate([np.ones((61, 3)), counts, np.ones((61, 2))], 1)
    value = overlap.metric().value
    draw = np.random.default_rng(0)
    for chosen in (np.arange(61), np.arange(5), draw.integers(0, 61, 61), np.array([0])):
        wanted = CORPUS_SCORES[overlap.name](
            [answers[i] for i in chosen], [[references[i] for i in chosen]]
        )
        assert float(value(statistics[chosen].sum(0))) == wanted.score
    many = np.stack([statistics[:7].sum(0), statistics.sum(0)])
    assert value(many).tolist() == [float(value(row)) for row in many]
    assert overlap.metric().higher_is_better


def test_a_perfect_answer_scores_100_and_nothing_has_no_score() -> None:
    for overlap in (bleu(0), chrf(0)):
        text = ["Ein kleiner Hund sieht die alte Katze."]
        assert float(overlap.metric().value(overlap.counts(text, text).sum(0))) == pytest.approx(
            100
        )
        assert np.isnan(overlap.metric().value(np.zeros(overlap.size)))


def test_signatures_say_how_it_was_counted() -> None:
    assert "case:mixed" in bleu(0).signature
    assert "tok:13a" in bleu(0).signature
    assert f"version:{sacrebleu.__version__}" in chrf(0).signature
