"""What artifacts say, as the cells of tables: for the screen, the report and the model card."""

from __future__ import annotations

from bigmodel_cli.artifacts.records import DataManifest, Evaluation, LedgerRecord

METRICS = ["metric", "model", "95 % interval", "strongest baseline", "model is"]


def figure(value: float | None) -> str:
    """A metric's value for a person."""
    if value is None:
        return "–"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}"


def metric_rows(evaluation: Evaluation) -> list[list[str]]:
    """Under `METRICS`: whether the model is better or worse is judged by the interval of the
    difference; else it is unclear."""
    found = []
    for name, metric in evaluation.metrics.items():
        baseline = evaluation.baseline.get(name)
        known = metric.low is not None
        interval = f"{figure(metric.low)} – {figure(metric.high)}" if known else "–"
        against = f"{figure(baseline.value)} ({baseline.name})" if baseline else "–"
        verdict = baseline.model_is or "" if baseline else ""
        found.append([name, figure(metric.value), interval, against, verdict])
    return found


def splits_table(data: DataManifest) -> tuple[list[str], list[list[str]]]:
    """How much is in each split: the header and the rows."""
    header = ["split", data.unit, "bytes", data.measure]
    rows = [
        [name, f"{part.units:,}", f"{part.bytes:,}", f"{part.tokens:,}"]
        for name, part in data.splits.items()
    ]
    return header, rows


def ledger_rows(ledger: LedgerRecord) -> list[list[str]]:
    """What came in, what became of it, and what was kept: in rows and in bytes."""
    reasons = [
        (f"{kind} {reason}", entry)
        for kind, table in (("dropped", ledger.dropped), ("removed", ledger.removed))
        for reason, entry in table.items()
    ]
    whole = [("came in", ledger.came_in), *reasons, ("kept", ledger.kept)]
    return [[name, f"{part.rows:,}", f"{part.bytes:,}"] for name, part in whole]
