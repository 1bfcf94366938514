"""deploy: best checkpoint → a bundle that needs nothing else of the working directory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.bundle import CARD, RECEIPT
from bigmodel_cli.artifacts.bundle import FILE as BUNDLE
from bigmodel_cli.artifacts.records import (
    Bundle,
    CheckpointState,
    DataManifest,
    Effect,
    Evaluation,
    Proof,
    Receipt,
    RunConfig,
)
from bigmodel_cli.artifacts.workdir import Run, Workdir, lock
from bigmodel_cli.config import DeployConfig
from bigmodel_cli.errors import BigmodelError, FormatError, StoppedError
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.options import identity
from bigmodel_cli.tasks import Task, load_task, model_of, save_task

ASIDE = "bundle.old"  # while a new one takes its place
UNSAID = ("precision", "fp32")  # the default came later than the first bundles
PREPROCESSOR_HINT = "train again: bigmodel train --restart"


@dataclass(frozen=True)
class Deployed:
    """The bundle's folder and receipt, and whether it was up to date."""

    folder: Path
    receipt: Receipt
    layout: str
    fresh: bool


def run(config: DeployConfig, workdir: Workdir, name: str, context: Context) -> Deployed:
    """Writes the run's bundle, and proves it, unless it is up to date.

    Raises UsageError, ArtifactError, ResourceError; BigmodelError when the proof fails.
    """
    place = workdir.run(name)
    training = place.read_config()
    data = workdir.read_data()
    with lock(place.folder, workdir.root):
        if place.read_config() != training:
            raise StoppedError(f"run `{name}` was restarted by another process", "run it again")
        if (place.folder / ASIDE).exists() and not place.bundle.exists():
            (place.folder / ASIDE).replace(place.bundle)  # killed while it was swapped
        shutil.rmtree(place.folder / ASIDE, ignore_errors=True)  # or just after
        path, state = checkpoint.find(place.checkpoints, config.checkpoint)
        weights = state.weights
        evaluation = _evaluation(place, weights, context)
        recipe = {
            "stage": "deploy",
            "weights": weights,
            "options": {
                k: v for k, v in identity(config).items() if k != "checkpoint" and (k, v) != UNSAID
            },
            "evaluation": evaluation.fingerprint if evaluation else None,
            "prover": _transformers_version(),
        }
        fingerprint = manifest.fingerprint(recipe)
        old = _old(place.bundle, fingerprint) if not config.force else None
        if old:
            return old
        workdir.check_data(training, data)
        return _build(
            path, state, training, data, evaluation, fingerprint, config.precision, workdir, place,
            context,
        )  # fmt: skip


def _transformers_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("transformers")
    except PackageNotFoundError:
        return None


def _evaluation(place: Run, weights: str, context: Context) -> Evaluation | None:
    """The evaluation of these very weights, if there is one."""
    if not place.evaluation.exists():
        return None
    try:
        found = manifest.read_record(place.evaluation, Evaluation, "evaluation", "")
    except FormatError:
        raise
    except BigmodelError as error:
        context.warn(f"{error.message}; the model counts as not evaluated")
        return None
    return found if found.weights == weights else None


def _old(folder: Path, fingerprint: str) -> Deployed | None:
    try:
        bundle = manifest.read_record(folder / BUNDLE, Bundle, "bundle", "")
        if bundle.fingerprint != fingerprint:
            return None
        for name, info in bundle.files.items():
            if (folder / name).stat().st_size != info.bytes:
                return None
        receipt = manifest.read_record(folder / RECEIPT, Receipt, "receipt", "")
    except FormatError:
        raise
    except (BigmodelError, OSError):
        return None
    return Deployed(folder, receipt, bundle.layout, fresh=True)


