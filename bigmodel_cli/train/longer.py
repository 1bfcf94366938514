"""A run keeps its length: the command that trains its weights further, as another run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bigmodel_cli.artifacts.records import RunConfig
from bigmodel_cli.artifacts.workdir import Run
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.options import keys
from bigmodel_cli.tasks import stored_task

LENGTHS = ("steps", "epochs", "tokens", "minutes")
# what the weights decide, and which weights they are
DECIDED = ("model", "size", "from_", "width", "layers", "heads", "kv_heads", "hidden", "cell",
           "window", "tie")  # fmt: skip


def command(place: Run, known: RunConfig, length: Mapping[str, Any] | None = None) -> str:
    """What to type so that a new run starts with the run's weights and options. known: its
    config.json. length: by key, else that of the run."""
    options, task = known.options, stored_task(known.task)
    length = {name: options.get(name) for name in LENGTHS} if length is None else length
    words = ["bigmodel", "train", "--from", place.name, "--run", free(place)]
    for key in (*keys(TrainConfig), *keys(task.Options, "train")):
        usual = task.defaults.get(key.name, key.default)
        value = length.get(key.name) if key.name in LENGTHS else options.get(key.name, usual)
        if key.name in DECIDED or value is None or value == usual:
            continue
        if key.type is bool:
            words.append(key.flag if value else f"--no-{key.flag[2:]}")
        else:
            words += [key.flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def remaining(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any] | None:
    """The length that is missing to a run's, where more of it is given now; None for less."""
    given = {name: now[name] for name in LENGTHS if now.get(name) is not None}
    if len(given) != 1:
        return None
    ((name, value),) = given.items()
    more = value - (before.get(name) or 0)
    return {name: more} if more > 0 else None


def free(place: Run) -> str:
    """A name that no run has."""
    base = "longer" if place.name == "default" else f"{place.name[:80]}-longer"
    names = (f"{base}-{number}" if number > 1 else base for number in range(1, 1 << 30))
    return next(name for name in names if not Run(place.root, name).folder.exists())
