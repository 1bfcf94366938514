"""bigmodel status: what is there, fresh, stale (and why) or missing. Reads manifests only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.bundle import RECEIPT
from bigmodel_cli.artifacts.records import Evaluation, Receipt, RunConfig
from bigmodel_cli.artifacts.workdir import Run, Workdir
from bigmodel_cli.cli import render
from bigmodel_cli.cli.advice import here
from bigmodel_cli.cli.options import command
from bigmodel_cli.errors import BigmodelError, UsageError
from bigmodel_cli.tasks import task_class

HELP = """Show every stage of the working directory: fresh, stale (and why), missing or corrupt.

    bigmodel status

    bigmodel status --json -w /somewhere/work | jq .runs"""


def register(app: typer.Typer) -> None:
    command(app, "status", [], act, HELP, run=False)


def act(workdir: Path, run: str, flags: dict[str, Any], common: Mapping[str, Any]) -> None:
    del run, flags
    place = Workdir(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"`{workdir}` is not a folder", "choose another with --workdir")
    stages = [{"stage": "prepare", **data_state(place)}]
    runs = {}
    for item in place.runs():
        runs[item.name] = [
            {"stage": stage, **_guarded(state, item, place)}
            for stage, state in (
                ("train", train_state),
                ("evaluate", evaluate_state),
                ("deploy", deploy_state),
            )
        ]
    if common["json_"]:
        render.document({"workdir": str(workdir), "data": stages[0], "runs": runs})
        return
    render.say(str(workdir))
    lines = [["data", s["stage"], s["state"], s.get("detail", ""), _where(s)] for s in stages]
    for name, states in runs.items():
        lines += [[name, s["stage"], s["state"], s.get("detail", ""), _where(s)] for s in states]
    lines = [[render.clean(cell) for cell in line] for line in lines]
    widths = [max(render.width_of(line[i]) for line in lines) for i in range(5)]
    for line in lines:
        cells = [cell + " " * (w - render.width_of(cell)) for cell, w in zip(line, widths)]
        render.say("  " + "  ".join(cells).rstrip())


def _where(state: Mapping[str, Any]) -> str:
    if "bytes" not in state:
        return ""
    return f"{render.size(state['bytes'])}, {state['date']}"


def _size(folder: Path) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    newest = max((path.stat().st_mtime for path in files), default=0.0)
    return {
        "bytes": sum(path.stat().st_size for path in files),
        "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(newest)),
    }


def _guarded(state: Any, item: Run, place: Workdir) -> dict[str, Any]:
    try:
        return state(item, place)  # type: ignore[no-any-return]
    except BigmodelError as error:
        return {"state": "corrupt", "detail": error.message}
    except Exception as error:  # whatever is in the files, status says so and goes on
        return {"state": "corrupt", "detail": f"a manifest is damaged: {error!r}"}


def data_state(place: Workdir) -> dict[str, Any]:
    """The prepared data: complete by name and size, and still of its sources where these are."""
    if not place.manifest.exists():
        return {"state": "missing", "detail": here("bigmodel prepare SOURCE")}
    try:
        data = place.read_data()
        from bigmodel_cli.prepare.inputs import source_changes
        from bigmodel_cli.prepare.run import intact

        if not intact(place, data):
            return {
                "state": "corrupt",
                "detail": "shards or preprocessor are damaged",
                **_size(place.data),
            }
        changed = source_changes(place, data)
        splits = {name: part for name, part in data.splits.items() if part.units}
        units = ", ".join(f"{part.units:,} {name}" for name, part in splits.items())
        tokens = sum(part.tokens for part in splits.values())
        detail = f"{data.task}, {data.unit}: {units}; {tokens:,} {data.measure}"
    except BigmodelError as error:
        return {"state": "corrupt", "detail": error.message}
    except Exception as error:
        return {"state": "corrupt", "detail": f"the manifest is damaged: {error!r}"}
    if changed:
        return {"state": "stale", "detail": "; ".join(changed[:3]), **_size(place.data)}
    return {"state": "fresh", "detail": detail, **_size(place.data)}


def _data_is(known: RunConfig, place: Workdir) -> str:
    """Why a run is stale, as far as its data go; "" if it is not."""
    if not place.manifest.exists():
        return "its data are gone"
    if place.read_data().fingerprint != known.data_fingerprint:
        return "the data have changed since"
    return ""


def train_state(item: Run, place: Workdir) -> dict[str, Any]:
    known = item.read_config()
    names = checkpoint.names(item.checkpoints)
    if not names:
        return {"state": "unfinished", "detail": "no checkpoint yet"}
    state = checkpoint.read_state(item.checkpoints / names[-1])
    positions = task_class(known.task).positions
    detail = f"step {state.step:,}, {state.tokens:,} {positions}"
    best = checkpoint.read_best(item.checkpoints).name
    validation = checkpoint.read_state(item.checkpoints / best).validation
    if validation:
        metric, value = next(iter(validation.items()))
        shown = "–" if value is None else f"{value:.4g}"
        detail += f"; best {best}: validation {metric} {shown}"
    stale = _data_is(known, place)
    kind = "stale" if stale else "fresh" if state.finished else "unfinished"
    return {"state": kind, "detail": stale or detail, **_size(item.checkpoints)}


def evaluate_state(item: Run, place: Workdir) -> dict[str, Any]:
    if not item.evaluation.exists():
        return {"state": "missing", "detail": here("bigmodel evaluate", item.name)}
    evaluation = manifest.read_record(item.evaluation, Evaluation, "evaluation", "")
    metric, entry = next(iter(evaluation.metrics.items()))
    why = _data_is(item.read_config(), place)
    if evaluation.weights not in _weights(item):
        why = "its checkpoint is gone"
    elif evaluation.weights != _weights(item).get("best"):
        why = why or "there is a better checkpoint"
    if why:
        return {"state": "stale", "detail": why, **_size_of(item.evaluation)}
    gates = [gate.passed for gate in evaluation.gates]
    verdict = f", {sum(gates)} of {len(gates)} gates passed" if gates else ""
    sample = evaluation.protocol.get("sample")
    return {
        "state": "fresh",
        **_size_of(item.evaluation),
        "detail": f"{metric} {entry.value or 0:.4g} on {evaluation.split}, "
        f"{evaluation.checkpoint}{verdict}{f', {sample}' if sample else ''}",
    }


def deploy_state(item: Run, place: Workdir) -> dict[str, Any]:
    if not item.bundle.exists():
        return {"state": "missing", "detail": here("bigmodel deploy", item.name)}
    receipt = manifest.read_record(item.bundle / RECEIPT, Receipt, "receipt", "")
    why = ""
    if receipt.weights not in _weights(item):
        why = "its checkpoint is gone"
    elif receipt.weights != _weights(item).get("best"):
        why = "there is a better checkpoint"
    elif not receipt.evaluated and evaluate_state(item, place)["state"] == "fresh":
        why = "it was made before its evaluation"
    if why:
        return {"state": "stale", "detail": why, **_size(item.bundle)}
    return {"state": "fresh", "detail": receipt.checkpoint, **_size(item.bundle)}


def _size_of(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {
        "bytes": stat.st_size,
        "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(stat.st_mtime)),
    }


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
