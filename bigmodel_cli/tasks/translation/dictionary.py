"""A word-for-word dictionary from pairs of sentences: IBM's first model (Brown et al. 1993).

Legend: N places where a source word and a target word share a pair, U different pairs of words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from bigmodel_cli.tasks.words import WORD, joined

NOTHING = ""  # a source word in every pair, for target words that none of the others brings
PLACES = 8 << 20  # most of them that are learned from
ROUNDS = 5  # of expectation and maximization


class Dictionary:
    """Each source word's most probable target word; a word never seen stands for itself."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        known: tuple[dict[str, int], dict[str, int]] = ({NOTHING: 0}, {})
        sources, targets, owners = [], [], []
        room, owner = PLACES, 0
        for pair in pairs:
            words = [NOTHING, *WORD.findall(pair[0])], WORD.findall(pair[1])
            ids = [
                np.array([table.setdefault(word, len(table)) for word in part], np.int64)
                for table, part in zip(known, words, strict=True)
            ]
            room -= len(ids[0]) * len(ids[1])
            if room < 0:
                break
            sources.append(np.tile(ids[0], len(ids[1])))
            targets.append(np.repeat(ids[1], len(ids[0])))
            owners.append(np.repeat(np.arange(len(ids[1])) + owner, len(ids[0])))
            owner += len(ids[1])
        self.best: dict[str, str] = {}
        if not owner:
            return
        codes_N = np.concatenate(sources) * len(known[1]) + np.concatenate(targets)
        codes_U, places_N = np.unique(codes_N, return_inverse=True)
        owners_N = np.concatenate(owners)  # the place of a target word
        source_U, target_U = codes_U // len(known[1]), codes_U % len(known[1])
        chance_U = np.ones(len(codes_U))
        for _ in range(ROUNDS):
            weights_N = chance_U[places_N]
            shares_N = weights_N / np.bincount(owners_N, weights_N)[owners_N]
            counts_U = np.bincount(places_N, shares_N)
            chance_U = counts_U / np.bincount(source_U, counts_U)[source_U]
        names = list(known[0]), list(known[1])
        for place in np.lexsort((-target_U, chance_U, source_U)).tolist():  # the last one stays
            self.best[names[0][source_U[place]]] = names[1][target_U[place]]

    def translate(self, text: str) -> str:
        """Word for word, in the source's order, with spaces as they are usually set. In a script
        without spaces each character is a word."""
        words = [self.best.get(word, word) for word in WORD.findall(text)]
        return re.sub(r" ([.,!?;:)%。，、！？；：）])", r"\1", joined(words))
