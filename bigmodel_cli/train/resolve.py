"""What a training configuration becomes on this machine: sizes, precision, threads, kernels.

Decided once, when a run is begun, from the configuration and the machine's size, never from
timing; kept in config.json, which a resume obeys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from msgspec.structs import replace

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.artifacts.records import DataManifest, Resolved, RunConfig
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.events import Context
from bigmodel_cli.models import cost
from bigmodel_cli.models import device as devices
from bigmodel_cli.models.config import FORMER, ModelConfig
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import Plan, Task
from bigmodel_cli.train import distributed, engine, schedule
from bigmodel_cli.train.init_from import Origin, shaped
from bigmodel_cli.train.optim import LEARNING_RATES

UNEVEN = "rows of unlike lengths would each be compiled by themselves"


def resolve(
    config: TrainConfig,
    options: Mapping[str, Any],
    data: DataManifest,
    task: Task,
    plan: Plan,
    origin: Origin | None,
    run: str,
    context: Context,
) -> RunConfig:
    """A new run's configuration; of what its folder will hold, nothing is listed yet.

    Raises UsageError and DataError.
    """
    device = devices.set_up(config.device, config.threads)
    model = shaped(origin, config, task) if origin else model_config(
        config.model, config.size or ("small" if device.type == "cuda" else "nano"), task.shape(),
        width=config.width, layers=config.layers, heads=config.heads, kv_heads=config.kv_heads,
        hidden=config.hidden, cell=config.cell, window=config.window, tie=config.tie,
        dropout=config.dropout,
    )  # fmt: skip
    for name in FORMER:
        usual = None, getattr(TrainConfig(), name), task.defaults.get(name)
        if getattr(config, name) not in usual and not hasattr(model, name):
            context.warn(f"--{name.replace('_', '-')} changes nothing: {model.kind} has none")
    if not plan.rows:
        raise DataError("the train split holds nothing to predict", "prepare more data")
    wanted = config.batch_size or cost.batch_size(model, plan.row_tokens, device.type)
    batch = int(min(plan.rows, wanted))
    if config.batch_size and config.batch_size > batch:
        context.warn(
            f"--batch-size {config.batch_size:,}: an epoch has {plan.rows:,} rows, and an "
            "update takes no more"
        )
    length = schedule.length(config, plan.rows, batch, plan.row_tokens)
    of_rank = -(-batch // distributed.world())
    micro_batch = config.micro_batch or cost.micro_batch(
        model, plan.row_tokens, of_rank, device.type, engine.memory_bytes(device)
    )
    precision: Any = config.precision
    if precision == "auto":
        precision = "bf16" if devices.has_bf16(device) else "fp32"
    resolved = Resolved(
        batch_size=batch,
        micro_batch=min(micro_batch, of_rank),
        threads=torch.get_num_threads(),
        precision=precision,
        learning_rate=config.learning_rate or LEARNING_RATES[config.optimizer],
        device="cuda" if device.type == "cuda" else "cpu",
        length=length,
    )
    resolved = replace(resolved, compile=_compile(config, model, resolved, plan, context))
    size = config.size or f"{model.layers} × {model.width}"
    ranks = f"{distributed.world()} ranks of " if distributed.world() > 1 else ""
    context.note(
        f"{model.family} {size}, {model.parameters() / 1e6:.1f} M weights; {length.text}; "
        f"{batch} × {plan.row_tokens:.4g} {task.positions} an update; {precision} on "
        f"{device.type}, {ranks}{resolved.threads} threads" + ", compiled" * resolved.compile
    )
    recipe = {"stage": "train", "options": options, "parent": data.fingerprint}
    return RunConfig(
        run=run,
        task=task.name,
        options=dict(options),
        data_fingerprint=data.fingerprint,
        fingerprint=manifest.fingerprint(recipe),
        origin=origin.name if origin else None,
        resolved=resolved,
        model=model.to_json(),
        hardware=engine.hardware(device),
    )


def _compile(
    config: TrainConfig,
    model: ModelConfig,
    resolved: Resolved,
    plan: Plan,
    context: Context,
) -> bool:
    """Whether kernels are fused. Raises UsageError for --compile on where it cannot be done."""
    if config.compile == "off":
        return False
    if not model.can_compile:
        if config.compile == "on":
            raise UsageError(
                f"--compile on: there is nothing to fuse in --model {model.family}",
                "leave --compile out",
            )
        return False
    length, device = resolved.length, resolved.device
    tokens = (length.steps or 0) * resolved.batch_size * plan.row_tokens
    if config.compile == "auto" and not (
        plan.even and cost.repays_compiling(model, tokens, length.seconds, device, resolved.threads)
    ):
        return False
    reason = cannot_compile(torch.device(device), context) if plan.even else UNEVEN
    if reason and config.compile == "on":
        raise UsageError(
            f"--compile on: {reason}",
            "install g++, or leave --compile out" if plan.even else "leave --compile out",
        )
    if reason:
        context.note(f"not compiled: {reason}")
    return not reason


def cannot_compile(device: Any, context: Context) -> str:
    """Why nothing can be compiled; nothing if it can. Raises what a signal asks for."""
    reason = devices.cannot_compile(device)
    if context.stop.requested is not None:  # torch makes a reason of whatever is raised
        context.stop.raise_()
    return reason
