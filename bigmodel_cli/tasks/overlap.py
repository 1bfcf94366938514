"""BLEU and chrF: how much of an answer overlaps with its reference, as sacrebleu counts it.

Both are functions of counts that add up over sentences, so that one bootstrap serves them, too.
Legend: n sentences, k counts of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigmodel_cli.artifacts.manifest import read_json, write_json
from bigmodel_cli.errors import ArtifactError
from bigmodel_cli.tasks import Metric
from bigmodel_cli.tasks.metrics import Sums

BLEU_FILE = "bleu.json"
USUAL = "13a"
TOKENIZERS = (USUAL, "zh", "char")


class Overlap:
    """One of sacrebleu's metrics, whose counts are the statistics `first` … `first + size − 1`."""

    def __init__(self, name: str, inner: Any, first: int) -> None:
        self.name, self.inner, self.first = name, inner, first
        self.size = len(self.counts([""], [""])[0])

    def counts(self, answers: Sequence[str], references: Sequence[str]) -> NDArray[np.float64]:
        """(n, k): what sacrebleu adds up itself to score a corpus."""
        found = self.inner._extract_corpus_statistics(list(answers), [list(references)])
        return np.array(found, np.float64)

    @property
    def signature(self) -> str:
        """What two figures must have in common to be comparable."""
        return str(self.inner.get_signature())

    def metric(self) -> Metric:
        """No number where no sentence was counted."""
        part = slice(self.first, self.first + self.size)

        def score(counts: NDArray[np.float64]) -> float:
            if not counts.any():
                return float("nan")
            return float(self.inner._compute_score_from_stats(counts.astype(int).tolist()).score)

        def value(sums: Sums) -> Sums:
            return np.apply_along_axis(score, -1, sums[..., part])

        return Metric(self.name, True, value)


def save_tokenizer(folder: Path, name: str) -> None:
    """Keeps which of sacrebleu's tokenizers BLEU counts by, where it is not the usual one."""
    if name != USUAL:
        write_json(folder / BLEU_FILE, {"tokenizer": name})


def read_tokenizer(folder: Path) -> str:
    """Which of sacrebleu's tokenizers BLEU counts by. Raises ArtifactError."""
    if not (folder / BLEU_FILE).exists():
        return USUAL
    name = read_json(folder / BLEU_FILE, "preprocessor", "make it again").get("tokenizer")
    if name not in TOKENIZERS:
        raise ArtifactError(f"`{folder / BLEU_FILE}` is corrupt: {name!r}", "make it again")
    return str(name)


def bleu(first: int, tokenizer: str = USUAL) -> Overlap:
    """BLEU (Papineni et al. 2002), cased, tokenized as mteval-v13a does (Post 2018), or by another
    of sacrebleu's tokenizers."""
    from sacrebleu.metrics import BLEU

    return Overlap("bleu", BLEU(tokenize=tokenizer), first)


def chrf(first: int) -> Overlap:
    """chrF2 (Popović 2015): character n-grams up to 6, recall counted twice as much."""
    from sacrebleu.metrics import CHRF

    return Overlap("chrf", CHRF(), first)
