"""README is true: its commands run, its tree matches the files, its exit codes are right."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bigmodel_cli import errors
from bigmodel_cli.cli.app import build
from tests.conftest import Cli, environment
from tests.stages import ROOT

FEW = {"make_translations.py": "--pairs 300", "make_shapes.py": "--images 300",
       "make_sessions.py": "--users 150"}  # fmt: skip
# what the commands read, from a clone
NAMED = ("README.md", "bigmodel_cli", "data", "docs")
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> list[str]:
    """Every line of the README's shell blocks, but those that set up the environment."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if not line.startswith(("make", "source"))]


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path) -> None:
    """In order, in a folder that holds what a clone does; only made shorter."""
    for name in NAMED:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, tmp_path)
    found = commands()
    assert len(found) >= 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in found:
        command = re.sub(r"--minutes [\d.]+", "--minutes 0.1", command).replace("<=baseline", "<=9")
        command = re.sub(r"--epochs \d+", "--steps 3", command).replace(">=0.85", ">=0")
        command = command.replace("--verify-resume 6", "--verify-resume 4")
        for script, few in FEW.items():
            command = command.replace(script, f"{script} {few}")
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, text=True, check=False,
            capture_output=True, env=environment({"PATH": path}),
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    assert {path.name for path in tmp_path.iterdir()} <= {*NAMED, *ignored}


@pytest.mark.slow
def test_its_fingerprint_is_the_same_here(empty: Cli) -> None:
    """As on every machine."""
    made = empty.works("prepare", str(ROOT / "data" / "stories"))
    first, _, table = made.out.partition("\n")
    shown = re.search(r"\nprepared work/data in .* s (\(\w{12}\))\n(.*?)```", README, re.S)
    assert shown
    assert first.endswith(shown[1])
    assert table == shown[2]


def test_its_tree_matches_the_files() -> None:
    tree = README.split("## The code")[1].split("```")[1]
    named, folders = set[str](), list[str]()
    for line in tree.splitlines():
        match = re.match(r"([│├└─\s]*)(\w[\w./ ]*?)(?:  +\S.*)?$", line)
        if not match:
            continue
        depth, names = len(match[1]) // 4, match[2].split()
        if names[0].endswith("/"):
            folders[depth:] = [names[0]]
        named |= {"".join(folders[:depth]) + name for name in names if name.endswith(".py")}
    files = {
        str(path.relative_to(ROOT))
        for folder in ("bigmodel_cli", "data")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" or path.parent.name == "tasks"
    }
    assert named == files


def test_its_exit_codes_are_those_of_the_errors() -> None:
    table = README.split("## Exit codes")[1].split("## ")[0]
    named = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    assert named == {0} | {k.code for k in kinds if hasattr(k, "code")}


def test_every_command_is_documented() -> None:
    for command in build().registered_commands:
        assert f"bigmodel {command.name}" in README


def test_what_the_page_of_the_architecture_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+\.py)(?::(\w+))?`", text)
    assert len(named) > 50
    for file, name in named:
        path = ROOT / "bigmodel_cli" / file
        assert path.exists(), file
        source = path.read_text("utf-8")
        pattern = rf"^(?:async )?(?:def|class) {name}\b|^{name}\b"
        assert not name or re.search(pattern, source, re.MULTILINE), f"{file}:{name}"
