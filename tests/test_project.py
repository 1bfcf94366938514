"""The library does what the commands do: the same data, weights, figures and answers."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bigmodel_cli
from bigmodel_cli import Project, load
from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import ArtifactError, BigmodelError, DataError, UsageError
from bigmodel_cli.events import Progress
from tests.conftest import DOCUMENTS, Cli, environment
from tests.stages import ROOT, final_bytes
from tests.test_tasks import KINDS

SMALL = {"width": 16, "layers": 1, "heads": 2, "batch_size": 4, "steps": 3, "threads": 1}
README = (ROOT / "README.md").read_text("utf-8")


def flags(options: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_chain_is_that_of_the_commands(name: str, empty: Cli) -> None:
    """With the defaults of each task: a recommender's dropout and cell are its own."""
    kind = KINDS[name]
    source = kind.source(empty.cwd)
    family = {"model": "rnn"} if name == "recommendation" else {}
    train = {**SMALL, **family}
    empty.works("prepare", source, *flags({**kind.options, "val": 0.2, "test": 0.2}))
    empty.works("train", *flags(train))
    evaluation = json.loads(empty.works("evaluate", "--samples", "0", "--json").out)
    empty.works("deploy")
    line = json.dumps(kind.request).encode()
    answer = json.loads(empty.works("predict", stdin=line).out)

    project = Project(empty.cwd / "ours")
    made = project.prepare(source, **kind.options, val=0.2, test=np.float64(0.2))
    assert made.manifest.task == name
    assert made.manifest.fingerprint == empty.manifest()["fingerprint"]
    trained = project.train(**{**train, "steps": np.int64(3)})
    assert (trained.step, trained.fresh) == (3, False)
    assert final_bytes(empty.cwd / "ours", "default") == final_bytes(empty.work, "default")
    evaluated = project.evaluate(samples=0, threads=1)
    assert as_json(evaluated.evaluation)["metrics"] == evaluation["metrics"]
    assert evaluated.metrics.keys() == evaluation["metrics"].keys()
    bundle = project.deploy(threads=1).folder
    assert load(bundle, threads=1)(kind.request) == answer
    assert project.train(**train).fresh
    assert project.evaluate(samples=0).fresh
    assert project.deploy().fresh


def test_a_bundle_answers_texts_objects_and_several_at_once(cli: Cli) -> None:
    model = load(cli.work / "runs" / "default" / "bundle", threads=1)
    assert (model.task, model.name) == ("language", "bigmodel-default")
    said = json.loads(cli.works("predict", "The fox", "--max-tokens", "5", "--json").out)
    assert model("The fox", max_tokens=5) == said
    assert "".join(model.stream("The fox", max_tokens=5)) == said["text"]
    both = model.batch([{"prompt": "The fox", "max_tokens": 5}, "A"], max_tokens=2)
    assert both == [said, model("A", max_tokens=2)]
    assert model.batch([]) == []
    assert list(model.batch(iter(["A"]), max_tokens=2)) == [model("A", max_tokens=np.int64(2))]
    assert model({"prompt": "A", "id": 7}, max_tokens=2)["id"] == 7
    assert model("A", stop=("x",), max_tokens=2) == model("A", stop=["x"], max_tokens=2)
    ids = np.array([65, 66])
    assert model({"prompt": ids}, max_tokens=2) == model({"prompt": [65, 66]}, max_tokens=2)


def test_what_is_wrong_is_an_error_with_a_hint(cli: Cli, tmp_path: Path) -> None:
    project = Project(cli.work)
    model = load(str(cli.work / "runs/default/bundle"), threads=1)
    wrong: list[tuple[type[BigmodelError], str, Any]] = [
        (UsageError, "`lr`", lambda: project.train(lr=0.1)),
        (UsageError, "--flip", lambda: project.train(run="new", flip=True)),
        (UsageError, "--steps is `x`", lambda: project.train(run="new", steps="x")),
        (UsageError, "verify_resume", lambda: project.train(verify_resume=3)),
        (UsageError, "serve", lambda: project.deploy(serve=True)),
        (UsageError, "port", lambda: project.deploy(port=1)),
        (UsageError, "run's name", lambda: project.train(100)),  # type: ignore[arg-type]
        (UsageError, "--steps", lambda: project.train(run="new", steps=np.array([1, 2]))),
        (UsageError, "--learning-rate", lambda: project.train(run="n", learning_rate=10**400)),
        (UsageError, "batch", lambda: model.batch("abc")),
        (UsageError, "batch", lambda: model.batch({"prompt": "a"})),  # type: ignore[arg-type]
        (UsageError, "batch", lambda: model.batch(None)),  # type: ignore[arg-type]
        (UsageError, "`prompt`", lambda: model("a", prompt="b")),
        (UsageError, "`id`", lambda: model("a", id=3)),
        (DataError, "names are text", lambda: model({"prompt": "a", 3: 4})),  # type: ignore
        (DataError, "logit_bias", lambda: model({"prompt": "a", "logit_bias": np.ones(2)})),
        (DataError, "request 2", lambda: model.batch(["a", {"prompt": 3}])),
        (UsageError, "sources", lambda: project.prepare(sources=["a"])),
        (UsageError, "--task is `x`", lambda: project.prepare("corpus.jsonl", task="x")),
        (UsageError, "--precision", lambda: load(cli.work, precision="fp8")),
        (DataError, "nowhere", lambda: project.prepare(tmp_path / "nowhere")),
        (ArtifactError, "no run `x`", lambda: project.evaluate("x")),
        (ArtifactError, "no prepared data", lambda: Project(tmp_path / "none").train()),
        (ArtifactError, "no bundle", lambda: load(tmp_path)),
        (DataError, "max_token", lambda: model("a", max_token=3)),
        (UsageError, "`anything`", lambda: model("a", anything=3)),
        (DataError, "JSON object", lambda: model(3)),  # type: ignore[arg-type]
        (DataError, "max_tokens", lambda: model("a", max_tokens=-1)),
    ]
    for kind, word, call in wrong:
        with pytest.raises(kind, match=re.escape(word)) as caught:
            call()
        assert caught.value.hint
    with pytest.raises(AttributeError, match="nothing"):
        bigmodel_cli.nothing  # noqa: B018


