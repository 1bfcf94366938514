"""What holds on a GPU: every task and family goes all the way, killed runs resume to the same
bytes, and what is computed is what a CPU computes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import StoppedError
from tests.models.test_sequence import make
from tests.stages import TINY, bigmodel, deploy, evaluate, final_bytes, log, prepare, stories, train
from tests.test_tasks import FAMILIES, KINDS, prepared, stopped_at  # noqa: F401

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]
CUDA = {"device": "cuda"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories, several of which share a row."""
    folder = tmp_path_factory.mktemp("gpu")
    prepare(folder / "work", stories(folder, 160), tokenizer="bytes")
    return folder / "work"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_task_goes_all_the_way_on_a_gpu(
    prepared: Path,  # noqa: F811
    family: dict[str, Any], dropout: float, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kind, name = KINDS[prepared.name], f"{family['model']}-{dropout}"
    values = {**family, **CUDA, "steps": 3, "width": 16, "dropout": dropout, "batch_size": 6}
    train(prepared, name, **values)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        train(prepared, f"{name}-cut", stopped_at(patch, 2), **values)
    train(prepared, f"{name}-cut", **values)
    assert final_bytes(prepared, f"{name}-cut") == final_bytes(prepared, name)

    metrics = evaluate(prepared, name, **CUDA).evaluation.metrics
    for metric, found in evaluate(prepared, name, force=True).evaluation.metrics.items():
        assert metrics[metric]["value"] == pytest.approx(found["value"], rel=0.05, abs=0.05)
    receipt = deploy(prepared, name, **CUDA).receipt.bigmodel
    assert receipt["greedy_tokens"] == receipt["greedy_identical"] > 0
    answers = []
    for device in ("cuda", "cpu"):
        predictor = Predictor(Workdir(prepared).run(name).bundle, device, 1)
        defaults = {"max_tokens": 4} if "max_tokens" in predictor.task.fields else {}
        answers += predictor.answer_lines([json.dumps(kind.request).encode()], defaults)
    assert set(answers[0]) == set(answers[1]) == kind.gives


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_makes_the_updates_of_a_cpu(data: Path, family: dict[str, Any]) -> None:
    found = []
    for device in ("cpu", "cuda"):
        run = f"{family['model']}-{device}"
        train(data, run, device=device, precision="fp32", optimizer="adamw", steps=4, **family)
        found.append([line["loss"] for line in log(data, run) if "loss" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_matrices_updated_together_on_a_gpu_are_those_of_a_cpu(optimizer: str, data: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        run = f"{optimizer}-{device}"
        train(data, run, device=device, precision="fp32", optimizer=optimizer, steps=6)
        found.append([line["loss"] for line in log(data, run) if "loss" in line])
    assert found[0] == pytest.approx(found[1], rel=5e-3)


@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("objective", ["next", "masked"])
def test_a_run_killed_on_a_gpu_resumes_to_the_same_bytes(
    data: Path, tmp_path: Path, objective: str, compiled: str
) -> None:
    """The proof that users have, in bf16, by flash attention over several documents in a row."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").symlink_to(data / "data")
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "context": 256}.items()]
    done = bigmodel("train", "-w", tmp_path / "work", *flags, "--heads", 1, "--device", "cuda",
                    "--objective", objective, "--compile", compiled, "--verify-resume", 6, "--json",
                    "--micro-batch", 4)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compiled"] is (compiled == "on")
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_flash_attention_within_bounds_is_masked_attention(
    causal: bool, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen

    from bigmodel_cli.tasks import Batch

    flash = varlen.varlen_attn
    if "enable_gqa" not in inspect.signature(flash).parameters:  # torch 2.11 groups heads unasked
        monkeypatch.setattr(varlen, "varlen_attn", lambda *a, **k: flash(
            *a, **{name: value for name, value in k.items() if name != "enable_gqa"}))  # fmt: skip
    model = make("transformer", causal, kv_heads=kv_heads).cuda().train()
    segments = torch.zeros(3, 24, dtype=torch.long)
    segments[0, 7:], segments[0, 20:], segments[2, 23:] = 1, 2, 1
    tokens = torch.randint(0, 50, (3, 24))
    batch = Batch({"tokens_BT": tokens, "segments_BT": segments}, tokens, 72).to(model.device)
    found = []
    for inputs in (batch.inputs, {k: v for k, v in batch.inputs.items() if k != "bounds_S"}):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss_sum(targets_BT=batch.targets, **inputs)
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for ours, theirs in zip(*found, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=3e-2 * scale)


def test_the_compiled_loss_is_the_plain_one() -> None:
    from bigmodel_cli.models import fused

    x, weight = torch.randn(64, 16, device="cuda"), torch.randn(50, 16, device="cuda")
    targets = torch.randint(-1, 50, (64,), device="cuda")
    found = []
    for turn in (fused.to_gradient, torch.compile(fused.to_gradient, dynamic=False)):
        given = [part.clone().requires_grad_() for part in (x, weight)]
        loss = fused.cross_entropy(*given, targets, turn)
        found.append([loss, *torch.autograd.grad(loss, given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
