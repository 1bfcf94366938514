"""Baselines of chat: replies that were given before."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from bigmodel_cli.tasks.dialogues import Message

MOST = 50_000  # replies of training that are searched
BATCH = 256  # prompts looked up at a time


def exchanges(dialogues: Sequence[Sequence[Message]]) -> list[tuple[str, str]]:
    """(what was said last, the reply to it) of each of the assistant's turns."""
    return [
        (before["content"], reply["content"])
        for dialogue in dialogues
        for before, reply in itertools.pairwise(dialogue)
        if reply["role"] == "assistant" and before["role"] != "assistant"
    ]


def most_common(known: Sequence[tuple[str, str]]) -> str:
    """The reply that was given most often; of equals, the first one."""
    return Counter(reply for _, reply in known).most_common(1)[0][0] if known else ""


def nearest(known: Sequence[tuple[str, str]], prompts: Sequence[str]) -> Iterator[str]:
    """The reply to the most similar prompt (cosine of TF-IDF over words and their pairs)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from bigmodel_cli.tasks.scripts import WORDS

    if not known:
        yield from ("" for _ in prompts)
        return
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=WORDS)
    table = words.fit_transform(before for before, _ in known)
    for first in range(0, len(prompts), BATCH):
        similar = words.transform(prompts[first : first + BATCH]) @ table.T
        yield from (known[int(place)][1] for place in similar.argmax(1).A1)
