"""How much longer a tokenizer can make a text before it cuts it: a few lines of its file are
enough to fill any memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_GROWTH = 64


def growth(step: Mapping[str, Any] | None) -> float:
    """The most characters that a normalizer, pre-tokenizer or decoder (a part of tokenizer.json)
    makes of one, as far as its replacements go."""
    if not step:
        return 1.0
    product = 1.0
    for name in ("normalizers", "pretokenizers", "decoders"):
        for inner in step.get(name) or ():
            product *= growth(inner)
    if step.get("type") == "Replace":
        pattern = step.get("pattern") or {}
        shortest = len(pattern.get("String") or "")  # an expression may match nothing at all
        content = len(step.get("content") or "")
        product *= max(1.0, content / shortest) if shortest else 1.0 + content
    if step.get("type") == "Prepend":
        product *= max(1.0, len(step.get("prepend") or "") / 16)
    return product
