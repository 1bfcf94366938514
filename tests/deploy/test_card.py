"""The model card says what is so: a snapshot for each task, and one of a model with a beginning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.deploy.card import card, code
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.shape import Picture, Shape
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import TABLE, task_class

CARDS = Path(__file__).parent / "cards"
SHAPES = {
    "language": Shape(1024, 256, causal=True),
    "chat": Shape(2048, 1024, causal=True),
    "translation": Shape(4096, 256, causal=True, prefix=True),
    "text-classification": Shape(1024, 256, causal=False, classes=4),
    "image-classification": Shape(0, 49, causal=False, classes=3, picture=Picture(3, 28, 4)),
    "recommendation": Shape(943, 50, causal=True),
}
PORTABLE = ("language", "chat")


def facts(name: str, **training: Any) -> str:
    task = task_class(name)(task_class(name).Options())
    config: ModelConfig = model_config("transformer", "nano", SHAPES[name])
    split = {"units": 90, "bytes": 9000, "tokens": 3000}
    portable = name in PORTABLE
    proof = {"proof": "passed", "texts": 4, "largest_logit_difference": 0.0,
             "greedy_tokens": 128, "greedy_identical": 128}  # fmt: skip
    known = {
        "options": {"optimizer": "muon", "seed": 0, "from_": "",
                    **({"objective": "next"} if name == "language" else {})},
        "origin": None, "fingerprint": "f1", "hardware": {"name": "AMD | EPYC <9755>"},
        "resolved": {"learning_rate": 0.006, "batch_size": 8, "precision": "bf16"}, **training,
    }  # fmt: skip
    data = {
        "unit": task.unit_name, "measure": task.measure, "fingerprint": "d1",
        "splits": {"train": split, "val": split, "test": split},
        "ledger": {"in": {"rows": 271, "bytes": 27100}, "kept": {"rows": 270, "bytes": 27000},
                   "dropped": {"empty": {"rows": 1, "bytes": 100, "where": ["a, line 1"]}},
                   "removed": {}},
        "recipe": {"inputs": [{"name": "data.jsonl"}, {"name": "a`<img src=x onerror=alert(1)>`"}]},
    }  # fmt: skip
    receipt = {
        "bigmodel": proof, "split": "test", "weights": "w1",
        "transformers": {**proof, "loader": "transformers 5", "largest_logit_difference": 1e-5}
        if portable else {"proof": "none: loadable by bigmodel alone"},
    }  # fmt: skip
    state = {"step": 500, "tokens": 1_000_000, "elapsed": 61.4}
    return card("bigmodel-default", task, config, known, state, data, None, receipt, portable)


CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in TABLE},
    "with-an-origin": {"origin": "runs/`base`", "options": {
        "optimizer": "muon", "seed": 0, "from_": "0123456789abcdef", "objective": "next"}},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_card_is_its_snapshot(name: str) -> None:
    text = facts(name if name in TABLE else "language", **CASES[name])
    path = CARDS / f"{name}.md"
    if os.environ.get("WRITE_CARDS"):  # then read the difference
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("name", ["a`b", "`", "``<img src=x>``", " a ", "plain", "图`片", "a\nb"])
def test_a_name_stays_code_in_markdown(name: str) -> None:
    shown = code(name)
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    assert shown.endswith(fence)
    inner = shown[len(fence) : -len(fence)]
    assert fence not in inner
    assert "\n" not in inner
    assert name.replace("\n", " ").strip(" ") in inner
