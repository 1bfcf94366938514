"""bigmodel evaluate: options → one call → a table, a summary, an exit code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.tables import METRICS, metric_rows
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.cli import render
from bigmodel_cli.cli.advice import here
from bigmodel_cli.cli.options import Common, command
from bigmodel_cli.cli.stage import running, settle
from bigmodel_cli.config import EvaluateConfig
from bigmodel_cli.errors import GateError, ResourceError
from bigmodel_cli.options import keys

HELP = """Score a checkpoint beside the baselines; exit 3 if a --require does not hold.

    bigmodel evaluate --require "bits_per_byte<=baseline"

    bigmodel evaluate --against main.json --require "bits_per_byte<=previous+0.5%" --json

Each figure comes with a 95 % interval, by bootstrap over units (documents, pairs, images …).
Whether the model is better or worse than the strongest baseline, or an earlier model, is judged by
the difference on the same units: worse if it is so with 95 % confidence, and so for better; else it
is unclear. Writes evaluation.json, evaluation.safetensors (each unit's statistics; to compare with
later, keep both, as main.json and main.safetensors) and report.html to the run, and a table to the
file that GITHUB_STEP_SUMMARY names. A stopped evaluation continues where it was."""


def register(app: typer.Typer) -> None:
    command(app, "evaluate", keys(EvaluateConfig), act, HELP)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Common) -> None:
    config = settle("evaluate", keys(EvaluateConfig), flags, common)
    if config is None:
        return
    from bigmodel_cli.evaluate.report import gate_text, markdown, title
    from bigmodel_cli.evaluate.run import run as evaluate
    from bigmodel_cli.train.longer import command as longer

    place = Workdir(workdir)
    with running(common) as context:
        done = evaluate(config.build(EvaluateConfig), place, run, context)
    evaluation = done.evaluation
    failed = [gate for gate in evaluation.gates if not gate.passed]
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if common.json:
        render.document({**as_json(evaluation), "up_to_date": done.fresh})
    elif not common.quiet:
        render.say(title(evaluation) + (" · up to date" if done.fresh else ""))
        rows = metric_rows(evaluation)
        render.table(METRICS, rows)
        losing = next(iter(evaluation.metrics))
        if rows[0][-1] == "worse":
            advice = here(longer(place.run(run), place.run(run).read_config()))
            name = evaluation.baseline[losing].name
            render.say(
                f"  The model loses to {name}: make it larger, ship the baseline, or train "
                f"it longer: {advice}"
            )
        for gate in evaluation.gates:
            render.say("  " + gate_text(gate))
        render.say(f"  {place.run(run).report}")
    if summary:
        try:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(markdown(evaluation))
        except OSError as error:
            raise ResourceError(
                f"GITHUB_STEP_SUMMARY `{summary}` cannot be written: {error.strerror}"
            ) from None
    if failed:
        if common.json:
            raise typer.Exit(GateError.code)  # the one document is out already
        names = ", ".join(f"`{gate.rule}`" for gate in failed)
        raise GateError(f"{len(failed)} of {len(evaluation.gates)} gates failed: {names}")
