"""What the tasks over text have in common: a tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bigmodel_cli.errors import UsageError
from bigmodel_cli.options import option
from bigmodel_cli.tasks import Task

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from bigmodel_cli.artifacts.brought import Loss
    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.artifacts.tokenizer import Tokenizer

SAMPLE_BYTES = 32 << 20  # of training text for a tokenizer
HASTE_BYTES = 4 << 20  # less text is encoded in the time that the fast encoder takes to load
LOSS_BYTES = 1 << 20  # of training text that must come back from a tokenizer that was brought
MOST_LOST = 0.2  # share of the bytes of that text that may be missing: more is refused
PROOF_BYTES = 1 << 18  # of training text that both encoders must see alike
NEW = ("bpe", "chars", "bytes")  # tokenizers that prepare makes itself


@dataclass(frozen=True)
class TokenizerOptions:
    """Which tokenizer, of `prepare`."""

    tokenizer: str = option(
        "bpe",
        "bpe, chars, bytes, a tokenizer.json, a run or bundle folder, or hf:ID.",
        stage="prepare",
        metavar="KIND|PATH|hf:ID",
    )
    vocab_size: int | None = option(
        None,
        "Maximum vocabulary size of a new bpe tokenizer.",
        stage="prepare",
        minimum=272,
        maximum=1_000_000,
        shown_default="1,024 to 32,768 by the size of the text",
    )


class TextTask(Task):
    """A task whose model reads tokens of text."""

    chat_template: ClassVar[str] = ""  # how a dialogue becomes one text, in Jinja

    def __init__(self, options: Any, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(options)
        self._tokenizer = tokenizer
        self._lossy_bytes = 0
        self._loss: Loss | None = None  # of a tokenizer that was brought
        self._slow = ""  # why the fast encoder is not used

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None, "fit or load comes first"
        return self._tokenizer

    @property
    def signature(self) -> str:
        return self.tokenizer.signature

    @property
    def ends(self) -> list[int]:
        """The tokens at which writing ends."""
        return [self.tokenizer.endoftext]

    def used_specials(self) -> set[int]:
        """The special tokens that the task's examples hold."""
        return {self.tokenizer.endoftext}

    def fresh_ids(self, before: Task) -> list[int]:
        known = before.used_specials() if isinstance(before, TextTask) else set()
        return sorted(self.used_specials() - known)

    def identity(self) -> dict[str, Any]:
        from bigmodel_cli.artifacts.brought import signature_of

        kind = self.options.tokenizer
        return {**super().identity(), "tokenizer": kind if kind in NEW else signature_of(kind)}

    @abstractmethod
    def texts(self, units: pa.RecordBatch) -> Iterable[str]:
        """What the tokenizer is learned from."""

    def fit(
        self,
        sample: Callable[[int], Iterator[pa.RecordBatch]],
        size: int,
        wait: Callable[[Callable[[], None]], None],
    ) -> str:
        from bigmodel_cli.artifacts import brought, tokenizer

        def texts(limit: int) -> Iterator[str]:
            return (text for part in sample(limit) for text in self.texts(part))

        kind = self.options.tokenizer
        if kind in NEW:
            vocabulary = self.options.vocab_size or tokenizer.default_vocabulary(size)
            option = f" (--vocab-size {vocabulary})" if kind == "bpe" else ""
            self._tokenizer = tokenizer.train(texts(SAMPLE_BYTES), kind, vocabulary, wait)
            learned = f"learned from {min(size, SAMPLE_BYTES) / 1e6:,.1f} MB of the train split"
            what = f"{kind} tokenizer: {self.tokenizer.size:,} tokens{option}, {learned}"
        else:
            self._tokenizer = brought.bring(kind)
            what = f"tokenizer `{kind}`: {self.tokenizer.size:,} tokens"
            unused = {brought.UNUSED.format(token) for token in self.tokenizer.specials}
            if holes := len(unused & {*self.tokenizer.specials.values()}):
                what += f", {holes:,} of them for ids that it does not use"
        if size > HASTE_BYTES:
            self._slow = self.tokenizer.hasten(list(texts(PROOF_BYTES)))
        if kind not in NEW:
            self._loss = brought.loss(self.tokenizer, texts(LOSS_BYTES))
            if self._loss and self._loss.lost > MOST_LOST:
                raise UsageError(
                    f"--tokenizer `{kind}` loses more than {MOST_LOST:.0%} of the text: "
                    f"{self._loss}",
                    "bring one that was made for such text, or make one: --tokenizer bpe",
                )
        return what

    def cut(
        self, ids: NDArray[Any], counts: NDArray[np.int64], most: int, ledger: Ledger
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Texts' tokens, one after another, and how many each has: at most so many, the rest of
        them in the ledger."""
        import numpy as np

        long = np.flatnonzero(counts > most)
        if not len(long):
            return ids, counts
        ends = np.cumsum(counts)
        kept = np.ones(len(ids), bool)
        for text in long.tolist():
            rest = slice(int(ends[text] - counts[text]) + most, int(ends[text]))
            kept[rest] = False
            size = len(self.tokenizer.decode(ids[rest].tolist()).encode())
            ledger.cut("truncated", size, f"a text of {counts[text]:,} tokens")
        return ids[kept], np.minimum(counts, most)

    def contents(self, split: Split) -> Iterator[bytes]:
        for unit in range(len(split)):
            tokens = split.values("tokens", unit, unit + 1).tolist()
            yield self.tokenizer.decode(tokens).encode()

    def remarks(self) -> list[str]:
        remarks = [f"{self._slow}; tokenizers encoded, which is slower"] if self._slow else []
        if self._loss:
            remarks.append(
                f"the tokenizer `{self.options.tokenizer}` is not lossless: {self._loss}"
            )
        if self._lossy_bytes:
            remarks.append(
                f"the tokenizer is not lossless: {abs(self._lossy_bytes):,} bytes differ between "
                "the text and its tokens; bits per byte count the text's own bytes"
            )
        return remarks

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)

    @classmethod
    def load(cls, folder: Path, options: Any) -> Self:
        from bigmodel_cli.artifacts import tokenizer

        return cls(options, tokenizer.load(folder))
