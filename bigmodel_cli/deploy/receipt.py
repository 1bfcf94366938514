"""The receipt: proof that a bundle answers as the checkpoint does, on held-out text, in fp32."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigmodel_cli.errors import BigmodelError

if TYPE_CHECKING:
    from torch import Tensor

    from bigmodel_cli.models.sequence import SequenceModel

TEXTS = 8
CONTINUATION = 32
TOLERANCE = 1e-3  # logits; rounding alone gives about 1e-5


def compare(
    reference: SequenceModel, texts: Sequence[Sequence[int]],
    forward: Callable[[Tensor], Tensor], what: str,
) -> dict[str, Any]:  # fmt: skip
    """Compares logits on `texts` (token ids) and greedy continuations of their first halves.

    forward: (1, T) token ids → (1, T, V) logits. Raises BigmodelError when they are not the same.
    """
    import torch

    largest, same, total = 0.0, 0, 0
    with torch.inference_mode():
        for text in texts:
            tokens = torch.tensor([list(text)])
            ours, theirs = reference(tokens).float(), forward(tokens).float()
            if ours.shape != theirs.shape:
                raise BigmodelError(f"{what} gives logits of shape {tuple(theirs.shape)}, not "
                                    f"{tuple(ours.shape)}", "please report it")  # fmt: skip
            largest = max(largest, float((ours - theirs).abs().max()))
            start = tokens[:, : max(1, tokens.shape[1] // 2)]
            count = min(CONTINUATION, reference.config.shape.context - start.shape[1])
            a, b = _greedy(reference, start, count), _greedy(forward, start, count)
            same += int((a == b).sum())
            total += count
    result = {
        "texts": len(texts), "tokens": sum(map(len, texts)),
        "largest_logit_difference": largest, "greedy_tokens": total, "greedy_identical": same,
    }  # fmt: skip
    if not largest <= TOLERANCE or same < total:
        raise BigmodelError(
            f"{what} does not answer as the checkpoint does: logits differ by {largest:.2g}, "
            f"{same} of {total} greedy tokens are the same",
            "the bundle was not written; please report it",
        )
    return result


def _greedy(forward: Callable[[Tensor], Tensor], start: Tensor, count: int) -> Tensor:
    import torch

    tokens = start
    for _ in range(count):
        tokens = torch.cat([tokens, forward(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens[:, start.shape[1] :]


def transformers_proof(
    folder: Path, reference: SequenceModel, texts: Sequence[Sequence[int]], words: Sequence[str]
) -> dict[str, Any]:
    """Loads the bundle as any user of transformers would, and compares. `words`: plain texts
    whose ids its tokenizer must give as ours does, the first one of each being <|endoftext|>.

    Where transformers is not installed, the proof is not run, and says so.
    """
    if importlib.util.find_spec("transformers") is None:
        return {"proof": "not run: transformers is not installed (pip install 'bigmodel[export]')"}
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a folder is all that it needs
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="float32"
    )
    odd = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if odd:
        raise BigmodelError(f"transformers does not load the bundle cleanly: {odd}",
                            "the bundle was not written; please report it")  # fmt: skip
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, ids in zip(words, texts, strict=True):
        theirs = tokenizer(text)["input_ids"][: len(ids)]
        if list(theirs) != list(ids):
            raise BigmodelError("transformers tokenizes a held-out text otherwise",
                                "the bundle was not written; please report it")  # fmt: skip
    result = compare(reference, texts, lambda t: model(t).logits, "transformers")
    return {
        "proof": "passed", "loader": f"transformers {transformers.__version__}",
        "loading_info": "empty", "tokenizer_identical": True, **result,
    }  # fmt: skip
