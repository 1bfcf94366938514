"""Parts that every family uses. Legend: B batch, T time, D width, H head width, V vocabulary."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bigmodel_cli.models import fused
from bigmodel_cli.models.config import RopeScaling


class RMSNorm(nn.Module):
    """`fused.rms_norm` with a weight of its own."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return fused.rms_norm(x, self.weight, self.eps)


def linear(inputs: int, outputs: int, *, zero: bool = False, bias: bool = False) -> nn.Linear:
    """A matrix: N(0, 1/inputs), or zero, so that a block starts as the identity. Its bias is 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.zero_() if zero else layer.weight.normal_(std=inputs**-0.5)
        if bias:
            layer.bias.zero_()
    return layer


def rotary_angles(
    positions_BT: Tensor,
    head_width: int,
    theta: float,
    dtype: torch.dtype,
    scaling: RopeScaling | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles, each (B, 1, T, H): Su et al. 2021, halves not interleaved. The
    first half of sin is negative, as `fused.norm_rotate` wants it."""
    power = torch.arange(0, head_width, 2, device=positions_BT.device) / head_width
    turns = theta**-power
    if scaling:
        turns = _scaled(turns, theta, scaling)
    angles = positions_BT[:, None, :, None].float() * turns
    cos, sin = angles.cos(), angles.sin()
    if scaling:
        cos, sin = cos * scaling.attention, sin * scaling.attention
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def _scaled(turns_h: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Radians per position of each pair of dimensions (H/2,), scaled."""
    slow = turns_h / scaling.factor
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "llama3":  # by how often each turns within the original context
        count = scaling.original * turns_h / (2 * math.pi)
        share = (count - scaling.low) / (scaling.high - scaling.low)
    else:  # by the dimension that would turn so often
        H = 2 * len(turns_h)
        ends = (
            H * math.log(scaling.original / (count * 2 * math.pi)) / (2 * math.log(theta))
            for count in (scaling.high, scaling.low)
        )
        first, last = max(math.floor(next(ends)), 0), min(math.ceil(next(ends)), H - 1)
        pairs = torch.arange(len(turns_h), device=turns_h.device)
        share = 1 - (pairs - first) / max(last - first, 0.001)
    share = share.clamp(0, 1)
    return share * turns_h + (1 - share) * slow
