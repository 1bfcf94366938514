"""Files whose lines belong together: train.en and train.de are one table with columns en and de."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.records import Choose, Records
from bigmodel_cli.prepare.sources import PACKED, Layout, Source, unpacked
from bigmodel_cli.prepare.texts import is_utf8, lines, not_utf8, opened
from bigmodel_cli.tasks import Rows
from bigmodel_cli.tasks.languages import is_language

_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{2,3}([-_][A-Z][A-Za-z]{1,3})?(?![A-Za-z])")


def groups(found: Sequence[Source]) -> list[dict[str, Source]]:
    """Text files of one folder whose names differ in one word only, by that word: a language, or
    else their end (before .gz or the like). Also those that are alone."""
    together: dict[tuple[Path, str], dict[str, Source]] = {}
    for source in found:
        if source.kind == "text" and source.path:
            before, word, after = _word(_file(source))
            group = together.setdefault((source.path.parent, f"{before}*{after}"), {})
            if word in group or not before + after:  # a.en beside a.en.gz, or no end at all
                together[source.path, source.name] = {word: source}
            else:
                group[word] = source
    return [group for group in together.values() if group]


def _word(name: str) -> tuple[str, str, str]:
    """A file's name around the word that tells it from its other side: train.en, train_en.txt."""
    stem, dot, end = name.rpartition(".")
    inside = end.lower() in ("txt", "text", "tok")  # which says nothing
    words = [w for w in _WORD.finditer(stem) if inside and is_language(w[0])]
    if words:
        return name[: words[-1].start()], words[-1][0], name[words[-1].end() :]
    return stem + dot, end, ""


def of_languages(found: Sequence[Source]) -> list[dict[str, Source]]:
    """Of the groups what is named for languages, if these are at least two."""
    named = ({w: s for w, s in group.items() if is_language(w)} for group in groups(found))
    return [group for group in named if len(group) > 1]


def completed(found: Sequence[Source], say: Callable[[str], None]) -> list[Source]:
    """The sources, and what lies beside one of them as its other side, where they are translations:
    beside val.en is val.de, if train.en and train.de were named. It is of the same split."""
    words = dict.fromkeys(word for group in of_languages(found) for word in group)
    whole = list(found)
    for group in groups(found):
        (word, source), *others = group.items()
        if others or word not in words or source.path is None or source.pattern:
            continue
        before, _, after = _word(_file(source))
        for other in words:
            plain = source.path.with_name(before + other + after)
            paths = (plain.with_name(plain.name + packed) for packed in ("", *PACKED))
            if other != word and (path := next(filter(Path.is_file, paths), None)):
                name = source.name.removesuffix(source.path.name) + path.name
                whole.append(dataclasses.replace(source, name=name, path=path))
                say(f"`{name}` is read, too: it is the other side of `{source.name}`")
    return whole


def _file(source: Source) -> str:
    """A file's own name without what it is compressed by."""
    assert source.path is not None
    return unpacked(source.path.name)


def together(found: Sequence[Source]) -> list[Source]:
    """Text files of one group as one source each. Its columns are their words, in the order in
    which these come among all sources.

    Raises DataError for a text file that has no other beside it.
    """
    whole = [source for source in found if source.kind != "text" or source.path is None]
    words = dict.fromkeys(
        _word(_file(source))[1] for source in found if source.kind == "text" and source.path
    )
    for group in groups(found):
        first = next(iter(group.values()))
        if len(group) == 1:
            raise DataError(
                f"`{first.name}` has no file beside it whose name differs only in its end",
                "name the files of each language alike: train.en train.de; "
                "or leave it out with --exclude",
            )
        ordered = {word: group[word] for word in words if word in group}
        whole.append(dataclasses.replace(first, name=name_of(ordered), columns=ordered))
    return whole


def name_of(group: Mapping[str, Source]) -> str:
    """train.{en,de}"""
    first = next(iter(group.values()))
    folder, slash, file = unpacked(first.name).rpartition("/")
    before, _, after = _word(file)
    return f"{folder}{slash}{before}{{{','.join(group)}}}{after}"


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
            "fix them, or leave them out with --exclude",
        )
    yield from records.take()
