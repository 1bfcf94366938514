"""What holds for every task and family: one update whatever the micro-batches, exact resume, a
bundle that answers as its checkpoint, and bad requests that are refused one by one."""

from __future__ import annotations

import base64
import io
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.artifacts import checkpoint
from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import StoppedError
from bigmodel_cli.events import Context
from bigmodel_cli.tasks import TABLE
from bigmodel_cli.train import longer
from bigmodel_cli.train.engine import Engine
from tests.conftest import Cli, Forker, contents
from tests.stages import ROOT, SERVICE, STORIES, deploy, evaluate, final_bytes, prepare, train

FAMILIES = [
    pytest.param({"model": "transformer"}, id="transformer"),
    pytest.param({"model": "rnn", "cell": "gru"}, id="rnn", marks=pytest.mark.slow),
    pytest.param({"model": "mlp", "window": 4}, id="mlp", marks=pytest.mark.slow),
]


@dataclass(frozen=True)
class Kind:
    """A task's small data, and a request that its bundle answers with `gives`."""

    source: Callable[[Path], Path]
    options: dict[str, Any]
    request: dict[str, Any]
    gives: set[str]
    bad: dict[str, Any]


def first(path: Path, count: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        lines = path.read_text("utf-8").splitlines(keepends=True)[:count]
        (folder / path.name).write_text("".join(lines), "utf-8")
        return folder / path.name

    return write


def drawn(script: str, *arguments: str, name: str) -> Callable[[Path], Path]:
    """What a script in data/ writes, of a little."""

    def write(folder: Path) -> Path:
        path = folder / name
        place = ["--output", str(path)] if script != "make_translations.py" else [str(path)]
        subprocess.run([sys.executable, ROOT / "data" / script, *arguments, *place], check=True,
                       capture_output=True)  # fmt: skip
        return path

    return write


def picture() -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (12, 12), 200).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


