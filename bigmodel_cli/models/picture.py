"""Images: pixels → a sequence of positions, and the Mixer over them.

Legend: B batch, C channels, H × W pixels, T positions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.models.embed import RMSNorm, linear
from bigmodel_cli.models.sizes import ModelConfig, Picture


class Stem(nn.Module):
    """Pixels (B, C, H, W) → (B, T, D): convolutions, with a norm over each image between them
    (one over the batch would make a row's result depend on its neighbours), and a learned place."""

    def __init__(self, picture: Picture, width: int) -> None:
        super().__init__()
        kernels = picture.convolutions(width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(
                k.inputs, k.outputs, k.kernel, k.stride,
                padding=0 if picture.stem == "patch" else k.kernel // 2, bias=False,
            )
            for k in kernels
        )  # fmt: skip
        self.norms = nn.ModuleList(nn.GroupNorm(1, k.outputs) for k in kernels[:-1])
        self.places = nn.Parameter(torch.empty(picture.positions, width))
        with torch.no_grad():
            self.places.normal_(std=0.02)
            for kernel, part in zip(kernels, self.convolutions, strict=True):
                part.weight.normal_(std=(kernel.inputs * kernel.kernel**2) ** -0.5)  # type: ignore[operator]

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x = pixels_BCHW.to(self.places.dtype)
        for number, part in enumerate(self.convolutions):
            if number:
                x = F.silu(self.norms[number - 1](x))
            x = part(x)
        return x.flatten(2).transpose(1, 2) + self.places


class Mixer(nn.Module):
    """The backbone (B, T, D) → (B, T, D) that mixes positions by one matrix and features by
    another, in turns (Tolstikhin et al. 2021)."""

    def __init__(self, config: ModelConfig) -> None:
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
