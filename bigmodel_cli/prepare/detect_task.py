"""The kind of work that sources are for, and which of them are read for it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.prepare.aligned import completed, of_languages
from bigmodel_cli.prepare.json_forms import Form, peek
from bigmodel_cli.prepare.json_keys import types_of
from bigmodel_cli.prepare.readers import BROKEN, columns
from bigmodel_cli.prepare.readers import read as rows
from bigmodel_cli.prepare.records import SHOWN_ROWS, Choose
from bigmodel_cli.prepare.sources import WHOLE, Layout, Source, open_bytes
from bigmodel_cli.prepare.split_names import splits_in
from bigmodel_cli.prepare.texts import opened
from bigmodel_cli.tasks import Task, task_class, task_names
from bigmodel_cli.tasks.columns import TEXT_NAMES, listed, text_column, usual

TEXT_BESIDE = "text beside records"
MOST_SCANNED = 256 << 20  # bytes of a file whose keys are looked for to its end
LOOKED_INTO = 8  # sources of each kind that holds records
IMAGES = ("image", "idx", "numpy", "labels")
# what lies beside data and is about them
_ABOUT = re.compile(
    r"(?<![a-z])(licen[cs]e|copying|copyright|notice|readme|changelog|citation|authors"
    r"|contributing|metadata|dataset[_-]?card|requirements|makefile|dockerfile)(?![a-z])"
)
_NO_WORDS = re.compile(r"(?=.*[\d@/:])[!-~]+|[\d\W_TZ]+")  # an id, an address, a number, a time
FEW_LINES = 10  # of files that may belong together by accident
SURELY_TEXT = ("text", "content", "文本", "内容", "正文")  # whatever such a column holds
OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini")

Columns = Mapping[Source, Mapping[str, str]]


@dataclass(frozen=True)
class Reading:
    """What is read, and for which task. columns: of the sources that were looked into. skipped:
    the others, by the reason why they are not read."""

    task: type[Task]
    sources: list[Source]
    columns: Columns
    skipped: Mapping[str, Sequence[Source]]

    def marked(self, sources: list[Source]) -> Reading:
        """The same with other marks on the sources, in their order."""
        now = dict(zip(self.sources, sources, strict=True))
        found = {now[source]: columns for source, columns in self.columns.items()}
        return dataclasses.replace(self, sources=sources, columns=found)


def reading(
    sources: Sequence[Source], task: str, wanted: Mapping[str, str], layout: Layout
) -> Reading:
    """The task (`auto`: detect it), and which of the sources it reads. Raises UsageError."""
    found = _looked_into(sources, layout)
    text = _mostly_text(sources, layout)
    known = {name for each in found.values() for name in claims(each, wanted)}
    if not (known if task == "auto" else known & {task}) and not text:
        found |= {source: keys for source in found if (keys := _all_keys(source, layout))}
    kind = task_class(task) if task != "auto" else _detected(sources, found, wanted, text)
    read, skipped = [], dict[str, list[Source]]()
    why = _Skipping(kind, sources, found, wanted, layout, text)
    for source in sources:
        if reason := why(source):
            skipped.setdefault(reason, []).append(source)
        else:
            read.append(source)
    if not read:
        return Reading(kind, list(sources), found, {})
    return Reading(kind, read, {s: c for s, c in found.items() if s in read}, skipped)


def with_forms(found: Sequence[Source], wanted: Mapping[str, str], layout: Layout) -> list[Source]:
    """The sources, with the form that the content of each .json has, and with the other sides of
    aligned files."""
    parts = [part for source in found for part in _formed(source, wanted, layout)]
    return completed(parts, layout.context.note)


def _formed(source: Source, wanted: Mapping[str, str], layout: Layout) -> Iterator[Source]:
    of_folders = source.folders if source.kind == "text" and not layout.header else {}
    if of_folders and claims({**dict.fromkeys(of_folders, "folder"), "text": "string"}, wanted):
        source = source if _about_data(source) else dataclasses.replace(source, form=WHOLE)
    if source.kind not in ("json", "jsonl") or source.path is None:
        yield source
        return
    with contextlib.suppress(*BROKEN), opened(source, layout) as file:
        form = peek(file, SHOWN_ROWS)
        own = types_of(form.rows)
        if form.kind != "object" or _is_row(own, form, wanted):
            if form.kind != "text" or source.kind == "json":
                kind = "json" if form.kind == "object" else form.kind
                source = dataclasses.replace(source, form=kind)
            yield source
            return
        names = list(form.lists)
        splits = {name: splits_in(name) for name in names}
        if len(names) == 1:
            yield dataclasses.replace(source, form="json", key=names[0])
        elif names and all(len(named) == 1 for named in splits.values()):
            for name in names:
                yield dataclasses.replace(
                    source,
                    name=f"{source.name}/{name}",
                    form="json",
                    key=name,
                    split=min(splits[name]),
                )
        elif names and not source.pattern:
            raise DataError(
                f"`{source.name}` holds several lists of objects: "
                + ", ".join(f"`{name}`" for name in names),
                f"take one of them: jq -c '.{names[0]}[]' {source.path} > {names[0]}.jsonl",
            )
        else:
            yield dataclasses.replace(source, form="text" if source.kind == "json" else "jsonl")
        return
    yield source


def _is_row(own: Mapping[str, str], form: Form, wanted: Mapping[str, str]) -> bool:
    """Whether a single object is a row itself, not a list of rows with a name: a dialogue holds a
    list, too, and what a server answers has a `message`."""
    given = {name: column for name, column in wanted.items() if column in own}
    if claims(own, given):
        return True
    inner = [types_of(rows) for rows in form.lists.values()]
    lists = any(claims(columns_of, wanted) or usual(columns_of, TEXT_NAMES) for columns_of in inner)
    return own.get(usual(own, TEXT_NAMES)) == "string" and not lists


def claims(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """The tasks that columns are for. A column that goes by another name is known by the one that
    --column gives it."""
    known = {**found, **{name: found.get(column, "string") for name, column in wanted.items()}}
    return [name for name in task_names() if task_class(name).claims(known)]


def is_records(source: Source, layout: Layout) -> bool:
    """Whether a source has columns: --header gives them to text, too."""
    text = source.kind == "text" and not (source.pattern and _about_data(source))
    return source.records or bool(layout.header and text)


def _looked_into(sources: Sequence[Source], layout: Layout) -> dict[Source, dict[str, str]]:
    """The columns of the first sources of each kind that has any."""
    found: dict[Source, dict[str, str]] = {}
    counts: dict[str, int] = {}
    for source in sources:
        looked = counts.setdefault(source.kind, 0)
        holds = is_records(source, layout) or source.kind in IMAGES
        if holds and looked < LOOKED_INTO and (of_source := columns(source, layout)):
            counts[source.kind] += 1
            found[source] = of_source
    return found


def _detected(
    sources: Sequence[Source], found: Columns, wanted: Mapping[str, str], text: bool
) -> type[Task]:
    """The task that sources are for. Raises UsageError where there are several."""
    claimed_by = {s: claims(c, wanted) for s, c in found.items() if not text}
    of_images = {n for s, names in claimed_by.items() if s.kind in IMAGES for n in names}
    claimed: dict[str, Source] = {}
    for source, names in claimed_by.items():
        beside = of_images and source.pattern and not of_images & {*names}
        for name in names if not beside else ():  # a table beside images is about them
            claimed.setdefault(name, source)
    if not claimed:
        pairs = of_languages(sources)
        parts = {part for group in pairs for part in group.values()}
        others = [s for s in sources if s.kind == "text" and s not in parts]
        stray = sum(size(s) for s in others if not _about_data(s))
        if not stray or (stray < sum(map(size, parts)) and any(map(_is_aligned, pairs))):
            ends = {end: "lines" for group in pairs for end in group}
            claimed = dict.fromkeys(claims(ends, wanted), sources[0])
    if len(claimed) > 1:
        reasons = [f"{name} (`{source.name}`)" for name, source in claimed.items()]
        raise UsageError(
            "the sources could be for " + " or ".join(reasons),
            f"choose: --task {next(iter(claimed))}",
        )
    return task_class(next(iter(claimed), "language"))


def _is_aligned(group: Mapping[str, Source]) -> bool:
    """Whether files have as many lines as each other, and not few: by their first megabyte."""
    heads = []
    for source in group.values():
        assert source.path is not None
        with contextlib.suppress(OSError, *BROKEN), open_bytes(source.path) as file:
            heads.append(file.read(1 << 20))
    counts = {head.count(b"\n") for head in heads}
    longer = any(len(head) == 1 << 20 for head in heads)
    return min(counts, default=0) >= FEW_LINES and (len(counts) == 1 or longer)


def _all_keys(source: Source, layout: Layout) -> dict[str, str]:
    """The columns of JSON wherever their keys are: some may come late."""
    small = source.kind in ("json", "jsonl") and size(source) <= MOST_SCANNED
    return columns(source, layout, whole=True) if small else {}


def _mostly_text(sources: Sequence[Source], layout: Layout) -> bool:
    """Whether records and images are few among texts, such as a table among source code: then they
    do not say what the sources are for."""
    others = {s for s in sources if is_records(s, layout) or s.kind in IMAGES}
    texts = [s for s in sources if s.pattern and s not in others and not _about_data(s)]
    if len(texts) <= len(others):
        return False
    return any(s.kind in IMAGES for s in others) or sum(map(size, texts)) > sum(map(size, others))


def size(source: Source) -> int:
    """Bytes of a source's file."""
    return source.path.stat().st_size if source.path else 0


