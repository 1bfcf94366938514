"""A bundle behind HTTP, for this machine only: /predict, and OpenAI's completions and models.

The model runs on one thread, one call after another; the event loop answers meanwhile. Each call
watches its client: when that is gone, the call ends before the model's next step. There are no
keys, so it binds to loopback, and answers only callers that address it as loopback: a web page
whose name was made to point here is refused.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import secrets
import signal
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from bigmodel_cli.deploy.connections import BACKLOG, Watch
from bigmodel_cli.deploy.limits import FEW_PIXELS, Bodies, started
from bigmodel_cli.deploy.model_thread import ModelThread
from bigmodel_cli.deploy.refusals import Refusal, encode, refuse, respond
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.tasks.parameters import checked

if TYPE_CHECKING:
    from starlette.requests import Request as Call
    from starlette.types import ASGIApp, Receive, Scope, Send

    from bigmodel_cli.deploy.predict import Predictor
    from bigmodel_cli.tasks import Request

MOST_CHOICES = 128  # texts that one call may ask for
GRACE = 3  # seconds for answers under way to end, once the server is to stop
# of a Host header, or of the page that calls
LOOPBACK = re.compile(r"(?i:(https?://)?(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?)")
# what a body of /v1/completions may hold beside a request, and of which type it has to be
COMPLETIONS = {"model": str, "stream": bool, "echo": bool, "stream_options": dict, "n": int}
IGNORED = "x-ignored-parameters"  # the header that lists the unknown names of a request
MOST_NAMES, LONGEST_NAME = 32, 64  # of that header


def guard(inner: ASGIApp) -> ASGIApp:
    """Middleware: refuses callers from elsewhere, and answers for what nobody else caught."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(raw=scope.get("headers", []))
        named = headers.getlist("host") + headers.getlist("origin")
        alone = "host" in headers and all(map(LOOPBACK.fullmatch, named))
        try:
            if not alone and scope["type"] != "lifespan":
                raise Refusal("only callers at a loopback address, such as 127.0.0.1, are answered")
            await inner(scope, receive, send)
        except ClientDisconnect:
            pass
        except Exception as error:
            response = await refuse(None, error)
            await response(scope, receive, send)

    return guarded


def check(
    given: Mapping[str, Any], predictor: Predictor
) -> tuple[list[str], list[Request], int, list[str]]:
    """Checks a body of /v1/completions without nulls: the prompt of each choice, as text, its
    request, the number of tokens in the prompts, and the unknown names. Raises Refusal or
    DataError."""
    given, ignored = checked(given, {*COMPLETIONS, *predictor.names} - {"id"})
    for name, kind in COMPLETIONS.items():
        if not isinstance(given.get(name, kind()), kind):
            raise Refusal(f"`{name}` is of the wrong type", name)
    check_model(given.get("model", predictor.name), predictor.name)
    copies, stop, prompt = given.get("n", 1), given.get("stop"), given.get("prompt")
    if type(copies) is not int or not 1 <= copies <= 8:
        raise Refusal("`n` must be a whole number from 1 to 8", "n")
    if isinstance(stop, list) and len(stop) > 4:
        raise Refusal("`stop` must be text or a list of at most 4 texts", "stop")
    many = isinstance(prompt, list) and not all(type(i) is int for i in prompt)
    parts: list[Any] = prompt if many else [prompt]  # type: ignore[assignment]
    if len(parts) * copies > MOST_CHOICES:
        raise Refusal(f"one call may ask for at most {MOST_CHOICES} choices", "prompt")
    options = {name: value for name, value in given.items() if name not in COMPLETIONS}
    most = given.get("max_tokens")
    if only_echo := bool(given.get("echo")) and type(most) is int and most == 0:
        options["max_tokens"] = 1
    texts: list[str] = []
    requests: list[Request] = []
    read = 0
    for part in parts:
        request = predictor.request(
            {**options, "prompt": part}, {"max_tokens": 16, "temperature": 1}
        )
        read += len(request.prompt)
        text = part if isinstance(part, str) else predictor.task.tokenizer.decode(part)  # type: ignore[attr-defined]
        for copy in range(copies):  # each its own text, and the first is that of /predict
            seed = request.sampling.seed + copy if "seed" in given else secrets.randbits(63)
            sampling = replace(request.sampling, seed=seed % (1 << 63))
            most = 0 if only_echo else request.max_tokens
            requests.append(replace(request, sampling=sampling, max_tokens=most))
            texts.append(text)
    return texts, requests, read, ignored


def listed(ignored: Sequence[str]) -> dict[str, str]:
    """The header that says which names of a request were ignored: percent-encoded, with commas
    between them."""
    names = [quote(name[:LONGEST_NAME], safe="", errors="replace") or '""' for name in ignored]
    more = [f"...{len(names) - MOST_NAMES}-more"] if len(names) > MOST_NAMES else []
    return {IGNORED: ", ".join(names[:MOST_NAMES] + more)} if names else {}


def check_model(name: str, served: str) -> None:
    if name != served:
        message = f"the model `{name:.80}` is not here; this server has `{served}`"
        raise Refusal(message, "model", "model_not_found", 404)


