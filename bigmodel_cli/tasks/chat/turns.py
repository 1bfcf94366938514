"""Which turns of a dialogue fit into a context: what the system says stays, the oldest go."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks.chat.template import RESULT, Message

if TYPE_CHECKING:
    from bigmodel_cli.artifacts.tokenizer import Tokenizer

Encode = Callable[[Sequence[Sequence[Message]]], list[tuple[list[int], Any]]]


def first_kept(found: Sequence[Message], sizes: Sequence[int], rooms: Sequence[int]) -> int | None:
    """The message that a dialogue of messages of so many tokens begins with, so that they are no
    more than the first of the rooms that serves; what the system says is kept in any case.

    The oldest whole turns go; of a last turn that is too long by itself, the oldest messages. None
    if what the system says and the last message of the user's, with what follows, are too long.
    """
    system = [m["role"] == "system" for m in found]
    said = [0 if is_system else size for size, is_system in zip(sizes, system, strict=True)]
    fixed = sum(sizes) - sum(said)
    tokens = [*itertools.accumulate(reversed(said))][::-1]  # of a message and all after it
    turns, users = [0], []
    before = ""
    for place, message in enumerate(found):
        if message["role"] == "user":
            users.append(place)
            if before != "user" and not message["content"].startswith(RESULT[0]):
                turns.append(place)
        if not system[place]:
            before = message["role"]
    for starts, room in itertools.product((turns, users), rooms):
        for start in starts:
            if fixed + tokens[start] <= room:
                return start
    return None


def without(found: Sequence[Message], start: int) -> list[int]:
    """The places of the messages that are left of a dialogue that begins there."""
    return [i for i, m in enumerate(found) if i >= start or m["role"] == "system"]


def room(context: int, written: int) -> int:
    """Tokens of a dialogue that an answer of so many leaves room for: half the context at least."""
    return context - min(written, context // 2)


def fitted(
    found: Sequence[Message],
    parts: Sequence[list[int]],
    header: Sequence[int],
    context: int,
    written: int,
) -> tuple[list[int], int]:
    """The tokens of a dialogue to be answered with so many, at most, and how many messages were
    left out, as in training: the oldest turns. parts: the tokens of its messages; header: those
    that stand before them, which is one, and after.

    Where no turn leaves that much room the answer has less. Raises DataError where it has none.
    """
    sizes = [len(part) for part, _ in zip(parts, found, strict=False)]
    rooms = [most - len(header) for most in (room(context, written), context)]
    start = first_kept(found, sizes, rooms)
    if start is None:
        fixed = sum(sizes[place] for place in without(found, len(found) - 1)) + len(header)
        raise DataError(
            f"the last message, with what the system says, has {fixed:,} tokens, but the model "
            f"reads {context:,}",
            "shorten it: only older messages can be left out",
        )
    kept = without(found, start)
    tokens = [header[0], *(t for place in kept for t in parts[place]), *header[1:]]
    return tokens, len(found) - len(kept)


def shorten(
    found: Sequence[Message], encode: Encode, tokenizer: Tokenizer, most: int
) -> list[Message]:
    """A dialogue of at most so many tokens: without its oldest turns; if what the system says and
    the last exchange alone are too long, the longest messages of these are cut: the beginning of
    the question, the end of what was said."""
    sizes = [len(tokens) - 1 for tokens, _ in encode([[message] for message in found])]
    start = first_kept(found, sizes, [most - 1])  # <|endoftext|> comes first
    if start is not None:
        return [found[place] for place in without(found, start)]
    users = [i for i, m in enumerate(found) if m["role"] == "user"]
    last = [found[place] for place in without(found, users[-1] if users else 0)]
    contents = [tokenizer.encode(m["content"]) for m in last]
    while (over := len(encode([last])[0][0]) - most) > 0:
        longest = max(range(len(last)), key=lambda i: len(contents[i]))
        if len(contents[longest]) < 2:  # so many messages that even their frames are too long
            if len(last) < 3:
                break
            last, contents = last[1:], contents[1:]
            continue
        cut = max(1, min(over, len(contents[longest]) - 1))
        question = last[longest]["role"] == "user"
        contents[longest] = contents[longest][cut:] if question else contents[longest][:-cut]
        text = tokenizer.decode(contents[longest]).strip("\ufffd").strip() or "…"
        last = [*last[:longest], {**last[longest], "content": text}, *last[longest + 1 :]]
    return last
