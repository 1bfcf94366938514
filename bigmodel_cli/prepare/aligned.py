"""Files whose lines belong together: train.en and train.de are one table with columns en and de."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.records import Choose, Records
from bigmodel_cli.prepare.sources import Layout, Source, unpacked
from bigmodel_cli.prepare.texts import is_utf8, lines, not_utf8, opened
from bigmodel_cli.tasks import Rows


def together(found: Sequence[Source]) -> list[Source]:
    """Text files of one folder whose names differ only in their end (before .gz or the like) as one
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
        stem, _, end = unpacked(source.name).rpartition(".")
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


def aligned(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Aligned files, line by line. Raises DataError where one has more lines than another."""
    found = choose(dict.fromkeys(source.columns, "lines"), f"`{source.name}`")
    records = Records(source, found, layout)
    files = [source.columns[end] for end in records.names.values()]
    with contextlib.ExitStack() as stack:
        texts = [lines(stack.enter_context(opened(file, layout)), file.name) for file in files]
        for number in itertools.count(1):
            row = [next(text, b"") for text in texts]
            if not all(row):
                break
            size = sum(map(len, row))
            advance(size)
            words = [line.removesuffix(b"\n").removesuffix(b"\r") for line in row]
            try:
                records.add([line.decode() for line in words], number)
            except UnicodeDecodeError:
                place = next(i for i, line in enumerate(row) if not is_utf8(line))
                size = sum(map(len, words))
                not_utf8(files[place], layout, ledger, size, f"{source.name}, line {number}")
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
