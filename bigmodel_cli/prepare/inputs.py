"""What the sources are to the fingerprint: their hashes, and what became of them since."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.artifacts.workdir import HashCache, Workdir
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.events import Context
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.detect_task import reading, with_forms
from bigmodel_cli.prepare.given import escaped, names_listed, wanted_columns
from bigmodel_cli.prepare.readers import named_files
from bigmodel_cli.prepare.records import Choose
from bigmodel_cli.prepare.sources import Layout, Source, find

RULES = 3  # counts up whenever the same sources and options make other data than before


def describe(source: Source, choose: Choose, layout: Layout, context: Context) -> dict[str, Any]:
    """A source by its name and hash; `named`: the hashes of the files that its rows name."""
    if source.path is None:
        context.note(f"loading {source.name}")
        return {
            "name": source.name,
            "split": source.split,
            "sha256": str(sources.load_hub(source.hub)._fingerprint),
        }
    try:
        digest = layout.cache.sha256(source.path)
    except OSError as error:
        raise DataError(f"`{source.path}` cannot be read: {error.strerror}") from None
    found = {"name": source.name, "split": source.split, "sha256": digest}
    named: dict[str, str | None] = {}
    for name in sorted(named_files(source, choose, layout)):
        named[name] = _digest(source, name, layout.cache)
    return {**found, "named": named} if named else found


def _digest(source: Source, name: str, cache: HashCache) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        path = source.folder / name
        return cache.sha256(path) if path.is_file() else None
    return None


def check(read: Sequence[Source], described: Sequence[Mapping[str, Any]], cache: HashCache) -> None:
    """Raises DataError where a source that was read is no longer what its hash says."""
    for source, item in zip(read, described, strict=True):
        if source.path is None:
            continue
        named = item.get("named", {})
        hashes = {str(source.path.absolute()): item["sha256"], **named}
        if any(_digest(source, name, cache) != digest for name, digest in hashes.items()):
            also = ", or a file that it names," if named else ""
            raise DataError(
                f"`{source.name}`{also} changed while it was being read",
                "run it again once nothing writes there, or on a copy",
            )


def by_name(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with its inputs by name, for people to be told what differs."""
    inputs = {item["name"]: item["sha256"] for item in recipe["inputs"]}
    files = {item["name"]: item["named"] for item in recipe["inputs"] if "named" in item}
    return {**recipe, "inputs": inputs, **({"named files": files} if files else {})}


def source_changes(workdir: Workdir, document: Mapping[str, Any]) -> list[str]:
    """What changed in the sources since; nothing if they are not here to look at."""
    if document["recipe"].get("rules") != RULES:
        return ["they were prepared by the rules of another version"]
    command = document["command"]
    local = [s for s in command["sources"] if s != "-" and not s.startswith("hf:")]
    if len(local) < len(command["sources"]):
        return []  # what came through a pipe or from the hub cannot be looked at again
    options = document["recipe"]["options"]
    layout = Layout(
        header=names_listed(options.get("header", ())),
        delimiter=escaped(options.get("delimiter", "")),
        encoding=options.get("encoding", ""),
        cache=HashCache(workdir.data),
    )
    wanted = wanted_columns(options.get("column", ()))
    try:
        found = find(local, command["exclude"], workdir.data, workdir.root)
    except DataError:
        return []
    try:
        found = reading(with_forms(found, wanted, layout), document["task"], wanted, layout).sources
    except (DataError, UsageError) as error:
        return [error.message]
    cache = layout.cache
    now = {s.name: cache.sha256(s.path) for s in found if s.path}
    changed = manifest.changes(by_name(document["recipe"])["inputs"], now)
    named = {
        item["name"]: item["named"] for item in document["recipe"]["inputs"] if "named" in item
    }
    for source in found:
        before = named.get(source.name, {})
        after = {name: _digest(source, name, cache) for name in before}
        changed += manifest.changes(before, after, f"{source.name}: ")
    return changed
