"""Decoding token by token, for a batch of independent texts. Knows tokens, not text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bigmodel_cli.models.sampling import Sampling
from bigmodel_cli.models.sequence import SequenceModel, State


class Decoder:
    """A batch of texts being written. `step` gives each running text its next token.

    A text may outgrow the model's context: then the window moves on, and the model reads the
    last half context again before it goes on.
    """

    def __init__(
        self,
        model: SequenceModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        banned: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.device = model.device
        self.context = model.config.shape.context
        self.texts = [list(prompt) for prompt in prompts]
        self.sampling = list(sampling)
        self.generators = [torch.Generator().manual_seed(s.seed) for s in sampling]
        self.banned = torch.tensor(list(banned), dtype=torch.long, device=self.device)
        self.slots = list(range(len(prompts)))  # slot → text, of the running ones
        self.state: State = model.start(len(prompts))
        self._used = [0] * len(prompts)  # tokens that the state of each slot holds
        self._new = [text[-self.context :] for text in self.texts]

    def finish(self, texts: set[int]) -> None:
        """Takes texts out of the batch."""
        kept = [i for i, text in enumerate(self.slots) if text not in texts]
        if len(kept) < len(self.slots):
            self.state.select(torch.tensor(kept, dtype=torch.long, device=self.device))
            self.slots = [self.slots[i] for i in kept]
            self._used = [self._used[i] for i in kept]
            self._new = [self._new[i] for i in kept]

    @torch.inference_mode()
    def step(self) -> list[tuple[int, int]]:
        """(text, token) of each running text."""
        if any(u + len(n) > self.context for u, n in zip(self._used, self._new, strict=True)):
            self.state = self.model.start(len(self.slots))
            for i, text in enumerate(self.slots):
                full = self._used[i] + len(self._new[i]) > self.context
                held = max(1, self.context // 2) if full else self._used[i] + len(self._new[i])
                self._used[i], self._new[i] = 0, self.texts[text][-held:]
        longest = max(map(len, self._new))
        tokens = torch.tensor(
            [new + [0] * (longest - len(new)) for new in self._new], device=self.device
        )
        lengths = torch.tensor([len(new) for new in self._new], device=self.device)
        logits_BV = self.model.extend(self.state, tokens, lengths).float()
        logits_BV.index_fill_(1, self.banned, -math.inf)
        chosen = self._choose(logits_BV)
        for i, (text, token) in enumerate(zip(self.slots, chosen, strict=True)):
            self._used[i] += len(self._new[i])
            self._new[i] = [token]
            self.texts[text].append(token)
        return list(zip(self.slots, chosen, strict=True))

    def _choose(self, logits_BV: Tensor) -> list[int]:
        chosen: list[int] = logits_BV.argmax(-1).tolist()
        for i, text in enumerate(self.slots):
            sampling = self.sampling[text]
            if sampling.temperature > 0:
                chosen[i] = sample(logits_BV[i], sampling, self.generators[text])
        return chosen


def sample(logits_V: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draws from softmax(logits / temperature), cut to top-k and then to the nucleus top-p."""
    logits = logits_V.cpu()
    logits = (logits - logits.max()) / max(sampling.temperature, 1e-6)  # whatever its size
    if sampling.top_k and sampling.top_k < len(logits):
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -math.inf
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[1:][(ordered.cumsum(-1) - ordered)[1:] >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))
