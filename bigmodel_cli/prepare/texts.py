"""A file as text: its encoding, and its lines of bounded length.

Whatever a file's encoding is, readers get UTF-8: what cannot be decoded comes as bytes that are no
UTF-8, so that one rule, a row's own, counts it.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Iterator
from encodings.aliases import aliases
from typing import IO, Any

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError, UsageError, did_you_mean
from bigmodel_cli.prepare.sources import Layout, Source, open_bytes

LONGEST_ROW = 256 << 20  # bytes of one line or row
PIECE = 1 << 20  # bytes that lines are cut from
SAMPLE = 1 << 16  # bytes that are not UTF-8, by which an encoding is guessed
LOOKED_AT = 8 << 20  # bytes among which they are looked for
GUESSES = 100  # rows that are not UTF-8, of which an encoding is guessed
MARKS = (  # byte order marks; that of UTF-32 begins as that of UTF-16 does
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDE = ("utf-16-le", "utf-16-be")  # without a byte order mark
USUAL = (  # other encodings that are guessed, the most common ones first
    "gb18030", "cp1252", "cp1251", "big5", "shift_jis", "euc_kr", "euc_jp", "cp1250", "cp1253",
    "cp1254", "cp1255", "cp1256", "cp874", "koi8_r",
)  # fmt: skip


def encoding_named(name: str) -> str:
    """Python's name of an encoding; none for none. Raises UsageError for one that is unknown."""
    if not name:
        return ""
    if not _is_text(name):
        known = {alias.replace("_", "-") for pair in aliases.items() for alias in pair}
        near = did_you_mean(name.lower(), filter(_is_text, known))
        hint = near if near.startswith("did") else "for example: --encoding gbk"
        raise UsageError(f"--encoding is `{name}`, which is unknown", hint)
    return codecs.lookup(name).name


def _is_text(name: str) -> bool:
    """Whether it is an encoding of text that Python has."""
    try:
        "".encode(name)
    except (LookupError, ValueError):
        return False
    return True


def opened(source: Source, layout: Layout) -> IO[bytes]:
    """A file's bytes as UTF-8, decompressed, without a byte order mark: what this says of the
    encoding comes before `layout.encoding`."""
    assert source.path is not None
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(open_bytes(source.path))
        head = bytes(file.peek(4)[:4])
        mark, encoding = next((m for m in MARKS if head.startswith(m[0])), (b"", layout.encoding))
        file.read(len(mark))
        if mark and encoding != (layout.encoding or "utf-8"):
            layout.say(
                f"encoding {encoding}",
                f"`{source.name}` is read as {encoding.upper()}, as its byte order mark says",
            )
        stack.pop_all()
    if encoding in ("", "utf-8"):
        return file  # type: ignore[no-any-return]
    return io.BufferedReader(_Utf8(file, encoding), PIECE)


class _Utf8(io.RawIOBase):
    """A file of another encoding as UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self.file, self.ready = file, b""
        self.decoder = codecs.getincrementaldecoder(encoding)("bigmodel-undecodable")
        self.over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready and not self.over:
            data = self.file.read(PIECE)
            self.over = not data
            self.ready = self.decoder.decode(data, self.over).encode(errors="surrogateescape")
        count = min(len(self.ready), len(buffer))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _undecodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end  # a byte that is no UTF-8


codecs.register_error("bigmodel-undecodable", _undecodable)


def lines(
    file: IO[bytes],
    name: str,
    advance: Callable[[int], None] = lambda _: None,
    *,
    returns: bool = False,
) -> Iterator[bytes]:
    """A file's lines with their ends, which are \\n, and with `returns` \\r, too.

    Raises DataError for a line that is too long.
    """
    kept: list[bytes] = []
    size = 0
    while data := file.read(PIECE):
        advance(len(data))
        kept.append(data)
        size += len(data)
        if b"\n" in data or (returns and b"\r" in data):
            whole = b"".join(kept)
            found = whole.splitlines(True) if returns else whole.split(b"\n")
            rest = found.pop()  # the last one may go on, if only from \r to \r\n
            yield from found if returns else (line + b"\n" for line in found)
            kept, size = [rest], len(rest)
        check_length(size, name)
    if size:
        yield b"".join(kept)


def check_length(size: int, name: str) -> None:
    """Raises DataError for a row that is too long."""
    if size > LONGEST_ROW:
        raise DataError(
            f"`{name}` has a line of over {LONGEST_ROW >> 20} MiB, the maximum",
            f"split it into lines, or leave it out: --exclude '{name}'",
        )


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def not_utf8(
    source: Source, layout: Layout, ledger: Ledger, size: int, where: str, what: str = ""
) -> None:
    """Counts a row that is not in the encoding that it is read as; what: more about it. Of the
    first ones, the encoding that their file may have instead is said."""
    ledger.came_in(1, size)
    what = what or f"not {(layout.encoding or 'utf-8').upper()}"
    ledger.drop("unreadable", size, f"{where} ({what})")
    kind = f"unreadable {source.name}"
    if layout.encoding or kind in layout.said or ledger.dropped["unreadable"].rows > GUESSES:
        return
    layout.said.add(kind)
    if found := likely(source):
        layout.say(
            f"likely {found}",
            f"`{source.name}` is not UTF-8; it may be {found}: --encoding {found}",
            "warning",
        )


def likely(source: Source) -> str:
    """The encoding that a file may have which is not UTF-8; none for one that is binary, or most of
    whose lines are UTF-8."""
    assert source.path is not None
    with open_bytes(source.path) as file:
        head = file.read(LOOKED_AT)
    if b"\x00" in head:
        return next(filter(functools.partial(_reads_as, head[:SAMPLE]), WIDE), "")
    found = [line for line in head.split(b"\n") if not line.isascii()]
    bad = [line for line in found if not is_utf8(line)]
    if len(bad) * 2 <= len(found):
        return ""
    sizes = itertools.accumulate(map(len, bad))
    sample = b"\n".join(line for line, size in zip(bad, sizes) if size < SAMPLE)
    if not sample:  # a long line, cut where no character of several bytes is
        cut = max(bad[0].rfind(end, 0, SAMPLE) for end in (b" ", b",", b'"'))
        sample = bad[0][: cut if cut > 0 else None]
    from charset_normalizer import from_bytes

    guesses = from_bytes(sample, cp_isolation=list(USUAL), threshold=0.4)
    ranks = [(guess.chaos - guess.coherence, USUAL.index(guess.encoding)) for guess in guesses]
    name = USUAL[min(ranks)[1]].replace("_", "-") if ranks else ""
    return "gbk" if name == "gb18030" and _reads_as(sample, "gbk") else name


def _reads_as(data: bytes, encoding: str) -> bool:
    """Whether bytes, cut anywhere, are text without control characters."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)
