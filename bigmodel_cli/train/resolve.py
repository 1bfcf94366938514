"""What a training configuration becomes on this machine: sizes, precision, threads, kernels.

Decided once, when a run is begun, from the configuration and the machine's size, never from
timing; kept in config.json, which a resume obeys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.events import Context
from bigmodel_cli.models import device as devices
from bigmodel_cli.models.sizes import ModelConfig, flops_per_token, model_config, row_bytes
from bigmodel_cli.tasks import Plan, Task
from bigmodel_cli.train import budget, engine, parallel
from bigmodel_cli.train.optim import LEARNING_RATES
from bigmodel_cli.train.origin import Origin, shaped

TOKENS_PER_UPDATE = 2048  # for up to 4 million weights
LOGITS_BYTES = 32 << 20  # larger arrays come from the system page by page
COMPILED_SECONDS = {"cpu": 600, "cuda": 60}  # of a run that repays it
UNEVEN = "rows of unlike lengths would each be compiled by themselves"
NOMINAL_FLOPS = {"cpu": 150e9, "cuda": 100e12}  # of one thread, of a GPU


def resolve(
    config: TrainConfig, options: Mapping[str, Any], data: Mapping[str, Any], task: Task,
    plan: Plan, origin: Origin | None, run: str, context: Context,
) -> dict[str, Any]:  # fmt: skip
    """A new run's configuration, as config.json keeps it.

    Raises UsageError and DataError.
    """
    device = devices.set_up(config.device, config.threads)
    model = shaped(origin, config, task) if origin else model_config(
        config.model, config.size or ("small" if device.type == "cuda" else "nano"), task.shape(),
        width=config.width, layers=config.layers, heads=config.heads, kv_heads=config.kv_heads,
        hidden=config.hidden, cell=config.cell, window=config.window, tie=config.tie,
        dropout=config.dropout,
    )  # fmt: skip
    if not plan.rows:
        raise DataError("the train split holds nothing to predict", "prepare more data")
    batch = int(min(plan.rows, config.batch_size or _batch_size(model, plan, device.type)))
    if config.batch_size and config.batch_size > batch:
        context.warn(f"--batch-size {config.batch_size:,}: an epoch has {plan.rows:,} rows, and an "
                     "update takes no more")  # fmt: skip
    length = budget.length(config, plan.rows, batch, plan.row_tokens)
    of_rank = -(-batch // parallel.world())
    memory = engine.memory_bytes(device)
    micro_batch = _micro_batch(config, model, plan, of_rank, device.type, memory)
    resolved: dict[str, Any] = {
        "batch_size": batch,
        "micro_batch": micro_batch,
        "threads": torch.get_num_threads(),
        "precision": config.precision if config.precision != "auto"
        else "bf16" if devices.has_bf16(device) else "fp32",
        "learning_rate": config.learning_rate or LEARNING_RATES[config.optimizer],
        "device": device.type,
        "length": dataclasses.asdict(length),
    }  # fmt: skip
    resolved["compile"] = _compile(config, model, resolved, plan, context)
    size = config.size or f"{model.layers} × {model.width}"
    ranks = f"{parallel.world()} ranks of " if parallel.world() > 1 else ""
    context.note(
        f"{model.family} {size}, {model.parameters / 1e6:.1f} M weights; {length.text}; "
        f"{batch} × {plan.row_tokens:.4g} {task.positions} an update; {resolved['precision']} on "
        f"{device.type}, {ranks}{resolved['threads']} threads" + ", compiled" * resolved["compile"]
    )
    return {
        "stage": "train", "run": run, "task": task.name, "options": options,
        "data_fingerprint": data["fingerprint"],
        "fingerprint": manifest.fingerprint(
            {"stage": "train", "options": options, "parent": data["fingerprint"]}
        ),
        "origin": origin.name if origin else None,
        "resolved": resolved, "model": model.to_json(), "hardware": engine.hardware(device),
    }  # fmt: skip


def _batch_size(model: ModelConfig, plan: Plan, device: str) -> int:
    """Rows per update: small models in short runs gain more from many updates than from exact
    gradients (docs/defaults.md); larger ones want more tokens, and a GPU is idle with few."""
    tokens = TOKENS_PER_UPDATE * max(1.0, model.parameters / 4e6) ** 0.5
    tokens *= 8 if device == "cuda" else 1
    rows: int = max(1, round(tokens / plan.row_tokens))
    return rows


def _compile(
    config: TrainConfig, model: ModelConfig, resolved: Mapping[str, Any], plan: Plan,
    told: Context,
) -> bool:  # fmt: skip
    """Whether kernels are fused, which takes about 20 seconds before the first update, and then
    saves a fifth of the time (docs/defaults.md). Raises UsageError for --compile on where it cannot
    be done."""
    if config.compile == "off":
        return False
    if model.family != "transformer":
        if config.compile == "on":
            raise UsageError(
                f"--compile on: there is nothing to fuse in --model {model.family}",
                "leave --compile out",
            )
        return False
    steps, seconds = resolved["length"]["steps"], resolved["length"]["seconds"]
    if seconds is None:  # at a guess, which depends on nothing but the configuration
        flops = 3 * flops_per_token(model) * steps * resolved["batch_size"] * plan.row_tokens
        threads = resolved["threads"] if resolved["device"] == "cpu" else 1
        seconds = flops / (NOMINAL_FLOPS[resolved["device"]] * threads)
    if config.compile == "auto" and (
        seconds < COMPILED_SECONDS[resolved["device"]] or not plan.even
    ):
        return False
    reason = cannot_compile(torch.device(resolved["device"]), told) if plan.even else UNEVEN
    if reason and config.compile == "on":
        raise UsageError(
            f"--compile on: {reason}", "install g++, or leave --compile out" if plan.even
            else "leave --compile out",
        )  # fmt: skip
    if reason:
        told.note(f"not compiled: {reason}")
    return not reason


def cannot_compile(device: Any, context: Context) -> str:
    """Why nothing can be compiled; nothing if it can. Raises what a signal asks for."""
    reason = devices.cannot_compile(device)
    if context.stop.requested is not None:  # torch makes a reason of whatever is raised
        context.stop.raise_()
    return reason


def _micro_batch(
    config: TrainConfig, model: ModelConfig, plan: Plan, batch: int, device: str, memory: int
) -> int:
    """Rows at a time: what fits in 40 % of the memory beside weights and optimizer; on a CPU no
    more than keeps each array near the caches (measured: 1.5 times as fast as all at once)."""
    if config.micro_batch:
        return min(config.micro_batch, batch)
    room = max(0, memory * 0.4 - model.parameters * 18)
    most = max(1, int(room // row_bytes(model, device)))
    if device == "cpu" and model.family != "rnn":  # whose time steps want many rows
        logits = 1 if model.shape.classes else model.shape.vocabulary
        tokens = min(2048, max(1024, LOGITS_BYTES // (2 * logits)))
        most = min(most, max(1, int(tokens // plan.row_tokens)))
    return -(-batch // -(-batch // most))  # equal parts
