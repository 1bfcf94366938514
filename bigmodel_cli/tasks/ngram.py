"""Count-based language models: the baselines that a trained model must beat.

`KneserNey` is the interpolated, modified Kneser-Ney model of Chen & Goodman, "An Empirical Study of
Smoothing Techniques for Language Modeling", Harvard TR-10-98, 1998:

    p_n(w | h) = (a(h w) - D(a(h w))) / Σ_v a(h v) + γ(h) · p_{n-1}(w | h less its oldest token)
    γ(h)       = Σ_v D(a(h v)) / Σ_v a(h v)
    p_0(w)     = 1 / V

which sums to one over w, whatever h; where nothing was seen after h, p_n = p_{n-1}. D is 0 for a
count of zero, with one discount each for counts of one, two, and three or more. a(·) is the
adjusted count of Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation", ACL
2013: at the highest order the number of occurrences, below it the number of distinct tokens seen on
the left. At the start of a sequence there is no left, so occurrences there are added as they are:
every n-gram that was seen has a(·) ≥ 1.

How it is kept: an n-gram's id is its rank among the sorted keys `id of its first n - 1 tokens · V +
its last token`; a 1-gram's id is the token. All that follow one context thus lie side by side, and
a text is looked up one order, not one token, at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]

# Where counts of counts give no discounts; the values that KenLM's --discount_fallback uses.
_FALLBACK = (0.5, 1.0, 1.5)

_BLOCK = 2**18  # n-grams at a time


class Unigram:
    """Every token by its frequency, whatever precedes it; add-one smoothed over the vocabulary."""

    def __init__(self, sequences: Iterable[NDArray[Any]], vocabulary: int) -> None:
        """Count all tokens but the first of each sequence, as `KneserNey` does.

        Raises ValueError if an id is no integer in [0, vocabulary), or vocabulary is not positive.
        """
        tokens, depth = _join(sequences, vocabulary, 1)
        counts = np.bincount(tokens[depth > 0], minlength=vocabulary)
        self._vocabulary = vocabulary
        self._log_probability: Floats = np.log((counts + 1.0) / (counts.sum() + vocabulary))
        self._best = int(np.argmax(counts))

    def log_probabilities(self, tokens: NDArray[Any]) -> Floats:
        """Natural log of p(tokens[i]) for i = 1 … n - 1, in nats: [n] → [max(n - 1, 0)].

        Raises ValueError if an id is no integer in [0, vocabulary).
        """
        return self._log_probability[_checked(tokens, self._vocabulary)[1:]]

    def most_likely(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """The most frequent token, the lowest id of equals, for i = 1 … n - 1.

        [n] → [max(n - 1, 0)]. Raises ValueError if an id is no integer in [0, vocabulary).
        """
        return np.full(max(_checked(tokens, self._vocabulary).size - 1, 0), self._best, np.int64)


@dataclass(frozen=True, slots=True)
class _Level:
    """The M n-grams of one order and their C contexts, the (n - 1)-grams.

    Order 1 holds the whole vocabulary, so that ids are tokens, after one context, the empty one.
    """

    keys: NDArray[np.int64]  # [M], ascending: context's id * V + token
    probability: Floats  # [M], p_n(token | context), interpolated with all shorter contexts
    backoff: Floats  # [C], γ; 1 where nothing follows the context, so that it changes nothing
    best: NDArray[np.int32]  # [C], index in `keys` of the likeliest continuation; -1 for none


class KneserNey:
    """Interpolated modified Kneser-Ney over token ids; see the module's text for its equations."""

    def __init__(self, sequences: Iterable[NDArray[Any]], vocabulary: int, order: int = 5) -> None:
        """Count the n-grams, n ≤ order, of 1-D integer arrays of ids in [0, vocabulary).

        A sequence's first token is context only: it is never predicted, hence never counted as a
        1-gram. No n-gram crosses from one sequence into the next. Empty sequences and those of one
        token add nothing; with nothing at all, every token has probability 1 / vocabulary.

        Takes O(N log N) time per order for N tokens and, for order 5, at the peak 60 bytes per
        token of text, 115 where all n-grams differ. Raises ValueError if an id is no integer in
        [0, vocabulary), vocabulary is not positive, or order is not in 1 … 100.
        """
        if not 1 <= order <= 100:
            raise ValueError(f"order must be in 1 to 100, not {order}")
        tokens, depth = _join(sequences, vocabulary, order)
        self._vocabulary = vocabulary
        self._levels: list[_Level] = []
        # Of the order below the one being counted, which can be finished only when its left
        # extensions are known: they are the n-grams of the next order.
        keys = np.arange(vocabulary)
        counts: Ints = np.bincount(tokens[depth > 0], minlength=vocabulary)
        suffix: Ints = np.zeros(vocabulary, np.int32)
        if not counts.any():
            return  # no levels: uniform
        ids = tokens  # [N], of the n-gram that ends at each position; arbitrary where none fits
        for n in range(2, order + 1):
            inside = depth[1:] >= n - 1
            if not inside.any():
                break  # every shorter n-gram is at a start: its count is adjusted already
            key = ids[:-1].astype(np.int64)
            key *= vocabulary
            key += tokens[1:]
            key = key[inside]
            longer_keys, longer_counts, occurrence, rank = _rank(key)
            longer_suffix = ids[1:][inside][occurrence]
            # A 1-gram at the start is context only.
            at_start = ids[depth == n - 2] if n > 2 else ids[:0]
            ids = np.zeros_like(tokens)
            ids[1:][inside] = rank
            del key, inside, occurrence, rank  # large, and not needed at the peak
            counts = np.bincount(longer_suffix, minlength=suffix.size)
            np.add.at(counts, at_start, 1)
            self._finish(keys, counts, suffix)
            keys, counts, suffix = longer_keys, longer_counts, longer_suffix
        del tokens, depth, ids
        self._finish(keys, counts, suffix)

    def log_probabilities(self, tokens: NDArray[Any]) -> Floats:
        """Natural log of p(tokens[i] | tokens[max(0, i - order + 1) : i]) for i = 1 … n - 1.

        [n] → [max(n - 1, 0)], in nats, always finite: tokens and contexts that were never seen
        get their share of the shorter contexts, in the end of 1 / vocabulary. Raises ValueError
        if an id is no integer in [0, vocabulary).
        """
        tokens = _checked(tokens, self._vocabulary)
        probability: Floats = np.full(max(tokens.size - 1, 0), 1 / self._vocabulary)
        for level, context, found in self._look_up(tokens):
            at = np.flatnonzero(context >= 0)
            probability[at] *= level.backoff[context[at]]
            at = np.flatnonzero(found >= 0)
            probability[at] = level.probability[found[at]]
        return np.log(probability, out=probability)

    def most_likely(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        """The argmax over the vocabulary of what `log_probabilities` scores, for i = 1 … n - 1.

        [n] → [max(n - 1, 0)]; tokens[n - 1] itself is not used. Exact, though only the best token
        seen after each context is kept: one not seen after h has γ(h) times its probability after
        the shorter context, hence at most γ(h) times the maximum there; and if the token that has
        that maximum was seen after h, then the best of those seen is at least as likely. So the
        answer is the best of those seen after h, unless γ(h) times the probability of the shorter
        context's answer is greater. Of equals, a token seen after a longer context comes first,
        then the lower id. Raises ValueError as `log_probabilities` does.
        """
        tokens = _checked(tokens, self._vocabulary)
        answer = np.zeros(max(tokens.size - 1, 0), np.int64)
        probability = np.full(answer.size, 1 / self._vocabulary)
        for level, context, _ in self._look_up(tokens):
            at = np.flatnonzero(context >= 0)
            at = at[level.best[context[at]] >= 0]
            best = level.best[context[at]]
            probability[at] *= level.backoff[context[at]]
            wins = level.probability[best] >= probability[at]
            at, best = at[wins], best[wins]
            probability[at] = level.probability[best]
            answer[at] = level.keys[best] % self._vocabulary
        return answer

    def _look_up(
        self, tokens: NDArray[np.int64]
    ) -> Iterator[tuple[_Level, NDArray[np.int64], NDArray[np.int64]]]:
        """Per order: the level, the ids of the context and of the n-gram at i = 1 … n - 1.

        Both are [max(n - 1, 0)]; -1 for what was never seen or would begin before the sequence.
        """
        context = np.zeros(max(tokens.size - 1, 0), np.int64)
        start = tokens[:1]
        for level in self._levels:
            # Negative, so never found, where the context is -1.
            key = context * self._vocabulary + tokens[1:]
            found = np.minimum(np.searchsorted(level.keys, key), level.keys.size - 1)
            found[level.keys[found] != key] = -1
            yield level, context, found
            # The next context ends one token earlier. At the start only the 1-gram fits.
            context = np.concatenate([start, found])[: context.size]
            start = np.full_like(start, -1)

    def _finish(self, keys: NDArray[np.int64], counts: Ints, suffix: Ints) -> None:
        """Add the level of keys [M] with adjusted counts [M]; suffix [M]: ids one order below."""
        shorter = self._levels[-1].probability if self._levels else np.ones(1) / self._vocabulary
        discounts = _discounts(counts)
        probability = np.empty(keys.size)
        backoff = np.ones(shorter.size)
        best = np.full(shorter.size, -1, np.int32)
        begin = 0
        while begin < keys.size:  # blocks of whole contexts: the intermediates stay small
            last = keys[min(begin + _BLOCK, keys.size) - 1] // self._vocabulary
            block = slice(begin, int(np.searchsorted(keys, (last + 1) * self._vocabulary)))
            context = keys[block] // self._vocabulary
            first = np.flatnonzero(np.diff(context, prepend=-1))  # of each context's n-grams
            owner, sizes = context[first], np.diff(first, append=context.size)
            count = counts[block]
            discount = discounts[np.minimum(count, 3)]
            total = np.add.reduceat(count, first, dtype=np.int64)
            backoff[owner] = np.add.reduceat(discount, first) / total
            part = (count - discount) / np.repeat(total, sizes)
            part += backoff[context] * shorter[suffix[block]]
            probability[block] = part
            highest = np.repeat(np.maximum.reduceat(part, first), sizes)
            at = np.flatnonzero(part == highest)[::-1]
            best[context[at]] = at + begin  # the last assignment stays: of equals, the lowest id
            begin = block.stop
        self._levels.append(_Level(keys, probability, backoff, best))


def _discounts(counts: Ints) -> Floats:
    """[0, D₁, D₂, D₃₊] of one order, from the number n_k of its n-grams with count k.

    D_k = k - (k + 1) · n₁ / (n₁ + 2 n₂) · n_{k+1} / n_k, which never exceeds k. Where that cannot
    be had (n₁, n_k or n_{k+1} is zero) or is not positive (few n-grams, or few rare ones, as
    1-grams of bytes), D_k is 0.5, 1 or 1.5. With every D > 0 each context leaves something to
    tokens never seen after it, so that no probability is zero.
    """
    n = [int(np.count_nonzero(counts == k)) for k in range(5)]
    found = [0.0]
    for k, fallback in enumerate(_FALLBACK, start=1):
        # Both sides in integers: the sign is exact.
        under, over = n[k] * (n[1] + 2 * n[2]), (k + 1) * n[1] * n[k + 1]
        found.append((k * under - over) / under if 0 < over < k * under else fallback)
    return np.array(found)


def _rank(
    key: NDArray[np.int64],
) -> tuple[NDArray[np.int64], Ints, NDArray[np.int32], NDArray[np.int32]]:
    """Unique keys [M], their counts [M], where one of each was [M], ranks [N]; sorts key [N].

    As `np.unique` with all it can return, at a third of the memory and without its stable sort.
    """
    position = np.argsort(key).astype(np.int32)
    key.sort()  # faster than key[position]
    new = np.ones(key.size, np.bool_)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    ascending = np.cumsum(new, dtype=np.int32)
    ascending -= 1
    rank = np.empty_like(ascending)
    rank[position] = ascending
    del ascending
    first = np.flatnonzero(new).astype(np.int32)
    return key[new], np.diff(first, append=np.int32(key.size)), position[first], rank


def _join(
    sequences: Iterable[NDArray[Any]], vocabulary: int, order: int
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """All sequences end to end [N]; how many tokens of its own precede each, order at most [N]."""
    arrays = [_integers(sequence) for sequence in sequences]
    sizes = np.array([array.size for array in arrays], np.int64)
    # One cast for all: a 64-bit unsigned id that wraps becomes negative, which is refused.
    joined = np.concatenate([np.empty(0, np.int64), *arrays], dtype=np.int64, casting="unsafe")
    tokens = _checked(joined, vocabulary).astype(np.int32)
    depth = np.full(tokens.size, order, np.int8)
    starts = np.cumsum(sizes) - sizes
    for before in range(order):
        depth[starts[sizes > before] + before] = before
    return tokens, depth


def _checked(tokens: NDArray[Any], vocabulary: int) -> NDArray[np.int64]:
    if not 1 <= vocabulary < 2**31:
        raise ValueError(f"vocabulary must be in 1 to {2**31 - 1}, not {vocabulary}")
    checked = _integers(tokens).astype(np.int64, copy=False)
    if checked.size and not 0 <= checked.min() <= checked.max() < vocabulary:
        low, high = checked.min(), checked.max()
        raise ValueError(f"ids from {low} to {high} are not in [0, {vocabulary})")
    return checked


def _integers(tokens: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"not a 1-D array of integers: {array.dtype}, shape {array.shape}")
    return array
