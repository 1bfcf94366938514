"""The weights of a causal transformer as `Qwen3ForCausalLM` names them.

Ours and theirs are the same numbers: only names differ, and our fused matrices are cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

from bigmodel_cli.models.config import ModelConfig, TransformerConfig

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURE = "Qwen3ForCausalLM"
SAID = ("dropout", "epsilon", "rope_theta")  # in config.json, whatever they are


def fits(config: ModelConfig) -> TypeGuard[TransformerConfig]:
    """Whether the model is of the form that the architecture describes."""
    shape = config.shape
    if not isinstance(config, TransformerConfig) or not shape.causal:
        return False
    form = [item for item in dataclasses.fields(config) if item.default is not dataclasses.MISSING]
    usual = all(getattr(config, i.name) == i.default for i in form if i.name not in SAID)
    return usual and not shape.classes and not shape.prefix


def _layer_names(config: TransformerConfig) -> list[tuple[str, list[tuple[str, int]]]]:
    """Our name → their names, each with its number of rows: fused ones are cut in that order."""
    q, kv = config.heads * config.head_width, config.kv_heads * config.head_width
    names: list[tuple[str, list[tuple[str, int]]]] = [
        ("embed.weight", [("model.embed_tokens.weight", config.shape.vocabulary)]),
        ("norm.weight", [("model.norm.weight", config.width)]),
    ]
    if not config.tied:
        names.append(("head.weight", [("lm_head.weight", config.shape.vocabulary)]))
    for i in range(config.layers):
        ours, theirs = f"backbone.blocks.{i}", f"model.layers.{i}"
        attention = f"{theirs}.self_attn"
        names += [
            (f"{ours}.attention_norm.weight", [(f"{theirs}.input_layernorm.weight", config.width)]),
            (f"{ours}.feed_norm.weight",
             [(f"{theirs}.post_attention_layernorm.weight", config.width)]),
            (f"{ours}.attention.qkv.weight",
             [(f"{attention}.q_proj.weight", q), (f"{attention}.k_proj.weight", kv),
              (f"{attention}.v_proj.weight", kv)]),
            (f"{ours}.attention.out.weight", [(f"{attention}.o_proj.weight", config.width)]),
            (f"{ours}.attention.q_norm.weight",
             [(f"{attention}.q_norm.weight", config.head_width)]),
            (f"{ours}.attention.k_norm.weight",
             [(f"{attention}.k_norm.weight", config.head_width)]),
            (f"{ours}.gate_up.weight",
             [(f"{theirs}.mlp.gate_proj.weight", config.hidden),
              (f"{theirs}.mlp.up_proj.weight", config.hidden)]),
            (f"{ours}.down.weight", [(f"{theirs}.mlp.down_proj.weight", config.width)]),
        ]  # fmt: skip
    return names


def export_weights(weights: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Our weights under their names."""
    import torch

    exported: dict[str, Tensor] = {}
    for ours, theirs in _layer_names(config):
        parts = torch.split(weights[ours], [rows for _, rows in theirs])
        exported |= {name: part.contiguous() for (name, _), part in zip(theirs, parts, strict=True)}
    return exported


def native_weights(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Their weights under our names; what is missing is left out, for `build` to refuse."""
    import torch

    if not fits(config) or config.layers > len(weights):
        return {}
    return {
        ours: torch.cat([weights[name] for name, _ in theirs])
        for ours, theirs in _layer_names(config)
        if all(name in weights for name, _ in theirs)
    }
