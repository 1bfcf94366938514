"""Recommendation: the items that a user had, in order → those that may come next.

A unit is a user's share of a split: `items`, with the user's earlier ones in `before`. Every item
that has another before it is a target, of training or of scoring; an answer is a function of the
history alone, so that new users need no training. Legend: B rows, T items of a history, V all
items, M targets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bigmodel_cli.artifacts.manifest import fingerprint, read_json, write_json
from bigmodel_cli.errors import ArtifactError, DataError
from bigmodel_cli.models.shape import Shape
from bigmodel_cli.options import option
from bigmodel_cli.tasks import (
    Batch,
    Document,
    Metric,
    Piece,
    Predictions,
    Proof,
    Request,
    Rows,
    Table,
    Task,
    Units,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks.recommendation.catalogue import Catalogue
    from bigmodel_cli.tasks.recommendation.ranking import Query
    from bigmodel_cli.tasks.rows import ShuffledPlan

COLUMNS = ("user", "item", "timestamp", "rating")
ITEMS_FILE = "items.json"
ROWS = 64  # scored at a time
MOST_ITEMS, LONGEST_HISTORY = 1000, 1 << 20  # of an answer, and of a request
SHOWN_HISTORY = 10


@dataclass(frozen=True)
class RecommendationOptions:
    """Options of the task, by stage."""

    min_count: int = option(
        5,
        "Keep users and items with at least this many interactions (the k-core).",
        stage="prepare",
        minimum=1,
    )
    min_rating: float | None = option(
        None,
        "Drop interactions of a lower rating.",
        stage="prepare",
        minimum=-1e9,
        shown_default="ratings are not looked at",
    )
    split_by: str = option(
        "leave-one-out",
        "Hold out each user's last items (test, and before it val), or, of all users, what came "
        "last in time, in the shares of --val and --test.",
        stage="prepare",
        choices=("leave-one-out", "time"),
    )
    context: int = option(
        50,
        "Maximum items of a history; its last ones are kept.",
        stage="train",
        minimum=2,
        maximum=1 << 20,
        panel="Model",
    )
    repeat: bool = option(
        False, "Recommend items of the history as well.", stage="train", panel="Model"
    )


class Recommendation(Task):
    name = "recommendation"
    Options = RecommendationOptions
    unit_name = "users"
    measure = "interactions"
    kinds: ClassVar[Mapping[str, str]] = dict.fromkeys(COLUMNS, "value")
    defaults: ClassVar[Mapping[str, Any]] = {"cell": "gru", "dropout": 0.5}
    positions = "items"
    field = "history"
    intended_use = (
        "histories of the items that it learned from. It recommends what others had next, popular "
        "items more than rare ones, and no item that came later."
    )
    fields = ("k", "repeat")

    def __init__(self, options: Any, names: Sequence[str] = (), counts: Sequence[int] = ()) -> None:
        super().__init__(options)
        self.names, self.counts = list(names), list(counts)
        self._catalogue: Catalogue | None = None
        self._remarks: list[str] = []

    @property
    def signature(self) -> str:
        return fingerprint({"items": self.names})

    # prepare ---------------------------------------------------------------------------------

    @classmethod
    def claims(cls, columns: Mapping[str, str]) -> bool:
        from bigmodel_cli.tasks.recommendation.interactions import usual

        return bool(usual(columns, "user") and usual(columns, "item"))

    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        from bigmodel_cli.tasks.columns import named_column
        from bigmodel_cli.tasks.recommendation.interactions import usual

        chosen = {}
        for name in COLUMNS:
            needed = name != "timestamp"
            if name == "rating" and self.options.min_rating is None:
                continue
            names = usual(found, name)
            if needed or name in wanted or names:
                chosen[name] = named_column(found, name, wanted.get(name), names, where)
        return chosen

    def units(
        self, rows: Iterable[Rows], ledger: Ledger, shares: Mapping[str, float]
    ) -> Iterator[Units]:
        from bigmodel_cli.tasks.recommendation import interactions

        options = self.options
        data = interactions.collect(rows, ledger, options.min_rating)
        order, self._remarks = interactions.sifted(data, ledger, options.min_count)
        order, parts = interactions.hold_out(data, order, options.split_by, shares)
        self.names, self.counts, numbers = interactions.catalogue(data, order, parts)
        yield from interactions.histories(data, order, parts, self.names, numbers)

    def fit(
        self,
        sample: Callable[[int], Iterator[pa.RecordBatch]],
        size: int,
        wait: Callable[[Callable[[], None]], None],
    ) -> str:
        del sample, size, wait
        new = sum(count == 0 for count in self.counts)
        unseen = f", {new:,} of them not in training" if new else ""
        return f"{len(self.names):,} items{unseen}; the most popular is `{self.names[0]}`"

    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        del ledger
        import numpy as np
        import pyarrow.compute as pc

        from bigmodel_cli.artifacts.shards import Columns
        from bigmodel_cli.tasks.clean import as_array

        kind = np.uint16 if len(self.names) <= 1 << 16 else np.uint32
        columns = {name: units.column(name) for name in ("items", "before")}
        values = {name: as_array(column.flatten()) for name, column in columns.items()}
        lengths = {name: as_array(pc.list_value_length(part)) for name, part in columns.items()}
        small = {name: part.astype(kind) for name, part in values.items()}
        return Columns(len(units), small, lengths)

    def remarks(self) -> list[str]:
        return self._remarks

    def save(self, folder: Path) -> None:
        write_json(folder / ITEMS_FILE, {"items": self.names, "counts": self.counts})

    @classmethod
    def load(cls, folder: Path, options: Any) -> Self:
        document = read_json(folder / ITEMS_FILE, "preprocessor", "make it again")
        names, counts = document.get("items"), document.get("counts")
        if (
            not isinstance(names, list)
            or not isinstance(counts, list)
            or not 0 < len(names) == len(counts)
            or set(map(type, names)) != {str}
            or set(map(type, counts)) != {int}
            or len({*names}) < len(names)
            or not 0 <= min(counts) <= max(counts) < 1 << 53
        ):
            raise ArtifactError(f"the items in `{folder}` are corrupt", "make them again")
        return cls(options, names, counts)

    # train -----------------------------------------------------------------------------------

    def shape(self) -> Shape:
        return Shape(len(self.names), self.options.context, causal=True)

    def plan(self, split: Split, seed: int) -> ShuffledPlan:
        """A history that is longer than the context is cut into pieces with as many targets each,
        and each piece reaches back as far as the context does."""
        import numpy as np

        from bigmodel_cli.tasks.rows import ShuffledPlan

        T = self.options.context
        pairs = np.maximum(split.lengths("items") - 1, 0)
        pieces = -(-pairs // T)
        units = np.repeat(np.arange(len(pairs)), pieces)
        number = np.arange(len(units)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        firsts = number * pairs[units] // pieces[units]
        ends = (number + 1) * pairs[units] // pieces[units]
        begins = np.maximum(0, ends - T)

        def make(chosen: NDArray[np.int64], epochs: NDArray[np.int64]) -> Batch:
            del epochs
            rows = []
            for unit, begin, first, end in zip(
                units[chosen].tolist(),
                begins[chosen].tolist(),
                firsts[chosen].tolist(),
                ends[chosen].tolist(),
            ):
                items = split.values("items", unit, unit + 1)[begin : end + 1]
                rows.append((items[:-1], items[1:], first - begin))
            return self._batch(rows)

        return ShuffledPlan(ends - begins, seed, make)

    @staticmethod
    def _batch(
        rows: Sequence[tuple[NDArray[Any], NDArray[Any], int]], **extra: NDArray[Any]
    ) -> Batch:
        """Rows of inputs, targets, and the first of these that counts; what is causal never sees
        the padding on its right."""
        import torch

        from bigmodel_cli.tasks.packing import IGNORED
        from bigmodel_cli.tasks.rows import padded

        inputs, _ = padded([row[0] for row in rows])
        targets, _ = padded([row[1] for row in rows], IGNORED)
        for row, (*_, first) in enumerate(rows):
            targets[row, :first] = IGNORED
        terms = int((targets != IGNORED).sum())
        named = {"tokens_BT": torch.from_numpy(inputs)}
        return Batch(named, torch.from_numpy(targets), terms, extra)

    def loss_sum(self, model: SequenceModel, batch: Batch) -> Tensor:
        return model.loss_sum(targets_BT=batch.targets, **batch.inputs)

    def validation_rows(self) -> int:
        return 10_000

    # evaluate --------------------------------------------------------------------------------

    @property
    def statistics(self) -> tuple[str, ...]:
        from bigmodel_cli.tasks.recommendation.ranking import STATISTICS

        return STATISTICS

    def contents(self, split: Split) -> Iterator[bytes]:
        for unit in range(len(split)):
            fields = (split.values(name, unit, unit + 1).tolist() for name in ("before", "items"))
            named = [[self.names[item] for item in items] for items in fields]
            yield json.dumps(named).encode()

    def metrics(self) -> Sequence[Metric]:
        from bigmodel_cli.tasks.recommendation.ranking import metrics

        return metrics()

    def tables(
        self, sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
    ) -> list[Table]:
        from bigmodel_cli.tasks.recommendation.ranking import cuts_table

        del counts
        return [cuts_table(sums)]

    def scoring(self, split: Split, rows: int, limit: int | None = None) -> Iterator[Batch]:
        """Each target is a row of its own: the last items before it."""
        import numpy as np

        from bigmodel_cli.tasks.recommendation.ranking import Targets, targets_of
        from bigmodel_cli.tasks.rows import by_length

        found = [*targets_of(split, limit)]
        T = self.options.context
        lengths = np.array([min(place, T) for _, place, _ in found], np.int64)
        for chosen in by_length(lengths, max(rows, ROWS), None):
            part = [found[i] for i in chosen.tolist()]
            targets = Targets.of(part)
            cut = [
                (
                    history[max(0, place - T) : place],
                    history[max(1, place - T + 1) : place + 1],
                    min(place, T) - 1,
                )
                for _, place, history in part
            ]
            yield self._batch(cut, units=targets.units, seen=targets.seen, counts=targets.counts)

    def predict(self, model: SequenceModel, batch: Batch) -> Predictions:
        from bigmodel_cli.tasks.recommendation.ranking import Judge, Targets, scores

        real = batch.targets >= 0
        x_MD = model.features(batch.inputs["tokens_BT"])[real]
        items_M = batch.targets[real]
        extra = batch.extra
        targets = Targets(extra["units"], items_M.cpu().numpy(), extra["seen"], extra["counts"])
        judge = Judge(len(self.names), self.options.repeat)
        for part, some in targets.chunks(len(self.names)):
            scores_MV = scores(model, x_MD[part])
            own_M = scores_MV.gather(1, items_M[part, None])[:, 0]
            judge.add(some, scores_MV, scores_MV.logsumexp(1) - own_M)
        return judge.predictions()

    def protocol(self) -> dict[str, Any]:
        options = self.options
        return {
            "split_by": options.split_by,
            "min_count": options.min_count,
            "min_rating": options.min_rating,
            "candidates": len(self.names),
            "seen": "may come" if options.repeat else "left out; a target among it misses",
            "ties": "mean over their orders",
            "ties_in_time": "order of the files",
            "targets": "all with an item before them",
        }

    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        import numpy as np

        from bigmodel_cli.tasks.recommendation import ranking

        V = len(self.names)
        known = [train.values("items", unit, unit + 1) for unit in range(len(train))]
        counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *known]), minlength=V)
        for name, score in (
            ("most_popular", ranking.popular(counts)),
            ("item_knn", ranking.neighbours(known, V)),
        ):
            yield name, ranking.judge(split, V, self.options.repeat, score)

    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        from bigmodel_cli.tasks.packing import SAMPLES, generator
        from bigmodel_cli.tasks.recommendation.ranking import Query, targets_of

        chosen = generator(SAMPLES, seed).permutation(len(split))[:count].tolist()
        found: list[dict[str, str]] = []
        for unit, place, history in targets_of(split):
            if unit not in chosen:
                continue
            chosen.remove(unit)
            query = Query(history[:place].tolist(), 5, self.options.repeat, 0)
            answer = next(last for *_, last in self.answer(model, [Request(query)]) if last)
            shown = [self.names[i] for i in history[:place][-SHOWN_HISTORY:].tolist()]
            found.append(
                {
                    "prompt": ", ".join(shown) + "\n",
                    "output": ", ".join(item["item"] for item in answer["items"]),
                    "reference": self.names[int(history[place])],
                }
            )
        return found

    def proof(self, split: Split, count: int) -> Proof:
        import itertools

        import torch

        from bigmodel_cli.tasks.recommendation.ranking import targets_of

        T = self.options.context
        found = itertools.islice(targets_of(split), count)
        rows = [history[max(0, place - T) : place] for _, place, history in found]
        return Proof([{"tokens_BT": torch.from_numpy(row)[None]} for row in rows])

    # predict ---------------------------------------------------------------------------------

    def request(self, document: Document) -> Request:
        from bigmodel_cli.tasks.recommendation.catalogue import Catalogue
        from bigmodel_cli.tasks.recommendation.ranking import Query
        from bigmodel_cli.tasks.requests import number_field, shown

        history = document.get("history")
        if isinstance(history, str):
            history = [part for part in history.split(",") if part.strip()]
        if not isinstance(history, list) or not all(
            isinstance(item, str | int | float) and not isinstance(item, bool) for item in history
        ):
            raise DataError(
                f"`history` must be a list of items, but is `{shown(history)}`",
                'for example {"history": ["item", "item"], "k": 10}, the latest item last',
            )
        if len(history) > LONGEST_HISTORY:
            raise DataError(f"`history` has {len(history):,} items, more than {LONGEST_HISTORY:,}")
        repeat = document.get("repeat")
        if not isinstance(repeat, bool | None):
            raise DataError(f"`repeat` must be true or false, but is `{shown(repeat)}`")
        self._catalogue = self._catalogue or Catalogue(self.names)
        known = self._catalogue.known(history)
        k = int(number_field(document, "k", 10, 1, MOST_ITEMS, whole=True))
        repeat = self.options.repeat if repeat is None else repeat
        return Request(Query(known, k, repeat, len(history) - len(known)))

    def answer(self, model: SequenceModel, requests: Sequence[Request]) -> Iterator[Piece]:
        """The likeliest items, with the logarithms of their probabilities; to a history without a
        known item the most popular ones, with those of their shares of training. What is unknown
        of the history, and what is before the last items that the model reads, is counted."""
        import math

        from bigmodel_cli.tasks.recommendation.ranking import ahead, best

        queries: list[Query] = [request.prompt for request in requests]
        total = sum(self.counts) + len(self.counts)
        found: dict[int, list[tuple[int, float]]] = {}
        known = [index for index, query in enumerate(queries) if query.history]
        for first in range(0, len(known), ROWS):
            part = known[first : first + ROWS]
            histories = [queries[index].history for index in part]
            for index, logs_V in zip(part, ahead(model, histories, self.options.context)):
                query = queries[index]
                found[index] = best(logs_V, query.k, [] if query.repeat else query.history)
        for index, query in enumerate(queries):
            fallback = index not in found
            ranked = (
                found[index]
                if not fallback
                else [
                    (place, math.log((count + 1) / total))
                    for place, count in enumerate(self.counts[: query.k])
                ]
            )
            items = [{"item": self.names[i], "score": round(score, 4)} for i, score in ranked]
            shown = "\n".join(f"{score:9.4f}  {self.names[i]}" for i, score in ranked)
            note = "no known item in the history: the most popular\n" if fallback else ""
            whole = {"items": items, "fallback": fallback}
            if query.unknown:
                whole["unknown"] = query.unknown
                note += f"unknown items of the history, left out: {query.unknown:,}\n"
            if (rest := len(query.history) - self.options.context) > 0:
                whole["truncated"] = rest
                note += f"the first {rest:,} items of the history were not read\n"
            yield index, note + shown, whole
