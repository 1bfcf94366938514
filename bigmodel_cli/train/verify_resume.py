"""The proof that a run resumes exactly: on one's own data and options, with a real kill −9."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Mapping
from typing import Any

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.workdir import Run, Workdir, lock
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import BigmodelError, GateError, UsageError
from bigmodel_cli.events import Context, Event, StepDone
from bigmodel_cli.train import distributed
from bigmodel_cli.train.run import run

TIMES = ("elapsed", "reserve", "log_bytes")  # of a checkpoint's state: no two runs have the same


def verify(
    config: TrainConfig, task_options: Mapping[str, Any], workdir: Workdir, context: Context
) -> dict[str, Any]:
    """Trains --verify-resume steps whole, and again with a kill −9 past the middle, between two
    checkpoints, and a resume in a new process; nothing of both is kept. Says what was compared.

    Raises GateError when a byte differs, and what training raises.
    """
    if distributed.world() > 1:
        raise UsageError("--verify-resume proves one process's run", "call it without torchrun")
    steps = config.verify_resume or 0
    config = dataclasses.replace(
        config,
        steps=steps,
        epochs=None,
        tokens=None,
        minutes=None,
        restart=False,
        checkpoint_every=max(1, steps // 3),
        verify_resume=None,
    )
    killed_after = steps // 2 + 1
    scratch = Workdir(workdir.root / f"{manifest.TEMPORARY}verify", workdir.data)
    with lock(scratch.root, workdir.root):
        try:
            _clear(scratch)
            context.note(f"{steps} steps, whole")
            run(config, task_options, scratch, "whole", context)
            context.note(f"{steps} steps, with a kill −9 after step {killed_after}")
            arguments = (config, dict(task_options), scratch, killed_after)
            _child(arguments, -signal.SIGKILL)
            last = checkpoint.names(scratch.run("cut").checkpoints)[-1:]
            _child((*arguments[:3], 0), 0)
            compiled = scratch.run("whole").read_config().resolved.compile
            whole, cut = (_found(scratch.run(name)) for name in ("whole", "cut"))
        finally:
            _clear(scratch)
    shutil.rmtree(scratch.root, ignore_errors=True)
    differing = [what for what in whole if whole[what] != cut[what]]
    if differing:
        raise GateError(
            f"the run that was killed after step {killed_after} is not the whole one: "
            + ", ".join(differing)
            + " differ",
            "please report it, with the options",
        )
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return {
        "verified": True,
        "steps": steps,
        "killed_after": killed_after,
        "resumed_from": last[0] if last else "the beginning",
        "compared": sorted(whole),
        "compiled": compiled,
        "sha256": digest,
    }


def _clear(scratch: Workdir) -> None:
    """Leaves nothing of an earlier proof, which may have been killed."""
    shutil.rmtree(scratch.root / "runs", ignore_errors=True)


def _child(arguments: tuple[Any, ...], wanted: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_train, args=arguments)
    process.start()
    try:
        process.join()
    finally:
        process.kill()
        process.join()
    if process.exitcode != wanted:
        raise BigmodelError(f"a run ended with code {process.exitcode} instead of {wanted}")


def _train(config: TrainConfig, options: dict[str, Any], scratch: Workdir, kill_after: int) -> None:
    """Trains the run `cut`, until it kills itself (0: never). Ctrl-C is its parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def emit(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    run(config, options, scratch, "cut", Context(emit))


def _found(place: Run) -> dict[str, Any]:
    """What must be the same: the hashes of the tensors, the state, and each step's losses."""
    folder = place.checkpoints / checkpoint.names(place.checkpoints)[-1]
    state = {k: v for k, v in as_json(checkpoint.read_state(folder)).items() if k not in TIMES}
    lines = [json.loads(line) for line in place.log.read_text("utf-8").splitlines()]
    return {
        "weights": manifest.sha256(folder / checkpoint.MODEL),
        "optimizer": manifest.sha256(folder / checkpoint.OPTIMIZER),
        "state": state,
        "losses": [
            (x["step"], x.get("loss"), x.get("gradient_norm"), x.get("validation")) for x in lines
        ],
    }
