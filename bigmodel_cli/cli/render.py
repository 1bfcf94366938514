"""What a person, a log or a script sees. Data go to stdout, all else to stderr.

On a terminal there is live progress; elsewhere plain timestamped lines, at most one per 10 s for
each phase; with --quiet, warnings only. NO_COLOR is honoured (by Rich).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.events import Note, Progress

LINE_SECONDS = 10.0
COMMAND = re.compile(r"bigmodel (prepare|train|evaluate|deploy|predict|serve|status)\b(?! --help)")
RUNLESS = ("--run", "prepare")


class Screen:
    """Renders events to stderr; use as a context, so that live progress is taken down."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._live: Any = None
        self._task: Any = None
        self._phase = ""
        self._began = self._shown = 0.0
        self._first = 0.0

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def emit(self, event: Note | Progress) -> None:
        if isinstance(event, Progress):
            if not self.quiet:
                self._progress(event)
        elif event.level == "warning" or not self.quiet:
            self._note(event)

    def _note(self, event: Note) -> None:
        warning = event.level == "warning"
        message = here(event.message)
        if self.terminal:
            console = self._console()
            console.print("[yellow]warning:[/yellow] " if warning else "", end="")
            console.print(clean(message), markup=False, highlight=False)
        else:
            _line(("warning: " if warning else "") + message)

    def _console(self) -> Any:
        from rich.console import Console

        return self._live.console if self._live is not None else Console(stderr=True)

    def _progress(self, event: Progress) -> None:
        now = time.monotonic()
        if event.phase != self._phase:
            self._phase, self._began, self._first = event.phase, now, event.done
            self._shown = 0.0
            self._task = None
        if now - self._shown < (0.1 if self.terminal else LINE_SECONDS):
            if event.total is None or event.done < event.total or self.terminal:
                return
            if now - self._began < LINE_SECONDS:
                return
        self._shown = now
        if self.terminal:
            self._bar(event)
        else:
            _line(f"{event.phase} {_amount(event)} {self._details(event)}".rstrip())

    def _details(self, event: Progress) -> str:
        if event.fields:
            return "  ".join(f"{k} {v}" for k, v in event.fields.items())
        seconds = time.monotonic() - self._began
        done = event.done - self._first
        if event.unit != "B" or done <= 0 or seconds < 0.05:
            return ""
        text = f"{done / seconds / 1e6:.1f} MB/s"
        if event.total:
            text += f"  {(event.total - event.done) * seconds / done:.0f} s left"
        return text

    def _bar(self, event: Progress) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as Bars

            self._live = Bars(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
                TextColumn("{task.fields[details]}"), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._live.start()
        if self._task is None:
            for task in list(self._live.task_ids):
                self._live.remove_task(task)
            self._task = self._live.add_task(event.phase, total=event.total, details="")
        self._live.update(
            self._task, completed=event.done, total=event.total, details=self._details(event)
        )


def _amount(event: Progress) -> str:
    if event.total:
        return f"{event.done / event.total:.0%}"
    if event.unit == "B":
        return f"{event.done / 1e6:,.0f} MB"
    return f"{event.done:,.0f} {event.unit}".strip() if event.done else "…"


def _line(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk behind stderr is no reason to stop
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {clean(text)}\n")
        sys.stderr.flush()


def clean(text: str) -> str:
    """Text for a terminal: what would control it is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def place(workdir: Path, run: str) -> None:
    """Remembers where the present command works, for the commands that it advises."""
    _place[:] = [("--workdir", "-w", str(workdir))] * (str(workdir) != "work")
    _place.extend([("--run", "--run", run)] * (run != "default"))


_place: list[tuple[str, str, str]] = []


def here(text: str) -> str:
    """The text with the present command's -w and --run in each command of ours that it advises,
    unless that names its own."""

    def placed(found: re.Match[str]) -> str:
        words, rest = found.group(0), re.split("[;,]", text[found.end() :])[0]
        for flag, short, value in _place:
            if flag in rest or short in rest.split() or (flag, found.group(1)) == RUNLESS:
                continue
            words += f" {short} {shlex.quote(value)}"
        return words

    return COMMAND.sub(placed, text)


def error(message: str, hint: str, code: int, as_json: bool) -> None:
    """An error: on stderr for a person; on stdout as the one document for a script."""
    hint = here(hint)
    if as_json:
        document({"error": {"code": code, "message": message, "hint": hint}})
        return
    # repr would hide the value: only what controls a terminal is escaped
    lines = [f"error: {message}"] + ([f"hint: {hint}"] if hint else [])
    for text in lines:
        label, _, rest = text.partition(":")
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            label = f"\x1b[1;{31 if label == 'error' else 36}m{label}\x1b[0m"
        sys.stderr.write(f"{label}:{clean(rest)}\n")


def document(content: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json_line(content))
    sys.stdout.flush()


def json_line(content: Mapping[str, Any]) -> str:
    """JSON on one line, readable where it can be: half of a surrogate pair has to be escaped."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = json.dumps(content, allow_nan=False)
    return text + "\n"


def facts(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A titled list of names and values on stdout."""
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}".rstrip())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout: the first column to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells).rstrip())


def config(stage: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """What is in force, as a recipe, with where each value came from."""
    print(f"[{stage}]")
    for name, value in values.items():
        if value is None:
            print(f"# {name} is chosen at run time")
            continue
        text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        print(f"{name} = {text}  # {origins[name]}")


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
