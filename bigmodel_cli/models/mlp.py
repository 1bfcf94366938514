"""The feed-forward language model: Z = σ(W·X + b) over a fixed window (Bengio et al. 2003).

X is the last W tokens' embeddings side by side, zero before a segment's start; without causality
those around the position, as many on either side. Residual blocks follow. Legend: B batch, T time,
D width, W window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.models.embed import RMSNorm, linear
from bigmodel_cli.models.sizes import ModelConfig


@dataclass
class Window:
    """Each slot's last W − 1 embeddings: (B, W − 1, D), zero where there was none yet."""

    x: Tensor

    def select(self, indices: Tensor) -> None:
        """Keeps, repeats or reorders slots."""
        self.x = self.x[indices]


class FeedForward(nn.Module):
    """The backbone: (B, T, D) → (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.mix = linear(config.window * config.width, config.width)
        self.norms = nn.ModuleList(RMSNorm(config.width) for _ in range(config.layers))
        self.up = nn.ModuleList(linear(config.width, config.hidden) for _ in range(config.layers))
        self.down = nn.ModuleList(
            linear(config.hidden, config.width, zero=True) for _ in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)

    def _blocks(self, windows: Tensor) -> Tensor:
        x_BTD: Tensor = self.mix(windows)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x_BTD = x_BTD + self.dropout(down(F.silu(up(norm(x_BTD)))))
        return x_BTD

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None, prefix_B: Tensor | None = None
    ) -> Tensor:
        """The window does not reach beyond a segment; None: each row is one segment. A
        prefix is read as all else."""
        del prefix_B
        T, W = x_BTD.shape[1], self.config.window
        ahead = 0 if self.config.shape.causal else W // 2
        shifted = []
        for back in range(-ahead, W - ahead):
            before, after = max(0, back), max(0, -back)
            part = F.pad(x_BTD, (0, 0, before, after))[:, after : after + T]
            if segments_BT is not None:
                there = F.pad(segments_BT, (before, after), value=-1)[:, after : after + T]
                part = part * (there == segments_BT)[..., None]
            shifted.append(part)
        return self._blocks(torch.cat(shifted, -1))

    def start(self, slots: int, room: int, device: torch.device, dtype: torch.dtype) -> Window:
        del room
        shape = (slots, self.config.window - 1, self.config.width)
        return Window(torch.zeros(shape, device=device, dtype=dtype))

    def extend(self, state: Window, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Feeds `lengths_B` positions to each slot (rows padded on the right)."""
        W, T = self.config.window, x_BTD.shape[1]
        x = torch.cat([state.x.to(x_BTD.dtype), x_BTD], 1)
        parts = [x[:, W - 1 - back : W - 1 - back + T] for back in range(W)]
        places = lengths_B[:, None] + torch.arange(W - 1, device=x.device)
        state.x = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
        return self._blocks(torch.cat(parts, -1))
