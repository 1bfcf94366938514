"""What every stage's command does around its one call: resolve, show, run under signals."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.cli import render
from bigmodel_cli.cli.options import Common
from bigmodel_cli.events import Context
from bigmodel_cli.options import Key, Resolved, resolve
from bigmodel_cli.worker import can_start


def settle(
    stage: str,
    known: Iterable[Key],
    flags: Mapping[str, Any],
    common: Common,
    others: Iterable[Key] = (),
) -> Resolved | None:
    """The configuration in force; None when it is only shown, for --show-config. others: keys that
    may be said, but are of no use to the task at hand, and not shown."""
    if not can_start(len(os.sched_getaffinity(0))):  # numpy's OpenBLAS would interrupt us
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    known = list(known)
    resolved = resolve(stage, [*known, *others], flags, recipe=common.config, sets=common.set)
    if not common.show_config:
        return resolved
    values = {key.name.rstrip("_"): resolved.values[key.name] for key in known}
    origins = {key.name.rstrip("_"): resolved.origins[key.name] for key in known}
    if common.json:
        render.document(
            {
                stage: {
                    name: {"value": value, "origin": origins[name]}
                    for name, value in values.items()
                }
            }
        )
    else:
        render.config(stage, values, origins)
    return None


def bundle_of(workdir: Path, run: str, named: str) -> Path:
    """The bundle named, else the run's own. Raises ArtifactError that says which runs there are."""
    place = Workdir(workdir).run(run)
    if not named and not place.bundle.exists() and Workdir(workdir).runs():
        place.read_config()
    return Path(named) if named else place.bundle


def write_nothing() -> None:
    """For commands that only read: when torch is loaded, it looks for a temporary directory, which
    Python does by writing into one after the other, and makes a folder for what it compiles. Here
    it takes the first unseen, and a folder that is there. Nor does it load where the current folder
    was removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir("/")
    tempfile.tempdir = os.environ.get("TMPDIR", "/tmp")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = "/"


@contextmanager
def running(common: Common) -> Iterator[Context]:
    """The context that a stage gets: its screen, and the program's signals and start."""
    from bigmodel_cli.cli.app import STARTED, STOP

    with render.Screen(common.quiet) as screen:
        yield Context(screen.emit, STOP, STARTED)
