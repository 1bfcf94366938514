"""Packing loses no pair, windows score each target once, and places account for every byte."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from bigmodel_cli.artifacts.shards import Columns, ShardWriter, Split
from bigmodel_cli.artifacts.tokenizer import train
from bigmodel_cli.tasks.packing import (
    IGNORED,
    MASKED_SHARE,
    PackedOrder,
    PackedPlan,
    Places,
    Sequences,
    Windows,
    generator,
    leave_out,
    make_batch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from bigmodel_cli.artifacts.tokenizer import Tokenizer

    Row = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def sequences_of(folder: Path, lengths: Sequence[Sequence[int]]) -> Sequences:
    """Sequences of units of these lengths. No token occurs twice, so that each tells its place;
    a unit's bytes are 10 × its number + 1."""
    writer = ShardWriter(folder, "train")
    token = unit = 0
    for units in lengths:
        sizes = np.array([10 * (unit + i) + 1 for i in range(len(units))], np.int64)
        writer.add(
            Columns(
                len(units),
                {
                    "tokens": np.arange(token, token + sum(units), dtype=np.uint32),
                    "start": np.array([1] + [0] * (len(units) - 1), np.uint8),
                    "bytes": sizes,
                },
                {"tokens": np.array(units)},
            )
        )
        token += sum(units)
        unit += len(units)
    return Sequences.of(Split(folder, writer.close()))


def any_lengths(seed: int) -> list[list[int]]:
    """One to twelve sequences of one to four units; the first unit has two tokens or more."""
    random = np.random.default_rng(seed)
    longest = int(random.choice([3, 8, 40]))
    return [
        [
            int(random.integers(1, longest)) + (1 if unit == 0 else 0)
            for unit in range(random.integers(1, 5))
        ]
        for _ in range(random.integers(1, 13))
    ]


def row_of(order: PackedOrder, position: int) -> Row:
    inputs, targets, segments = np.full((3, order.context), -7, np.int64)
    order.fill(position, inputs, targets, segments)
    return inputs, targets, segments


def pairs_of(sequences: Sequences) -> Counter[tuple[int, int]]:
    return Counter(
        pair
        for index in range(len(sequences))
        for pair in zip(sequences.tokens(index).tolist(), sequences.tokens(index)[1:].tolist())
    )


# Sequences ------------------------------------------------------------------------------------


def test_sequences_are_runs_of_units_from_one_start_to_the_next(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, [[3, 2], [4], [2, 1, 5]])
    assert len(sequences) == 3
    assert sequences.first.tolist() == [0, 2, 3, 6]
    assert sequences.lengths.tolist() == [5, 4, 8]
    assert [sequences.tokens(i).tolist() for i in range(3)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8],
        list(range(9, 17)),
    ]


