"""The library: the stages as methods of a project, and a bundle as a function."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import (
    DeployConfig,
    EvaluateConfig,
    PredictConfig,
    PrepareConfig,
    TrainConfig,
)
from bigmodel_cli.errors import UsageError, did_you_mean
from bigmodel_cli.events import Context, Emit, Note, Progress
from bigmodel_cli.options import Key, Resolved, keys, resolve
from bigmodel_cli.tasks import task_class
from bigmodel_cli.tasks.keys import task_keys, task_options, train_keys

if TYPE_CHECKING:
    from bigmodel_cli.deploy.run import Deployed
    from bigmodel_cli.evaluate.run import Evaluated
    from bigmodel_cli.prepare.run import Prepared
    from bigmodel_cli.tasks import Request
    from bigmodel_cli.train.loop import Trained

T = TypeVar("T")
LOGGER = logging.getLogger("bigmodel")


def log(event: Note | Progress) -> None:
    """Notes and warnings to the logger `bigmodel`; progress is not logged."""
    if isinstance(event, Note):
        LOGGER.log(logging.WARNING if event.level == "warning" else logging.INFO, event.message)


class Project:
    """A working directory and its stages, which do what the commands of the same names do.

    Options are those of the commands, with `_` for `-` (`from_` for --from), checked in the same
    way; environment variables and recipes are not read. emit: gets what a stage says while it runs.
    Every method raises a BigmodelError with `message`, `hint` and `code`, or StoppedError where
    another process works on the same folder.
    """

    def __init__(self, workdir: str | os.PathLike[str] = "work", emit: Emit = log) -> None:
        self.workdir = Workdir(Path(workdir))
        self.emit = emit

    def prepare(self, *sources: str | os.PathLike[str], **options: Any) -> Prepared:
        """Turns raw files into tokenized shards in work/data, unless they are up to date."""
        from bigmodel_cli.prepare.run import run

        own = task_keys("prepare")
        resolved = _resolved("prepare", [*keys(PrepareConfig), *own], options, sources=sources)
        return run(resolved.build(PrepareConfig), resolved.said(own), self.workdir, self._context())

    def train(self, run: str = "default", **options: Any) -> Trained:
        """Trains a run, or continues it to where its length ends. Without a length it is that of
        the command."""
        from bigmodel_cli.train.run import run as train

        task = task_class(self.workdir.read_data()["task"])
        known, own, others = train_keys(task)
        resolved = _resolved("train", [*known, *own, *others], options)
        config = resolved.build(TrainConfig)
        if config.verify_resume:
            raise UsageError("verify_resume trains in processes of its own, which it kills",
                             "use the command: bigmodel train --verify-resume N")  # fmt: skip
        of_task = task_options(task, "train", resolved.said([*own, *others]))
        return train(config, of_task, self.workdir, run, self._context())

    def evaluate(self, run: str = "default", **options: Any) -> Evaluated:
        """Scores a run's checkpoint. Gates that fail do not raise: see `passed` of the result."""
        from bigmodel_cli.evaluate.run import run as evaluate

        config = _resolved("evaluate", keys(EvaluateConfig), options).build(EvaluateConfig)
        return evaluate(config, self.workdir, run, self._context())

    def deploy(self, run: str = "default", **options: Any) -> Deployed:
        """Exports a run's checkpoint as a bundle, and proves it."""
        from bigmodel_cli.deploy.run import run as deploy

        config = _resolved("deploy", keys(DeployConfig), options).build(DeployConfig)
        if config.serve:
            raise UsageError("serve is of the command line alone", "use it: bigmodel serve FOLDER")
        return deploy(config, self.workdir, run, self._context())

    def _context(self) -> Context:
        return Context(self.emit)


class Model:
    """A bundle, loaded to answer requests. One thread at a time may call it."""

    def __init__(
        self, folder: str | os.PathLike[str], device: str = "auto", threads: int = 0,
        precision: str = "auto",
    ) -> None:  # fmt: skip
        """device, threads and precision as in `bigmodel predict`. Raises ArtifactError."""
        from bigmodel_cli.deploy.predict import Predictor

        settings = {"device": device, "threads": threads, "precision": precision}
        checked = _resolved("predict", keys(PredictConfig), settings).build(PredictConfig)
        self._predictor = Predictor(
            Path(folder), checked.device, checked.threads, checked.precision
        )
        task = self._predictor.task
        task.opens_files = True  # whoever calls this may read them anyway
        values = {key.name: key.default for key in keys(PredictConfig)}
        lists = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        self._defaults = {name: lists[name] for name in task.fields if name in lists}

    @property
    def name(self) -> str:
        return self._predictor.name

    @property
    def task(self) -> str:
        return self._predictor.task.name

    def __call__(self, request: str | Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The answer to a request: to a text (the prompt, the source, the path of an image …), or
        to what a line of `bigmodel predict` holds. options: such as max_tokens, for what the
        request does not say. Raises DataError, UsageError."""
        return self.batch([request], **options)[0]

    def batch(
        self, requests: Sequence[str | Mapping[str, Any]], **options: Any
    ) -> list[dict[str, Any]]:
        """The answers to requests, in their order, computed together."""
        checked = [self._request(request, options) for request in requests]
        answers: list[dict[str, Any]] = [{} for _ in checked]
        for index, _, whole in self._predictor.answer(checked) if checked else ():
            if whole is not None:
                answers[index] = whole
        return answers

    def stream(self, request: str | Mapping[str, Any], **options: Any) -> Iterator[str]:
        """The text of an answer, in parts, as it is written."""
        for _, text, _ in self._predictor.answer([self._request(request, options)]):
            if text:
                yield text

    def _request(self, request: str | Mapping[str, Any], options: Mapping[str, Any]) -> Request:
        predictor = self._predictor
        fields: Any = {predictor.task.field: request} if isinstance(request, str) else request
        fields = dict(fields) if isinstance(fields, Mapping) else fields  # which is refused below
        unknown = predictor.ignored(dict(options))
        if unknown:
            raise UsageError(
                f"`{unknown[0]}` is not an option of the task `{self.task}`",
                did_you_mean(unknown[0], predictor.task.fields),
            )
        for name in predictor.ignored(fields):
            LOGGER.warning("the unknown name `%s` in a request was ignored", name)
        return predictor.request(fields, {**self._defaults, **options})


def load(
    bundle: str | os.PathLike[str], device: str = "auto", threads: int = 0, precision: str = "auto"
) -> Model:
    """The model in a bundle, such as work/runs/default/bundle, or anywhere that it was copied to.

    Raises ArtifactError when it is missing or corrupt.
    """
    return Model(bundle, device, threads, precision)


def _resolved(
    stage: str, known: Iterable[Key], options: Mapping[str, Any], **more: Sequence[Any]
) -> Resolved:
    """Options as their keys say. Raises UsageError. more: what is not given by name."""
    for name in more:
        if name in options:
            raise UsageError(f"`{name}` is given by name", "give them first, without a name")
    known = list(known)
    repeated = {key.name for key in known if key.repeated}
    given: dict[str, Any] = {**more, **options}
    for name, value in given.items():
        several = isinstance(value, list | tuple)
        parts = [_plain(part) for part in (value if several else [value])]
        given[name] = parts if several or (name in repeated and value is not None) else parts[0]
    return resolve(stage, known, given, environ={})


def _plain(value: Any) -> Any:
    """A path as text, and a number of numpy's or torch's as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value
