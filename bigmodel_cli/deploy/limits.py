"""How much of the server one call, and all calls together, may take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from bigmodel_cli.deploy.refusals import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request as Call

MOST_BYTES = 4 << 20  # of a body
MOST_BYTES_TOGETHER = 256 << 20  # of all bodies that are read or wait
FEW_PIXELS = 1_000_000  # an image with more is decoded while no other such is
MOST_VALUES = 300_000  # in a body: more than the token ids of 128 prompts of 2,048
MOST_DEPTH = 64  # of lists and objects inside of each other
MOST_DIGITS = 32  # of a whole number
BODY_SECONDS = 60  # for a body to arrive


def started(count: int, name: str) -> ThreadPoolExecutor:
    """Threads that run already: one that has to be started later may find no memory, and Python
    would wait for it for ever. Raises RuntimeError."""
    pool = ThreadPoolExecutor(count, name)
    together = threading.Barrier(count)
    for thread in [pool.submit(together.wait) for _ in range(count)]:
        thread.result()
    return pool


class Bodies:
    """Reads the bodies of calls, which are JSON objects."""

    def __init__(self) -> None:
        self.held = 0  # bytes of all of them

    @contextlib.asynccontextmanager
    async def read(self, call: Call) -> AsyncIterator[dict[str, Any]]:
        """The JSON object in the body, for as long as it is checked; then it is emptied, since a
        call may have to wait for the model. Raises Refusal."""
        body, document = bytearray(), dict[str, Any]()
        if int(call.headers.get("content-length", 0)) > MOST_BYTES:
            raise _too_long()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in call.stream():
                    body += part
                    self.held += len(part)
                    if len(body) > MOST_BYTES:
                        raise _too_long()
                    if self.held > MOST_BYTES_TOGETHER:
                        raise Refusal("too many long bodies at once; try again later", status=503)
            document = await asyncio.to_thread(parse, bytes(body))
            yield document
        except TimeoutError:
            message = f"the body did not arrive within {BODY_SECONDS:g} seconds"
            raise Refusal(message, status=408) from None
        finally:
            self.held -= len(body)
            document.clear()


def _too_long() -> Refusal:
    return Refusal(f"the body has more than {MOST_BYTES:,} bytes", status=413)


def parse(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, finite numbers, no more values than are bearable, no more nesting than
    can be written back."""

    def number(text: str) -> float:  # also of NaN, Infinity and -Infinity
        whole = text.lstrip("-").isdigit()
        if len(text) > MOST_DIGITS if whole else not math.isfinite(float(text)):
            raise ValueError("a number is too large, or none")
        return int(text) if whole else float(text)

    if count_values(body) > MOST_VALUES:
        raise Refusal(f"the body holds more than {MOST_VALUES:,} values")
    try:
        document = json.loads(
            body.decode(), parse_int=number, parse_float=number, parse_constant=number
        )
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refusal("the body must be a JSON object")
    level: list[Any] = [document]
    for _ in range(MOST_DEPTH):
        lists = [list(n.values()) if isinstance(n, dict) else n for n in level]
        level = [part for parts in lists if isinstance(parts, list) for part in parts]
    if level:
        raise Refusal(f"the body is nested more than {MOST_DEPTH} deep")
    return document


def count_values(body: bytes) -> int:
    """At least as many values as the JSON in a body has, without reading it: Python's parser lets
    nothing else run while it makes a million lists. Commas and brackets within texts do not count,
    unless the texts alone are too many."""
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if (quotes := bare.count(b'"')) > 4 * MOST_VALUES:  # names and values
        return quotes
    bare = b"".join(bare.split(b'"')[::2])
    return sum(map(bare.count, (b",", b"[", b"{")))
