"""Chat: a dialogue → the assistant's next turn.

A unit is a dialogue. Only the assistant's turns are learned, each with the token that ends it.
Dialogues share rows without seeing each other, and none is cut: those that are too long for a row
lose their oldest turns, counted in the ledger. Legend: B rows, T tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bigmodel_cli.errors import DataError
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
from bigmodel_cli.tasks.chat.template import CHATML, END, START, has_loss
from bigmodel_cli.tasks.text import TextTask, TokenizerOptions

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks.chat.template import Message
    from bigmodel_cli.tasks.overlap import Overlap
    from bigmodel_cli.tasks.packing import WholePlan

TEMPLATE = "ChatML with tools"
MOST_TOKENS = 256  # of a reply that is judged
SAMPLE_TOKENS = 128  # of one that is shown
TOGETHER = 16  # replies written at a time, to be judged


@dataclass(frozen=True)
class ChatOptions(TokenizerOptions):
    """Options of the chat task, by stage."""

    context: int = option(
        1024,
        "Maximum tokens of a dialogue; longer ones lose their oldest turns.",
        stage="prepare",
        minimum=64,
        maximum=1 << 20,
    )


class Chat(TextTask):
    name = "chat"
    Options = ChatOptions
    unit_name = "dialogues"
    kinds: ClassVar[Mapping[str, str]] = dict.fromkeys(("messages", "history", "tools"), "json")
    field = "messages"
    intended_use = (
        "conversations of the kind that it learned from. Its replies may repeat what its training "
        "data say, true or not, and parts of them word for word. It was not tuned to be safe."
    )
    fields = ("system", "tools", "max_tokens", "temperature", "top_k", "top_p", "stop", "seed")
    chat_template = CHATML

    def _special(self, text: str) -> int:
        return {name: token for token, name in self.tokenizer.specials.items()}[text]  # type: ignore[no-any-return]

    @property
    def ends(self) -> list[int]:
        return [self._special(END), self.tokenizer.endoftext]

    def used_specials(self) -> set[int]:
        return {self.tokenizer.endoftext, self._special(START), self._special(END)}

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "template": TEMPLATE}

    # prepare ---------------------------------------------------------------------------------

    @classmethod
    def claims(cls, columns: Mapping[str, str]) -> bool:
        from bigmodel_cli.tasks import dialogues

        return dialogues.complete(dialogues.columns(columns, {}))

    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        from bigmodel_cli.tasks import dialogues

        for name, column in wanted.items():
            if column not in found:
                shown = ", ".join(f"`{c}`" for c in found)
                raise DataError(
                    f"{where} has no column `{column}`", f"it has {shown}; see --column {name}=NAME"
                )
        chosen = dialogues.columns(found, wanted)
        if not dialogues.complete(chosen):
            shown = ", ".join(f"`{c}`" for c in found) or "none"
            raise DataError(
                f"{where} has no column of messages, nor of prompts with their replies",
                "say --column messages=NAME, or --column prompt=NAME --column response=NAME; "
                f"it has {shown}",
            )
        return chosen

    def units(
        self, rows: Iterable[Rows], ledger: Ledger, shares: Mapping[str, float]
    ) -> Iterator[Units]:
        from bigmodel_cli.tasks import dialogues

        del shares
        for batch in rows:
            units = dialogues.units(batch, ledger)
            if units is not None:
                yield units

    def texts(self, units: pa.RecordBatch) -> Iterable[str]:
        return (m["content"] for found in self._messages(units) for m in found)

    @staticmethod
    def _messages(units: pa.RecordBatch) -> list[list[Message]]:
        return [json.loads(text) for text in units.column("messages").to_pylist()]

    def _encode(
        self, found: Sequence[Sequence[Message]], prompt: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        from bigmodel_cli.tasks.chat import template as chat_template

        return list(chat_template.encode(found, self.chat_template, self.tokenizer, prompt))

    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        import numpy as np

        from bigmodel_cli.artifacts.shards import Columns
        from bigmodel_cli.tasks import dialogues
        from bigmodel_cli.tasks.chat import turns

        found = self._messages(units)
        encoded = self._encode(found)
        most = self.options.context + 1  # of which the last is only predicted
        for place, (tokens, _) in enumerate(encoded):
            if len(tokens) <= most:
                continue
            before, count = dialogues.size(found[place]), len(tokens)
            found[place] = turns.shorten(found[place], self._encode, self.tokenizer, most)
            cut = before - dialogues.size(found[place])
            if cut:
                ledger.cut("truncated", cut, f"a dialogue of {count:,} tokens")
            (encoded[place],) = self._encode([found[place]])
        lengths = np.array([len(tokens) for tokens, _ in encoded], np.int64)
        whole = [token for tokens, _ in encoded for token in tokens]
        marked = [owner >= 0 for _, owners in encoded for owner in owners]
        replies = [
            sum(len(m["content"].encode()) for m in dialogue if has_loss(m)) for dialogue in found
        ]
        return Columns(
            len(found),
            {
                "tokens": np.array(whole, self.tokenizer.dtype),
                "learned": np.array(marked, np.uint8),
                "bytes": np.array(replies, np.int64),
            },
            {"tokens": lengths, "learned": lengths},
        )

    # train -----------------------------------------------------------------------------------

    def shape(self) -> Shape:
        return Shape(self.tokenizer.size, self.options.context, causal=True)

    def plan(self, split: Split, seed: int) -> WholePlan:
        from bigmodel_cli.tasks.packing import WholePlan

        return WholePlan(
            split.lengths("tokens") - 1, self.options.context, seed, lambda i: self._pairs(split, i)
        )

    @staticmethod
    def _pairs(split: Split, unit: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Inputs and targets (T,) of one dialogue."""
        import numpy as np

        from bigmodel_cli.tasks.packing import IGNORED

        tokens = split.values("tokens", unit, unit + 1).astype(np.int64)
        learned = split.values("learned", unit, unit + 1)[1:].astype(bool)
        return tokens[:-1], np.where(learned, tokens[1:], IGNORED)

    def loss_sum(self, model: SequenceModel, batch: Batch) -> Tensor:
        return model.loss_sum(targets_BT=batch.targets, **batch.inputs)

    # evaluate --------------------------------------------------------------------------------

    @functools.cached_property
    def _chrf(self) -> Overlap:
        from bigmodel_cli.tasks.overlap import chrf

        return chrf(4)

    @property
    def statistics(self) -> tuple[str, ...]:
        return (
            "nats",
            "tokens",
            "bytes",
            "correct",
            *(f"chrf {place}" for place in range(self._chrf.size)),
        )

    def metrics(self) -> Sequence[Metric]:
        import math

        from bigmodel_cli.tasks.metrics import exponential, ratio

        loss = ratio("loss", 0, 1, higher_is_better=False)
        return (
            ratio(
                "bits_per_byte",
                0,
                2,
                higher_is_better=False,
                scale=1 / math.log(2),
                ignores=("tokenization", "window"),
            ),
            exponential("perplexity", loss),
            loss,
            ratio("next_token_accuracy", 3, 1, higher_is_better=True),
        )

    def answer_metrics(self) -> Sequence[Metric]:
        return [self._chrf.metric()]

    def scoring(self, split: Split, rows: int, limit: int | None = None) -> Iterator[Batch]:
        import numpy as np

        from bigmodel_cli.tasks.packing import IGNORED, make_batch
        from bigmodel_cli.tasks.rows import by_length, padded

        for units in by_length(split.lengths("tokens"), rows, limit):
            pairs = [self._pairs(split, unit) for unit in units.tolist()]
            inputs, _ = padded([inputs for inputs, _ in pairs])
            targets, _ = padded([targets for _, targets in pairs], IGNORED)
            # what is causal never sees the padding on its right
            yield make_batch(
                inputs,
                targets,
                np.zeros_like(inputs),
                units=units,
                sizes=split.column("bytes")[units],
            )

    def predict(self, model: SequenceModel, batch: Batch) -> Predictions:
        import numpy as np
        import torch.nn.functional as F

        from bigmodel_cli.tasks.packing import IGNORED

        learned = batch.targets != IGNORED
        logits = model(**batch.inputs)[learned].float()
        targets = batch.targets[learned]
        nats = F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
        correct = (logits.argmax(-1) == targets).cpu().numpy()
        rows = learned.nonzero()[:, 0].cpu().numpy()
        count = len(batch.targets)
        columns = [np.bincount(rows, values, count) for values in (nats, np.ones(len(nats)))]
        columns += [batch.extra["sizes"], np.bincount(rows, correct, count)]
        statistics = np.zeros((count, len(self.statistics)))
        statistics[:, :4] = np.stack(columns, 1)
        return Predictions(batch.extra["units"], statistics)

    def _questions(self, split: Split) -> list[tuple[int, int]]:
        """The assistant's turns that are learned, those with least before them first: the unit,
        and the message's place in it."""
        found: list[tuple[int, int, int]] = []
        for unit in range(len(split)):
            messages, parts = self._dialogue(split, unit)
            before = [0, *itertools.accumulate(len(part) for part in parts)]
            found += [(before[i], unit, i) for i, m in enumerate(messages) if i and has_loss(m)]
        return [(unit, place) for _, unit, place in sorted(found)]

    def judge(
        self, units: NDArray[np.int64], replies: Sequence[str], references: Sequence[str]
    ) -> Predictions:
        """The statistics of replies as such."""
        import numpy as np

        statistics = np.zeros((len(units), len(self.statistics)))
        if len(units):
            statistics[:, 4:] = self._chrf.counts(replies, references)
        return Predictions(units, statistics)

    def answers(self, model: SequenceModel, split: Split) -> Iterator[Predictions]:
        import numpy as np

        questions = self._questions(split)
        for first in range(0, len(questions), TOGETHER):
            part = questions[first : first + TOGETHER]
            requests, references = [], []
            for unit, place in part:
                found, parts = self._dialogue(split, unit)
                requests.append(self._fitted(Request(None, MOST_TOKENS), found[:place], parts))
                references.append(found[place]["content"])
            replies = [""] * len(part)
            for index, text, _ in self.answer(model, requests):
                replies[index] += text
            judged = self.judge(np.array([unit for unit, _ in part]), replies, references)
            cut = sum(request.prompt[1] > 0 for request in requests)
            yield dataclasses.replace(judged, counts={"questions": np.array([len(part), cut])})

    def tables(
        self, sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
    ) -> list[Table]:
        del sums
        names, found = ("answered", "of which cut to fit"), counts.get("questions", ())
        rows: list[list[str | float]] = [[n, f"{c:,}"] for n, c in zip(names, found, strict=False)]
        return [Table("Replies", ["turns", "count"], rows)] if rows else []

    def protocol(self) -> dict[str, Any]:
        from bigmodel_cli.tasks.chat.turns import room

        return {
            "window": self.options.context,
            "tokenization": self.tokenizer.signature,
            "scored": "the assistant's turns, each with its end",
            "template": TEMPLATE,
            "replies": "greedy, for each of the assistant's turns after what was said before it, "
            f"at most {MOST_TOKENS} tokens; what is before it loses its oldest turns beyond "
            f"{room(self.options.context, MOST_TOKENS)} tokens",
            self._chrf.name: self._chrf.signature,
            "bytes": "UTF-8 bytes of the replies",
        }

    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        import numpy as np

        from bigmodel_cli.tasks.chat import replies
        from bigmodel_cli.tasks.packing import BASELINE, generator

        statistics = np.zeros((len(split), len(self.statistics)))
        known = (self._unit(train, unit) for unit in range(len(train)))
        scored = (self._unit(split, unit) for unit in range(len(split)))
        statistics[:, [0, 1, 3]] = replies.unigram(known, scored, self.tokenizer.size)
        statistics[:, 2] = split.column("bytes")
        yield "unigram", Predictions(np.arange(len(split)), statistics)
        chosen = generator(BASELINE, 0).permutation(len(train))[: replies.MOST].tolist()
        before = replies.exchanges([self._dialogue(train, unit)[0] for unit in chosen])
        found = [
            (unit, *exchange)
            for unit in range(len(split))
            for exchange in replies.exchanges([self._dialogue(split, unit)[0]])
        ]
        units = np.array([unit for unit, *_ in found], np.int64)
        questions, references = (
            [question for _, question, _ in found],
            [reply for *_, reply in found],
        )
        common = [replies.most_common(before)] * len(found)
        yield "most_common_reply", self.judge(units, common, references)
        near = list(replies.nearest(before, questions))
        yield "nearest_prompt", self.judge(units, near, references)

    @staticmethod
    def _unit(split: Split, unit: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return split.values("tokens", unit, unit + 1), split.values("learned", unit, unit + 1)

    def _dialogue(self, split: Split, unit: int) -> tuple[list[Message], list[list[int]]]:
        """A unit's messages, and the tokens of each."""
        from bigmodel_cli.tasks.chat.template import decoded

        tokens, marked = (values.tolist() for values in self._unit(split, unit))
        return decoded(tokens, marked, self.tokenizer, self._special(START), self._special(END))

    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        from bigmodel_cli.tasks.packing import SAMPLES, generator

        shown = []
        for unit in generator(SAMPLES, seed).permutation(len(split))[:count].tolist():
            found, parts = self._dialogue(split, unit)
            place = max((i for i, m in enumerate(found) if i and has_loss(m)), default=0)
            if not place:
                continue
            request = self._fitted(Request(None, SAMPLE_TOKENS), found[:place], parts)
            output = "".join(text for _, text, _ in self.answer(model, [request]))
            before = "\n".join(f"{m['role']}: {m['content']}" for m in found[:place])[-2000:]
            shown.append(
                {
                    "prompt": before + "\n",
                    "output": output,
                    "reference": found[place]["content"][:999],
                }
            )
        return shown

    def proof(self, split: Split, count: int) -> Proof:
        import torch

        found = [self._dialogue(split, unit)[0] for unit in range(min(count, len(split)))]
        tokens = [tokens[: self.options.context] for tokens, _ in self._encode(found)]
        return Proof([{"tokens_BT": torch.tensor([part])} for part in tokens], list(found))

    # predict ---------------------------------------------------------------------------------

    def request(self, document: Document) -> Request:
        from bigmodel_cli.tasks.dialogues import requested
        from bigmodel_cli.tasks.requests import generation

        found = requested(document)
        parts = [tokens[1:] for tokens, _ in self._encode([[message] for message in found])]
        return self._fitted(generation(document, None), found, parts)

    def _fitted(
        self, request: Request, found: Sequence[Message], parts: Sequence[list[int]]
    ) -> Request:
        """A request whose prompt is (tokens, messages left out); its answer ends where the context
        does. Raises DataError where even the last message is too long."""
        from bigmodel_cli.tasks.chat.turns import fitted

        context = self.options.context
        ((header, _),) = self._encode([[]], prompt=True)
        prompt = fitted(found, parts, header, context, request.max_tokens)
        most = min(request.max_tokens, context + 1 - len(prompt[0]))
        return dataclasses.replace(request, prompt=prompt, max_tokens=most)

    def answer(self, model: SequenceModel, requests: Sequence[Request]) -> Iterator[Piece]:
        from bigmodel_cli.tasks.chat.template import calls_in
        from bigmodel_cli.tasks.requests import write

        prompts = [request.prompt[0] for request in requests]
        written = write(model, self.tokenizer, prompts, requests, self.ends)
        for index, text, reason, whole in written:
            if not reason:
                yield index, text, None
                continue
            said, calls = calls_in(whole)
            message: Message = {"role": "assistant", "content": whole}
            if calls:
                message |= {"content": said or None, "tool_calls": calls}
            last = {"message": message, "finish_reason": reason}
            if cut := requests[index].prompt[1]:
                last["truncated"] = cut
            yield index, text, last
