"""What has its gradient written out is what autograd makes of the plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bigmodel_cli.models import fused
from bigmodel_cli.models.embed import rotary_angles


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


@pytest.mark.parametrize("rows", [1, 2])
def test_norm_and_rotation(rows: int) -> None:
    """As two steps, and as complex numbers (i, i + H/2) turned by each position's angle."""
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(3, 3 + 5).repeat(rows, 1) * torch.arange(1, rows + 1)[:, None]
    cos, sin = rotary_angles(positions, 8, 100.0, torch.float64)
    y = fused.norm_rotate(x, weight, 1e-6, cos, sin)
    with torch.no_grad():
        torch.testing.assert_close(y, fused.norm_rotate(x, weight, 1e-6, cos, sin))
        normed = F.rms_norm(x, (8,), weight, 1e-6).transpose(1, 2)
        angles = positions[:, None, :, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
        turned = torch.complex(normed[..., :4], normed[..., 4:]) * torch.polar(
            torch.ones_like(angles, dtype=torch.float64), angles.double()
        )
        expected = torch.cat([turned.real, turned.imag], -1)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)  # angles are fp32
    assert torch.autograd.gradcheck(
        lambda x, w: fused.norm_rotate(x, w, 1e-6, cos, sin), (x, weight)
    )
    lengths = [part[..., :4].square() + part[..., 4:].square() for part in (y, normed)]
    torch.testing.assert_close(*lengths)  # a rotation keeps each pair's length

    low = [x.detach().bfloat16().requires_grad_(), weight.detach().float().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        z = fused.norm_rotate(*low, 1e-6, cos.float(), sin.float())
    assert (z.dtype, z.is_contiguous()) == (torch.bfloat16, True)
    direction = torch.randn_like(y)
    ours = torch.autograd.grad(z, low, direction.bfloat16())
    assert [part.dtype for part in ours] == [torch.bfloat16, torch.float32]
    exact = torch.autograd.grad(y, (x, weight), direction)
    for found, expected in zip((z, *ours), (y, *exact), strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_swiglu() -> None:
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, -1)
    torch.testing.assert_close(fused.swiglu(x), F.silu(gate) * up)
    assert torch.autograd.gradcheck(fused.swiglu, (x,))


@pytest.mark.parametrize(("length", "seen"), [(1, 1), (2, 2), (3, 3), (16, 16), (33, 33), (5, 9)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_attention(
    length: int, seen: int, kv_heads: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out, as autograd sees it (so it is compiled, and with dropout), and torch's."""
    q, k, v = (
        torch.randn(2, heads, size, 8, dtype=torch.float64, requires_grad=True)
        for heads, size in ((4, length), (kv_heads, seen), (kv_heads, seen))
    )
    segments = torch.randint(0, 2, (2, seen)).sort().values
    mask = segments[:, None, -length:, None] == segments[:, None, None, :]
    causal = causal and length == seen
    if causal:
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    found = []
    for way in (
        lambda: fused.attend(q, k, v, bias, causal, 0.0),
        lambda: F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True),
        lambda: fused.attend(q, k, v, bias, causal, 0.0),
    ):
        y = way()
        found.append((y, *torch.autograd.grad((y * torch.arange(8)).square().sum(), (q, k, v))))
        monkeypatch.setattr(fused, "written_out", lambda: False)
    for one, other, third in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, third)
    assert found[0][0].transpose(1, 2).is_contiguous()  # as the next product wants it
    monkeypatch.undo()
    low = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    same = []
    for _ in range(2):
        y = fused.attend(low[0], low[1], low[2], bias.bfloat16(), causal, 0.0)
        same.append((y, *torch.autograd.grad(y, low, torch.ones_like(y))))
        monkeypatch.setattr(fused, "written_out", lambda: False)
    assert all(torch.equal(one, other) for one, other in zip(*same, strict=True))


def test_a_gradient_of_a_gradient_is_refused() -> None:
    """Instead of being wrong."""
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    for y in (
        fused.attend(x, x, x, torch.zeros(1, 1, 4, 4), True, 0.0),
        fused.swiglu(x),
        fused.rms_norm(x, torch.ones(4), 1e-6),
    ):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


def test_attention_with_dropout_drops_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(1, 1, 400, 4, requires_grad=True) for _ in range(3))
    seen = []
    for _ in range(2):
        torch.manual_seed(5)
        y = fused.attend(q, k, torch.ones_like(v), torch.zeros(1, 1, 400, 400), False, 0.25)
        seen.append(y.detach())
        monkeypatch.setattr(fused, "written_out", lambda: False)
    assert torch.equal(*seen)
    assert seen[0].std() > 0.01  # without, all are 1
    assert float(seen[0].mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
@pytest.mark.parametrize("compiled", [False, True])
def test_cross_entropy(chunk: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of no more logits than that, or a row's, also when another function turns them; with
    targets that are none."""
    taken = []

    def turn(logits_MV: torch.Tensor, targets_M1: torch.Tensor) -> torch.Tensor:
        taken.append(logits_MV.shape)
        return fused.to_gradient(logits_MV, targets_M1)

    monkeypatch.setattr(fused, "MOST", chunk)
    monkeypatch.setitem(fused.CHUNK, "cpu", chunk)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, -100, 0, 10, 5, -100, 10])
    ours = fused.cross_entropy(x, weight, targets, turn if compiled else fused.to_gradient) / 5
    assert all(shape.numel() <= max(chunk, 11) for shape in taken)
    theirs = F.cross_entropy(x @ weight.T, targets, reduction="mean")
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("turn", [fused.to_gradient, lambda *given: fused.to_gradient(*given)])
def test_cross_entropy_of_nothing_is_zero_and_teaches_nothing(turn: Any) -> None:
    x, weight = torch.randn(0, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    loss = fused.cross_entropy(x, weight, torch.zeros(0, dtype=torch.long), turn)
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
