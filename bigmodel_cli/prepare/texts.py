"""A file as text: its encoding, and its lines of bounded length.

Whatever a file's encoding is, readers get UTF-8: what cannot be decoded comes as bytes that are no
UTF-8, so that one rule, a row's own, counts it.
"""

from __future__ import annotations

import codecs
import contextlib
import io
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
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
USUAL = (  # encodings that are guessed, by Python's names
    "utf_16_le", "utf_16_be", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1252",
    "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp874", "koi8_r",
)  # fmt: skip


def encoding_named(name: str) -> str:
    """Python's name of an encoding; none for none. Raises UsageError for one that is unknown."""
    if not name:
        return ""
    try:
        found = codecs.lookup(name)
        "".encode(name)  # what is no encoding of text refuses
    except (LookupError, UnicodeError, ValueError):
        usual = {alias.replace("_", "-") for alias in (*aliases, *aliases.values())}
        raise UsageError(
            f"--encoding is `{name}`, which is unknown",
            did_you_mean(name.lower(), usual) if len(name) > 1 else "for example: --encoding gbk",
        ) from None
    return found.name


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
            layout.say(f"encoding {encoding}", f"`{source.name}` is read as {encoding.upper()}, "
                       "as its byte order mark says")  # fmt: skip
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
    file: IO[bytes], name: str, advance: Callable[[int], None] = lambda _: None, *,
    returns: bool = False,
) -> Iterator[bytes]:  # fmt: skip
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
    if layout.encoding or kind in layout.told or ledger.dropped["unreadable"].rows > GUESSES:
        return
    layout.told.add(kind)
    if found := _likely(source):
        layout.say(f"likely {found}", f"`{source.name}` is not UTF-8; it may be {found}: "
                   f"--encoding {found}", "warning")  # fmt: skip


def _likely(source: Source) -> str:
    """The encoding that a file may have which is not UTF-8; none for one that is binary, or most of
    whose lines are UTF-8."""
    assert source.path is not None
    with open_bytes(source.path) as file:
        head = file.read(LOOKED_AT)
    if b"\x00" in head:
        return _wide(head)
    lines = [line for line in head.split(b"\n") if not line.isascii()]
    bad = [line for line in lines if not is_utf8(line)]
    if len(bad) * 2 <= len(lines):
        return ""
    from charset_normalizer import from_bytes

    best = from_bytes(b"\n".join(bad)[:SAMPLE], cp_isolation=list(USUAL)).best()
    return best.encoding.replace("_", "-") if best else ""


def _wide(head: bytes) -> str:
    """UTF-16 without a byte order mark: its ASCII has zeros at every other place."""
    high, low = (head[place : 2 * SAMPLE : 2].count(0) for place in (0, 1))
    few = min(len(head) // 2, SAMPLE) // 50
    return "utf-16-le" if low > few and not high else "utf-16-be" if high > few and not low else ""
