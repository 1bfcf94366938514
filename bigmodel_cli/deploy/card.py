"""The model card: a bundle's README.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from bigmodel_cli import __version__
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.qwen3 import ARCHITECTURE

if TYPE_CHECKING:
    from bigmodel_cli.tasks import Task


def card(
    name: str,
    task: Task,
    config: ModelConfig,
    training: Mapping[str, Any],
    state: Mapping[str, Any],
    data: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    receipt: Mapping[str, Any],
    portable: bool,
) -> str:
    """What the model is, what it learned from, how good it is, and what it is for."""
    options = training["options"]
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
    resolved = training["resolved"]
    lines += ["## Training", "", "| | |", "|---|---|"]
    lines += [
        f"| {key} | {_cell(value)} |"
        for key, value in {
            "updates": f"{state['step']:,}",
            task.positions: f"{state['tokens']:,}",
            "seconds": f"{state['elapsed']:,.0f}",
            "optimizer": options["optimizer"],
            "learning rate": resolved["learning_rate"],
            "batch": f"{resolved['batch_size']} rows of at most {config.shape.context} "
            f"{task.positions}",
            "precision": resolved["precision"],
            "hardware": training["hardware"]["name"],
            "seed": options["seed"],
        }.items()
    ]
    measure = data.get("measure", "tokens")
    lines += [
        "",
        "## Data",
        "",
        f"| split | {data['unit']} | bytes | {measure} |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {split} | {part['units']:,} | {part['bytes']:,} | {part['tokens']:,} |"
        for split, part in data["splits"].items()
    ]
    ledger = data["ledger"]
    lines += [
        "",
        "| ledger | rows | bytes |",
        "|---|---:|---:|",
        f"| came in | {ledger['in']['rows']:,} | {ledger['in']['bytes']:,} |",
    ]
    lines += [
        f"| {kind} {reason} | {entry['rows']:,} | {entry['bytes']:,} |"
        for kind in ("dropped", "removed")
        for reason, entry in ledger[kind].items()
    ]
    lines.append(f"| kept | {ledger['kept']['rows']:,} | {ledger['kept']['bytes']:,} |")
    names = [item["name"] for item in data["recipe"]["inputs"]]
    shown = ", ".join(map(code, names[:10]))
    lines += ["", f"Sources: {shown}" + (f" and {len(names) - 10:,} more" if names[10:] else "")]
    lines += ["", "## Proof", "", *_proof(receipt), ""]
    if effect := receipt.get("precision"):
        low, full = (
            "–" if effect[name] is None else f"{effect[name]:.5g}"
            for name in (effect["name"], "fp32")
        )
        where = f"the first {effect['terms']:,} targets of the {receipt['split']} split"
        lines += [f"Answers in {effect['name']}: {effect['metric']} {low} where fp32 has {full},"]
        lines += [f"on {where}.", ""]
    lines += [
        f"- data `{data['fingerprint']}`",
        f"- training `{training['fingerprint']}`",
        f"- weights `{receipt['weights']}`",
        "",
    ]
    return "\n".join(lines)


def _what(task: Task, config: ModelConfig, training: Mapping[str, Any]) -> str:
    """The model in a sentence: its family and size, what it reads, and where its weights began."""
    shape, objective = config.shape, training["options"].get("objective")
    if picture := shape.picture:
        kind = "grey" if picture.channels == 1 else "coloured"
        reads = f"{kind} images of {picture.size} × {picture.size} pixels"
    else:
        reads = f"at most {shape.context:,} {task.positions} at once, of {shape.vocabulary:,} kinds"
    gives = f", one of {shape.classes:,} classes" if shape.classes else ""
    start = "from scratch"
    if training.get("origin"):
        digest = str(training["options"].get("from_", ""))[:12]
        start = f"from the weights of {code(str(training['origin']))} (`{digest}`)"
    return (
        f"A {config.family} of {config.parameters():,} weights ({config.layers} layers, width "
        f"{config.width}) for the task `{task.name}`"
        + (f", objective `{objective}`" if objective else "")
        + f". It reads {reads}{gives}. Trained {start} with bigmodel {__version__}."
    )


def _proof(receipt: Mapping[str, Any]) -> list[str]:
    """How the bundle was compared with the checkpoint, by each loader."""
    lines = []
    for loader in ("bigmodel", "transformers"):
        proof = receipt[loader]
        if "largest_logit_difference" not in proof:
            lines.append(f"- {loader}: {proof['proof']}")
            continue
        lines.append(
            f"- {proof.get('loader', loader)}, on {proof['texts']} rows of the {receipt['split']} "
            f"split: largest logit difference from the checkpoint "
            f"{proof['largest_logit_difference']:.1e}, {proof['greedy_identical']} of "
            f"{proof['greedy_tokens']} most likely answers the same"
        )
    return lines


def code(text: str) -> str:
    """Any text as code in Markdown, whatever backticks and lines it has: a name is no markup."""
    text = " ".join(text.split("\n"))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text[:1] in ("`", " ") or text[-1:] in ("`", " ") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(value: Any) -> str:
    """A value as a cell of a table in Markdown."""
    return escape(str(value)).replace("|", "\\|").replace("\n", " ").replace("`", "&#96;")


def _evaluation(evaluation: Mapping[str, Any]) -> list[str]:
    count = next(iter(evaluation["metrics"].values()))["n"]
    scored = evaluation["protocol"].get("sample") or f"{count:,} {evaluation['unit']}"
    lines = [
        f"On the {evaluation['split']} split, {scored}:",
        "",
        "| metric | model | 95 % interval | strongest baseline | model is |",
        "|---|---:|---:|---:|---:|",
    ]
    for metric, entry in evaluation["metrics"].items():
        base = evaluation["baseline"].get(metric)
        low, high = entry["low"], entry["high"]
        interval = "–" if low is None else f"{low:.4f} – {high:.4f}"
        value = "–" if entry["value"] is None else f"{entry['value']:.4f}"
        against = "–" if base is None else f"{base['value']:.4f} ({base['name']})"
        verdict = "" if base is None else base.get("model_is", "")
        lines.append(f"| {metric} | {value} | {interval} | {against} | {verdict} |")
    return [*lines, ""]
