"""The options that tasks add to the stages' commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import UsageError
from bigmodel_cli.options import Key, convert, keys
from bigmodel_cli.tasks import TABLE, Task, task_class, task_names


def task_keys(stage: str, names: Iterable[str] | None = None) -> list[Key]:
    """The options that tasks (all of them) add to a stage's command; one that several share is
    one, whose help says what it is for each."""
    names = task_names() if names is None else list(names)
    found: dict[str, dict[str, Key]] = {}
    for name in names:
        for key in keys(task_class(name).Options, stage):
            found.setdefault(key.name, {})[name] = key
    return [_merged(of, len(names)) for of in found.values()]


def train_keys(task: type[Task] | None) -> tuple[list[Key], list[Key], list[Key]]:
    """The options of `train`: of every task, with the defaults that this one has; its own; and
    those that only other tasks have. None: the task is not known yet."""
    defaults = task.defaults if task else {}
    known = [replace(k, default=defaults.get(k.name, k.default)) for k in keys(TrainConfig)]
    own = list(keys(task.Options, "train")) if task else task_keys("train")
    names = {key.name for key in own}
    return known, own, [key for key in task_keys("train") if key.name not in names]


def _merged(of: Mapping[str, Key], tasks: int) -> Key:
    first = next(iter(of.values()))
    if tasks < 2 or len(TABLE) < 2:
        return first
    said: dict[tuple[str, str], list[str]] = {}
    for name, key in of.items():
        shown = key.meta["shown_default"] or ("" if key.default is None else str(key.default))
        said.setdefault((key.meta["help"], shown), []).append(name)
    if len(said) == 1:
        ((help_, _),) = said
        more = "" if len(of) == tasks else f" ({', '.join(of)})"
        return replace(first, meta={**first.meta, "help": help_ + more})
    parts = [
        f"{', '.join(where)}: {help_} [default: {shown}]" for (help_, shown), where in said.items()
    ]
    lows = [key.meta["minimum"] for key in of.values() if key.meta["minimum"] is not None]
    meta = {
        **first.meta,
        "help": " ".join(parts),
        "shown_default": "",
        "minimum": min(lows, default=None),
    }
    return replace(first, default=None, meta=meta)


def task_options(kind: type[Task], stage: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A task's own options of a stage, where nothing was said by its defaults.

    Raises UsageError for an option that belongs to another task.
    """
    own = {key.name: key for key in keys(kind.Options, stage)}
    for name in said:
        if name not in own:
            others = [t for t in task_names() if name in {k.name for k in task_keys(stage, [t])}]
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} is not an option of the task `{kind.name}`",
                f"it belongs to {', '.join(others)}; see --task" if others else "leave it out",
            )
    return {
        name: convert(key, said[name]) if said.get(name) is not None else key.default
        for name, key in own.items()
    }
