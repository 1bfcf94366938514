"""Beam search against plain enumeration, greedy decoding, and itself in other company."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from bigmodel_cli.models.beam import penalty, search
from bigmodel_cli.models.generate import Decoder
from bigmodel_cli.models.sampling import Sampling, Search
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.transformer import SPARE
from tests.models.test_sequence import FAMILIES, make

END = 0
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8]]


def log_probability(model: SequenceModel, prompt: list[int], text: list[int], banned: int) -> float:
    """Of a text after a prompt, in nats."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + text]), prefix_B=torch.tensor([len(prompt)]))[0]
        logits[:, banned] = -math.inf
        logs = logits.log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(text))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", [[1, 2, 3], [2, 2]])
def test_a_beam_as_large_as_the_space_finds_the_best_of_all_texts(
    family: str, prompt: list[int]
) -> None:
    model = make(family, prefix=True, vocabulary=6, window=4)
    most, banned = 4, 5
    lengths = []
    for power in (0.0, 1.0, 3.0):
        scores = {
            text: log_probability(model, prompt, [*text, END], banned) / penalty(n + 1, power)
            for n in range(most)
            for text in itertools.product(range(1, 5), repeat=n)
        }
        best = max(scores, key=scores.__getitem__)
        (found,) = search(model, [prompt], [most], Search(4**most, power), END, [banned])
        assert found.ended
        assert tuple(found.tokens) == best
        assert found.score == pytest.approx(scores[best], abs=1e-4)
        lengths.append(len(best))
    assert lengths == sorted(lengths)  # a larger power never favours a shorter text


@pytest.mark.slow
def test_a_wider_beam_finds_what_a_greedy_search_walks_past() -> None:
    better = 0
    for seed in range(40):
        model = make("transformer", prefix=True, vocabulary=5)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.embed.weight, std=0.3)
        greedy, wide = (search(model, [[1, 2]], [6], Search(k, 0.0), END)[0] for k in (1, 8))
        assert not greedy.ended or wide.score >= greedy.score - 1e-5
        better += greedy.ended and wide.score > greedy.score + 1e-3
    assert better


@pytest.mark.parametrize("family", FAMILIES)
def test_one_beam_is_greedy_decoding(family: str) -> None:
    model = make(family, prefix=True)
    found = search(model, PROMPTS, [10, 12, 6], Search(1), END, [9])
    for prompt, most, text in zip(PROMPTS, (10, 12, 6), found, strict=True):
        decoder = Decoder(model, [prompt], [Sampling()], [9])
        tokens = [decoder.step()[0][1] for _ in range(most)]
        ended = END in tokens
        assert text.tokens == (tokens[: tokens.index(END)] if ended else tokens)
        assert text.ended == ended


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_does_not_depend_on_what_else_is_searched_for(family: str) -> None:
    model = make(family, prefix=True, vocabulary=12)  # small, so that texts end at several steps
    most = [10, 12, 16]
    prompts = [[token % 12 for token in prompt] for prompt in PROMPTS]
    together = search(model, prompts, most, Search(4), END)
    assert len({len(found.tokens) for found in together}) > 1
    for prompt, limit, found in zip(prompts, most, together, strict=True):
        (alone,) = search(model, [prompt], [limit], Search(4), END)
        assert alone.tokens == found.tokens
        assert alone.score == pytest.approx(found.score, abs=1e-4)
    backwards = search(model, prompts[::-1], most[::-1], Search(4), END)
    assert [found.tokens for found in backwards[::-1]] == [found.tokens for found in together]


def test_a_text_that_never_ends_is_as_long_as_it_may_be() -> None:
    model = make("transformer", prefix=True)
    for beam in (1, 3):
        (found,) = search(model, [[1, 2]], [7], Search(beam), END, [END])
        assert not found.ended
        assert len(found.tokens) == 7
    (found,) = search(model, [[1] * 20], [4], Search(2), END, [END])  # to the end of the context
    assert len(found.tokens) == 4


def test_what_is_banned_is_never_written() -> None:
    model = make("transformer", prefix=True)
    free = search(model, PROMPTS, [6] * 3, Search(3), END)
    banned = sorted({token for found in free for token in found.tokens})
    held = search(model, PROMPTS, [6] * 3, Search(3), END, banned)
    assert not {token for found in held for token in found.tokens} & {*banned}


def test_a_reordered_cache_holds_little_more_than_its_texts_and_grows() -> None:
    """What is copied at every step has to be small, however long a text may become."""
    model = make("transformer", context=128)
    tokens = torch.arange(3 * 60).reshape(3, 60) % 16
    with torch.inference_mode():
        state = model.start(3)
        model.extend(state, tokens[:, :5], torch.full((3,), 5))
        order = torch.tensor([2, 0, 0, 1])
        state.select(order)
        assert state.keys[0].shape[:3] == (4, state.keys[0].shape[1], SPARE)  # type: ignore[attr-defined]
        for place in range(5, 60):  # beyond what there is room for
            logits = model.extend(state, tokens[order, place : place + 1], torch.ones(4).long())
        expected = model(tokens[order])[:, -1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
