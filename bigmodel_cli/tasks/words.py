"""The words of a text, in any script: where a script has no spaces, each character is one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from bigmodel_cli.tasks.scripts import SPACELESS

MARKS = "".join(chr(c) for c in range(0x300, 0xFFFF) if unicodedata.category(chr(c))[0] == "M")
_CHARACTER = f"[{SPACELESS}][{MARKS}]*"
# Words as spaces part them
WORDS = rf"{_CHARACTER}|[^\s{SPACELESS}]+"
WORD = re.compile(rf"{_CHARACTER}|(?:[^\W{SPACELESS}][{MARKS}]*)+|[^\w\s]")  # without punctuation
_JOINED = re.compile(
    f"(?<=[{SPACELESS}{MARKS}\u3000-\u303f\uff00-\uff65]) "
    f"(?=[{SPACELESS}\u3000-\u303f\uff00-\uff65])"
)


def joined(words: Iterable[str]) -> str:
    """Words with spaces between them, but for those of scripts without spaces."""
    return _JOINED.sub("", " ".join(words))
