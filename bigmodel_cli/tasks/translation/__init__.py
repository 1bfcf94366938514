"""Translation: a source sentence → its target.

A unit is a pair. A row is `<|endoftext|> source <|endoftext|> target <|endoftext|>`, the form that
the tokenizer itself gives a pair; its first part, with the second `<|endoftext|>`, is the prefix,
which a transformer sees both ways; the rest is what is learned. Legend: B rows, T tokens,
V vocabulary, M targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bigmodel_cli.errors import DataError
from bigmodel_cli.models.sampling import Search
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
    Table,
    Units,
)
from bigmodel_cli.tasks.text import TextTask, TokenizerOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.artifacts.tokenizer import Tokenizer
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks.overlap import Overlap
    from bigmodel_cli.tasks.rows import ShuffledPlan

USUAL = {"source": ("source", "src"), "target": ("target", "tgt")}
BLEU_BYTES = 1 << 20  # of training pairs by whose targets it is chosen
SHORT = 10  # characters: a shorter text counts as so many, since short ones differ by chance
SEARCH = Search()  # how an evaluation writes
MORE = 16  # tokens that a translation may have beyond twice its source's
TOGETHER = 32  # sources translated at a time
BASELINE_PAIRS = 50_000  # of training, for the dictionary
LOSS = ("nats", "tokens", "cut")  # statistics of the rows; those of answers follow


@dataclass(frozen=True)
class TranslationOptions(TokenizerOptions):
    """Options of the task, by stage."""

    max_ratio: float = option(
        4.0,
        "Drop pairs of which one text has more than so many times the other's characters; each "
        "Chinese, Japanese or Korean one counts as three.",
        stage="prepare",
        minimum=1,
    )
    context: int = option(
        256,
        "Maximum tokens of a pair; half of them for the source.",
        stage="train",
        minimum=8,
        maximum=1 << 20,
        panel="Model",
    )


class Translation(TextTask):
    name = "translation"
    Options = TranslationOptions
    unit_name = "pairs"
    aligned = True
    defaults: ClassVar[Mapping[str, Any]] = {"dropout": 0.2}
    field = "source"
    intended_use = (
        "sentences of the kind and in the languages that it learned from. A translation may be "
        "fluent and wrong; have somebody check what matters."
    )
    fields = ("beam", "length_penalty")

    def __init__(self, options: Any, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(options, tokenizer)
        self.bleu_tokenizer = "13a"  # of sacrebleu's, by the script of the targets

    # prepare ---------------------------------------------------------------------------------

    @classmethod
    def claims(cls, columns: Mapping[str, str]) -> bool:
        from bigmodel_cli.tasks.columns import usual
        from bigmodel_cli.tasks.languages import languages_in

        return all(usual(columns, names) for names in USUAL.values()) or (
            len(languages_in(columns)) > 1
        )

    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        """Source and target: those that are wanted, or usual names, or two languages, of which
        the first is the source."""
        from bigmodel_cli.tasks.columns import listed, named_column, usual
        from bigmodel_cli.tasks.languages import languages_in

        chosen = {
            name: named_column(found, name, wanted[name], (), where)
            for name in USUAL
            if name in wanted
        }
        lines = [name for name, kind in found.items() if kind == "lines"]
        rest = [n for n in languages_in(found) or lines if n not in chosen.values()]
        missing = [name for name in USUAL if name not in chosen]
        usually = {name: usual(found, USUAL[name]) for name in missing}
        if all(usually.values()):
            chosen |= usually
        elif len(rest) == len(missing):
            chosen |= dict(zip(missing, rest, strict=True))
        elif len(rest) > len(missing):
            raise DataError(
                f"{where} has {len(rest)} languages: {listed(dict.fromkeys(rest, ''))}",
                f"choose two of them: --column source={rest[0]} --column target={rest[1]}",
            )
        else:
            for name in missing:
                chosen[name] = named_column(found, name, None, USUAL[name], where)
        if chosen["source"] == chosen["target"]:
            raise DataError(
                f"{where}: `{chosen['source']}` cannot be both source and target",
                "say which is which: --column source=NAME --column target=NAME",
            )
        return {name: chosen[name] for name in USUAL}

    def units(
        self, rows: Iterable[Rows], ledger: Ledger, shares: Mapping[str, float]
    ) -> Iterator[Units]:
        """A pair counts as known when both of its texts are; the source alone decides the split, so
        that no other translation of it is learned from."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        from bigmodel_cli.tasks.clean import Cleaning, as_array, trimmed
        from bigmodel_cli.tasks.scripts import DENSE, lengths

        del shares
        for batch in rows:
            cleaning = Cleaning(batch, ledger, [*USUAL])
            cleaning.replace("outer_space", [trimmed(text) for text in cleaning.texts])
            source, target = cleaning.texts
            cleaning.drop("copied", as_array(pc.equal(source, target)))
            sizes = [lengths(text, DENSE) for text in (source, target)]
            long, short = np.maximum(*sizes), np.maximum(np.minimum(*sizes), SHORT)
            cleaning.drop("length_mismatch", long > self.options.max_ratio * short)
            between = pa.scalar("\x00", pa.large_string())
            keys = pc.binary_join_element_wise(source, target, between)
            units = cleaning.units(keys, source)
            if units is not None:
                yield units

    def texts(self, units: pa.RecordBatch) -> Iterable[str]:
        return (text for name in USUAL for text in units.column(name).to_pylist())

    def fit(
        self,
        sample: Callable[[int], Iterator[pa.RecordBatch]],
        size: int,
        wait: Callable[[Callable[[], None]], None],
    ) -> str:
        from bigmodel_cli.tasks.scripts import bleu_tokenizer

        what = super().fit(sample, size, wait)
        parts = (part.column("target").to_pylist() for part in sample(BLEU_BYTES))
        self.bleu_tokenizer = bleu_tokenizer(text for part in parts for text in part)
        return f"{what}; BLEU by sacrebleu's tokenizer `{self.bleu_tokenizer}`"

    def save(self, folder: Path) -> None:
        from bigmodel_cli.tasks.overlap import save_tokenizer

        super().save(folder)
        save_tokenizer(folder, self.bleu_tokenizer)

    @classmethod
    def load(cls, folder: Path, options: Any) -> Self:
        from bigmodel_cli.tasks.overlap import read_tokenizer

        task = super().load(folder, options)
        task.bleu_tokenizer = read_tokenizer(folder)
        return task

    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        del ledger  # what training cuts is counted by evaluations
        import numpy as np
        import pyarrow.compute as pc

        from bigmodel_cli.artifacts.shards import Columns
        from bigmodel_cli.tasks.clean import as_array, put_between

        texts = [units.column(name) for name in USUAL]
        (sources, before), (targets, after) = map(self.tokenizer.encode_batch, texts)
        lengths = before + after + 3
        begins = np.cumsum(lengths) - lengths
        tokens = np.full(int(lengths.sum()), self.tokenizer.endoftext, self.tokenizer.dtype)
        put_between(tokens, begins + 1, sources, before)
        put_between(tokens, begins + before + 2, targets, after)
        values = {"tokens": tokens, "prefix": (before + 2).astype(np.uint32)}
        sizes = {"tokens": lengths}
        for name, text in zip(USUAL, texts, strict=True):  # as they are, whatever the tokenizer
            values[name] = np.frombuffer("".join(text.to_pylist()).encode(), np.uint8)
            sizes[name] = as_array(pc.binary_length(text))
        return Columns(len(units), values, sizes)

    # train -----------------------------------------------------------------------------------

    def shape(self) -> Shape:
        return Shape(self.tokenizer.size, self.options.context, causal=True, prefix=True)

    def _cut(self, split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The inputs of each pair (n,), and how many of them are its prefix: of a long pair the
        source's first half context, and then what fits of the target."""
        import numpy as np

        context = self.options.context
        whole, prefix = split.lengths("tokens") - 1, split.column("prefix").astype(np.int64)
        cut = np.minimum(prefix, context // 2 + 1)
        return np.minimum(whole - prefix + cut, context), cut

    def _rows(self, split: Split) -> Callable[[NDArray[np.int64]], Batch]:
        import numpy as np
        import torch

        from bigmodel_cli.tasks.packing import IGNORED
        from bigmodel_cli.tasks.rows import padded

        lengths, cuts = self._cut(split)
        prefixes, whole = split.column("prefix").astype(np.int64), split.lengths("tokens") - 1

        def batch(examples: NDArray[np.int64]) -> Batch:
            inputs, targets = [], []
            for unit in examples.tolist():
                tokens = split.values("tokens", unit, unit + 1).astype(np.int64)
                length, cut = lengths[unit], cuts[unit]
                rest = tokens[prefixes[unit] : prefixes[unit] + length - cut + 1]
                row = np.concatenate([tokens[: cut - 1], tokens[:1], rest])  # [:1]: <|endoftext|>
                inputs.append(row[:length])
                targets.append(np.where(np.arange(length) < cut - 1, IGNORED, row[1:]))
            wanted = padded(targets, IGNORED)[0]
            # padding needs no segments: it is on the right, where what is causal never looks
            named = {
                "tokens_BT": torch.from_numpy(padded(inputs)[0]),
                "prefix_B": torch.from_numpy(cuts[examples]),
            }
            terms = int((wanted != IGNORED).sum())
            short = lengths[examples] < whole[examples]
            return Batch(named, torch.from_numpy(wanted), terms, {"units": examples, "cut": short})

        return batch

    def plan(self, split: Split, seed: int) -> ShuffledPlan:
        from bigmodel_cli.tasks.rows import ShuffledPlan

        rows = self._rows(split)
        return ShuffledPlan(self._cut(split)[0], seed, lambda examples, _: rows(examples))

    def loss_sum(self, model: SequenceModel, batch: Batch) -> Tensor:
        return model.loss_sum(targets_BT=batch.targets, **batch.inputs)

    def validation_rows(self) -> int:
        return 1024

    # evaluate --------------------------------------------------------------------------------

    @property
    def _overlaps(self) -> tuple[Overlap, Overlap]:
        from bigmodel_cli.tasks.overlap import bleu, chrf

        first = bleu(len(LOSS), self.bleu_tokenizer)
        return first, chrf(first.first + first.size)

    @property
    def statistics(self) -> tuple[str, ...]:
        return (*LOSS, *(f"{o.name}:{i}" for o in self._overlaps for i in range(o.size)))

    def metrics(self) -> Sequence[Metric]:
        from bigmodel_cli.tasks.metrics import exponential, ratio

        loss = ratio("loss", 0, 1, higher_is_better=False)
        return exponential("perplexity", loss), loss

    def answer_metrics(self) -> Sequence[Metric]:
        return [overlap.metric() for overlap in self._overlaps]

    def scoring(self, split: Split, rows: int, limit: int | None = None) -> Iterator[Batch]:
        from bigmodel_cli.tasks.rows import by_length

        batch = self._rows(split)
        for examples in by_length(self._cut(split)[0], rows, limit):
            yield batch(examples)

    def predict(self, model: SequenceModel, batch: Batch) -> Predictions:
        import numpy as np
        import torch.nn.functional as F

        from bigmodel_cli.tasks.packing import IGNORED

        scored = batch.targets != IGNORED
        logits_MV = model.logits(model.features(**batch.inputs)[scored]).float()
        nats = F.cross_entropy(logits_MV, batch.targets[scored], reduction="none").double()
        rows = scored.nonzero()[:, 0].cpu().numpy()
        statistics = np.zeros((len(scored), len(self.statistics)))
        statistics[:, 0] = np.bincount(rows, nats.cpu().numpy(), len(scored))
        statistics[:, 1] = np.bincount(rows, minlength=len(scored))
        statistics[:, 2] = batch.extra["cut"]
        return Predictions(batch.extra["units"], statistics)

    def _text(self, split: Split, name: str, unit: int) -> str:
        return split.values(name, unit, unit + 1).tobytes().decode()

    def contents(self, split: Split) -> Iterator[bytes]:
        for unit in range(len(split)):
            yield b"\0".join(split.values(name, unit, unit + 1).tobytes() for name in USUAL)

    def judge(self, split: Split, units: NDArray[np.int64], answers: Sequence[str]) -> Predictions:
        """The statistics of some units' translations."""
        import numpy as np

        references = [self._text(split, "target", unit) for unit in units.tolist()]
        statistics = np.zeros((len(units), len(self.statistics)))
        for overlap in self._overlaps:
            part = slice(overlap.first, overlap.first + overlap.size)
            statistics[:, part] = overlap.counts(answers, references)
        return Predictions(units, statistics)

    def answers(self, model: SequenceModel, split: Split) -> Iterator[Predictions]:
        from bigmodel_cli.tasks.rows import by_length

        half = self.options.context // 2
        for units in by_length(self._cut(split)[1], TOGETHER, None):
            ids = [
                split.values("tokens", unit, unit + 1)[1 : int(prefix) - 1][:half].tolist()
                for unit, prefix in zip(units.tolist(), split.column("prefix")[units])
            ]
            yield self.judge(split, units, self.translate(model, ids, SEARCH))

    def tables(
        self, sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
    ) -> list[Table]:
        del counts
        if not sums[2]:
            return []
        seen = f"cut to the {self.options.context:,} tokens that the model sees"
        return [Table("Long pairs", ["what was done", "pairs"], [[seen, f"{sums[2]:,.0f}"]])]

    def protocol(self) -> dict[str, Any]:
        return {
            "window": self.options.context,
            "tokenization": self.tokenizer.signature,
            "beam": SEARCH.beam,
            "length_penalty": SEARCH.penalty,
            **{overlap.name: overlap.signature for overlap in self._overlaps},
        }

    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        import numpy as np

        from bigmodel_cli.tasks.packing import BASELINE, generator
        from bigmodel_cli.tasks.translation.dictionary import Dictionary

        units = np.arange(len(split))
        sources = [self._text(split, "source", unit) for unit in range(len(split))]
        yield "copy", self.judge(split, units, sources)
        chosen = generator(BASELINE, 0).permutation(len(train))[:BASELINE_PAIRS].tolist()
        words = Dictionary(
            (self._text(train, "source", unit), self._text(train, "target", unit))
            for unit in chosen
        )
        yield "dictionary", self.judge(split, units, [words.translate(text) for text in sources])

    def _held_out(self, split: Split, units: Iterable[int]) -> list[tuple[int, Request]]:
        """Sources of these units as requests, where they are not too long for the model."""
        found = []
        for unit in units:
            tokens = int(split.column("prefix")[unit]) - 2
            if tokens <= self.options.context // 2:
                found.append((unit, Request(self._text(split, "source", unit), search=SEARCH)))
        return found

    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        from bigmodel_cli.tasks.packing import SAMPLES, generator

        chosen = generator(SAMPLES, seed).permutation(len(split))[:count].tolist()
        found = []
        for unit, request in self._held_out(split, chosen):
            answer = next(last for *_, last in self.answer(model, [request]) if last)
            found.append(
                {
                    "prompt": f"{request.prompt}\n",
                    "output": answer["target"],
                    "reference": self._text(split, "target", unit),
                }
            )
        return found

    def proof(self, split: Split, count: int) -> Proof:
        import numpy as np

        units = range(min(count, len(split)))
        batch = self._rows(split)
        inputs = [batch(np.array([unit])).inputs for unit in units]
        return Proof(inputs, requests=[request for _, request in self._held_out(split, units)])

    # predict ---------------------------------------------------------------------------------

    def request(self, document: Document) -> Request:
        from bigmodel_cli.tasks.requests import cleaned_field, number_field

        text = cleaned_field(document, "source", trim=True)
        count, most = len(self.tokenizer.encode(text)), self.options.context // 2
        if count > most:
            raise DataError(
                f"`source` has {count:,} tokens, but the model reads at most {most:,}",
                "translate sentence by sentence, or train with a longer --context",
            )
        beam = int(number_field(document, "beam", SEARCH.beam, 1, 64, whole=True))
        power = number_field(document, "length_penalty", SEARCH.penalty, 0, 10)
        return Request(text, search=Search(beam, power))

    def translate(
        self, model: SequenceModel, sources: Sequence[Sequence[int]], how: Search
    ) -> list[str]:
        """The translations of some sources of at most half a context of tokens each."""
        from bigmodel_cli.models.beam import search

        end = self.tokenizer.endoftext
        most = [min(2 * len(ids) + MORE, self.options.context - len(ids) - 1) for ids in sources]
        prompts = [[end, *ids, end] for ids in sources]
        banned = [token for token in self.tokenizer.specials if token != end]
        found = search(model, prompts, most, how, end, banned)
        return [self.tokenizer.decode(each.tokens) for each in found]

    def answer(self, model: SequenceModel, requests: Sequence[Request]) -> Iterator[Piece]:
        alike: dict[Search, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(request.search or SEARCH, []).append(index)
        for how, places in alike.items():
            for first in range(0, len(places), TOGETHER):
                part = places[first : first + TOGETHER]
                sources = [self.tokenizer.encode(requests[index].prompt) for index in part]
                for index, text in zip(part, self.translate(model, sources, how), strict=True):
                    yield index, text, {"target": text}
