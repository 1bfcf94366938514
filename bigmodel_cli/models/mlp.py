"""The feed-forward language model: Z = σ(W·X + b) over a fixed window (Bengio et al. 2003).

X is the last W tokens' embeddings side by side, zero before a segment's start; without causality
those around the position, as many on either side. With W = 0 it is the mean of all embeddings so
far (of the segment, without causality). Residual blocks follow. Legend: B batch, T time, D width,
W window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.models.config import MlpConfig
from bigmodel_cli.models.embed import RMSNorm, linear


@dataclass
class Window:
    """Each slot's last W − 1 embeddings: (B, W − 1, D), zero where there was none yet."""

    x: Tensor

    def select(self, indices: Tensor) -> None:
        """Keeps, repeats or reorders slots."""
        self.x = self.x[indices]


@dataclass
class Mean:
    """The sum of each slot's embeddings so far, and how many there were: (B, D) and (B,)."""

    sum_BD: Tensor
    lengths_B: Tensor

    def select(self, indices: Tensor) -> None:
        """Keeps, repeats or reorders slots."""
        self.sum_BD, self.lengths_B = self.sum_BD[indices], self.lengths_B[indices]

    def extend(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Feeds `lengths_B` positions to each slot; the mean up to each: (B, T, D)."""
        sums_BTD = self.sum_BD[:, None] + x_BTD.cumsum(1)
        steps = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)
        means_BTD = sums_BTD / (self.lengths_B[:, None] + steps)[..., None]
        self.sum_BD = sums_BTD[torch.arange(len(x_BTD), device=x_BTD.device), lengths_B - 1]
        self.lengths_B = self.lengths_B + lengths_B
        return means_BTD.to(x_BTD.dtype)


def mean_so_far(x_BTD: Tensor, segments_BT: Tensor | None, causal: bool) -> Tensor:
    """The mean of what each position sees of its segment: (B, T, D)."""
    T = x_BTD.shape[1]
    seen_BTT = torch.ones(1, T, T, dtype=torch.bool, device=x_BTD.device)
    if segments_BT is not None:
        seen_BTT = segments_BT[:, :, None] == segments_BT[:, None]
    if causal:
        seen_BTT = seen_BTT.tril()
    shares_BTT = seen_BTT / seen_BTT.sum(-1, keepdim=True)
    return shares_BTT.to(x_BTD.dtype).expand(len(x_BTD), T, T) @ x_BTD


class FeedForward(nn.Module):
    """The backbone: (B, T, D) → (B, T, D)."""

    def __init__(self, config: MlpConfig) -> None:
        super().__init__()
        self.config = config
        self.mix = linear(max(1, config.window) * config.width, config.width)
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

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None, **_: Tensor | None) -> Tensor:
        """The window does not reach beyond a segment; None: each row is one segment. What
        else there is matters to attention alone."""
        T, W = x_BTD.shape[1], self.config.window
        if not W:
            return self._blocks(mean_so_far(x_BTD, segments_BT, self.config.shape.causal))
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

    def start(
        self, slots: int, room: int, device: torch.device, dtype: torch.dtype
    ) -> Window | Mean:
        del room
        if not self.config.window:
            zero = torch.zeros(slots, dtype=torch.long, device=device)
            return Mean(torch.zeros(slots, self.config.width, device=device, dtype=dtype), zero)
        shape = (slots, self.config.window - 1, self.config.width)
        return Window(torch.zeros(shape, device=device, dtype=dtype))

    def extend(self, state: Window | Mean, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Feeds `lengths_B` positions to each slot (rows padded on the right)."""
        if isinstance(state, Mean):
            return self._blocks(state.extend(x_BTD, lengths_B))
        W, T = self.config.window, x_BTD.shape[1]
        x = torch.cat([state.x.to(x_BTD.dtype), x_BTD], 1)
        parts = [x[:, W - 1 - back : W - 1 - back + T] for back in range(W)]
        places = lengths_B[:, None] + torch.arange(W - 1, device=x.device)
        state.x = x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))
        return self._blocks(torch.cat(parts, -1))
