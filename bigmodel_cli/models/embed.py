"""Parts that every family uses. Legend: B batch, T time, D width, H head width, V vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmodel_cli.models import fused


class RMSNorm(nn.Module):
    """`fused.rms_norm` with a weight of its own."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return fused.rms_norm(x, self.weight, self.eps)


def linear(inputs: int, outputs: int, *, zero: bool = False) -> nn.Linear:
    """A matrix without bias: N(0, 1/inputs), or zero, so that a block starts as the identity."""
    layer = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.zero_() if zero else layer.weight.normal_(std=inputs**-0.5)
    return layer


def rotary_angles(
    positions_BT: Tensor, head_width: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles, each (B, 1, T, H): Su et al. 2021, halves not interleaved. The
    first half of sin is negative, as `fused.norm_rotate` wants it."""
    power = torch.arange(0, head_width, 2, device=positions_BT.device) / head_width
    angles = positions_BT[:, None, :, None].float() * theta**-power
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)