# Packed rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [1, 2, 3, 7, 16, 1000])
def test_every_pair_occurs_exactly_once_in_each_epoch(tmp_path: Path, context: int) -> None:
    for seed in range(15):
        # a tokenizer that loses something may leave a sequence without any pair
        lengths = [[1], *any_lengths(seed), [1]]
        sequences = sequences_of(tmp_path / str(seed), lengths)
        expected = pairs_of(sequences)
        order = PackedOrder(sequences, context, seed)
        assert order.pairs == sum(expected.values())
        assert order.rows == -(-order.pairs // context)
        for epoch in range(3):
            found: Counter[tuple[int, int]] = Counter()
            padded = 0
            for place in range(order.rows):
                inputs, targets, _ = row_of(order, epoch * order.rows + place)
                real = targets != IGNORED
                found.update(zip(inputs[real].tolist(), targets[real].tolist()))
                padded += int((~real).sum())
                assert not real.any() or real[: real.sum()].all()  # padding is at the end
                assert (inputs[~real] == 0).all()
            assert found == expected
            assert padded == order.rows * context - order.pairs  # of one row only


def test_segments_tell_what_shares_a_row_apart(tmp_path: Path) -> None:
    for seed in range(25):
        sequences = sequences_of(tmp_path / str(seed), any_lengths(seed))
        owner = np.repeat(np.arange(len(sequences)), sequences.lengths)
        order = PackedOrder(sequences, 9, seed)
        for position in range(order.rows):
            inputs, targets, segments = row_of(order, position)
            real = targets != IGNORED
            assert segments[0] == 0
            assert set(np.diff(segments).tolist()) <= {0, 1}
            for segment in set(segments.tolist()):
                inside = segments == segment
                assert len({bool(r) for r in real[inside]}) == 1  # padding is on its own
                if real[inside].all():
                    assert len(set(owner[inputs[inside]].tolist())) == 1
                    assert (np.diff(inputs[inside]) == 1).all()  # one stretch of a sequence
            for left, right in zip(np.flatnonzero(real)[:-1], np.flatnonzero(real)[1:]):
                goes_on = inputs[right] == inputs[left] + 1
                same = owner[inputs[left]] == owner[inputs[right]]
                assert (segments[left] == segments[right]) == bool(goes_on and same)


def test_a_row_is_a_function_of_its_position_alone(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, any_lengths(4) + any_lengths(5))
    order = PackedOrder(sequences, 5, 3)
    positions = list(range(4 * order.rows))
    expected = [row_of(PackedOrder(sequences, 5, 3), position) for position in positions]
    random = np.random.default_rng(0)
    for position in [*random.permutation(positions), *random.choice(positions, 50)]:
        for found, wanted in zip(row_of(order, int(position)), expected[position], strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_rows_depend_on_lengths_not_on_tokens(tmp_path: Path) -> None:
    lengths = any_lengths(6)
    one = sequences_of(tmp_path / "a", lengths)
    other = sequences_of(tmp_path / "b", lengths)
    for arrays in other.split._maps:
        arrays["tokens"] = arrays["tokens"] + 1000
    for position in range(PackedOrder(one, 6, 0).rows * 2):
        a, b = (row_of(PackedOrder(s, 6, 0), position) for s in (one, other))
        real = a[1] != IGNORED
        np.testing.assert_array_equal(a[0][real] + 1000, b[0][real])
        np.testing.assert_array_equal(a[2], b[2])


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, [[20]] * 12)

    def epoch(seed: int, number: int) -> list[int]:
        order = PackedOrder(sequences, 8, seed)
        rows = range(number * order.rows, (number + 1) * order.rows)
        return [int(i) for position in rows for i in row_of(order, position)[0]]

    found = [epoch(seed, number) for seed in range(3) for number in range(3)]
    assert len({tuple(values) for values in found}) == 9


def test_cuts_fall_elsewhere_in_each_epoch(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, [[4001]])
    order = PackedOrder(sequences, 1000, 0)
    beginnings = []
    for epoch in range(4):
        rows = range(epoch * order.rows, (epoch + 1) * order.rows)
        beginnings.append(frozenset(int(row_of(order, position)[0][0]) for position in rows))
    assert len(set(beginnings)) == 4


def test_a_plan_gives_the_rows_of_its_order(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, any_lengths(7))
    order = PackedOrder(sequences, 6, 0)
    plan = PackedPlan(order, None)
    assert plan.rows == order.rows
    batch = plan.batch(order.rows - 1, 4)  # over the border of two epochs
    for row in range(4):
        inputs, targets, segments = row_of(order, order.rows - 1 + row)
        np.testing.assert_array_equal(batch.inputs["tokens_BT"][row], inputs)
        np.testing.assert_array_equal(batch.targets[row], targets)
        if "segments_BT" in batch.inputs:
            np.testing.assert_array_equal(batch.inputs["segments_BT"][row], segments)
    assert batch.terms == int((batch.targets != IGNORED).sum())


def test_terms_of_an_epoch_are_its_pairs_however_it_is_cut_into_batches(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, any_lengths(8))
    plan = PackedPlan(PackedOrder(sequences, 4, 0), None)
    for size in (1, 2, 3, plan.rows):
        batches = [
            plan.batch(first, min(size, plan.rows - first)) for first in range(0, plan.rows, size)
        ]
        assert sum(batch.terms for batch in batches) == plan.order.pairs


def test_segments_are_left_out_where_each_row_has_one() -> None:
    tokens = np.zeros((2, 4), np.int64)
    one, two = np.array([[0] * 4, [0] * 4]), np.array([[0] * 4, [0, 0, 1, 1]])
    assert "segments_BT" not in make_batch(tokens, tokens, one).inputs
    assert "segments_BT" in make_batch(tokens, tokens, two).inputs


# Windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "stride"), [(2, 1), (2, 2), (3, 1), (8, 4), (8, 1), (8, 8), (7, 3), (500, 250)]
)
def test_windows_score_each_target_once_with_enough_before_it(
    tmp_path: Path, context: int, stride: int
) -> None:
    for seed in range(12):
        lengths = [*any_lengths(seed), [1], [2], [context], [context + 1], [context + 2]]
        sequences = sequences_of(tmp_path / str(seed), lengths)
        windows = Windows.of(sequences, context, stride)
        scored: Counter[tuple[int, int]] = Counter()
        for sequence, start, first, length in zip(
            windows.sequence, windows.start, windows.scored, windows.length, strict=True
        ):
            assert 0 <= first < length <= context
            assert start + length <= sequences.lengths[sequence] - 1
            for inside in range(first, length):
                target = int(start + inside + 1)
                scored[int(sequence), target] += 1
                # it sees `inside` inputs before the one right before it, and that one
                assert inside + 1 >= min(target, context - stride + 1)
        assert scored == Counter(
            (sequence, target)
            for sequence, length in enumerate(sequences.lengths)
            for target in range(1, int(length))
        )


