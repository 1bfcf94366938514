"""Help, version, status and fresh stages: quick, without torch, with examples and defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bigmodel_cli.config import (
    DeployConfig,
    EvaluateConfig,
    PredictConfig,
    PrepareConfig,
    ServeConfig,
    TrainConfig,
)
from bigmodel_cli.models.sizes import SIZES
from bigmodel_cli.options import keys
from bigmodel_cli.tasks import TABLE, task_class
from tests.stages import ROOT, bigmodel, deploy, evaluate, prepare, stories, train

CONFIGS = {
    "prepare": PrepareConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "deploy": DeployConfig,
    "serve": ServeConfig,
    "predict": PredictConfig,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory where every stage is fresh."""
    folder = tmp_path_factory.mktemp("help")
    path = folder / "work"
    prepare(path, stories(folder, 120), tokenizer="bytes")
    train(path, steps=2)
    evaluate(path)
    deploy(path)
    return path


def modules(*arguments: object) -> tuple[str, set[str]]:
    """What the program prints, and the modules that it has loaded when it is done."""
    script = (
        "import sys, os\n"
        "def leave(code):\n"
        "    sys.stdout.flush()\n"
        "    print('MODULES', *sys.modules, file=sys.stderr)\n"
        "    sys.stderr.flush(); real(code)\n"
        "real, os._exit = os._exit, leave\n"
        "from bigmodel_cli.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return done.stdout, set(done.stderr.split("MODULES")[1].split())


HEAVY = {"torch", "datasets", "transformers", "matplotlib"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *CONFIGS, "status"])
def test_help_is_quick_and_opens_with_two_examples(command: str) -> None:
    text, loaded = modules(*filter(None, [command]), "--help")
    assert not loaded & {*HEAVY, "numpy", "pyarrow"}
    examples = text.split("Usage:")[1].split("─")[0]
    named = [command] if command else ["prepare", "train", "evaluate", "deploy", "predict"]
    assert all(examples.count(f"bigmodel {name}") >= 2 - (not command) for name in named)


@pytest.mark.slow
def test_help_names_every_option_and_size() -> None:
    for command, config in CONFIGS.items():
        text = " ".join(bigmodel(command, "--help", env={"COLUMNS": "200"}).stdout.split())
        wanted = list(keys(config))
        for task in TABLE:
            wanted += keys(task_class(task).Options, command)
        for key in wanted:
            assert key.meta["argument"] or key.flag in text, f"{command} {key.flag}"
            assert key.meta["help"].split()[0] in text
    text = bigmodel("train", "--help", env={"COLUMNS": "200"}).stdout
    assert all(size in text for size in SIZES)


def test_version() -> None:
    text, loaded = modules("--version")
    assert text.startswith("bigmodel ")
    assert not loaded & {*HEAVY, "numpy", "pyarrow"}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [
    ["status"], ["train", "--size", "nano", "--width", "32", "--layers", "2", "--heads", "2",
                 "--batch-size", "8", "--steps", "2", "--context", "32", "--device", "cpu"],
    ["evaluate", "--device", "cpu"], ["deploy", "--device", "cpu"],
], ids=lambda a: a[0])  # fmt: skip
def test_what_is_fresh_is_told_without_torch(work: Path, arguments: list[str]) -> None:
    text, loaded = modules(*arguments, "-w", work)
    assert "up to date" in text or "fresh" in text
    assert not loaded & HEAVY


@pytest.mark.slow
def test_prepare_is_fresh_without_torch(work: Path) -> None:
    source = work.parent / "stories.jsonl"
    text, loaded = modules("prepare", source, "--tokenizer", "bytes", "-w", work)
    assert "up to date" in text
    assert not loaded & {*HEAVY, "tokenizers"}


@pytest.mark.slow
def test_status_shows_each_stage_and_why_it_is_stale(work: Path, tmp_path: Path) -> None:
    import json
    import shutil

    copy = shutil.copytree(work, tmp_path / "work")
    found = json.loads(bigmodel("status", "-w", copy, "--json").stdout)
    assert found["data"]["state"] == "fresh"
    assert [s["state"] for s in found["runs"]["default"]] == ["fresh"] * 3
    prepare(copy, stories(tmp_path, 100), tokenizer="bytes")
    found = json.loads(bigmodel("status", "-w", copy, "--json").stdout)
    assert found["runs"]["default"][0]["state"] == "stale"
    assert "data have changed" in found["runs"]["default"][0]["detail"]
    stories(tmp_path, 90)
    found = json.loads(bigmodel("status", "-w", copy, "--json").stdout)
    assert found["data"]["state"] == "stale"
    assert "stories.jsonl" in found["data"]["detail"]
    empty = json.loads(bigmodel("status", "-w", tmp_path / "none", "--json").stdout)
    assert empty["data"]["state"] == "missing"
    assert not (tmp_path / "none").exists()
