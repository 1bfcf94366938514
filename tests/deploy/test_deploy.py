"""Bundles: that they answer as the checkpoint does, in bigmodel and in transformers."""

from __future__ import annotations

import builtins
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.artifacts import checkpoint
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy import receipt
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import ArtifactError, BigmodelError, DataError, UsageError
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.qwen3 import export_weights, native_weights
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.shape import Shape
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks.requests import number_field
from tests.stages import bigmodel, deploy, evaluate, prepare, stories, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 stories and one deployed run of each kind."""
    folder = tmp_path_factory.mktemp("deploy")
    work = folder / "work"
    prepare(work, stories(folder, 200), vocab_size=400)
    train(work, learning_rate=0.02, steps=20)
    train(work, "grouped", kv_heads=1, tie=False)
    train(work, "rnn", model="rnn")
    train(work, "mlp", model="mlp", window=4)
    train(work, "masked", objective="masked")
    return work


@pytest.fixture
def work(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "work"))


@pytest.mark.slow
@pytest.mark.parametrize("run", ["default", "grouped"])
def test_a_causal_transformer_loads_in_transformers_and_answers_the_same(
    trained: Path, run: str
) -> None:
    done = deploy(trained, run)
    proof = done.receipt.transformers
    assert proof.proof == "passed"
    assert proof.largest_logit_difference < 1e-4
    assert proof.greedy_identical == proof.greedy_tokens > 0
    # and once more by hand, as any user would
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        done.folder, output_loading_info=True
    )
    assert not any(info.values())
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.folder)
    inputs = tokenizer("Last year a", return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=12)
    predictor = Predictor(done.folder, "cpu")
    (ours,) = predictor.answer_lines([b'{"prompt": "Last year a", "max_tokens": 12}'], {})
    theirs = tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours["text"] == theirs


@pytest.mark.parametrize("run", ["rnn", "mlp", "masked"])
def test_other_models_say_that_bigmodel_alone_loads_them(trained: Path, run: str) -> None:
    done = deploy(trained, run)
    assert done.layout == "native"
    assert done.receipt.bigmodel.proof == "passed"
    assert "loadable by bigmodel alone" in done.receipt.transformers.proof
    assert not (done.folder / "config.json").exists()
    assert "Only bigmodel loads it" in (done.folder / "README.md").read_text("utf-8")
    prompt = "Last year a<|mask|>" if run == "masked" else "Last year a"
    (answer,) = Predictor(done.folder, "cpu").answer_lines(
        [json.dumps({"prompt": prompt, "max_tokens": 5}).encode()], {}
    )
    assert answer["text"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["default", "mlp", "masked"])
def test_what_fewer_bits_cost_is_in_the_receipt(work: Path, run: str) -> None:
    wide = deploy(work, run)
    assert not wide.receipt.precision
    done = deploy(work, run, precision="int8")
    assert not done.fresh  # another precision is another bundle
    assert (wide.receipt.answers_in, done.receipt.answers_in) == ("fp32", "int8")
    effect = done.receipt.precision
    assert effect.name == "int8"
    assert effect.metric == ("pseudo_perplexity" if run == "masked" else "bits_per_byte")
    assert effect.int8 != effect.fp32
    assert effect.int8 == pytest.approx(effect.fp32, rel=0.02)
    card = (done.folder / "README.md").read_text("utf-8")
    assert f"Answers in int8: {effect.metric}" in card
    assert f"first {effect.terms:,} targets of the {done.receipt.split} split" in card
    assert deploy(work, run, precision="int8").fresh
    kinds = [{type(m).__name__ for m in Predictor(done.folder, "cpu", 1, precision).model.modules()}
             for precision in ("auto", "fp32")]  # fmt: skip
    assert "Int8Linear" in kinds[0]  # the bundle's own
    assert "Int8Linear" not in kinds[1]


def test_a_precision_that_a_model_cannot_have_is_refused(work: Path) -> None:
    deploy(work, "rnn")
    with pytest.raises(UsageError, match="a recurrent model cannot have"):
        deploy(work, "rnn", precision="int8")
    assert Predictor(Workdir(work).run("rnn").bundle, "cpu").task.name == "language"


@pytest.mark.slow
def test_a_bundle_needs_nothing_else(work: Path, tmp_path: Path) -> None:
    deploy(work)
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(Workdir(work).run("default").bundle, moved)
    shutil.rmtree(work)
    done = bigmodel("predict", "--bundle", moved, "Last year a", "--max-tokens", 5, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Last year a")


@pytest.mark.slow
def test_the_card_says_whether_the_model_was_evaluated(work: Path) -> None:
    first = deploy(work)
    assert "Not evaluated" in (first.folder / "README.md").read_text("utf-8")
    evaluate(work)
    second = deploy(work)
    assert not second.fresh  # an evaluation is news to the card
    assert [done.receipt.evaluated_in for done in (first, second)] == [None, "fp32"]
    card = (second.folder / "README.md").read_text("utf-8")
    for words in ("bits_per_byte", "kneser_ney_5", "came in", "stories.jsonl", "Qwen3ForCausalLM"):
        assert words in card
    assert deploy(work).fresh


@pytest.mark.slow
def test_without_transformers_the_proof_is_said_not_to_have_run(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "transformers" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    done = deploy(work, force=True)
    assert "not run" in done.receipt.transformers.proof
    assert done.receipt.bigmodel.proof == "passed"


@pytest.mark.slow
def test_a_bundle_that_answers_otherwise_is_not_written(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = deploy(work)
    kept = (before.folder / "bigmodel.json").read_bytes()

    def spoiled(weights: Any, config: ModelConfig) -> Any:
        exported = export_weights(weights, config)
        name = "model.layers.1.mlp.down_proj.weight"
        return {**exported, name: exported[name] + 0.1}

    monkeypatch.setattr("bigmodel_cli.models.qwen3.export_weights", spoiled)
    with pytest.raises(BigmodelError, match="does not answer as the checkpoint does"):
        deploy(work, force=True)
    assert (before.folder / "bigmodel.json").read_bytes() == kept
    assert not list(Workdir(work).run("default").folder.glob(".tmp-*"))


def test_exported_weights_come_back_as_they_were() -> None:
    config = model_config("transformer", "nano", Shape(99, 16, True), kv_heads=2, tie=False)
    weights = SequenceModel(config).state_dict()
    back = native_weights(export_weights(weights, config), config)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_the_comparison_notices_one_other_token() -> None:
    torch.manual_seed(0)
    config = model_config("transformer", "nano", Shape(20, 16, True), width=16, heads=2)
    model = SequenceModel(config).eval()
    texts = [{"tokens_BT": torch.tensor([[1, 2, 3, 4]])}]
    write = receipt.greedy(model)
    assert receipt.compare(model, texts, model, write, "it").greedy_identical == 14

    def off(tokens_BT: torch.Tensor) -> torch.Tensor:
        return model(tokens_BT) + 2e-3

    with pytest.raises(BigmodelError, match="logits differ"):
        receipt.compare(model, texts, off, write, "it")
    with pytest.raises(BigmodelError, match="13 of 14 greedy"):
        receipt.compare(model, texts, model, lambda s, n: [*write(s, n - 1), 21], "it")


def test_which_checkpoint(work: Path) -> None:
    deploy(work, checkpoint="last")
    document = json.loads((Workdir(work).run("default").bundle / "receipt.json").read_text())
    assert document["checkpoint"] == "step-00000020"
    state = checkpoint.read_state(Workdir(work).run("default").checkpoints / "step-00000020")
    assert document["weights"] == state.weights


def test_weights_are_readable_by_others_as_the_umask_says(work: Path) -> None:
    folder = deploy(work).folder
    assert (folder / "model.safetensors").stat().st_mode & 0o077 == 0o044


def test_a_damaged_bundle_is_named(work: Path) -> None:
    folder = deploy(work).folder
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-5] ^= 4
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"model\.safetensors` is corrupt"):
        Predictor(folder, "cpu")


def test_nothing_is_ever_unpickled(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    folder = deploy(work).folder
    assert builtins.any(Predictor(folder, "cpu").answer_lines([b'{"prompt": "a"}'], {}))


@pytest.fixture(scope="module")
def folder(trained: Path) -> Path:
    return deploy(trained).folder


@pytest.mark.slow
def test_lines_in_lines_out_in_order_with_their_ids(folder: Path) -> None:
    lines = [
        {"id": i, "prompt": "Last year a"[: 2 + i], "max_tokens": 1 + i % 5} for i in range(11)
    ]
    lines[3] = {"id": "x", "prompt": 7}  # type: ignore[dict-item]
    text = "\n".join(json.dumps(line) for line in lines)
    done = bigmodel("predict", "--bundle", folder, "--batch-size", 4, stdin=text)
    assert done.returncode == 4
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["id"] for a in answers] == [line["id"] for line in lines]
    assert answers[3]["error"]["code"] == 4
    one_by_one = [
        Predictor(folder, "cpu").answer_lines([json.dumps(lines[i]).encode()], {})[0]
        for i in (0, 10)
    ]
    assert [answers[0], answers[10]] == one_by_one


def test_a_bound_is_said_to_the_last_digit() -> None:
    for name, high in (("max_tokens", 1 << 20), ("seed", (1 << 63) - 1)):
        with pytest.raises(DataError, match=f"`{name}` must be .* to {high}, but is `-1`"):
            number_field({name: -1}, name, 0, 0, high, whole=True)


@pytest.mark.slow
def test_temperature_zero_is_greedy_and_a_seed_repeats(folder: Path) -> None:
    predictor = Predictor(folder, "cpu")

    def ask(**values: Any) -> str:
        line = json.dumps({"prompt": "Last", "max_tokens": 12, **values}).encode()
        return str(predictor.answer_lines([line], {})[0]["text"])

    assert ask() == ask(temperature=0) == ask(temperature=0, seed=9)
    assert ask(temperature=1, seed=1) == ask(temperature=1, seed=1)
    assert len({ask(temperature=1.5, seed=s) for s in range(6)}) > 1
    assert ask(temperature=5, top_k=1, seed=4) == ask()


def test_stop_texts_end_it_before_they_appear(folder: Path) -> None:
    predictor = Predictor(folder, "cpu")
    whole = predictor.answer_lines([b'{"prompt": "Last year a", "max_tokens": 20}'], {})[0]
    assert whole["finish_reason"] == "length"
    stop = whole["text"][4:7]
    line = json.dumps({"prompt": "Last year a", "max_tokens": 20, "stop": [stop, "zzz"]})
    cut = predictor.answer_lines([line.encode()], {})[0]
    assert cut == {
        "text": whole["text"][: whole["text"].index(stop)], "finish_reason": "stop",
    }  # fmt: skip


@pytest.mark.slow
def test_a_partner_on_a_pipe_is_answered_at_once(folder: Path) -> None:
    import subprocess
    import sys

    with subprocess.Popen(
        [sys.executable, "-m", "bigmodel_cli", "predict", "--bundle", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        for word in ("One", "Two"):
            process.stdin.write(json.dumps({"prompt": word, "max_tokens": 2}) + "\n")
            process.stdin.flush()
            assert "text" in json.loads(process.stdout.readline())
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_run_and_a_bundle_lend_their_tokenizer(trained: Path, tmp_path: Path) -> None:
    place = Workdir(trained).run("default")
    texts = stories(tmp_path, 60)
    wanted = (place.preprocessor / "tokenizer.json").read_bytes()
    for number, folder in enumerate((place.folder, deploy(trained).folder)):
        work = tmp_path / str(number)
        prepare(work, texts, tokenizer=str(folder))
        assert (Workdir(work).preprocessor / "tokenizer.json").read_bytes() == wanted
        assert prepare(work, texts, tokenizer=str(folder)).fresh
