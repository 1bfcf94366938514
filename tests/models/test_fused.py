"""What has its gradient written out is what autograd makes of the plain form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigmodel_cli.models import fused


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rms_norm() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(8, dtype=torch.float64, requires_grad=True)
    y = fused.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(y, F.rms_norm(x, (8,), weight, 1e-6))
    with torch.no_grad():
        torch.testing.assert_close(y, fused.rms_norm(x, weight, 1e-6))
    assert torch.autograd.gradcheck(lambda x, w: fused.rms_norm(x, w, 1e-6), (x, weight))


def test_rms_norm_gives_what_the_next_product_wants() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused.rms_norm(x, torch.ones(8, requires_grad=True), 1e-6)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_swiglu() -> None:
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(fused.swiglu(x), F.silu(gate) * up)
    assert torch.autograd.gradcheck(fused.swiglu, (x,))


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows by one, some, all at a time; with targets that are none."""
    monkeypatch.setitem(fused.CHUNK, "cpu", chunk)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, -100, 0, 10, 5, -100, 10])
    ours = fused.cross_entropy(x, weight, targets) / 5
    theirs = F.cross_entropy(x @ weight.T, targets, reduction="mean")
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_cross_entropy_of_nothing_is_zero_and_teaches_nothing() -> None:
    x, weight = torch.randn(0, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    loss = fused.cross_entropy(x, weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_cross_entropy_in_bfloat16_is_that_of_bfloat16_logits() -> None:
    x, weight = torch.randn(64, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (64,))
    found = []
    for way in (
        lambda: fused.cross_entropy(x, weight, targets),
        lambda: F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum"),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            loss = way()
        found.append((loss, *torch.autograd.grad(loss, (x, weight))))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
