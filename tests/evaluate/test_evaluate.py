"""Evaluation: figures against known answers, intervals, gates, reports."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.artifacts.records import Evaluation, as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.statistics import Partial
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import ArtifactError, DataError, UsageError
from bigmodel_cli.evaluate.report import markdown
from bigmodel_cli.evaluate.scoring import Scorer
from bigmodel_cli.events import Context
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.sequence import build
from bigmodel_cli.tasks import load_task
from tests.stages import bigmodel, evaluate, prepare, stories, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 stories and three runs: a transformer, an rnn, and a masked transformer."""
    folder = tmp_path_factory.mktemp("evaluate")
    work = folder / "work"
    prepare(work, stories(folder, 200), vocab_size=400, test="0.2")
    train(work)
    train(work, "rnn", model="rnn")
    train(work, "masked", objective="masked")
    evaluate(work)
    return work


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "work"))


def document(work: Path, run: str = "default") -> dict[str, Any]:
    return json.loads(Workdir(work).run(run).evaluation.read_text("utf-8"))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_figures_are_those_of_scoring_one_token_at_a_time(trained: Path) -> None:
    """Every target once, each with the context that the documented windows give it."""
    place = Workdir(trained)
    run = place.run("default")
    known = document(trained)
    task = load_task(run.preprocessor, "")
    config = json.loads(run.config.read_text("utf-8"))
    weights = run.checkpoints / known["checkpoint"] / "model.safetensors"
    from bigmodel_cli.artifacts.checkpoint import load_tensors

    model = build(ModelConfig.from_json(config["model"]), load_tensors(weights), "")
    split = Split(place.data, place.read_data().splits["test"].shards)
    context, stride = 32, 16
    nats, tokens, size, correct = 0.0, 0, 0, 0
    starts = [*np.flatnonzero(split.column("start")).tolist(), len(split)]
    for first, last in itertools.pairwise(starts):
        sequence = torch.tensor(np.array(split.values("tokens", first, last), np.int64))
        for target in range(1, len(sequence)):
            # the first window has every length of context; later ones between 16 and 32
            number = max(0, -(-(target - context) // stride))
            start = number * stride
            with torch.inference_mode():
                logits = model(sequence[None, start:target])[0, -1].log_softmax(-1)
            nats -= float(logits[sequence[target]])
            correct += int(logits.argmax() == sequence[target])
            tokens += 1
        if last > 8:
            break  # enough: the partial sums are compared below
    units = slice(0, last)
    size = int(split.column("bytes")[units].sum())
    partial = Partial(Path(), "", len(split), len(task.statistics))
    Scorer(task, split, partial, Context())._score(model, 16)  # as the command does
    statistics = np.asarray(partial.model.statistics().matrix())[units].sum(0)
    assert statistics[0] == pytest.approx(nats, rel=1e-5)
    assert statistics[1:].tolist() == pytest.approx([tokens, size, correct])


def test_metrics_fit_together(trained: Path) -> None:
    metrics = document(trained)["metrics"]
    split = Workdir(trained).read_data().splits["test"]
    assert metrics["perplexity"]["value"] == pytest.approx(math.exp(metrics["loss"]["value"]))
    starts = Split(Workdir(trained).data, split.shards).column("start").sum()
    bits = metrics["loss"]["value"] * (split.tokens - starts) / math.log(2)
    assert metrics["bits_per_byte"]["value"] == pytest.approx(bits / split.bytes)
    for entry in metrics.values():
        assert entry["low"] < entry["value"] < entry["high"]
        assert entry["n"] == split.units


def test_baselines_stand_beside_the_model_and_the_strongest_is_named(trained: Path) -> None:
    found = document(trained)
    assert set(found["baselines"]) == {"unigram", "kneser_ney_5"}
    best = found["baseline"]["bits_per_byte"]
    assert best["name"] == "kneser_ney_5"
    assert best["value"] == min(b["bits_per_byte"] for b in found["baselines"].values())
    assert best["model_is"] == "worse"  # after six steps
    assert 0 < best["difference"]["low"] < best["difference"]["value"] < best["difference"]["high"]


@pytest.mark.slow
def test_a_masked_model_gets_pseudo_perplexity(trained: Path) -> None:
    found = as_json(evaluate(trained, "masked").evaluation)
    assert set(found["metrics"]) == {"pseudo_perplexity", "loss", "masked_accuracy"}
    split = Workdir(trained).read_data().splits["test"]
    assert found["metrics"]["loss"]["n"] == split.units
    assert 1 < found["metrics"]["pseudo_perplexity"]["value"] < 400
    assert "<|mask|>" in found["samples"][0]["prompt"]


@pytest.mark.slow
def test_up_to_date_evaluations_still_judge_their_gates(work: Path) -> None:
    again = evaluate(work, require=("bits_per_byte<=0.1",))
    assert again.fresh
    assert again.evaluation.gates[0].passed is False
    assert evaluate(work, require=("bits_per_byte<=99",)).evaluation.gates[0].passed is True
    assert not evaluate(work, split="val").fresh
    assert not evaluate(work, split="val", force=True).fresh


@pytest.mark.slow
def test_the_same_evaluation_twice_is_the_same(work: Path) -> None:
    first = as_json(evaluate(work, force=True).evaluation)
    second = as_json(evaluate(work, force=True).evaluation)
    assert first == second


class Page(HTMLParser):
    """Collects tags and text, and what the page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_the_report_is_complete_in_itself(work: Path) -> None:
    evaluate(work, require=("bits_per_byte<=0.1",), force=True)
    page = Page()
    page.feed(Workdir(work).run("default").report.read_text("utf-8"))
    assert {"svg", "table", "h1"} <= set(page.tags)
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.loads)
    for words in ("kneser_ney_5", "FAILED", "bits_per_byte", "validation", "kept"):
        assert words in page.text


@pytest.mark.slow
def test_markdown_goes_to_the_file_that_github_names(work: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    done = bigmodel("evaluate", "-w", work, "--require", "bits_per_byte<=0.1",
                    env={"GITHUB_STEP_SUMMARY": str(summary)})  # fmt: skip
    assert done.returncode == 3
    text = summary.read_text("utf-8")
    assert text.startswith("before\n### bigmodel evaluate")
    assert "| bits_per_byte |" in text
    assert "❌ `bits_per_byte<=0.1`" in text
    path = Workdir(work).run("default").evaluation
    assert markdown(manifest.read_record(path, Evaluation, "evaluation", "")) in text


@pytest.mark.slow
def test_a_failed_gate_is_one_document_with_json(work: Path) -> None:
    done = bigmodel("evaluate", "-w", work, "--require", "loss<=0.1", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["gates"][0]["passed"] is False


def test_another_checkpoint_and_what_is_not_there(work: Path) -> None:
    first = as_json(evaluate(work, checkpoint="last").evaluation)
    assert first["checkpoint"] == "step-00000006"
    with pytest.raises(ArtifactError, match="step-00000099"):
        evaluate(work, checkpoint="step-99")
    with pytest.raises(UsageError, match="--checkpoint is `newest`"):
        evaluate(work, checkpoint="newest")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    work = tmp_path / "work"
    prepare(work, stories(tmp_path, 40), vocab_size=300, test="0", val="0")
    train(work, steps=2)
    with pytest.raises(DataError, match="test split is empty"):
        evaluate(work)
