"""The transformer, in the form that its configuration says.

By default that of Qwen3ForCausalLM: RMSNorm before each part, RoPE, per-head norms of queries and
keys, grouped-query attention, SwiGLU, no biases. Legend: B batch, T new positions, S all positions,
D width, N heads, K key and value heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmodel_cli.models import fused
from bigmodel_cli.models.config import LONGEST_PRODUCT, TransformerConfig
from bigmodel_cli.models.embed import RMSNorm, linear, rotary_angles

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
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


def norm_of(config: TransformerConfig, width: int) -> nn.Module:
    """A norm of the configuration's kind."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(width, config.epsilon)


def last_norm(config: TransformerConfig) -> nn.Module:
    """What follows the last layer: nothing, where each sum was normed already."""
    return norm_of(config, config.width) if config.norm_place == "pre" else nn.Identity()


def attend_within(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, bounds_S: Tensor, causal: bool, window: int
) -> Tensor:
    """Attention (B, T, N, H) within bounds, by torch's flash kernel (see Transformer.forward)."""
    from torch.nn.attention.varlen import varlen_attn  # loads the compiler: a second

    B, N, T, H = q_BNTH.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNTH, k_BKTH, v_BKTH))
    # a word that is not needed is left out: older releases do not know this one
    flash = partial(varlen_attn, enable_gqa=True) if k_BKTH.shape[1] != N else varlen_attn
    y_PNH = flash(q, k, v, bounds_S, bounds_S, T, T, window_size=(window - 1, 0 if causal else -1))
    return y_PNH.view(B, T, N, H)  # type: ignore[union-attr]


class Attention(nn.Module):
    """softmax(QKᵀ/√H)·V. rotary: cos and sin that turn queries and keys, if anything does. mask:
    True where a position is seen, or the bias of `fused.attend`, which then computes it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.heads * config.head_width
        outputs = inner + 2 * config.kv_heads * config.head_width
        self.qkv = linear(config.width, outputs, bias=config.qkv_bias)
        self.q_norm = norm_of(config, config.head_width) if config.qk_norm else None
        self.k_norm = norm_of(config, config.head_width) if config.qk_norm else None
        self.out = linear(inner, config.width, zero=True, bias=config.output_bias)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        causal: bool,
        cache: tuple[Tensor, Tensor, Places] | None,
        bounds_S: Tensor | None,
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        N, K, H = self.config.heads, self.config.kv_heads, self.config.head_width
        q, k, v = self.qkv(x_BTD).split([N * H, K * H, K * H], -1)
        q_BNTH = _placed(q.view(B, T, N, H), self.q_norm, rotary)
        k_BKTH = _placed(k.view(B, T, K, H), self.k_norm, rotary)
        v_BKTH = v.view(B, T, K, H).transpose(1, 2)
        if cache is not None:
            keys_BKSH, values_BKSH, places = cache
            k_BKTH, v_BKTH = places.write(keys_BKSH, k_BKTH), places.write(values_BKSH, v_BKTH)
        dropout = self.config.dropout if self.training else 0.0
        if bounds_S is not None:
            window = self.config.sliding_window
            y_BTNH = attend_within(q_BNTH, k_BKTH, v_BKTH, bounds_S, causal, window)
            return self.out(y_BTNH.reshape(B, T, N * H))  # type: ignore[no-any-return]
        if mask is not None and mask.is_floating_point():
            y_BNTH = fused.attend(q_BNTH, k_BKTH, v_BKTH, mask, causal, dropout)
        else:
            y_BNTH = F.scaled_dot_product_attention(
                q_BNTH, k_BKTH, v_BKTH, mask, dropout, causal and mask is None, enable_gqa=K != N
            )
        return self.out(y_BNTH.transpose(1, 2).reshape(B, T, N * H))  # type: ignore[no-any-return]


def _placed(x_BTNH: Tensor, norm: nn.Module | None, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Queries or keys (B, N, T, H), normed and turned by their positions, as far as they are."""
    if rotary is not None and isinstance(norm, RMSNorm):
        return fused.norm_rotate(x_BTNH, norm.weight, norm.eps, *rotary)
    x_BNTH = (x_BTNH if norm is None else norm(x_BTNH)).transpose(1, 2)
    return x_BNTH if rotary is None else fused.rotate(x_BNTH, *rotary).to(x_BTNH.dtype)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed(norm(x)); with norms after the sums, norm(x +
    attention(x)), then norm(x + feed(x)). feed: SwiGLU (Shazeer 2020) or its like, or two matrices
    with an activation between them."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        D, F, bias = config.width, config.hidden, config.feed_bias
        self.attention_norm = norm_of(config, D)
        self.attention = Attention(config)
        self.feed_norm = norm_of(config, D)
        if config.gated:
            self.gate_up = linear(D, 2 * F, bias=bias)
        else:
            self.up = linear(D, F, bias=bias)
        self.down = linear(F, D, zero=True, bias=bias)
        self.dropout = nn.Dropout(config.dropout)

    def feed(self, x_BTD: Tensor) -> Tensor:
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        if not config.gated:
            inner = activation(self.up(x_BTD))
        elif config.activation == "silu":
            inner = fused.swiglu(self.gate_up(x_BTD))
        else:
            gate, up = self.gate_up(x_BTD).chunk(2, -1)
            inner = activation(gate) * up
        return self.down(inner)  # type: ignore[no-any-return]

    def forward(
        self,
        x_BTD: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        causal: bool,
        cache: tuple[Tensor, Tensor, Places] | None = None,
        bounds_S: Tensor | None = None,
    ) -> Tensor:
        given = rotary, mask, causal, cache, bounds_S
        if self.config.norm_place == "post":
            x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, *given)))
            return self.feed_norm(x_BTD + self.dropout(self.feed(x_BTD)))  # type: ignore[no-any-return]
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), *given))
        return x_BTD + self.dropout(self.feed(self.feed_norm(x_BTD)))  # type: ignore[no-any-return]


