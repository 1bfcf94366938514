"""bigmodel serve: a bundle → answers over HTTP, from that folder and from nothing else."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.cli import render
from bigmodel_cli.cli.options import Common, command
from bigmodel_cli.cli.stage import bundle_of, running, settle, write_nothing
from bigmodel_cli.config import ServeConfig
from bigmodel_cli.errors import UsageError
from bigmodel_cli.events import Context
from bigmodel_cli.options import keys

HELP = """Answer HTTP requests from a bundle, and from nothing else.

    bigmodel serve

    bigmodel serve model/ --port 8080 --threads 2

A bundle's folder is all that it needs: no working directory, and no file is written anywhere, so
that the folder may be read-only. POST /predict answers like one line of `bigmodel predict`, POST
/v1/completions like OpenAI's server; GET /health and /v1/models are quick. It listens on this
machine alone, and ends with Ctrl-C or SIGTERM. --json prints the address as one document."""


def register(app: typer.Typer) -> None:
    command(app, "serve", keys(ServeConfig), act, HELP)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Common) -> None:
    resolved = settle("serve", keys(ServeConfig), flags, common)
    if resolved is None:
        return
    config = resolved.build(ServeConfig)
    write_nothing()
    check(config.host, config.port)
    folder = bundle_of(workdir, run, config.bundle)
    with running(common) as context:
        serve(replace(config, bundle=str(folder)), context, common.json)


def check(host: str, port: int) -> None:
    """Raises UsageError when the server's libraries are missing, or when it cannot listen there."""
    for name in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"the server needs {name}", "pip install 'bigmodel[serve]'")
    from bigmodel_cli.deploy.server import listen

    listen(host, port).close()


def serve(config: ServeConfig, context: Context, as_json: bool) -> None:
    """Answers from a bundle until SIGTERM or Ctrl-C. as_json: prints the address, once it can."""
    from bigmodel_cli.deploy import server
    from bigmodel_cli.deploy.predict import Predictor

    predictor = Predictor(Path(config.bundle), config.device, config.threads, config.precision)

    def ready(url: str) -> None:
        context.note(f"serving {url} (Ctrl-C ends it)")
        if as_json:
            render.document(
                {
                    "url": url,
                    "bundle": config.bundle,
                    "model": predictor.name,
                    "task": predictor.task.name,
                }
            )

    server.serve(predictor, config.host, config.port, ready)
