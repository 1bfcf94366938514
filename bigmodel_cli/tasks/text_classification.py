"""Text classification: text → one of the labels that prepare found.

A unit is a text with its label; labels are split each by itself. Legend: B rows, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bigmodel_cli.models.shape import Shape
from bigmodel_cli.options import option
from bigmodel_cli.tasks import Batch, Document, Piece, Predictions, Proof, Request, Rows, Units
from bigmodel_cli.tasks.classification import ROWS, Classification, ClassOptions, shown_label
from bigmodel_cli.tasks.columns import LABEL_NAMES
from bigmodel_cli.tasks.text import TextTask, TokenizerOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks.rows import ShuffledPlan

BASELINE_TEXTS = 100_000  # of training, for TF-IDF


@dataclass(frozen=True)
class TextClassificationOptions(ClassOptions, TokenizerOptions):
    """Options of the task, by stage."""

    token_dropout: float = option(
        0.1,
        "Fraction of a text's tokens that are masked in training, others in each epoch.",
        stage="train",
        minimum=0,
        maximum=0.9,
        panel="Optimization",
    )

    min_chars: int = option(
        1,
        "Drop texts of fewer characters; each Chinese, Japanese, Korean, Thai … one counts as "
        "three.",
        stage="prepare",
        minimum=0,
    )
    context: int = option(
        256,
        "Maximum tokens of a text; its first ones are kept.",
        stage="prepare",
        minimum=2,
        maximum=1 << 20,
    )


class TextClassification(TextTask, Classification):
    name = "text-classification"
    Options = TextClassificationOptions
    unit_name = "texts"
    kinds: ClassVar[Mapping[str, str]] = {"label": "value"}
    field = "text"
    intended_use = (
        "texts of the kind that it learned from. It gives every text one of its labels, also one "
        "that belongs to none of them; its probabilities mean little there."
    )

    def __init__(self, options: Any, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        super().__init__(options, tokenizer)
        self.labels = list(labels)

    def used_specials(self) -> set[int]:
        return {self.tokenizer.endoftext, self.tokenizer.mask}

    # prepare ---------------------------------------------------------------------------------

    @classmethod
    def claims(cls, columns: Mapping[str, str]) -> bool:
        """A label beside a text: of a usual name, or the only one that is not what another task
        reads."""
        from bigmodel_cli.tasks import dialogues
        from bigmodel_cli.tasks.columns import IMAGE_NAMES, TEXT_NAMES, strings_in, usual

        label = usual(columns, LABEL_NAMES)
        if not label or usual(columns, TEXT_NAMES):
            return bool(label)
        others = usual(columns, IMAGE_NAMES) or dialogues.complete(dialogues.columns(columns, {}))
        return not others and len([n for n in strings_in(columns) if n != label]) == 1

    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        from bigmodel_cli.tasks.columns import named_column, text_column

        label = named_column(found, "label", wanted.get("label"), LABEL_NAMES, where)
        self.label_column = label
        rest = {name: kind for name, kind in found.items() if name != label}
        return {"text": text_column(rest, wanted.get("text", ""), where), "label": label}

    def units(
        self, rows: Iterable[Rows], ledger: Ledger, shares: Mapping[str, float]
    ) -> Iterator[Units]:
        import pyarrow.compute as pc

        from bigmodel_cli.tasks.clean import clean_text

        del shares
        for batch in rows:
            units = clean_text(batch, ledger, self.options.min_chars)
            units = units and self.labelled(units, ledger)
            if units is not None:  # space around makes no other text
                yield dataclasses.replace(units, keys=pc.utf8_trim_whitespace(units.keys))
        self.check_labels(ledger)

    def texts(self, units: pa.RecordBatch) -> Iterable[str]:
        return list(units.column("text").to_pylist())

    def fit(
        self,
        sample: Callable[[int], Iterator[pa.RecordBatch]],
        size: int,
        wait: Callable[[Callable[[], None]], None],
    ) -> str:
        return f"{self.fit_labels(sample, size)}; {super().fit(sample, size, wait)}"

    def remarks(self) -> list[str]:
        return [*super().remarks(), *self.label_remarks()]

    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        import numpy as np

        from bigmodel_cli.artifacts.shards import Columns
        from bigmodel_cli.tasks.clean import put_between

        ids, counts = self.tokenizer.encode_batch(units.column("text"))
        ids, counts = self.cut(ids, counts, self.options.context - 1, ledger)
        lengths = counts + 1  # <|endoftext|> precedes each
        tokens = np.full(int(lengths.sum()), self.tokenizer.endoftext, self.tokenizer.dtype)
        put_between(tokens, np.cumsum(lengths) - lengths + 1, ids, counts)
        return Columns(
            len(counts),
            {"tokens": tokens, "label": self.codes(units.column("label"))},
            {"tokens": lengths},
        )

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.save_labels(folder)

    @classmethod
    def load(cls, folder: Path, options: Any) -> Self:
        from bigmodel_cli.artifacts import tokenizer

        task = cls(options, tokenizer.load(folder), cls.read_labels(folder))
        return task.read_untrained(folder)

    # train -----------------------------------------------------------------------------------

    def shape(self) -> Shape:
        return Shape(
            self.tokenizer.size, self.options.context, causal=False, classes=len(self.labels)
        )

    def _lengths(self, split: Split) -> NDArray[np.int64]:

        return split.lengths("tokens")

    def _batch(self, split: Split, examples: NDArray[np.int64]) -> Batch:
        import torch

        rows = [split.values("tokens", i, i + 1) for i in examples.tolist()]
        targets = torch.from_numpy(split.column("label")[examples].astype("int64"))
        return Batch(self._inputs(rows), targets, len(rows), {"units": examples})

    @staticmethod
    def _inputs(rows: Sequence[NDArray[Any]]) -> dict[str, Tensor]:
        import torch

        from bigmodel_cli.tasks.rows import padded

        tokens, segments = padded(rows)
        found = {"tokens_BT": torch.from_numpy(tokens)}
        if segments.any():
            found["segments_BT"] = torch.from_numpy(segments)
        return found

    def plan(self, split: Split, seed: int) -> ShuffledPlan:
        from bigmodel_cli.tasks.rows import ShuffledPlan

        self.weigh(split)

        def make(examples: NDArray[np.int64], epochs: NDArray[np.int64]) -> Batch:
            batch = self._batch(split, examples)
            self._hide(batch.inputs["tokens_BT"], seed, examples, epochs)
            return batch

        return ShuffledPlan(self._lengths(split), seed, make)

    def _hide(
        self, tokens_BT: Tensor, seed: int, examples: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> None:
        """Puts `<|mask|>` in the place of some tokens: a function of (seed, epoch, example)."""
        import torch

        from bigmodel_cli.tasks.packing import MASKS, generator

        share = self.options.token_dropout
        if not share:
            return
        for row, (example, epoch) in enumerate(zip(examples, epochs, strict=True)):
            random = generator(MASKS, seed, int(epoch), int(example))
            hidden = torch.from_numpy(random.random(tokens_BT.shape[1]) < share)
            hidden[0] = False
            tokens_BT[row, hidden] = self.tokenizer.mask

    # evaluate --------------------------------------------------------------------------------

    def scoring(self, split: Split, rows: int, limit: int | None = None) -> Iterator[Batch]:
        from bigmodel_cli.tasks.rows import by_length

        for examples in by_length(self._lengths(split), max(rows, ROWS), limit):
            yield self._batch(split, examples)

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "window": self.options.context,
            "tokenization": self.tokenizer.signature,
        }

    def contents(self, split: Split) -> Iterator[bytes]:
        for text, label in zip(super().contents(split), split.column("label").tolist()):
            yield text + b"\0" + self.labels[label].encode()

    def _text(self, split: Split, unit: int) -> str:
        return self.tokenizer.decode(split.values("tokens", unit, unit + 1).tolist())

    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        from bigmodel_cli.tasks.packing import BASELINE, generator
        from bigmodel_cli.tasks.words import WORDS

        yield from self.majority(train, split)
        chosen = generator(BASELINE, 0).permutation(len(train))[:BASELINE_TEXTS]
        known = train.column("label")[chosen]
        if len(np.unique(known)) < 2:
            return
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=WORDS)
        learned = words.fit_transform(self._text(train, int(i)) for i in chosen)
        model = LogisticRegression(C=10.0, max_iter=1000).fit(learned, known)
        held = words.transform(self._text(split, i) for i in range(len(split)))
        answers = np.full((len(split), len(self.labels)), -40.0)
        answers[:, model.classes_] = model.predict_log_proba(held)
        yield from self.judged("tfidf_logistic", answers, split)

    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        from bigmodel_cli.tasks.packing import SAMPLES, generator

        found = []
        for unit in generator(SAMPLES, seed).permutation(len(split))[:count].tolist():
            text = self._text(split, unit)
            request = Request(split.values("tokens", unit, unit + 1).tolist())
            answer = next(last for *_, last in self.answer(model, [request]) if last)
            label = self.labels[int(split.column("label")[unit])]
            found.append(
                {"prompt": text[:1000] + "\n", "output": shown_label(answer), "reference": label}
            )
        return found

    def proof(self, split: Split, count: int) -> Proof:
        import numpy as np

        units = range(min(count, len(split)))
        return Proof([dict(self._batch(split, np.array([unit])).inputs) for unit in units])

    # predict ---------------------------------------------------------------------------------

    def request(self, document: Document) -> Request:
        from bigmodel_cli.tasks.requests import cleaned_field

        text = cleaned_field(document, "text")
        return Request([self.tokenizer.endoftext, *self.tokenizer.encode(text)])

    def answer(self, model: SequenceModel, requests: Sequence[Request]) -> Iterator[Piece]:
        """As training does, it reads the first tokens of a long text, and says how many it does
        not read."""
        import numpy as np

        context = self.options.context

        def inputs(requests: Sequence[Request]) -> Mapping[str, Tensor]:
            return self._inputs([np.array(request.prompt[:context]) for request in requests])

        for index, shown, whole in self.classify(model, requests, inputs):
            rest = len(requests[index].prompt) - context
            if whole and rest > 0:
                shown += f"\nthe last {rest:,} tokens of the text were not read"
                whole["truncated"] = rest
            yield index, shown, whole
