"""Options of prepare that are more than a value: shares of the splits, columns, escapes."""

from __future__ import annotations

from collections.abc import Sequence

from bigmodel_cli.errors import UsageError


def fraction(text: str, name: str = "val") -> float | None:
    """A split's share, or None when the text names a source."""
    if not text.strip():
        raise UsageError(f"--{name} is empty", "give a fraction such as 0.05, or a source")
    try:
        value = float(text)
    except ValueError:
        return None
    if not 0 <= value < 1:
        raise UsageError(
            f"--{name} is `{text}`, but a share must be from 0 to below 1",
            "give a fraction such as 0.05, or a source",
        )
    return value


def escaped(text: str) -> str:
    """What a shell cannot easily say: newlines and tabs."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def names_listed(parts: Sequence[str]) -> tuple[str, ...]:
    """The names of columns, of which each part may hold several with commas between them."""
    return tuple(name.strip() for part in parts for name in part.split(","))


def wanted_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Column names by the task's names for them. Raises UsageError."""
    found = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not (name and equals and column):
            raise UsageError(f"--column is `{pair}`", "say which is which: --column text=body")
        found[name] = column
    return found
