"""Tokenizers that somebody else made: one id for each token, and how much of a text comes back."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.artifacts.manifest import sha256
from bigmodel_cli.artifacts.tokenizer import (
    FILE,
    SPECIALS,
    Tokenizer,
    finish,
    is_of_library,
    shorten,
)
from bigmodel_cli.artifacts.workdir import PREPROCESSORS
from bigmodel_cli.errors import UsageError

MOST_HOLES = 1 << 16  # ids without a token: each costs a row of the embedding
UNUSED = "<|unused_{}|>"  # what stands for an id without a token
SHOWN = 40  # characters of an example


def signature_of(source: str) -> str:
    """What stands for somebody else's tokenizer in a fingerprint: the hash of a local file's
    content, wherever it lies; else the name."""
    path = _local(source)
    return sha256(path) if path.is_file() else source


def _local(source: str) -> Path:
    """The file that a path means: itself, or that of a folder, a run or a bundle."""
    path = Path(source)
    if not path.is_dir():
        return path
    return next(
        (
            p / FILE
            for p in (path, *(path / name for name in PREPROCESSORS))
            if (p / FILE).is_file()
        ),
        path / FILE,
    )


def bring(source: str) -> Tokenizer:
    """Somebody else's tokenizer: a tokenizer.json, a folder with one, or hf:ID (network).

    Its ids stay as they are; an id without a token gets a special one that no text has, and the
    special tokens that it lacks come after the highest id. Raises UsageError.
    """
    from tokenizers import Tokenizer as Inner

    try:
        if source.startswith("hf:"):
            inner = Inner.from_pretrained(source.removeprefix("hf:"))
            text = inner.to_str()
        else:
            text = _local(source).read_text("utf-8")
            inner = Inner.from_str(text)  # raises for what is none
        numbered = _numbered(json.loads(text), source)
        inner = Inner.from_str(json.dumps(numbered)) if numbered else inner
    except BaseException as error:
        if isinstance(error, UsageError) or not is_of_library(error):
            raise
        raise UsageError(
            f"--tokenizer `{source}` cannot be loaded: {error}",
            "give chars, bytes, a tokenizer.json, a run or bundle, or hf:ID",
        ) from None
    inner.add_special_tokens(list(SPECIALS))
    ids = inner.get_vocab(with_added_tokens=True)
    if {*ids.values()} != {*range(len(ids))}:
        raise UsageError(f"--tokenizer `{source}`: its tokens do not keep their ids", _NUMBER)
    try:
        return finish(inner)
    except ValueError as error:
        raise UsageError(
            f"--tokenizer `{source}` cannot be used: {error}",
            "bring another, or make one: --tokenizer bpe",
        ) from None


_NUMBER = "give each token an id of its own, from 0 on, or make a new tokenizer: --tokenizer bpe"


def _numbered(spec: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """A tokenizer.json with a token for each id up to the highest, so that `tokenizers`, which
    numbers what is added from the count of the tokens on, gives the ids that the file names; None
    if it has no holes. Raises UsageError where an id means two tokens, or a token has two ids."""
    pieces, extra = spec["model"]["vocab"], spec.get("added_tokens") or []
    listed = not isinstance(pieces, dict)  # which has no holes
    ids = [(p, i) for i, (p, _) in enumerate(pieces)] if listed else [*pieces.items()]
    vocabulary = dict(ids)
    tokens: dict[int, str] = {}
    for token, number in [*ids, *((token["content"], token["id"]) for token in extra)]:
        other, own = tokens.setdefault(number, token), vocabulary.get(token, number)
        if other != token:
            raise UsageError(
                f"--tokenizer `{source}`: the tokens `{other}` and `{token}` have the "
                f"same id, {number:,}",
                _NUMBER,
            )
        if own != number:
            raise UsageError(
                f"--tokenizer `{source}`: the token `{token}` has two ids, {own:,} and {number:,}",
                _NUMBER,
            )
    highest = max(tokens, default=-1)
    holes = highest + 1 - len(tokens)
    if not holes:
        return None
    if holes > MOST_HOLES:
        raise UsageError(
            f"--tokenizer `{source}`: its highest id is {highest:,}, but it has only "
            f"{len(tokens):,} tokens",
            _NUMBER,
        )
    known = {token["id"]: token for token in extra}
    form = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        known.get(i) or {"id": i, "content": UNUSED.format(i), **form, "special": True}
        for i in range(highest + 1)
        if i in known or i not in tokens
    ]
    last = max(vocabulary.values(), default=-1)
    model = dict(spec["model"])
    if not listed:  # what is added within its range has to be in it
        own = {token["content"]: token["id"] for token in added if token["id"] < last}
        model["vocab"] = {**own, **pieces}
    return {**spec, "added_tokens": added, "model": model}


@dataclass(frozen=True)
class Loss:
    """What some texts lose when they are encoded and decoded. `spaced` differ only in spaces,
    `formed` also in case, accents or the width of characters; the others miss characters, which
    are a share `lost` of the bytes; `changed` is the share of bytes that are not there again."""

    texts: int
    spaced: int
    formed: int
    missing: int
    changed: float
    lost: float
    example: str

    def __str__(self) -> str:
        different = self.spaced + self.formed + self.missing
        kinds = {
            "only in spaces": self.spaced,
            "in case, accents or the width of characters": self.formed,
            f"in characters that are missing, {self.lost:.2%} of all bytes": self.missing,
        }
        shown = "; ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
        return (
            f"{different:,} of {self.texts:,} texts ({different / self.texts:.1%}) and "
            f"{self.changed:.2%} of their bytes do not come back from their tokens as they were: "
            f"{shown}; for example {self.example}"
        )


def loss(tokenizer: Tokenizer, texts: Iterable[str]) -> Loss | None:
    """What these texts lose; None if all come back. Raises DataError for what has no tokens."""
    counts: Counter[str] = Counter()
    size = lost = changed = 0
    examples: dict[str, str] = {}
    unknown = None if tokenizer.unknown is None else tokenizer.inner.id_to_token(tokenizer.unknown)
    texts = list(texts)
    counts["texts"] = len(texts)
    ids, numbers = tokenizer.encode_batch(texts)
    if tokenizer.byte_level:  # mostly all comes back, which is quick to see of all texts at once
        table = tokenizer.token_bytes
        if b"".join([table[i] for i in ids.tolist()]) == "".join(texts).encode():
            return None
    parts = np.split(ids, np.cumsum(numbers)[:-1])
    for text, part in zip(texts, parts):
        size += len(text.encode())
        back = tokenizer.decode(part.tolist())
        if back == text:
            continue
        plain = back.replace(unknown, "") if unknown and unknown not in text else back
        if "".join(plain.split()) == "".join(text.split()):
            kind = "spaced"
        else:
            missing = Counter(_folded(text)) - Counter(_folded(plain))
            lost += _bytes(missing)
            kind = "missing" if missing else "formed"
        changed += _bytes(Counter(text) - Counter(plain))
        counts[kind] += 1
        examples.setdefault(kind, _difference(text, back))
    if not examples:
        return None
    return Loss(
        counts["texts"],
        counts["spaced"],
        counts["formed"],
        counts["missing"],
        changed / size,
        min(lost / size, 1),
        next(examples[kind] for kind in ("missing", "formed", "spaced") if kind in examples),
    )


def _bytes(characters: Counter[str]) -> int:
    return sum(len(char.encode()) * count for char, count in characters.items())


def _folded(text: str) -> str:
    """A text without what many tokenizers leave out on purpose: case, accents, width, spaces."""
    apart = unicodedata.normalize("NFKD", text.casefold()).casefold()
    return "".join(c for c in apart if not unicodedata.combining(c) and not c.isspace())


def _difference(text: str, back: str) -> str:
    """Where the two begin to differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(text, back)) if a != b), min(map(len, (text, back)))
    )
    first = max(0, same - SHOWN // 2)
    before, after = (part[first : first + SHOWN] for part in (text, back))
    return f"{shorten(before)} → {shorten(after)}"
