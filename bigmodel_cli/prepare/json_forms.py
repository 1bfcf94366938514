"""What a file of JSON holds, by its beginning: people keep records in several forms.

`jsonl`: an object on each line. `json`: a list of objects or texts, or objects one after another
over several lines. `object`: a single one, in which a list of objects may have a name. `text`:
anything else.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import sources
from bigmodel_cli.prepare.json_keys import types_of
from bigmodel_cli.prepare.members import leaf
from bigmodel_cli.prepare.records import Choose, Number, Records, whole
from bigmodel_cli.prepare.sources import Layout, Source
from bigmodel_cli.prepare.texts import likely, opened
from bigmodel_cli.tasks import Rows

HEAD = 1 << 20  # bytes that are looked at
WHOLE = 1 << 30  # bytes of JSON that is read whole
_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"\s*,?\s*")
_COLON = re.compile(r"\s*:\s*")
_DECODER = json.JSONDecoder()
Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """kind: see above. rows: the first ones; of an object it is itself. lists: the first rows of
    the lists of objects that it holds, by their names."""

    kind: str
    rows: Sequence[Row] = ()
    lists: Mapping[str, Sequence[Row]] = dataclasses.field(default_factory=dict)


def peek(file: IO[bytes], most: int) -> Form:
    """The form of a file, and at most its first `most` rows."""
    head = file.read(HEAD)
    text = head.decode("utf-8-sig", errors="ignore")
    at = _after(_SPACE, text, 0)
    if text[at : at + 1] == "[":
        items = _items(text, at)[0]
        rows = _objects(items, most) or _objects(_texts(items), most)
        return Form("json", rows) if rows else Form("text")
    if text[at : at + 1] != "{":
        return Form("text")
    members, end = _members(text, at)
    lists = {name: rows for name, value in members.items() if (rows := _objects(value, most))}
    if end is None:
        if len(head) == HEAD and lists:
            return Form("object", [members], lists)
    elif (following := _after(_SPACE, text, end)) == len(text):
        return Form("object", [members], lists)
    elif "\n" in text[at:end] or "\n" not in text[end:following]:
        return Form("json", _objects([value for value, _ in _values(text, at)], most))
    lines = _objects(map(_value, text.splitlines()), most)
    return Form("jsonl", lines) if lines else Form("text")


def json_whole(
    source: Source, choose: Choose, layout: Layout, ledger: Ledger, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """A list of objects, which may be a member of an object; one object; or several, one after
    another. The file is read whole."""
    assert source.path is not None
    raw = bytearray()
    with opened(source, layout) as file:
        while len(raw) <= WHOLE and source.path.stat().st_size <= WHOLE:
            if not (data := file.read(sources.CHUNK)):
                break
            raw += data
        else:
            raise DataError(
                f"`{source.name}` has over {WHOLE >> 30} GiB, and a .json is read whole",
                f"make it JSON lines: jq -c '.{source.key}[]' {source.name} > rows.jsonl",
            )
    rows = _whole(raw, source)
    if source.key:
        rows = rows[0][source.key]
    objects = [row for row in rows if isinstance(row, dict)]
    if not objects:
        objects = rows = _texts(rows)
    if not objects:
        return
    records = Records(source, choose(types_of(objects), f"`{source.name}`"), layout)
    for number, row in enumerate(rows, 1):
        try:
            if not isinstance(row, dict):
                raise ValueError
            records.add([leaf(row, column) for column in records.names.values()], number)
        except ValueError:
            size = len(json.dumps(row))
            ledger.came_in(1, size)
            ledger.drop("malformed", size, f"{source.name}, item {number}")
        if records.size > sources.CHUNK:
            yield from records.take()
    yield from records.take()
    advance(len(raw))


def _whole(raw: bytearray, source: Source) -> list[Any]:
    """The items of a list, or the values that stand one after another."""
    try:
        text = raw.decode("utf-8-sig")
        try:
            found = json.loads(text, parse_int=whole, parse_float=Number)
            return found if isinstance(found, list) else [found]
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise
        return _all(text)
    except (ValueError, RecursionError) as error:
        name = likely(source) if isinstance(error, UnicodeDecodeError) else ""
        hint = f"name its encoding: --encoding {name}; or " * bool(name)
        raise DataError(
            f"`{source.name}` is not valid JSON: {error}",
            hint + "correct it, or leave it out with --exclude",
        ) from None


def _all(text: str) -> list[Any]:
    """The values of a text in which they stand one after another. Raises ValueError."""
    decoder = json.JSONDecoder(parse_int=whole, parse_float=Number)
    found, at = [], _after(_SPACE, text, 0)
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at = _after(_BETWEEN, text, at)
    return found


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    return pattern.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _objects(found: Any, most: int) -> list[Row]:
    """The first objects of what may be a list."""
    if not isinstance(found, list | map):
        return []
    rows: list[Row] = []
    for value in found:
        if isinstance(value, dict):
            rows.append(value)
        if len(rows) == most:
            break
    return rows


def _texts(items: list[Any]) -> list[Row]:
    """The rows of a list that holds nothing but texts."""
    texts = all(isinstance(item, str) for item in items)
    return [{"text": item} for item in items] if texts else []


def _values(text: str, at: int) -> Iterator[tuple[Any, int]]:
    """Values one after another, with commas between them or not, and where the next begins; until
    what is no value, or is cut off."""
    while at < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        at = _after(_BETWEEN, text, at)
        yield value, at


def _items(text: str, at: int) -> tuple[list[Any], int | None]:
    """The items of the list that begins at `at`, and where it ends; None if it is cut off."""
    begin = _after(_SPACE, text, at + 1)
    found = [*_values(text, begin)]
    end = found[-1][1] if found else begin
    return [value for value, _ in found], end + 1 if text[end : end + 1] == "]" else None


def _members(text: str, at: int) -> tuple[Row, int | None]:
    """The members of the object that begins at `at`, and where it ends; None if it is cut off. A
    list that is cut off has the items before."""
    end: int | None
    try:
        value, end = _DECODER.raw_decode(text, at)
        return value, end
    except (ValueError, RecursionError):
        found: Row = {}
    at = _after(_SPACE, text, at + 1)
    while True:
        try:
            name, at = _DECODER.raw_decode(text, at)
            at = _after(_COLON, text, at)
            if text[at : at + 1] == "[":
                found[str(name)], end = _items(text, at)
                if end is None:
                    return found, None
                at = end
            else:
                found[str(name)], at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return found, None
        at = _after(_BETWEEN, text, at)
