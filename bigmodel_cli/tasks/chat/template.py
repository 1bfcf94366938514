"""Dialogues as text and tokens: ChatML, with tools in the form of Qwen 2.5 and 3.

What a dialogue says comes to its place when the special tokens are cut out already: no role can be
forged. The tags of tools are plain text, as they are there.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigmodel_cli.artifacts.tokenizer import Tokenizer

# {"role": system | user | assistant, "content": text}, and {"learn": false} if it has no loss
Message = dict[str, Any]

START, END = "<|im_start|>", "<|im_end|>"
TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>",
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
)
CALL = ("<tool_call>\n", "\n</tool_call>")
RESULT = ("<tool_response>\n", "\n</tool_response>")
# <|endoftext|> comes first, as before every text that the model learned from. Other engines render
# OpenAI's messages with it; our own have the tools in their contents already, see `dialogues`.
CHATML = (
    """<|endoftext|>
{%- macro text(content) -%}
    {{- (content if content is string else (content or []) | map(attribute='text') | join) | trim }}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role in ['system', 'developer'] and text(messages[0].content) %}
        {{- text(messages[0].content) + '\\n\\n' }}
    {%- endif %}
    {{- TOOLS_0 }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {%- set bare = {'type': 'function', 'function': tool} %}
        {{- (tool if tool.function is defined else bare) | tojson }}
    {%- endfor %}
    {{- TOOLS_1 + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set role = 'system' if message.role == 'developer' else message.role %}
    {%- if role in ['tool', 'function'] %}
        {%- if loop.first or messages[loop.index0 - 1].role not in ['tool', 'function'] %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role not in ['tool', 'function'] %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif role != 'system' or (text(message.content) and not (tools and loop.first)) %}
        {{- '<|im_start|>' + role + '\\n' + text(message.content) }}
        {%- set one = [message.function_call] if message.function_call else [] %}
        {%- for call in message.tool_calls or one %}
            {%- if not loop.first or text(message.content) %}
                {{- '\\n' }}
            {%- endif %}
            {%- set call = call.function or call %}
            {%- set arguments = call.arguments or {} %}
            {{- '<tool_call>\\n{"name": ' + call.name | tojson + ', "arguments": ' }}
            {{- arguments if arguments is string else arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""".rstrip("\n")
    .replace("TOOLS_0", json.dumps(TOOLS[0]))
    .replace("TOOLS_1", json.dumps(TOOLS[1]))
)
# pieces of a rendered dialogue: the content of a message, or what is around it
CONTENT, SPECIAL, BETWEEN = -3, -2, -1


@functools.cache
def _rendered(
    template: str, specials: tuple[str, ...], role: str = "", prompt: bool = False
) -> list[tuple[str, int]]:
    """A dialogue of one message of that role, or none, as pieces; see `render`."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    mark = f"\ue000{secrets.token_hex(16)}\ue001"  # whatever the content, it is put there later
    messages = [{"role": role, "content": mark}] if role else []
    whole = environment.from_string(template).render(
        messages=messages, add_generation_prompt=prompt
    )
    pieces: list[tuple[str, int]] = []
    for place, piece in enumerate(re.split("(" + "|".join(map(re.escape, specials)) + ")", whole)):
        before, found, after = piece.partition(mark)
        kind = SPECIAL if place % 2 else BETWEEN
        pieces += [(before, kind), (found, CONTENT), (after, kind)]
    return [piece for piece in pieces if piece[0]]


def render(
    template: str, found: Sequence[Message], specials: Sequence[str], prompt: bool = False
) -> list[tuple[str, int]]:
    """A dialogue as pieces: (text, the number of the message whose content it is), with SPECIAL
    for a special token of the template's and BETWEEN for its other text. Contents that spell
    special tokens are none: they come to their places when the tokens are cut out already.
    """
    known = tuple(specials)
    head = _rendered(template, known)
    pieces = [*head]
    for number, message in enumerate(found):
        content = (message["content"], number)
        around = _rendered(template, known, message["role"])[len(head) :]
        pieces += [content if piece[1] == CONTENT else piece for piece in around]
    if prompt:
        pieces += _rendered(template, known, prompt=True)[len(head) :]
    return [piece for piece in pieces if piece[0]]


def encode(
    dialogues: Sequence[Sequence[Message]],
    template: str,
    tokenizer: Tokenizer,
    prompt: bool = False,
) -> Iterator[tuple[list[int], list[int]]]:
    """Each dialogue's tokens, and for each token the message of the assistant's that it is learned
    with, or −1: its content, and the END after it. A dialogue's tokens are <|endoftext|>, then
    each message's, which are the same whatever is around them, then those of the prompt."""
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
                last = number if has_loss(dialogue[number]) else -1
            elif (text, number) != (END, SPECIAL):
                last = -1
            tokens += part
            owners += [last] * len(part)
        yield tokens, owners


def has_loss(message: Message) -> bool:
    """Whether a message is one of the assistant's that has a loss."""
    return bool(message["role"] == "assistant" and message.get("learn", True))


def _cut(ids: list[int], counts: list[int]) -> Iterator[list[int]]:
    first = 0
    for count in counts:
        yield ids[first : first + count]
        first += count


def decoded(
    tokens: Sequence[int], marked: Sequence[int], tokenizer: Tokenizer, start: int, end: int
) -> tuple[list[Message], list[list[int]]]:
    """The messages behind a dialogue's tokens, of which the `marked` ones are learned, and the
    tokens of each message."""
    begins = [place for place, token in enumerate(tokens) if token == start]
    found: list[Message] = []
    parts: list[list[int]] = []
    for first, stop in zip(begins, [*begins[1:], len(tokens)], strict=True):
        part = list(tokens[first:stop])
        length = part.index(end) if end in part else len(part)
        role, _, content = tokenizer.decode(part[1:length]).partition("\n")
        message: Message = {"role": role, "content": content}
        if role == "assistant" and not any(marked[first:stop]):
            message["learn"] = False
        found.append(message)
        parts.append(part)
    return found, parts


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def calls_in(text: str) -> tuple[str, list[dict[str, Any]]]:
    """What an answer says, and the tools that it calls in OpenAI's form; all of it is text unless
    it ends with whole, valid calls."""
    said, *rest = re.split(r"(?:^|\n)<tool_call>\n", text)
    calls = []
    for part in rest:
        inner, closed, after = part.partition(CALL[1])
        try:
            call = json.loads(inner, parse_constant=_refuse)
            name, arguments = call["name"], call["arguments"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return text, []
        whole = closed and not after.strip()
        if not whole or not isinstance(name, str) or not isinstance(arguments, dict):
            return text, []
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"type": "function", "function": function})
    return said, calls
