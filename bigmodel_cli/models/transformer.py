"""The transformer, in the form that Qwen3ForCausalLM describes.

RMSNorm before each part, RoPE, per-head norms of queries and keys, grouped-query attention,
SwiGLU, no biases. Legend: B batch, T new positions, S all positions, D width, N heads,
K key and value heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.models import fused
from bigmodel_cli.models.embed import RMSNorm, linear, rotary_angles
from bigmodel_cli.models.sizes import LONGEST_PRODUCT, ModelConfig

ROPE_THETA = 10_000.0
SPARE = 16  # positions of a cache that are made at a time, once its slots were reordered


@dataclass
class Cache:
    """Keys and values of each slot so far: per layer (B, K, S, H); `lengths_B` positions hold.
    room: most positions that there may be. even: how many hold, while it is the same for all."""

    keys: list[Tensor]
    values: list[Tensor]
    lengths_B: Tensor
    room: int
    even: int | None = 0

    def select(self, indices: Tensor) -> None:
        """Keeps, repeats or reorders slots, with room for few more positions: what is copied often
        has to be small."""
        self.lengths_B = self.lengths_B[indices]
        held = int(self.lengths_B.max()) if len(indices) else 0
        size = min(self.room, held // SPARE * SPARE + SPARE)
        self.keys = [k[:, :, :size].index_select(0, indices) for k in self.keys]
        self.values = [v[:, :, :size].index_select(0, indices) for v in self.values]

    def make_room(self, end: int) -> None:
        """For the first `end` positions."""
        more = min(self.room, end + SPARE) - self.keys[0].shape[2]
        if end > self.keys[0].shape[2]:
            self.keys = [F.pad(k, (0, 0, 0, more)) for k in self.keys]
            self.values = [F.pad(v, (0, 0, 0, more)) for v in self.values]


@dataclass(frozen=True, slots=True)
class Places:
    """Where new positions go in (B, K, S, H): `put` is an index, and the first `end` hold then.
    real_BT: which of them are no padding; None: all, and all slots are alike."""

    put: tuple[Any, ...]
    end: int
    real_BT: Tensor | None = None

    def write(self, store_BKSH: Tensor, x_BKTH: Tensor) -> Tensor:
        """Puts them there; gives all that hold."""
        if self.real_BT is not None:
            x_BKTH = x_BKTH.transpose(1, 2)[self.real_BT]
        store_BKSH[self.put] = x_BKTH.to(store_BKSH.dtype)
        return store_BKSH[:, :, : self.end]


def attend_within(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, bounds_S: Tensor, causal: bool
) -> Tensor:
    """Attention (B, T, N, H) within bounds, by torch's flash kernel (see Transformer.forward)."""
    from torch.nn.attention.varlen import varlen_attn  # loads the compiler: a second

    B, N, T, H = q_BNTH.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNTH, k_BKTH, v_BKTH))
    # a word that is not needed is left out: older releases do not know this one
    flash = partial(varlen_attn, enable_gqa=True) if k_BKTH.shape[1] != N else varlen_attn
    y_PNH = flash(q, k, v, bounds_S, bounds_S, T, T, window_size=(-1, 0 if causal else -1))
    return y_PNH.view(B, T, N, H)  # type: ignore[union-attr]


