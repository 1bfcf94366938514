"""A bundle: a model with all that answering takes, and the manifest that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.artifacts.manifest import check_file, read_json
from bigmodel_cli.errors import ArtifactError

FILE, RECEIPT, CARD = "bigmodel.json", "receipt.json", "README.md"
HINT = "make the bundle again: bigmodel deploy --force"


def read(folder: Path) -> dict[str, Any]:
    """A bundle's manifest, once all of its files are what that says. Raises ArtifactError."""
    document = read_json(folder / FILE, "bundle", "make one: bigmodel deploy")
    try:
        for name, info in document["files"].items():
            check_file(folder / name, info, "bundle", HINT)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"the bundle `{folder}` is corrupt: {error!r}", HINT) from None
    return document
