"""Recurrent backbones: h_t = σ(W_h·[h_{t−1}, x_t] + b_h), with Elman, GRU and LSTM cells.

Each layer adds to the residual stream, after a norm. Without causality, half of the width reads
backwards. Legend: B batch, T time, D width, L layers, R runs (pieces of one segment).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bigmodel_cli.models.config import RnnConfig
from bigmodel_cli.models.embed import RMSNorm

WASTE = 4  # padding up to this many times the tokens is quicker than packing them
CELLS: dict[str, Any] = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


@dataclass
class Hidden:
    """Each slot's state: per layer, one tensor (1, B, D), two for an LSTM."""

    layers: list[tuple[Tensor, ...]]

    def select(self, indices: Tensor) -> None:
        """Keeps, repeats or reorders slots."""
        self.layers = [tuple(part[:, indices] for part in layer) for layer in self.layers]


class Recurrent(nn.Module):
    """The backbone: (B, T, D) → (B, T, D)."""

    def __init__(self, config: RnnConfig) -> None:
        super().__init__()
        self.config = config
        both = not config.shape.causal
        width = config.width // 2 if both else config.width
        self.norms = nn.ModuleList(RMSNorm(config.width) for _ in range(config.layers))
        self.cells = nn.ModuleList(
            CELLS[config.cell](config.width, width, batch_first=True, bidirectional=both)
            for _ in range(config.layers)
        )
        for cell in self.cells:
            for name, weight in cell.named_parameters():
                with torch.no_grad():
                    if name.startswith("bias"):
                        weight.zero_()
                        if config.cell == "lstm" and name.startswith("bias_ih"):
                            weight[width : 2 * width] = 1.0  # remember at first (Gers 1999)
                    elif name.startswith("weight_hh"):
                        for part in weight.chunk(weight.shape[0] // width):
                            nn.init.orthogonal_(part)
                    else:
                        weight.normal_(std=config.width**-0.5)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None, **_: Tensor | None) -> Tensor:
        """The state starts again where a segment does; None: each row is one segment. What
        else there is matters to attention alone."""
        if segments_BT is None:
            for norm, cell in zip(self.norms, self.cells, strict=True):
                x_BTD = x_BTD + self.dropout(cell(norm(x_BTD))[0])
            return x_BTD
        B, T, D = x_BTD.shape
        runs = Runs.of(segments_BT)
        flat_PD = x_BTD.reshape(B * T, D)
        longest, count = int(runs.lengths.max()), len(runs.lengths)
        if self.config.shape.causal and count * longest <= WASTE * B * T:
            # one run a row, padded on the right: much quicker than packing, if little is padding
            steps = torch.arange(longest, device=x_BTD.device)
            real = (steps < runs.lengths[:, None]).flatten().nonzero()[:, 0]
            padded = flat_PD.new_zeros(count * longest, D).index_copy(0, real, flat_PD)
            return (
                self.forward(padded.view(count, longest, D), None).flatten(0, 1)[real].view(B, T, D)
            )
        order, sizes = runs.packing()
        x_PD = flat_PD[order]
        for norm, cell in zip(self.norms, self.cells, strict=True):
            y = cell(PackedSequence(norm(x_PD), sizes))[0]
            x_PD = x_PD + self.dropout(y.data)
        return x_PD[order.argsort()].view(B, T, D)

    def start(self, slots: int, room: int, device: torch.device, dtype: torch.dtype) -> Hidden:
        del room
        parts = 2 if self.config.cell == "lstm" else 1
        zero = torch.zeros(1, slots, self.config.width, device=device, dtype=dtype)
        return Hidden([(zero,) * parts for _ in self.cells])

    def extend(self, state: Hidden, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Feeds `lengths_B` positions to each slot (rows padded on the right)."""
        T = x_BTD.shape[1]
        ragged = bool((lengths_B != T).any())
        for layer, (norm, cell) in enumerate(zip(self.norms, self.cells, strict=True)):
            before = state.layers[layer]
            initial = before if len(before) == 2 else before[0]
            inputs = norm(x_BTD)
            if ragged:
                packed = pack_padded_sequence(
                    inputs, lengths_B.cpu(), batch_first=True, enforce_sorted=False
                )
                y_packed, after = cell(packed, initial)
                y, _ = nn.utils.rnn.pad_packed_sequence(y_packed, batch_first=True, total_length=T)
            else:
                y, after = cell(inputs, initial)
            state.layers[layer] = after if isinstance(after, tuple) else (after,)
            x_BTD = x_BTD + y
        return x_BTD


@dataclass(frozen=True)
class Runs:
    """The pieces of one segment in one row: flat starts (R,) and lengths (R,), in order."""

    starts: Tensor
    lengths: Tensor

    @staticmethod
    def of(segments_BT: Tensor) -> Runs:
        begins = torch.ones_like(segments_BT, dtype=torch.bool)
        begins[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
        starts = begins.flatten().nonzero()[:, 0]
        end = torch.tensor([segments_BT.numel()], device=starts.device)
        return Runs(starts, torch.diff(starts, append=end))

    def packing(self) -> tuple[Tensor, Tensor]:
        """Longest first: the flat place of each packed position (B · T,), and how many runs reach
        each time step (longest run,)."""
        lengths, by_length = self.lengths.sort(descending=True, stable=True)
        steps = torch.arange(int(lengths[0]), device=lengths.device)
        alive = lengths[None] > steps[:, None]
        return (self.starts[by_length][None] + steps[:, None])[alive], alive.sum(1).cpu()
