"""What the sources are to the fingerprint: their hashes, and what became of them since."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.artifacts.records import DataManifest, Input, Recipe, as_json
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


def describe(source: Source, choose: Choose, layout: Layout, context: Context) -> Input:
    """A source by its name and hash; `named`: the hashes of the files that its rows name."""
    if source.path is None:
        context.note(f"loading {source.name}")
        digest = str(sources.load_hub(source.hub)._fingerprint)
        return Input(name=source.name, split=source.split, sha256=digest)
    try:
        digest = layout.cache.sha256(source.path)
    except OSError as error:
        raise DataError(f"`{source.path}` cannot be read: {error.strerror}") from None
    named: dict[str, str | None] = {}
    for name in sorted(named_files(source, choose, layout)):
        named[name] = _digest(source, name, layout.cache)
    return Input(name=source.name, split=source.split, sha256=digest, named=named or UNSET)


def _digest(source: Source, name: str, cache: HashCache) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        path = source.folder / name
        return cache.sha256(path) if path.is_file() else None
    return None


def check(read: Sequence[Source], described: Sequence[Input], cache: HashCache) -> None:
    """Raises DataError where a source that was read is no longer what its hash says."""
    for source, item in zip(read, described, strict=True):
        if source.path is None:
            continue
        named = item.named or {}
        hashes = {str(source.path.absolute()): item.sha256, **named}
        if any(_digest(source, name, cache) != digest for name, digest in hashes.items()):
            also = ", or a file that it names," if named else ""
            raise DataError(
                f"`{source.name}`{also} changed while it was being read",
                "run it again once nothing writes there, or on a copy",
            )


def by_name(recipe: Recipe) -> dict[str, Any]:
    """A recipe with its inputs by name, for people to read what differs."""
    inputs = {item.name: item.sha256 for item in recipe.inputs}
    files = {item.name: item.named for item in recipe.inputs if item.named}
    return {**as_json(recipe), "inputs": inputs, **({"named files": files} if files else {})}


def source_changes(workdir: Workdir, data: DataManifest) -> list[str]:
    """What changed in the sources since; nothing if they are not here to look at."""
    if data.recipe.rules != RULES:
        return ["they were prepared by the rules of another version"]
    command, options = data.command, data.recipe.options
    local = [s for s in command.sources if s != "-" and not s.startswith("hf:")]
    if len(local) < len(command.sources):
        return []  # what came through a pipe or from the hub cannot be looked at again
    layout = Layout(
        header=names_listed(options.get("header", ())),
        delimiter=escaped(options.get("delimiter", "")),
        encoding=options.get("encoding", ""),
        cache=HashCache(workdir.data),
    )
    wanted = wanted_columns(options.get("column", ()))
    try:
        found = find(local, command.exclude, workdir.data, workdir.root)
    except DataError:
        return []
    try:
        found = reading(with_forms(found, wanted, layout), data.task, wanted, layout).sources
    except (DataError, UsageError) as error:
        return [error.message]
    cache = layout.cache
    now = {s.name: cache.sha256(s.path) for s in found if s.path}
    changed = manifest.changes({item.name: item.sha256 for item in data.recipe.inputs}, now)
    named = {item.name: item.named for item in data.recipe.inputs if item.named}
    for source in found:
        before = named.get(source.name, {})
        after = {name: _digest(source, name, cache) for name in before}
        changed += manifest.changes(before, after, f"{source.name}: ")
    return changed
