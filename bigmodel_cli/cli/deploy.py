"""bigmodel deploy: options → one call → the bundle and its receipt, or a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.artifacts.records import Receipt, as_json
from bigmodel_cli.artifacts.tables import figure
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.cli import render, serve
from bigmodel_cli.cli.options import Common, command
from bigmodel_cli.cli.stage import running, settle
from bigmodel_cli.config import DeployConfig, ServeConfig
from bigmodel_cli.errors import ArtifactError, ResourceError
from bigmodel_cli.options import keys

HELP = """Export a checkpoint as a bundle, and prove that it answers as the checkpoint does.

    bigmodel deploy

    bigmodel deploy --precision int8 --serve --port 8080

The bundle of a causal transformer loads in transformers, vLLM and other engines with no custom
code; rnn, mlp and masked models load in bigmodel alone, and say so. receipt.json holds the proof.
With --serve it then serves the bundle, as `bigmodel serve` does."""


def register(app: typer.Typer) -> None:
    command(app, "deploy", keys(DeployConfig), act, HELP)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Common) -> None:
    resolved = settle("deploy", keys(DeployConfig), flags, common)
    if resolved is None:
        return
    config = resolved.build(DeployConfig)
    if config.serve:
        serve.check(config.host, config.port)  # before the export
    from bigmodel_cli.deploy.run import run as deploy

    def answer(folder: Path, as_json: bool) -> None:
        settings = ServeConfig(
            str(folder), config.host, config.port, device=config.device, threads=config.threads
        )
        serve.serve(settings, context, as_json)

    with running(common) as context:
        place = Workdir(workdir)
        try:
            done = deploy(config, place, run, context)
        except (ArtifactError, ResourceError) as error:  # such as a disk that is read only
            folder = place.run(run).bundle
            said = {"checkpoint", "precision", "force"} & set(resolved.said(keys(DeployConfig)))
            if not config.serve or said or not folder.is_dir():
                raise
            context.warn(f"{error.message}: the bundle `{folder}` is served as it is")
            answer(folder, common.json)
            return
        if common.json:
            render.document(
                {
                    "bundle": str(done.folder),
                    "layout": done.layout,
                    "up_to_date": done.fresh,
                    "receipt": as_json(done.receipt),
                }
            )
        elif not common.quiet:
            show(done.folder, done.receipt, done.layout, done.fresh)
        if config.serve:
            answer(done.folder, as_json=False)


def show(folder: Path, receipt: Receipt, layout: str, fresh: bool) -> None:
    """The bundle and what its receipt proves."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    render.say(
        f"{'up to date' if fresh else 'deployed'}: {folder} ({render.size(size)}, "
        f"{receipt.checkpoint}, layout {layout})"
    )
    for loader, proof in receipt.proofs.items():
        if proof.largest_logit_difference is not None:
            render.say(
                f"  {proof.loader or loader}: largest logit difference "
                f"{proof.largest_logit_difference:.1e}, {proof.greedy_identical} of "
                f"{proof.greedy_tokens} greedy tokens the same"
            )
        else:
            render.say(f"  {loader}: {proof.proof}")
    if effect := receipt.precision:
        low, full = figure(effect.value), figure(effect.fp32)
        where = f"the first {effect.terms:,} targets of the {receipt.split} split"
        render.say(f"  answers in {effect.name}: {effect.metric} {low}, in fp32 {full} ({where})")
    if not receipt.evaluated:
        render.say("  These weights were not evaluated; the model card says so.")