def _about_data(source: Source) -> bool:
    """Whether a file's name says that it is about data, such as README or LICENSE."""
    file = source.name.rpartition("/")[2].lower()
    return file in OF_SYSTEMS or bool(_ABOUT.search(file))


def check_text(read: Reading, choose: Choose, wanted: Mapping[str, str], layout: Layout) -> None:
    """Raises DataError where a column that was taken for the text only because there is no other
    holds numbers or ids."""
    for source, found in read.columns.items():
        if "text" in wanted or not is_records(source, layout):
            continue
        name = choose(found, f"`{source.name}`").get("text")
        if name is None or usual({name: ""}, SURELY_TEXT):
            continue
        first = next(rows(source, choose, layout, Ledger(), lambda _: None), None)
        values = first.table.column("text").slice(0, SHOWN_ROWS).to_pylist() if first else []
        values = [value.strip() for value in values if value and value.strip()]
        if values and all(map(_NO_WORDS.fullmatch, values)):
            raise DataError(
                f"`{source.name}` has no column that is clearly the text: `{name}` holds values "
                f"such as `{values[0]:.40}`",
                f"read it nevertheless: --column text={name}; or choose another task with --task, "
                f"and its columns with --column; it has {listed(found)}",
            )


class _Skipping:
    """Why a task does not read a source; "" for what it reads. What the user named itself is read
    always, if it is not only about data that the task cannot read as text."""

    def __init__(
        self,
        task: type[Task],
        sources: Sequence[Source],
        found: Columns,
        wanted: Mapping[str, str],
        layout: Layout,
        text: bool,
    ) -> None:
        self.task, self.found, self.layout, self.text = task, found, layout, text
        self.wanted = wanted
        records = [source for source in sources if is_records(source, layout)]
        self.above = {folder for s in records if s.path for folder in s.path.parents}
        self.reads_images = "file" in task.kinds.values()
        self.named = self.reads_images and any(map(self._claimed, records))
        self.images = any(source.kind in IMAGES for source in sources)
        pairs = of_languages(sources) if task.aligned else []
        self.aligned = {part for group in pairs for part in group.values()}

    def __call__(self, source: Source) -> str:
        found = bool(source.pattern)
        if source.kind in IMAGES:
            if not self.reads_images:
                return "images" if found else ""
            return "images that records may name" if self.named and found else ""
        if is_records(source, self.layout):
            if self.reads_images and self.images and not self.named:
                return "records that name no images" if found else ""
            if self.text and self.task.documents and found and not self._has_text(source):
                return "records with no clear column of text"
            return ""
        if source in self.aligned or not (found or _about_data(source)):
            return ""
        if not self.task.documents:
            return "not images" if self.reads_images else "no records"
        if found and source.name.rpartition("/")[2].lower() in OF_SYSTEMS:
            return "of the operating system"
        beside = source.path and source.path.parent in self.above
        return TEXT_BESIDE if found and beside and not self.text else ""

    def _columns(self, source: Source) -> Mapping[str, str]:
        return self.found.get(source) or columns(source, self.layout)

    def _claimed(self, source: Source) -> bool:
        return self.task.name in claims(self._columns(source), self.wanted)

    def _has_text(self, source: Source) -> bool:
        try:
            text_column(self._columns(source), self.wanted.get("text", ""), "")
        except DataError:
            return False
        return True
