"""evaluate: checkpoint → verdict. Scores a split, beside the baselines, and judges the gates."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from bigmodel_cli import __version__
from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.records import (
    BaselineRecord,
    DataManifest,
    Evaluation,
    File,
    MetricRecord,
    RunConfig,
    Sample,
)
from bigmodel_cli.artifacts.workdir import Run, Workdir, lock
from bigmodel_cli.config import EvaluateConfig
from bigmodel_cli.errors import ArtifactError, BigmodelError, DataError, FormatError, StoppedError
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.options import identity
from bigmodel_cli.tasks import Metric, Task, load_task, model_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.artifacts.statistics import UnitStatistics
    from bigmodel_cli.evaluate.compare import Earlier, Figures
    from bigmodel_cli.evaluate.gates import Rule

ROWS = 16
PREPROCESSOR_HINT = "train again: bigmodel train --restart"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The evaluation, and whether the scores were up to date already (gates never are)."""

    evaluation: Evaluation
    fresh: bool

    @property
    def passed(self) -> bool:
        """Whether every gate held."""
        return all(gate.passed for gate in self.evaluation.gates)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The value of each metric, by its name; the evaluation has their intervals as well."""
        return {name: metric.value for name, metric in self.evaluation.metrics.items()}


def run(config: EvaluateConfig, workdir: Workdir, name: str, context: Context) -> Evaluated:
    """Scores a checkpoint; the gates' verdicts are in the document, for the caller to act on.

    Raises UsageError, DataError, ArtifactError.
    """
    place = workdir.run(name)
    known = place.read_config()
    data = workdir.read_data()
    workdir.check_data(known, data)
    if not data.splits[config.split].shards:
        raise DataError(
            f"the {config.split} split is empty", "prepare with --test 0.05, or choose --split val"
        )
    from bigmodel_cli.evaluate import gates
    from bigmodel_cli.evaluate.compare import Figures

    manifest.check_files(place.preprocessor, known.preprocessor, "preprocessor", PREPROCESSOR_HINT)
    task = load_task(place.preprocessor, PREPROCESSOR_HINT)
    metrics = (*task.answer_metrics(), *task.metrics())
    rules = gates.parse(config.require, metrics, bool(config.against))
    for line in gates.wrong_way(rules, metrics):
        context.warn(line)
    with lock(place.folder, workdir.root):
        if place.read_config() != known:
            raise StoppedError(f"run `{name}` was restarted meanwhile", "run it again")
        path, state = checkpoint.find(place.checkpoints, config.checkpoint)
        recipe = {
            "stage": "evaluate",
            "weights": state.weights,
            "parent": data.fingerprint,
            "options": {k: v for k, v in identity(config).items() if k != "checkpoint"},
        }
        fingerprint = manifest.fingerprint(recipe)
        earlier = _earlier(config, rules, context)
        old = _old(place, fingerprint, metrics, context)
        old = None if config.force else old
        own = None
        if old is None:
            evaluation, own = _score(
                config, task, path, state.weights, known, data, fingerprint, workdir, place, context
            )
        else:
            evaluation = old
            if any(rule.source for rule in rules):
                from bigmodel_cli.artifacts.statistics import UnitStatistics

                own = UnitStatistics.read(place.statistics, _statistics(evaluation))
        figures = Figures(metrics, evaluation)
        if own is not None:
            figures.resample(own, earlier, config.seed, _progress(context))
        if own is not None and old is None:
            evaluation = _complete(evaluation, figures)
            evaluation = replace(evaluation, statistics=own.write(place.statistics))
        evaluation = replace(evaluation, gates=gates.judge(rules, figures))
        if old is None or old.gates != evaluation.gates or not place.report.exists():
            from bigmodel_cli.evaluate.report import html

            manifest.write_atomic(place.report, html(evaluation, data, place).encode())
        manifest.write_record(place.evaluation, evaluation)  # last: it says that all are there
        place.partial.unlink(missing_ok=True)
    return Evaluated(evaluation, old is not None)


def _earlier(config: EvaluateConfig, rules: Sequence[Rule], context: Context) -> Earlier | None:
    """What rules with `previous` compare with."""
    from bigmodel_cli.evaluate.compare import Earlier

    if not config.against:
        return None
    earlier = Earlier.read(config.against)
    if not any(rule.source == "previous" for rule in rules):
        context.warn("--against is given, but no --require compares with `previous`")
        return None
    if earlier.statistics is None:
        context.warn(
            f"`{config.against}` {earlier.why}, so that it is not compared unit by unit: small "
            "differences stay unclear; keep evaluation.safetensors beside evaluation.json, both "
            "with one name"
        )
    return earlier


def _old(
    place: Run, fingerprint: str, metrics: Sequence[Metric], context: Context
) -> Evaluation | None:
    """An evaluation of the same fingerprint, if it is whole."""
    if not place.evaluation.exists():
        return None
    try:
        evaluation = manifest.read_record(place.evaluation, Evaluation, "evaluation", "")
        if evaluation.fingerprint != fingerprint:
            return None
        if missing := [m.name for m in metrics if m.name not in evaluation.metrics]:
            raise ArtifactError(f"`{place.evaluation}` has no `{missing[0]}`")
        what = "evaluation's statistics"
        manifest.check_file(place.statistics, _statistics(evaluation), what, "")
    except FormatError:
        raise
    except BigmodelError as error:
        context.warn(f"{error.message}; scoring again")
        return None
    return evaluation


def _statistics(evaluation: Evaluation) -> File:
    """Raises ArtifactError where an evaluation has none."""
    if evaluation.statistics is None:
        raise ArtifactError(
            f"the evaluation of run `{evaluation.run}` has no statistics of single units",
            "evaluate again: bigmodel evaluate --force",
        )
    return evaluation.statistics


def _progress(context: Context) -> Callable[[int], None]:
    from bigmodel_cli.evaluate.bootstrap import REPLICATES

    return lambda done: context.emit(Progress("bootstrap", done, REPLICATES, "draws"))


def _score(
    config: EvaluateConfig,
    task: Task,
    path: Path,
    weights_id: str,
    known: RunConfig,
    data: DataManifest,
    fingerprint: str,
    workdir: Workdir,
    place: Run,
    context: Context,
) -> tuple[Evaluation, UnitStatistics]:
    """The evaluation without what draws give, and the statistics of its units."""
    context.emit(Progress("load"))
    import numpy as np
    import torch

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.artifacts.statistics import Partial, UnitStatistics, identify
    from bigmodel_cli.evaluate.scoring import Scorer
    from bigmodel_cli.models.device import set_up
    from bigmodel_cli.models.sequence import build

    device = set_up(config.device, config.threads)
    weights = checkpoint.load_tensors(path / checkpoint.MODEL)
    shape = model_of(known.model, task, f"run `{known.run}`", PREPROCESSOR_HINT)
    model = build(shape, weights, str(path)).to(device)
    train, whole = (
        Split(workdir.data, data.splits[name].shards) for name in ("train", config.split)
    )
    split, sample = _sample(config, task, whole)
    precision = known.resolved.precision  # what it was trained in
    rows = min(ROWS, known.resolved.micro_batch)  # what training found room for
    environment = {
        "bigmodel": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "precision": precision,
    }
    key = {"evaluation": fingerprint, "rows": rows, "threads": torch.get_num_threads()}
    partial_key = manifest.fingerprint({**key, **environment})
    partial = Partial(place.partial, partial_key, len(split), len(task.statistics))
    if why := partial.load():
        context.warn(f"the stopped evaluation is not continued: {why}")
    elif partial.done:
        steps = ", ".join(f"{phase} {count:,}" for phase, count in partial.done.items())
        context.note(f"continuing the evaluation that was stopped; steps done: {steps}")
    Scorer(task, split, partial, context).run(model, train, rows, precision)
    metrics = (*task.answer_metrics(), *task.metrics())
    own = UnitStatistics(
        identify(task.contents(split)),
        partial.model.statistics(),
        {name: statistics for name, (statistics, _) in partial.baselines.items()},
    )
    values = _values(metrics, own.model.sums(), partial.counts)
    baselines = {
        name: _values(metrics, statistics.sums(), counts)
        for name, (statistics, counts) in partial.baselines.items()
    }
    samples: list[Sample] = []
    if config.samples:
        context.emit(Progress("samples"))
        found = task.samples(model, split, config.samples, config.seed)
        samples = msgspec.convert(found, list[Sample])
    evaluation = Evaluation(
        task=task.name,
        run=known.run,
        checkpoint=path.name,
        split=config.split,
        protocol={
            "task": task.name,
            "split": config.split,
            "data": data.splits[config.split].content,
            **sample,
            **task.protocol(),
        },
        metrics={
            metric.name: MetricRecord(
                value=values[metric.name],
                low=None,
                high=None,
                n=len(split),
                higher_is_better=metric.higher_is_better,
            )
            for metric in metrics
        },
        unit=task.unit_name,
        measure=task.measure,
        baseline=strongest(metrics, baselines),
        baselines=baselines,
        tables=task.tables(own.model.sums(), partial.counts),
        data_fingerprint=data.fingerprint,
        samples=samples,
        environment=environment,
        fingerprint=fingerprint,
        weights=weights_id,
        gates=[],
    )
    return evaluation, own


def _sample(config: EvaluateConfig, task: Task, split: Split) -> tuple[Split, dict[str, str]]:
    """The units to score, and what the protocol says of them if these are not all."""
    from bigmodel_cli.tasks.packing import UNITS, generator

    if config.limit is None or config.limit >= len(split):
        return split, {}
    units = generator(UNITS, config.seed).permutation(len(split))[: config.limit]
    units.sort()
    described = f"{len(units):,} of {len(split):,} {task.unit_name}, drawn by --seed {config.seed}"
    return task.sample(split, units), {"sample": described}


def _complete(evaluation: Evaluation, figures: Figures) -> Evaluation:
    """With what draws give: the metrics' intervals, and how the model compares with baselines."""
    metrics, baseline = dict(evaluation.metrics), dict(evaluation.baseline)
    for metric in figures.metrics:
        name = metric.name
        low, high = figures.interval(name)
        metrics[name] = replace(metrics[name], low=low, high=high)
        if metrics[name].value is not None and name in baseline:
            difference, model_is = figures.against_baseline(metric)
            baseline[name] = replace(baseline[name], difference=difference, model_is=model_is)
    return replace(evaluation, metrics=metrics, baseline=baseline)


def _values(
    metrics: Sequence[Metric], sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
) -> dict[str, float | None]:
    values = {m.name: float(m.value(counts[m.of] if m.of else sums)) for m in metrics}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def strongest(
    metrics: Sequence[Metric], baselines: Mapping[str, Mapping[str, float | None]]
) -> dict[str, BaselineRecord]:
    """For each metric, the baseline that is hardest to beat."""
    best: dict[str, BaselineRecord] = {}
    for metric in metrics:
        known = ((found[metric.name], name) for name, found in baselines.items())
        values = [(value, name) for value, name in known if value is not None]
        if values and metric.compared:
            value, name = (max if metric.higher_is_better else min)(values)
            best[metric.name] = BaselineRecord(value=value, name=name)
    return best