def test_a_short_sequence_is_one_window(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, [[2], [9], [10]])
    windows = Windows.of(sequences, 8, 4)
    assert windows.sequence.tolist() == [0, 1, 2, 2]
    assert windows.start.tolist() == [0, 0, 0, 4]
    assert windows.length.tolist() == [1, 8, 8, 5]
    assert windows.scored.tolist() == [0, 0, 0, 4]


# Places ---------------------------------------------------------------------------------------


def test_every_byte_is_counted_at_the_last_target_of_its_unit(tmp_path: Path) -> None:
    for seed in range(20):
        lengths = any_lengths(seed)
        sequences = sequences_of(tmp_path / str(seed), lengths)
        places = Places(sequences)
        sizes = sequences.split.column("bytes")
        totals: Counter[int] = Counter()
        unit = 0
        for index, units in enumerate(lengths):
            owner = np.repeat(np.arange(unit, unit + len(units)), units)[1:]
            found, counted = places.of(index, 1, sum(units) - 1)
            np.testing.assert_array_equal(found, owner)
            for number, size in zip(found.tolist(), counted.tolist(), strict=True):
                totals[number] += size
            last = np.flatnonzero(np.diff(owner, append=-1))
            assert set(np.flatnonzero(counted)) == set(last.tolist())
            unit += len(units)
        assert [totals[number] for number in range(len(sizes))] == sizes.tolist()


def test_places_of_windows_add_up_to_the_splits_bytes(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, [*any_lengths(11), [30, 1, 1, 17]])
    places = Places(sequences)
    for context, stride in ((2, 1), (5, 2), (16, 8)):
        windows = Windows.of(sequences, context, stride)
        total = 0
        for sequence, start, first, length in zip(
            windows.sequence, windows.start, windows.scored, windows.length, strict=True
        ):
            _, sizes = places.of(int(sequence), int(start) + 1, int(length))
            total += int(sizes[first:].sum())
        assert total == int(sequences.split.column("bytes").sum())


# Masking --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([""], "bytes", 0, lambda work: work())


