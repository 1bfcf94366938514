"""Rows of the context's length, cut from sequences of tokens without dropping any.

A sequence of n tokens holds n − 1 (input, target) pairs: every token but the first is a target.
All pairs of a permutation of the sequences, one after another, are cut into rows of T pairs; a
long sequence goes on in later rows; what shares a row does not see each other (its segments
differ). The order of sequences, the place of the first cut and the order of rows are drawn again
in each epoch: a pure function of (lengths, T, seed, epoch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.tokenizer import Tokenizer
from bigmodel_cli.tasks import Batch, Plan

IGNORED = -100  # a target that is no loss term
MASKED_SHARE = 0.15
BLOCK = 4096  # sequences that are put together
# first keys of streams that must not be the same
ORDER, MASKS, SAMPLES, BASELINE, AUGMENT, UNITS = range(6)


def generator(*key: int) -> np.random.Generator:
    """A random stream that depends on nothing but the key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True)
class Sequences:
    """The token sequences of a split: runs of units that follow each other."""

    split: Split
    first: NDArray[np.int64]  # (S + 1,) unit at which each sequence begins
    lengths: NDArray[np.int64]  # (S,) tokens

    @staticmethod
    def of(split: Split) -> Sequences:
        starts = np.flatnonzero(split.column("start"))
        lengths = split.lengths("tokens")
        sums = np.concatenate([[0], np.cumsum(lengths)])
        first = np.append(starts, len(split)).astype(np.int64)
        return Sequences(split, first, np.diff(sums[first]).astype(np.int64))

    def tokens(self, index: int) -> NDArray[np.integer]:
        """All tokens of one sequence, not copied."""
        return self.split.values("tokens", int(self.first[index]), int(self.first[index + 1]))

    def __len__(self) -> int:
        return len(self.lengths)


