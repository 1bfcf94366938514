"""Damaged artifacts whose checksums are right: the field is named, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.artifacts import bundle, checkpoint, manifest
from bigmodel_cli.artifacts.records import (
    DataManifest,
    Evaluation,
    Receipt,
    RunConfig,
    as_json,
)
from bigmodel_cli.errors import ArtifactError
from tests.conftest import Cli

RUN = "runs/default"
STATE = f"{RUN}/checkpoints/step-00000002/state.json"
READERS: dict[str, Callable[[Path], Any]] = {
    "data/manifest.json": lambda p: manifest.read_record(p, DataManifest, "data", ""),
    f"{RUN}/config.json": lambda p: manifest.read_record(p, RunConfig, "run", ""),
    STATE: lambda p: checkpoint.read_state(p.parent),
    f"{RUN}/checkpoints/best.json": lambda p: checkpoint.read_best(p.parent),
    f"{RUN}/evaluation.json": lambda p: manifest.read_record(p, Evaluation, "evaluation", ""),
    f"{RUN}/bundle/bigmodel.json": lambda p: bundle.read(p.parent),
    f"{RUN}/bundle/receipt.json": lambda p: manifest.read_record(p, Receipt, "receipt", ""),
}


def change(path: Path, place: str, value: Any) -> None:
    """Sets a field, by its dotted place; ... removes it."""
    document = manifest.read_json(path, "document", "")
    *outer, last = place.split(".")
    inner: Any = document
    for name in outer:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    manifest.write_json(path, document)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_what_is_written_is_what_is_read(cli: Cli, name: str) -> None:
    path = cli.work / name
    document = manifest.read_json(path, "document", "")
    assert as_json(READERS[name](path)) == document


DAMAGE = [
    ("data/manifest.json", "splits.val", ..., "val"),
    ("data/manifest.json", "splits.train.shards.0.bytes", "9", "bytes"),
    ("data/manifest.json", "ledger.in", None, "ledger.in"),
    ("data/manifest.json", "recipe.inputs", {}, "recipe.inputs"),
    (f"{RUN}/config.json", "options.width", "x", "options.width"),
    (f"{RUN}/config.json", "resolved.device", "tpu", "resolved.device"),
    (f"{RUN}/config.json", "resolved.batch_size", 0, "resolved.batch_size"),
    (f"{RUN}/config.json", "resolved.length.steps", None, "length"),
    (f"{RUN}/config.json", "hardware.name", 5, "hardware.name"),
    (STATE, "step", 1, "step"),
    (STATE, "files.model.safetensors", ..., "model.safetensors"),
    (STATE, "best.name", "step-2", "best.name"),
    (STATE, "elapsed", 10**400, "elapsed"),
    (f"{RUN}/checkpoints/best.json", "name", "step-00000002\n", "name"),
    (f"{RUN}/evaluation.json", "metrics", {}, "metrics"),
    (f"{RUN}/evaluation.json", "baseline.loss.name", "x", "baseline.loss"),
    (f"{RUN}/evaluation.json", "environment.precision", 5, "environment"),
    (f"{RUN}/evaluation.json", "metrics.loss.n", True, "n"),
    (f"{RUN}/evaluation.json", "schema", 0, "schema"),
    (f"{RUN}/bundle/bigmodel.json", "layout", "gguf", "layout"),
    (f"{RUN}/bundle/bigmodel.json", "files", [], "files"),
    (f"{RUN}/bundle/receipt.json", "bigmodel.texts", -1, "bigmodel.texts"),
    (f"{RUN}/bundle/receipt.json", "transformers", ..., "transformers"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place", "value", "said"), DAMAGE)
def test_a_damaged_field_is_named(cli: Cli, name: str, place: str, value: Any, said: str) -> None:
    path = cli.work / name
    if place.startswith("files.model"):  # its name has a dot
        document = manifest.read_json(path, "document", "")
        del document["files"]["model.safetensors"]
        manifest.write_json(path, document)
    else:
        change(path, place, value)
    with pytest.raises(ArtifactError) as caught:
        READERS[name](path)
    assert said in caught.value.message
    done = cli("status", "--json")
    assert done.code == 0, done


@pytest.mark.slow
def test_what_the_fields_mean_together_is_checked(cli: Cli) -> None:
    def damaged(name: str, place: str, value: Any, *command: str, says: list[str]) -> None:
        path = cli.work / name
        before = path.read_bytes()
        change(path, place, value)
        cli.fails(*command, code=5, says=says)
        path.write_bytes(before)

    config = f"{RUN}/config.json"
    damaged(config, "model.shape.causal", False, "evaluate", "--force", says=["not of its task"])
    damaged(config, "model.layers", 1 << 30, "evaluate", "--force", says=["layers"])
    damaged(config, "task", "tabular", "evaluate", says=["trained on other data"])
    data = "data/manifest.json"
    damaged(data, "task", "tabular", "train", says=["`tabular`", "not installed"])
    document = f"{RUN}/bundle/bigmodel.json"
    again = ["train", "--from", str(cli.work / RUN / "bundle"), "--run", "again", "--steps", "1"]
    damaged(document, "layout", "native", *again, says=["do not fit"])
    damaged(document, "model.gated", False, *again, says=["fit"])
    # an evaluation that lacks what a rule needs is made again
    path = cli.work / RUN / "evaluation.json"
    metrics = manifest.read_json(path, "document", "")["metrics"]
    change(path, "metrics", {"loss": metrics["loss"]})
    done = cli("evaluate", "--require", "bits_per_byte<=99")
    assert done.code == 0
    assert "scoring again" in done.err
    # what an earlier evaluation says may be anything
    change(path, "metrics.loss.value", 10**400)
    (cli.cwd / "main.json").write_bytes(path.read_bytes())
    rule = ["--against", "main.json", "--require", "loss<=previous"]
    cli.fails("evaluate", *rule, code=5, says=["`loss`"])
