"""The order of rows of unlike lengths: every update is a fair sample, and little is padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bigmodel_cli.tasks import Batch
from bigmodel_cli.tasks.rows import ShuffledPlan, padded

# as messages are: 13 % of one class, which is the longer one
RANDOM = np.random.default_rng(0)
LABELS = (RANDOM.random(6000) < 0.13).astype(np.int64)
LENGTHS = np.where(LABELS, RANDOM.normal(60, 8, 6000), RANDOM.lognormal(3, 0.5, 6000))
LENGTHS = LENGTHS.clip(2, 250).astype(np.int64)


def make(examples: NDArray[np.int64], epochs: NDArray[np.int64]) -> Batch:
    tokens, _ = padded([np.full(LENGTHS[i], i) for i in examples.tolist()])
    return Batch({"tokens_BT": torch.from_numpy(tokens)}, torch.from_numpy(LABELS[examples]),
                 len(examples), {"units": examples, "epochs": epochs})  # fmt: skip


def update(plan: ShuffledPlan, first: int, count: int, most: int = 16) -> list[Batch]:
    return list(plan.parts(first, count, most))


def units(batches: list[Batch]) -> list[int]:
    return [int(unit) for batch in batches for unit in batch.extra["units"]]


@pytest.mark.parametrize("size", [8, 59, 64, 256])
def test_an_update_is_a_fair_sample_of_the_classes(size: int) -> None:
    """Its share of a class varies as that of rows drawn at random without replacement does."""
    plan = ShuffledPlan(LENGTHS, 0, make)
    firsts = range(0, plan.rows - size + 1, size)
    shares = [LABELS[units(update(plan, first, size))].mean() for first in firsts]
    wanted = LABELS.mean() * (1 - LABELS.mean()) / size
    wanted *= (plan.rows - size) / (plan.rows - 1)
    deviation = np.sqrt(2 / (len(shares) - 1))  # of a variance's estimate, as a share of it
    assert abs(np.var(shares) / wanted - 1) < 4 * deviation


@pytest.mark.parametrize("size", [8, 59, 256])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_epoch_holds_every_row_once_whatever_is_computed_at_a_time(size: int, seed: int) -> None:
    plan = ShuffledPlan(LENGTHS, seed, make)
    orders = []
    for epoch in (0, 1):
        whole = [plan.batch(epoch * plan.rows + first, min(size, plan.rows - first))
                 for first in range(0, plan.rows, size)]  # fmt: skip
        assert sorted(units(whole)) == list(range(plan.rows))
        orders.append(units(whole))
        for number, batch in enumerate(whole[:9]):
            for most in (1, 7, size):
                parts = update(plan, epoch * plan.rows + number * size, len(batch.targets), most)
                assert sorted(units(parts)) == sorted(units([batch]))
                assert max(len(part.targets) for part in parts) <= most
    assert orders[0] != orders[1]
    assert orders[0] == units([ShuffledPlan(LENGTHS, seed, make).batch(0, plan.rows)])


def test_an_update_across_epochs_has_each_row_in_its_own() -> None:
    plan = ShuffledPlan(LENGTHS, 3, make)
    parts = update(plan, plan.rows - 20, 50)
    found = {epoch: [int(unit) for part in parts
                     for unit in part.extra["units"][part.extra["epochs"] == epoch]]
             for epoch in (0, 1)}  # fmt: skip
    fresh = ShuffledPlan(LENGTHS, 3, make)
    assert sorted(found[0]) == sorted(units([fresh.batch(plan.rows - 20, 20)]))
    assert sorted(found[1]) == sorted(units([fresh.batch(plan.rows, 30)]))


def test_little_of_an_update_is_padding() -> None:
    """Where the whole update as one array would be padding for the most part."""
    plan = ShuffledPlan(LENGTHS, 0, make)
    computed = whole = 0
    for first in range(0, plan.rows, 64):
        count = min(64, plan.rows - first)
        parts = update(plan, first, count, 64)
        for part in parts:
            lengths = LENGTHS[part.extra["units"]]
            assert lengths.min() >= 0.75 * lengths.max()
        computed += sum(part.inputs["tokens_BT"].numel() for part in parts)
        whole += plan.batch(first, count).inputs["tokens_BT"].numel()
    assert LENGTHS.sum() / whole < 0.5
    assert LENGTHS.sum() / computed > 0.85


def test_rows_of_one_length_are_cut_evenly() -> None:
    plan = ShuffledPlan(np.full(100, 9), 0, make)
    assert plan.even
    assert [len(part.extra["units"]) for part in update(plan, 0, 32, 16)] == [16, 16]
