"""bigmodel predict: one request on the screen, or JSON lines from standard input."""

from __future__ import annotations

import os
import select
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.cli import render
from bigmodel_cli.cli.options import Common, command
from bigmodel_cli.cli.stage import bundle_of, running, settle, write_nothing
from bigmodel_cli.config import PredictConfig
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.options import keys
from bigmodel_cli.tasks import task_class, task_names

HELP = """Answer requests from a bundle, and from nothing else.

    bigmodel predict "Once upon a time" --max-tokens 100 --temperature 0.8

    echo '{"id": 1, "prompt": "Once", "max_tokens": 20}' | bigmodel predict --bundle model/

Without a prompt, reads JSON lines and writes one answer each, in order; a bad line yields
{"error": {...}} in its place, and exit 4 at the end. What a line does not say is taken from the
options. Unknown names in a line are ignored, with a warning; a misspelled name, and one that only
other engines know, make it a bad line. A prompt may be a list of token ids, too.

A masked model fills in each <|mask|> of its prompt. For other tasks the prompt is what the user
says, the source, the text, the path of an image, or items with commas between them."""
BLOCK = 1 << 16
SHOWN_NAMES = 10


def register(app: typer.Typer) -> None:
    command(app, "predict", keys(PredictConfig), act, HELP)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Common) -> None:
    resolved = settle("predict", keys(PredictConfig), flags, common)
    if resolved is None:
        return
    config = resolved.build(PredictConfig)
    has_prompt = "prompt" in flags
    if any(not text for text in config.stop):
        raise UsageError("--stop is empty", "leave it out, or give the text to stop before")
    if not has_prompt and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError(
            "no prompt", 'give one: bigmodel predict "…", or JSON lines on standard input'
        )
    folder = bundle_of(workdir, run, config.bundle)
    write_nothing()
    from bigmodel_cli.deploy.predict import Predictor

    with running(common) as context:
        predictor = Predictor(folder, config.device, config.threads, config.precision)
        predictor.task.opens_files = True  # whoever asks here may read them anyway
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in resolved.values.items()}
        defaults = {name: values[name] for name in predictor.task.fields if name in values}
        fields = {name for task in task_names() for name in task_class(task).fields}
        for name in resolved.said(keys(PredictConfig)):
            if name in fields and name not in predictor.task.fields:
                raise UsageError(
                    f"--{name.replace('_', '-')} means nothing to the task `{predictor.task.name}`",
                    "leave it out",
                )
        if has_prompt:
            _one(predictor, config.prompt, defaults, common.json)
            return
        bad = total = 0
        ignored: Counter[str] = Counter()
        for lines in _lines(sys.stdin.fileno(), config.batch_size):
            answers = predictor.answer_lines(lines, defaults, ignored)
            bad += sum("error" in answer for answer in answers)
            total += len(answers)
            for answer in answers:
                sys.stdout.write(render.json_line(answer))
            sys.stdout.flush()
        if ignored:
            shown = ", ".join(
                f"`{name:.60}` ({n:,})" for name, n in ignored.most_common(SHOWN_NAMES)
            )
            rest = f" and {len(ignored) - SHOWN_NAMES:,} more" if len(ignored) > SHOWN_NAMES else ""
            context.warn(f"unknown names in the lines were ignored: {shown}{rest}")
        if bad and common.json:
            raise typer.Exit(DataError.code)  # the lines are all that is printed
        if bad:
            raise DataError(f"{bad:,} of {total:,} lines were bad", "see `error` in their answers")


def _one(predictor: Any, prompt: str, defaults: Mapping[str, Any], as_json: bool) -> None:
    """One request, as text while it is written, or as one JSON document."""
    request = predictor.request({predictor.task.field: prompt}, defaults)
    if as_json:
        for *_, whole in predictor.answer([request]):
            if whole is not None:
                render.document(whole)
        return
    render.answer(predictor.task.echo(prompt))
    for _, text, _ in predictor.answer([request]):
        render.answer(text)
    render.answer("\n")


def _lines(handle: int, most: int) -> Iterator[list[bytes]]:
    """Batches of lines: as many as are there, so that a partner on a pipe is answered at once."""
    from bigmodel_cli.deploy.predict import LONGEST_LINE

    rest: list[bytes] = []
    ready: list[bytes] = []
    while True:
        if ready and (len(ready) >= most or not select.select([handle], [], [], 0)[0]):
            yield ready[:most]
            ready = ready[most:]
            continue
        block = os.read(handle, BLOCK)
        if not block:
            break
        *lines, last = block.split(b"\n")
        if lines:
            lines[0] = b"".join([*rest, lines[0]])
            rest = []
        if sum(map(len, rest)) <= LONGEST_LINE:  # of a longer one, which is an error, no more
            rest.append(last)
        ready += [line for line in lines if line.strip()]
    final = b"".join(rest)
    ready += [final] if final.strip() else []
    for first in range(0, len(ready), most):
        yield ready[first : first + most]