@pytest.mark.slow
def test_ctrl_c_saves_what_was_trained(cli: Cli) -> None:
    """And the same call continues."""
    code = (
        "import os, signal\n"
        "from bigmodel_cli import Project\n"
        "import bigmodel_cli.train.engine as engine\n"
        "inner, made = engine.Engine.step, []\n"
        "def step(self, *rest):\n"
        "    made.append(inner(self, *rest))\n"
        "    if len(made) == 3: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return made[-1]\n"
        "engine.Engine.step = step\n"
        "options = dict(steps=6, threads=1, width=16, layers=1, heads=2)\n"
        "project = Project('work')\n"
        "try: project.train('cut', **options)\n"
        "except KeyboardInterrupt: print('stopped')\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "print(project.train('cut', **options).step, len(made))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cli.cwd, capture_output=True, text=True, check=False,
        env=environment({"PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    assert done.stdout.split() == ["stopped", "6", "6"], done.stderr


@pytest.mark.slow
def test_stages_in_threads_make_the_bytes_that_they_make_alone(cli: Cli) -> None:
    options = {**SMALL, "batch_size": 8}
    project = Project(cli.work)
    names = ("first", "second")
    threads = [threading.Thread(target=project.train, args=(n,), kwargs=options) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    project.train("alone", **options)
    alone = final_bytes(cli.work, "alone")
    assert [final_bytes(cli.work, name) for name in names] == [alone, alone]


def test_it_stays_where_it_was_when_the_folder_changes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(cli.cwd)
    project = Project("work")
    monkeypatch.chdir(tmp_path.parent)
    assert project.evaluate(samples=0).evaluation.run == "default"


def test_gates_are_in_the_result(cli: Cli) -> None:
    project = Project(cli.work)
    rules = ["bits_per_byte<=100", "bits_per_byte<=0"]
    assert project.evaluate(require=rules[0]).passed
    assert not project.evaluate(require=rules).passed


def test_what_is_said_goes_to_the_logger_or_to_a_function(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n".join(DOCUMENTS))
    with caplog.at_level(logging.INFO, "bigmodel"):
        Project(tmp_path / "w").prepare(source, tokenizer="bytes", document_separator="\\n",
                                        val=0.2, test=0.2)  # fmt: skip
    levels = {record.levelname for record in caplog.records}
    assert levels == {"INFO", "WARNING"}  # such as few documents in val
    assert "task language" in caplog.text
    events: list[Any] = []
    Project(tmp_path / "w", events.append).prepare(source, tokenizer="chars", val=0, test=0,
                                                   document_separator="\\n")  # fmt: skip
    assert any(isinstance(event, Progress) for event in events)
    model_warns = logging.getLogger("bigmodel")
    assert model_warns.handlers == []  # it is the caller's to say where they go


def test_unknown_names_in_a_request_are_said(cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    model = load(cli.work / "runs/default/bundle", threads=1)
    model({"prompt": "a", "max_tokens": 1, "colour": "red"})
    assert "`colour`" in caplog.text


@pytest.mark.slow
def test_importing_it_is_quick() -> None:
    code = (
        "import sys, bigmodel_cli\n"
        "assert not {'torch', 'numpy', 'pyarrow', 'typer'} & {*sys.modules}\n"
        "from bigmodel_cli import Project, load\n"
        "assert not {'torch', 'pyarrow', 'typer', 'rich'} & {*sys.modules}, [*sys.modules]\n"
        "assert {'Project', 'load'} <= {*dir(bigmodel_cli)}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_types_are_there_for_those_who_check_them() -> None:
    assert (Path(bigmodel_cli.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_the_readme_s_lines_run(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert "from bigmodel_cli import" in code
    (tmp_path / "data").symlink_to(ROOT / "data")
    code = re.sub(r"minutes=[\d.]+", "minutes=0.1", code)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment({"PYTHONPATH": str(ROOT)}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Workdir(tmp_path / "work").run("default").bundle.is_dir()
