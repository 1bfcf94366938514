"""bigmodel train: options → one call → where the run stands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.cli import render
from bigmodel_cli.cli.options import Common, command
from bigmodel_cli.cli.stage import running, settle
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.models.sizes import TABLE_VOCABULARIES, size_table
from bigmodel_cli.options import Key, keys
from bigmodel_cli.tasks import stored_task, task_class, task_names
from bigmodel_cli.tasks.keys import task_keys, task_options, train_keys

HELP = """Train a model on work/data; checkpoints go to work/runs/<run>.

    bigmodel train --minutes 10

    bigmodel train --run lstm --model rnn --cell lstm --size mini --epochs 3 --batch-size 64

    torchrun --nproc-per-node 2 -m -- bigmodel_cli train    (several GPUs, or machines)

A run that was stopped continues where it was, to the very same weights; a finished one is up to
date; one that was started with different options is not touched (--restart, or another --run). To
train a finished one further, start another from its weights: --from default --run longer.

Sizes, as blocks × width and millions of weights with a small vocabulary ({vocabularies}):

{table}"""


def register(app: typer.Typer) -> None:
    rows = [("", "transformer", "rnn", "mlp"), *size_table()]
    table = "\n".join(f"    {a:<6} {b:<26} {c:<17} {d}" for a, b, c, d in rows)
    small, *_, large = (f"{count:,}" for count in TABLE_VOCABULARIES.values())
    help_ = HELP.format(table=table, vocabularies=f"{small} to {large} tokens")
    command(app, "train", [*map(_by_task, keys(TrainConfig)), *task_keys("train")], act, help_)


def _by_task(key: Key) -> Key:
    """A key whose help also says which tasks have another default."""
    other = {
        n: task_class(n).defaults[key.name]
        for n in task_names()
        if key.name in task_class(n).defaults
    }
    if not other:
        return key
    shown = ", ".join([str(key.default), *(f"{name}: {value}" for name, value in other.items())])
    return dataclasses.replace(key, meta={**key.meta, "shown_default": shown})


def act(workdir: Path, run: str, flags: dict[str, Any], common: Common) -> None:
    place = Workdir(workdir)
    task = stored_task(place.read_data().task) if place.manifest.exists() else None
    known, own, others = train_keys(task)
    config = settle("train", [*known, *own], flags, common, others)
    if config is None:
        return
    from bigmodel_cli.train import distributed
    from bigmodel_cli.train.run import run as train

    task = task or stored_task(place.read_data().task)
    options = task_options(task, "train", config.said([*own, *others]))
    built = config.build(TrainConfig)
    if built.verify_resume:
        from bigmodel_cli.train.verify_resume import verify

        with running(common) as context:
            proof = verify(built, options, place, context)
        if common.json:
            render.document(proof)
        elif not common.quiet:
            render.say(
                f"verified: killed after step {proof['killed_after']}, resumed from "
                f"{proof['resumed_from']}, and after {proof['steps']} steps the same bytes "
                f"({proof['sha256'][:12]}): "
                + ", ".join(proof["compared"])
                + (", compiled" if proof["compiled"] else "")
            )
        return
    with running(common) as context:
        done = train(built, options, place, run, context)
    if not distributed.leads():
        return
    if common.json:
        render.document(
            {
                "run": done.run,
                "best": done.checkpoint,
                "step": done.step,
                "tokens": done.tokens,
                "seconds": round(done.seconds, 1),
                "validation": dict(done.validation),
                "up_to_date": done.fresh,
            }
        )
        return
    if common.quiet:
        return
    state = "up to date" if done.fresh else "trained"
    render.say(
        f"{state}: {workdir}/runs/{done.run}, {done.step:,} steps, "
        f"{done.tokens:,} {task.positions}, {done.seconds:.0f} s"
    )
    if done.validation:
        figures = ", ".join(
            f"{name} {value:.4g}" for name, value in done.validation.items() if value is not None
        )
        render.say(f"  best checkpoint {done.checkpoint}: validation {figures}")