class PackedOrder:
    """Which pairs each row of each epoch holds."""

    def __init__(self, sequences: Sequences, context: int, seed: int) -> None:
        self.sequences, self.context, self.seed = sequences, context, seed
        self.pairs = int((sequences.lengths - 1).sum())
        self.rows = -(-self.pairs // context)
        self._epoch = -1

    def _begin(self, epoch: int) -> None:
        if epoch != self._epoch:
            random = generator(ORDER, self.seed, epoch)
            self._order = random.permutation(len(self.sequences))
            ends = np.cumsum(self.sequences.lengths[self._order] - 1)
            self._ends = ends
            self._shift = int(random.integers(self.pairs))
            self._row_order = random.permutation(self.rows)
            self._epoch = epoch

    def fill(
        self,
        position: int,
        inputs: NDArray[np.int64],
        targets: NDArray[np.int64],
        segments: NDArray[np.int64],
    ) -> None:
        """Writes row `position` into arrays (T,); the rest of a last, short row is padding: input
        0, target IGNORED, a segment of its own."""
        epoch, place = divmod(position, self.rows)
        self._begin(epoch)
        begin = int(self._row_order[place]) * self.context
        wanted = min(self.context, self.pairs - begin)
        at = (begin + self._shift) % self.pairs
        filled, segment = 0, 0
        index = int(np.searchsorted(self._ends, at, side="right"))
        while filled < wanted:
            before = int(self._ends[index - 1]) if index else 0
            count = min(wanted - filled, int(self._ends[index]) - at)
            tokens = self.sequences.tokens(int(self._order[index]))
            offset = at - before
            inputs[filled : filled + count] = tokens[offset : offset + count]
            targets[filled : filled + count] = tokens[offset + 1 : offset + 1 + count]
            segments[filled : filled + count] = segment
            filled += count
            segment += 1
            at += count
            index += 1
            if at == self.pairs:  # around the end
                at = index = 0
        inputs[filled:], targets[filled:], segments[filled:] = 0, IGNORED, segment


@dataclass(frozen=True)
class Windows:
    """Overlapping windows of one split for scoring: each target is scored once, in a window of at
    most T inputs, with at least T − stride inputs before it (fewer only at a sequence's start)."""

    sequence: NDArray[np.int64]  # (M,)
    start: NDArray[np.int64]  # (M,) first input within the sequence
    scored: NDArray[np.int64]  # (M,) first scored target within the window
    length: NDArray[np.int64]  # (M,) inputs

    @staticmethod
    def of(sequences: Sequences, context: int, stride: int) -> Windows:
        pairs = sequences.lengths - 1
        counts = np.where(pairs > 0, 1 + np.maximum(0, -(-(pairs - context) // stride)), 0)
        sequence = np.repeat(np.arange(len(pairs)), counts)
        number = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
        start = number * stride
        length = np.minimum(context, pairs[sequence] - start)
        scored = np.where(number > 0, context - stride, 0)
        return Windows(sequence, start, scored, length)


class PackedPlan(Plan):
    """Packed rows as batches; with `masks`, tokens are left out again in each epoch."""

    def __init__(self, order: PackedOrder, masks: Tokenizer | None) -> None:
        self.order, self.masks, self.rows = order, masks, order.rows
        self.row_tokens, self.even = float(order.context), True

    def batch(self, position: int, count: int) -> Batch:
        inputs, targets, segments = np.zeros((3, count, self.order.context), np.int64)
        for row in range(count):
            self.order.fill(position + row, inputs[row], targets[row], segments[row])
            if self.masks:
                random = generator(MASKS, self.order.seed, position + row)
                leave_out(inputs[row], targets[row], self.masks, random)
        return make_batch(inputs, targets, segments)


class WholePlan(Plan):
    """Whole sequences, of which each row holds as many as fit; none is cut.

    lengths: of each (input, target) sequence; pairs(i): its inputs and targets. They are put
    together once, best fit, the longest first within blocks (a pure function of lengths and seed);
    the order of rows is drawn again in each epoch.
    """

    even = True

    def __init__(
        self,
        lengths: NDArray[np.int64],
        context: int,
        seed: int,
        pairs: Callable[[int], tuple[NDArray[Any], NDArray[np.int64]]],
    ) -> None:
        self.context, self._seed, self._pairs = context, seed, pairs
        self._bins = best_fit(lengths, context, seed)
        self.rows, self.row_tokens = len(self._bins), float(context)
        self._epoch = -1

    def batch(self, position: int, count: int) -> Batch:
        inputs, targets, segments = np.zeros((3, count, self.context), np.int64)
        targets[:] = IGNORED
        for row in range(count):
            epoch, place = divmod(position + row, self.rows)
            if epoch != self._epoch:
                self._order = generator(ORDER, self._seed, epoch).permutation(self.rows)
                self._epoch = epoch
            filled = segment = 0
            for index in self._bins[self._order[place]]:
                tokens, predicted = self._pairs(index)
                part = slice(filled, filled + len(tokens))
                inputs[row, part], targets[row, part] = tokens, predicted
                segments[row, part] = segment
                filled, segment = filled + len(tokens), segment + 1
            segments[row, filled:] = segment
        return make_batch(inputs, targets, segments)


def best_fit(lengths: NDArray[np.int64], room: int, seed: int) -> list[list[int]]:
    """Which sequences share a row of `room`: each goes where the least room is left after it."""
    order = generator(ORDER, seed).permutation(len(lengths))
    bins: list[list[int]] = []
    for begin in range(0, len(order), BLOCK):
        block = order[begin : begin + BLOCK]
        free: dict[int, list[int]] = {}  # room left → bins
        sizes = 0  # bit r is set where a bin has r left
        for index in block[np.argsort(-lengths[block], kind="stable")].tolist():
            length = int(lengths[index])
            fitting = sizes >> length << length
            if fitting:
                left = (fitting & -fitting).bit_length() - 1
                place = free[left].pop()
                if not free[left]:
                    sizes &= ~(1 << left)
            else:
                left, place = room, len(bins)
                bins.append([])
            bins[place].append(index)
            left -= length
            free.setdefault(left, []).append(place)
            sizes |= 1 << left
    return bins


def leave_out(
    inputs: NDArray[np.int64],
    targets: NDArray[np.int64],
    tokenizer: Tokenizer,
    random: np.random.Generator,
) -> None:
    """Makes a row (T,) of next-token pairs one of a masked model: the targets, of which 15 % are
    to be predicted; of these 80 % are masked, 10 % random, 10 % kept (Devlin et al. 2018)."""
    real = targets != IGNORED
    inputs[real] = targets[real]
    chosen = real & (random.random(len(inputs)) < MASKED_SHARE)
    if not chosen.any() and real.any():
        chosen[random.choice(real.nonzero()[0])] = True
    kind = random.random(len(inputs))
    inputs[chosen & (kind < 0.8)] = tokenizer.mask
    swapped = chosen & (kind >= 0.9)
    inputs[swapped] = random.integers(0, tokenizer.size, int(swapped.sum()))
    targets[~chosen] = IGNORED


def make_batch(
    inputs: NDArray[np.int64],
    targets: NDArray[np.int64],
    segments: NDArray[np.int64],
    **extra: NDArray[Any],
) -> Batch:
    """Arrays (B, T) as a batch; segments are left out where no row has more than one."""
    named = {"tokens_BT": torch.from_numpy(inputs)}
    if (segments != segments[:, :1]).any():
        named["segments_BT"] = torch.from_numpy(segments)
    return Batch(named, torch.from_numpy(targets), int((targets != IGNORED).sum()), extra)


class Places:
    """Which unit each target belongs to, and the unit's bytes at its last target (else 0).

    Where scoring ends early, at the target of `last` (a number of window), the unit that it cuts
    counts with its share of bytes.
    """

    def __init__(
        self, sequences: Sequences, windows: Windows | None = None, last: int = -1
    ) -> None:
        split = sequences.split
        self._ends = np.cumsum(split.lengths("tokens"))
        self._sizes = split.column("bytes")
        self._begin = np.concatenate([[0], np.cumsum(sequences.lengths)])
        self._cut, self._cut_size = -1, 0
        if windows and 0 <= last < len(windows.sequence):
            sequence = int(windows.sequence[last])
            self._cut = int(self._begin[sequence] + windows.start[last] + windows.length[last])
            unit = int(np.searchsorted(self._ends, self._cut, side="right"))
            length = int(split.lengths("tokens")[unit])
            done = length - int(self._ends[unit] - 1 - self._cut)
            self._cut_size = round(int(self._sizes[unit]) * done / length)

    def of(self, sequence: int, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """For tokens first … first + count − 1 of a sequence: (count,) each."""
        tokens = self._begin[sequence] + first + np.arange(count)
        units = np.searchsorted(self._ends, tokens, side="right")
        sizes = np.where(tokens == self._ends[units] - 1, self._sizes[units], 0)
        return units, np.where(tokens == self._cut, self._cut_size, sizes)