KINDS = {
    "language": Kind(first(STORIES, 60), {"tokenizer": "bytes"},
                     {"prompt": "Once", "max_tokens": 4}, {"text", "finish_reason"},
                     {"prompt": 3}),
    "chat": Kind(first(SERVICE / "dialogues.jsonl", 60), {"tokenizer": "bytes", "context": 256},
                 {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
                 {"message", "finish_reason"}, {"messages": [{"role": "admin", "content": "x"}]}),
    "text-classification": Kind(first(SERVICE / "intents.jsonl", 80), {"tokenizer": "bytes"},
                                {"text": "where is my lamp"}, {"label", "probabilities"},
                                {"text": None}),
    "translation": Kind(drawn("make_translations.py", "--pairs", "120", name="pairs.jsonl"),
                        {"tokenizer": "bytes"}, {"source": "the dog"}, {"target"}, {"source": 1}),
    "image-classification": Kind(drawn("make_shapes.py", "--images", "90", name="shapes"), {},
                                 {"image": picture()}, {"label", "probabilities"},
                                 {"image": "data:image/png;base64,AAAA"}),
    "recommendation": Kind(drawn("make_sessions.py", "--users", "40", name="sessions.csv"), {},
                           {"history": ["i1"], "k": 3}, {"items", "fallback"},
                           {"history": 3}),
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(TABLE))
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a task's data; its name is the task's."""
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp("tasks")
    work = folder / request.param
    made = prepare(work, kind.source(folder), val="0.2", test="0.2", **kind.options)
    assert made.manifest.task == request.param  # which it found by itself
    return work


def stopped_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Context:
    """A context whose program gets a SIGTERM while update `step` (from 1) is computed."""
    context = Context()
    inner = Engine.step

    def stepping(self: Engine, index: int, *rest: Any) -> Any:
        result = inner(self, index, *rest)
        if index + 1 == step:
            context.stop.on_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Engine, "step", stepping)
    return context


def weights(work: Path, run: str) -> dict[str, torch.Tensor]:
    place = Workdir(work).run(run).checkpoints
    return checkpoint.load_tensors(place / checkpoint.names(place)[-1] / checkpoint.MODEL)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_task_goes_all_the_way_with_each_family(
    prepared: Path, family: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, name = KINDS[prepared.name], str(family["model"])
    values = {**family, "steps": 3, "width": 16, "dropout": 0.1, "batch_size": 6}
    train(prepared, name, **values)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        train(prepared, f"{name}-cut", stopped_at(patch, 2), **values)
    train(prepared, f"{name}-cut", **values)
    assert final_bytes(prepared, f"{name}-cut") == final_bytes(prepared, name)

    document = as_json(evaluate(prepared, name).evaluation)
    split = Workdir(prepared).read_data().splits["test"]
    assert {m["n"] for m in document["metrics"].values()} == {split.units}
    assert document["metrics"]["loss"]["value"] > 0
    assert document["baselines"]
    proof = deploy(prepared, name).receipt.bigmodel
    assert proof.proof == "passed"
    assert proof.greedy_tokens == proof.greedy_identical > 0  # type: ignore[operator]

    predictor = Predictor(Workdir(prepared).run(name).bundle, "cpu", 1)
    defaults = {"max_tokens": 4} if "max_tokens" in predictor.task.fields else {}
    lines = [json.dumps({"id": 7, **kind.request}), json.dumps({"id": 8, **kind.bad}), "no JSON"]
    good, bad, none = predictor.answer_lines([line.encode() for line in lines], defaults)
    assert set(good) == {"id", *kind.gives}
    assert (good["id"], bad["id"]) == (7, 8)
    assert set(bad["error"]) == set(none["error"]) == {"code", "message", "hint"}
    # an answer does not depend on what else is asked at the same time, but for its last digit
    other = [json.dumps({"id": 7, **kind.request}).encode()] * 3
    for answer in predictor.answer_lines(other, defaults):
        assert alike(answer, good), (answer, good)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_finished_run_is_made_longer_by_what_is_advised(
    prepared: Path, family: dict[str, Any], forker: Forker
) -> None:
    place = Workdir(prepared).run(f"{family['model']}-short")
    train(prepared, place.name, **family, steps=3, width=16, dropout=0.1, batch_size=6)
    words = shlex.split(longer.command(place, place.read_config(), {"steps": 2}))
    done = Cli(prepared.parent, forker).works(*words[1:], "-w", prepared, timeout=120)
    assert "new: nothing" in done.err
    more = Workdir(prepared).run(f"{place.name}-longer").read_config()
    assert more.model == place.read_config().model
    assert more.resolved.length.steps == 2


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == (pytest.approx(other, abs=2e-6) if isinstance(one, float) else other))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_do_not_change_an_update(prepared: Path, family: dict[str, Any]) -> None:
    """Sums divided by the update's own number of terms: 1 × 8, 2 × 4 and 8 × 1 rows are one."""
    found = []
    for micro in (8, 4, 1):
        run = f"{family['model']}-m{micro}"
        train(prepared, run, micro_batch=micro, steps=2, optimizer="adamw", precision="fp32",
              batch_size=8, width=16, **family)  # fmt: skip
        found.append(weights(prepared, run))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(tensor, other[name], atol=5e-5, rtol=5e-3)


def test_every_task_is_tried() -> None:
    assert set(KINDS) == set(TABLE)


def changed(value: Any) -> Any:
    """A row with other texts: the words of all but its label and its roles."""
    if isinstance(value, dict):
        same = ("label", "role")
        return {key: part if key in same else changed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [changed(part) for part in value]
    return f"Ж {value[::-1]} 他" if isinstance(value, str) else value


def learned_without(folder: Path, name: str, change: bool) -> dict[str, bytes]:
    """What a task learns where val and test are files of their own, with or without changes."""
    lines = KINDS[name].source(folder).read_text("utf-8").splitlines()
    third = len(lines) // 3
    for number, split in enumerate(("train", "val", "test")):
        rows = [json.loads(line) for line in lines[number * third : (number + 1) * third]]
        rows = [changed(row) for row in rows] if change and split != "train" else rows
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, "utf-8")
    named = {split: str(folder / f"{split}.jsonl") for split in ("val", "test")}
    prepare(folder / "work", folder / "train.jsonl", **named, vocab_size=400)
    return contents(Workdir(folder / "work").preprocessor)


@pytest.mark.parametrize("name", ["language", "chat", "text-classification", "translation"])
def test_what_is_held_out_teaches_nothing(name: str, tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
    assert learned_without(tmp_path / "a", name, False) == learned_without(
        tmp_path / "b", name, True
    )


def test_held_out_images_do_not_choose_size_and_colour(tmp_path: Path) -> None:
    from PIL import Image

    def draw(path: Path, mode: str, side: int, value: int, mark: tuple[int, int]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = mode == "L"
        image = Image.new(mode, (side, side), value if grey else (value, 0, 99))
        image.putpixel(mark, 255 if grey else (255, 0, 0))  # so that no two are the same
        image.save(path)

    found = []
    for form in (("L", 12), ("RGB", 30)):
        folder = tmp_path / form[0]
        for row, split in enumerate(("train", "val", "test")):
            of = ("L", 12) if split == "train" else form
            for label, value in (("dark", 10), ("light", 150)):
                for number in range(40):
                    path = folder / split / label / f"{number}.png"
                    draw(path, *of, value + number, (number % 12, row))
        for number in range(12):  # as large as one batch, or more, and unreadable
            (folder / "train" / "dark" / f"00{number}.png").write_bytes(bytes(1 << 20))
        held_out = {split: str(folder / split) for split in ("val", "test")}
        prepare(folder / "work", folder / "train", **held_out)
        found.append(contents(Workdir(folder / "work").preprocessor))
    assert found[0] == found[1]
    form = json.loads(found[0]["pictures.json"])
    assert (form["channels"], form["size"]) == (1, 12)


@pytest.mark.slow
def test_fewer_bits_answer_nearly_as_well(prepared: Path) -> None:
    train(prepared, "bits", steps=2, width=16)
    for precision in ("int8", "bf16"):
        effect = deploy(prepared, "bits", precision=precision).receipt.precision
        assert effect.value == pytest.approx(effect.fp32, rel=0.1, abs=0.05)
