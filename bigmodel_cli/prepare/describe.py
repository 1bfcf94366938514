"""What is read and what is not, for people: a line or two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare.aligned import groups, name_of
from bigmodel_cli.prepare.detect_task import IMAGES, TEXT_BESIDE, Reading, is_records, size
from bigmodel_cli.prepare.images import label_of
from bigmodel_cli.prepare.json_keys import NESTED
from bigmodel_cli.prepare.records import Choose
from bigmodel_cli.prepare.sources import SHOWN, WHOLE, Layout, Source, unpacked
from bigmodel_cli.prepare.split_names import splits_in
from bigmodel_cli.prepare.walk import FOLLOWED


def what_is_read(read: Reading, choose: Choose, layout: Layout) -> str:
    """The task, and how its sources are read. Raises DataError for columns that it cannot use."""
    return f"task {read.task.name}: " + "; ".join(_parts(read, choose, layout))


def _parts(read: Reading, choose: Choose, layout: Layout) -> Iterator[str]:
    records = [s for s in read.sources if is_records(s, layout)]
    ways: dict[str, int] = {}
    unread: dict[str, None] = {}
    for source in records:
        if source in read.columns:
            found = read.columns[source]
            try:
                chosen = choose(found, f"`{source.name}`")
            except DataError as error:
                if not source.pattern or len(records) == 1:
                    raise
                leave = f"or leave the file out: --exclude '{source.name}'"
                raise DataError(error.message, f"{error.hint}; {leave}") from None
            way = _columns(chosen, found) + _form(source)
            ways[way] = ways.get(way, 0) + 1
            taken = {*chosen.values(), *(name.rpartition(".")[0] for name in chosen.values())}
            unread |= {n: None for n, kind in found.items() if kind != NESTED and n not in taken}
    for way, count in ways.items():
        number = count if len(ways) > 1 else len(records)
        yield f"{way}, in {_counted(number, 'file')} of records"
    if records and not ways:
        yield f"{_counted(len(records), 'file')} of records"
    texts = [s for s in read.sources if s.kind == "text" and not is_records(s, layout)]
    pairs = [group for group in groups(texts) if len(group) > 1] if read.task.aligned else []
    if pairs:
        ends = dict.fromkeys((end for group in pairs for end in group), "lines")
        chosen = choose(ends, f"`{name_of(pairs[0])}`")
        yield f"{_columns(chosen, ends)}, in {_counted(len(pairs), 'pair')} of aligned files"
    elif texts:
        json = [s.name for s in texts if unpacked(s.name).lower().endswith(".json")]
        without = f", of which .json without records ({_shown(json)})" if json else ""
        names = _shown([source.name for source in texts])
        yield f"{_counted(len(texts), 'file')} as text ({names}){without}"
    images = [s for s in read.sources if s.kind == "image"]
    if images and "image" in read.task.kinds:
        labels = sorted({label_of(source) for source in images})
        splits = [splits_in(label) for label in labels]
        if all(splits) and "train" in set.union(*splits) and len(set.union(*splits)) > 1:
            layout.say(
                "classes",
                f"the classes {_shown(labels)} are named for splits: put each image into a folder "
                "that is named for its class, below those",
                "warning",
            )
        yield (
            f"{_counted(len(images), 'image')}, labelled by {_counted(len(labels), 'folder')} "
            f"({_shown(labels)})"
        )
    elif images:
        yield f"{_counted(len(images), 'image')} as text"
    arrays = [s for s in read.sources if s.kind in IMAGES and s.kind not in ("image", "labels")]
    if arrays:
        yield f"{_counted(len(arrays), 'file')} of many images"
    if unread:
        yield f"columns that are not read: {_shown([*unread])}"


def _form(source: Source) -> str:
    """How a file is read where its name does not say it."""
    if source.kind == WHOLE:
        return ", each file a row"
    if source.key:
        return f", of the list `{source.key}`"
    return (
        ", as JSON lines"
        if source.form == "jsonl" and unpacked(source.name).lower().endswith(".json")
        else ""
    )


def _columns(chosen: Mapping[str, str], found: Mapping[str, str]) -> str:
    """Which columns the task reads, by its own names for them."""
    named = []
    for name, column in chosen.items():
        of_folders = " of the folders" if found.get(column) == "folder" else ""
        named.append(f"{name} from `{column}`{of_folders}")
    return ", ".join(named)


def what_is_skipped(read: Reading, aside: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What was found and is not read, with the reasons; and the links that were followed."""
    reasons: dict[str, list[str]] = {
        reason: [source.name for source in sources] for reason, sources in read.skipped.items()
    }
    for name, why in aside:
        reasons.setdefault(why, []).append(name)
    if followed := reasons.pop(FOLLOWED, []):
        yield f"followed {_counted(len(followed), 'linked folder')}: {_shown(followed)}"
    if reasons:
        count = sum(map(len, reasons.values()))
        parts = (f"{why} ({_shown(names)})" for why, names in reasons.items())
        yield f"skipped {count:,}: " + ", ".join(parts)


def more_is_skipped(read: Reading) -> bool:
    """Whether the text that a task could read, but for the records beside it, is most of all."""
    return sum(map(size, read.skipped.get(TEXT_BESIDE, ()))) > sum(map(size, read.sources))


def _shown(names: Sequence[str]) -> str:
    first = ", ".join(f"`{name}`" for name in names[:SHOWN])
    return f"{len(names):,}: {first}, …" if len(names) > SHOWN else first


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
