"""Dialogues: the forms in which people keep them, as one; and as text that a model reads.

A message is {"role": system | user | assistant, "content": text}.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigmodel_cli.errors import DataError

if TYPE_CHECKING:
    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.tokenizer import Tokenizer
    from bigmodel_cli.tasks import Rows, Units

Message = dict[str, str]

ROLES = {
    "system": "system", "user": "user", "human": "user", "customer": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "agent": "assistant",
    "model": "assistant", "chatbot": "assistant",
}  # fmt: skip
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog")
PROMPTS = ("prompt", "question", "query")
REPLIES = ("response", "completion", "answer", "reply")
# ChatML; <|endoftext|> comes first, as before every text that the model learned from
CHATML = (
    "<|endoftext|>{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MOST_MESSAGES = 4096
FRAME = 4  # tokens around a message, at least
SPECIAL, BETWEEN = -2, -1  # pieces of a rendered dialogue that are no message's content


def columns(found: Mapping[str, str]) -> dict[str, str]:
    """The columns of a form that is known, by their names in it; nothing for any other."""
    for name in LISTS:
        if name in found:
            return {"messages": name}
    if {"instruction", "output"} <= {*found}:
        return {n: n for n in ("system", "instruction", "input", "output") if n in found}
    for prompt in PROMPTS:
        for reply in REPLIES:
            if prompt in found and reply in found:
                return {"prompt": prompt, "response": reply}
    return {}


def messages(row: Mapping[str, str | None]) -> tuple[list[Message] | None, str]:
    """A row's messages; or None, and the reason why it has none."""
    if "messages" in row:
        try:
            listed = json.loads(row["messages"] or "null")
        except ValueError:
            return None, "malformed"
        return _listed(listed)
    found = []
    if row.get("system"):
        found.append({"role": "system", "content": row["system"] or ""})
    asked = row.get("instruction") or row.get("prompt") or ""
    if row.get("input"):
        asked = f"{asked}\n\n{row['input']}"
    found.append({"role": "user", "content": asked})
    found.append({"role": "assistant", "content": row.get("output") or row.get("response") or ""})
    return _tidy(found)


def _listed(listed: Any) -> tuple[list[Message] | None, str]:
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_MESSAGES:
        return None, "malformed" if listed else "no_text"
    found = []
    for item in listed:
        if not isinstance(item, dict):
            return None, "malformed"
        role = item.get("role", item.get("from"))
        content = item.get("content", item.get("value"))
        if isinstance(content, list):  # OpenAI's parts
            content = joined(content)
        if not isinstance(role, str) or not isinstance(content, str):
            return None, "malformed"
        if role.lower() not in ROLES:
            return None, "other_role"
        found.append({"role": ROLES[role.lower()], "content": content})
    return _tidy(found)


def joined(parts: Sequence[Any]) -> str | None:
    """The text of OpenAI's parts of a content; None where one is no text."""
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    whole = [text for text in texts if isinstance(text, str)]
    return "".join(whole) if len(whole) == len(texts) else None


def requested(given: Any) -> list[Message]:
    """The messages of a request; a text is what a user says. Raises DataError."""
    from bigmodel_cli.tasks.requests import text_field

    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    example = 'for example {"messages": [{"role": "user", "content": "…"}]}'
    if not isinstance(given, list) or not given:
        raise DataError("`messages` must be a list of messages", example)
    if len(given) > MOST_MESSAGES:
        raise DataError(f"`messages` has {len(given):,} messages, and may have {MOST_MESSAGES:,}")
    found: list[Message] = []
    for place, message in enumerate(given):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "user", "assistant"):
            raise DataError(f"`messages[{place}]` has no role that is known", example)
        content = message.get("content")
        content = joined(content) if isinstance(content, list) else content
        text = text_field({"content": content}, "content")
        found.append({"role": role, "content": text.strip()})
    if found[-1]["role"] == "assistant":
        raise DataError("the last message is the assistant's: there is nothing to answer", example)
    return found


