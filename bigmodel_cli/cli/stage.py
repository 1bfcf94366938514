"""What every stage's command does around its one call: resolve, show, run under signals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bigmodel_cli.cli import render
from bigmodel_cli.events import Context
from bigmodel_cli.options import Key, Resolved, resolve


def settle(
    stage: str, known: Iterable[Key], flags: Mapping[str, Any], common: Mapping[str, Any]
) -> Resolved | None:
    """The configuration in force; None when --show-config asked only to see it."""
    resolved = resolve(stage, known, flags, recipe=common["config"], sets=common["set_"] or ())
    if not common["show_config"]:
        return resolved
    if common["json_"]:
        render.document(
            {
                stage: {
                    name: {"value": value, "origin": resolved.origins[name]}
                    for name, value in resolved.values.items()
                }
            }
        )
    else:
        render.config(stage, resolved.values, resolved.origins)
    return None


@contextmanager
def running(common: Mapping[str, Any]) -> Iterator[Context]:
    """The context that a stage gets: its screen, and the program's signals and start."""
    from bigmodel_cli.cli.app import STARTED, STOP

    with render.Screen(common["quiet"]) as screen:
        yield Context(screen.emit, STOP, STARTED)
