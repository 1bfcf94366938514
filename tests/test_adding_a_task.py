"""docs/adding-a-task.md: its code, as it stands there, is a task that goes the whole way."""

from __future__ import annotations

import re
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
from tests.stages import ROOT, deploy, evaluate, final_bytes, prepare, train


@pytest.fixture
def tabular(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "adding-a-task.md").read_text("utf-8")
    head, *methods = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = head + methods[0] + "".join(textwrap.indent(part, "    ") for part in methods[1:])
    module = ModuleType("tabular_task")
    monkeypatch.setitem(sys.modules, "tabular_task", module)
    exec(compile(code, "adding-a-task.md", "exec"), module.__dict__)
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
