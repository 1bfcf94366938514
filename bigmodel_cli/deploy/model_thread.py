"""The thread that the model runs on: one call after another, each until its client is gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from bigmodel_cli.deploy.limits import started
from bigmodel_cli.deploy.refusals import of_our_own
from bigmodel_cli.errors import DataError

if TYPE_CHECKING:
    from starlette.types import Receive

    from bigmodel_cli.deploy.predict import Predictor
    from bigmodel_cli.tasks import Request

TOGETHER = 8  # texts that the model writes at once, which bounds memory

# (request, new text, the whole answer once it is finished, tokens written by then)
Event = tuple[int, str, "dict[str, Any] | None", int]


class ModelThread:
    """Answers requests, on a thread of its own.

    What a call has in memory is freed as it ends, however it ends: no error that holds the frames
    of the model, and so its state, leaves the thread.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.pool = started(1, "model")

    async def run(
        self, requests: Sequence[Request], receive: Receive
    ) -> AsyncGenerator[Event, None]:
        """The answers as they come. Raises ClientDisconnect, DataError or Refusal."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        gone = threading.Event()

        def put(item: Event | Exception | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            queue.put_nowait(ClientDisconnect())

        watcher = loop.create_task(watch())
        turn = self.pool.submit(self._work, requests, gone, put)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            item = None  # an error holds this frame
            gone.set()
            turn.cancel()
            watcher.cancel()

    def _work(
        self, requests: Sequence[Request], gone: threading.Event, put: Callable[[Any], None]
    ) -> None:
        """Answers on the model's thread, until `gone`."""
        steps, thread = 0, threading.get_ident()

        def step(*_: Any) -> None:
            """Each step of the model begins with its embedding and gives each text one token. Its
            text may be held back for long: only here is a client that is gone seen in time."""
            nonlocal steps
            if threading.get_ident() == thread:  # the model may have other users
                if gone.is_set():
                    raise ClientDisconnect
                steps += 1

        hook = self.predictor.model.embed.register_forward_pre_hook(step)
        try:
            for first in range(0, len(requests), TOGETHER):
                steps = 0
                part = requests[first : first + TOGETHER]
                for index, text, whole in self.predictor.answer(part):
                    put((first + index, text, whole, steps))
            put(None)
        except ClientDisconnect:
            pass  # nobody listens
        except DataError as error:
            put(DataError(error.message, error.hint))
        except Exception as error:
            put(of_our_own(error))
        finally:
            hook.remove()
