"""prepare: raw files → tokenized, checksummed shards.

Two passes: the first reads, cleans, drops duplicates and splits, and spools what is left to
disk; then the task learns its tokenizer from the spooled training units, and the second pass
encodes them into shards. The manifest comes last.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.artifacts.records import (
    Command,
    DataManifest,
    LedgerRecord,
    Recipe,
    Shard,
    SplitRecord,
    as_json,
)
from bigmodel_cli.artifacts.workdir import HashCache, Workdir, lock
from bigmodel_cli.config import PrepareConfig
from bigmodel_cli.errors import ArtifactError, DataError, FormatError, UsageError, did_you_mean
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.options import identity
from bigmodel_cli.prepare import fingerprints
from bigmodel_cli.prepare.given import escaped, fraction, names_listed, wanted_columns
from bigmodel_cli.tasks import Rows, Task, save_task, task_class, unused_tasks
from bigmodel_cli.tasks.keys import task_options
from bigmodel_cli.worker import beside

FEW_UNITS = 30


@dataclass(frozen=True)
class Prepared:
    """The manifest, and whether it was up to date already."""

    manifest: DataManifest
    fresh: bool


def run(
    config: PrepareConfig, said: Mapping[str, Any], workdir: Workdir, context: Context
) -> Prepared:
    """Builds work/data from the sources, unless it is up to date. said: options of a task's own.

    Raises UsageError, DataError, ResourceError; StoppedError when another process builds it.
    """
    from bigmodel_cli.prepare.describe import more_is_skipped, what_is_read, what_is_skipped
    from bigmodel_cli.prepare.detect_task import check_text, reading, with_forms
    from bigmodel_cli.prepare.sources import Layout, find
    from bigmodel_cli.prepare.split_names import recognise_splits
    from bigmodel_cli.prepare.spool import Spool
    from bigmodel_cli.prepare.texts import encoding_named

    wanted = wanted_columns(config.column)
    if config.task != "auto":
        task_class(config.task)  # raises
    for line in unused_tasks():
        context.warn(line)
    layout = Layout(
        escaped(config.document_separator),
        names_listed(config.header),
        escaped(config.delimiter),
        encoding_named(config.encoding),
        context=context,
        cache=HashCache(workdir.data),
    )
    if config.force:
        layout.cache.known.clear()
    if len(set(layout.header)) < len(layout.header) or "" in layout.header:
        shown = ",".join(layout.header)
        raise UsageError(
            f"--header is `{shown}`, but each column needs a name of its own",
            "for example: --header label,text",
        )
    fractions = {name: fraction(getattr(config, name), name) for name in ("val", "test")}
    if sum(share or 0 for share in fractions.values()) >= 1:
        raise UsageError(
            f"--val {config.val} and --test {config.test} leave nothing to train on",
            "choose shares that add up to less than 1",
        )
    config = dataclasses.replace(config, encoding=layout.encoding)  # by its one name
    with lock(workdir.data, workdir.root):
        place = workdir.data / f"{manifest.TEMPORARY}stdin", workdir.root, layout.delimiter
        aside: list[tuple[str, str]] = []
        found = find(config.sources, config.exclude, *place, lambda *why: aside.append(why))
        for name, share in fractions.items():
            if share is None:
                named = find([getattr(config, name)], (), *place, lambda *why: aside.append(why))
                taken = {(source.path, source.hub) for source in named}
                found = [s for s in found if (s.path, s.hub) not in taken] + [
                    dataclasses.replace(source, split=name) for source in named
                ]
        read = reading(with_forms(found, wanted, layout), config.task, wanted, layout)
        free = iter(recognise_splits([s for s in read.sources if not s.split], context.note))
        sources = [source if source.split else next(free) for source in read.sources]
        kind, read = read.task, read.marked(sources)
        task = kind(kind.Options(**task_options(kind, "prepare", said)))
        layout = dataclasses.replace(layout, kinds=kind.kinds, documents=kind.documents)
        if layout.encoding and not any(source.textual for source in sources):
            context.warn("--encoding changes nothing: no source is text")
        choose = _chooser(task, wanted)
        other = " (another: --task)" if config.task == "auto" else ""
        line = what_is_read(read, choose, layout)
        check_text(read, choose, wanted, layout)
        context.note(line + other)
        for line in what_is_skipped(read, aside):
            context.note(line)
        if more_is_skipped(read):
            context.warn(
                "more is skipped than is read: name the files themselves to read their "
                "text, too, or leave the records out with --exclude"
            )
        described = [fingerprints.describe(source, choose, layout, context) for source in sources]
        layout.cache.save()
        recipe = Recipe(
            rules=fingerprints.RULES,
            inputs=described,
            options={**_options(config), "task": task.name, **task.identity()},
        )
        fingerprint = manifest.fingerprint(as_json(recipe))
        old = _old(workdir, context)
        if old and not config.force:
            if old.fingerprint == fingerprint and intact(workdir, old):
                _check_loss(config, old.ledger)
                sweep(workdir, old)
                return Prepared(old, fresh=True)
            reasons = manifest.changes(
                fingerprints.by_name(old.recipe), fingerprints.by_name(recipe)
            )
            if reasons:
                context.note("building again, because of " + "; ".join(reasons[:3]))
        spools = [Spool(workdir.data / f"{manifest.TEMPORARY}{name}") for name in ("spool", "held")]
        with spools[0] as spool, spools[1] as held:
            built = _build(
                config,
                fractions,
                task,
                sources,
                layout,
                wanted,
                recipe,
                fingerprint,
                workdir,
                context,
                spool,
                held,
            )
        return Prepared(built, fresh=False)


def _chooser(task: Task, wanted: Mapping[str, str]) -> Any:
    """Which of a source's columns the task reads."""

    def choose(found: Mapping[str, str], where: str) -> dict[str, str]:
        chosen = task.columns(found, wanted, where)
        for name in wanted:
            if name not in chosen:
                raise UsageError(
                    f"--column names `{name}`, which the task `{task.name}` does not know",
                    did_you_mean(name, chosen),
                )
        return chosen

    return choose


