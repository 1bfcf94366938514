"""The stages as functions, with small defaults: what the tests of later stages stand on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import DeployConfig, EvaluateConfig, PrepareConfig, TrainConfig
from bigmodel_cli.deploy.run import Deployed
from bigmodel_cli.deploy.run import run as deploy_run
from bigmodel_cli.evaluate.run import Evaluated
from bigmodel_cli.evaluate.run import run as evaluate_run
from bigmodel_cli.events import Context, Event, Note
from bigmodel_cli.prepare.run import Prepared
from bigmodel_cli.prepare.run import run as prepare_run
from bigmodel_cli.tasks import task_class
from bigmodel_cli.tasks.keys import task_options
from bigmodel_cli.train.loop import Trained
from bigmodel_cli.train.run import run as train_run

ROOT = Path(__file__).parent.parent
STORIES = ROOT / "data" / "stories" / "stories.jsonl"
SERVICE = ROOT / "data" / "service"
TINY = {"size": "nano", "width": 32, "layers": 2, "heads": 2, "batch_size": 8}


class Events(list[Event]):
    """Collects what a stage says."""

    def context(self) -> Context:
        return Context(emit=self.append, started=time.monotonic())

    @property
    def notes(self) -> str:
        return "\n".join(e.message for e in self if isinstance(e, Note))


def stories(folder: Path, count: int) -> Path:
    """The first stories of the sample as a file of their own."""
    path = folder / "stories.jsonl"
    lines = STORIES.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:count]), "utf-8")
    return path


def prepare(work: Path, *sources: Path | str, told: Context | None = None, **values: Any
            ) -> Prepared:  # fmt: skip
    """Prepares rows; keyword arguments go to the configuration or to the task's options."""
    names = set(PrepareConfig.__dataclass_fields__)
    options = {k: values.pop(k) for k in list(values) if k not in names}
    config = PrepareConfig(sources=tuple(map(str, sources)), **values)
    return prepare_run(config, options, Workdir(work), told or Context())


def train(work: Path, run: str = "default", context: Context | None = None, *,
          length: int = 32, objective: str = "next", task: dict[str, Any] | None = None,
          **values: Any) -> Trained:  # fmt: skip
    """Trains a tiny model, for 6 steps unless a length is given. task: options of a task other
    than language, where they are not its defaults."""
    if not {"steps", "epochs", "tokens", "minutes"} & values.keys():
        values["steps"] = 6
    config = TrainConfig(**{**TINY, "device": "cpu", "threads": 1, **values})
    kind = task_class(Workdir(work).read_data().task)
    options = {"context": length, "objective": objective} if kind.name == "language" else {}
    options = task_options(kind, "train", {**options, **(task or {})})
    return train_run(config, options, Workdir(work), run, context or Context())


def evaluate(work: Path, run: str = "default", **values: Any) -> Evaluated:
    return evaluate_run(
        EvaluateConfig(**{"device": "cpu", "threads": 1, **values}), Workdir(work), run, Context()
    )


def deploy(work: Path, run: str = "default", **values: Any) -> Deployed:
    return deploy_run(
        DeployConfig(**{"device": "cpu", "threads": 1, **values}), Workdir(work), run, Context()
    )


def bigmodel(
    *arguments: object, stdin: str | bytes = b"", env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """The program as a shell would call it."""
    return subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", *map(str, arguments)],
        input=stdin.decode() if isinstance(stdin, bytes) else stdin,
        capture_output=True, text=True, check=False, cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )  # fmt: skip


def log(work: Path, run: str = "default") -> list[dict[str, Any]]:
    path = Workdir(work).run(run).log
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def final_bytes(work: Path, run: str = "default") -> dict[str, bytes]:
    """The last checkpoint's tensors, as they lie on disk."""
    last = sorted(Workdir(work).run(run).checkpoints.glob("step-*"))[-1]
    return {p.name: p.read_bytes() for p in sorted(last.glob("*.safetensors"))}


def as_a_stranger() -> list[str]:
    """A command line's beginning: as a user whose processes are limited, who reads all and writes
    nothing. The superuser's are not."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is needed to limit the superuser")
    return ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
            "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]  # fmt: skip
