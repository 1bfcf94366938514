"""Ranking all items for a history, and judging where the next one came.

Of items with equal scores no order is right: each figure is its mean over their orders, so that a
model that gives every item the same score does no better than chance. Legend: M targets, V items,
k statistics.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigmodel_cli.tasks import Metric, Predictions, Table
from bigmodel_cli.tasks.metrics import Sums, ratio

if TYPE_CHECKING:
    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.models.sequence import SequenceModel

CUTS = (1, 5, 10, 20)
LISTED = 10  # items that an answer has by default: what coverage counts
STATISTICS = (
    "nats",
    "targets",
    "reciprocal_rank",
    *(f"hit@{k}" for k in CUTS),
    *(f"dcg@{k}" for k in CUTS),
)
SCORES = 1 << 24  # at a time
RECOMMENDED = "recommended"


@dataclass(frozen=True, slots=True)
class Query:
    """A request: the known items of the history, how many are wanted, whether known ones are, and
    how many items of the history are unknown."""

    history: list[int]
    k: int
    repeat: bool
    unknown: int


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to be predicted. units, items: (M,); seen: all items before each, one after another;
    counts: how many of these each has, (M,)."""

    units: NDArray[np.int64]
    items: NDArray[np.int64]
    seen: NDArray[np.int64]
    counts: NDArray[np.int64]

    @staticmethod
    def of(found: Sequence[tuple[int, int, NDArray[Any]]]) -> Targets:
        """Some of `targets_of`."""
        return Targets(
            np.array([unit for unit, _, _ in found]),
            np.array([history[place] for _, place, history in found]),
            np.concatenate([history[:place] for _, place, history in found]),
            np.array([place for _, place, _ in found]),
        )

    def __len__(self) -> int:
        return len(self.items)

    def chunks(self, items: int) -> Iterator[tuple[slice, Targets]]:
        """As many of them at a time as have room for the scores of all items."""
        size = max(1, SCORES // items)
        ends = np.append(0, np.cumsum(self.counts))
        for begin in range(0, len(self), size):
            part = slice(begin, min(begin + size, len(self)))
            seen = self.seen[ends[part.start] : ends[part.stop]]
            yield part, Targets(self.units[part], self.items[part], seen, self.counts[part])

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row and the item of everything that was seen."""
        return np.repeat(np.arange(len(self)), self.counts), self.seen


def targets_of(
    split: Split, limit: int | None = None
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(unit, place, history) of every item of the split that has another before it. limit: of so
    many units, evenly spread: the first ones of a file may be easier, or harder, than the rest."""
    count = len(split) if limit is None else min(limit, len(split))
    for unit in (np.arange(count) * len(split) // max(1, count)).tolist():
        before = split.values("before", unit, unit + 1)
        items = split.values("items", unit, unit + 1)
        history = np.concatenate([before, items]).astype(np.int64)
        for place in range(max(1, len(before)), len(history)):
            yield unit, place, history


def _sums(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.append(0.0, np.cumsum(values)))


@functools.lru_cache(maxsize=1)
def _gains(items: int) -> Tensor:
    """Of each statistic of a rank, the sum over the first r ranks: (k − 2, V + 1)."""
    ranks = np.arange(1, items + 1)
    rows = [1 / ranks]
    rows += [(ranks <= k).astype(float) for k in CUTS]
    rows += [np.where(ranks <= k, 1 / np.log2(ranks + 1), 0) for k in CUTS]
    return torch.stack([_sums(row) for row in rows])


class Judge:
    """Collects the statistics of targets. repeat: whether what was seen may be recommended; if not,
    a target that was seen is a miss."""

    def __init__(self, items: int, repeat: bool) -> None:
        self.items, self.repeat = items, repeat
        self._gains = _gains(items)
        self._units: list[NDArray[np.int64]] = []
        self._statistics: list[NDArray[np.float64]] = []
        self._counts = np.zeros(items, np.int64)

    def add(self, targets: Targets, scores_MV: Tensor, nats_M: Tensor) -> None:
        """Scores of all items, which are changed, and −log p of the targets (NaN: none)."""
        device = scores_MV.device
        rows = torch.arange(len(targets), device=device)
        items = torch.from_numpy(targets.items).to(device)
        if not self.repeat:
            hide(scores_MV, targets)
        own = scores_MV[rows, items][:, None]
        better = (scores_MV > own).sum(1).cpu()
        equal = (scores_MV == own).sum(1).clamp_(min=1).cpu()
        found = (self._gains[:, better + equal] - self._gains[:, better]) / equal
        found = torch.where(own[:, 0].isfinite().cpu(), found, 0.0)
        ones = torch.ones(len(targets), dtype=torch.float64)
        statistics = torch.cat([torch.stack([nats_M.double().cpu(), ones]), found])
        best = scores_MV.topk(min(LISTED, self.items))
        ranked = best.indices[best.values > -math.inf].cpu().numpy()
        self._counts += np.bincount(ranked, minlength=self.items)
        self._units.append(targets.units)
        self._statistics.append(statistics.T.numpy())

    def predictions(self) -> Predictions:
        return Predictions(
            np.concatenate([np.zeros(0, np.int64), *self._units]),
            np.concatenate([np.zeros((0, len(STATISTICS))), *self._statistics]),
            {RECOMMENDED: self._counts},
        )


def hide(scores_MV: Tensor, targets: Targets) -> None:
    """Has what was seen come last."""
    rows, seen = (torch.from_numpy(part).to(scores_MV.device) for part in targets.places())
    scores_MV[rows, seen] = -math.inf


def judge(
    split: Split,
    items: int,
    repeat: bool,
    score: Callable[[Targets], tuple[Tensor, Tensor]],
) -> Predictions:
    """score: gives the scores of all items (M, V), which are changed, and the −log p of the
    targets (M,)."""
    judge = Judge(items, repeat)
    found = targets_of(split)
    size = max(1, SCORES // items)
    while some := [*itertools.islice(found, size)]:
        targets = Targets.of(some)
        judge.add(targets, *score(targets))
    return judge.predictions()


def scores(model: SequenceModel, x_MD: Tensor) -> Tensor:
    """Logits (M, V) in fp32 where the weights are: fewer bits would make ties of different ones."""
    with torch.autocast(x_MD.device.type, enabled=False):
        return model.logits(x_MD.to(model.dtype)).float()


@torch.inference_mode()
def ahead(
    model: SequenceModel, histories: Sequence[Sequence[int]], context: int
) -> Iterator[Tensor]:
    """The logarithm of the probability of each item after each history: (V,)."""
    rows = [torch.tensor(history[-context:]) for history in histories]
    ends = torch.tensor([len(row) - 1 for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    x_BD = model.features(tokens)[torch.arange(len(rows)), ends]
    for x_D in x_BD:
        yield scores(model, x_D[None])[0].log_softmax(-1).cpu()


@torch.inference_mode()
def best(logs_V: Tensor, k: int, hidden: Sequence[int]) -> list[tuple[int, float]]:
    """The k best items that are not hidden, with their scores."""
    logs_V[hidden] = -math.inf
    found = logs_V.topk(min(k, len(logs_V)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [(item, score) for item, score in pairs if score > -math.inf]


def metrics() -> Sequence[Metric]:
    hits = 3 + CUTS.index(10)

    def coverage(counts: NDArray[Any]) -> Sums:
        return np.asarray((counts > 0).mean())

    return (
        ratio("ndcg@10", hits + len(CUTS), 1, higher_is_better=True),
        ratio("hr@10", hits, 1, higher_is_better=True),
        ratio("mrr", 2, 1, higher_is_better=True),
        ratio("loss", 0, 1, higher_is_better=False),
        Metric("coverage", True, coverage, of=RECOMMENDED, compared=False),
    )


def cuts_table(sums: NDArray[np.float64]) -> Table:
    """Hit rate and NDCG at each cut."""
    n = len(CUTS)
    hits, gains = sums[3 : 3 + n] / sums[1], sums[3 + n : 3 + 2 * n] / sums[1]
    rows: list[list[str | float]] = [
        [f"@{k}", f"{hit:.4f}", f"{gain:.4f}"] for k, hit, gain in zip(CUTS, hits, gains)
    ]
    return Table("Cuts", ["", "hit rate", "NDCG"], rows)


def popular(counts: NDArray[np.int64]) -> Callable[[Targets], tuple[Tensor, Tensor]]:
    """Every item by its share of training, one more than it has so that none is impossible."""
    logs_V = torch.from_numpy(np.log((counts + 1) / (counts.sum() + len(counts))))

    def score(targets: Targets) -> tuple[Tensor, Tensor]:
        nats = -logs_V[torch.from_numpy(targets.items)]
        return logs_V.repeat(len(targets), 1), nats

    return score


def neighbours(
    histories: Sequence[NDArray[Any]], items: int
) -> Callable[[Targets], tuple[Tensor, Tensor]]:
    """Every item by its likeness to the last one: the cosine of the sets of users that have them
    in training (Sarwar et al. 2001)."""
    from scipy.sparse import csr_matrix

    sets = [np.unique(history) for history in histories]
    ends = np.append(0, np.cumsum([len(own) for own in sets]))
    places = np.concatenate([np.zeros(0, np.int64), *sets])
    users_UV = csr_matrix((np.ones(len(places), np.float32), places, ends), (len(sets), items))
    sizes = np.maximum(np.asarray(users_UV.sum(0)).ravel(), 1)
    users_UV = csr_matrix(users_UV.multiply(1 / np.sqrt(sizes)[None]))
    items_VU = csr_matrix(users_UV.T)

    def score(targets: Targets) -> tuple[Tensor, Tensor]:
        last = targets.seen[np.cumsum(targets.counts) - 1]
        rows, back = np.unique(last, return_inverse=True)
        scores_MV = torch.from_numpy((items_VU[rows] @ users_UV).toarray().astype(np.float32))
        scores_MV[torch.arange(len(rows)), torch.from_numpy(rows)] = 0.0  # not of itself
        return scores_MV[torch.from_numpy(back)], torch.full((len(targets),), math.nan)

    return score
