"""bigmodel deploy: options → one call → the bundle and its receipt, or a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.cli import render
from bigmodel_cli.cli.options import command
from bigmodel_cli.cli.stage import running, settle
from bigmodel_cli.config import DeployConfig
from bigmodel_cli.errors import UsageError
from bigmodel_cli.options import keys

HELP = """Export a checkpoint as a bundle, and prove that it answers as the checkpoint does.

    bigmodel deploy

    bigmodel deploy --precision int8 --serve --port 8080

The bundle of a causal transformer loads in transformers, vLLM and other engines with no custom
code; rnn, mlp and masked models load in bigmodel alone, and say so. receipt.json holds the proof.
--serve answers POST /predict and /v1/completions on this machine."""


def register(app: typer.Typer) -> None:
    command(app, "deploy", keys(DeployConfig), act, HELP)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Mapping[str, Any]) -> None:
    resolved = settle("deploy", keys(DeployConfig), flags, common)
    if resolved is None:
        return
    config = resolved.build(DeployConfig)
    if config.serve:
        _need_server()
        from bigmodel_cli.deploy.server import listen

        listen(config.host, config.port).close()  # before the export, if it is not to be had
    from bigmodel_cli.deploy.run import run as deploy

    with running(common) as context:
        done = deploy(config, Workdir(workdir), run, context)
        if common["json_"]:
            render.document(
                {"bundle": str(done.folder), "layout": done.layout, "up_to_date": done.fresh,
                 "receipt": done.receipt}
            )  # fmt: skip
        elif not common["quiet"]:
            show(done.folder, done.receipt, done.layout, done.fresh)
        if config.serve:
            from bigmodel_cli.deploy.predict import Predictor
            from bigmodel_cli.deploy.server import serve

            predictor = Predictor(done.folder, config.device, config.threads, config.precision)
            serve(predictor, config.host, config.port, context)


def _need_server() -> None:
    import importlib.util

    for name in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"--serve needs {name}", "pip install 'bigmodel[serve]'")


def show(folder: Path, receipt: Mapping[str, Any], layout: str, fresh: bool) -> None:
    """The bundle and what its receipt proves."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    render.say(f"{'up to date' if fresh else 'deployed'}: {folder} ({render.size(size)}, "
          f"{receipt['checkpoint']}, layout {layout})")  # fmt: skip
    for loader in ("bigmodel", "transformers"):
        proof = receipt[loader]
        if proof["proof"] == "passed":
            render.say(f"  {proof.get('loader', loader)}: largest logit difference "
                  f"{proof['largest_logit_difference']:.1e}, {proof['greedy_identical']} of "
                  f"{proof['greedy_tokens']} greedy tokens the same")  # fmt: skip
        else:
            render.say(f"  {loader}: {proof['proof']}")
    if "precision" in receipt:
        effect = receipt["precision"]
        from bigmodel_cli.evaluate.report import figure

        low, full = (figure(effect[name]) for name in (effect["name"], "fp32"))
        where = f"the first {effect['terms']:,} targets of the {receipt['split']} split"
        render.say(
            f"  answers in {effect['name']}: {effect['metric']} {low}, in fp32 {full} ({where})"
        )
    if not receipt["evaluated"]:
        render.say("  These weights were not evaluated; the model card says so.")
