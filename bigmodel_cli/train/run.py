"""train: shards → checkpoints. Begins a run, or goes on with it to the very same weights."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.workdir import Run, Workdir, clean, lock
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import (
    ArtifactError,
    DataError,
    FormatError,
    ResourceError,
    UsageError,
)  # fmt: skip
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.models.sizes import (
    SIZES,
    ModelConfig,
    flops_per_token,
    model_config,
    row_bytes,
)
from bigmodel_cli.options import identity
from bigmodel_cli.tasks import Task, load_task
from bigmodel_cli.train.loop import Loop, Trained

if TYPE_CHECKING:
    pass

PREPARE_HINT = "build it again: bigmodel prepare SOURCE --force"
TOKENS_PER_UPDATE = 2048  # for up to 4 million weights
CACHE_BYTES = 16 << 20
COMPILED_SECONDS = 600
NOMINAL_FLOPS = {"cpu": 150e9, "cuda": 20e12}  # of one thread, or of a GPU by one thread
RESOLVED = ("micro_batch", "threads")  # not part of what is learned, but of exactness


def run(
    config: TrainConfig, task_options: Mapping[str, Any], workdir: Workdir, name: str,
    context: Context,
) -> Trained:  # fmt: skip
    """Trains the run `name` until its budget is spent, from where it stands.

    Raises UsageError, ArtifactError, DivergedError, ResourceError; StoppedError or InterruptError
    after saving, when a signal came.
    """
    data = workdir.read_data()
    place = workdir.run(name)
    if config.size and config.size not in SIZES:
        model_config(config.model, config.size, None)  # type: ignore[arg-type]  # raises
    options = {**identity(config), **dict(task_options)}
    with lock(place.folder):
        clean(place.checkpoints)
        begun = place.config.exists() and checkpoint.names(place.checkpoints)
        known = _agree(place, options, data) if begun and not config.restart else None
        if known:
            done = _finished(place, context)
            if done:
                return done
        return _train(config, options, data, known, place, workdir, context)


def _clear(place: Run) -> None:
    with manifest.storage(place.folder):
        for path in (place.config, place.log, place.evaluation, place.report):
            path.unlink(missing_ok=True)
        for folder in (place.checkpoints, place.bundle, place.codec):
            if folder.exists():
                shutil.rmtree(folder)


def _agree(place: Run, options: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The run's configuration, if it is the one asked for. Raises UsageError: what differs."""
    known = place.read_config()
    before = {**identity(TrainConfig()), **known["options"]}  # options that came later
    differing = manifest.changes(before, options)
    if known["data_fingerprint"] != data["fingerprint"]:
        differing.append("the data were prepared anew")
    if differing:
        raise UsageError(
            f"run `{place.name}` was begun otherwise: " + "; ".join(differing),
            "begin it anew with --restart, or name another with --run",
        )
    return known


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
        state = checkpoint.read_state(place.checkpoints / best["name"])
    except FormatError:
        raise
    except ArtifactError as error:
        context.warn(f"{error.message}; mending what can be mended")
        return None
    except (OSError, KeyError):
        return None
    if not last.get("finished") or not whole:
        return None
    return Trained(
        place.name, best["name"], last["step"], last["tokens"], last["elapsed"],
        state["validation"] or {}, fresh=True,
    )  # fmt: skip


