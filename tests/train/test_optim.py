"""The optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.train import optim
from bigmodel_cli.train.optim import STEP, STEPS, Muon, orthogonal

SHAPES = [(12, 8), (8, 12), (12, 8), (8, 8), (12, 8)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.5, "momentum": 0.95}


def updated(kind: Any, **settings: Any) -> list[torch.Tensor]:
    """Weights after three updates, and what the optimizer remembers."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape) / 8) for shape in SHAPES]
    optimizer = kind(weights, **settings)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
    return [w.detach() for w in weights] + [optimizer.state[w]["momentum_buffer"] for w in weights]


@pytest.mark.parametrize("stack", [1, 200, None])
def test_updates_are_those_of_torchs_muon(
    monkeypatch: pytest.MonkeyPatch, stack: int | None
) -> None:
    if stack:  # in parts: each matrix by itself, or two and one
        monkeypatch.setitem(optim.STACK, "cpu", stack)
    ours = updated(Muon, **SETTINGS)

    def far(**changed: Any) -> float:
        settings = {**SETTINGS, "ns_steps": STEPS, "adjust_lr_fn": "match_rms_adamw", **changed}
        theirs = updated(torch.optim.Muon, **settings)
        differences = [(a - b).flatten() for a, b in zip(ours, theirs, strict=True)]
        return float(torch.cat(differences).square().mean().sqrt())

    assert far() < 1e-4  # of bfloat16
    # which would tell another optimizer
    for changed in ({"weight_decay": 0.4}, {"ns_steps": 4}, {"momentum": 0.9}, {"lr": 0.019}):
        assert far(**changed) > 2e-4, changed


def test_a_matrix_without_a_gradient_stays_and_one_of_zeros_only_decays() -> None:
    weights = [torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    weights[1].grad = torch.zeros(3, 4)
    Muon(weights, lr=0.1, weight_decay=0.5).step()
    assert torch.equal(weights[0], torch.ones(3, 4))
    assert torch.allclose(weights[1], torch.full((3, 4), 0.95))


@pytest.mark.parametrize("shape", [(64, 64), (48, 160), (160, 48)])
@pytest.mark.parametrize(("spike", "error"), [(0.0, 0.02), (10.0, 0.1), (1000.0, 0.25)])
def test_singular_values_become_the_polynomials_and_vectors_stay(
    shape: tuple[int, int], spike: float, error: float
) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, *shape) + spike * torch.randn(shape[0], 1) @ torch.randn(1, shape[1])
    made = orthogonal(x.bfloat16()).float()
    for before, after in zip(x.bfloat16().float(), made, strict=True):
        left, sigma, right = torch.linalg.svd(before, full_matrices=False)
        sigma /= sigma.norm()
        for _ in range(STEPS):
            sigma = STEP[0] * sigma + STEP[1] * sigma**3 + STEP[2] * sigma**5
        expected = left @ sigma.diag() @ right
        assert float((after - expected).norm() / expected.norm()) < error