class Service:
    """The endpoints."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.thread = ModelThread(predictor)
        self.bodies = Bodies()
        # large images take turns, on one thread: what another one frees would stay with that
        self.large, self.decoder = asyncio.Lock(), started(1, "decoder")
        self.card = {
            "id": predictor.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "bigmodel",
        }
        shape = predictor.model.config.shape
        if shape.vocabulary:  # what reads tokens, or items
            self.card["max_model_len"] = shape.context

    async def health(self, _call: Call) -> Response:
        return respond({"status": "ok"})

    async def models(self, _call: Call) -> Response:
        return respond({"object": "list", "data": [self.card]})

    async def model(self, call: Call) -> Response:
        check_model(call.path_params["model"], self.predictor.name)
        return respond(self.card)

    async def predict(self, call: Call) -> Response:
        """Like one line of `bigmodel predict`."""
        async with self.bodies.read(call) as document:
            pixels = await asyncio.to_thread(self.predictor.task.pixels, document)
            async with self.large if pixels > FEW_PIXELS else nullcontext():
                if pixels and await call.is_disconnected():
                    raise ClientDisconnect
                pool = self.decoder if pixels > FEW_PIXELS else None
                request = await asyncio.get_running_loop().run_in_executor(
                    pool, self.predictor.request, document, {}
                )
            headers = listed(self.predictor.ignored(document))
            answer = {"id": document["id"]} if "id" in document else {}
        async with aclosing(self.thread.run([request], call.receive)) as events:
            async for _, _, whole, _ in events:
                answer.update(whole or {})
        return respond(answer, 200, **headers)

    async def completions(self, call: Call) -> Response:
        """OpenAI's text completions, whole or as server-sent events."""
        if self.predictor.task.field != "prompt" or not self.predictor.model.config.shape.causal:
            raise Refusal("this model does not continue text; use POST /predict", status=404)
        async with self.bodies.read(call) as document_:
            given = {k: v for k, v in document_.items() if v is not None}
            checked_ = await asyncio.to_thread(check, given, self.predictor)
            prompts, requests, read, ignored = checked_
            del given["prompt"]  # which may be long
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.predictor.name,
        }
        counted = given.get("stream_options", {}).get("include_usage") is True
        texts = prompts if given.get("echo") else [""] * len(prompts)  # what is not sent yet
        written = 0

        def document(*choices: tuple[int, str, str | None], usage: bool) -> dict[str, Any]:
            tokens = {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            }
            names = ("index", "text", "finish_reason")
            parts = [dict(zip(names, choice), logprobs=None) for choice in choices]
            return {**head, "choices": parts, "usage": tokens if usage else None}

        async def stream() -> AsyncIterator[bytes]:
            nonlocal written
            try:
                async with aclosing(self.thread.run(requests, call.receive)) as events:
                    async for index, text, whole, tokens in events:
                        text, texts[index] = texts[index] + text, ""
                        written += tokens if whole else 0
                        reason = whole["finish_reason"] if whole else None
                        part = encode(document((index, text, reason), usage=False))
                        yield b"data: " + part + b"\n\n"
                if counted:
                    yield b"data: " + encode(document(usage=True)) + b"\n\n"
                yield b"data: [DONE]\n\n"
            except ClientDisconnect:
                return
            except Exception as error:
                yield b"data: " + bytes((await refuse(None, error)).body) + b"\n\n"

        if given.get("stream"):
            return StreamingResponse(
                stream(), headers=listed(ignored), media_type="text/event-stream"
            )
        reasons: list[str] = [""] * len(prompts)
        async with aclosing(self.thread.run(requests, call.receive)) as events:
            async for index, text, whole, tokens in events:
                texts[index] += text
                if whole:
                    reasons[index], written = whole["finish_reason"], written + tokens
        answer = document(*zip(range(len(texts)), texts, reasons), usage=True)
        return respond(answer, 200, **listed(ignored))


def app(predictor: Predictor) -> FastAPI:
    """The server, without pages of documentation: those load scripts from elsewhere."""
    service = Service(predictor)
    return FastAPI(
        routes=[
            Route("/health", service.health),
            Route("/predict", service.predict, methods=["POST"]),
            Route("/v1/completions", service.completions, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/v1/models/{model:path}", service.model),
        ],
        middleware=[Middleware(guard)],
        redirect_slashes=False,
        openapi_url=None,
        exception_handlers={HTTPException: refuse, DataError: refuse},
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises UsageError for what is not loopback, or not free."""
    if not LOOPBACK.fullmatch(f"[{host}]" if ":" in host else host):
        raise UsageError(
            f"--host is `{host}`, which is not this machine alone, and this server has no keys",
            "use --host 127.0.0.1, and let others in through a proxy that asks who they are",
        )
    hint = "choose another port with --port; --port 0 takes a free one"
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port is `{port}`, but ports end at 65535", hint)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = "127.0.0.1" if host == "localhost" else host  # whatever that resolves to
    try:
        door = socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"cannot listen at `{host}`, port `{port}`: {reason}", hint) from None
    # Connections inherit it; asyncio does not see that they are TCP. Else each text waits 40 ms.
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return door


def serve(predictor: Predictor, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answers until SIGTERM or Ctrl-C, then returns: at once, or when answers under way have had
    GRACE seconds to end. Port 0 takes a free one; `ready` gets the address. Raises UsageError, see
    `listen`."""
    with listen(host, port) as door:
        server = uvicorn.Server(uvicorn.Config(
            app(predictor), ws="none", loop="asyncio", lifespan="off",
            log_config=None, log_level="critical", access_log=False, server_header=False,
            proxy_headers=False, timeout_graceful_shutdown=GRACE, **Watch(door).settings(),
        ))  # fmt: skip
        # uvicorn takes the signals over, and in the end raises them again for those before it.
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.signal(number, server.handle_exit) for number in numbers}
        gc.freeze()  # torch's many objects: each look at them would stop all threads for long
        try:
            shown = f"http://[{host}]" if ":" in host else f"http://{host}"
            ready(f"{shown}:{door.getsockname()[1]}")
            server.run(sockets=[door])
        finally:
            gc.unfreeze()
            for number, handler in before.items():
                signal.signal(number, handler)
