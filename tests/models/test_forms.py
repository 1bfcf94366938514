"""The forms of published transformers: the same numbers as transformers computes from the same
weights, in every way in which a model is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from bigmodel_cli.models.config import ModelConfig, RopeScaling, TransformerConfig
from bigmodel_cli.models.precision import lower
from bigmodel_cli.models.sequence import SequenceModel, build
from bigmodel_cli.models.shape import ImageShape, Shape

V, T, D, L, F = 60, 48, 32, 2, 40
COMMON = {"width": D, "layers": L, "hidden": F}
SMALL = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": L, "num_attention_heads": 4,
    "intermediate_size": F, "max_position_embeddings": T, "attn_implementation": "eager",
}  # fmt: skip
LLAMA_SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": 16}  # fmt: skip
BIASED: dict[str, Any] = {
    "norm": "layer", "qk_norm": False, "qkv_bias": True, "output_bias": True, "feed_bias": True,
    "gated": False, "positions": "learned",
}  # fmt: skip


def llama(**more: Any) -> TransformerConfig:
    form: dict[str, Any] = {"shape": Shape(V, T, True), "heads": 4, "kv_heads": 2, "head_width": 8,
                            "tied": False, "qk_norm": False, **COMMON}  # fmt: skip
    return TransformerConfig(**{**form, **more})


Names = Callable[[int], dict[str, list[str]]]


def llama_names(i: int) -> dict[str, list[str]]:
    own = f"model.layers.{i}."
    return {
        "attention_norm": [f"{own}input_layernorm"],
        "feed_norm": [f"{own}post_attention_layernorm"],
        "attention.qkv": [f"{own}self_attn.{x}_proj" for x in "qkv"],
        "attention.out": [f"{own}self_attn.o_proj"],
        "attention.q_norm": [f"{own}self_attn.q_norm"],
        "attention.k_norm": [f"{own}self_attn.k_norm"],
        "gate_up": [f"{own}mlp.gate_proj", f"{own}mlp.up_proj"],
        "down": [f"{own}mlp.down_proj"],
    }


def gpt2_names(i: int) -> dict[str, list[str]]:
    own = f"transformer.h.{i}."
    return {
        "attention_norm": [f"{own}ln_1"], "feed_norm": [f"{own}ln_2"],
        "attention.qkv": [f"{own}attn.c_attn"], "attention.out": [f"{own}attn.c_proj"],
        "up": [f"{own}mlp.c_fc"], "down": [f"{own}mlp.c_proj"],
    }  # fmt: skip


def bert_names(prefix: str) -> Names:
    def names(i: int) -> dict[str, list[str]]:
        own = f"{prefix}.encoder.layer.{i}."
        return {
            "attention.qkv": [f"{own}attention.self.{x}" for x in ("query", "key", "value")],
            "attention.out": [f"{own}attention.output.dense"],
            "attention_norm": [f"{own}attention.output.LayerNorm"],
            "up": [f"{own}intermediate.dense"], "down": [f"{own}output.dense"],
            "feed_norm": [f"{own}output.LayerNorm"],
        }  # fmt: skip

    return names


def vit_names(i: int) -> dict[str, list[str]]:
    own = f"vit.layers.{i}."
    return {
        "attention_norm": [f"{own}layernorm_before"], "feed_norm": [f"{own}layernorm_after"],
        "attention.qkv": [f"{own}attention.{x}_proj" for x in "qkv"],
        "attention.out": [f"{own}attention.o_proj"],
        "up": [f"{own}mlp.fc1"], "down": [f"{own}mlp.fc2"],
    }  # fmt: skip


def ours(
    config: TransformerConfig, theirs: Any, outside: dict[str, str], names: Names
) -> SequenceModel:
    """Our model with the weights of theirs: each of theirs is used, and only once."""
    state: dict[str, Tensor] = dict(theirs.state_dict())
    if config.tied:
        state.pop("lm_head.weight", None)
    flipped = isinstance(theirs, transformers.GPT2LMHeadModel)  # its matrices are (inputs, outputs)
    weights = {}
    for name, their in outside.items():
        tensor = state.pop(their)
        tensor = tensor.squeeze(0) if tensor.dim() == 3 else tensor
        weights[name] = tensor
    for i in range(config.layers):
        for name, parts in names(i).items():
            for kind in ("weight", "bias"):
                found = [state.pop(f"{p}.{kind}") for p in parts if f"{p}.{kind}" in state]
                if found:
                    tensor = torch.cat(found)
                    tensor = tensor.T.contiguous() if flipped and tensor.dim() == 2 else tensor
                    weights[f"backbone.blocks.{i}.{name}.{kind}"] = tensor
    assert not state, f"left over: {[*state]}"
    assert ModelConfig.from_json(config.to_json()) == config
    return build(config, weights, "here")


OF_LLAMA = {
    "embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}  # fmt: skip


def causal(name: str) -> tuple[SequenceModel, Any]:
    """Ours and theirs, of one form, with random weights."""
    t, grouped = transformers, {**SMALL, "num_key_value_heads": 2}
    if name == "gpt2":
        theirs = t.GPT2LMHeadModel(t.GPT2Config(
            vocab_size=V, n_embd=D, n_layer=L, n_head=4, n_inner=F, n_positions=T,
            attn_implementation="eager",
        ))  # fmt: skip
        config = llama(**BIASED, kv_heads=4, tied=True, activation="gelu_tanh", epsilon=1e-5)
        outside = {
            "embed.weight": "transformer.wte.weight", "norm.weight": "transformer.ln_f.weight",
            "norm.bias": "transformer.ln_f.bias",
            "backbone.inputs.positions.weight": "transformer.wpe.weight",
        }  # fmt: skip
        return made(config, theirs, outside, gpt2_names)
    theirs, config = {
        "llama": lambda: (t.LlamaForCausalLM(t.LlamaConfig(**grouped, rms_norm_eps=1e-5)),
                          llama(epsilon=1e-5)),
        "llama3.1": lambda: (
            t.LlamaForCausalLM(t.LlamaConfig(**grouped, rope_parameters={
                "rope_type": "llama3", "rope_theta": 500.0, **LLAMA_SCALING})),
            llama(rope_theta=500.0, rope_scaling=RopeScaling("llama3", 8.0, 16, 1.0, 4.0)),
        ),
        "linear": lambda: (
            t.LlamaForCausalLM(t.LlamaConfig(**grouped, rope_parameters={
                "rope_type": "linear", "rope_theta": 1e4, "factor": 4.0})),
            llama(rope_scaling=RopeScaling("linear", 4.0)),
        ),
        "qwen2": lambda: (t.Qwen2ForCausalLM(t.Qwen2Config(**grouped)), llama(qkv_bias=True)),
        "yarn": lambda: (
            t.Qwen2ForCausalLM(t.Qwen2Config(**grouped, rope_parameters={
                "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                "original_max_position_embeddings": 16})),
            llama(qkv_bias=True, rope_scaling=RopeScaling(
                "yarn", 4.0, 16, attention=1.1386294361119891)),
        ),
        "qwen3": lambda: (
            t.Qwen3ForCausalLM(t.Qwen3Config(**grouped, head_dim=16)),
            llama(head_width=16, qk_norm=True),
        ),
        "mistral": lambda: (
            t.MistralForCausalLM(t.MistralConfig(**grouped, sliding_window=7, head_dim=8)),
            llama(sliding_window=7),
        ),
    }[name]()  # fmt: skip
    return made(config, theirs, OF_LLAMA, llama_names)


def made(
    config: TransformerConfig, theirs: Any, outside: dict[str, str], names: Names
) -> tuple[SequenceModel, Any]:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    theirs = theirs.eval()
    return ours(config, theirs, outside, names), theirs


CAUSAL = ("llama", "llama3.1", "linear", "qwen2", "yarn", "qwen3", "mistral", "gpt2")
close = torch.testing.assert_close


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_causal_forms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, theirs = causal(name)
    tokens = torch.randint(0, V, (2, T))
    wanted = theirs(input_ids=tokens).logits
    close(model(tokens), wanted, atol=1e-4, rtol=1e-4)
    for longest in (0, 1024):  # with torch's kernel, and with our own products
        monkeypatch.setattr("bigmodel_cli.models.transformer.LONGEST_PRODUCT", longest)
        close(model(tokens), wanted, atol=1e-4, rtol=1e-4)
        state = model.start(2)  # in unlike pieces, then one after another
        model.extend(state, tokens[:, :5], torch.tensor([5, 3]))
        second = torch.stack([tokens[0, 5:16], tokens[1, 3:14]])
        close(model.extend(state, second, torch.tensor([11, 11])),
              torch.stack([wanted[0, 15], wanted[1, 13]]), atol=1e-4, rtol=1e-4)  # fmt: skip
        alike = model.start(2)
        for i in range(T):
            step = model.extend(alike, tokens[:, i : i + 1], torch.tensor([1, 1]))
            close(step, wanted[:, i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_segments_are_alone_in_a_row_and_gradients_are_theirs(name: str) -> None:
    model, theirs = causal(name)
    tokens = torch.randint(0, V, (1, 30))
    segments = torch.tensor([[0] * 13 + [1] * 17])
    apart = [model(part) for part in (tokens[:, :13], tokens[:, 13:])]
    close(model(tokens, segments), torch.cat(apart, 1), atol=1e-4, rtol=1e-4)
    total = model.loss_sum(tokens[:, :-1], tokens[:, 1:])
    loss = theirs(input_ids=tokens, labels=tokens).loss * 29
    close(total, loss, atol=1e-3, rtol=1e-4)
    model.train().loss_sum(tokens[:, :-1], tokens[:, 1:]).backward()
    loss.backward()
    qkv = model.backbone.blocks[0].attention.qkv.weight.grad  # type: ignore[union-attr, index]
    if name == "gpt2":
        wanted = theirs.transformer.h[0].attn.c_attn.weight.grad.T
    else:
        attention = theirs.model.layers[0].self_attn
        wanted = torch.cat([getattr(attention, f"{x}_proj").weight.grad for x in "qkv"])
    close(qkv, wanted, atol=1e-3, rtol=1e-3)


def bert(offset: int = 0) -> tuple[SequenceModel, Any]:
    t, kind = transformers, "roberta" if offset else "bert"
    small = {**SMALL, "max_position_embeddings": T + offset, "num_labels": 3}
    prefix = f"{kind}.embeddings."
    outside = {
        "embed.weight": prefix + "word_embeddings.weight",
        "backbone.inputs.positions.weight": prefix + "position_embeddings.weight",
        "backbone.inputs.types.weight": prefix + "token_type_embeddings.weight",
        "backbone.inputs.norm.weight": prefix + "LayerNorm.weight",
        "backbone.inputs.norm.bias": prefix + "LayerNorm.bias",
    }  # fmt: skip
    theirs: Any
    if offset:
        theirs = t.RobertaForSequenceClassification(t.RobertaConfig(
            **small, type_vocab_size=1, pad_token_id=offset - 1))  # fmt: skip
        heads = {"pooler": "classifier.dense", "head": "classifier.out_proj"}
    else:
        theirs = t.BertForSequenceClassification(t.BertConfig(**small))
        heads = {"pooler": "bert.pooler.dense", "head": "classifier"}
    outside |= {f"{o}.{k}": f"{h}.{k}" for o, h in heads.items() for k in ("weight", "bias")}
    config = TransformerConfig(
        shape=Shape(V, T, False, classes=3), heads=4, kv_heads=4, head_width=8, tied=False,
        norm_place="post", epsilon=1e-12 if not offset else 1e-5, activation="gelu",
        token_types=1 if offset else 2, embedding_norm=True, pooler=True, position_offset=offset,
        **COMMON, **BIASED,
    )  # fmt: skip
    if offset:
        theirs.config.layer_norm_eps = 1e-5
        for module in theirs.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 1e-5
    return made(config, theirs, outside, bert_names(kind))


@pytest.mark.parametrize("offset", [0, 2], ids=["bert", "roberta"])
@torch.no_grad()
def test_forms_that_look_both_ways(offset: int) -> None:
    model, theirs = bert(offset)
    tokens = torch.randint(5, V, (3, 20))
    wanted = theirs(input_ids=tokens).logits
    close(model(tokens), wanted, atol=1e-4, rtol=1e-4)
    padded = torch.cat([tokens, torch.full((3, 9), 1)], 1)
    mask = torch.arange(29) < 20
    close(theirs(input_ids=padded, attention_mask=mask.long().expand(3, 29)).logits, wanted,
          atol=1e-4, rtol=1e-4)  # fmt: skip
    close(model(padded, (~mask).long().expand(3, 29)), wanted, atol=1e-4, rtol=1e-4)
    base = theirs.roberta if offset else theirs.bert
    features = base(input_ids=tokens).last_hidden_state
    close(model.features(tokens), features, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_vit() -> None:
    t = transformers
    small = {k: v for k, v in SMALL.items() if k not in ("vocab_size", "max_position_embeddings")}
    theirs = t.ViTForImageClassification(t.ViTConfig(
        **small, image_size=12, patch_size=4, num_labels=3))  # fmt: skip
    picture = ImageShape(3, 12, 4)
    config = TransformerConfig(
        shape=Shape(0, picture.positions, False, 3, image=picture), heads=4, kv_heads=4,
        head_width=8, tied=False, epsilon=1e-12, activation="gelu", class_token=True,
        stem_bias=True, **COMMON, **BIASED,
    )  # fmt: skip
    embeddings = "vit.embeddings."
    outside = {
        "embed.convolutions.0.weight": embeddings + "patch_embeddings.projection.weight",
        "embed.convolutions.0.bias": embeddings + "patch_embeddings.projection.bias",
        "backbone.inputs.positions.weight": embeddings + "position_embeddings",
        "backbone.inputs.class_token.weight": embeddings + "cls_token",
        "norm.weight": "vit.layernorm.weight", "norm.bias": "vit.layernorm.bias",
        "head.weight": "classifier.weight", "head.bias": "classifier.bias",
    }  # fmt: skip
    model, theirs = made(config, theirs, outside, vit_names)
    pixels = torch.randn(2, 3, 12, 12)
    close(model(pixels_BCHW=pixels), theirs(pixel_values=pixels).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*CAUSAL, "bert", "roberta"])
def test_the_formula_counts_the_weights_and_the_operations(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, _ = bert(2 * (name == "roberta")) if "bert" in name else causal(name)
    config = model.config
    with torch.device("meta"):
        assert sum(p.numel() for p in SequenceModel(config).parameters()) == config.parameters()
    if config.shape.causal:
        return  # what counts operations does not know which positions are not seen
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, T, dtype=torch.long))
    assert config.flops() == pytest.approx(counter.get_total_flops() / T, rel=0.05)  # biases count


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_biases_and_tables_have_every_precision(precision: str) -> None:
    for model in (causal("gpt2")[0], causal("qwen2")[0], bert()[0]):
        tokens = torch.randint(5, V, (2, 20))
        with torch.inference_mode():
            wanted = model(tokens)
            found = lower(model, precision)(tokens).float()
        assert (found - wanted).abs().mean() < 0.1 * wanted.abs().mean()


def test_tables_are_not_orthogonalized() -> None:
    from bigmodel_cli.train.optim import Muon, Optimizers

    model, _ = causal("gpt2")
    optimizers = Optimizers(model, "muon", 1e-3, 0.1)
    (muon,) = (part for part in optimizers.parts if isinstance(part, Muon))
    names = {optimizers.names[p] for group in muon.param_groups for p in group["params"]}
    assert "backbone.inputs.positions.weight" not in names
    assert "backbone.blocks.0.up.weight" in names


def test_a_configuration_of_before_has_the_form_of_before() -> None:
    document = {
        "family": "transformer", "shape": {"vocabulary": 50, "context": 16, "causal": True,
                                           "classes": 0, "prefix": False, "picture": None},
        "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "cell": "lstm",
        "window": 16, "tied": True, "dropout": 0.0,
    }  # fmt: skip
    config = ModelConfig.from_json(document)
    assert config == llama(shape=Shape(50, 16, True), tied=True, hidden=64, qk_norm=True)
    for family, mine in (("rnn", "cell"), ("mlp", "window")):
        other = ModelConfig.from_json({**document, "family": family})
        assert getattr(other, mine) == document[mine]
        assert not hasattr(other, "heads")


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm": "batch"}, {"activation": "tanh"}, {"positions": "alibi"}, {"epsilon": 0.0},
        {"epsilon": float("nan")}, {"rope_theta": -1.0}, {"head_width": 7}, {"kv_heads": 3},
        {"qk_norm": 1}, {"sliding_window": -1}, {"class_token": True}, {"gated": "yes"},
        {"rope_scaling": {"kind": "dynamic", "factor": 2.0}}, {"rope_scaling": 3},
        {"rope_scaling": {"kind": "yarn", "factor": 2.0}}, {"unheard": 1}, {"family": "mamba"},
        {"family": []}, {"shape": None}, {"heads": 0}, {"dropout": 1.0}, {"head_width": True},
        {"rope_scaling": {"kind": "llama3", "factor": 2.0, "original": 8, "low": 4, "high": 4}},
    ],
)  # fmt: skip
def test_what_no_model_is(wrong: dict[str, Any]) -> None:
    from bigmodel_cli.errors import ArtifactError

    with pytest.raises(ArtifactError, match="configuration is corrupt"):
        ModelConfig.from_json({**llama().to_json(), **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"sliding_window": 3, "shape": {"prefix": True}},
        {"pooler": True}, {"rope_theta": 0.5}, {"layers": 1 << 20},
        {"tied": True, "shape": {"classes": 3, "causal": False}},
        {"shape": {"causal": False, "context": 9, "vocabulary": 0,
                   "picture": {"channels": 3, "size": 12, "patch": 4, "stem": "patch"}}},
        {"shape": {"causal": False, "context": 9, "vocabulary": 0, "classes": 3,
                   "picture": {"channels": 3, "size": 12, "patch": 4, "stem": "deep"}}},
    ],
)  # fmt: skip
def test_what_would_fail_later_is_refused_when_it_is_read(wrong: dict[str, Any]) -> None:
    from bigmodel_cli.errors import ArtifactError

    document = llama().to_json()
    with pytest.raises(ArtifactError, match="configuration is corrupt"):
        ModelConfig.from_json(
            {**document, **wrong, "shape": {**document["shape"], **wrong.get("shape", {})}}
        )
