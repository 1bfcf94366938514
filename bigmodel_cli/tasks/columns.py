"""Which of a source's columns a task reads: by the names that they usually have.

Columns come as name → type: `string`, `number`, `bool`, `null`, `lines` of an aligned file,
`folder` for what folders' names give (`label=neg/`), `nested` for a text inside an object
(`translation.en`), `other`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bigmodel_cli.errors import DataError

TEXT_NAMES = (
    "text", "content", "body", "document", "story", "article", "code", "sentence", "review",
    "comment", "tweet", "post", "message", "utterance", "文本", "内容", "正文", "评论", "句子",
)  # fmt: skip
IMAGE_NAMES = ("image", "img", "picture", "photo", "file", "file_name", "filename", "path")
SHOWN_COLUMNS = 30  # in a message
LABEL_NAMES = ("label", "labels", "class", "category", "intent", "sentiment", "标签", "类别")
# the last word of names whose values say which row it is, or where it is from: they are no text
_OF_THE_ROW = re.compile(
    r"(.*[\W_])?(ids?|uu?id|guid|key|hash|sha\d*|md5|checksum|urls?|uri|link|href|path|file|filename"
    r"|index|idx|no|number|date|datetime|time|timestamp|at|created|updated|e?mail|ip|lang|language"
    r"|locale|split|version|isbn|doi|sku|ref|编号|链接|日期|时间)",
    re.IGNORECASE,
)
_WITHIN_A_NAME = re.compile(r"(?<=[a-z])(?=[A-Z])")  # userId is two words


def usual(found: Mapping[str, str], names: Sequence[str]) -> str:
    """The first of the usual names that a column has, whatever the case of its letters and the
    spaces around it; or ""."""
    plain = {column.strip().lower(): column for column in reversed([*found])}
    columns = ((name if name in found else plain.get(name.lower(), "")) for name in names)
    return next(filter(None, columns), "")


def text_column(found: Mapping[str, str], wanted: str, where: str) -> str:
    """The column that holds the text: the wanted one, a usual name, or the only one of strings that
    could be a text: an id or an address is not.

    Raises DataError when there is none, or none that is obvious.
    """
    if wanted:
        return named_column(found, "text", wanted, (), where)
    for empty in (False, True):  # what is null in all rows that were looked at comes last
        if name := usual({n: k for n, k in found.items() if (k == "null") == empty}, TEXT_NAMES):
            return name
        strings = strings_in(found)
        if len(strings) == 1 and not empty:
            return strings[0]
    raise DataError(
        f"{where} has no column that is clearly the text",
        "choose it: --column text=NAME; or choose another task with --task, and its columns "
        f"with --column; it has {listed(found)}",
    )


def strings_in(found: Mapping[str, str]) -> list[str]:
    """The columns that could be texts: neither an id nor an address."""
    return [
        name
        for name, kind in found.items()
        if kind == "string" and not _OF_THE_ROW.fullmatch(_WITHIN_A_NAME.sub("_", name))
    ]


def named_column(
    found: Mapping[str, str], name: str, wanted: str | None, names: Sequence[str], where: str
) -> str:
    """The column that the task calls `name`: the wanted one, or the first of its usual names.

    Raises DataError when there is none.
    """
    if not wanted:
        if chosen := usual(found, names):
            return chosen
        missing = f"has no column for the {name}"
    elif wanted in found:
        return wanted
    else:  # inside of an object: `fr` for `translation.fr`
        inner = [column for column in found if column.endswith(f".{wanted}")]
        if len(inner) == 1:
            return inner[0]
        missing = f"has no column `{wanted}`"
    raise DataError(f"{where} {missing}", f"say --column {name}=NAME; it has {listed(found)}")


def listed(found: Mapping[str, str]) -> str:
    """The names of columns, for people."""
    shown = ", ".join(f"`{name}`" for name in [*found][:SHOWN_COLUMNS]) or "none"
    more = len(found) - SHOWN_COLUMNS
    return shown + (f" and {more:,} more" if more > 0 else "")
