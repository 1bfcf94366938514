"""The whole chain on text whose true entropy is known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.tasks import load_task
from tests.stages import ROOT, STORIES, bigmodel, deploy, evaluate, prepare, train


@pytest.mark.slow
def test_a_small_model_comes_near_the_entropy_of_the_grammar_and_never_below(
    tmp_path: Path,
) -> None:
    spec = importlib.util.spec_from_file_location("make_stories", ROOT / "data/make_stories.py")
    assert spec
    assert spec.loader
    grammar = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grammar)

    work = tmp_path / "work"
    prepare(work, STORIES)
    train(work, steps=500, length=128, width=64, layers=2, heads=2, batch_size=16)
    found = as_json(evaluate(work).evaluation)
    place = Workdir(work)
    split = Split(place.data, place.read_data().splits["test"].shards)
    tokenizer = load_task(place.preprocessor, "").tokenizer  # type: ignore[attr-defined]
    optimum = sum(
        grammar.bits(tokenizer.decode(split.values("tokens", unit, unit + 1).tolist()))
        for unit in range(len(split))
    )
    metrics = found["metrics"]["bits_per_byte"]
    bits = metrics["value"] * place.read_data().splits["test"].bytes
    assert optimum <= bits <= 1.35 * optimum
    assert metrics["high"] < found["baselines"]["kneser_ney_5"]["bits_per_byte"]
    assert deploy(work).receipt.transformers.proof == "passed"
    # what it writes is a story, or nearly one
    line = json.dumps({"prompt": "", "max_tokens": 300})
    answer = json.loads(bigmodel("predict", "-w", work, stdin=line).stdout)
    assert answer["finish_reason"] == "stop"
    assert answer["text"].count("\n") >= 2


@pytest.mark.slow
def test_the_chain_runs_without_a_repeated_argument(tmp_path: Path) -> None:
    """prepare, train, evaluate, deploy, predict and status find each other in ./work."""
    (tmp_path / "recipe.toml").write_text(
        "[prepare]\ntokenizer = 'bytes'\n"
        "[train]\nsize = 'nano'\nwidth = 32\nlayers = 1\nheads = 2\nsteps = 3\ncontext = 32\n"
        "batch-size = 4\n"
    )
    lines = STORIES.read_text("utf-8").splitlines(keepends=True)[:100]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    recipe = ["--config", "recipe.toml"]
    for command in (
        ["prepare", "text.jsonl", *recipe],
        ["train", *recipe],
        ["evaluate", *recipe],
        ["deploy", *recipe],
        ["predict", "One day", *recipe],
        ["status"],
    ):
        done = bigmodel(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    for command in (
        ["prepare", "text.jsonl", *recipe],
        ["train", *recipe],
        ["evaluate"],
        ["deploy"],
    ):
        assert "up to date" in bigmodel(*command, cwd=tmp_path).stdout
    moved = (tmp_path / "work").rename(tmp_path / "moved")
    done = bigmodel("train", *recipe, "-w", moved, cwd=tmp_path)
    assert "up to date" in done.stdout
