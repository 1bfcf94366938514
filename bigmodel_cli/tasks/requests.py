"""Requests that are answered with text: checking them, and writing the answers."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bigmodel_cli.artifacts.tokenizer import MASK, Tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.models.generate import Decoder
from bigmodel_cli.models.sampling import Sampling
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.tasks import Document, Request

MOST_TOKENS = 1 << 20
MOST_STOPS, LONGEST_STOP = 16, 1024


def text_field(document: Document, field: str) -> str:
    """A request's field that has to be text. Raises DataError."""
    prompt = document.get(field)
    if not isinstance(prompt, str):
        raise DataError(
            f"`{field}` must be text, but is `{shown(prompt)}`", f'for example {{"{field}": "…"}}'
        )
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DataError(f"`{field}` holds half of a surrogate pair") from None
    return prompt


def cleaned_field(document: Document, field: str, trim: bool = False) -> str:
    """A request's text, cleaned as `prepare` cleans a row's. Raises DataError where it is blank."""
    from bigmodel_cli.tasks.clean import cleaned

    text, blank = cleaned(text_field(document, field), trim)
    if blank:
        raise DataError(
            f"`{field}` is blank: `{shown(document[field])}` has no visible character",
            "give it a text, or leave the request out",
        )
    return text


def prompt_ids(document: Document, tokenizer: Tokenizer, context: int) -> list[int]:
    """What a model that continues text reads: the ids that `prompt` lists, exactly, or those of
    its text, after `<|endoftext|>`. Raises DataError for more than the model reads at once.

    An empty text is a request, too: the model then begins one of its own.
    """
    from bigmodel_cli.tasks.clean import cleaned

    prompt = document.get("prompt")
    if isinstance(prompt, list):
        if not prompt or not all(type(i) is int and 0 <= i < tokenizer.size for i in prompt):
            raise DataError(
                f"`prompt` must be text, or a list of token ids below {tokenizer.size}, but is "
                f"`{shown(prompt)}`",
                'for example {"prompt": "…"}',
            )
        ids = list(prompt)
    else:
        given = text_field(document, "prompt")
        text, blank = cleaned(given)
        if given and blank and not text.isspace():
            raise DataError(
                f"`prompt` is blank: `{shown(given)}` has no visible character",
                'give a text; {"prompt": ""} lets the model begin one',
            )
        ids = [tokenizer.endoftext, *tokenizer.encode(text)]
    if len(ids) > context:
        raise DataError(
            f"`prompt` has {len(ids):,} tokens, but the model reads at most {context:,}",
            "shorten it, or train with a longer --context",
        )
    return ids


def generation(document: Document, prompt: Any) -> Request:
    """A request to write, with how it says to. Raises DataError."""
    stop = document.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stops)
    ):
        raise DataError(f"`stop` must be text or a list of at most {MOST_STOPS} texts")
    return Request(
        prompt,
        int(number_field(document, "max_tokens", 64, 1, MOST_TOKENS, whole=True)),
        Sampling(
            temperature=number_field(document, "temperature", 0.0, 0, 100),
            top_k=int(number_field(document, "top_k", 0, 0, 1 << 31, whole=True)),
            top_p=number_field(document, "top_p", 1.0, 0, 1),
            seed=int(number_field(document, "seed", 0, 0, (1 << 63) - 1, whole=True)),
        ),
        tuple(stops),
    )


def number_field(
    document: Document,
    name: str,
    default: float,
    low: float,
    high: float,
    whole: bool = False,
) -> float:
    """A request's field that has to be a number. Raises DataError."""
    value = document.get(name)
    if value is None:
        return default
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not low <= value <= high:  # which not a number never is
        kind = "a whole number" if whole else "a number"
        raise DataError(f"`{name}` must be {kind} from {low} to {high}, but is `{shown(value)}`")
    return value  # type: ignore[no-any-return]


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


class TextStream:
    """Text as its tokens come: an incomplete character is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._ids: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> None:
        if self.tokenizer.byte_level:
            self.text += self._decoder.decode(self.tokenizer.token_bytes[token])
        else:
            self._ids.append(token)
            text = self.tokenizer.decode(self._ids)
            if not text.endswith("\ufffd"):
                self.text = text

    def close(self) -> None:
        """What is left incomplete becomes U+FFFD."""
        if self.tokenizer.byte_level:
            self.text += self._decoder.decode(b"", final=True)
        else:
            self.text = self.tokenizer.decode(self._ids)


def write(
    model: SequenceModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[Request],
    ends: Sequence[int] = (),
) -> Iterator[tuple[int, str, str, str]]:
    """Answers a batch: (request, new text, finish reason or "", the whole text at the end).

    A text ends at `<|endoftext|>` (or one of `ends`) and before a stop text, with reason `stop`,
    or at its number of tokens, with reason `length`: at once, where that is 0. Text that may be the
    beginning of a stop text is held back until it is known.
    """
    ends = (tokenizer.endoftext, *ends)
    banned = [token for token in tokenizer.specials if token not in ends]
    decoder = Decoder(model, prompts, [request.sampling for request in requests], banned)
    streams = [TextStream(tokenizer) for _ in requests]
    sent = [0] * len(requests)
    counts = [0] * len(requests)
    nothing = {index for index, request in enumerate(requests) if not request.max_tokens}
    yield from ((index, "", "length", "") for index in sorted(nothing))
    decoder.finish(nothing)
    while decoder.slots:
        finished = set()
        for index, token in decoder.step():
            stream, stops = streams[index], requests[index].stop
            counts[index] += 1
            reason = ""
            if token in ends:
                reason = "stop"
            else:
                stream.feed(token)
                if counts[index] == requests[index].max_tokens:
                    reason = "length"
            if reason:
                stream.close()
            found = [at for at in (stream.text.find(s, sent[index]) for s in stops) if at >= 0]
            if found:
                reason, stream.text = "stop", stream.text[: min(found)]
            safe = len(stream.text) if reason else len(stream.text) - _held(stream.text, stops)
            fresh, sent[index] = stream.text[sent[index] : safe], max(safe, sent[index])
            if reason:
                finished.add(index)
            if fresh or reason:
                yield index, fresh, reason, stream.text if reason else ""
        decoder.finish(finished)


def _held(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that may begin a stop text."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


@torch.inference_mode()
def fill(model: SequenceModel, tokenizer: Tokenizer, text: str) -> str:
    """The text with each `<|mask|>` replaced by the masked model's most likely token.

    Raises DataError when there is none, or when the text is longer than the model's context.
    """
    parts = text.split(MASK)
    if len(parts) == 1:
        raise DataError(
            "a masked model fills in what is left out, and nothing is",
            f'for example {{"prompt": "once upon a {MASK}"}}',
        )
    tokens: list[int] = []
    for number, part in enumerate(parts):
        tokens += [tokenizer.mask] if number else []
        tokens += tokenizer.encode(part)
    context = model.config.shape.context
    if len(tokens) > context:
        raise DataError(f"the text has {len(tokens):,} tokens, but the model sees {context:,}")
    device = model.device
    logits_TV = model(torch.tensor([tokens], device=device))[0].float()
    logits_TV[:, list(tokenizer.specials)] = float("-inf")
    chosen = logits_TV.argmax(-1).tolist()
    return tokenizer.decode(
        chosen[i] if token == tokenizer.mask else token for i, token in enumerate(tokens)
    )
