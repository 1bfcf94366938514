"""What artifacts say, as the cells of tables: for the screen, the report and the model card."""

from __future__ import annotations

from bigmodel_cli.artifacts.records import DataManifest, LedgerRecord


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
