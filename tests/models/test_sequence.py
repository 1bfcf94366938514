"""The families: weights by formula, segments, causality, incremental against whole."""

from __future__ import annotations

import pytest
import torch

from bigmodel_cli.errors import ArtifactError, UsageError
from bigmodel_cli.models import transformer
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.generate import Decoder, sample
from bigmodel_cli.models.sampling import Sampling
from bigmodel_cli.models.sequence import SequenceModel, build
from bigmodel_cli.models.shape import Shape
from bigmodel_cli.models.sizes import SIZES, model_config

KINDS = [
    ("transformer", {}),
    ("transformer", {"kv_heads": 2}),
    ("transformer", {"tie": False}),
    ("rnn", {"cell": "elman"}),
    ("rnn", {"cell": "gru"}),
    ("rnn", {"cell": "lstm"}),
    ("mlp", {"window": 5}),
    ("mlp", {"window": 0}),
]


FAMILIES = ("transformer", "rnn", "mlp")


def make(
    family: str, causal: bool = True, context: int = 24, classes: int = 0, prefix: bool = False,
    vocabulary: int = 50, **options: object,
) -> SequenceModel:  # fmt: skip
    """A small random model whose every matrix matters (output matrices start at zero)."""
    torch.manual_seed(0)
    shape = Shape(vocabulary, context, causal, classes, prefix)
    config = model_config(family, "nano", shape, width=32, layers=2, heads=4, **options)  # type: ignore[arg-type]
    model = SequenceModel(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_the_formula_counts_the_weights(family: str, size: str) -> None:
    shape = Shape(1000, 64, causal=True)
    with torch.device("meta"):
        for options in ({}, {"tie": False}, {"cell": "gru"}, {"window": 0}):
            config = model_config(family, size, shape, **options)  # type: ignore[arg-type]
            model = SequenceModel(config)
            assert sum(p.numel() for p in model.parameters()) == config.parameters()


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_counts_models_that_look_both_ways(family: str, classes: int) -> None:
    model = make(family, causal=False, classes=classes)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters()


@pytest.mark.parametrize(("family", "options"), KINDS)
def test_later_tokens_never_change_earlier_logits(family: str, options: dict[str, object]) -> None:
    model = make(family, **options)
    tokens = torch.randint(0, 50, (2, 20))
    other = tokens.clone()
    other[:, 12:] = (other[:, 12:] + 1) % 50
    torch.testing.assert_close(model(tokens)[:, :12], model(other)[:, :12])
    assert not torch.allclose(model(tokens)[:, 12:], model(other)[:, 12:])


@pytest.mark.parametrize(("family", "options"), KINDS)
def test_segments_of_a_row_do_not_see_each_other(family: str, options: dict[str, object]) -> None:
    model = make(family, **options)
    tokens = torch.randint(0, 50, (3, 20))
    segments = torch.zeros_like(tokens)
    segments[:, 7:] = 1
    segments[1, 12:] = 2
    together = model(tokens, segments)
    torch.testing.assert_close(together[:, :7], model(tokens[:, :7]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[:1, 7:], model(tokens[:1, 7:]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[1:2, 12:], model(tokens[1:2, 12:]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[:, 7:], model(tokens)[:, 7:])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_not_causal_sees_both_sides_of_its_segment(family: str) -> None:
    model = make(family, causal=False, window=24)
    tokens = torch.randint(0, 50, (1, 20))
    segments = torch.zeros_like(tokens)
    segments[:, 10:] = 1
    other = tokens.clone()
    other[0, 9] = (other[0, 9] + 1) % 50
    before, after = model(tokens, segments), model(other, segments)
    assert not torch.allclose(before[0, 0], after[0, 0])
    torch.testing.assert_close(before[0, 10:], after[0, 10:])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_classes_of_a_row_do_not_depend_on_its_padding(family: str) -> None:
    model = make(family, causal=False, classes=5)
    tokens = torch.randint(0, 50, (2, 12))
    padded = torch.cat([tokens, torch.randint(0, 50, (2, 7))], 1)
    segments = (torch.arange(19) >= 12).long().expand(2, 19)
    logits = model(tokens)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(model(padded, segments), logits, atol=1e-5, rtol=1e-4)


def test_many_short_segments_take_the_packed_path_of_an_rnn_to_the_same_logits() -> None:
    model = make("rnn", context=64)
    tokens = torch.randint(0, 50, (1, 64))
    segments = torch.cat([torch.zeros(40), torch.arange(1, 25)]).long()[None]
    logits = model(tokens, segments)
    torch.testing.assert_close(logits[:, :40], model(tokens[:, :40]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[:, 50:51], model(tokens[:, 50:51]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "options"), KINDS)
def test_extending_slots_gives_the_logits_of_the_whole(
    family: str, options: dict[str, object]
) -> None:
    model = make(family, **options)
    tokens = torch.randint(0, 50, (3, 20))
    whole = model(tokens)
    state = model.start(3)
    first = model.extend(state, tokens, torch.tensor([5, 9, 20]))
    wanted = torch.stack([whole[0, 4], whole[1, 8], whole[2, 19]])
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=1e-4)
    state.select(torch.tensor([1, 0, 1]))  # reorders, drops and repeats
    more = torch.stack([tokens[1, 9:12], tokens[0, 5:8], tokens[1, 9:12]])
    second = model.extend(state, more, torch.tensor([3, 2, 1]))
    wanted = torch.stack([whole[1, 11], whole[0, 6], whole[1, 9]])
    torch.testing.assert_close(second, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("family", "options"), KINDS)
def test_a_batch_decodes_each_text_as_it_would_alone(
    family: str, options: dict[str, object]
) -> None:
    model = make(family, **options)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    drawn = [Sampling(), Sampling(1.0, 5, 0.9, 3), Sampling(0.5, seed=7)]
    together = Decoder(model, prompts, drawn)
    for step in range(18):
        together.step()
        if step == 9:
            together.finish({0})
    for index, (prompt, sampling) in enumerate(zip(prompts, drawn, strict=True)):
        alone = Decoder(model, [prompt], [sampling])
        for _ in range(10 if index == 0 else 18):
            alone.step()
        assert together.texts[index] == alone.texts[0]


@pytest.mark.parametrize(("family", "options"), KINDS)
def test_a_text_outgrows_the_context(family: str, options: dict[str, object]) -> None:
    model = make(family, **options)
    decoder = Decoder(model, [[1], list(range(40))], [Sampling(), Sampling()])
    for _ in range(60):
        decoder.step()
    assert [len(text) for text in decoder.texts] == [61, 100]


def test_greedy_decoding_takes_the_most_likely_token_of_the_whole_forward() -> None:
    model = make("transformer")
    decoder = Decoder(model, [[1, 2]], [Sampling()])
    for _ in range(8):
        decoder.step()
    text = decoder.texts[0]
    logits = model(torch.tensor([text]))[0]
    assert text[2:] == logits[1:-1].argmax(-1).tolist()


@pytest.mark.slow
def test_sampling_obeys_top_k_and_top_p_and_the_temperature() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    draw = torch.Generator().manual_seed(0)

    def counts(sampling: Sampling) -> torch.Tensor:
        drawn = [sample(logits.clone(), sampling, draw) for _ in range(4000)]
        return torch.bincount(torch.tensor(drawn), minlength=4) / 4000

    torch.testing.assert_close(counts(Sampling(1.0)), logits.softmax(-1), atol=0.03, rtol=0)
    torch.testing.assert_close(counts(Sampling(2.0)), (logits / 2).softmax(-1), atol=0.03, rtol=0)
    assert counts(Sampling(1.0, top_k=2))[2:].sum() == 0
    assert counts(Sampling(1.0, top_p=0.6))[1:].sum() == 0  # the first one alone has .64
    assert (counts(Sampling(1.0, top_p=0.7))[:2] > 0).all()


def test_a_banned_token_is_never_chosen() -> None:
    model = make("transformer")
    free = Decoder(model, [[1]], [Sampling()])
    ((_, token),) = free.step()
    held = Decoder(model, [[1]], [Sampling()], banned=[token])
    assert held.step()[0][1] != token


# A prefix -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_a_transformer_sees_a_prefix_both_ways_and_the_rest_causally(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:
        monkeypatch.setattr(transformer, "LONGEST_PRODUCT", 0)
    model = make("transformer", prefix=True)
    tokens = torch.randint(0, 50, (3, 20))
    prefix = torch.tensor([12, 1, 20])
    before = model(tokens, prefix_B=prefix)
    other = tokens.clone()
    other[:, 11] = (other[:, 11] + 1) % 50
    after = model(other, prefix_B=prefix)
    changed = (before - after).abs().amax(-1) > 1e-4
    assert changed[0].all()  # the last of the prefix is seen by its first
    assert not changed[1, :11].any()
    assert changed[2].all()
    other = tokens.clone()
    other[:, 12] = (other[:, 12] + 1) % 50
    changed = (before - model(other, prefix_B=prefix)).abs().amax(-1) > 1e-4
    assert not changed[:2, :12].any()
    assert changed[:2, 12:].all()
    torch.testing.assert_close(model(tokens, prefix_B=prefix * 0 + 1), model(tokens))


def test_a_prefix_and_padding_of_another_segment_give_the_logits_of_the_row_alone() -> None:
    model = make("transformer", prefix=True)
    tokens = torch.randint(0, 50, (2, 20))
    segments = (torch.arange(20) >= 15).long().expand(2, 20)
    prefix = torch.tensor([6, 9])
    wanted = model(tokens[:, :15], prefix_B=prefix)
    torch.testing.assert_close(model(tokens, segments, prefix_B=prefix)[:, :15], wanted)
    torch.testing.assert_close(model(tokens, prefix_B=prefix)[:, :15], wanted)


@pytest.mark.parametrize(("family", "options"), KINDS)
def test_extending_a_prefix_token_by_token_gives_the_logits_of_the_whole(
    family: str, options: dict[str, object]
) -> None:
    model = make(family, prefix=True, **options)
    tokens = torch.randint(0, 50, (3, 20))
    for prefix in (torch.tensor([5, 9, 12]), torch.tensor([9, 9, 9])):  # ragged, and even
        whole = model(tokens, prefix_B=prefix)
        state = model.start(3, 20)
        last = model.extend(state, tokens[:, : int(prefix.max())], prefix)
        for step in range(8):
            places = prefix + step
            wanted = whole[torch.arange(3), places - 1]
            torch.testing.assert_close(last, wanted, atol=1e-5, rtol=1e-4)
            more = tokens[torch.arange(3), places][:, None]
            last = model.extend(state, more, torch.ones(3, dtype=torch.long))
            if step == 3:
                state.select(torch.arange(3))
    if family != "transformer":
        assert torch.equal(model(tokens, prefix_B=prefix), model(tokens))


def test_a_model_with_a_prefix_is_no_architecture_that_others_know() -> None:
    from bigmodel_cli.models.qwen3 import fits

    assert fits(make("transformer").config)
    assert not fits(make("transformer", prefix=True).config)


def test_sizes_that_do_not_fit_are_refused() -> None:
    shape = Shape(50, 16, causal=True)
    with pytest.raises(UsageError, match="--size is `huge`"):
        model_config("transformer", "huge", shape)
    with pytest.raises(UsageError, match="cannot be cut"):
        model_config("transformer", "nano", shape, width=30, heads=4)
    with pytest.raises(UsageError, match="not a multiple"):
        model_config("transformer", "nano", shape, heads=4, kv_heads=3)


def test_foreign_weights_are_refused_by_name() -> None:
    model = make("transformer")
    weights = model.state_dict()
    assert ModelConfig.from_json(model.config.to_json()) == model.config
    weights["norm.weight"] = torch.ones(3)
    with pytest.raises(ArtifactError, match=r"norm\.weight"):
        build(model.config, weights, "there")


def test_a_context_too_long_for_plain_products_gives_the_same_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("transformer", context=24)
    tokens = torch.randint(0, 50, (2, 24))
    segments = torch.arange(24).expand(2, 24) // 10
    plain = [model(tokens), model(tokens, segments)]
    monkeypatch.setattr(transformer, "LONGEST_PRODUCT", 0)
    for ours, fused in zip(plain, [model(tokens), model(tokens, segments)], strict=True):
        torch.testing.assert_close(ours, fused, atol=1e-4, rtol=1e-4)
