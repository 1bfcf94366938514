"""docs/adding-a-task.md: its code, as it stands there, is a task that goes the whole way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.tasks import TABLE
from tests.conftest import environment
from tests.stages import ROOT, deploy, evaluate, final_bytes, prepare, train


def code_of_the_page() -> str:
    text = (ROOT / "docs" / "adding-a-task.md").read_text("utf-8")
    head, *methods = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return head + methods[0] + "".join(textwrap.indent(part, "    ") for part in methods[1:])


@pytest.fixture
def tabular(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tabular_task")
    monkeypatch.setitem(sys.modules, "tabular_task", module)
    exec(compile(code_of_the_page(), "adding-a-task.md", "exec"), module.__dict__)
    monkeypatch.setitem(TABLE, "tabular", "tabular_task:Tabular")


def rows(path: Path, count: int) -> Path:
    """y = 3 a − 2 b + noise of a known size."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, count))
    y = 3 * a - 2 * b + random.normal(scale=0.5, size=count)
    lines = [f"{p:.5f},{q:.5f},{r:.5f}" for p, q, r in zip(a, b, y, strict=True)]
    path.write_text("\n".join(["a,b,y", *lines, "1,x,2", ""]))
    return path


@pytest.mark.usefixtures("tabular")
@pytest.mark.parametrize("family", [
    "transformer", pytest.param("rnn", marks=pytest.mark.slow),
    pytest.param("mlp", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_task_of_the_page_goes_all_the_way(tmp_path: Path, family: str) -> None:
    work = tmp_path / "w"
    made = prepare(work, rows(tmp_path / "a.csv", 1200), task="tabular", val="0.1", test="0.2")
    assert made.manifest.ledger.dropped["no_number"].rows == 1
    values: dict[str, Any] = {"model": family, "steps": 80, "batch_size": 64, "precision": "fp32"}
    train(work, "a", **values)
    train(work, "b", **values)
    assert final_bytes(work, "a") == final_bytes(work, "b")
    document = as_json(evaluate(work, "a").evaluation)
    rmse = document["metrics"]["rmse"]
    assert 0.4 < rmse["value"] < 1.0  # the noise alone is 0.5
    assert document["baselines"]["mean"]["rmse"] == pytest.approx(13.25**0.5, rel=0.15)
    assert deploy(work, "a").receipt.bigmodel.proof == "passed"
    predictor = Predictor(Workdir(work).run("a").bundle, "cpu", 1)
    lines = [b'{"row": {"a": 1, "b": -1}}', b'{"row": {"a": 1}}', b'{"row": {"a": "x", "b": 1}}']
    good, missing, wrong = predictor.answer_lines(lines, {})
    assert good["value"] == pytest.approx(5, abs=1.5)
    assert "`b`" in missing["error"]["message"]
    assert "numbers" in wrong["error"]["message"]


def installed(folder: Path, code: str, **points: str) -> dict[str, str]:
    """A package with entry points, and the environment that finds it."""
    info = folder / "somebody-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "somebody.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[bigmodel.tasks]", *lines, ""]))
    return environment({"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"})


def run(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "bigmodel_cli", *command]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_task_of_another_package_is_a_task(tmp_path: Path) -> None:
    points = {"tabular": "somebody:Tabular", "language": "somebody:Nothing"}  # ours stays
    env = installed(tmp_path / "packages", code_of_the_page(), **points)
    rows(tmp_path / "a.csv", 300)
    (tmp_path / "a.txt").write_text("Some text.\n\nSome other text.\n\nAnd more of it.\n")
    for command in (
        ["prepare", "a.csv", "--task", "tabular", "--bins", "8", "--val", "0.2", "--test", "0.2"],
        ["train", "--steps", "2", "--size", "nano"],
        ["evaluate", "--json"],
        ["deploy"],
        ["predict", '{"a": 1}'],
        ["prepare", "a.txt", "-w", "other", "--val", "0", "--test", "0", "--tokenizer", "bytes"],
    ):
        done = run(command, tmp_path, env)
        taken = "the task `language` of `somebody:Nothing` is not used: the name is taken"
        assert (taken in done.stderr) == (command[0] == "prepare")
        if command[0] == "predict":  # a row is not text
            assert (done.returncode, "`row` must hold `a`, `b`" in done.stderr) == (4, True), done
        else:
            assert done.returncode == 0, done.stderr
    assert "--bins" in run(["prepare", "--help"], tmp_path, env).stdout


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_of_that_name\n", "nothing_of_that_name"),
        ("Odd = dict\n", "not a Task"),
        ("from bigmodel_cli.tasks.language import Language as Odd\n", "names itself `language`"),
        ("Odd = \n", "SyntaxError"),
    ],
)
def test_a_package_whose_task_is_broken_is_named_where_it_is_needed(
    tmp_path: Path, code: str, reason: str
) -> None:
    env = installed(tmp_path / "packages", code, odd_one="somebody:Odd [extra]")
    assert run(["prepare", "--help"], tmp_path, env).returncode == 0
    (tmp_path / "a.txt").write_text("Some text, which is long enough.\n\nAnd some other text.\n")
    plain = ["prepare", "a.txt", "--val", "0", "--test", "0", "--tokenizer", "bytes"]
    done = run(plain, tmp_path, env)
    assert done.returncode == 0, done
    assert reason in done.stderr  # it is left out aloud
    done = run(["prepare", "a.txt", "--task", "odd-one"], tmp_path, env)
    assert done.returncode == 2, done
    assert "the task `odd-one`" in done.stderr
    assert reason in done.stderr
    assert "uninstall" in done.stderr
    assert "Traceback" not in done.stderr
