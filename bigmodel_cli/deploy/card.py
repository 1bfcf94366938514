"""The model card: a bundle's README.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bigmodel_cli import __version__
from bigmodel_cli.artifacts.records import (
    CheckpointState,
    DataManifest,
    Evaluation,
    Receipt,
    RunConfig,
)
from bigmodel_cli.artifacts.tables import METRICS, ledger_rows, metric_rows, splits_table
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.qwen3 import ARCHITECTURE

if TYPE_CHECKING:
    from bigmodel_cli.tasks import Task


def card(
    name: str,
    task: Task,
    config: ModelConfig,
    training: RunConfig,
    state: CheckpointState,
    data: DataManifest,
    evaluation: Evaluation | None,
    receipt: Receipt,
    portable: bool,
) -> str:
    """What the model is, what it learned from, how good it is, and what it is for."""
    options = training.options
    tags = ["bigmodel", task.name]
    head = ["---", "tags:", *(f"- {tag}" for tag in tags)]
    if portable:
        head += ["library_name: transformers", "pipeline_tag: text-generation"]
    lines = [*head, "---", "", f"# {name}", "", _what(task, config, training), ""]
    lines += ["## Use", "", "```sh", f"bigmodel predict --bundle {name} '…'", "```", ""]
    if portable:
        lines += [
            f"It loads in transformers as `{ARCHITECTURE}`, with no custom code:",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
            "",
        ]
    else:
        lines += [
            "Only bigmodel loads it: other engines do not know its form.",
            "",
        ]
    lines += [f"Intended for {task.intended_use}", "", "## Evaluation", ""]
    if evaluation is None:
        lines += ["**Not evaluated**: run `bigmodel evaluate`, then `bigmodel deploy` again.", ""]
    else:
        lines += _evaluation(evaluation)
    resolved = training.resolved
    lines += ["## Training", "", "| | |", "|---|---|"]
    lines += [
        f"| {key} | {_cell(value)} |"
        for key, value in {
            "updates": f"{state.step:,}",
            task.positions: f"{state.tokens:,}",
            "seconds": f"{state.elapsed:,.0f}",
            "optimizer": options.get("optimizer"),
            "learning rate": resolved.learning_rate,
            "batch": f"{resolved.batch_size} rows of at most {config.shape.context} "
            f"{task.positions}",
            "precision": resolved.precision,
            "hardware": training.hardware.name,
            "seed": options.get("seed"),
        }.items()
    ]
    header, splits = splits_table(data)
    lines += ["", "## Data", "", _row(header), "|---|---:|---:|---:|", *map(_row, splits)]
    lines += ["", "| ledger | rows | bytes |", "|---|---:|---:|"]
    lines += map(_row, ledger_rows(data.ledger))
    names = [item.name for item in data.recipe.inputs]
    shown = ", ".join(map(code, names[:10]))
    lines += ["", f"Sources: {shown}" + (f" and {len(names) - 10:,} more" if names[10:] else "")]
    lines += ["", "## Proof", "", *_proof(receipt), ""]
    if effect := receipt.precision:
        low, full = (
            "–" if value is None else f"{value:.5g}" for value in (effect.value, effect.fp32)
        )
        where = f"the first {effect.terms:,} targets of the {receipt.split} split"
        lines += [f"Answers in {effect.name}: {effect.metric} {low} where fp32 has {full},"]
        lines += [f"on {where}.", ""]
    lines += [
        f"- data `{data.fingerprint}`",
        f"- training `{training.fingerprint}`",
        f"- weights `{receipt.weights}`",
        "",
    ]
    return "\n".join(lines)


def _what(task: Task, config: ModelConfig, training: RunConfig) -> str:
    """The model in a sentence: its family and size, what it reads, and where its weights began."""
    shape, objective = config.shape, training.options.get("objective")
    if image := shape.image:
        kind = "grey" if image.channels == 1 else "coloured"
        reads = f"{kind} images of {image.size} × {image.size} pixels"
    else:
        reads = f"at most {shape.context:,} {task.positions} at once, of {shape.vocabulary:,} kinds"
    gives = f", one of {shape.classes:,} classes" if shape.classes else ""
    start = "from scratch"
    if training.origin:
        digest = str(training.options.get("from_", ""))[:12]
        start = f"from the weights of {code(training.origin)} (`{digest}`)"
    return (
        f"A {config.family} of {config.parameters():,} weights ({config.layers} layers, width "
        f"{config.width}) for the task `{task.name}`"
        + (f", objective `{objective}`" if objective else "")
        + f". It reads {reads}{gives}. Trained {start} with bigmodel {__version__}."
    )


def _proof(receipt: Receipt) -> list[str]:
    """How the bundle was compared with the checkpoint, by each loader."""
    lines = []
    for loader, proof in receipt.proofs.items():
        if proof.largest_logit_difference is None:
            lines.append(f"- {loader}: {proof.proof}")
            continue
        lines.append(
            f"- {proof.loader or loader}, on {proof.texts} rows of the {receipt.split} "
            f"split: largest logit difference from the checkpoint "
            f"{proof.largest_logit_difference:.1e}, {proof.greedy_identical} of "
            f"{proof.greedy_tokens} most likely answers the same"
        )
    return lines


def code(text: str) -> str:
    """Any text as code in Markdown, whatever backticks and lines it has: a name is no markup."""
    text = " ".join(text.split("\n"))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text[:1] in ("`", " ") or text[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: Any) -> str:
    """A value as a cell of a table in Markdown."""
    return escape(str(value)).replace("|", "\\|").replace("\n", " ").replace("`", "&#96;")


def _evaluation(evaluation: Evaluation) -> list[str]:
    sample = evaluation.protocol.get("sample")
    scored = sample or f"{evaluation.count:,} {evaluation.unit}"
    lines = [f"On the {evaluation.split} split, {scored}:", "", _row(METRICS)]
    return [*lines, "|---|" + "---:|" * 4, *map(_row, metric_rows(evaluation)), ""]
