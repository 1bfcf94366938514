"""Chat: a dialogue → the assistant's next turn.

A unit is a dialogue. Only the assistant's turns are learned, each with the token that ends it.
Dialogues share rows without seeing each other, and none is cut: those that are too long for a row
lose their oldest turns, counted in the ledger. Legend: B rows, T tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bigmodel_cli.errors import DataError
from bigmodel_cli.models.sizes import Shape
from bigmodel_cli.options import option
from bigmodel_cli.tasks import Batch, Metric, Predictions, Proof, Request, Rows, Table, Units
from bigmodel_cli.tasks.dialogues import CHATML, decoded, latest, requested
from bigmodel_cli.tasks.text import TextTask, TokenizerOptions

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks.dialogues import Message
    from bigmodel_cli.tasks.overlap import Overlap
    from bigmodel_cli.tasks.packing import WholePlan

START, END = "<|im_start|>", "<|im_end|>"
MOST_TOKENS = 256  # of a reply that is judged
TOGETHER = 16  # replies written at a time, to be judged


@dataclass(frozen=True)
class ChatOptions(TokenizerOptions):
    """Options of the chat task, by stage."""

    context: int = option(
        1024, "Most tokens of a dialogue; longer ones lose their oldest turns.", stage="prepare",
        minimum=64, maximum=1 << 20,
    )  # fmt: skip


class Chat(TextTask):
    name = "chat"
    Options = ChatOptions
    unit_name = "dialogues"
    kinds: ClassVar[Mapping[str, str]] = {"messages": "json"}
    field = "messages"
    fields = ("max_tokens", "temperature", "top_k", "top_p", "stop", "seed")
    chat_template = CHATML

    def _special(self, text: str) -> int:
        return {name: token for token, name in self.tokenizer.specials.items()}[text]  # type: ignore[no-any-return]

    @property
    def ends(self) -> list[int]:
        return [self._special(END), self.tokenizer.endoftext]

    def used_specials(self) -> set[int]:
        return {self.tokenizer.endoftext, self._special(START), self._special(END)}

    # prepare ---------------------------------------------------------------------------------

    @classmethod
    def claims(cls, columns: Mapping[str, str]) -> bool:
        from bigmodel_cli.tasks import dialogues

        return bool(dialogues.columns(columns))

    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        from bigmodel_cli.tasks import dialogues

        for name, column in wanted.items():
            if column not in found:
                shown = ", ".join(f"`{c}`" for c in found)
                raise DataError(f"{where} has no column `{column}`", f"it has {shown}; see "
                                f"--column {name}=NAME")  # fmt: skip
        if {"messages"} <= {*wanted} or {"prompt", "response"} <= {*wanted}:
            return dict(wanted)
        chosen = dialogues.columns(found)
        if not chosen:
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

    def _encode(self, found: Sequence[Sequence[Message]], prompt: bool = False
                ) -> list[tuple[list[int], list[int]]]:  # fmt: skip
        from bigmodel_cli.tasks import dialogues

        return list(dialogues.encode(found, self.chat_template, self.tokenizer, END, prompt=prompt))

    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        import numpy as np

        from bigmodel_cli.artifacts.shards import Columns
        from bigmodel_cli.tasks import dialogues

        found = self._messages(units)
        encoded = self._encode(found)
        most = self.options.context + 1  # of which the last is only told
        for place, (tokens, _) in enumerate(encoded):
            if len(tokens) <= most:
                continue
            before, count = dialogues.size(found[place]), len(tokens)
            found[place] = dialogues.shorten(found[place], self._encode, self.tokenizer, most)
            cut = before - dialogues.size(found[place])
            if cut:
                ledger.cut("truncated", cut, f"a dialogue of {count:,} tokens")
            (encoded[place],) = self._encode([found[place]])
        lengths = np.array([len(tokens) for tokens, _ in encoded], np.int64)
        whole = [token for tokens, _ in encoded for token in tokens]
        learned = [owner >= 0 for _, owners in encoded for owner in owners]
        replies = [
            sum(len(m["content"].encode()) for m in dialogue if m["role"] == "assistant")
            for dialogue in found
        ]
        return Columns(
            len(found),
            {"tokens": np.array(whole, self.tokenizer.dtype),
             "learned": np.array(learned, np.uint8), "bytes": np.array(replies, np.int64)},
            {"tokens": lengths, "learned": lengths},
        )  # fmt: skip

    # train -----------------------------------------------------------------------------------

    def shape(self) -> Shape:
        return Shape(self.tokenizer.size, self.options.context, causal=True)

    def plan(self, split: Split, seed: int) -> WholePlan:
        from bigmodel_cli.tasks.packing import WholePlan

        return WholePlan(split.lengths("tokens") - 1, self.options.context, seed,
                         lambda i: self._pairs(split, i))  # fmt: skip

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
        return ("nats", "tokens", "bytes", "correct",
                *(f"chrf {place}" for place in range(self._chrf.size)))  # fmt: skip

    def metrics(self) -> Sequence[Metric]:
        import math

        from bigmodel_cli.tasks.metrics import exponential, ratio

        loss = ratio("loss", 0, 1, higher_is_better=False)
        return (
            ratio("bits_per_byte", 0, 2, higher_is_better=False, scale=1 / math.log(2),
                  ignores=("tokenization", "window")),
            exponential("perplexity", loss),
            loss,
            ratio("next_token_accuracy", 3, 1, higher_is_better=True),
        )  # fmt: skip

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
            yield make_batch(inputs, targets, np.zeros_like(inputs), units=units,
                             sizes=split.column("bytes")[units])  # fmt: skip

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

    def _asked(self, split: Split) -> tuple[NDArray[np.int64], list[list[Message]], list[str]]:
        """The units that end with a reply, what precedes it, and the reply."""
        import numpy as np

        found = [(unit, self._dialogue(split, unit)) for unit in range(len(split))]
        found = [(unit, d) for unit, d in found if len(d) > 1 and d[-1]["role"] == "assistant"]
        units = np.array([unit for unit, _ in found], np.int64)
        return units, [d[:-1] for _, d in found], [d[-1]["content"] for _, d in found]

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

        from bigmodel_cli.tasks.requests import write

        units, prompts, references = self._asked(split)
        order = sorted(range(len(units)), key=lambda i: sum(len(m["content"]) for m in prompts[i]))
        for first in range(0, len(order), TOGETHER):
            part = order[first : first + TOGETHER]
            requests = [Request(prompts[i], MOST_TOKENS) for i in part]
            given, cut = zip(*map(self._fitted, requests), strict=True)
            written = write(model, self.tokenizer, given, requests, self.ends)
            replies = {i: whole for i, _, reason, whole in written if reason}
            found = self.judge(units[part], [replies[i] for i in range(len(part))],
                               [references[i] for i in part])  # fmt: skip
            yield dataclasses.replace(found, counts={"asked": np.array([len(part), sum(cut)])})

    def tables(
        self, sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
    ) -> list[Table]:
        del sums
        names, found = ("answered", "of which cut to fit"), counts.get("asked", ())
        rows: list[list[str | float]] = [[n, f"{c:,}"] for n, c in zip(names, found, strict=False)]
        return [Table("Replies", ["dialogues", "count"], rows)] if rows else []

    def protocol(self) -> dict[str, Any]:
        return {
            "window": self.options.context, "tokenization": self.tokenizer.signature,
            "scored": "the assistant's turns, each with its end", "template": "ChatML",
            "replies": f"greedy, to each dialogue's last turn, at most {MOST_TOKENS} tokens; what "
            f"is before it loses its oldest turns beyond {self._room(MOST_TOKENS)} tokens",
            self._chrf.name: self._chrf.signature,
            "bytes": "UTF-8 bytes of the replies",
        }  # fmt: skip

    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        import numpy as np

        from bigmodel_cli.tasks.ngram import Unigram
        from bigmodel_cli.tasks.packing import BASELINE, generator
        from bigmodel_cli.tasks.replies import MOST, exchanges, most_common, nearest

        replies = [
            np.concatenate([tokens[:1], tokens[1:][learned[1:] > 0]])
            for tokens, learned in (self._unit(train, unit) for unit in range(len(train)))
        ]
        model = Unigram(replies, self.tokenizer.size)
        statistics = np.zeros((len(split), len(self.statistics)))
        for unit in range(len(split)):
            tokens, learned = self._unit(split, unit)
            told = tokens[1:][learned[1:] > 0]
            if len(told):
                sequence = np.concatenate([tokens[:1], told]).astype(np.int64)
                right = model.most_likely(sequence) == told
                statistics[unit, :4] = (-model.log_probabilities(sequence).sum(), len(told),
                                    split.column("bytes")[unit], right.sum())  # fmt: skip
        yield "unigram", Predictions(np.arange(len(split)), statistics)
        units, prompts, references = self._asked(split)
        chosen = generator(BASELINE, 0).permutation(len(train))[:MOST].tolist()
        known = exchanges([self._dialogue(train, unit) for unit in chosen])
        common = [most_common(known)] * len(units)
        yield "most_common_reply", self.judge(units, common, references)
        near = list(nearest(known, [prompt[-1]["content"] for prompt in prompts]))
        yield "nearest_prompt", self.judge(units, near, references)

    @staticmethod
    def _unit(split: Split, unit: int) -> tuple[NDArray[Any], NDArray[Any]]:
        return split.values("tokens", unit, unit + 1), split.values("learned", unit, unit + 1)

    def _dialogue(self, split: Split, unit: int) -> list[Message]:
        tokens = self._unit(split, unit)[0].tolist()
        return decoded(tokens, self.tokenizer, self.used_specials(), self._special(END))

    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        from bigmodel_cli.tasks.packing import SAMPLES, generator

        found = []
        for unit in generator(SAMPLES, seed).permutation(len(split))[:count].tolist():
            dialogue = self._dialogue(split, unit)
            while dialogue and dialogue[-1]["role"] != "assistant":
                dialogue.pop()
            if len(dialogue) < 2:
                continue
            request = self.request({"messages": dialogue[:-1], "max_tokens": 128})
            outputs = [last for *_, last in self.answer(model, [request]) if last]
            shown = "\n".join(f"{m['role']}: {m['content']}" for m in dialogue[:-1])[-2000:]
            found.append({"prompt": shown + "\n", "output": outputs[0]["message"]["content"],
                          "reference": dialogue[-1]["content"][:999]})  # fmt: skip
        return found

    def proof(self, split: Split, count: int) -> Proof:
        import torch

        units = range(min(count, len(split)))
        found = [dialogue for unit in units if (dialogue := self._dialogue(split, unit))]
        tokens = [tokens[: self.options.context] for tokens, _ in self._encode(found)]
        return Proof([{"tokens_BT": torch.tensor([part])} for part in tokens], list(found))

    # predict ---------------------------------------------------------------------------------

    def request(self, document: Mapping[str, Any]) -> Request:
        from bigmodel_cli.tasks.requests import generation

        return generation(document, requested(document.get("messages")))

    def _room(self, written: int) -> int:
        """Tokens of a dialogue that an answer of so many leaves room for: half at least."""
        shape = self.shape()
        return max(1, shape.context - min(written, shape.context // 2))

    def _fitted(self, request: Request) -> tuple[list[int], bool]:
        """A dialogue as tokens, and whether it was cut to leave room for its answer: as in
        training, the oldest turns go."""
        room = self._room(request.max_tokens)
        ((tokens, _),) = self._encode([request.prompt], prompt=True)
        if cut := len(tokens) > room:
            found = latest(request.prompt, self.tokenizer, room)
            ((tokens, _),) = self._encode([found], prompt=True)
        return tokens, cut

    def answer(
        self, model: SequenceModel, requests: Sequence[Request]
    ) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
        from bigmodel_cli.tasks.requests import write

        prompts = [self._fitted(request)[0] for request in requests]
        written = write(model, self.tokenizer, prompts, requests, self.ends)
        for index, text, reason, whole in written:
            message = {"role": "assistant", "content": whole}
            yield index, text, {"message": message, "finish_reason": reason} if reason else None
