"""evaluate: checkpoint → verdict. Scores a split, beside the baselines, and judges the gates."""

from __future__ import annotations

import dataclasses
import itertools
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli import __version__
from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.workdir import Run, Workdir, lock
from bigmodel_cli.config import EvaluateConfig
from bigmodel_cli.errors import ArtifactError, BigmodelError, DataError, FormatError, StoppedError
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.options import identity
from bigmodel_cli.tasks import Metric, Predictions, Task, load_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.models.sequence import SequenceModel

ROWS = 16
CODEC_HINT = "train again: bigmodel train --restart"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The evaluation, and whether the scores were up to date already (gates never are)."""

    document: dict[str, Any]
    fresh: bool


def run(config: EvaluateConfig, workdir: Workdir, name: str, context: Context) -> Evaluated:
    """Scores a checkpoint; the gates' verdicts are in the document, for the caller to act on.

    Raises UsageError, DataError, ArtifactError.
    """
    place = workdir.run(name)
    known = place.read_config()
    data = workdir.read_data()
    if known["data_fingerprint"] != data["fingerprint"]:
        raise ArtifactError(
            f"run `{name}` was trained on other data than are in `{workdir.data}` now",
            "train on these: bigmodel train --restart, or another --run",
        )
    if not data["splits"][config.split]["shards"]:
        raise DataError(
            f"the {config.split} split is empty", "prepare with --test 0.05, or choose --split val"
        )
    from bigmodel_cli.evaluate import gates

    manifest.check_files(place.codec, known["codec"], "codec", CODEC_HINT)
    task = load_task(place.codec, CODEC_HINT)
    previous = None
    if config.against:
        previous = manifest.read_json(
            Path(config.against), "earlier evaluation", "give --against an evaluation.json"
        )
    metrics = (*task.answer_metrics(), *task.metrics())
    rules = gates.parse(config.require, metrics, previous is not None)
    with lock(place.folder):
        if place.read_config() != known:
            raise StoppedError(f"run `{name}` was begun anew meanwhile", "run it again")
        path, state = checkpoint.find(place.checkpoints, config.checkpoint)
        recipe = {
            "stage": "evaluate",
            "weights": state["files"][checkpoint.MODEL]["sha256"],
            "parent": data["fingerprint"],
            "options": {k: v for k, v in identity(config).items() if k != "checkpoint"},
        }
        print_ = manifest.fingerprint(recipe)
        document = _old(place, print_)
        document = None if config.force else document
        fresh = document is not None
        shown = document["gates"] if document else None
        if document is None:
            document = _score(config, task, path, known, data, workdir, context)
            document |= {"fingerprint": print_, "weights": recipe["weights"]}
        document["gates"] = gates.judge(rules, metrics, document, previous)
        if shown != document["gates"] or not place.report.exists():
            from bigmodel_cli.evaluate.report import html

            manifest.write_atomic(place.report, html(document, data, place).encode())
        manifest.write_json(place.evaluation, document)  # last: it says that both are there
    return Evaluated(document, fresh)


def _old(place: Run, fingerprint: str) -> dict[str, Any] | None:
    try:
        document = manifest.read_json(place.evaluation, "evaluation", "")
    except FormatError:
        raise
    except BigmodelError:
        return None
    document.pop("schema")
    return document if document.get("fingerprint") == fingerprint else None


def _score(
    config: EvaluateConfig, task: Task, path: Path, known: Mapping[str, Any],
    data: Mapping[str, Any], workdir: Workdir, context: Context,
) -> dict[str, Any]:  # fmt: skip
    context.emit(Progress("load", 0, None, ""))
    import numpy as np
    import torch

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.evaluate.intervals import bootstrap
    from bigmodel_cli.models.device import autocast, set_up
    from bigmodel_cli.models.sequence import build
    from bigmodel_cli.models.sizes import ModelConfig

    device = set_up(config.device, config.threads)
    weights = checkpoint.load_tensors(path / checkpoint.MODEL)
    model = build(ModelConfig.from_json(known["model"]), weights, str(path)).to(device)
    split = Split(workdir.data, data["splits"][config.split]["shards"])
    metrics = (*task.answer_metrics(), *task.metrics())
    precision = known["resolved"]["precision"]  # what it was trained in
    with autocast(device, precision):
        rows = min(ROWS, known["resolved"]["micro_batch"])  # what training found room for
        statistics, counts = _statistics(task, model, split, rows, context)
    intervals = bootstrap(statistics, metrics, config.seed)
    figures = _figures(metrics, statistics.sum(0), counts)
    baselines: dict[str, dict[str, float | None]] = {}
    train = Split(workdir.data, data["splits"]["train"]["shards"])
    context.emit(Progress("baselines", 0, None, ""))
    for name, predictions in task.baselines(train, split):
        baselines[name] = _figures(metrics, predictions.statistics.sum(0), predictions.counts)
    samples = []
    if config.samples:
        context.emit(Progress("samples", 0, None, ""))
        samples = task.samples(model, split, config.samples, config.seed)
    return {
        "task": task.name,
        "run": known["run"],
        "checkpoint": path.name,
        "split": config.split,
        "protocol": {
            "task": task.name, "split": config.split,
            "data": data["splits"][config.split]["content"], **task.protocol(),
        },
        "metrics": {
            metric.name: {
                "value": figures[metric.name],
                "low": (intervals[metric.name] or (None, None))[0],
                "high": (intervals[metric.name] or (None, None))[1],
                "n": len(statistics),
                "higher_is_better": metric.higher_is_better,
            }
            for metric in metrics
        },
        "unit": task.unit_name,
        "measure": task.measure,
        "baseline": strongest(metrics, baselines),
        "baselines": baselines,
        "tables": [dataclasses.asdict(t) for t in task.tables(statistics.sum(0), counts)],
        "data_fingerprint": data["fingerprint"],
        "samples": samples,
        "environment": {
            "bigmodel": __version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version(), "device": device.type,
            "precision": precision,
        },
    }  # fmt: skip


def _statistics(
    task: Task, model: SequenceModel, split: Split, rows: int, context: Context
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Each unit's statistics, summed over its predictions: (units, k); and the counts of all."""
    import numpy as np
    import torch

    totals = np.zeros((len(split), len(task.statistics)))
    counts: dict[str, NDArray[np.int64]] = {}
    device = model.device

    def scored() -> Iterator[Predictions]:
        seen = np.zeros(len(split), bool)
        for batch in task.scoring(split, rows):
            with torch.inference_mode():
                predictions = task.predict(model, batch.to(device))
            yield predictions
            seen[predictions.units] = True
            context.emit(Progress("score", int(seen.sum()), len(split), task.unit_name))

    def answered() -> Iterator[Predictions]:
        done = 0
        for predictions in task.answers(model, split):
            yield predictions
            done += len(predictions.units)
            context.emit(Progress("answer", done, len(split), task.unit_name))

    for predictions in itertools.chain(scored(), answered()):
        for column in range(totals.shape[1]):
            totals[:, column] += np.bincount(
                predictions.units, predictions.statistics[:, column], minlength=len(split)
            )
        for name, count in predictions.counts.items():
            counts[name] = counts[name] + count if name in counts else count
    return totals, counts


def _figures(
    metrics: Sequence[Metric], sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
) -> dict[str, float | None]:
    values = {m.name: float(m.value(counts[m.of] if m.of else sums)) for m in metrics}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def strongest(
    metrics: Sequence[Metric], baselines: Mapping[str, Mapping[str, float | None]]
) -> dict[str, Any]:
    """For each metric, the baseline that is hardest to beat."""
    best: dict[str, Any] = {}
    for metric in metrics:
        values = [(v[metric.name], n) for n, v in baselines.items() if v[metric.name] is not None]
        if values and metric.compared:
            value, name = (max if metric.higher_is_better else min)(values)
            best[metric.name] = {"value": value, "name": name}
    return best
