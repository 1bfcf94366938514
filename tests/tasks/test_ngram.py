"""The vectorised counts against a dictionary, the equations against themselves and the truth."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bigmodel_cli.tasks import ngram
from bigmodel_cli.tasks.ngram import KneserNey, Unigram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Gram = tuple[int, ...]


class Reference:
    """The same model one token, one n-gram and one dictionary at a time."""

    def __init__(self, sequences: Sequence[Array], vocabulary: int, order: int) -> None:
        self.vocabulary, self.order = vocabulary, order
        seen: Counter[Gram] = Counter()
        at_start: Counter[Gram] = Counter()
        left: defaultdict[Gram, set[int]] = defaultdict(set)
        for sequence in sequences:
            tokens = [int(token) for token in sequence]
            for i in range(1, len(tokens)):
                for n in range(1, min(order, i + 1) + 1):
                    gram = tuple(tokens[i + 1 - n : i + 1])
                    seen[gram] += 1
                    if i + 1 == n:
                        at_start[gram] += 1
                    else:
                        left[gram].add(tokens[i - n])
        self.after: defaultdict[Gram, dict[int, int]] = defaultdict(dict)
        for gram, count in seen.items():
            adjusted = count if len(gram) == order else len(left[gram]) + at_start[gram]
            self.after[gram[:-1]][gram[-1]] = adjusted
        self.discounts = {n: self._discounts(n) for n in range(1, order + 1)}

    def _discounts(self, order: int) -> list[float]:
        n = Counter(
            count
            for context, counts in self.after.items()
            if len(context) == order - 1
            for count in counts.values()
        )
        discounts = [0.0]
        for k, fallback in ((1, 0.5), (2, 1.0), (3, 1.5)):
            if n[1] and n[k] and n[k + 1]:
                y = Fraction(n[1], n[1] + 2 * n[2])
                d = k - (k + 1) * y * Fraction(n[k + 1], n[k])
                discounts.append(float(d) if d > 0 else fallback)
            else:
                discounts.append(fallback)
        return discounts

    def probability(self, token: int, context: Gram) -> float:
        shorter = self.probability(token, context[1:]) if context else 1 / self.vocabulary
        counts = self.after.get(context)
        if not counts:
            return shorter
        discounts = self.discounts[len(context) + 1]
        total = sum(counts.values())
        left_over = sum(discounts[min(count, 3)] for count in counts.values()) / total
        count = counts.get(token, 0)
        return (count - discounts[min(count, 3)]) / total + left_over * shorter

    def log_probabilities(self, tokens: Array) -> Array:
        ids = [int(token) for token in tokens]
        return np.array(
            [
                np.log(self.probability(ids[i], tuple(ids[max(0, i - self.order + 1) : i])))
                for i in range(1, len(ids))
            ]
        )


def skewed(rng: np.random.Generator, size: int, vocabulary: int) -> Array:
    """Tokens of uneven frequency, so that there are n-grams of every count."""
    return np.minimum(rng.geometric(0.25, size) - 1, vocabulary - 1)


def distribution(model: KneserNey | Unigram, context: Sequence[int], vocabulary: int) -> Array:
    """p(· | context), one call a token: [V]."""
    continued = [np.array([*context, token]) for token in range(vocabulary)]
    return np.exp([model.log_probabilities(tokens)[-1] for tokens in continued])


@pytest.mark.parametrize("block", [7, 2**18])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "lengths",
    [[], [0], [1], [2], [2, 2, 0, 1, 3], [400], [3] * 60, [0, 1, 2, 3, 4, 5, 6, 90, 1, 0, 200, 7]],
    ids=str,
)
def test_agrees_with_a_dictionary(
    lengths: list[int], order: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngram, "_BLOCK", block)
    rng = np.random.default_rng(sum(lengths) + order)
    vocabulary = 12  # the last two are never seen
    sequences = [skewed(rng, length, vocabulary - 2) for length in lengths]
    model = KneserNey(iter(sequences), vocabulary, order)
    reference = Reference(sequences, vocabulary, order)
    for tokens in [*sequences, skewed(rng, 300, vocabulary), rng.integers(0, vocabulary, 100)]:
        expected = reference.log_probabilities(tokens)
        np.testing.assert_allclose(model.log_probabilities(tokens), expected, rtol=0, atol=1e-9)


def test_every_context_leaves_a_distribution() -> None:
    rng = np.random.default_rng(0)
    vocabulary = 9
    sequences = [skewed(rng, length, vocabulary - 1) for length in (300, 40, 2, 1, 0)]
    model = KneserNey(sequences, vocabulary)
    whole = sequences[0][100:107].tolist()
    unseen = vocabulary - 1
    for size in range(1, 8):
        seen = whole[:size]
        for context in (seen, [unseen] * size, [unseen, *seen[1:]], [*seen[:-1], unseen]):
            p = distribution(model, context, vocabulary)
            assert p.min() > 0
            assert p.sum() == pytest.approx(1, abs=1e-9)
        # What lies further back than the order reaches changes nothing.
        longer = distribution(model, [unseen, *whole[:4]], vocabulary)
        np.testing.assert_array_equal(longer, distribution(model, [3, *whole[:4]], vocabulary))


@pytest.mark.parametrize("block", [7, 2**18])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_most_likely_is_the_maximum_over_the_vocabulary(
    order: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ngram, "_BLOCK", block)
    rng = np.random.default_rng(order)
    vocabulary = 10
    sequences = [rng.integers(0, vocabulary - 1, size) for size in (150, 30, 5)]
    model = KneserNey(sequences, vocabulary, order)
    for tokens in [*sequences, rng.integers(0, vocabulary, 200)]:
        answer = model.most_likely(tokens)
        assert answer.dtype == np.int64
        for i in range(1, tokens.size):
            p = distribution(model, tokens[max(0, i - order) : i].tolist(), vocabulary)
            assert p[answer[i - 1]] == pytest.approx(p.max(), rel=1e-12)


def test_most_likely_may_be_a_token_not_seen_after_the_context() -> None:
    # After 1 came only 2, once; after everything else came 0. What occurs once is mostly chance.
    pairs = [np.array([token, 0]) for token in range(3, 60)]
    model = KneserNey([*pairs, *pairs[:2], np.array([1, 2])], 60)
    np.testing.assert_array_equal(model.most_likely(np.array([4, 5, 1, 5])), [0, 0, 0])
    p = distribution(model, [1], 60)
    assert p[0] == p.max() > p[2]


def test_most_likely_may_be_less_likely_than_the_answer_of_a_shorter_context() -> None:
    # Nearly everything is followed by 0, but 1 by each of 2 to 9, many times, and never by 0.
    rng = np.random.default_rng(0)
    others = [np.array([token, 0]) for token in range(10, 100)]
    model = KneserNey([*others, *[np.array([1, token]) for token in rng.integers(2, 10, 900)]], 100)
    p = distribution(model, [1], 100)
    assert distribution(model, [5], 100).max() > p.max()
    assert model.most_likely(np.array([1, 0])) == [p.argmax()]
    assert 2 <= p.argmax() < 10


def test_of_equals_the_lowest_id_is_most_likely() -> None:
    model = KneserNey([np.array([0, 3]), np.array([0, 2])], 5)
    np.testing.assert_array_equal(model.most_likely(np.array([0, 4, 4])), [2, 2])
    np.testing.assert_array_equal(KneserNey([], 5).most_likely(np.array([3, 3])), [0])


def test_no_ngram_crosses_into_the_next_sequence() -> None:
    apart = KneserNey([np.array([0, 1]), np.array([2, 3, 4])], 6)
    joined = KneserNey([np.array([0, 1, 2, 3, 4])], 6)
    # Nothing follows 1, so it tells as little as 5, which was never seen.
    np.testing.assert_array_equal(distribution(apart, [0, 1], 6), distribution(apart, [5], 6))
    assert distribution(joined, [0, 1], 6)[2] > distribution(apart, [0, 1], 6)[2]
    # The first token of a sequence is context only.
    assert distribution(apart, [5], 6)[0] == distribution(apart, [5], 6)[5]
    # The order of the sequences means nothing.
    rng = np.random.default_rng(1)
    sequences = [skewed(rng, 30, 8) for _ in range(20)]
    text = skewed(rng, 100, 8)
    np.testing.assert_array_equal(
        KneserNey(sequences, 8).log_probabilities(text),
        KneserNey(sequences[::-1], 8).log_probabilities(text),
    )


@pytest.mark.parametrize("sequences", [[], [np.array([])], [np.array([4])], [np.arange(6)]])
def test_always_finite_and_nothing_to_predict_is_no_error(sequences: list[Array]) -> None:
    for model in (KneserNey(sequences, 1000), Unigram(sequences, 1000)):
        p = model.log_probabilities(np.array([999, 3, 4, 998, 0, 1, 2, 3, 4, 5, 997]))
        assert p.dtype == np.float64
        assert p.shape == (10,)
        assert np.isfinite(p).all()
        for tokens in (np.array([]), np.array([4])):
            assert model.log_probabilities(tokens).shape == (0,)
            assert model.most_likely(tokens).shape == (0,)


@pytest.mark.parametrize("model", [KneserNey, Unigram])
def test_what_is_no_token_is_refused(model: type[KneserNey] | type[Unigram]) -> None:
    wrong = (
        np.array([0, 5]),
        np.array([-1, 0]),
        np.array([0.0, 1.0]),
        np.array([[0, 1]]),
        np.array([2**64 - 1], np.uint64),
        np.array([2**32], np.int64),
    )
    for tokens in wrong:
        with pytest.raises(ValueError, match=r"not in \[0, 5\)|not a 1-D array of integers"):
            model([np.array([0, 1]), tokens], 5)
        with pytest.raises(ValueError, match=r"not in \[0, 5\)|not a 1-D array of integers"):
            model([np.array([0, 1])], 5).log_probabilities(tokens)
    with pytest.raises(ValueError, match="vocabulary must be in 1"):
        model([], 0)
    with pytest.raises(ValueError, match="order must be in 1"):
        KneserNey([], 5, 0)


def test_discounts_are_those_of_the_equation_or_the_fallback() -> None:
    counts = np.repeat([0, 1, 2, 3, 4, 9], [6, 10, 5, 4, 2, 3])
    y = 10 / 20
    expected = [0, 1 - 2 * y * 5 / 10, 2 - 3 * y * 4 / 5, 3 - 4 * y * 2 / 4]
    np.testing.assert_allclose(ngram._discounts(counts), expected, rtol=1e-15)
    np.testing.assert_array_equal(ngram._discounts(np.array([7, 9])), [0, 0.5, 1, 1.5])
    # n₂ = 1 and n₃ = 9 would make the second negative; without n₄ there is no third.
    counts = np.repeat([1, 2, 3], [9, 1, 9])
    np.testing.assert_allclose(ngram._discounts(counts), [0, 1 - 2 * 9 / 11 / 9, 1, 1.5])


def test_unigram_is_add_one() -> None:
    model = Unigram([np.array([3, 1, 1]), np.array([3]), np.array([0, 2])], 4)
    np.testing.assert_allclose(distribution(model, [3], 4), np.array([1, 3, 2, 1]) / 7)
    np.testing.assert_array_equal(model.most_likely(np.array([0, 0, 3])), [1, 1])


@pytest.mark.slow
def test_approaches_the_entropy_of_a_markov_chain() -> None:
    rng = np.random.default_rng(5)
    vocabulary, chains, length = 6, 1200, 300
    p_next = rng.dirichlet(np.full(vocabulary, 0.5), (vocabulary, vocabulary))
    tokens = rng.integers(0, vocabulary, (chains, length))
    for i in range(2, length):
        cumulative = p_next[tokens[:, i - 2], tokens[:, i - 1]].cumsum(-1)
        tokens[:, i] = (rng.random((chains, 1)) > cumulative[:, :-1]).sum(-1)
    train, test = tokens[:1000], tokens[1000:]
    truth = -np.log(p_next[test[:, :-2], test[:, 1:-1], test[:, 2:]]).mean()

    def loss(model: KneserNey | Unigram) -> float:
        # The second token depends on nothing: the chain begins after two.
        return -float(np.mean([model.log_probabilities(row)[1:] for row in test]))

    model, unigram = KneserNey(train, vocabulary), Unigram(train, vocabulary)
    few = KneserNey(train[:10], vocabulary)
    assert truth < loss(model) < 1.02 * truth
    assert loss(model) < loss(few) < loss(unigram)
    right = np.mean([model.most_likely(row)[1:] == row[2:] for row in test])
    assert right == pytest.approx(p_next[test[:, :-2], test[:, 1:-1]].max(-1).mean(), abs=0.02)


@pytest.mark.slow
def test_a_million_tokens_in_thousands_of_sequences() -> None:
    rng = np.random.default_rng(2)
    vocabulary = 5000
    # A noisy copy of a frame of phrases: n-grams that repeat, and many that do not.
    frame = np.minimum(rng.zipf(1.3, 20_000), vocabulary) - 1
    tokens = np.tile(frame, 50).astype(np.uint16)
    noise = rng.random(tokens.size) < 0.3
    tokens[noise] = rng.integers(0, vocabulary, int(noise.sum()))
    model = KneserNey(np.array_split(tokens, 4000), vocabulary)
    text = tokens[:20_000]
    p = model.log_probabilities(text)
    assert np.isfinite(p).all()
    assert p.mean() > Unigram([tokens], vocabulary).log_probabilities(text).mean() + 1
    everything = distribution(model, text[1000:1004].tolist(), vocabulary)
    assert everything.sum() == pytest.approx(1, abs=1e-9)
