"""What the Hugging Face layout of a causal transformer says beside its weights, with no custom
code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bigmodel_cli.artifacts.tokenizer import ENDOFTEXT, PAD, Tokenizer
from bigmodel_cli.models.config import ModelConfig, TransformerConfig
from bigmodel_cli.models.qwen3 import ARCHITECTURE


def config_json(config: TransformerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "vocab_size": config.shape.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.shape.context,
        "rms_norm_eps": config.epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "bos_token_id": tokenizer.endoftext,
        "eos_token_id": tokenizer.endoftext,
        "pad_token_id": tokenizer.pad,
        "torch_dtype": "float32",
    }


def generation_config_json(tokenizer: Tokenizer, ends: Sequence[int]) -> dict[str, Any]:
    """generation_config.json: greedy by default; writing ends at each of `ends`."""
    return {
        "bos_token_id": tokenizer.endoftext,
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        "pad_token_id": tokenizer.pad,
        "do_sample": False,
    }


def tokenizer_config_json(config: ModelConfig, template: str) -> dict[str, Any]:
    """tokenizer_config.json; template: of dialogues, in Jinja, if the model has any."""
    return ({"chat_template": template} if template else {}) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": ENDOFTEXT,
        "eos_token": ENDOFTEXT,
        "pad_token": PAD,
        "model_max_length": config.shape.context,
        "clean_up_tokenization_spaces": False,
    }
