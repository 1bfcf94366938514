"""What was asked of prepare: the task, the columns, the shares of the splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigmodel_cli.config import PrepareConfig
from bigmodel_cli.errors import UsageError
from bigmodel_cli.events import Context
from bigmodel_cli.prepare.sources import Layout, unpacked
from bigmodel_cli.tasks import TABLE, Task, task_class


def fraction(text: str, name: str = "val") -> float | None:
    """A split's share, or None when the text names a source."""
    if not text.strip():
        raise UsageError(f"--{name} is empty", "give a fraction such as 0.05, or a source")
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 <= value < 1:
        raise UsageError(
            f"--{name} is `{text}`, but a share must be from 0 to below 1",
            "give a fraction such as 0.05, or a source",
        )
    return value


def escaped(text: str) -> str:
    """What a shell cannot easily say: newlines and tabs."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def wanted_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Column names by the task's names for them. Raises UsageError."""
    found = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise UsageError(f"--column is `{pair}`", "say which is which: --column text=body")
        found[name] = column
    return found


def task_for(
    config: PrepareConfig, sources: Sequence[Any], layout: Layout, context: Context
) -> type[Task]:
    """The task that was named, or the one that the sources are for. Raises UsageError."""
    from bigmodel_cli.prepare.readers import columns

    if config.task != "auto":
        return task_class(config.task)
    found: dict[str, str] = {}
    if layout.header or all(source.hub or source.kind != "text" for source in sources):
        found = columns(next((s for s in sources if s.records), sources[0]), layout)
    # a column that goes by another name is known by the one that it is given
    found |= {n: found.get(c, "string") for n, c in wanted_columns(config.column).items()}
    names = [source.name for source in sources]
    plain = [unpacked(name) for name in names]
    claims = [name for name in TABLE if task_class(name).claims(found, plain)]
    if len(claims) > 1:
        raise UsageError(
            f"`{names[0]}` could be for " + " or ".join(claims), f"choose: --task {claims[0]}"
        )
    if not claims:
        return task_class("language")
    shown = ", ".join(f"`{name}`" for name in found)
    context.note(f"task {claims[0]}" + (f": it has {shown}" if shown else "")
                 + " (another: --task)")  # fmt: skip
    return task_class(claims[0])
