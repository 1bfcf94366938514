"""bigmodel prepare: options → one call → what was made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.artifacts.records import DataManifest, as_json
from bigmodel_cli.artifacts.tables import splits_table
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.cli import render
from bigmodel_cli.cli.options import Common, command
from bigmodel_cli.cli.stage import running, settle
from bigmodel_cli.config import PrepareConfig
from bigmodel_cli.options import keys
from bigmodel_cli.tasks.keys import task_keys

HELP = """Turn raw files into tokenized, checksummed shards in work/data.

    bigmodel prepare data/stories

    bigmodel prepare corpus/ 'more/**/*.jsonl.gz' --test held-out.txt --vocab-size 8192

Reads text, Markdown, source code, .jsonl, .json, .csv, .tsv (each also as .gz, .zst, .bz2, .xz or
.lzma, and in any --encoding) and .parquet; and images: folders of classes, IDX files, .npy and
.npz, or columns with files or the paths to them. Says which columns it reads, and which files it
skips. Cleans, drops exact duplicates, splits by a hash of the content, learns a tokenizer on the
train split, and counts all that was dropped. Does nothing when it is up to date."""


def register(app: typer.Typer) -> None:
    command(app, "prepare", [*keys(PrepareConfig), *task_keys("prepare")], act, HELP, run=False)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Common) -> None:
    del run
    config = settle("prepare", [*keys(PrepareConfig), *task_keys("prepare")], flags, common)
    if config is None:
        return
    from bigmodel_cli.prepare.run import run as prepare

    said = config.said(task_keys("prepare"))
    began = time.monotonic()
    with running(common) as context:
        done = prepare(config.build(PrepareConfig), said, Workdir(workdir), context)
    if common.json:
        render.document({**as_json(done.manifest), "up_to_date": done.fresh})
    elif not common.quiet:
        show(done.manifest, done.fresh, workdir, time.monotonic() - began)


def show(data: DataManifest, fresh: bool, workdir: Path, seconds: float) -> None:
    """A summary of the data's manifest."""
    if fresh:
        render.say(f"up to date: {workdir}/data ({data.fingerprint[:12]})")
        return
    render.say(f"prepared {workdir}/data in {seconds:.1f} s ({data.fingerprint[:12]})")
    header, splits = splits_table(data)
    render.table(["", *header[1:]], splits)
    ledger = data.ledger
    render.say(f"  {ledger.came_in.rows:,} rows came in, {ledger.kept.rows:,} were kept")
    for kind, what, reasons in (
        ("dropped", "rows", ledger.dropped),
        ("removed", "rows cleaned", ledger.removed),
    ):
        for reason, entry in reasons.items():
            render.say(
                f"  {kind} {reason}: {entry.rows:,} {what}, {entry.bytes:,} bytes "
                f"(first: {entry.first})"
            )
