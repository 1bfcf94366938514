"""How a text's tokens are chosen, or searched for. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one text's tokens are chosen. temperature 0: the most likely one; top_k 0 and top_p 1:
    no limit. The same seed gives the same text."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Search:
    """How the most likely text is searched for. beam: texts that go on side by side, of which 1 is
    greedy; penalty: the power α of the length by which a text's log probability is divided."""

    beam: int = 5
    penalty: float = 1.0
