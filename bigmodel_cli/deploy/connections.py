"""Connections: bounded in number, and ended where the client does not do its part.

A client that sends half a request, none, or never reads its answer costs a file descriptor. Each
has some time; where there are too many, the one that has kept us waiting longest makes room for a
new one, so that an honest client, whose request comes whole, is always answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from bigmodel_cli.deploy import limits
from bigmodel_cli.deploy.refusals import LOG, Refusal, refuse

if TYPE_CHECKING:
    import socket

    from starlette.types import Receive, Scope, Send

HEAD_SECONDS = 20  # for the head of a request to be whole, from the last answer on
READ_SECONDS = 60  # in which a client must have read something of what waits for it
SPARE_SECONDS = 5  # for a body, after which it is answered that it came too late
SAID_SECONDS = 60  # in which one thing is said once
MOST = 1024
CHECKS = 4  # threads that check requests
BACKLOG = 1024  # connections that the system keeps until they are taken
READ = 8 << 10  # bytes that are read at once: asyncio's 256 KiB may hold 40,000 parts of a body
TAKEN = 16  # connections that are taken at once: each has its descriptor before it is counted


def most_connections() -> int:
    """How many there may be: well below the limit of this process's files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST
    return max(TAKEN, min(MOST, files * 3 // 4 - 4 * TAKEN))


async def crowded(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers where all other connections are being answered, too."""
    response = await refuse(None, Refusal("too many calls at once; try again later", status=503))
    response.headers["connection"] = "close"
    await response(scope, receive, send)


class Watch:
    """Looks at all connections once a second, and says in a line what it ended."""

    def __init__(self, door: socket.socket) -> None:
        self.door = door
        self.most = most_connections()
        self.open: set[Connection] = set()
        self.ended = 0  # connections, since it was last said
        self._said: dict[str, float] = {}  # text → when

    def settings(self) -> dict[str, Any]:
        """Of uvicorn."""
        return {
            "http": partial(Connection, self),
            "backlog": TAKEN,
            "callback_notify": self.look,
            "timeout_notify": 0,
            "timeout_keep_alive": HEAD_SECONDS,
        }

    def end(self, connection: Connection) -> None:
        self.ended += 1
        connection.transport.abort()

    async def look(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(self._on_error)
            logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of clients that left
            loop.set_default_executor(limits.started(CHECKS, "checks"))
            self.door.listen(BACKLOG)  # of which uvicorn made TAKEN
        for connection in [connection for connection in self.open if connection.is_overdue()]:
            self.end(connection)
        text = "connections were ended whose clients did not send or read in time"
        if self.ended and self._say(
            text, f"{self.ended:,} {text} (at most {self.most:,} are kept)"
        ):
            self.ended = 0

    def _on_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """In place of asyncio's tracebacks, which come for each connection that cannot be taken."""
        text = f"{context['message']}: {type(context.get('exception')).__name__}"
        self._say(text, text)

    def _say(self, key: str, text: str) -> bool:
        now = time.monotonic()
        if now - self._said.get(key, -math.inf) < SAID_SECONDS:
            return False
        self._said[key] = now
        LOG.warning(text)
        return True


class Connection(H11Protocol):  # type: ignore[misc]
    """One client's connection. `since`: when the client began what it does now."""

    def __init__(self, watch: Watch, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.watch = watch
        watch.open = self.connections
        self.since: float = self.loop.time()
        self.read_at = self.since
        self.state: tuple[Any, Any] = (self.conn.their_state, self.cycle)
        self.unread = 0  # bytes that the client has not read

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.max_size = READ  # type: ignore[attr-defined]
        if len(self.connections) > self.watch.most:
            waited_for = [c for c in self.connections if c is not self and c.waits()]
            if waited_for:
                self.watch.end(min(waited_for, key=lambda connection: connection.since))
            else:
                self.app = crowded

    def handle_events(self) -> None:
        super().handle_events()
        state = (self.conn.their_state, self.cycle)
        if state != self.state:
            self.state, self.since = state, self.loop.time()

    def waits(self) -> bool:
        """Whether the client has still to send something."""
        sends: bool = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        return sends and not self.transport.is_closing()

    def is_overdue(self) -> bool:
        """Whether the client has not done its part in time. To be called again and again."""
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if not unread or unread < self.unread:
            self.read_at = now
        self.unread = unread
        head = self.conn.their_state is h11.IDLE
        most = HEAD_SECONDS if head else limits.BODY_SECONDS + SPARE_SECONDS
        late: bool = self.waits() and now - self.since > most
        return late or now - self.read_at > READ_SECONDS
