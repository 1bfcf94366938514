"""train: shards → checkpoints. Starts a run, or continues it to the very same weights."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.records import (
    CheckpointState,
    DataManifest,
    Resolved,
    RunConfig,
    as_json,
)
from bigmodel_cli.artifacts.workdir import PREPROCESSORS, Run, Workdir, clean, lock
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import ArtifactError, FormatError, ResourceError, UsageError
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.models.sizes import SIZES, model_config
from bigmodel_cli.options import identity
from bigmodel_cli.tasks import Task, load_task, model_of
from bigmodel_cli.train import distributed, longer
from bigmodel_cli.train.init_from import Origin
from bigmodel_cli.train.init_from import begin as begin_from
from bigmodel_cli.train.init_from import find as find_origin
from bigmodel_cli.train.loop import Loop, Trained

RESTART = "bigmodel train --restart"
PREPARE_HINT = "build it again: bigmodel prepare SOURCE --force"
RESOLVED = ("micro_batch", "threads")  # not part of what is learned, but of exactness


def run(
    config: TrainConfig,
    task_options: Mapping[str, Any],
    workdir: Workdir,
    name: str,
    context: Context,
) -> Trained:
    """Trains the run `name` until its budget is spent, from where it stands.

    Raises UsageError, ArtifactError, DivergedError, ResourceError; StoppedError or InterruptError
    after saving, when a signal came.
    """
    data = workdir.read_data()
    place = workdir.run(name)
    if config.size and config.size not in SIZES:
        model_config(config.model, config.size, None)  # type: ignore[arg-type]  # raises
    options = {**identity(config), **dict(task_options)}
    origin, gone = None, None
    try:
        origin = find_origin(config.from_, workdir) if config.from_ else None
    except (UsageError, ArtifactError) as error:  # which may not matter any more
        gone = error
    if origin and origin.weights.resolve().is_relative_to(place.folder.resolve()):
        raise UsageError(
            f"run `{name}` cannot begin from itself",
            f"add --run {longer.free(place)} to train its weights further as another run",
        )
    if origin:  # wherever it lies
        options["from_"] = origin.sha256
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.joined())
        if not distributed.leads():
            context = dataclasses.replace(context, emit=lambda _: None)

        def found() -> list[dict[str, Any] | None]:
            stack.enter_context(lock(place.folder, workdir.root))
            clean(place.checkpoints)
            begun = place.config.exists() and checkpoint.names(place.checkpoints)
            known = place.read_config() if begun and not config.restart else None
            if gone:
                if not known or known.origin != config.from_:
                    raise gone
                options["from_"] = known.options["from_"]
                context.warn(f"{gone.message}; run `{name}` continues with what it took there")
            if known:
                _agree(known, place, options, data)
            done = _finished(place, context) if known else None
            return [as_json(known) if known else None, dataclasses.asdict(done) if done else None]

        begun, done = distributed.lead(found)
        if done:
            return Trained(**done)
        known = msgspec.convert(begun, RunConfig | None)
        return _train(config, options, data, known, origin, place, workdir, context)


def _clear(place: Run) -> None:
    with manifest.storage(place.folder):
        for path in (
            place.config,
            place.log,
            place.evaluation,
            place.statistics,
            place.partial,
            place.report,
        ):
            path.unlink(missing_ok=True)
        former = (place.folder / name for name in PREPROCESSORS)
        for folder in (place.checkpoints, place.bundle, *former):
            if folder.exists():
                shutil.rmtree(folder)


def _agree(known: RunConfig, place: Run, options: dict[str, Any], data: DataManifest) -> None:
    """Raises UsageError where a run's configuration is not the given one: what differs."""
    before = {**identity(TrainConfig()), **known.options}  # options that came later
    differing = manifest.changes(before, options)
    if known.data_fingerprint != data.fingerprint:
        differing.append("the data have changed since")
    if differing:
        hint = "add --restart to train it again from nothing, or --run NAME to train another"
        length = longer.remaining(before, options)
        if length and {change.partition(":")[0] for change in differing} <= {*longer.LENGTHS}:
            hint = "train its weights further: " + longer.command(place, known, length)
        raise UsageError(
            f"run `{place.name}` was started with different options: " + "; ".join(differing), hint
        )


def _finished(place: Run, context: Context) -> Trained | None:
    """What a finished run says, without torch; None if it has further to go."""
    names = checkpoint.names(place.checkpoints)
    if not names:
        return None
    try:
        last = checkpoint.read_state(place.checkpoints / names[-1])
        whole = all(
            (place.checkpoints / names[-1] / file).stat().st_size == info.bytes
            for file, info in last.files.items()
        )
        best = checkpoint.read_best(place.checkpoints).name
        if last.finished and last.best and last.best.name != best:  # killed before it was marked
            best = last.best.name
            checkpoint.mark_best(place.checkpoints, best, last.best.value)
        state = checkpoint.read_state(place.checkpoints / best)
    except FormatError:
        raise
    except ArtifactError as error:
        context.warn(f"{error.message}; repairing what can be repaired")
        return None
    except OSError:
        return None
    if not last.finished or not whole:
        return None
    if last.keep is not None:  # killed before the older ones were removed
        checkpoint.prune(place.checkpoints, last.keep, best)
    return Trained(
        run=place.name,
        checkpoint=best,
        step=last.step,
        tokens=last.tokens,
        seconds=last.elapsed,
        validation=state.validation or {},
        fresh=True,
    )


