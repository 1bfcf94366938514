"""bigmodel status: what is there, fresh, stale (and why) or missing. Reads manifests only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.bundle import RECEIPT
from bigmodel_cli.artifacts.records import Evaluation, Receipt, RunConfig
from bigmodel_cli.artifacts.workdir import Run, Workdir
from bigmodel_cli.cli import render
from bigmodel_cli.cli.advice import here
from bigmodel_cli.cli.options import Common, command
from bigmodel_cli.errors import BigmodelError, UsageError
from bigmodel_cli.tasks import stored_task

HELP = """Show every stage of the working directory: fresh, stale (and why), missing or corrupt.

    bigmodel status

    bigmodel status --json -w /somewhere/work | jq .runs"""


def register(app: typer.Typer) -> None:
    command(app, "status", [], act, HELP, run=False)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Common) -> None:
    del run, flags
    place = Workdir(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"`{workdir}` is not a folder", "choose another with --workdir")
    data = data_state(place)
    runs = {
        item.name: [
            _guarded(stage, state, item, place)
            for stage, state in (
                ("train", train_state),
                ("evaluate", evaluate_state),
                ("deploy", deploy_state),
            )
        ]
        for item in place.runs()
    }
    if common.json:
        shown = {name: [state.to_json() for state in states] for name, states in runs.items()}
        render.document({"workdir": str(workdir), "data": data.to_json(), "runs": shown})
        return
    render.say(str(workdir))
    named = [("data", data), *((name, state) for name, states in runs.items() for state in states)]
    lines = [
        [render.clean(cell) for cell in (name, s.stage, s.state, s.detail, s.where)]
        for name, s in named
    ]
    widths = [max(render.width_of(line[i]) for line in lines) for i in range(5)]
    for line in lines:
        cells = [cell + " " * (w - render.width_of(cell)) for cell, w in zip(line, widths)]
        render.say("  " + "  ".join(cells).rstrip())


@dataclass(frozen=True)
class State:
    """What there is of a stage. bytes, date: of its newest file; None where there is nothing."""

    stage: str
    state: str
    detail: str = ""
    bytes: int | None = None
    date: str = ""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}

    @property
    def where(self) -> str:
        return "" if self.bytes is None else f"{render.size(self.bytes)}, {self.date}"


def _state(stage: str, state: str, detail: str, path: Path) -> State:
    """With the size of a file, or of all that is in a folder."""
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    newest = max((p.stat().st_mtime for p in files), default=0.0)
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(newest))
    return State(stage, state, detail, sum(p.stat().st_size for p in files), date)


def _guarded(
    stage: str, state: Callable[[Run, Workdir], State], item: Run, place: Workdir
) -> State:
    try:
        return state(item, place)
    except BigmodelError as error:
        return State(stage, "corrupt", error.message)
    except Exception as error:  # whatever is in the files, status says so and continues
        return State(stage, "corrupt", f"a manifest is damaged: {error!r}")


def data_state(place: Workdir) -> State:
    """The prepared data: complete by name and size, and still of its sources where these are."""
    if not place.manifest.exists():
        return State("prepare", "missing", here("bigmodel prepare SOURCE"))
    try:
        data = place.read_data()
        from bigmodel_cli.prepare.fingerprints import source_changes
        from bigmodel_cli.prepare.run import intact

        if not intact(place, data):
            damage = "shards or preprocessor are damaged"
            return _state("prepare", "corrupt", damage, place.data)
        changed = source_changes(place, data)
        splits = {name: part for name, part in data.splits.items() if part.units}
        units = ", ".join(f"{part.units:,} {name}" for name, part in splits.items())
        tokens = sum(part.tokens for part in splits.values())
        detail = f"{data.task}, {data.unit}: {units}; {tokens:,} {data.measure}"
    except BigmodelError as error:
        return State("prepare", "corrupt", error.message)
    except Exception as error:
        return State("prepare", "corrupt", f"the manifest is damaged: {error!r}")
    if changed:
        return _state("prepare", "stale", "; ".join(changed[:3]), place.data)
    return _state("prepare", "fresh", detail, place.data)


def _data_is(known: RunConfig, place: Workdir) -> str:
    """Why a run is stale, as far as its data go; "" if it is not."""
    if not place.manifest.exists():
        return "its data are gone"
    if place.read_data().fingerprint != known.data_fingerprint:
        return "the data have changed since"
    return ""


def train_state(item: Run, place: Workdir) -> State:
    known = item.read_config()
    names = checkpoint.names(item.checkpoints)
    if not names:
        return State("train", "unfinished", "no checkpoint yet")
    state = checkpoint.read_state(item.checkpoints / names[-1])
    positions = stored_task(known.task).positions
    detail = f"step {state.step:,}, {state.tokens:,} {positions}"
    best = checkpoint.read_best(item.checkpoints).name
    validation = checkpoint.read_state(item.checkpoints / best).validation
    if validation:
        metric, value = next(iter(validation.items()))
        shown = "–" if value is None else f"{value:.4g}"
        detail += f"; best {best}: validation {metric} {shown}"
    stale = _data_is(known, place)
    kind = "stale" if stale else "fresh" if state.finished else "unfinished"
    return _state("train", kind, stale or detail, item.checkpoints)


def evaluate_state(item: Run, place: Workdir) -> State:
    if not item.evaluation.exists():
        return State("evaluate", "missing", here("bigmodel evaluate", item.name))
    evaluation = manifest.read_record(item.evaluation, Evaluation, "evaluation", "")
    metric, entry = next(iter(evaluation.metrics.items()))
    why = _data_is(item.read_config(), place)
    if evaluation.weights not in _weights(item):
        why = "its checkpoint is gone"
    elif evaluation.weights != _weights(item).get("best"):
        why = why or "there is a better checkpoint"
    if why:
        return _state("evaluate", "stale", why, item.evaluation)
    gates = [gate.passed for gate in evaluation.gates]
    verdict = f", {sum(gates)} of {len(gates)} gates passed" if gates else ""
    sample = evaluation.protocol.get("sample")
    detail = f"{metric} {entry.value or 0:.4g} on {evaluation.split}, {evaluation.checkpoint}"
    detail += verdict + (f", {sample}" if sample else "")
    return _state("evaluate", "fresh", detail, item.evaluation)


def deploy_state(item: Run, place: Workdir) -> State:
    if not item.bundle.exists():
        return State("deploy", "missing", here("bigmodel deploy", item.name))
    receipt = manifest.read_record(item.bundle / RECEIPT, Receipt, "receipt", "")
    why = ""
    if receipt.weights not in _weights(item):
        why = "its checkpoint is gone"
    elif receipt.weights != _weights(item).get("best"):
        why = "there is a better checkpoint"
    elif not receipt.evaluated and evaluate_state(item, place).state == "fresh":
        why = "it was made before its evaluation"
    if why:
        return _state("deploy", "stale", why, item.bundle)
    return _state("deploy", "fresh", receipt.checkpoint, item.bundle)


def _weights(item: Run) -> dict[str, str]:
    """The hashes of all checkpoints' weights (each hash under itself), and the best one's."""
    found = {}
    best = checkpoint.read_best(item.checkpoints).name
    for name in checkpoint.names(item.checkpoints):
        digest = checkpoint.read_state(item.checkpoints / name).weights
        found[digest] = name
        if name == best:
            found["best"] = digest
    return found