def left_out(tokenizer: Tokenizer, length: int, padding: int, seed: int) -> Any:
    random = np.random.default_rng(seed)
    tokens = random.integers(16, tokenizer.size, length + 1)
    inputs = np.concatenate([tokens[:-1], np.zeros(padding, np.int64)])
    targets = np.concatenate([tokens[1:], np.full(padding, IGNORED)])
    before = targets.copy()
    leave_out(inputs, targets, tokenizer, generator(seed))
    return before, inputs, targets


def test_what_is_told_is_the_token_of_its_own_place(tokenizer: Tokenizer) -> None:
    for seed in range(30):
        before, inputs, targets = left_out(tokenizer, 60, 7, seed)
        told = targets != IGNORED
        np.testing.assert_array_equal(targets[told], before[told])
        kept = ~told & (before != IGNORED)
        np.testing.assert_array_equal(inputs[kept], before[kept])


def test_shares_are_those_of_bert(tokenizer: Tokenizer) -> None:
    before, inputs, targets = left_out(tokenizer, 40_000, 0, 1)
    told = targets != IGNORED
    assert pytest.approx(0.15, abs=0.01) == MASKED_SHARE == pytest.approx(told.mean(), abs=0.01)
    masked = inputs[told] == tokenizer.mask
    kept = inputs[told] == before[told]
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1, abs=0.02)
    assert (~masked & ~kept).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_row_is_never_without_a_term_and_padding_is_never_one(
    tokenizer: Tokenizer, length: int
) -> None:
    for seed in range(60):
        before, inputs, targets = left_out(tokenizer, length, 20, seed)
        told = targets != IGNORED
        assert 1 <= told.sum() <= length
        padding = before == IGNORED
        assert not told[padding].any()
        assert (inputs[padding] == 0).all()


def test_an_empty_row_has_no_term(tokenizer: Tokenizer) -> None:
    _, _, targets = left_out(tokenizer, 0, 6, 0)
    assert (targets == IGNORED).all()


def test_a_masked_plan_is_a_function_of_position_and_differs_by_epoch(tmp_path: Path) -> None:
    tokenizer = train([""], "bytes", 0, lambda work: work())
    sequences = sequences_of(tmp_path, [[50]] * 5)
    order = PackedOrder(sequences, 12, 0)
    plan = PackedPlan(order, tokenizer)
    whole = plan.batch(0, 3 * plan.rows)
    for position in reversed(range(3 * plan.rows)):
        one = PackedPlan(PackedOrder(sequences, 12, 0), tokenizer).batch(position, 1)
        np.testing.assert_array_equal(one.targets[0], whole.targets[position])
        np.testing.assert_array_equal(
            one.inputs["tokens_BT"][0], whole.inputs["tokens_BT"][position]
        )
    rows = whole.targets.reshape(3, -1).numpy()
    told = [frozenset(row[row != IGNORED].tolist()) for row in rows]
    assert len(set(told)) == 3


# Random streams -------------------------------------------------------------------------------


def test_a_random_stream_depends_on_its_whole_key() -> None:
    keys = [(0, 0), (1, 0), (0, 1), (1, 1), (1 << 62, 3), (0, 0, 1), (0, 1, 1)]
    first = {key: tuple(generator(*key).integers(0, 1 << 40, 4).tolist()) for key in keys}
    again = {key: tuple(generator(*key).integers(0, 1 << 40, 4).tolist()) for key in keys}
    assert first == again
    assert len(set(first.values())) == len(keys)


def test_a_gpu_is_told_where_segments_begin_and_end() -> None:
    segments = np.zeros((3, 24), np.int64)
    segments[0, 7:], segments[0, 20:], segments[2, 23:] = 1, 2, 1
    tokens = np.zeros((3, 24), np.int64)
    for given, begins in ((segments, [0, 7, 20, 24, 48, 71]), (segments * 0, [0, 24, 48])):
        bounds = make_batch(tokens, tokens, given).bounds()
        assert bounds.dtype == torch.int32
        assert bounds.tolist() == begins + [72] * (32 - len(begins))
    each = np.arange(24)[None].repeat(3, 0)  # a segment for each position
    assert make_batch(tokens, tokens, each).bounds().tolist() == [*range(72)] + [72] * 56
