"""Where a run begins when it does not begin from nothing: a run's weights, or a bundle's."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.artifacts import bundle, checkpoint
from bigmodel_cli.artifacts.manifest import check_files
from bigmodel_cli.artifacts.workdir import Run, Workdir
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import ArtifactError, UsageError
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.tasks import Task, load_task
from bigmodel_cli.tasks.text import TextTask

if TYPE_CHECKING:
    from torch import Tensor, nn

HINT = "give --from the name of a run, or the folder of a run or a bundle"
SAME = ("width", "layers", "heads", "kv_heads", "hidden")  # if they are given at all


@dataclass(frozen=True)
class Origin:
    """Somebody's weights: their file and its hash, the model that they are of, and the preprocessor
    that says what its numbers mean."""

    name: str
    weights: Path
    sha256: str
    model: ModelConfig
    preprocessor: Path
    layout: str = "native"

    def load(self) -> dict[str, Tensor]:
        """The weights by our own names. Raises ArtifactError."""
        from bigmodel_cli.models.qwen3 import native_weights
        from bigmodel_cli.models.sequence import build

        weights = checkpoint.load_tensors(self.weights, "weights", HINT)
        if self.layout == "huggingface":
            weights = native_weights(weights, self.model)
        return build(self.model, weights, str(self.weights)).state_dict()

    def task(self) -> Task:
        return load_task(self.preprocessor, HINT)


def find(source: str, workdir: Workdir) -> Origin:
    """The best checkpoint of a run (by name, or its folder), or a bundle. Raises UsageError,
    ArtifactError."""
    path = Path(source)
    try:
        if (path / bundle.FILE).exists():
            document = bundle.read(path)
            return Origin(
                source,
                path / checkpoint.MODEL,
                document.files[checkpoint.MODEL].sha256,
                ModelConfig.from_json(document.model),
                path,
                document.layout,
            )
        place = next(
            (
                run
                for run in (_run(workdir, source), Run(path.parent.parent, path.name))
                if run and run.config.exists()
            ),
            None,
        )
        if place is None:
            known = ", ".join(run.name for run in workdir.runs())
            raise UsageError(
                f"there is no run or bundle `{source}`",
                HINT + (f"; runs here: {known}" if known else ""),
            )
        known_config = place.read_config()
        check_files(place.preprocessor, known_config.preprocessor, "preprocessor", HINT)
        folder, state = checkpoint.find(place.checkpoints, "best")
        return Origin(
            source,
            folder / checkpoint.MODEL,
            state.weights,
            ModelConfig.from_json(known_config.model),
            place.preprocessor,
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"`{source}` is corrupt: {error!r}", HINT) from None


def _run(workdir: Workdir, name: str) -> Run | None:
    try:
        return workdir.run(name)
    except UsageError:
        return None


def shaped(origin: Origin, config: TrainConfig, task: Task) -> ModelConfig:
    """The model that these weights fit, for the task. Raises UsageError for options that differ
    from theirs, and for weights that cannot serve the task."""
    model = origin.model
    given: dict[str, Any] = {name: getattr(config, name) for name in SAME}
    for name in ("model", "cell", "window", "tie"):  # where it is not the default
        usual = {getattr(TrainConfig(), name), task.defaults.get(name)}
        value = getattr(config, name)
        given[name] = value if value not in usual else None
    for name, value in given.items():
        own = getattr(model, {"model": "family", "tie": "tied"}.get(name, name), "none")
        if value is not None and value != own:
            raise UsageError(
                f"--{name.replace('_', '-')} is {value}, but `{origin.name}` has {own}",
                "leave it out: the weights of --from decide it",
            )
    if config.size:
        raise UsageError("--size and --from are given", "leave --size out: the weights decide it")
    theirs = origin.task()
    if theirs.shape() != model.shape:
        raise ArtifactError(f"`{origin.name}` is corrupt: its model is not of its task", HINT)
    if theirs.signature != task.signature:
        raise UsageError(
            f"`{origin.name}` reads other {task.measure} than these data have",
            "prepare them with its own: bigmodel prepare SOURCE --tokenizer "
            + shlex.quote(str(origin.preprocessor))
            if isinstance(task, TextTask)
            else "begin from another, or from nothing",
        )
    shape = task.shape()
    if model.recurrent and model.shape.causal != shape.causal:
        reads = "in one direction" if model.shape.causal else "in both directions"
        raise UsageError(
            f"`{origin.name}` is an rnn that reads {reads}, which this task cannot use",
            "train one for it" + ("" if shape.causal else " with --objective masked"),
        )
    tied = model.tied and not shape.classes
    return replace(model, shape=shape, tied=tied, dropout=config.dropout)


def begin(model: nn.Module, origin: Origin, task: Task) -> list[str]:
    """Gives a new model all weights that it shares with the origin; says which it does not.

    Rows of the embedding that the origin never used start at the mean of those that it did.
    """
    import torch

    before = origin.task()
    known, own = origin.load(), model.state_dict()
    shared = {n: w for n, w in known.items() if n in own and w.shape == own[n].shape}
    if before.answers_with != task.answers_with:
        shared = {n: w for n, w in shared.items() if not n.startswith("head.")}
    fresh = task.fresh_ids(before)
    if fresh:
        for name in ("embed.weight", "head.weight"):
            if name in shared and len(shared[name]) > max(fresh):
                used = torch.ones(len(shared[name]), dtype=torch.bool)
                used[fresh] = False
                shared[name][fresh] = shared[name][used].mean(0)
    model.load_state_dict({**own, **shared})
    return sorted(set(own) - set(shared))
