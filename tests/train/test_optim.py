"""The optimizers."""

from __future__ import annotations

import torch

from bigmodel_cli.train.optim import Muon

SHAPES = [(12, 8), (8, 12), (12, 8), (8, 8), (12, 8)]


def updated(together: bool, **changed: float) -> list[torch.Tensor]:
    """Weights after three updates, and what the optimizer remembers."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape) / 8) for shape in SHAPES]
    settings = {"lr": 0.02, "weight_decay": 0.5, "ns_steps": 3, **changed}
    optimizer = Muon(weights, adjust_lr_fn="match_rms_adamw", **settings)  # type: ignore[arg-type]
    optimizer.together = together
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
    return [w.detach() for w in weights] + [optimizer.state[w]["momentum_buffer"] for w in weights]


def far(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_matrices_updated_together_are_those_updated_one_by_one() -> None:
    assert far(updated(True), updated(False)) < 3e-4  # of bfloat16
    # which would tell another optimizer
    for changed in ({"weight_decay": 0.4}, {"ns_steps": 4}, {"momentum": 0.9}, {"lr": 0.0195}):
        assert far(updated(True, **changed), updated(False)) > 6e-4, changed
