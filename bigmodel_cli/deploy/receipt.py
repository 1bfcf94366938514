"""The receipt: proof that a bundle answers as the checkpoint does, on held-out text, in fp32."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from bigmodel_cli.artifacts.records import Effect, Proof
from bigmodel_cli.errors import BigmodelError

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks import Request, Task

TEXTS = 4
CONTINUATION = 32
TOKENS, ROWS = 1 << 15, 8  # of which fewer bits are judged, and how many rows at a time
TOLERANCE = 1e-3  # logits; rounding alone gives about 1e-5
Continue = Callable[["Tensor", int], list[int]]


def compare(
    reference: SequenceModel,
    inputs: Sequence[Mapping[str, Tensor]],
    forward: Callable[..., Tensor],
    write: Continue,
    what: str,
) -> Proof:
    """Compares the logits of `inputs`, and the greedy continuations of the first halves of texts.

    forward: gives logits as the reference does; write: (1, T) token ids and a number → as many
    tokens, each the most likely one. A model that is not causal writes nothing: its most likely
    tokens, or classes, are compared. Raises BigmodelError when they are not the same.
    """
    import torch

    largest, same, total = 0.0, 0, 0
    with torch.inference_mode():
        for each in inputs:
            ours, theirs = reference(**each).float(), forward(**each).float()
            if ours.shape != theirs.shape:
                raise BigmodelError(
                    f"{what} gives logits of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}",
                    "please report it",
                )
            largest = max(largest, float((ours - theirs).abs().max()))
            if reference.config.shape.causal and set(each) == {"tokens_BT"}:
                start = each["tokens_BT"][:, : max(1, each["tokens_BT"].shape[1] // 2)]
                count = min(CONTINUATION, reference.config.shape.context - start.shape[1])
                a, b = greedy(reference)(start, count), write(start, count)
            else:
                a, b = ours.argmax(-1).flatten().tolist(), theirs.argmax(-1).flatten().tolist()
            same += sum(x == y for x, y in zip(a, b)) if len(a) == len(b) else 0
            total += len(a)
    if not largest <= TOLERANCE or same < total:
        raise BigmodelError(
            f"{what} does not answer as the checkpoint does: logits differ by {largest:.2g}, "
            f"{same} of {total} greedy tokens are the same",
            "the bundle was not written; please report it",
        )
    return Proof(
        proof="passed",
        texts=len(inputs),
        tokens=sum(_length(each, reference) for each in inputs),
        largest_logit_difference=largest,
        greedy_tokens=total,
        greedy_identical=same,
    )


def _length(inputs: Mapping[str, Tensor], model: SequenceModel) -> int:
    """The positions of a row: of an image, as many as the model cuts it into."""
    tokens = inputs.get("tokens_BT")
    return model.config.shape.context if tokens is None else tokens.shape[1]


def answers(
    task: Task, reference: SequenceModel, again: SequenceModel, requests: Sequence[Request]
) -> int:
    """Compares whole answers; gives how many. Raises BigmodelError when they are not the same."""
    if not requests:
        return 0
    ours, theirs = (
        {index: whole for index, _, whole in task.answer(model, requests) if whole is not None}
        for model in (reference, again)
    )
    same = sum(ours[index] == theirs.get(index) for index in ours)
    if same < len(requests):
        raise BigmodelError(
            f"the bundle does not answer as the checkpoint does: {same} of {len(requests)} answers "
            "are the same",
            "the bundle was not written; please report it",
        )
    return same


def greedy(model: SequenceModel) -> Continue:
    """How our own model writes: with its cache, one token at a time."""
    from bigmodel_cli.models.generate import Decoder
    from bigmodel_cli.models.sampling import Sampling

    def write(start: Tensor, count: int) -> list[int]:
        decoder = Decoder(model, start.tolist(), [Sampling()])
        return [decoder.step()[0][1] for _ in range(count)]

    return write


def effect(task: Task, model: SequenceModel, precision: str, split: Split, rows: int) -> Effect:
    """What fewer bits cost: the task's headline metric on held-out text, in fp32 and so; None where
    it is not a number. rows: most of them at a time."""
    import copy
    import math

    import numpy as np
    import torch

    from bigmodel_cli.models.precision import lower

    metric = task.metrics()[0]
    limit = max(8, TOKENS // model.config.shape.context)
    values: dict[str, float | None] = {}
    terms = 0
    for name in ("fp32", precision):
        lowered = lower(copy.deepcopy(model), name)
        sums = np.zeros(len(task.statistics))
        with torch.inference_mode():
            for batch in task.scoring(split, min(rows, ROWS), limit):
                sums += task.predict(lowered, batch).statistics.sum(0)
                terms += batch.terms
        value = float(metric.value(sums))
        values[name] = value if math.isfinite(value) else None
    return Effect(name=precision, metric=metric.name, terms=terms // 2, **values)


def transformers_proof(
    folder: Path,
    reference: SequenceModel,
    inputs: Sequence[Mapping[str, Tensor]],
    texts: Sequence[Any],
) -> Proof:
    """Loads the bundle as any user of transformers would, and compares. `texts`: those (or
    dialogues) whose ids its tokenizer must give as ours does, the first one being <|endoftext|>.

    Where transformers is not installed, the proof is not run, and says so.
    """
    if importlib.util.find_spec("transformers") is None:
        return Proof(
            proof="not run: transformers is not installed (pip install 'bigmodel[export]')"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is all that it needs
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="float32"
    )
    odd = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if odd:
        raise BigmodelError(
            f"transformers does not load the bundle cleanly: {odd}",
            "the bundle was not written; please report it",
        )
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, each in zip(texts, inputs, strict=False):
        ids = each["tokens_BT"][0].tolist()
        plain = isinstance(text, str)
        theirs = tokenizer(text) if plain else tokenizer.apply_chat_template(text, return_dict=True)
        if list(theirs["input_ids"][: len(ids)]) != ids:
            raise BigmodelError(
                "transformers tokenizes a held-out text differently",
                "the bundle was not written; please report it",
            )
    # only what it is given decides when to end: the checkpoint's side never stops early either
    model.generation_config.eos_token_id = None

    def write(start: Tensor, count: int) -> list[int]:
        written = model.generate(
            start, attention_mask=start * 0 + 1, max_new_tokens=count, do_sample=False
        )
        return written[0, start.shape[1] :].tolist()  # type: ignore[no-any-return]

    def forward(tokens_BT: Tensor) -> Tensor:
        return model(tokens_BT).logits  # type: ignore[no-any-return]

    result = compare(reference, inputs, forward, write, "transformers")
    return replace(
        result,
        loader=f"transformers {transformers.__version__}",
        loading_info="empty",
        tokenizer_identical=True,
    )