def _train(
    config: TrainConfig, options: dict[str, Any], data: dict[str, Any],
    known: dict[str, Any] | None, place: Run, workdir: Workdir, context: Context,
) -> Trained:  # fmt: skip
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before torch: same sums each time
    context.emit(Progress("load", 0, None, ""))
    import torch

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.models import device as devices
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.train import budget, engine
    from bigmodel_cli.train.optim import LEARNING_RATES, Optimizers

    task = _task(options, data, workdir)
    shards = {name: data["splits"][name]["shards"] for name in ("train", "val")}
    train_split, val_split = (Split(workdir.data, shards[name]) for name in ("train", "val"))
    plan = task.plan(train_split, config.seed)
    known_before = known is not None
    if known is None:
        device = devices.set_up(config.device, config.threads)
        shape = task.shape()
        model_shape = model_config(
            config.model, config.size or ("small" if device.type == "cuda" else "nano"), shape,
            width=config.width, layers=config.layers, heads=config.heads,
            kv_heads=config.kv_heads, hidden=config.hidden, cell=config.cell,
            window=config.window, tie=config.tie, dropout=config.dropout,
        )  # fmt: skip
        _fits(plan.rows, shape.context, data)
        batch = config.batch_size or _batch_size(model_shape, plan.rows, device.type)
        length = budget.length(config, plan.rows, batch, shape.context)
        resolved: dict[str, Any] = {
            "batch_size": batch,
            "micro_batch": _micro_batch(
                config, model_shape, batch, device.type, engine.memory_bytes(device)
            ),
            "threads": torch.get_num_threads(),
            "precision": config.precision if config.precision != "auto"
            else "bf16" if devices.has_bf16(device) else "fp32",
            "learning_rate": config.learning_rate or LEARNING_RATES[config.optimizer],
            "device": device.type,
            "length": dataclasses.asdict(length),
        }  # fmt: skip
        resolved["compile"] = _compile(config, model_shape, resolved, shape.context, context)
        known = {
            "stage": "train", "run": place.name, "task": task.name, "options": options,
            "data_fingerprint": data["fingerprint"],
            "fingerprint": manifest.fingerprint(
                {"stage": "train", "options": options, "parent": data["fingerprint"]}
            ),
            "resolved": resolved, "model": model_shape.to_json(),
            "hardware": engine.hardware(device),
        }  # fmt: skip
        size = config.size or f"{model_shape.layers} × {model_shape.width}"
        context.note(
            f"{config.model} {size}, {model_shape.parameters / 1e6:.1f} M weights; {length.text}; "
            f"{batch} × {shape.context} tokens an update; {resolved['precision']} on "
            f"{device.type}, {resolved['threads']} threads" + ", compiled" * resolved["compile"]
        )
    else:
        manifest.check_files(place.codec, known["codec"], "codec", "bigmodel train --restart")
        resolved = known["resolved"]
        for key in RESOLVED:
            if getattr(config, key) not in (None, 0, resolved[key]):
                context.warn(f"the run keeps the --{key.replace('_', '-')} that it was begun with: "
                             f"{resolved[key]}")  # fmt: skip
        device = devices.set_up(resolved["device"], resolved["threads"])
        model_shape = ModelConfig.from_json(known["model"])
        length = budget.Length(**resolved["length"])
        differing = manifest.changes(known["hardware"], engine.hardware(device))
        if differing:
            context.warn("resuming on other hardware, so not exact to the byte: "
                         + "; ".join(differing))  # fmt: skip
    # on a GPU some kernels have no such form: there a resume may differ in the last bits
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    if device.type == "cpu":
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(config.seed)
    model = SequenceModel(model_shape).to(device)
    optimizers = Optimizers(model, config.optimizer, resolved["learning_rate"], config.weight_decay)
    if "codec" not in known:  # a new run: only now, when all of it can be had
        _clear(place)
        known["codec"] = _save_codec(task, place)
        manifest.write_json(place.config, known)
    state = _resume(place, model, optimizers, context)
    clock = budget.Clock(
        length, state.get("elapsed", 0.0), time.monotonic() if state else context.started
    )
    clock.reserve = state.get("reserve", 0.0)
    machine = engine.Engine(
        task, model, optimizers, plan, device, resolved["precision"], resolved["batch_size"],
        resolved["micro_batch"], config.clip, config.seed, bool(resolved.get("compile")),
    )  # fmt: skip
    if resolved.get("compile"):
        if known_before and (reason := _cannot_compile(device, context)):
            raise ResourceError(
                f"the run was begun with compiled kernels, which cannot be had now: {reason}",
                "mend that, or begin anew with --restart --compile off",
            )
        context.emit(Progress("compile", 0, None, ""))
        model.backbone.compile_parts()  # type: ignore[operator]
        machine.warm_up()
    return Loop(config, place, context, machine, clock, val_split, state).run()


def _task(options: Mapping[str, Any], data: Mapping[str, Any], workdir: Workdir) -> Task:
    """The task with the training options in force."""
    manifest.check_files(workdir.codec, data["codec"], "codec", PREPARE_HINT)
    task = load_task(workdir.codec, PREPARE_HINT)
    names = {item.name for item in dataclasses.fields(task.options)}
    task.options = dataclasses.replace(
        task.options, **{k: v for k, v in options.items() if k in names}
    )
    return task


