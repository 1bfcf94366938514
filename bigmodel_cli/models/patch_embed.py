"""Images: pixels → a sequence of positions.

Legend: B batch, C channels, H × W pixels, T positions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.models.shape import ImageShape


class Stem(nn.Module):
    """Pixels (B, C, H, W) → (B, T, D): convolutions, with a norm over each image between them
    (one over the batch would make a row's result depend on its neighbours), and a learned place
    for each position, unless the backbone has them."""

    def __init__(self, image: ImageShape, width: int, places: bool, bias: bool) -> None:
        super().__init__()
        kernels = image.convolutions(width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(
                k.inputs,
                k.outputs,
                k.kernel,
                k.stride,
                padding=0 if image.stem == "patch" else k.kernel // 2,
                bias=bias,
            )
            for k in kernels
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, k.outputs) for k in kernels[:-1])
        self.places: nn.Parameter | None = None
        if places:
            self.places = nn.Parameter(torch.empty(image.positions, width))
        with torch.no_grad():
            if self.places is not None:
                self.places.normal_(std=0.02)
            for kernel, part in zip(kernels, self.convolutions, strict=True):
                part.weight.normal_(std=(kernel.inputs * kernel.kernel**2) ** -0.5)  # type: ignore[operator]

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        x = pixels_BCHW.to(self.convolutions[0].weight.dtype)  # type: ignore[arg-type]
        for number, part in enumerate(self.convolutions):
            if number:
                x = F.silu(self.norms[number - 1](x))
            x = part(x)
        x = x.flatten(2).transpose(1, 2)
        return x if self.places is None else x + self.places
