"""What a person, a log or a script sees. Data go to stdout, all else to stderr.

On a terminal there is live progress; elsewhere plain timestamped lines, at most one per 10 s for
each phase; with --quiet, warnings only. NO_COLOR is honoured (by Rich).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.cli.advice import here
from bigmodel_cli.events import Event, Note, Progress, StepDone, Validated

LINE_SECONDS = 10.0
ODD = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BAR_WIDTH, WIDE = 24, 100  # columns of a progress bar, and of a terminal that has room for it


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
        self._validation: Validated | None = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def emit(self, event: Event) -> None:
        if isinstance(event, Note):
            if event.level == "warning" or not self.quiet:
                self._note(event)
        elif isinstance(event, Validated):
            self._validation = event
        elif not self.quiet and isinstance(event, Progress):
            self._progress(event)
        elif not self.quiet and isinstance(event, StepDone):
            self._progress(Progress("train", event.done, 1.0), _columns(event, self._validation))

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

    def _progress(self, event: Progress, columns: Sequence[str] = ()) -> None:
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
            self._bar(event, columns)
        else:
            _line(f"{event.phase} {_amount(event)} {self._details(event, columns)}".rstrip())

    def _details(
        self, event: Progress, columns: Sequence[str] = (), room: int | None = None
    ) -> str:
        """What is beside the bar, in so much room: the last column, the time left, stays."""
        if event.detail:
            return event.detail
        if columns:
            parts = list(columns)
            while room is not None and len("  ".join(parts)) > room and len(parts) > 1:
                del parts[-2]
            return "  ".join(parts)
        seconds = time.monotonic() - self._began
        done = event.done - self._first
        if event.unit != "B" or done <= 0 or seconds < 0.05:
            return ""
        text = f"{done / seconds / 1e6:.1f} MB/s"
        if event.total:
            text += f"  {(event.total - event.done) * seconds / done:.0f} s left"
        return text

    def _bar(self, event: Progress, columns: Sequence[str]) -> None:
        if self._live is None:
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn
            from rich.progress import Progress as Bars

            self._live = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=BAR_WIDTH),
                TextColumn("{task.fields[details]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.start()
        width = self._live.console.width
        bar = BAR_WIDTH if width >= WIDE else BAR_WIDTH // 2
        self._live.columns[2].bar_width = bar
        room = width - len(event.phase) - bar - 4  # the spinner, and the spaces between columns
        if self._task is None:
            for task in list(self._live.task_ids):
                self._live.remove_task(task)
            self._task = self._live.add_task(event.phase, total=event.total, details="")
        self._live.update(
            self._task,
            completed=event.done,
            total=event.total,
            details=self._details(event, columns, room),
        )


def _columns(event: StepDone, validation: Validated | None) -> list[str]:
    """An update in words; a narrow terminal leaves out those before the last."""
    found = [f"step {event.step:,}", f"loss {event.loss:.3f}"]
    if validation:
        name, value = next(iter(validation.values.items()))
        found.append(f"val {name} " + ("–" if value is None else f"{value:.3f}"))
    found.append(f"speed {event.speed:,.0f} {event.unit}/s")
    return [*found, f"of peak {event.share_of_peak:.0%}", f"left {event.left:.0f} s"]


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


def say(text: str) -> None:
    """A line of data for a person, on stdout."""
    print(clean(text))


def answer(text: str) -> None:
    """Text that a model writes: as it is, but for what would control a terminal."""
    if sys.stdout.isatty():
        text = "".join(c if c in "\n\t" else clean(c) for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


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
    """JSON on one line, readable where it can be."""
    return _escaped(json.dumps(content, ensure_ascii=False, allow_nan=False)) + "\n"


def _escaped(text: str) -> str:
    """JSON in which what would control a terminal, or is half of a pair, is escaped."""
    return ODD.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout: the first column to the left, the others to the right."""
    lines = [[clean(cell) for cell in row] for row in (header, *rows)]
    widths = [max(width_of(line[i]) for line in lines) for i in range(len(header))]
    for first, *others in lines:
        cells = [first + " " * (widths[0] - width_of(first))]
        cells += [
            " " * (width - width_of(cell)) + cell
            for cell, width in zip(others, widths[1:], strict=True)
        ]
        print("  " + "  ".join(cells).rstrip())


def width_of(text: str) -> int:
    """The columns of a terminal that a text takes: two for each Chinese character."""
    from rich.cells import cell_len

    return cell_len(text)


def config(stage: str, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """What is in force, as a recipe, with where each value came from."""
    print(f"[{stage}]")
    for name, value in values.items():
        if value is None:
            print(f"# {name} is chosen at run time")
            continue
        text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        print(f"{name} = {_escaped(text)}  # {clean(origins[name])}")


def size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
