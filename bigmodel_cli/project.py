"""The library: the stages as methods of a project, and a bundle as a function."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.artifacts.manifest import storage
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import (
    DeployConfig,
    EvaluateConfig,
    PredictConfig,
    PrepareConfig,
    TrainConfig,
)
from bigmodel_cli.errors import DataError, InterruptError, UsageError, did_you_mean, shortage
from bigmodel_cli.events import Context, Emit, Event, Note
from bigmodel_cli.options import Key, Resolved, keys, resolve
from bigmodel_cli.tasks import Answer, stored_task
from bigmodel_cli.tasks.keys import task_keys, task_options, train_keys

if TYPE_CHECKING:
    from bigmodel_cli.deploy.run import Deployed
    from bigmodel_cli.evaluate.run import Evaluated
    from bigmodel_cli.prepare.run import Prepared
    from bigmodel_cli.tasks import Request
    from bigmodel_cli.train.loop import Trained

LOGGER = logging.getLogger("bigmodel")
ONE_AT_A_TIME = threading.RLock()  # a stage seeds and sets up torch for the whole process


def log(event: Event) -> None:
    """Notes and warnings to the logger `bigmodel`; progress is not logged."""
    if isinstance(event, Note):
        LOGGER.log(logging.WARNING if event.level == "warning" else logging.INFO, event.message)


class Project:
    """A working directory and its stages, which do what the commands of the same names do.

    Options are those of the commands, with `_` for `-` (`from_` for --from), checked in the same
    way; environment variables and recipes are not read. emit: gets what a stage says while it runs;
    None for nobody. Stages of one process run one after another. Ctrl-C saves what was trained, as
    it does for the command, and raises KeyboardInterrupt.
    Every method raises a BigmodelError with `message`, `hint` and `code`, or StoppedError where
    another process works on the same folder.
    """

    def __init__(self, workdir: str | os.PathLike[str] = "work", emit: Emit | None = log) -> None:
        self.workdir = Workdir(Path(workdir).absolute())
        self.emit = emit or (lambda _: None)

    def prepare(self, *sources: str | os.PathLike[str], **options: Any) -> Prepared:
        """Turns raw files into tokenized shards in work/data, unless they are up to date."""
        own = task_keys("prepare")
        resolved = _resolved("prepare", [*keys(PrepareConfig), *own], options, sources=sources)
        config = resolved.build(PrepareConfig)
        with self._running() as context:
            from bigmodel_cli.prepare.run import run

            return run(config, resolved.said(own), self.workdir, context)

    def train(self, run: str = "default", **options: Any) -> Trained:
        """Trains a run, or continues it to where its length ends. Without a length it is that of
        the command."""
        _check_name(run)
        task = stored_task(self.workdir.read_data().task)
        known, own, others = train_keys(task)
        resolved = _resolved("train", [*known, *own, *others], options)
        config = resolved.build(TrainConfig)
        if config.verify_resume:
            raise UsageError(
                "verify_resume trains in processes of its own, which it kills",
                "use the command: bigmodel train --verify-resume N",
            )
        of_task = task_options(task, "train", resolved.said([*own, *others]))
        with self._running() as context:
            from bigmodel_cli.train.run import run as train

            return train(config, of_task, self.workdir, run, context)

    def evaluate(self, run: str = "default", **options: Any) -> Evaluated:
        """Scores a run's checkpoint. Gates that fail do not raise: see `passed` of the result."""
        _check_name(run)
        config = _resolved("evaluate", keys(EvaluateConfig), options).build(EvaluateConfig)
        with self._running() as context:
            from bigmodel_cli.evaluate.run import run as evaluate

            return evaluate(config, self.workdir, run, context)

    def deploy(self, run: str = "default", **options: Any) -> Deployed:
        """Exports a run's checkpoint as a bundle, and proves it."""
        _check_name(run)
        for name in ("serve", "host", "port"):
            if name in options:
                raise UsageError(
                    f"`{name}` is an option of the command line alone",
                    "use the command: bigmodel serve FOLDER",
                )
        config = _resolved("deploy", keys(DeployConfig), options).build(DeployConfig)
        with self._running() as context:
            from bigmodel_cli.deploy.run import run as deploy

            return deploy(config, self.workdir, run, context)

    @contextlib.contextmanager
    def _running(self) -> Iterator[Context]:
        """What a stage gets. Its errors are ours where memory or the disk is short, and its answer
        to Ctrl-C is Python's."""
        context = Context(self.emit)
        main = threading.current_thread() is threading.main_thread()
        with ONE_AT_A_TIME:
            before = signal.signal(signal.SIGINT, context.stop.on_signal) if main else None
            try:
                yield context
            except InterruptError as error:
                raise KeyboardInterrupt(f"{error.message}; {error.hint}") from None
            except OSError as error:
                with storage(Path(error.filename or self.workdir.root)):
                    raise
            except Exception as error:
                if short := shortage(error):
                    raise short from error
                raise
            finally:
                if main:  # None: a handler that is not Python's
                    signal.signal(signal.SIGINT, before or signal.default_int_handler)


