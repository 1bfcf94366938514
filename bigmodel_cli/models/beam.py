"""Beam search: the most likely text after a prompt, as far as some beams can see.

Legend: R requests that are not done, K beams of each, V vocabulary, C candidates of each request.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bigmodel_cli.models.sampling import Search
from bigmodel_cli.models.sequence import SequenceModel


@dataclass(frozen=True, slots=True)
class Found:
    """A text without its end token; score: its log probability in nats ÷ the length penalty;
    ended: whether it came to an end of its own."""

    tokens: list[int]
    score: float
    ended: bool


def penalty(length: int, power: float) -> float:
    """((5 + length) / 6)^α (Wu et al. 2016, equation 14); the end counts as a token."""
    return float(((5 + length) / 6) ** power)


@torch.inference_mode()
def search(
    model: SequenceModel,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    how: Search,
    end: int,
    banned: Sequence[int] = (),
) -> list[Found]:
    """The best text for each prompt, of at most `most` tokens with its end: what else is in the
    batch does not matter. Prompt and text must fit into the model's context.

    A request is done when as many texts have ended as there are beams, or when no running one can
    still become the best. With one beam that is the greedy text.
    """
    device, K, power = model.device, how.beam, how.penalty
    forbidden = torch.tensor(list(banned), dtype=torch.long, device=device)
    state = model.start(len(prompts), max(len(p) + m for p, m in zip(prompts, most, strict=True)))
    longest = max(map(len, prompts))
    tokens = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    running = list(range(len(prompts)))  # the request of each row
    best: list[Found | None] = [None] * len(prompts)
    ends = [0] * len(prompts)
    scores_RK = torch.zeros(len(prompts), 1, device=device)
    texts_RKT = torch.zeros(len(prompts), 1, 0, dtype=torch.long, device=device)
    for step in itertools.count(1):
        logits = model.extend(state, tokens, lengths).float().index_fill_(1, forbidden, -math.inf)
        R, K_now, V = *scores_RK.shape, logits.shape[1]
        total_RKV = scores_RK[..., None] + logits.log_softmax(-1).view(R, K_now, V)
        C = min(2 * K, K_now * V)  # no more than half of them end
        sums_RC, places_RC = total_RKV.flatten(1).topk(C)
        beams_RC, tokens_RC = places_RC // V, places_RC % V
        ended_RC = tokens_RC == end
        length = penalty(step, power)
        for row, place in ended_RC[:, :K].nonzero().tolist():
            request, score = running[row], float(sums_RC[row, place]) / length
            known = best[request]
            if score > -math.inf:
                ends[request] += 1
                if known is None or score > known.score:
                    text = texts_RKT[row, beams_RC[row, place]].tolist()
                    best[request] = Found(text, score, ended=True)
        # the beams that go on: the best candidates that do not end
        width = min(K, C - K_now) if C < 2 * K else K
        order_RK = ended_RC.long().argsort(dim=1, stable=True)[:, :width]
        scores_RK, beams_RK = sums_RC.gather(1, order_RK), beams_RC.gather(1, order_RK)
        next_RK = tokens_RC.gather(1, order_RK)
        texts_RKT = torch.cat(
            [texts_RKT.gather(1, beams_RK[..., None].expand(-1, -1, step - 1)), next_RK[..., None]],
            2,
        )
        kept = []
        for row, (request, score) in enumerate(zip(running, scores_RK[:, 0].tolist())):
            known = best[request]
            hopeless = known is not None and score / penalty(most[request], power) <= known.score
            if known is None and (step == most[request] or score == -math.inf):
                best[request] = Found(texts_RKT[row, 0].tolist(), score / length, ended=False)
            elif ends[request] < K and not hopeless and step < most[request]:
                kept.append(row)
        if not kept:
            return [found for found in best if found is not None]
        rows = torch.tensor(kept, device=device)
        slots = (rows[:, None] * K_now + beams_RK[rows]).flatten()
        if len(slots) != R * K_now or not torch.equal(slots, torch.arange(len(slots)).to(slots)):
            state.select(slots)
        running = [running[row] for row in kept]
        scores_RK, texts_RKT = scores_RK[rows], texts_RKT[rows]
        tokens = next_RK[rows].flatten()[:, None]
        lengths = torch.ones_like(tokens[:, 0])
    raise AssertionError("unreachable")
