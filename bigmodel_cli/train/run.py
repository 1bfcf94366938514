"""train: shards → checkpoints. Begins a run, or goes on with it to the very same weights."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.workdir import PREPROCESSORS, Run, Workdir, clean, lock
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import ArtifactError, FormatError, ResourceError, UsageError
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.sizes import SIZES, model_config
from bigmodel_cli.options import identity
from bigmodel_cli.tasks import Task, load_task
from bigmodel_cli.train import longer, parallel
from bigmodel_cli.train.loop import Loop, Trained
from bigmodel_cli.train.origin import Origin
from bigmodel_cli.train.origin import begin as begin_from
from bigmodel_cli.train.origin import find as find_origin

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
        stack.enter_context(parallel.joined())
        if not parallel.leads():
            context = dataclasses.replace(context, emit=lambda _: None)

        def found() -> list[dict[str, Any] | None]:
            stack.enter_context(lock(place.folder, workdir.root))
            clean(place.checkpoints)
            begun = place.config.exists() and checkpoint.names(place.checkpoints)
            known = place.read_config() if begun and not config.restart else None
            if gone:
                if not known or known.get("origin") != config.from_:
                    raise gone
                options["from_"] = known["options"]["from_"]
                context.warn(f"{gone.message}; run `{name}` continues with what it took there")
            if known:
                _agree(known, place, options, data)
            done = _finished(place, context) if known else None
            return [known, dataclasses.asdict(done) if done else None]

        known, done = parallel.lead(found)
        if done:
            return Trained(**done)
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


def _agree(
    known: dict[str, Any], place: Run, options: dict[str, Any], data: dict[str, Any]
) -> None:
    """Raises UsageError where a run's configuration is not the one asked for: what differs."""
    before = {**identity(TrainConfig()), **known["options"]}  # options that came later
    differing = manifest.changes(before, options)
    if known["data_fingerprint"] != data["fingerprint"]:
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
        files = last["files"]
        whole = all(
            (place.checkpoints / names[-1] / file).stat().st_size == info["bytes"]
            for file, info in files.items()
        )
        best = checkpoint.read_best(place.checkpoints)
        told = last.get("best") or best
        if last.get("finished") and told["name"] != best["name"]:  # killed before it was marked
            checkpoint.mark_best(place.checkpoints, told["name"], told.get("value"))
            best = told
        state = checkpoint.read_state(place.checkpoints / best["name"])
    except FormatError:
        raise
    except ArtifactError as error:
        context.warn(f"{error.message}; repairing what can be repaired")
        return None
    except (OSError, KeyError):
        return None
    if not last.get("finished") or not whole:
        return None
    if "keep" in last:  # killed before the older ones were removed
        checkpoint.prune(place.checkpoints, last["keep"], best["name"])
    return Trained(
        place.name,
        best["name"],
        last["step"],
        last["tokens"],
        last["elapsed"],
        state["validation"] or {},
        fresh=True,
    )


