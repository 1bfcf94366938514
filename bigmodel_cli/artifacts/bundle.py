"""A bundle: a model with all that answering takes, and the manifest that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.artifacts import checkpoint, forms
from bigmodel_cli.artifacts.manifest import check_files, read_json
from bigmodel_cli.errors import ArtifactError

FILE, RECEIPT, CARD = "bigmodel.json", "receipt.json", "README.md"
HINT = "make the bundle again: bigmodel deploy --force"


def read(folder: Path) -> dict[str, Any]:
    """A bundle's manifest, once all of its files are what that says. Raises ArtifactError."""
    document = read_json(folder / FILE, "bundle", "make one: bigmodel deploy", forms.BUNDLE)
    if checkpoint.MODEL not in document["files"]:
        raise ArtifactError(f"the bundle `{folder}` lists no {checkpoint.MODEL}", HINT)
    check_files(folder, document["files"], "bundle", HINT, own=FILE)
    return document
