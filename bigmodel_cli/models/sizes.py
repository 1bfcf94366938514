"""The named sizes of each family. No torch: `--help` prints this table."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.errors import UsageError, did_you_mean
from bigmodel_cli.models.config import (
    MixerConfig,
    MlpConfig,
    ModelConfig,
    RnnConfig,
    TransformerConfig,
)
from bigmodel_cli.models.shape import Shape

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
    """A named size, with the values that are given in place of its own. Raises UsageError for
    values that do not fit together."""
    if size not in SIZES:
        raise UsageError(f"--size is `{size}`", did_you_mean(size, SIZES))
    base_width, base_layers, base_heads = SIZES[size][family]
    width = width or base_width
    common: dict[str, Any] = {
        "shape": shape,
        "width": width,
        "layers": layers or base_layers,
        "tied": tie and not shape.classes,
        "dropout": dropout,
    }
    hidden = hidden or hidden_width(family, width)
    if family == "rnn":
        if not shape.causal and width % 2:
            raise UsageError(f"--width {width} must be even for an rnn of two directions")
        return RnnConfig(cell=cell, **common)
    if family == "mlp":
        if shape.image:
            return MixerConfig(hidden=hidden, **common)
        return MlpConfig(hidden=hidden, window=window, **common)
    if heads is None:
        heads = base_heads if width == base_width else max(1, width // 64)
        heads = heads if width % heads == 0 else 1
    if width % heads or width // heads % 2:
        raise UsageError(
            f"--width {width} cannot be cut into --heads {heads} of an even width",
            "choose a width that is a multiple of twice the heads",
        )
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise UsageError(f"--heads {heads} is not a multiple of --kv-heads {kv_heads}")
    return TransformerConfig(
        heads=heads, kv_heads=kv_heads, head_width=width // heads, hidden=hidden, **common
    )


def size_table() -> list[tuple[str, str, str, str]]:
    """For the help: size, and each family's shape with its millions of weights."""
    rows = []
    for size, families in SIZES.items():
        cells = []
        for family in families:
            config = model_config(family, size, Shape(TABLE_VOCABULARIES[size], 256, True))
            heads = f", {SIZES[size][family][2]} heads" if family == "transformer" else ""
            cells.append(
                f"{config.layers}×{config.width}{heads}: {config.parameters() / 1e6:.1f} M"
            )
        rows.append((size, *cells))
    return rows  # type: ignore[return-value]