def _options(config: PrepareConfig) -> dict[str, Any]:
    kept = identity(config)
    del kept["sources"], kept["exclude"], kept["max_loss"]  # what they select is in the inputs
    for name in ("val", "test"):
        kept[name] = fraction(kept[name]) if fraction(kept[name]) is not None else "a source"
    return kept


def _old(workdir: Workdir, context: Context) -> DataManifest | None:
    if not workdir.manifest.exists():
        return None
    try:
        return workdir.read_data()
    except FormatError:
        raise
    except ArtifactError as error:
        context.warn(f"{error.message}; building again")
        return None


def intact(workdir: Workdir, data: DataManifest) -> bool:
    """Whether what the manifest lists is there, by name and size: training checks the hashes."""
    files = [(workdir.data / shard.name, shard.bytes) for shard in _shards(data)]
    files += [(workdir.preprocessor / name, info.bytes) for name, info in data.preprocessor.items()]
    return all(path.exists() and path.stat().st_size == size for path, size in files)


def _shards(data: DataManifest) -> list[Shard]:
    return [shard for split in data.splits.values() for shard in split.shards]


def _build(
    config: PrepareConfig, fractions: dict[str, float | None], task: Task, sources: Sequence[Any],
    layout: Any, wanted: Mapping[str, str], recipe: Recipe, fingerprint: str,
    workdir: Workdir, context: Context, spool: Any, held: Any,
) -> DataManifest:  # fmt: skip
    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import ShardWriter
    from bigmodel_cli.prepare.aligned import together
    from bigmodel_cli.prepare.dedup import SPLITS, assign

    named = sorted({s.split for s in sources if s.split})
    ledger = Ledger()
    shares = {
        name: 0.0 if name in named or fractions[name] is None else fractions[name] or 0.0
        for name in ("val", "test")
    }
    # test and val come first, so that a duplicate is dropped from the train split
    whole = together(sources) if task.aligned and not layout.header else sources
    ordered = sorted(whole, key=lambda s: -SPLITS.index(s.split or "train"))
    learned = [source for source in ordered if source.split not in ("val", "test")]
    if len(learned) < len(ordered):
        for first in _read(learned, task, wanted, layout, Ledger(), Context()):
            if task.look(first):
                break
    rows = _read(ordered, task, wanted, layout, ledger, context)
    units = task.units(rows, ledger, shares)
    for split, part in assign(units, shares, config.seed, ledger, held):
        spool.add(split, part)
    held.remove()
    spool.close()
    fingerprints.check(sources, recipe.inputs, HashCache(workdir.data))
    _check(spool.units, shares, named, ledger.record(), task, config, context)

    size = spool.bytes["train"]
    context.emit(Progress("learn"))
    context.note(task.fit(lambda limit: spool.sample("train", limit), size, interruptible))
    staging = workdir.data / f"{manifest.TEMPORARY}build"
    staging.mkdir()
    splits: dict[str, SplitRecord] = {}
    total, done = sum(spool.bytes.values()), 0
    for split in SPLITS:
        tokens = 0
        with ShardWriter(staging, split) as writer:
            for part, size in spool.parts(split):
                columns = task.encode(part, ledger)
                tokens += len(columns.values[next(iter(columns.lengths))])
                writer.add(columns)
                done += size
                context.emit(Progress("encode", done, total, "B"))
            shards = writer.close()
        splits[split] = SplitRecord(
            units=spool.units[split],
            bytes=spool.bytes[split],
            tokens=tokens,
            content=spool.content[split].hexdigest(),
            shards=shards,
        )
    for remark in task.remarks():
        context.warn(remark)
    save_task(task, staging / "preprocessor")
    named_splits = (v for v in (config.val, config.test) if fraction(v) is None)
    data = DataManifest(
        task=task.name,
        unit=task.unit_name,
        measure=task.measure,
        fingerprint=fingerprint,
        recipe=recipe,
        command=Command(sources=[*config.sources, *named_splits], exclude=[*config.exclude]),
        splits=splits,
        ledger=ledger.record(),
        preprocessor=manifest.folder_info(staging / "preprocessor"),
    )
    with context.stop.deferred():
        _publish(staging, workdir, data)
    if context.stop.requested:
        context.stop.raise_()
    return workdir.read_data()


