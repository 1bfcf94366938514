"""Scripts: which are written without spaces, and how long a text is that is written in them.
How its words are found is in words.py.

The classes are ranges of characters, as Python's and Arrow's regular expressions both read them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigmodel_cli.tasks.clean import as_array

# Bopomofo, Han with its radicals and extensions, and Yi
HAN = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3100-\u312f\u31a0-\u31bf\u3400-\u4dbf"
    "\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
)
KANA = "\u3031-\u3035\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # of Japanese
# Thai, Lao, Tibetan, Burmese, Khmer
ALPHABETS = "\u0e01-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"  # of Korean, which has spaces
SPACELESS = HAN + KANA + ALPHABETS
DENSE = HAN + KANA + HANGUL  # one character says as much as about three letters
WIDE = DENSE + ALPHABETS


def lengths(texts: pa.Array, wide: str) -> NDArray[np.int64]:
    """The characters of each text (n,), of which those of a class `wide` count as three."""
    counted = pc.count_substring_regex(texts, f"[{wide}]")
    plain: NDArray[Any] = as_array(pc.utf8_length(texts)).astype(np.int64)
    plain += 2 * as_array(counted)
    return plain


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """sacrebleu's tokenizer for the script of these texts: `zh` for Chinese, `char` for Japanese,
    Thai and others without spaces, else `13a`."""
    counts: Counter[str] = Counter()
    classes = {"han": HAN, "kana": KANA, "alphabets": ALPHABETS}
    for text in texts:
        for name, part in classes.items():
            counts[name] += len(re.findall(f"[{part}]", text))
        counts["letters"] += sum(map(str.isalpha, text))
    spaceless = counts["han"] + counts["kana"] + counts["alphabets"]
    if 3 * spaceless < counts["letters"] or not spaceless:
        return "13a"
    return "zh" if counts["han"] > 10 * (counts["kana"] + counts["alphabets"]) else "char"