def _save_codec(task: Task, place: Run) -> dict[str, Any]:
    from bigmodel_cli.tasks import save_task

    with manifest.storage(place.codec):
        place.codec.mkdir(exist_ok=True)
        save_task(task, place.codec)
        return manifest.folder_info(place.codec)


def _fits(rows: int, context: int, data: dict[str, Any]) -> None:
    tokens = data["splits"]["train"]["tokens"]
    if not rows:
        raise DataError("the train split holds nothing to predict", "prepare more data")
    if context > tokens:
        raise UsageError(
            f"--context is {context:,}, but the train split has only {tokens:,} tokens",
            "choose a shorter context, or prepare more data",
        )


def _batch_size(model: ModelConfig, rows: int, device: str) -> int:
    """Rows per update: small models in short runs gain more from many updates than from exact
    gradients (docs/defaults.md); larger ones want more tokens, and a GPU is idle with few."""
    tokens = TOKENS_PER_UPDATE * max(1.0, model.parameters / 4e6) ** 0.5
    tokens *= 8 if device == "cuda" else 1
    return int(max(1, min(rows, round(tokens / model.shape.context))))


def _compile(
    config: TrainConfig, model: ModelConfig, resolved: Mapping[str, Any], context: int,
    told: Context,
) -> bool:  # fmt: skip
    """Whether kernels are fused, which takes about 20 seconds before the first update, and then
    saves a fifth of the time (docs/defaults.md). Raises UsageError for --compile on where it cannot
    be done."""
    import torch

    if config.compile == "off" or model.family != "transformer":
        return False
    steps, seconds = resolved["length"]["steps"], resolved["length"]["seconds"]
    if seconds is None:  # at a guess, which depends on nothing but the configuration
        flops = 3 * flops_per_token(model) * steps * resolved["batch_size"] * context
        seconds = flops / (NOMINAL_FLOPS[resolved["device"]] * resolved["threads"])
    if config.compile == "auto" and seconds < COMPILED_SECONDS:
        return False
    reason = _cannot_compile(torch.device(resolved["device"]), told)
    if reason and config.compile == "on":
        raise UsageError(f"--compile on: {reason}", "install g++, or leave --compile out")
    if reason:
        told.note(f"not compiled: {reason}")
    return not reason


def _cannot_compile(device: Any, context: Context) -> str:
    from bigmodel_cli.models import device as devices

    reason = devices.cannot_compile(device)
    if context.stop.requested is not None:  # torch makes a reason of whatever is raised
        context.stop.raise_()
    return reason


def _micro_batch(config: TrainConfig, model: ModelConfig, batch: int, device: str, memory: int
                 ) -> int:  # fmt: skip
    """Rows at a time: what fits in 40 % of the memory beside weights and optimizer; on a CPU no
    more than keeps each array near the caches (measured: 1.5 times as fast as all at once)."""
    if config.micro_batch:
        return min(config.micro_batch, batch)
    room = max(0, memory * 0.4 - model.parameters * 16)
    most = max(1, int(room // row_bytes(model)))
    if device == "cpu" and model.family != "rnn":  # whose time steps want many rows
        tokens = min(2048, max(1024, CACHE_BYTES // (4 * model.shape.vocabulary)))
        most = min(most, max(1, tokens // model.shape.context))
    return -(-batch // -(-batch // most))  # equal parts


def _resume(place: Run, model: Any, optimizers: Any, context: Context) -> dict[str, Any]:
    """Loads the newest checkpoint that is whole; {} when the run is at its beginning."""
    found = checkpoint.newest(place.checkpoints, context.warn)
    if found is None:
        place.log.unlink(missing_ok=True)
        return {}
    path, state = found
    weights = checkpoint.load_tensors(path / checkpoint.MODEL)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(
            f"the checkpoint `{path}` does not fit the run: {error}", "bigmodel train --restart"
        ) from None
    optimizers.load(checkpoint.load_tensors(path / checkpoint.OPTIMIZER))
    context.note(f"resuming at step {state['step']:,}")
    return state
