"""A bundle: a model with all that answering takes, and the manifest that says so."""

from __future__ import annotations

from pathlib import Path

from bigmodel_cli.artifacts.manifest import check_files, read_record
from bigmodel_cli.artifacts.records import Bundle

FILE, RECEIPT, CARD = "bigmodel.json", "receipt.json", "README.md"
HINT = "make the bundle again: bigmodel deploy --force"


def read(folder: Path) -> Bundle:
    """A bundle's manifest, once all of its files are what that says. Raises ArtifactError."""
    bundle = read_record(folder / FILE, Bundle, "bundle", "make one: bigmodel deploy")
    check_files(folder, bundle.files, "bundle", HINT, own=FILE)
    return bundle