def _train(
    config: TrainConfig,
    options: dict[str, Any],
    data: dict[str, Any],
    known: dict[str, Any] | None,
    origin: Origin | None,
    place: Run,
    workdir: Workdir,
    context: Context,
) -> Trained:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before torch: same sums each time
    context.emit(Progress("load", 0, None, ""))
    import torch

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.models import device as devices
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.train import budget, engine
    from bigmodel_cli.train.optim import Optimizers
    from bigmodel_cli.train.resolve import cannot_compile, resolve

    task = _task(options, data, workdir)
    shards = {name: data["splits"][name]["shards"] for name in ("train", "val")}
    train_split, val_split = (Split(workdir.data, shards[name]) for name in ("train", "val"))
    plan = task.plan(train_split, config.seed)
    new = known is None
    known = known or parallel.lead(
        lambda: resolve(config, options, data, task, plan, origin, place.name, context)
    )
    if new:
        resolved = known["resolved"]
    else:
        manifest.check_files(
            place.preprocessor, known["codec"], "preprocessor", "bigmodel train --restart"
        )
        resolved = _kept(known, config, context)
    device = devices.set_up(resolved["device"], resolved["threads"])
    model_shape = ModelConfig.from_json(known["model"])
    if not new and (differing := manifest.changes(known["hardware"], engine.hardware(device))):
        context.warn(
            "resuming with other hardware or another version, so not exact to the byte: "
            + "; ".join(differing)
        )
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(config.seed)
    model = SequenceModel(model_shape).to(device)
    optimizers = Optimizers(model, config.optimizer, resolved["learning_rate"], config.weight_decay)
    if new:  # only now, when all of it can be had
        parallel.lead(lambda: _begin(task, place, known))
    state = _resume(place, model, optimizers, context)
    if origin and not state:
        anew = ", ".join(begin_from(model, origin, task)) or "nothing"
        context.note(f"initialized from {origin.name} ({origin.sha256[:12]}); new: {anew}")
    parallel.same_weights(model.parameters())
    clock = budget.Clock(
        budget.Length(**resolved["length"]),
        state.get("elapsed", 0.0),
        time.monotonic() if state else context.started,
        state.get("reserve", 0.0),
        state.get("allowance", {}).get("pace", 0.0),
    )
    machine = engine.Engine(
        task, model, optimizers, plan, device, resolved["precision"], resolved["batch_size"],
        resolved["micro_batch"], config.clip, config.seed, bool(resolved.get("compile")),
    )  # fmt: skip
    if resolved.get("compile"):
        tried = new and parallel.leads()
        if not tried and (reason := cannot_compile(device, context)):
            raise ResourceError(
                f"the run has compiled kernels, which do not work now: {reason}",
                "repair that, or add --restart --compile off to train it again from nothing",
            )
        context.emit(Progress("compile", 0, None, ""))
        model.compile_parts()
        machine.warm_up()
    return Loop(config, place, context, machine, clock, val_split, state).run()


def _task(options: Mapping[str, Any], data: Mapping[str, Any], workdir: Workdir) -> Task:
    """The task with the training options in force."""
    manifest.check_files(workdir.preprocessor, data["codec"], "preprocessor", PREPARE_HINT)
    task = load_task(workdir.preprocessor, PREPARE_HINT)
    names = {item.name for item in dataclasses.fields(task.options)}
    task.options = dataclasses.replace(
        task.options, **{k: v for k, v in options.items() if k in names}
    )
    return task


def _begin(task: Task, place: Run, known: dict[str, Any]) -> None:
    """Writes down what the run is; of one that was there before nothing is left."""
    from bigmodel_cli.tasks import save_task

    _clear(place)
    with manifest.storage(place.preprocessor):
        place.preprocessor.mkdir(exist_ok=True)
        save_task(task, place.preprocessor)
        known["codec"] = manifest.folder_info(place.preprocessor)
    manifest.write_json(place.config, known)


def _kept(known: dict[str, Any], config: TrainConfig, context: Context) -> dict[str, Any]:
    """What was resolved when the run was begun, and is kept."""
    resolved: dict[str, Any] = known["resolved"]
    if known["hardware"].get("ranks", 1) != parallel.world():
        resolved = {**resolved, "threads": config.threads}
    for key in RESOLVED:
        if getattr(config, key) not in (None, 0, resolved[key]):
            context.warn(
                f"the run keeps the --{key.replace('_', '-')} that it was started with: "
                f"{resolved[key]}"
            )
    return resolved


def _resume(place: Run, model: Any, optimizers: Any, context: Context) -> dict[str, Any]:
    """Loads the newest checkpoint that is whole; {} when the run is at its beginning."""

    def newest() -> list[Any] | None:
        found = checkpoint.newest(place.checkpoints, context.warn)
        if found is None:
            place.log.unlink(missing_ok=True)
            return None
        return [found[0].name, found[1]]

    found = parallel.lead(newest)
    if found is None:
        return {}
    name, state = found
    path = place.checkpoints / name
    weights = checkpoint.load_tensors(path / checkpoint.MODEL)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(
            f"the checkpoint `{path}` does not fit the run: {error}", "bigmodel train --restart"
        ) from None
    optimizers.load(checkpoint.load_tensors(path / checkpoint.OPTIMIZER))
    context.note(f"resuming at step {state['step']:,}")
    return dict(state)