def _publish(staging: Path, workdir: Workdir, data: DataManifest) -> None:
    """Moves the new shards beside the old ones, then the manifest, then removes the old ones."""
    manifest.write_record(staging / "manifest.json", data)  # the last that needs room
    with manifest.storage(workdir.data):
        for shard in _shards(data):
            (staging / shard.name).replace(workdir.data / shard.name)
        # the preprocessor has fixed names: between here and the manifest the old data are gone
        while workdir.preprocessor.exists():  # by either name
            workdir.manifest.unlink(missing_ok=True)
            shutil.rmtree(workdir.preprocessor)
        (staging / "preprocessor").replace(workdir.preprocessor)
        manifest.sync_folder(workdir.data)
        (staging / "manifest.json").replace(workdir.manifest)
        manifest.sync_folder(workdir.data)
        sweep(workdir, data)
        shutil.rmtree(staging, ignore_errors=True)


def sweep(workdir: Workdir, data: DataManifest) -> None:
    """Removes shards that the manifest does not name: those of an earlier build."""
    kept = {shard.name for shard in _shards(data)}
    for path in workdir.data.glob("*.safetensors"):
        if path.name not in kept:
            path.unlink()


def _read(
    sources: Sequence[Any],
    task: Task,
    wanted: Mapping[str, str],
    layout: Any,
    ledger: Any,
    context: Context,
) -> Iterator[Rows]:
    from bigmodel_cli.prepare.readers import read_all
    from bigmodel_cli.prepare.sources import unpacked

    paths = [part.path for s in sources for part in s.columns.values() or [s] if part.path]
    total = sum(path.stat().st_size for path in paths) or None
    if layout.encoding or any(unpacked(path.name) != path.name for path in paths):
        total = None  # what is read is of another size
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        context.emit(Progress("read", done, total, "B"))

    yield from read_all(sources, _chooser(task, wanted), layout, ledger, advance)


def _check_loss(config: PrepareConfig, ledger: LedgerRecord) -> None:
    """Raises DataError if more was dropped than --max-loss allows, up to date or not."""
    came, lost = ledger.came_in.rows, ledger.came_in.rows - ledger.kept.rows
    if config.max_loss is not None and lost > config.max_loss * came:
        raise DataError(
            f"{lost:,} of {came:,} rows were dropped, more than --max-loss {config.max_loss:g}: "
            + _reasons(ledger),
            "correct the source, or allow more",
        )


def _reasons(ledger: LedgerRecord) -> str:
    return ", ".join(
        f"{entry.rows:,} {reason} ({entry.first})" for reason, entry in ledger.dropped.items()
    )


def _check(
    units: dict[str, int],
    shares: dict[str, float],
    named: Sequence[str],
    ledger: LedgerRecord,
    task: Task,
    config: PrepareConfig,
    context: Context,
) -> None:
    if not sum(units.values()):
        reasons = _reasons(ledger)
        limits = (
            f", --{part.name.replace('_', '-')}"
            for part in dataclasses.fields(task.options)
            if part.name.startswith("min_")
        )
        raise DataError(
            "nothing is left to train on" + (f": {reasons}" if reasons else ""),
            "check the source, --column"
            + ", --encoding" * ("unreadable" in ledger.dropped)
            + "".join(limits),
        )
    _check_loss(config, ledger)
    came, lost = ledger.came_in.rows, ledger.came_in.rows - ledger.kept.rows
    if 2 * lost >= came:
        context.warn(f"{lost:,} of {came:,} rows were dropped: {_reasons(ledger)}")
    what = task.unit_name
    for split, count in units.items():
        wanted = split == "train" or shares.get(split) or split in named
        if wanted and not count:
            raise DataError(
                f"the {split} split is empty: {sum(units.values()):,} {what} are too few"
                + (f" ({_reasons(ledger)} were dropped)" if ledger.dropped else ""),
                f"give more data, a larger --{split if split != 'train' else 'val'} share, "
                f"or --{split if split != 'train' else 'val'} 0",
            )
        if split != "train" and 0 < count < FEW_UNITS:
            context.warn(f"only {count} {what} in {split}: intervals will be wide")


def interruptible(work: Callable[[], None]) -> None:
    """Makes a long call of a library in a thread, so that a signal is answered meanwhile."""
    with beside(work):
        pass