class Inputs(nn.Module):
    """What a form adds to embeddings before the first layer: learned positions, the first type of
    token, a class token, a norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        D = config.width
        self.positions = _table(config.position_rows, D)
        self.types = _table(config.token_types, D)
        self.class_token = _table(int(config.class_token), D)
        self.norm = norm_of(config, D) if config.embedding_norm else None

    def with_class_token(self, x_BTD: Tensor) -> Tensor:
        if self.class_token is None:
            return x_BTD
        first_B1D = self.class_token.weight.expand(len(x_BTD), 1, -1)
        return torch.cat([first_B1D.to(x_BTD.dtype), x_BTD], 1)

    def forward(self, x_BTD: Tensor, positions_BT: Tensor) -> Tensor:
        if self.positions is not None:
            rows_BT = (positions_BT + self.config.position_offset).clamp(
                max=self.config.position_rows - 1  # padding may lie beyond
            )
            x_BTD = x_BTD + self.positions(rows_BT)
        if self.types is not None:
            x_BTD = x_BTD + self.types.weight[0]
        return x_BTD if self.norm is None else self.norm(x_BTD)


def _table(rows: int, width: int) -> nn.Embedding | None:
    """An embedding of so many rows, N(0, 0.02²); None of none."""
    if not rows:
        return None
    table = nn.Embedding(rows, width)
    nn.init.normal_(table.weight, std=0.02)
    return table


def positions_within(segments_BT: Tensor) -> Tensor:
    """How many positions of its segment are before each: (B, T)."""
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    index = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    return index - (index * begins_BT).cummax(1).values


class Transformer(nn.Module):
    """The backbone: (B, T, D) → (B, T, D)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.inputs = Inputs(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def compile_parts(self) -> None:
        """Has each block's kernels fused by torch.compile when it first runs: one compilation
        serves all of them."""
        for block in self.blocks:
            block.compile(dynamic=False)

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None,
        prefix_B: Tensor | None = None,
        bounds_S: Tensor | None = None,
    ) -> Tensor:
        """Positions see those of their own segment only; None: each row is one segment. The first
        `prefix_B` of each row are seen by the whole row. bounds_S: where segments begin, of all
        rows one after another, and where the last one ends; what a GPU takes in place of a mask."""
        x_BTD = self.inputs.with_class_token(x_BTD)
        B, T, _ = x_BTD.shape
        causal, window = self.config.shape.causal, self.config.sliding_window
        positions = torch.arange(T, device=x_BTD.device)[None]
        within = positions
        if self.config.learned_positions and segments_BT is not None:
            within = positions_within(segments_BT)
        x_BTD = self.inputs(x_BTD, within)
        mask = None
        if prefix_B is not None or not self._takes_bounds(x_BTD):
            bounds_S = None
        if bounds_S is not None:
            segments_BT = None
        if segments_BT is not None:
            mask = segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
        elif (
            prefix_B is not None
            or self._in_products(x_BTD, T)
            or (bounds_S is None and 0 < window < T)
        ):
            mask = torch.ones(B, 1, T, T, dtype=torch.bool, device=x_BTD.device)
        if causal and mask is not None:
            seen = torch.ones(T, T, dtype=torch.bool, device=mask.device).tril()
            if 0 < window < T:
                seen = seen.triu(1 - window)
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

    def _rotary(self, positions_BT: Tensor, x: Tensor) -> tuple[Tensor, Tensor] | None:
        config = self.config
        if config.positions != "rotary":
            return None
        dtype = torch.promote_types(x.dtype, torch.float32)
        return rotary_angles(
            positions_BT, config.head_width, config.rope_theta, dtype, config.rope_scaling
        )

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
        window = self.config.sliding_window
        if T > 1 or cache.even is None or 0 < window < places.end:
            keys_S = torch.arange(places.end, device=x_BTD.device)
            last_BT = lengths_B[:, None] - 1 if prefix else positions_BT
            seen = keys_S <= last_BT[:, None, :, None]
            if window:
                seen = seen & (keys_S > positions_BT[:, None, :, None] - window)
            mask = self._as_bias(seen, x_BTD)
        x_BTD = self.inputs(x_BTD, positions_BT)
        rotary = self._rotary(positions_BT, x_BTD)
        for layer, block in enumerate(self.blocks):
            kept = cache.keys[layer], cache.values[layer], places
            x_BTD = block(x_BTD, rotary, mask, False, kept)
        cache.lengths_B = cache.lengths_B + lengths_B
        return x_BTD
