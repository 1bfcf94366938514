"""Baselines of chat: how often each token is, and replies that were given before."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bigmodel_cli.tasks.chat.template import Message, has_loss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST = 50_000  # replies of training that are searched
BATCH = 256  # prompts looked up at a time


def unigram(
    known: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    scored: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    vocabulary: int,
) -> NDArray[np.float64]:
    """Nats, tokens and right guesses (n, 3) of what is learned of dialogues, by how often each
    token is in the replies of others. A dialogue: its tokens, and whether each is learned (T,)."""
    import numpy as np

    from bigmodel_cli.tasks.ngram import Unigram

    def replies(tokens: NDArray[Any], marked: NDArray[Any]) -> NDArray[np.int64]:
        return np.concatenate([tokens[:1], tokens[1:][marked[1:] > 0]]).astype(np.int64)

    model = Unigram([replies(*dialogue) for dialogue in known], vocabulary)
    found = []
    for sequence in (replies(*dialogue) for dialogue in scored):
        right = model.most_likely(sequence) == sequence[1:]
        found.append((-model.log_probabilities(sequence).sum(), len(right), right.sum()))
    return np.array(found, np.float64).reshape(-1, 3)


def exchanges(dialogues: Sequence[Sequence[Message]]) -> list[tuple[str, str]]:
    """(what was said last, the reply to it) of each of the assistant's turns that are learned."""
    return [
        (before["content"], reply["content"])
        for dialogue in dialogues
        for before, reply in itertools.pairwise(dialogue)
        if has_loss(reply)
    ]


def most_common(known: Sequence[tuple[str, str]]) -> str:
    """The reply that was given most often; of equals, the first one."""
    return Counter(reply for _, reply in known).most_common(1)[0][0] if known else ""


def nearest(known: Sequence[tuple[str, str]], prompts: Sequence[str]) -> Iterator[str]:
    """The reply to the most similar prompt (cosine of TF-IDF over words and their pairs)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    from bigmodel_cli.tasks.words import WORDS

    if not known:
        yield from ("" for _ in prompts)
        return
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=WORDS)
    table = words.fit_transform(before for before, _ in known)
    for first in range(0, len(prompts), BATCH):
        similar = words.transform(prompts[first : first + BATCH]) @ table.T
        yield from (known[int(place)][1] for place in similar.argmax(1).A1)
