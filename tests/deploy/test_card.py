"""The model card says what is so: a snapshot for each task, and one of a model with a beginning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bigmodel_cli.artifacts.records import (
    Amount,
    CheckpointState,
    Command,
    DataManifest,
    Hardware,
    Input,
    LedgerRecord,
    Length,
    Proof,
    Reason,
    Receipt,
    Recipe,
    Resolved,
    RunConfig,
    SplitRecord,
)
from bigmodel_cli.deploy.card import card, code
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.shape import ImageShape, Shape
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import TABLE, task_class

CARDS = Path(__file__).parent / "cards"
SHAPES = {
    "language": Shape(1024, 256, causal=True),
    "chat": Shape(2048, 1024, causal=True),
    "translation": Shape(4096, 256, causal=True, prefix=True),
    "text-classification": Shape(1024, 256, causal=False, classes=4),
    "image-classification": Shape(0, 49, causal=False, classes=3, image=ImageShape(3, 28, 4)),
    "recommendation": Shape(943, 50, causal=True),
}
PORTABLE = ("language", "chat")


def facts(name: str, **training: Any) -> str:
    task = task_class(name)(task_class(name).Options())
    config: ModelConfig = model_config("transformer", "nano", SHAPES[name])
    split = SplitRecord(units=90, bytes=9000, tokens=3000, content="", shards=[])
    portable = name in PORTABLE
    proof = Proof(proof="passed", texts=4, largest_logit_difference=0.0, greedy_tokens=128,
                  greedy_identical=128)  # fmt: skip
    loaded = replace(proof, loader="transformers 5", largest_logit_difference=1e-5)
    options = {"optimizer": "muon", "seed": 0, "from_": "",
               **({"objective": "next"} if name == "language" else {})}  # fmt: skip
    known = RunConfig(
        run="default", task=name, data_fingerprint="d1", model={}, fingerprint="f1",
        hardware=Hardware(device="cpu", name="AMD | EPYC <9755>"),
        resolved=Resolved(batch_size=8, micro_batch=8, threads=1, precision="bf16",
                          learning_rate=0.006, device="cpu", length=Length(500, None, "")),
        **{"options": options, **training},
    )  # fmt: skip
    names = ("data.jsonl", "a`<img src=x onerror=alert(1)>`")
    data = DataManifest(
        task=name, unit=task.unit_name, measure=task.measure, fingerprint="d1",
        splits=dict.fromkeys(("train", "val", "test"), split),
        ledger=LedgerRecord(
            came_in=Amount(rows=271, bytes=27100), kept=Amount(rows=270, bytes=27000),
            dropped={"empty": Reason(rows=1, bytes=100, where=["a, line 1"])}, removed={},
        ),
        recipe=Recipe(inputs=[Input(name=name, sha256="") for name in names], options={}),
        command=Command(sources=[], exclude=[]), preprocessor={},
    )  # fmt: skip
    receipt = Receipt(
        bigmodel=proof, split="test", weights="w1", run="default", checkpoint="", evaluated=False,
        transformers=loaded if portable else Proof(proof="none: loadable by bigmodel alone"),
    )  # fmt: skip
    state = CheckpointState(step=500, tokens=1_000_000, elapsed=61.4, files={})
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