class Attention(nn.Module):
    """softmax(QKᵀ/√H)·V with rotary positions and normed queries and keys. mask: True where a
    position is seen, or the bias of `fused.attend`, which then computes it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = (
            config.heads, config.kv_heads, config.head_width,
        )  # fmt: skip
        self.dropout = config.dropout
        outputs = (config.heads + 2 * config.kv_heads) * config.head_width
        self.qkv = linear(config.width, outputs)
        self.q_norm = RMSNorm(config.head_width)
        self.k_norm = RMSNorm(config.head_width)
        self.out = linear(config.width, config.width, zero=True)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: tuple[Tensor, Tensor, Places] | None,
        bounds_S: Tensor | None,
    ) -> Tensor:
        B, T, D = x_BTD.shape
        N, K, H = self.heads, self.kv_heads, self.head_width
        q, k, v = self.qkv(x_BTD).split([N * H, K * H, K * H], -1)
        q_BNTH, k_BKTH = (
            fused.norm_rotate(x.view(B, T, -1, H), norm.weight, norm.eps, *rotary)
            for x, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        v_BKTH = v.view(B, T, K, H).transpose(1, 2)
        if cache is not None:
            keys_BKSH, values_BKSH, places = cache
            k_BKTH, v_BKTH = places.write(keys_BKSH, k_BKTH), places.write(values_BKSH, v_BKTH)
        dropout = self.dropout if self.training else 0.0
        if bounds_S is not None:
            y_BTNH = attend_within(q_BNTH, k_BKTH, v_BKTH, bounds_S, causal)
            return self.out(y_BTNH.reshape(B, T, D))  # type: ignore[no-any-return]
        if mask is not None and mask.is_floating_point():
            y_BNTH = fused.attend(q_BNTH, k_BKTH, v_BKTH, mask, causal, dropout)
        else:
            y_BNTH = F.scaled_dot_product_attention(
                q_BNTH, k_BKTH, v_BKTH, mask, dropout, causal and mask is None, enable_gqa=K != N
            )
        return self.out(y_BNTH.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = Attention(config)
        self.feed_norm = RMSNorm(config.width)
        self.gate_up = linear(config.width, 2 * config.hidden)
        self.down = linear(config.hidden, config.width, zero=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        causal: bool,
        cache: tuple[Tensor, Tensor, Places] | None = None,
        bounds_S: Tensor | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.dropout(
            self.attention(self.attention_norm(x_BTD), rotary, mask, causal, cache, bounds_S)
        )
        fed = fused.swiglu(self.gate_up(self.feed_norm(x_BTD)))
        return x_BTD + self.dropout(self.down(fed))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The backbone: (B, T, D) → (B, T, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def compile_parts(self) -> None:
        """Has each block's kernels fused by torch.compile when it first runs: one compilation
        serves all of them."""
        for block in self.blocks:
            block.compile(dynamic=False)

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None, prefix_B: Tensor | None = None,
        bounds_S: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Positions see those of their own segment only; None: each row is one segment. The first
        `prefix_B` of each row are seen by the whole row. bounds_S: where segments begin, of all
        rows one after another, and where the last one ends; what a GPU takes in place of a mask."""
        B, T, _ = x_BTD.shape
        causal = self.config.shape.causal
        mask = None
        if prefix_B is not None or not self._takes_bounds(x_BTD):
            bounds_S = None
        if bounds_S is not None:
            segments_BT = None
        if segments_BT is not None:
            mask = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
        elif prefix_B is not None or self._in_products(x_BTD, T):
            mask = torch.ones(B, 1, T, T, dtype=torch.bool, device=x_BTD.device)
        positions = torch.arange(T, device=x_BTD.device)[None]
        if causal and mask is not None:
            seen = torch.ones(T, T, dtype=torch.bool, device=mask.device).tril()
            if prefix_B is not None:
                seen = seen | (positions < prefix_B[:, None])[:, None, None]
                causal = False  # for `fused.attend`: the mask says more
            mask = mask & seen
        mask = self._as_bias(mask, x_BTD)
        rotary = self._rotary(positions, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary, mask, causal, None, bounds_S)
        return x_BTD

    def _in_products(self, x_BTD: Tensor, seen: int) -> bool:
        """Whether `fused.attend` computes this; one position is as quick without."""
        return x_BTD.device.type == "cpu" and x_BTD.shape[1] > 1 and seen <= LONGEST_PRODUCT

    def _as_bias(self, mask: Tensor | None, x_BTD: Tensor) -> Tensor | None:
        """A mask (…, S) as what `fused.attend` adds, where that computes; else itself."""
        if mask is None or not self._in_products(x_BTD, mask.shape[-1]):
            return mask
        bias = torch.zeros(mask.shape, dtype=fused.product_dtype(x_BTD), device=mask.device)
        return bias.masked_fill_(~mask, float("-inf"))

    def _takes_bounds(self, x_BTD: Tensor) -> bool:
        """Whether torch's flash attention computes this: it knows no dropout here."""
        return (
            x_BTD.device.type == "cuda"
            and fused.product_dtype(x_BTD) in (torch.bfloat16, torch.float16)
            and torch.cuda.get_device_capability(x_BTD.device) >= (8, 0)
            and self.config.head_width % 8 == 0
            and self.config.head_width <= 256
            and not (self.training and self.config.dropout)
        )

    def start(self, slots: int, room: int, device: torch.device, dtype: torch.dtype) -> Cache:
        config = self.config
        shape = (slots, config.kv_heads, room, config.head_width)
        empty = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(2 * config.layers)]
        return Cache(
            empty[: config.layers],
            empty[config.layers :],
            torch.zeros(slots, dtype=torch.long, device=device),
            room,
        )

    def _rotary(self, positions_BT: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return rotary_angles(positions_BT, self.config.head_width, ROPE_THETA, dtype)

    def extend(self, cache: Cache, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Appends `lengths_B` positions to each slot (rows padded on the right)."""
        T = x_BTD.shape[1]
        prefix = self.config.shape.prefix and cache.even == 0
        new_T = torch.arange(T, device=x_BTD.device)
        mask = None
        if cache.even is not None and bool((lengths_B == T).all()):  # all slots are alike
            begin, cache.even = cache.even, cache.even + T
            positions_BT = begin + new_T[None]
            places = Places((slice(None), slice(None), slice(begin, begin + T)), begin + T)
        else:
            cache.even = None
            positions_BT = cache.lengths_B[:, None] + new_T
            real_BT = new_T < lengths_B[:, None]
            slots = torch.arange(len(x_BTD), device=x_BTD.device)[:, None].expand_as(real_BT)
            put = (slots[real_BT], slice(None), positions_BT[real_BT])
            places = Places(put, min(cache.room, int(cache.lengths_B.max()) + T), real_BT)
        cache.make_room(places.end)
        if T > 1 or cache.even is None:
            keys_S = torch.arange(places.end, device=x_BTD.device)
            last_BT = lengths_B[:, None] - 1 if prefix else positions_BT
            mask = self._as_bias(keys_S <= last_BT[:, None, :, None], x_BTD)
        rotary = self._rotary(positions_BT, x_BTD)
        for layer, block in enumerate(self.blocks):
            kept = cache.keys[layer], cache.values[layer], places
            x_BTD = block(x_BTD, rotary, mask, False, kept)
        cache.lengths_B = cache.lengths_B + lengths_B
        return x_BTD
