"""The optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bigmodel_cli.train.optim import Muon, orthogonalized

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # torch's
SHAPES = [(12, 8), (8, 12), (12, 8), (8, 8), (12, 8), (64, 130), (160, 72), (64, 130), (1, 5)]


def updated(together: bool | None, **changed: float) -> list[torch.Tensor]:
    """Weights after three updates, and what the optimizer remembers. None: by torch itself."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape) / 8) for shape in SHAPES]
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.5, "ns_steps": 3, **changed}
    kind = torch.optim.Muon if together is None else Muon
    optimizer = kind(weights, adjust_lr_fn="match_rms_adamw", **settings)
    if isinstance(optimizer, Muon):
        optimizer.together = together
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        optimizer.step()
    return [w.detach() for w in weights] + [optimizer.state[w]["momentum_buffer"] for w in weights]


def far(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_an_update_is_torchs(together: bool) -> None:
    assert far(updated(together), updated(None)) < 5e-4  # of bfloat16
    # which would tell another optimizer
    for changed in ({"weight_decay": 0.4}, {"ns_steps": 4}, {"ns_steps": 2}, {"momentum": 0.9},
                    {"lr": 0.0195}):  # fmt: skip
        assert far(updated(together, **changed), updated(None)) > 8e-4, changed


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    "shape", [(8, 30), (64, 64), (64, 99), (200, 64), (3, 64, 100), (2, 97, 64)]
)
def test_the_steps_are_those_of_the_formula(shape: tuple[int, ...], steps: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    x /= x.norm(dim=(-2, -1), keepdim=True)
    a, b, c = COEFFICIENTS
    expected = x.clone()
    for _ in range(steps):
        gram = expected @ expected.mT
        expected = a * expected + b * gram @ expected + c * gram @ gram @ expected
    torch.testing.assert_close(orthogonalized(x, COEFFICIENTS, steps), expected)


@pytest.mark.parametrize("rank", [1, 4, 64])
@pytest.mark.parametrize("shape", [(64, 200), (200, 64)])
def test_rounding_costs_no_more_than_in_torchs_steps(shape: tuple[int, int], rank: int) -> None:
    torch.manual_seed(0)
    grad = torch.randn(shape[0], rank) @ torch.randn(rank, shape[1]) + 1e-3 * torch.randn(shape)
    x = grad / grad.norm()
    exact = orthogonalized(x.double(), COEFFICIENTS, 1)
    exact = orthogonalized(orthogonalized(exact, COEFFICIENTS, 1), COEFFICIENTS, 1)
    theirs = torch.optim._muon._zeropower_via_newtonschulz(grad, COEFFICIENTS, 3, 1e-7)
    ours = orthogonalized(x.bfloat16(), COEFFICIENTS, 3)
    assert (ours.double() - exact).norm() <= 1.1 * (theirs.double() - exact).norm()


@pytest.mark.slow
def test_a_matrix_of_one_number_stays_near_the_exact_one() -> None:
    """Where rounding does most: the factors of its one singular value nearly cancel."""
    for shape in ((64, 192), (192, 64), (512, 1344)):
        x = torch.ones(shape) / (shape[0] * shape[1]) ** 0.5
        size = float(orthogonalized(x.bfloat16(), COEFFICIENTS, 3).double().norm())
        assert size == pytest.approx(0.72, abs=0.15)