def _tidy(found: list[Message]) -> tuple[list[Message] | None, str]:
    """Without control characters, space around, and what nobody answers."""
    from bigmodel_cli.tasks.clean import cut_control

    tidy = [{"role": m["role"], "content": cut_control(m["content"]).strip()} for m in found]
    while tidy and tidy[-1]["role"] != "assistant":
        tidy.pop()
    if not tidy:
        return None, "no_reply"
    if not all(m["content"] for m in tidy):
        return None, "empty"
    if not any(m["role"] == "user" for m in tidy[: _first_reply(tidy)]):
        return None, "no_prompt"
    return tidy, ""


def _first_reply(found: Sequence[Message]) -> int:
    return next(i for i, m in enumerate(found) if m["role"] == "assistant")


def size(found: Sequence[Message]) -> int:
    """Bytes of what is said."""
    return sum(len(m["content"].encode()) for m in found)


@functools.cache
def _template(source: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)


def render(
    template: str, found: Sequence[Message], specials: Sequence[str], prompt: bool = False
) -> list[tuple[str, int]]:
    """A dialogue as pieces: (text, the number of the message whose content it is), with SPECIAL
    for a special token of the template's and BETWEEN for its other text. Contents that spell
    special tokens are none: they come to their places when the tokens are cut out already.
    """
    marks = [f"\ue000{secrets.token_hex(16)}\ue001" for _ in found]
    hidden = [{**m, "content": mark} for m, mark in zip(found, marks, strict=True)]
    whole = _template(template).render(messages=hidden, add_generation_prompt=prompt)
    cut = re.split("(" + "|".join(map(re.escape, specials)) + ")", whole)
    numbers = {mark: number for number, mark in enumerate(marks)}
    pieces: list[tuple[str, int]] = []
    for place, piece in enumerate(cut):
        if place % 2:
            pieces.append((piece, SPECIAL))
            continue
        for text in re.split("(\ue000[0-9a-f]{32}\ue001)", piece):
            number = numbers.get(text, BETWEEN)
            pieces.append((text if number < 0 else found[number]["content"], number))
    return [piece for piece in pieces if piece[0]]


def encode(
    dialogues: Sequence[Sequence[Message]], template: str, tokenizer: Tokenizer, end: str,
    prompt: bool = False,
) -> Iterator[tuple[list[int], list[int]]]:  # fmt: skip
    """Each dialogue's tokens, and for each token the message of the assistant's that it is learned
    with, or −1: its content, and the `end` after it."""
    names = {text: token for token, text in tokenizer.specials.items()}
    rendered = [render(template, d, list(names), prompt) for d in dialogues]
    texts = [text for pieces in rendered for text, number in pieces if number != SPECIAL]
    ids, counts = tokenizer.encode_batch(texts)
    parts = iter(_cut(ids.tolist(), counts.tolist()))
    for dialogue, pieces in zip(dialogues, rendered, strict=True):
        tokens: list[int] = []
        owners: list[int] = []
        last = -1
        for text, number in pieces:
            part = [names[text]] if number == SPECIAL else next(parts)
            if number >= 0:
                last = number if dialogue[number]["role"] == "assistant" else -1
            elif (text, number) != (end, SPECIAL):
                last = -1
            tokens += part
            owners += [last] * len(part)
        yield tokens, owners


def decoded(
    tokens: Sequence[int], tokenizer: Tokenizer, marks: set[int], end: int
) -> list[Message]:  # fmt: skip
    """The messages behind a dialogue's tokens. marks: what is no content; end: of a message."""
    found: list[Message] = []
    part: list[int] = []
    for token in tokens:
        if token == end and part:
            role, _, content = tokenizer.decode(part).partition("\n")
            found.append({"role": role, "content": content})
        part = [] if token in marks else [*part, token]
    return found


def _cut(ids: list[int], counts: list[int]) -> Iterator[list[int]]:
    first = 0
    for count in counts:
        yield ids[first : first + count]
        first += count


