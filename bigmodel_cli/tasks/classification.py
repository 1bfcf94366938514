"""What the tasks that tell classes have in common: labels, metrics, the majority baseline.

Legend: B rows, C classes, k statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigmodel_cli.artifacts.manifest import read_json, write_json
from bigmodel_cli.errors import ArtifactError, DataError
from bigmodel_cli.options import option
from bigmodel_cli.tasks import Batch, Metric, Predictions, Request, Table, Task

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

LABEL_NAMES = ("label", "labels", "class", "category", "intent", "sentiment")
LABELS_FILE = "labels.json"
MOST_CLASSES = 4096
LONGEST_LABEL = 256  # bytes; what is longer is no label
BINS = 15  # of confidence, for the calibration error
SHOWN_CLASSES = 20  # of which a confusion matrix is shown whole; of more, the most frequent ones
ROWS = 64  # scored at a time


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
        self._counts: dict[str, int] = {}  # of rows with each label, while they are read
        self._weights: Tensor | None = None

    # prepare ---------------------------------------------------------------------------------

    def labelled(self, units: Units, ledger: Ledger) -> Units | None:
        """Units with a column `label`: those without one are dropped, the others' are counted,
        and each label is split by itself."""
        import numpy as np
        import pyarrow.compute as pc

        from bigmodel_cli.tasks import Units
        from bigmodel_cli.tasks.clean import as_array, as_column

        labels = pc.utf8_trim_whitespace(pc.fill_null(units.table.column("label"), ""))
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
        return Units(table, units.keys.take(chosen), units.sizes[places], units.split,
                     lambda i: units.where(int(places[i])), strata=labels)  # fmt: skip

    def fit_labels(self) -> str:
        """Makes the list of classes from what was counted. Raises DataError."""
        self.labels = sorted(self._counts)
        rows = sum(self._counts.values())
        if len(self.labels) < 2:
            raise DataError(
                f"there is only one label, {self.labels}, so nothing can be told apart",
                "give rows of several classes, or name the right column: --column label=NAME",
            )
        if len(self.labels) > min(MOST_CLASSES, max(2, rows // 2)):
            raise DataError(
                f"{len(self.labels):,} different labels in {rows:,} rows are no classes",
                "name the right column: --column label=NAME",
            )
        rarest = min(self.labels, key=lambda name: (self._counts[name], name))
        return f"{len(self.labels):,} classes, the rarest `{rarest}` with {self._counts[rarest]:,}"

    def codes(self, labels: pa.Array) -> NDArray[Any]:
        """The class of each label: (n,)."""
        import numpy as np

        places = {name: place for place, name in enumerate(self.labels)}
        return np.array([places[name] for name in labels.to_pylist()], np.uint16)

    @property
    def answers_with(self) -> str:
        return json.dumps(self.labels)

    def save_labels(self, folder: Path) -> None:
        write_json(folder / LABELS_FILE, {"labels": self.labels})

    @staticmethod
    def read_labels(folder: Path) -> list[str]:
        document = read_json(folder / LABELS_FILE, "codec", "make it again")
        labels = document.get("labels")
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
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
        per_class = [f"{kind}:{name}" for kind in ("hit", "wrong", "missed")
                     for name in self.labels]  # fmt: skip
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
        rows, told = np.arange(B), logs.argmax(-1)
        right = told == classes_B
        confidence = np.exp(logs[rows, told])
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        statistics = np.zeros((B, 3 + 3 * C + 2 * BINS))
        statistics[:, 0] = -logs[rows, classes_B]
        statistics[:, 1] = 1
        statistics[:, 2] = right
        statistics[rows, 3 + told + np.where(right, 0, C)] = 1
        statistics[rows[~right], 3 + 2 * C + classes_B[~right]] = 1
        statistics[rows, 3 + 3 * C + bins] = confidence
        statistics[rows, 3 + 3 * C + BINS + bins] = right
        confusion = np.zeros((C, C), np.int64)
        np.add.at(confusion, (classes_B, told), 1)
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
            [name, *(_shown(part[i]) for part in (precision, recall, score)),
             f"{hit[i] + missed[i]:,.0f}"]
            for i, name in enumerate(self.labels)
        ]  # fmt: skip
        tables = [Table("Classes", ["class", "precision", "recall", "F1", "rows"], rows)]
        confusion = counts["confusion"]
        if C <= SHOWN_CLASSES:
            body: list[list[str | float]] = [
                [name, *(f"{count:,}" for count in confusion[i].tolist())]
                for i, name in enumerate(self.labels)
            ]
            tables.append(Table("Confusion", ["is \\ was told", *self.labels], body))
        else:
            off = confusion * (1 - np.eye(C, dtype=np.int64))
            order = np.argsort(-off, axis=None, kind="stable")[:SHOWN_CLASSES]
            pairs = [divmod(int(place), C) for place in order if off.flat[place]]
            body = [[self.labels[a], self.labels[b], f"{off[a, b]:,}"] for a, b in pairs]
            tables.append(Table("Most frequent confusions", ["is", "was told", "rows"], body))
        return tables

    def protocol(self) -> dict[str, Any]:
        return {"classes": self.labels}

    def majority(self, train: Split, split: Split) -> tuple[str, Predictions]:
        """The most frequent class, with the probabilities that classes have in training."""
        import numpy as np

        known = np.bincount(train.column("label"), minlength=len(self.labels))
        logs = np.log((known + 1) / (known.sum() + len(known)))
        classes = split.column("label")
        answers = np.broadcast_to(logs, (len(classes), len(logs)))
        return "majority", self.judge(answers, classes, np.arange(len(classes)))

    # predict ---------------------------------------------------------------------------------

    def told(
        self, model: SequenceModel, requests: Sequence[Request],
        inputs: Callable[[Sequence[Request]], Mapping[str, Tensor]],
    ) -> Iterator[tuple[int, str, dict[str, Any] | None]]:  # fmt: skip
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
    is nor was told."""
    import numpy as np

    hit, wrong, missed = np.split(sums[..., 3 : 3 + 3 * classes], 3, -1)
    with np.errstate(invalid="ignore"):
        return 2 * hit / (2 * hit + wrong + missed)


def _shown(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"


def shown_label(answer: Mapping[str, Any]) -> str:
    """An answer for a sample: the label with its probability."""
    return f"{answer['label']} ({json.dumps(answer['probabilities'][answer['label']])})"
