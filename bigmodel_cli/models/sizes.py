"""What a model is made of, and the named sizes. No torch: `--help` prints this table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import UsageError, did_you_mean

# positions that attend to each other in plain matrix products on a CPU; the square of more would
# fill the memory
LONGEST_PRODUCT = 1024


@dataclass(frozen=True)
class Shape:
    """What a task asks of a model.

    vocabulary: number of token ids in and out; context: the longest row in tokens;
    causal: whether position t may see only positions ≤ t; classes: if any, a row is one of them,
    and the model gives their logits, not its tokens'.
    """

    vocabulary: int
    context: int
    causal: bool
    classes: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a model's tensors; saved beside its weights."""

    family: str  # transformer | rnn | mlp
    shape: Shape
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    cell: str
    window: int
    tied: bool
    dropout: float = 0.0

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> ModelConfig:
        """Raises KeyError or TypeError for a document that is none."""
        return ModelConfig(**{**document, "shape": Shape(**document["shape"])})

    @property
    def parameters(self) -> int:
        """The number of trained weights, by formula."""
        D, V, H, L = self.width, self.shape.vocabulary, self.hidden, self.layers
        C = self.shape.classes
        if self.family == "transformer":
            kv = self.kv_heads * self.head_width
            body = L * (2 * D * D + 2 * D * kv + 3 * D * H + 2 * D + 2 * self.head_width)
        elif self.family == "rnn":
            gates = {"elman": 1, "gru": 3, "lstm": 4}[self.cell]
            part = D if self.shape.causal else D // 2
            directions = 1 if self.shape.causal else 2
            body = L * (directions * gates * (D * part + part * part + 2 * part) + D)
        else:
            body = max(1, self.window) * D * D + L * (2 * D * H + D)
        outer = V * D + (D + 1) * C if C else V * D * (1 if self.tied else 2)
        return body + D + outer


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one text's tokens are chosen. temperature 0: the most likely one; top_k 0 and top_p 1:
    no limit. The same seed gives the same text."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


# width, layers, heads: about 1, 4, 11, 42 and 124 million weights with small vocabularies
SIZES: dict[str, dict[str, tuple[int, int, int]]] = {
    "nano": {"transformer": (128, 4, 4), "rnn": (192, 3, 1), "mlp": (160, 2, 1)},
    "micro": {"transformer": (256, 4, 4), "rnn": (384, 3, 1), "mlp": (320, 2, 1)},
    "mini": {"transformer": (384, 6, 6), "rnn": (640, 3, 1), "mlp": (512, 3, 1)},
    "small": {"transformer": (512, 12, 8), "rnn": (1024, 4, 1), "mlp": (1024, 2, 1)},
    "base": {"transformer": (768, 12, 12), "rnn": (1280, 4, 1), "mlp": (1280, 3, 1)},
}
TABLE_VOCABULARIES = {"nano": 2048, "micro": 2048, "mini": 2048, "small": 8192, "base": 50304}


def hidden_width(family: str, width: int) -> int:
    """8/3 of the width in a transformer (SwiGLU's three matrices), else 4 times; by 64s."""
    wanted = width * 8 / 3 if family == "transformer" else width * 4
    return max(64, round(wanted / 64) * 64)


def model_config(
    family: str,
    size: str,
    shape: Shape,
    *,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
    cell: str = "lstm",
    window: int = 16,
    tie: bool = True,
    dropout: float = 0.0,
) -> ModelConfig:
    """A named size with what was set otherwise. Raises UsageError for sizes that do not fit."""
    if size not in SIZES:
        raise UsageError(f"--size is `{size}`", did_you_mean(size, SIZES))
    base_width, base_layers, base_heads = SIZES[size][family]
    width = width or base_width
    if heads is None:
        heads = base_heads if width == base_width else max(1, width // 64)
        heads = heads if family == "transformer" and width % heads == 0 else 1
    if width % heads or (family == "transformer" and width // heads % 2):
        raise UsageError(
            f"--width {width} cannot be cut into --heads {heads} of an even width",
            "choose a width that is a multiple of twice the heads",
        )
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise UsageError(f"--heads {heads} is no multiple of --kv-heads {kv_heads}")
    if family == "rnn" and not shape.causal and width % 2:
        raise UsageError(f"--width {width} must be even for an rnn of two directions")
    return ModelConfig(
        family=family,
        shape=shape,
        width=width,
        layers=layers or base_layers,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden or hidden_width(family, width),
        cell=cell,
        window=window,
        tied=tie and not shape.classes,
        dropout=dropout,
    )


def size_table() -> list[tuple[str, str, str, str]]:
    """For the help: size, and each family's shape with its millions of weights."""
    rows = []
    for size, families in SIZES.items():
        cells = []
        for family in families:
            config = model_config(family, size, Shape(TABLE_VOCABULARIES[size], 256, True))
            heads = f", {config.heads} heads" if family == "transformer" else ""
            cells.append(f"{config.layers}×{config.width}{heads}: {config.parameters / 1e6:.1f} M")
        rows.append((size, *cells))
    return rows  # type: ignore[return-value]


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations of one forward pass, per token: 2 per weight that multiplies, and
    attention over the mean number of positions seen. Training takes 3 times as many."""
    lookup = 0 if config.tied else config.shape.vocabulary * config.width
    flops = 2.0 * (config.parameters - lookup)
    if config.family == "transformer":
        seen = config.shape.context / (2 if config.shape.causal else 1)
        flops += 4.0 * config.layers * config.width * seen
    return flops


def row_bytes(config: ModelConfig) -> int:
    """About the memory that training takes per row, in bytes: activations kept for the backward
    pass, and logits in fp32 with their gradient. An estimate on the safe side."""
    D, H, T = config.width, config.hidden, config.shape.context
    if config.family == "transformer":
        seen = 6 * config.heads * T if T <= LONGEST_PRODUCT else T
        layer = 4 * (14 * D + 6 * H) + seen
    elif config.family == "rnn":
        layer = 4 * 14 * D
    else:
        layer = 4 * (4 * D + 3 * H)
    extra = 8 * (config.window * D or T) if config.family == "mlp" else 0
    logits = 0 if config.shape.classes else 14 * config.shape.vocabulary
    return T * (config.layers * layer + extra + logits)
