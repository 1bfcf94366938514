"""One flipped bit, or a file cut short, at 200 seeded places of every kind of artifact: named, or
without any effect at all; never worked with."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import ArtifactError
from bigmodel_cli.tasks import load_task
from tests.stages import deploy, evaluate, prepare, stories, train

PLACES = 200
Reader = Callable[[Path], Any]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages, done. What a test changes it puts back."""
    folder = tmp_path_factory.mktemp("damage")
    work = folder / "work"
    prepare(work, stories(folder, 120), vocab_size=300, val="0.2", test="0.2")
    train(work, steps=2, width=16, layers=1)
    evaluate(work)
    deploy(work)
    return work


def shards(work: Path) -> Any:
    data = Workdir(work).read_data()
    split = Split(work / "data", data.splits["train"].shards)
    return split.values("tokens", 0, 3).tolist()


def preprocessor(work: Path) -> Any:
    data = Workdir(work).read_data()
    manifest.check_files(work / "data" / "preprocessor", data.preprocessor, "preprocessor", "")
    return load_task(work / "data" / "preprocessor", "").identity()


def saved(work: Path) -> Any:
    folder = Workdir(work).run("default").checkpoints
    path = folder / checkpoint.names(folder)[-1]
    return checkpoint.verify(path)


def bundle(work: Path) -> Any:
    predictor = Predictor(Workdir(work).run("default").bundle, "cpu", 1)
    return predictor.name, predictor.task.identity()


def document(name: str) -> Reader:
    return lambda work: manifest.read_json(work / "runs" / "default" / name, "document", "")


KINDS: dict[str, tuple[str, Reader]] = {
    "manifest": ("data/manifest.json", lambda work: Workdir(work).read_data()),
    "shard": ("data/train-*.safetensors", shards),
    "task": ("data/preprocessor/task.json", preprocessor),
    "tokenizer": ("data/preprocessor/tokenizer.json", preprocessor),
    "run": ("runs/default/config.json", lambda work: Workdir(work).run("default").read_config()),
    "state": ("runs/default/checkpoints/step-*/state.json", saved),
    "model": ("runs/default/checkpoints/step-*/model.safetensors", saved),
    "optimizer": ("runs/default/checkpoints/step-*/optimizer.safetensors", saved),
    "best": ("runs/default/checkpoints/best.json", document("checkpoints/best.json")),
    "evaluation": ("runs/default/evaluation.json", document("evaluation.json")),
    "bundle": ("runs/default/bundle/bigmodel.json", bundle),
    "bundle's receipt": ("runs/default/bundle/receipt.json", bundle),
    "bundle's card": ("runs/default/bundle/README.md", bundle),
    "bundle's weights": ("runs/default/bundle/model.safetensors", bundle),
    "bundle's tokenizer": ("runs/default/bundle/tokenizer.json", bundle),
    "bundle's configuration": ("runs/default/bundle/config.json", bundle),
}


@pytest.mark.parametrize("damage", ["flipped", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_at_200_places_is_named(work: Path, kind: str, damage: str) -> None:
    pattern, read = KINDS[kind]
    path = sorted(work.glob(pattern))[-1]
    whole = path.read_bytes()
    expected = read(work)
    random_ = random.Random(f"{kind} {damage}")
    harmless, names = 0, set[bool]()
    try:
        for _ in range(PLACES):
            place = random_.randrange(len(whole) - 1)  # without the last line end all is there
            if damage == "cut":
                data = whole[:place]
            else:
                raw = bytearray(whole)
                raw[place] ^= 1 << random_.randrange(8)
                data = bytes(raw)
            path.write_bytes(data)
            try:
                found = read(work)
            except ArtifactError as error:
                names.add(path.name in error.message or path.parent.name in error.message)
                continue
            assert found == expected, f"{damage} at {place}: taken for good"
            harmless += 1  # `1e-5` and `1E-5` are one number, and a last line end is none
    finally:
        path.write_bytes(whole)
    assert harmless <= 3
    assert names == {True}  # each error names the file or its folder
    assert read(work) == expected


def test_every_file_that_the_stages_leave_is_of_these_kinds(work: Path) -> None:
    covered = {path for pattern, _ in KINDS.values() for path in work.glob(pattern)}
    left = {p for p in work.rglob("*") if p.is_file() and not p.name.startswith(".")} - covered
    others = {"log.jsonl", "report.html", "task.json", "tokenizer.json", "tokenizer_config.json",
              "generation_config.json"}  # fmt: skip
    assert {p.name for p in left if p.suffix != ".safetensors"} <= others
