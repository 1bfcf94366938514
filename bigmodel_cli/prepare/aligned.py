"""Files whose lines belong together: train.en and train.de are one table with columns en and de."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.records import Choose, Records
from bigmodel_cli.prepare.sources import Layout, Source, open_bytes
from bigmodel_cli.tasks import Rows


def together(found: Sequence[Source]) -> list[Source]:
    """Text files of one folder whose names differ only in their end (before .gz or .zst) as one
    source each. Its columns are their ends, in the order in which these come among all sources.

    Raises DataError for a text file that has no other beside it.
    """
    groups: dict[tuple[Path, str], dict[str, Source]] = {}
    ends: dict[str, None] = {}
    whole: list[Source] = []
    for source in found:
        if source.kind != "text" or source.path is None:
            whole.append(source)
            continue
        stem, _, end = _plain(source.name).rpartition(".")
        group = groups.setdefault((source.path.parent, stem), {})
        if not stem or end in group:
            raise DataError(
                f"`{source.name}` holds no records that this task could use",
                "name the files of each language alike: train.en train.de; "
                "or leave it out with --exclude",
            )
        group[end] = source
        ends[end] = None
    for (_, stem), group in groups.items():
        first = next(iter(group.values()))
        if len(group) == 1:
            raise DataError(
                f"`{first.name}` has no file beside it whose name differs only in its end",
                "name the files of each language alike: train.en train.de; "
                "or leave it out with --exclude",
            )
        ordered = {end: group[end] for end in ends if end in group}
        name = f"{stem}.{{{','.join(ordered)}}}"
        whole.append(dataclasses.replace(first, name=name, columns=ordered))
    return whole


def _plain(name: str) -> str:
    """A file's name without what it is compressed by."""
    path = Path(name)
    return str(path.with_suffix("")) if path.suffix.lower() in (".gz", ".zst") else name


def lines(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Aligned files, line by line. Raises DataError where one has more lines than another."""
    found = choose(dict.fromkeys(source.columns, "lines"), f"`{source.name}`")
    records = Records(source, found, layout)
    files = [source.columns[end] for end in records.names.values()]
    with contextlib.ExitStack() as opened:
        texts = [opened.enter_context(_open(file)) for file in files]
        for number in itertools.count(1):
            row = [text.readline() for text in texts]
            if not all(row):
                break
            advance(sum(map(len, row)))
            try:
                records.add([line.removesuffix("\n").removesuffix("\r") for line in row], number)
            except ValueError:  # not UTF-8
                size = sum(len(line.encode(errors="surrogateescape")) for line in row)
                ledger.came_in(1, size)
                ledger.drop("malformed", size, f"{source.name}, line {number}")
            if records.size > sources.CHUNK:
                yield from records.take()
        counts = [number - (not line) + sum(1 for _ in text) for line, text in zip(row, texts)]
    if len({*counts}) > 1:
        shown = (f"`{file.name}` has {count:,}" for file, count in zip(files, counts))
        raise DataError(
            "line by line the files do not match: " + ", ".join(shown) + " lines",
            "mend them, or leave them out with --exclude",
        )
    yield from records.take()


def _open(source: Source) -> IO[str]:
    assert source.path is not None
    return io.TextIOWrapper(
        open_bytes(source.path), "utf-8-sig", errors="surrogateescape", newline="\n"
    )