def shorten(
    found: list[Message], encode: Callable[[list[list[Message]]], list[tuple[list[int], Any]]],
    tokenizer: Tokenizer, most: int,
) -> list[Message]:  # fmt: skip
    """A dialogue of at most so many tokens: without its oldest turns, and, if the last exchange
    alone is too long, without the beginning of what was asked and the end of what was said."""
    system = [m for m in found if m["role"] == "system"]
    turns = [m for m in found if m["role"] != "system"]
    starts = [
        i for i, m in enumerate(turns)
        if m["role"] == "user" and (not i or turns[i - 1]["role"] == "assistant")
    ]  # fmt: skip
    room = most - sum(_sizes(system, tokenizer)) - 2 * FRAME
    sizes = _sizes(turns, tokenizer)
    for start in starts[1:]:
        if sum(sizes[start:]) > room:  # hopeless, told without encoding all of it again
            continue
        shorter = [*system, *turns[start:]]
        if len(encode([shorter])[0][0]) <= most:
            return shorter
    last = turns[starts[-1] :] if starts else turns
    contents = [tokenizer.encode(m["content"]) for m in last]
    while (over := len(encode([last])[0][0]) - most) > 0:
        longest = max(range(len(last)), key=lambda i: len(contents[i]))
        if len(contents[longest]) < 2:  # so many turns that even their frames are too long
            if len(last) < 3:
                break
            last, contents = last[1:], contents[1:]
            continue
        cut = max(1, min(over, len(contents[longest]) - 1))
        asked = last[longest]["role"] == "user"
        contents[longest] = contents[longest][cut:] if asked else contents[longest][:-cut]
        text = tokenizer.decode(contents[longest]).strip("\ufffd").strip() or "…"
        last = [*last[:longest], {**last[longest], "content": text}, *last[longest + 1 :]]
    return last


def _sizes(found: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """About the tokens of each message: its content's, and the least that stands around it."""
    _, counts = tokenizer.encode_batch([m["content"] for m in found])
    return [count + FRAME for count in counts.tolist()]


def latest(found: Sequence[Message], tokenizer: Tokenizer, room: int) -> list[Message]:
    """The last messages of a dialogue of about so many tokens, after what the system says first."""
    sizes = _sizes(found, tokenizer)
    system = [m for m in found[:1] if m["role"] == "system" and len(found) > 1]
    left = room - sum(sizes[: len(system)])
    start = len(found) - 1
    left -= sizes[start] + FRAME
    while start > len(system) and left >= sizes[start - 1]:
        start -= 1
        left -= sizes[start]
    return [*system, *found[start:]]


def units(batch: Rows, ledger: Ledger) -> Units | None:
    """Rows as dialogues, one to a unit, in JSON; None if nothing is left of them."""
    import numpy as np
    import pyarrow as pa

    from bigmodel_cli.tasks import Units

    names = [name for name in batch.table.schema.names if name not in ("follows", "ends", "row")]
    kept: list[str] = []
    sizes: list[int] = []
    places: list[int] = []
    for place, row in enumerate(batch.table.select(names).to_pylist()):
        whole = sum(len(text.encode()) for text in row.values() if text)
        ledger.came_in(1, whole)
        found, reason = messages(row)
        if found is None:
            ledger.drop(reason, whole, batch.where(place))
            continue
        said = min(size(found), whole)
        if said < whole:  # JSON around it, space, a turn without reply
            ledger.remove("markup", whole - said, batch.where(place))
        kept.append(json.dumps(found, ensure_ascii=False))
        sizes.append(said)
        places.append(place)
    if not kept:
        return None
    column = pa.array(kept, pa.large_string())
    table = pa.RecordBatch.from_arrays([column], names=["messages"])
    return Units(table, column, np.array(sizes, np.int64), batch.split,
                 lambda unit: batch.where(places[unit]))  # fmt: skip