class Model:
    """A bundle, loaded to answer requests. One thread at a time may call it."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        device: str = "auto",
        threads: int = 0,
        precision: str = "auto",
    ) -> None:
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

    def __call__(
        self, request: str | os.PathLike[str] | Mapping[str, Any], **options: Any
    ) -> dict[str, Any]:
        """The answer to a request: to a text (the prompt, the source, the path of an image …), or
        to what a line of `bigmodel predict` holds. options: such as max_tokens, for what the
        request does not say. Raises DataError, UsageError."""
        return self.batch([request], **options)[0]

    def batch(
        self, requests: Iterable[str | os.PathLike[str] | Mapping[str, Any]], **options: Any
    ) -> list[Answer]:
        """The answers to requests, in their order, computed together. One that is wrong is an
        error that says which."""
        if isinstance(requests, str | bytes | Mapping) or not isinstance(requests, Iterable):
            raise UsageError(
                f"a batch is `{requests!r:.60}`, but must be a list of requests",
                "for a single one call the model itself",
            )
        answers: list[Answer] = []
        checked: list[Request] = []
        for number, request in enumerate(requests, 1):
            try:
                checked.append(self._request(request, options))
            except DataError as error:
                if number == 1 and isinstance(requests, Sequence) and len(requests) == 1:
                    raise
                raise DataError(f"request {number}: {error.message}", error.hint) from None
            has_id = isinstance(request, Mapping) and "id" in request
            answers.append({"id": request["id"]} if has_id else {})  # type: ignore[index]
        for index, _, whole in self._predictor.answer(checked) if checked else ():
            if whole is not None:
                answers[index].update(whole)
        return answers

    def stream(
        self, request: str | os.PathLike[str] | Mapping[str, Any], **options: Any
    ) -> Iterator[str]:
        """The text of an answer, in parts, as it is written."""
        answer = self._predictor.answer([self._request(request, options)])
        return (text for _, text, _ in answer if text)

    def _request(self, request: Any, options: Mapping[str, Any]) -> Request:
        predictor = self._predictor
        if isinstance(request, str | os.PathLike):
            request = {predictor.task.field: request}
        fields, more = _as_json(request), _as_json(options)
        unknown = [*predictor.ignored(more), *({"id", predictor.task.field} & {*more})]
        if unknown:
            raise UsageError(
                f"`{unknown[0]}` is not an option of the task `{self.task}`",
                did_you_mean(unknown[0], predictor.task.fields),
            )
        for name in predictor.ignored(fields):
            LOGGER.warning("the unknown name `%s` in a request was ignored", name)
        return predictor.request(fields, {**self._defaults, **more})


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
    return value.item() if getattr(value, "ndim", 1) == 0 else value


def _as_json(value: Any) -> Any:
    """A request as JSON would hold it: arrays and tuples as lists, paths as text."""
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise DataError(f"a request has the name `{odd[0]!r:.60}`, but names are text")
        return {name: _as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else _plain(value)


def _check_name(run: object) -> None:
    if not isinstance(run, str):
        raise UsageError(
            f"the run's name is `{run!r:.60}`, but must be text",
            "options are given by name: train(steps=100)",
        )
