"""Language modelling: text → the next token, or (`--objective masked`) the tokens left out.

A unit is a document, or a block of about 4 kB of a long text file. `<|endoftext|>` precedes every
document and is its last target. Blocks that follow each other in one split are one sequence.
Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.models.shape import Shape
from bigmodel_cli.options import option
from bigmodel_cli.tasks import (
    Batch,
    Document,
    Metric,
    Piece,
    Predictions,
    Proof,
    Request,
    Rows,
    Units,
)
from bigmodel_cli.tasks.text import TextTask, TokenizerOptions

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.artifacts.tokenizer import Tokenizer
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks.packing import PackedPlan

BASELINE_TOKENS = 20_000_000  # of training text for the n-gram baseline
PASSES = 7  # a masked model is scored with every 7th token left out, about as in training


@dataclass(frozen=True)
class LanguageOptions(TokenizerOptions):
    """Options of the language task, by stage."""

    min_chars: int = option(
        10,
        "Drop documents of fewer characters; each Chinese, Japanese, Korean, Thai … one counts as "
        "three.",
        stage="prepare",
        minimum=0,
    )
    objective: str = option(
        "next",
        "Learn the next token, or tokens left out (BERT).",
        stage="train",
        choices=("next", "masked"),
        panel="Model",
    )
    context: int = option(
        256,
        "Context length in tokens.",
        stage="train",
        minimum=2,
        maximum=1 << 20,
        panel="Model",
    )


class Language(TextTask):
    name = "language"
    Options = LanguageOptions
    unit_name = "documents"
    documents = True
    field = "prompt"
    intended_use = (
        "text of the kind that it learned from. It may repeat what its training data say, true or "
        "not, and parts of them word for word. It was not tuned to be safe."
    )
    fields: tuple[str, ...] = ("max_tokens", "temperature", "top_k", "top_p", "stop", "seed")

    def __init__(self, options: Any, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(options, tokenizer)
        if self.masked:  # each gap gets its most likely token, so that nothing else has a meaning
            self.fields = ("max_tokens",)

    @property
    def masked(self) -> bool:
        return bool(self.options.objective == "masked")

    def used_specials(self) -> set[int]:
        return {self.tokenizer.endoftext} | ({self.tokenizer.mask} if self.masked else set())

    # prepare ---------------------------------------------------------------------------------

    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        from bigmodel_cli.tasks.columns import text_column

        return {"text": text_column(found, wanted.get("text", ""), where)}

    def units(
        self, rows: Iterable[Rows], ledger: Ledger, shares: Mapping[str, float]
    ) -> Iterator[Units]:
        del shares
        from bigmodel_cli.tasks.clean import clean_text

        for batch in rows:
            units = clean_text(batch, ledger, self.options.min_chars)
            if units is not None:
                yield units

    def texts(self, units: pa.RecordBatch) -> Iterable[str]:
        return list(units.column("text").to_pylist())

    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        del ledger  # nothing is ever cut
        import numpy as np
        import pyarrow.compute as pc

        from bigmodel_cli.artifacts.shards import Columns
        from bigmodel_cli.tasks.clean import as_array, as_column, put_between

        tokenizer = self.tokenizer
        texts = units.column("text")
        ids, counts = tokenizer.encode_batch(texts)
        rows = as_array(units.column("row"))
        ends = as_array(units.column("ends")).astype(np.int64)
        follows = as_array(units.column("follows"))
        follows[1:] &= rows[1:] == rows[:-1] + 1
        follows[:1] = False  # what one call encodes is a whole; see ShardWriter.add
        start = (~follows).astype(np.int64)
        lengths = start + counts + ends
        stops = np.cumsum(lengths)
        tokens = np.full(int(lengths.sum()), tokenizer.endoftext, tokenizer.dtype)
        put_between(tokens, stops - lengths + start, ids, counts)
        sizes = as_array(pc.binary_length(texts))
        if tokenizer.byte_level:
            decoded = as_column(tokenizer.token_lengths).take(as_column(ids))
            self._lossy_bytes += int(sizes.sum()) - pc.sum(decoded, min_count=0).as_py()
        return Columns(
            len(texts),
            {"tokens": tokens, "start": start.astype(np.uint8), "bytes": sizes},
            {"tokens": lengths},
        )

    # train -----------------------------------------------------------------------------------

    def shape(self) -> Shape:
        return Shape(self.tokenizer.size, self.options.context, causal=not self.masked)

    def plan(self, split: Split, seed: int) -> PackedPlan:
        from bigmodel_cli.tasks.packing import PackedOrder, PackedPlan, Sequences

        sequences = Sequences.of(split)
        tokens = int(sequences.lengths.sum())
        if tokens < self.options.context and len(sequences):
            raise UsageError(
                f"--context is {self.options.context:,}, but the train split has only {tokens:,} "
                "tokens",
                "choose a shorter context, or prepare more data",
            )
        order = PackedOrder(sequences, self.options.context, seed)
        return PackedPlan(order, self.tokenizer if self.masked else None)

    def loss_sum(self, model: SequenceModel, batch: Batch) -> Tensor:
        return model.loss_sum(targets_BT=batch.targets, **batch.inputs)

    # evaluate --------------------------------------------------------------------------------

    @property
    def statistics(self) -> tuple[str, ...]:
        return ("nats", "tokens", "bytes", "correct")

    def sample(self, split: Split, units: NDArray[np.int64]) -> Split:
        """A part of a text whose part before it was not drawn begins as a document does, so that
        each of its tokens is scored."""
        import numpy as np

        from bigmodel_cli.artifacts.shards import Split

        columns = split.columns(units)
        start, tokens = columns["start"], columns["tokens"]
        assert isinstance(tokens, list)
        alone = (start == 0) & (np.diff(units, prepend=-2) != 1)
        for place in np.flatnonzero(alone).tolist():
            tokens[place] = np.insert(tokens[place], 0, self.tokenizer.endoftext)
        return Split.of({**columns, "start": np.where(alone, 1, start)}, len(units))

    def metrics(self) -> Sequence[Metric]:
        import math

        from bigmodel_cli.tasks.metrics import exponential, ratio

        loss = ratio("loss", 0, 1, higher_is_better=False)
        if self.masked:
            return (
                exponential("pseudo_perplexity", loss),
                loss,
                ratio("masked_accuracy", 3, 1, higher_is_better=True),
            )
        return (
            ratio(  # the one figure that models of different tokenizers share
                "bits_per_byte",
                0,
                2,
                higher_is_better=False,
                scale=1 / math.log(2),
                ignores=("tokenization", "window", "stride"),
            ),
            exponential("perplexity", loss),
            loss,
            ratio("next_token_accuracy", 3, 1, higher_is_better=True),
        )

    def scoring(self, split: Split, rows: int, limit: int | None = None) -> Iterator[Batch]:
        import numpy as np

        from bigmodel_cli.tasks.packing import IGNORED, Places, Sequences, Windows, make_batch

        context = self.options.context
        sequences = Sequences.of(split)
        windows = Windows.of(sequences, context, self._stride)
        order = np.arange(len(windows.sequence))[:limit]
        order = order[np.argsort(-windows.length[order], kind="stable")]
        places = Places(sequences, windows, (limit or 0) - 1)
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            longest = int(windows.length[chosen].max())
            inputs, segments = np.zeros((2, len(chosen), longest), np.int64)
            targets = np.full((len(chosen), longest), IGNORED, np.int64)
            units, sizes = np.zeros((2, len(chosen), longest), np.int64)
            for row, window in enumerate(chosen):
                sequence, n = int(windows.sequence[window]), int(windows.length[window])
                start, scored = int(windows.start[window]), int(windows.scored[window])
                tokens = sequences.tokens(sequence)
                inputs[row, :n] = tokens[start : start + n]
                targets[row, scored:n] = tokens[start + scored + 1 : start + n + 1]
                segments[row, n:] = 1
                units[row, :n], sizes[row, :n] = places.of(sequence, start + 1, n)
            if not self.masked:  # what is causal never sees the padding on its right
                yield make_batch(inputs, targets, np.zeros_like(segments), units=units, sizes=sizes)
                continue
            real = targets != IGNORED
            for number in range(PASSES):
                hidden = real & (np.arange(longest) % PASSES == number)
                if hidden.any():
                    yield make_batch(
                        np.where(hidden, self.tokenizer.mask, np.where(real, targets, 0)),
                        np.where(hidden, targets, IGNORED),
                        segments,
                        units=units,
                        sizes=sizes,
                    )

    @property
    def _stride(self) -> int:
        context = int(self.options.context)
        return context if self.masked else max(1, context // 2)

    def predict(self, model: SequenceModel, batch: Batch) -> Predictions:
        import numpy as np
        import torch.nn.functional as F

        from bigmodel_cli.tasks.packing import IGNORED

        scored = batch.targets.cpu().numpy() != IGNORED
        logits = model(**batch.inputs)[batch.targets != IGNORED].float()
        targets = batch.targets[batch.targets != IGNORED]
        nats = F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
        correct = (logits.argmax(-1) == targets).cpu().numpy()
        columns = [nats, np.ones(len(nats)), batch.extra["sizes"][scored], correct]
        return Predictions(batch.extra["units"][scored], np.stack(columns, 1).astype(np.float64))

    def protocol(self) -> dict[str, Any]:
        objective = {
            "objective": self.options.objective,
            "window": self.options.context,
            "tokenization": self.tokenizer.signature,
        }
        if self.masked:
            return {**objective, "tokens_left_out": f"every {PASSES}th", "stride": self._stride}
        return {**objective, "stride": self._stride, "bytes": "UTF-8 bytes of the cleaned text"}

    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        import numpy as np

        from bigmodel_cli.tasks.ngram import KneserNey, Unigram
        from bigmodel_cli.tasks.packing import BASELINE, Places, Sequences, generator

        known, scored = Sequences.of(train), Sequences.of(split)
        texts, room = [], BASELINE_TOKENS
        for index in generator(BASELINE, 0).permutation(len(known)):
            texts.append(known.tokens(int(index))[:room])
            room -= len(texts[-1])
            if not room:
                break
        places = Places(scored)
        kinds: list[tuple[str, Any]] = [("unigram", Unigram)]
        if not self.masked:  # sees the left side only: no match for a masked model's figures
            kinds.append(("kneser_ney_5", KneserNey))
        for name, kind in kinds:
            model = kind(texts, self.tokenizer.size)
            units, statistics = [], []
            for index in range(len(scored)):
                tokens = np.asarray(scored.tokens(index)).astype(np.int64)
                if len(tokens) < 2:
                    continue
                nats = -model.log_probabilities(tokens)
                correct = model.most_likely(tokens) == tokens[1:]
                unit, sizes = places.of(index, 1, len(tokens) - 1)
                units.append(unit)
                statistics.append(np.stack([nats, np.ones(len(nats)), sizes, correct], 1))
            yield name, Predictions(np.concatenate(units), np.concatenate(statistics))

    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        import re

        from bigmodel_cli.tasks.packing import SAMPLES, Sequences, generator
        from bigmodel_cli.tasks.words import WORDS

        sequences = Sequences.of(split)
        chosen = generator(SAMPLES, seed).permutation(len(sequences))[:count]
        half = max(1, min(32, self.options.context // 2))
        found = []
        for index in chosen:
            tokens = sequences.tokens(int(index))[1 : 1 + 2 * self.options.context].tolist()
            text = [t for t in tokens if t not in self.tokenizer.specials]
            cut = min(half, max(1, len(text) // 2))
            start, rest = self.tokenizer.decode(text[:cut]), self.tokenizer.decode(text[cut:])
            document: dict[str, Any] = {
                "prompt": start,
                "max_tokens": 96,
                "temperature": 0.8,
                "top_p": 0.95,
                "seed": seed,
            }
            if self.masked:
                shown = self.tokenizer.decode(text[: self.options.context // 2])
                words = [match.span() for match in re.finditer(WORDS, shown)] or [(0, len(shown))]
                first, last = words[len(words) // 2]
                start = f"{shown[:first]}<|mask|>{shown[last:]}"
                document = {"prompt": start}
            try:
                request = self.request(document)
                output = next(last["text"] for *_, last in self.answer(model, [request]) if last)
            except DataError as error:  # a masked text that does not come back from its tokens
                output = f"({error.message})"
            found.append({"prompt": start, "output": output, "reference": rest[:400]})
        return found

    def proof(self, split: Split, count: int) -> Proof:
        import torch

        texts = []
        for unit in range(min(count, len(split))):
            tokens = split.values("tokens", unit, unit + 1)[: self.options.context].tolist()
            texts.append(self.tokenizer.decode(tokens))
        ids = [[self.tokenizer.endoftext, *self.tokenizer.encode(text)] for text in texts]
        return Proof(
            [{"tokens_BT": torch.tensor([part[: self.options.context]])} for part in ids], texts
        )

    # predict ---------------------------------------------------------------------------------

    def request(self, document: Document) -> Request:
        from bigmodel_cli.tasks.requests import cleaned_field, generation, prompt_ids

        if self.masked:
            return generation(document, cleaned_field(document, "prompt"))
        return generation(document, prompt_ids(document, self.tokenizer, self.options.context))

    def echo(self, text: str) -> str:
        return "" if self.masked else text

    def answer(self, model: SequenceModel, requests: Sequence[Request]) -> Iterator[Piece]:
        from bigmodel_cli.tasks.requests import fill, write

        if self.masked:
            for index, request in enumerate(requests):
                text = fill(model, self.tokenizer, request.prompt)
                yield index, text, {"text": text, "finish_reason": "stop"}
            return
        prompts = [request.prompt for request in requests]
        for index, text, reason, whole in write(model, self.tokenizer, prompts, requests):
            last = {"text": whole, "finish_reason": reason} if reason else None
            yield index, text, last