def _build(
    path: Path,
    state: CheckpointState,
    training: RunConfig,
    data: DataManifest,
    evaluation: Evaluation | None,
    fingerprint: str,
    precision: Any,
    workdir: Workdir,
    place: Run,
    context: Context,
) -> Deployed:
    context.emit(Progress("load"))
    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.deploy import huggingface
    from bigmodel_cli.deploy.card import card
    from bigmodel_cli.deploy.receipt import effect
    from bigmodel_cli.models import qwen3
    from bigmodel_cli.models.precision import check
    from bigmodel_cli.models.sequence import build
    from bigmodel_cli.tasks.text import TextTask

    manifest.check_files(
        place.preprocessor, training.preprocessor, "preprocessor", PREPROCESSOR_HINT
    )
    task = load_task(place.preprocessor, PREPROCESSOR_HINT)
    shape = model_of(training.model, task, f"run `{training.run}`", PREPROCESSOR_HINT)
    check(shape, precision, "cpu")
    weights = checkpoint.load_tensors(path / checkpoint.MODEL)
    model = build(shape, weights, str(path))
    name = f"bigmodel-{place.name}"
    staging = place.folder / f"{manifest.TEMPORARY}bundle"
    with manifest.storage(staging):
        staging.mkdir()
    save_task(task, staging)
    if isinstance(task, TextTask) and qwen3.fits(shape):
        portable, exported = True, qwen3.export_weights(weights, shape)
        for file, document in {
            "config.json": huggingface.config_json(shape, task.tokenizer),
            "generation_config.json": huggingface.generation_config_json(task.tokenizer, task.ends),
            "tokenizer_config.json": huggingface.tokenizer_config_json(shape, task.chat_template),
        }.items():
            manifest.write_atomic(staging / file, _pretty(document))
    else:
        portable, exported = False, dict(weights)
        context.note(f"this {shape.family} is loadable by bigmodel alone")
    context.emit(Progress("write"))
    checkpoint.save_tensors(staging / checkpoint.MODEL, exported)
    held_out, *proofs = _proofs(model, task, staging, portable, data, workdir, context)
    cost: Effect | UnsetType = UNSET
    if precision != "fp32":
        split = Split(workdir.data, data.splits[held_out].shards)
        rows = training.resolved.micro_batch  # what training found room for
        cost = effect(task, model, precision, split, rows)
    receipt = Receipt(
        split=held_out,
        bigmodel=proofs[0],
        transformers=proofs[1],
        precision=cost,
        run=place.name,
        checkpoint=path.name,
        weights=state.weights,
        evaluated=evaluation is not None,
        # figures of unlike precisions agree to rounding
        evaluated_in=evaluation.environment.get("precision") if evaluation else None,
        answers_in=precision,
    )
    manifest.write_record(staging / RECEIPT, receipt)
    text = card(name, task, shape, training, state, data, evaluation, receipt, portable)
    manifest.write_atomic(staging / CARD, text.encode())
    files = {p.name: manifest.file_info(p) for p in sorted(staging.iterdir()) if p.name != BUNDLE}
    bundle = Bundle(
        name=name,
        task=task.name,
        model=shape.to_json(),
        layout="huggingface" if portable else "native",
        precision=precision,
        fingerprint=fingerprint,
        training=training.fingerprint,
        data_fingerprint=data.fingerprint,
        files=files,
    )
    manifest.write_record(staging / BUNDLE, bundle)
    with context.stop.deferred():
        _publish(staging, place)
    if context.stop.requested:
        context.stop.raise_()
    return Deployed(place.bundle, receipt, bundle.layout, fresh=False)


def _pretty(document: Mapping[str, Any]) -> bytes:
    import json

    return (json.dumps(document, indent=2) + "\n").encode()


def _proofs(
    model: Any,
    task: Task,
    staging: Path,
    portable: bool,
    data: DataManifest,
    workdir: Workdir,
    context: Context,
) -> tuple[str, Proof, Proof]:
    """Loads what was written, by both ways that users load it, and compares with the checkpoint on
    a split, which is named."""
    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.deploy import receipt
    from bigmodel_cli.models import qwen3
    from bigmodel_cli.models.precision import lower
    from bigmodel_cli.models.sequence import build

    context.emit(Progress("prove"))
    held_out = next((n for n in ("test", "val", "train") if data.splits[n].shards), "train")
    split = Split(workdir.data, data.splits[held_out].shards)
    proof = task.proof(split, receipt.TEXTS)
    weights = checkpoint.load_tensors(staging / checkpoint.MODEL)
    if portable:
        weights = qwen3.native_weights(weights, model.config)
    again = lower(build(model.config, weights, str(staging)), "fp32")  # as `predict` has it
    own = receipt.compare(model, proof.inputs, again, receipt.greedy(again), "the bundle")
    if same := receipt.answers(task, model, again, proof.requests):
        own = replace(own, answers=len(proof.requests), answers_identical=same)
    other = Proof(proof="none: loadable by bigmodel alone")
    if portable:
        other = receipt.transformers_proof(staging, model, proof.inputs, proof.texts)
        if other.proof != "passed":
            context.warn(f"the proof with transformers was {other.proof}")
    return held_out, own, other


def _publish(staging: Path, place: Run) -> None:
    """Swaps the bundle: the old one goes aside, the new one takes its place."""
    aside = place.folder / ASIDE
    with manifest.storage(place.bundle):
        manifest.sync_folder(staging)
        shutil.rmtree(aside, ignore_errors=True)
        if place.bundle.exists():
            place.bundle.replace(aside)
        staging.replace(place.bundle)
        manifest.sync_folder(place.folder)
        shutil.rmtree(aside, ignore_errors=True)