def _train(
    config: TrainConfig,
    options: dict[str, Any],
    data: DataManifest,
    known: RunConfig | None,
    origin: Origin | None,
    place: Run,
    workdir: Workdir,
    context: Context,
) -> Trained:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before torch: same sums each time
    context.emit(Progress("load"))
    import torch

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.models import device as devices
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.train import engine, schedule
    from bigmodel_cli.train.optim import Optimizers
    from bigmodel_cli.train.resolve import cannot_compile, resolve

    task = _task(options, data, workdir)
    train_split, val_split = (
        Split(workdir.data, data.splits[name].shards) for name in ("train", "val")
    )
    plan = task.plan(train_split, config.seed)
    new = known is None
    if known is None:
        document = distributed.lead(
            lambda: as_json(resolve(config, options, data, task, plan, origin, place.name, context))
        )
        known = msgspec.convert(document, RunConfig)
        resolved = known.resolved
    else:
        manifest.check_files(place.preprocessor, known.preprocessor, "preprocessor", RESTART)
        resolved = _kept(known, config, context)
    device = devices.set_up(resolved.device, resolved.threads)
    hardware = as_json(known.hardware), as_json(engine.hardware(device))
    if not new and (differing := manifest.changes(*hardware)):
        context.warn(
            "resuming with other hardware or another version, so not exact to the byte: "
            + "; ".join(differing)
        )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(config.seed)
    model = SequenceModel(model_of(known.model, task, f"run `{place.name}`", RESTART)).to(device)
    optimizers = Optimizers(model, config.optimizer, resolved.learning_rate, config.weight_decay)
    if new:  # only now, when all of it can be had
        distributed.lead(lambda: _begin(task, place, known))
    state = _resume(place, model, optimizers, context)
    if origin and not state:
        fresh = ", ".join(begin_from(model, origin, task)) or "nothing"
        context.note(f"initialized from {origin.name} ({origin.sha256[:12]}); new: {fresh}")
    distributed.same_weights(model.parameters())
    clock = schedule.Clock(
        resolved.length,
        state.elapsed if state else 0.0,
        time.monotonic() if state else context.started,
        state.reserve if state else 0.0,
        state.allowance.pace if state and state.allowance else 0.0,
    )
    machine = engine.Engine(
        task, model, optimizers, plan, device, resolved.precision, resolved.batch_size,
        resolved.micro_batch, config.clip, config.seed, resolved.compile,
    )  # fmt: skip
    if resolved.compile:
        tried = new and distributed.leads()
        if not tried and (reason := cannot_compile(device, context)):
            raise ResourceError(
                f"the run has compiled kernels, which do not work now: {reason}",
                "repair that, or add --restart --compile off to train it again from nothing",
            )
        context.emit(Progress("compile"))
        model.compile_parts()
        machine.warm_up()
    return Loop(config, place, context, machine, clock, val_split, state).run()


def _task(options: Mapping[str, Any], data: DataManifest, workdir: Workdir) -> Task:
    """The task with the training options in force."""
    manifest.check_files(workdir.preprocessor, data.preprocessor, "preprocessor", PREPARE_HINT)
    task = load_task(workdir.preprocessor, PREPARE_HINT)
    names = {item.name for item in dataclasses.fields(task.options)}
    task.options = dataclasses.replace(
        task.options, **{k: v for k, v in options.items() if k in names}
    )
    return task


def _begin(task: Task, place: Run, known: RunConfig) -> None:
    """Writes down what the run is; of one that was there before nothing is left."""
    from bigmodel_cli.tasks import save_task

    _clear(place)
    with manifest.storage(place.preprocessor):
        place.preprocessor.mkdir(exist_ok=True)
        save_task(task, place.preprocessor)
        files = manifest.folder_info(place.preprocessor)
    manifest.write_record(place.config, replace(known, preprocessor=files))


def _kept(known: RunConfig, config: TrainConfig, context: Context) -> Resolved:
    """What was resolved when the run was started, and is kept."""
    resolved = known.resolved
    if known.hardware.ranks != distributed.world():
        resolved = replace(resolved, threads=config.threads)
    for key in RESOLVED:
        kept = getattr(resolved, key)
        if getattr(config, key) not in (None, 0, kept):
            flag = key.replace("_", "-")
            context.warn(f"the run keeps the --{flag} that it was started with: {kept}")
    return resolved


def _resume(place: Run, model: Any, optimizers: Any, context: Context) -> CheckpointState | None:
    """Loads the newest checkpoint that is whole; None when the run is at its beginning."""

    def newest() -> list[Any] | None:
        found = checkpoint.newest(place.checkpoints, context.warn)
        if found is None:
            place.log.unlink(missing_ok=True)
            return None
        return [found[0].name, as_json(found[1])]

    found = distributed.lead(newest)
    if found is None:
        return None
    name, document = found
    state = msgspec.convert(document, CheckpointState)
    path = place.checkpoints / name
    weights = checkpoint.load_tensors(path / checkpoint.MODEL)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(
            f"the checkpoint `{path}` does not fit the run: {error}", RESTART
        ) from None
    optimizers.load(checkpoint.load_tensors(path / checkpoint.OPTIMIZER))
    context.note(f"resuming at step {state.step:,}")
    return state
