"""The model card: a bundle's README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigmodel_cli import __version__
from bigmodel_cli.models.qwen3 import ARCHITECTURE
from bigmodel_cli.models.sizes import ModelConfig


def card(
    name: str, config: ModelConfig, training: Mapping[str, Any], state: Mapping[str, Any],
    data: Mapping[str, Any], evaluation: Mapping[str, Any] | None, receipt: Mapping[str, Any],
    portable: bool,
) -> str:  # fmt: skip
    """What the model is, what it learned from, how good it is, and what it is for."""
    options = training["options"]
    tags = ["bigmodel", training["task"]]
    head = ["---", "tags:", *(f"- {tag}" for tag in tags)]
    if portable:
        head += ["library_name: transformers", "pipeline_tag: text-generation"]
    lines = [*head, "---", "", f"# {name}", ""]
    lines.append(
        f"A {config.family} of {config.parameters:,} weights ({config.layers} layers, width "
        f"{config.width}, context {config.shape.context}, {config.shape.vocabulary:,} tokens) for "
        f"the task `{training['task']}`, objective `{options.get('objective', '–')}`, trained "
        f"from scratch with bigmodel {__version__}."
    )
    lines += ["", "## Use", ""]
    lines += ["```sh", f"bigmodel predict --bundle {name} '…'", "```", ""]
    if portable:
        lines += [
            f"It loads in transformers as `{ARCHITECTURE}`, with no custom code:", "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```", "",
        ]  # fmt: skip
    else:
        lines += [
            "Only bigmodel loads it: its form is no architecture that other engines know.",
            "",
        ]
    lines += [
        "Intended for text like that which it learned from. It may repeat what its training data "
        "say, true or not, and parts of them word for word. It was not tuned to be safe.",
        "", "## Evaluation", "",
    ]  # fmt: skip
    if evaluation is None:
        lines += ["**Not evaluated**: run `bigmodel evaluate`, then `bigmodel deploy` again.", ""]
    else:
        lines += _evaluation(evaluation)
    lines += ["## Training", "", "| | |", "|---|---|"]
    lines += [
        f"| {key} | {value} |"
        for key, value in {
            "updates": f"{state['step']:,}",
            "tokens": f"{state['tokens']:,}",
            "seconds": f"{state['elapsed']:,.0f}",
            "optimizer": options["optimizer"],
            "learning rate": training["resolved"]["learning_rate"],
            "batch": f"{training['resolved']['batch_size']} rows of {config.shape.context} tokens",
            "precision": training["resolved"]["precision"],
            "hardware": training["hardware"]["name"],
            "seed": options["seed"],
        }.items()
    ]
    measure = data.get("measure", "tokens")
    lines += ["", "## Data", "", f"| split | {data['unit']} | bytes | {measure} |",
              "|---|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {split} | {part['units']:,} | {part['bytes']:,} | {part['tokens']:,} |"
        for split, part in data["splits"].items()
    ]
    ledger = data["ledger"]
    lines += ["", "| ledger | rows | bytes |", "|---|---:|---:|",
              f"| came in | {ledger['in']['rows']:,} | {ledger['in']['bytes']:,} |"]  # fmt: skip
    lines += [
        f"| {kind} {reason} | {entry['rows']:,} | {entry['bytes']:,} |"
        for kind in ("dropped", "removed")
        for reason, entry in ledger[kind].items()
    ]
    lines.append(f"| kept | {ledger['kept']['rows']:,} | {ledger['kept']['bytes']:,} |")
    names = [item["name"] for item in data["recipe"]["inputs"]]
    shown = ", ".join(f"`{n}`" for n in names[:10])
    lines += ["", f"Sources: {shown}" + (f" and {len(names) - 10:,} more" if names[10:] else "")]
    lines += ["", "## Proof", "", f"Proof of export: {receipt['transformers']['proof']}.", ""]
    if effect := receipt.get("precision"):
        low, full = (
            "–" if effect[name] is None else f"{effect[name]:.5g}"
            for name in (effect["name"], "fp32")
        )
        where = f"the first {effect['terms']:,} targets of the {receipt['split']} split"
        lines += [f"Answers in {effect['name']}: {effect['metric']} {low} where fp32 has {full},"]
        lines += [f"on {where}.", ""]
    lines += [
        f"- data `{data['fingerprint']}`", f"- training `{training['fingerprint']}`",
        f"- weights `{receipt['weights']}`", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _evaluation(evaluation: Mapping[str, Any]) -> list[str]:
    count = next(iter(evaluation["metrics"].values()))["n"]
    lines = [f"On the {evaluation['split']} split, {count:,} {evaluation['unit']}:", "",
             "| metric | model | 95 % interval | strongest baseline | model is |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    for metric, entry in evaluation["metrics"].items():
        base = evaluation["baseline"].get(metric)
        low, high = entry["low"], entry["high"]
        interval = "–" if low is None else f"{low:.4f} – {high:.4f}"
        value = "–" if entry["value"] is None else f"{entry['value']:.4f}"
        against = "–" if base is None else f"{base['value']:.4f} ({base['name']})"
        verdict = "" if base is None else base.get("model_is", "")
        lines.append(f"| {metric} | {value} | {interval} | {against} | {verdict} |")
    return [*lines, ""]
