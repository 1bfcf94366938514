"""What the tasks that tell classes have in common: labels, metrics, the majority baseline.

Legend: B rows, C classes, k statistics.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from bigmodel_cli.artifacts.manifest import read_json, write_json
from bigmodel_cli.errors import ArtifactError, DataError
from bigmodel_cli.options import option
from bigmodel_cli.tasks import Batch, Document, Metric, Piece, Predictions, Request, Table, Task

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks import Units

LABELS_FILE = "labels.json"
MOST_CLASSES = 4096
LONGEST_LABEL = 256  # bytes; what is longer is no label
BINS = 15  # of confidence, for the calibration error
SHOWN_CLASSES = 20  # of which a confusion matrix is shown whole; of more, the most frequent ones
SHOWN_NAMES, SHOWN_REMARKS = 8, 5  # labels, and warnings of labels that are nearly alike
UNSEEN = ("Cc", "Cf")  # categories of characters that nobody sees
ROWS = 64  # scored at a time
JUDGED = 1 << 22  # statistics of a baseline's answers at a time


@dataclass(frozen=True)
class ClassOptions:
    """How classes are learned, of `train`."""

    class_weights: str = option(
        "none",
        "balanced: rare classes count as much as frequent ones.",
        stage="train",
        choices=("none", "balanced"),
        panel="Optimization",
    )


class Classification(Task):
    """A row is of one class. The first statistics are those of every class task."""

    measure = "tokens"
    options: Any

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.labels: list[str] = []
        self.label_column = "label"  # what the source calls it
        self.untrained: list[str] = []  # labels that no training row has
        self._trimmed = 0  # rows whose label had spaces around it
        self._counts: dict[str, int] = {}  # of rows with each label, while they are read
        self._weights: Tensor | None = None

    # prepare ---------------------------------------------------------------------------------

    def labelled(self, units: Units, ledger: Ledger) -> Units | None:
        """Units with a column `label`: those without one are dropped, the others' are counted,
        and each label is split by itself."""
        import numpy as np
        import pyarrow.compute as pc

        from bigmodel_cli.tasks import Units
        from bigmodel_cli.tasks.clean import as_array, as_column, trimmed

        given = pc.fill_null(units.table.column("label"), "")
        labels = trimmed(given)
        self._trimmed += int(as_array(pc.not_equal(labels, given)).sum())
        none = as_array(pc.equal(pc.binary_length(labels), 0))
        long = as_array(pc.greater(pc.binary_length(labels), LONGEST_LABEL))
        for reason, which in (("no_label", none), ("long_label", long)):
            for index in np.flatnonzero(which).tolist():
                ledger.drop(reason, int(units.sizes[index]), units.where(index))
        places = np.flatnonzero(~none & ~long)
        if not len(places):
            return None
        chosen = as_column(places)
        labels = labels.take(chosen)
        for name in labels.to_pylist():
            self._counts[name] = self._counts.get(name, 0) + 1
        position = units.table.schema.get_field_index("label")
        table = units.table.take(chosen).set_column(position, "label", labels)
        return Units(
            table,
            units.keys.take(chosen),
            units.sizes[places],
            units.split,
            lambda i: units.where(int(places[i])),
            strata=labels,
        )

    def check_labels(self, ledger: Ledger) -> None:
        """Raises DataError where the labels of all rows are no classes."""
        rows = sum(self._counts.values())
        if not rows:
            return
        column = f"the column `{self.label_column}`"
        hint = "name the column that holds the classes: --column label=NAME"
        if len(self._counts) < 2:
            lost = ", ".join(f"{entry.rows:,} {why}" for why, entry in ledger.dropped.items())
            raise DataError(
                f"there is only one label in {column}: {rows:,} rows with "
                f"`{next(iter(self._counts))}`" + (f"; dropped were {lost}" if lost else ""),
                f"give rows of at least two classes, or {hint}",
            )
        if len(self._counts) > min(MOST_CLASSES, max(2, rows // 2)):
            raise DataError(
                f"{column} has {len(self._counts):,} different labels in {rows:,} rows: too many "
                f"classes to learn (at most {MOST_CLASSES:,}, with two rows each on average)",
                f"{hint}, or leave the labels out: --task language",
            )

    def fit_labels(self, sample: Callable[[int], Iterator[pa.RecordBatch]], size: int) -> str:
        """Makes the list of classes from what was counted, beside the labels of the train split,
        which has `size` bytes. Raises DataError where there is only one."""
        trained = Counter(
            name for part in sample(size) for name in part.column("label").to_pylist()
        )
        self.labels = sorted(self._counts)
        self.untrained = [name for name in self.labels if name not in trained]
        if len(trained) < 2:
            raise DataError(
                f"the train split has only one label, `{next(iter(trained))}`: "
                f"{_named(self.untrained)} come only in rows that are held out or were dropped",
                "give training rows of at least two classes",
            )
        single = sum(count == 1 for count in self._counts.values())
        alone = f", {single:,} of them with a single row, which is not held out" if single else ""
        rarest = min(trained, key=lambda name: (trained[name], name))
        return (
            f"{len(self.labels):,} classes{alone}, the rarest in training `{rarest}` with "
            f"{trained[rarest]:,}"
        )

    def label_remarks(self) -> list[str]:
        """What a person should know of the labels."""
        alike: dict[str, list[str]] = {}
        for name in self.labels:
            plain = unicodedata.normalize("NFKC", name).casefold()
            seen = (c for c in plain if not c.isspace() and unicodedata.category(c) not in UNSEEN)
            alike.setdefault("".join(seen), []).append(name)
        remarks = [
            f"the labels {_named(names)} differ only in case, spaces, unseen characters or the "
            "width of characters, but are different classes"
            for names in alike.values()
            if len(names) > 1
        ]
        if len(remarks) > SHOWN_REMARKS:
            more = len(remarks) - SHOWN_REMARKS
            remarks[SHOWN_REMARKS:] = [f"and {more:,} more groups of labels that are nearly alike"]
        if self._trimmed:
            remarks.append(f"spaces around the labels of {self._trimmed:,} rows were cut off")
        if self.untrained:
            remarks.append(
                f"no training row has the labels {_named(self.untrained)}: a model never answers "
                "with them, and is wrong on each of their held-out rows"
            )
        return remarks

    def codes(self, labels: pa.Array) -> NDArray[Any]:
        """The class of each label: (n,)."""
        import numpy as np

        places = {name: place for place, name in enumerate(self.labels)}
        return np.array([places[name] for name in labels.to_pylist()], np.uint16)

    @property
    def answers_with(self) -> str:
        return json.dumps(self.labels)

    def save_labels(self, folder: Path) -> None:
        untrained = {"untrained": self.untrained} if self.untrained else {}
        write_json(folder / LABELS_FILE, {"labels": self.labels, **untrained})

    def read_untrained(self, folder: Path) -> Self:
        """Takes the labels without a training row from a folder whose labels were read."""
        document = read_json(folder / LABELS_FILE, "preprocessor", "make it again")
        untrained = document.get("untrained", [])
        if not isinstance(untrained, list):
            raise ArtifactError(f"the labels in `{folder}` are corrupt", "make them again")
        self.untrained = [name for name in self.labels if name in untrained]
        return self

    @staticmethod
    def read_labels(folder: Path) -> list[str]:
        document = read_json(folder / LABELS_FILE, "preprocessor", "make it again")
        labels = document.get("labels")
        if (
            not isinstance(labels, list)
            or not all(isinstance(name, str) for name in labels)
            or not 1 < len({*labels}) == len(labels)
        ):
            raise ArtifactError(f"the labels in `{folder}` are corrupt", "make them again")
        return labels

    # train -----------------------------------------------------------------------------------

    def weigh(self, split: Split) -> None:
        """Has the classes of a train split weigh as the options say: 1 on the mean of its rows."""
        import numpy as np
        import torch

        if self.options.class_weights == "balanced":
            counts = np.bincount(split.column("label"), minlength=len(self.labels))
            weights = len(split) / (np.maximum(counts, 1) * max(1, np.count_nonzero(counts)))
            self._weights = torch.from_numpy(weights.astype(np.float32))

    def loss_sum(self, model: SequenceModel, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        logits_BC = model(**batch.inputs).float()
        weights = None if self._weights is None else self._weights.to(logits_BC.device)
        return F.cross_entropy(logits_BC, batch.targets, weights, reduction="sum")

    def validation_rows(self) -> int:
        return 2048

    # evaluate --------------------------------------------------------------------------------

    @property
    def statistics(self) -> tuple[str, ...]:
        per_class = [
            f"{kind}:{name}" for kind in ("hit", "wrong", "missed") for name in self.labels
        ]
        per_bin = [f"{kind}:{bin_}" for kind in ("confidence", "correct") for bin_ in range(BINS)]
        return ("nats", "rows", "correct", *per_class, *per_bin)

    def metrics(self) -> Sequence[Metric]:
        import numpy as np

        from bigmodel_cli.tasks.metrics import Sums, ratio

        C = len(self.labels)

        def macro_f1(sums: Sums) -> Sums:
            with np.errstate(invalid="ignore"):
                mean: Sums = np.nanmean(_f1(sums, C), -1)
            return mean

        def calibration_error(sums: Sums) -> Sums:
            sure, right = np.split(sums[..., 3 + 3 * C :], 2, -1)
            with np.errstate(invalid="ignore"):
                error: Sums = np.abs(sure - right).sum(-1) / sums[..., 1]
            return error

        return (
            ratio("accuracy", 2, 1, higher_is_better=True),
            Metric("macro_f1", True, macro_f1),
            ratio("loss", 0, 1, higher_is_better=False),
            Metric("calibration_error", False, calibration_error, compared=False),
        )

    def judge(
        self, logits_BC: NDArray[np.floating[Any]], classes_B: NDArray[Any], units_B: NDArray[Any]
    ) -> Predictions:
        """The statistics of some answers, given as logits or logarithms of probabilities."""
        import numpy as np

        B, C = logits_BC.shape
        logits = logits_BC.astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        rows, predicted = np.arange(B), logs.argmax(-1)
        right = predicted == classes_B
        confidence = np.exp(logs[rows, predicted])
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        statistics = np.zeros((B, 3 + 3 * C + 2 * BINS))
        statistics[:, 0] = -logs[rows, classes_B]
        statistics[:, 1] = 1
        statistics[:, 2] = right
        statistics[rows, 3 + predicted + np.where(right, 0, C)] = 1
        statistics[rows[~right], 3 + 2 * C + classes_B[~right]] = 1
        statistics[rows, 3 + 3 * C + bins] = confidence
        statistics[rows, 3 + 3 * C + BINS + bins] = right
        confusion = np.zeros((C, C), np.int64)
        np.add.at(confusion, (classes_B, predicted), 1)
        return Predictions(units_B.astype(np.int64), statistics, {"confusion": confusion})

    def predict(self, model: SequenceModel, batch: Batch) -> Predictions:
        logits_BC = model(**batch.inputs).float().cpu().numpy()
        return self.judge(logits_BC, batch.targets.cpu().numpy(), batch.extra["units"])

    def tables(
        self, sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
    ) -> list[Table]:
        import numpy as np

        C = len(self.labels)
        hit, wrong, missed = sums[3 : 3 + 3 * C].reshape(3, C)
        with np.errstate(invalid="ignore"):
            precision, recall = hit / (hit + wrong), hit / (hit + missed)
        score = _f1(sums, C)
        rows: list[list[str | float]] = [
            [
                name,
                *(_shown(part[i]) for part in (precision, recall, score)),
                f"{hit[i] + missed[i]:,.0f}",
            ]
            for i, name in enumerate(self.labels)
        ]
        tables = [Table("Classes", ["class", "precision", "recall", "F1", "rows"], rows)]
        if self.untrained:
            scored = {name: hit[i] + missed[i] for i, name in enumerate(self.labels)}
            header = ["class", "rows", "accuracy"]
            none: list[list[str | float]] = [
                [name, f"{scored[name]:,.0f}", _shown(0.0 if scored[name] else float("nan"))]
                for name in self.untrained
            ]
            tables.append(Table("Classes without a training row", header, none))
        confusion = counts["confusion"]
        if C <= SHOWN_CLASSES:
            body: list[list[str | float]] = [
                [name, *(f"{count:,}" for count in confusion[i].tolist())]
                for i, name in enumerate(self.labels)
            ]
            tables.append(Table("Confusion", ["true \\ predicted", *self.labels], body))
        else:
            off = confusion * (1 - np.eye(C, dtype=np.int64))
            order = np.argsort(-off, axis=None, kind="stable")[:SHOWN_CLASSES]
            pairs = [divmod(int(place), C) for place in order if off.flat[place]]
            body = [[self.labels[a], self.labels[b], f"{off[a, b]:,}"] for a, b in pairs]
            tables.append(Table("Most frequent confusions", ["true", "predicted", "rows"], body))
        return tables

    def protocol(self) -> dict[str, Any]:
        return {"classes": self.labels}

    def judged(
        self, name: str, logits_BC: NDArray[np.floating[Any]], split: Split
    ) -> Iterator[tuple[str, Predictions]]:
        """A baseline's answers to a whole split, in parts: of many classes each row has many
        statistics."""
        import numpy as np

        classes = split.column("label")
        size = max(ROWS, JUDGED // len(self.statistics))
        for first in range(0, len(split), size):
            part = np.arange(first, min(first + size, len(split)))
            yield name, self.judge(logits_BC[part], classes[part], part)

    def majority(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        """The most frequent class, with the probabilities that classes have in training."""
        import numpy as np

        known = np.bincount(train.column("label"), minlength=len(self.labels))
        logs = np.log((known + 1) / (known.sum() + len(known)))
        yield from self.judged("majority", np.broadcast_to(logs, (len(split), len(logs))), split)

    # predict ---------------------------------------------------------------------------------

    def classify(
        self,
        model: SequenceModel,
        requests: Sequence[Request],
        inputs: Callable[[Sequence[Request]], Mapping[str, Tensor]],
    ) -> Iterator[Piece]:
        """Answers with the label, and the probability of each."""
        import torch

        with torch.inference_mode():
            given = {name: part.to(model.device) for name, part in inputs(requests).items()}
            probabilities_BC = model(**given).float().softmax(-1).cpu()
        for index, row in enumerate(probabilities_BC):
            order = row.argsort(descending=True, stable=True).tolist()
            chances = {self.labels[place]: round(float(row[place]), 6) for place in order}
            best = self.labels[order[0]]
            shown = "\n".join(f"{chance:.4f}  {name}" for name, chance in chances.items())
            yield index, shown, {"label": best, "probabilities": chances}


def _f1(sums: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """(…, k) → (…, C): the harmonic mean of precision and recall; no number where a class neither
    is nor was predicted."""
    import numpy as np

    hit, wrong, missed = np.split(sums[..., 3 : 3 + 3 * classes], 3, -1)
    with np.errstate(invalid="ignore"):
        return 2 * hit / (2 * hit + wrong + missed)


def _named(names: Sequence[str]) -> str:
    """Names in backticks, the first ones of many."""
    shown = ", ".join(f"`{name}`" for name in names[:SHOWN_NAMES])
    return shown + (f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else "")


def _shown(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"


def shown_label(answer: Document) -> str:
    """An answer for a sample: the label with its probability."""
    return f"{answer['label']} ({json.dumps(answer['probabilities'][answer['label']])})"
