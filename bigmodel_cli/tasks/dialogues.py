"""Dialogues: the forms in which people keep and request them, as one.

Tools are a part of what is said, in Qwen's form: the list of them at the end of the system's
message, calls in the assistant's, results in one of the user's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import Document
from bigmodel_cli.tasks.chat.template import CALL, RESULT, TOOLS, Message, has_loss
from bigmodel_cli.tasks.columns import usual

if TYPE_CHECKING:
    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.tasks import Rows, Units

OPENAI = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
ROLES = OPENAI | {
    "human": "user", "customer": "user", "prompter": "user", "gpt": "assistant",
    "bot": "assistant", "agent": "assistant", "model": "assistant", "chatbot": "assistant",
    "ai": "assistant",
    "observation": "tool", "function_response": "tool", "tool_response": "tool", "ipython": "tool",
    "function_call": "call", "tool_call": "call",
}  # fmt: skip
# what a column may be named: the first that is there is read
MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog")
PROMPTS = ("instruction", "prompt", "question", "query")
REPLIES = ("output", "response", "completion", "answer", "reply")
BESIDE = {
    "system": ("system", "system_prompt", "system_message"),
    "tools": ("tools", "functions"),
}
BEFORE = {"input": ("input", "context"), "history": ("history",)}  # of prompts alone
# of a message: a false value of these, or a true one of those, means that it has no loss
LEARNED = (
    "weight", "train", "training", "train_on_turn", "trainable", "learn", "loss", "loss_mask",
    "loss_weight", "loss_scale",
)  # fmt: skip
MASKED = ("mask", "masked")
NO, YES = (False, 0, "false", "0", "no"), (True, 1, "true", "1", "yes")
MOST_MESSAGES = 4096
EXAMPLE = 'for example {"messages": [{"role": "user", "content": "…"}]}'
TOOLS_EXAMPLE = 'for example {"tools": [{"type": "function", "function": {"name": "weather"}}]}'


class Malformed(Exception):  # noqa: N818 (never seen by a person as it is)
    """What is not a dialogue: why a row of it is dropped, and what such a request is answered."""

    def __init__(self, said: str, reason: str = "malformed") -> None:
        super().__init__(said)
        self.said, self.reason = said, reason


def columns(found: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """The columns to read, by the names that `messages` knows: those that the user chose, and by
    their usual names the others of the same form. See `complete`."""
    chosen = dict(wanted)

    def add(part: str, names: Sequence[str]) -> bool:
        taken = {*chosen.values()}
        name = usual({n: kind for n, kind in found.items() if n not in taken}, names)
        if part not in chosen and name:
            chosen[part] = name
        return part in chosen

    questions, replies = _sides(wanted)
    parts = BESIDE
    if questions or replies or not add("messages", MESSAGES):
        parts = BESIDE | BEFORE
        if not questions:
            add("prompt", PROMPTS)
        if not replies:
            add("response", REPLIES)
    if complete(chosen):
        for part, names in parts.items():
            add(part, names)
    return chosen


def complete(chosen: Mapping[str, str]) -> bool:
    """Whether columns make a dialogue."""
    return "messages" in chosen or all(_sides(chosen))


def _sides(chosen: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether columns hold questions, and replies."""
    return (
        not {"prompt", "instruction"}.isdisjoint(chosen),
        not {"response", "output"}.isdisjoint(chosen),
    )


def messages(row: Mapping[str, str | None]) -> tuple[list[Message] | None, str]:
    """A row's messages; or None, and the reason why it has none."""
    try:
        found = [_marked(item) for item in _items(row)]
        system: Message = {"role": "system", "content": (row.get("system") or "").strip()}
        if system["content"] and found[:1] != [system]:
            found.insert(0, system)
        tools = _tools(_decoded(row.get("tools")))
        if any(m["role"] == "system" and "<tools>" in m["content"] for m in found):
            tools = []  # which are said already
        tidy = plain(found, tools)
    except Malformed as error:
        return None, error.reason
    while tidy and not has_loss(tidy[-1]):  # nobody learns from it
        tidy.pop()
    if not tidy:
        replied = any(m["role"] == "assistant" for m in found)
        return None, "not_learned" if replied else "no_reply"
    if not all(m["content"] for m in tidy):
        return None, "empty"
    first = next(i for i, m in enumerate(tidy) if m["role"] == "assistant")
    if not any(m["role"] == "user" for m in tidy[:first]):
        return None, "no_prompt"
    return tidy, ""


