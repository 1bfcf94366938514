"""Parts that every family uses. Legend: B batch, T time, D width, H head width, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = w · x / √(mean(x²) + ε) over the last axis, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


def linear(inputs: int, outputs: int, *, zero: bool = False) -> nn.Linear:
    """A matrix without bias: N(0, 1/inputs), or zero, so that a block starts as the identity."""
    layer = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.zero_() if zero else layer.weight.normal_(std=inputs**-0.5)
    return layer


def rotary_angles(positions_BT: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles, each (B, 1, T, H): Su et al. 2021, halves not interleaved."""
    power = torch.arange(0, head_width, 2, device=positions_BT.device) / head_width
    angles = positions_BT[:, None, :, None].float() * theta**-power
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE: pairs are (i, i + H/2)."""
    first, second = x_BNTH.chunk(2, -1)
    return x_BNTH * cos.to(x_BNTH.dtype) + torch.cat([-second, first], -1) * sin.to(x_BNTH.dtype)
