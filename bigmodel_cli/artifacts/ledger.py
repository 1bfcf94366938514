"""The ledger: every row that came in is either kept or counted under a reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from bigmodel_cli.artifacts.records import Amount, LedgerRecord, Reason
from bigmodel_cli.errors import BigmodelError

SHOWN = 3  # places named for each reason


@dataclass(slots=True)
class Entry:
    rows: int = 0
    bytes: int = 0
    where: list[str] = field(default_factory=list)


@dataclass
class Ledger:
    """Counts in rows and in bytes of text (UTF-8). In = kept + Σ reasons, for both.

    `dropped` counts whole rows; `removed` counts bytes cut out of rows that were kept.
    """

    rows_in: int = 0
    bytes_in: int = 0
    kept: Entry = field(default_factory=Entry)
    dropped: dict[str, Entry] = field(default_factory=dict)
    removed: dict[str, Entry] = field(default_factory=dict)

    def came_in(self, rows: int, size: int) -> None:
        self.rows_in += rows
        self.bytes_in += size

    def keep(self, rows: int, size: int) -> None:
        self.kept.rows += rows
        self.kept.bytes += size

    def drop(self, reason: str, size: int, where: str, rows: int = 1) -> None:
        self._add(self.dropped, reason, rows, size, where)

    def remove(self, reason: str, size: int, where: str, rows: int = 1) -> None:
        """`size` bytes were cut out of `rows` rows that go on."""
        self._add(self.removed, reason, rows, size, where)

    def cut(self, reason: str, size: int, where: str) -> None:
        """`size` bytes were cut off a row that counts as kept already."""
        self.kept.bytes -= size
        self.remove(reason, size, where)

    @staticmethod
    def _add(table: dict[str, Entry], reason: str, rows: int, size: int, where: str) -> None:
        entry = table.setdefault(reason, Entry())
        entry.rows += rows
        entry.bytes += size
        if len(entry.where) < SHOWN and where:
            entry.where.append(where)

    @property
    def rows_dropped(self) -> int:
        return sum(entry.rows for entry in self.dropped.values())

    def record(self) -> LedgerRecord:
        """The ledger for the manifest. Raises BigmodelError if it does not add up."""
        lost = sum(e.bytes for e in (*self.dropped.values(), *self.removed.values()))
        if (
            self.rows_in != self.kept.rows + self.rows_dropped
            or self.bytes_in != self.kept.bytes + lost
        ):
            raise BigmodelError(
                f"the ledger does not add up: {self.rows_in:,} rows and {self.bytes_in:,} bytes "
                f"came in, {self.kept.rows + self.rows_dropped:,} and "
                f"{self.kept.bytes + lost:,} are accounted for",
                "please report this",
            )

        def reasons(table: dict[str, Entry]) -> dict[str, Reason]:
            return {
                reason: Reason(rows=e.rows, bytes=e.bytes, where=e.where)
                for reason, e in sorted(table.items())
            }

        return LedgerRecord(
            came_in=Amount(rows=self.rows_in, bytes=self.bytes_in),
            kept=Amount(rows=self.kept.rows, bytes=self.kept.bytes),
            dropped=reasons(self.dropped),
            removed=reasons(self.removed),
        )