def _items(row: Mapping[str, str | None]) -> list[Any]:
    """A row's messages, each in whatever form. Raises Malformed."""
    if "messages" in row:
        listed = _decoded(row["messages"])
        if not listed:
            raise Malformed("no messages", "no_text")
    else:
        listed = _decoded(row.get("history")) or []
        question = row.get("instruction") or row.get("prompt") or ""
        if row.get("input"):
            question = f"{question}\n\n{row['input']}"
        replied = row.get("output") or row.get("response") or ""
        if isinstance(listed, list):
            listed = [
                *(message for turn in listed for message in _turn(turn)),
                {"role": "user", "content": question},
                {"role": "assistant", "content": replied},
            ]
    if not isinstance(listed, list) or len(listed) > MOST_MESSAGES:
        raise Malformed("no list of messages")
    return listed


def _turn(turn: Any) -> Iterator[Any]:
    """The messages of one item of a history: a message, or a pair of question and reply."""
    if not isinstance(turn, list):
        yield turn
    elif len(turn) != 2:
        raise Malformed("must be pairs")
    elif any(turn):
        yield {"role": "user", "content": turn[0]}
        yield {"role": "assistant", "content": turn[1]}


def _decoded(given: Any) -> Any:
    """What JSON says, also where it was written as a text into JSON. Raises Malformed."""
    for _ in range(3):
        if not isinstance(given, str):
            break
        try:
            given = json.loads(given or "null")
        except (ValueError, RecursionError):
            raise Malformed("holds no JSON") from None
    return given


def _message(given: Any, roles: Mapping[str, str]) -> Message:
    """A message of any form, as one of system, user, assistant and tool. Raises Malformed."""
    if not isinstance(given, dict):
        raise Malformed("must be an object")
    role, content = (
        next((given[name] for name in names if given.get(name) is not None), None)
        for names in (("role", "from"), ("content", "value", "text"))
    )
    if not isinstance(role, str):
        raise Malformed("has no `role`")
    kind = roles.get(role.lower())
    if kind is None:
        raise Malformed(f"has the unknown role `{role:.40}`", "other_role")
    calls = given.get("tool_calls") or given.get("function_call")
    if kind == "call":
        kind, calls, content = "assistant", content, None
    if isinstance(content, list):  # OpenAI's parts
        parts, content = content, joined(content)
        content = json_text(parts) if content is None and kind == "tool" else content
    elif isinstance(content, dict) and kind == "tool":
        content = json_text(content)
    calls = _calls(calls) if kind == "assistant" and calls else []
    if content is None and (calls or kind == "tool"):
        content = ""
    if not isinstance(content, str):
        raise Malformed("must have text as its `content`")
    content = content.strip()
    if kind == "tool":
        if given.get("role") is None:  # some of ShareGPT's form bring the tags
            content = content.removeprefix(RESULT[0]).removesuffix(RESULT[1])
        content = RESULT[0] + content + RESULT[1]
    message: Message = {"role": kind, "content": "\n".join([content] * bool(content) + calls)}
    _check_surrogates(message["content"])
    return message


def _check_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed("holds half of a surrogate pair") from None


def _marked(given: Any) -> Message:
    """A message of a row, with its mark if it has no loss. Raises Malformed."""
    message = _message(given, ROLES)
    if message["role"] == "assistant" and not _is_learned(given):
        message["learn"] = False
    return message


def joined(parts: Sequence[Any]) -> str | None:
    """The text of OpenAI's parts of a content; None where one is no text."""
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    whole = [text for text in texts if isinstance(text, str)]
    return "".join(whole) if len(whole) == len(texts) else None


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is_learned(given: Mapping[str, Any]) -> bool:
    """Whether no mark of a message says that it is not to be learned. Raises Malformed."""
    for name, off in [(n, NO) for n in LEARNED] + [(n, YES) for n in MASKED]:
        value = given.get(name)
        value = value.lower() if isinstance(value, str) else value
        if value is None:
            continue
        if not isinstance(value, str | int | float) or value not in NO + YES:
            raise Malformed(f"has `{name}`, which must be 0 or 1", "unclear_mark")
        if value in off:
            return False
    return True


def _calls(given: Any) -> list[str]:
    """Calls of tools as text. Raises Malformed."""
    if isinstance(given, str) and given.strip().startswith(CALL[0]):
        return [given.strip()]
    listed = _decoded(given)
    texts = []
    for call in listed if isinstance(listed, list) else [listed]:
        call = call.get("function") or call if isinstance(call, dict) else {}
        name = call.get("name") if isinstance(call, dict) else None
        if not isinstance(name, str) or not name:
            raise Malformed("calls a tool without `name`")
        arguments = call.get("arguments", call.get("parameters")) or {}
        if not isinstance(_decoded(arguments), dict):
            raise Malformed(f"calls `{name:.40}` with `arguments` that must be an object in JSON")
        text = arguments if isinstance(arguments, str) else json_text(arguments)
        whole = f'{{"name": {json_text(name)}, "arguments": {text}}}'
        texts.append(CALL[0] + whole + CALL[1])
    return texts


