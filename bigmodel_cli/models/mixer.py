"""The MLP-Mixer: layers that mix the positions of an image, and then their features.

Legend: B batch, T positions, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.models.config import MixerConfig
from bigmodel_cli.models.embed import RMSNorm, linear


class Mixer(nn.Module):
    """The backbone (B, T, D) → (B, T, D) that mixes positions by one matrix and features by
    another, in turns (Tolstikhin et al. 2021)."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        T, D, layers = config.shape.context, config.width, range(config.layers)
        self.place_norms = nn.ModuleList(RMSNorm(D) for _ in layers)
        self.place_up = nn.ModuleList(linear(T, config.mixing) for _ in layers)
        self.place_down = nn.ModuleList(linear(config.mixing, T, zero=True) for _ in layers)
        self.norms = nn.ModuleList(RMSNorm(D) for _ in layers)
        self.up = nn.ModuleList(linear(D, config.hidden) for _ in layers)
        self.down = nn.ModuleList(linear(config.hidden, D, zero=True) for _ in layers)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None, **_: Tensor | None) -> Tensor:
        assert segments_BT is None, "an image is one segment"
        for layer, norm in enumerate(self.norms):
            x_BDT = self.place_norms[layer](x_BTD).transpose(1, 2).contiguous()
            mixed_BDT = self.place_down[layer](F.silu(self.place_up[layer](x_BDT)))
            x_BTD = x_BTD + self.dropout(mixed_BDT.transpose(1, 2))
            fed = self.down[layer](F.silu(self.up[layer](norm(x_BTD))))
            x_BTD = x_BTD + self.dropout(fed)
        return x_BTD