def _tools(given: Any) -> list[str]:
    """A list of tools, or of bare functions, as text. Raises Malformed."""
    listed = given if isinstance(given, list) else [given] if given else []
    texts = []
    for tool in listed:
        if not isinstance(tool, dict):
            raise Malformed("must be a list of functions")
        whole = tool if "function" in tool else {"type": "function", "function": tool}
        function = whole["function"]
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Malformed("holds a tool that has no function with a `name`")
        texts.append("\n" + json_text(whole))
    _check_surrogates("".join(texts))
    return texts


def plain(found: Sequence[Message], tools: Sequence[str]) -> list[Message]:
    """Messages without a role for tools, without control characters and space around, and without
    a system that says nothing."""
    from bigmodel_cli.tasks.clean import cut_control

    tidy: list[Message] = []
    if tools:
        said = TOOLS[0] + "".join(tools) + TOOLS[1]
        first = found[0]["content"] if found and found[0]["role"] == "system" else ""
        found = found[1:] if found and found[0]["role"] == "system" else found
        tidy.append({"role": "system", "content": cut_control(f"{first}\n\n{said}").strip()})
    before = ""
    for message in found:
        text = cut_control(message["content"]).strip()
        if message["role"] == "tool" and before == "tool":  # results together
            tidy[-1]["content"] += "\n" + text
        elif text or message["role"] != "system":
            role = "user" if message["role"] == "tool" else message["role"]
            tidy.append({**message, "role": role, "content": text})
        before = message["role"]
    return tidy


def requested(document: Document) -> list[Message]:
    """The messages of a request, and its tools; a text is what a user says. Raises DataError."""
    from bigmodel_cli.tasks.clean import cleaned

    given = document.get("messages")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if (system := document.get("system")) is not None and isinstance(given, list):
        if not isinstance(system, str):
            raise DataError(f"`system` must be text, but is `{str(system)[:60]}`", EXAMPLE)
        said = {"role": "system", "content": system.strip()}
        given = [said, *given] if said["content"] and given[:1] != [said] else given
    if not isinstance(given, list) or not given:
        raise DataError("`messages` must be a list of messages", EXAMPLE)
    if len(given) > MOST_MESSAGES:
        raise DataError(f"`messages` has {len(given):,} messages, and may have {MOST_MESSAGES:,}")
    found: list[Message] = []
    where = ""
    try:
        for place, message in enumerate(given):
            where = f"`messages[{place}]`"
            found.append(_message(message, OPENAI))
            if found[-1]["role"] != "system" and cleaned(found[-1]["content"])[1]:
                raise Malformed("is blank")
        where = "`tools`"
        tools = _tools(document.get("tools"))
    except Malformed as error:
        example = TOOLS_EXAMPLE if where == "`tools`" else EXAMPLE
        raise DataError(f"{where} {error.said}", example) from None
    tidy = plain(found, tools)
    if not tidy or tidy[-1]["role"] == "assistant":
        raise DataError("the last message is the assistant's: there is nothing to answer", EXAMPLE)
    return tidy


def size(found: Sequence[Message]) -> int:
    """Bytes of what is said."""
    return sum(len(m["content"].encode()) for m in found)


def units(batch: Rows, ledger: Ledger) -> Units | None:
    """Rows as dialogues, one to a unit, in JSON; None if nothing is left of them."""
    import numpy as np
    import pyarrow as pa

    from bigmodel_cli.tasks import Units

    names = [name for name in batch.table.schema.names if name not in ("follows", "ends", "row")]
    kept: list[str] = []
    keys: list[str] = []  # what is said, whoever learns from it
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
        kept.append(json_text(found))
        keys.append(json_text([{n: m[n] for n in ("role", "content")} for m in found]))
        sizes.append(said)
        places.append(place)
    if not kept:
        return None
    table = pa.RecordBatch.from_arrays([pa.array(kept, pa.large_string())], names=["messages"])
    return Units(
        table,
        pa.array(keys, pa.large_string()),
        np.array(sizes, np.int64),
        batch.split,
        lambda unit: batch.where(places[unit]),
    )
