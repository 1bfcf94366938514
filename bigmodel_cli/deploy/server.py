"""A bundle behind HTTP, for this machine only: /predict, and OpenAI's /v1/completions and /v1/models.

The model runs on one thread, one call after another; the event loop answers meanwhile. Each call
watches its client: when that is gone, the call ends before the model's next step. There are no
keys, so it binds to loopback, and answers only callers that address it as loopback: a web page
whose name was made to point here is refused.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
import logging
import math
import os
import re
import secrets
import signal
import socket
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from bigmodel_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    from starlette.requests import Request as Call
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from bigmodel_cli.artifacts.tokenizer import Tokenizer
    from bigmodel_cli.deploy.predict import Predictor
    from bigmodel_cli.events import Context
    from bigmodel_cli.tasks import Request

MOST_BYTES = 4 << 20  # of a body
MOST_DEPTH = 64  # of lists and objects inside of each other in a body
MOST_DIGITS = 32  # of a whole number
MOST_CHOICES = 128  # texts that one call may ask for
MOST_WAITING = 256  # calls
TOGETHER = 8  # texts that the model writes at once, which bounds memory
BODY_SECONDS = 60  # for a body to arrive
GRACE = 3  # seconds that answers under way are given once the server is told to stop
NAME = r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?"
HOST, ORIGIN = re.compile(NAME, re.IGNORECASE), re.compile("https?://" + NAME, re.IGNORECASE)
# What changes an answer but is not done here, and the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {"logprobs": (0,), "best_of": (0, 1), "suffix": ("",)}
LOG = logging.getLogger("bigmodel.server")

# (request, new text, the whole answer once it is finished, tokens written by then)
Event = tuple[int, str, "dict[str, Any] | None", int]


class Refusal(HTTPException):
    """An answer other than 200, in OpenAI's form."""

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


def error_document(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status and the body of an error; what is no one's fault but ours says nothing more."""
    status, message, param, code = 500, "internal error", None, None
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
        param, code = getattr(error, "param", None), getattr(error, "code", None)
    elif isinstance(error, DataError):
        status, message = 400, error.message + (f" ({error.hint})" if error.hint else "")
        named = re.match(r"`(\w+)`", error.message)
        param = named.group(1) if named else None
    else:  # where it was, but not what it said: that might quote a prompt
        where = traceback.extract_tb(error.__traceback__)[-1]
        LOG.error("%s at %s:%s", type(error).__name__, where.filename, where.lineno)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def encode(document: Mapping[str, Any]) -> bytes:
    """JSON in ASCII: halves of surrogate pairs and line separators do no harm."""
    return json.dumps(document, allow_nan=False).encode()


def respond(document: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    return Response(encode(document), status, headers, media_type="application/json")


def refuse(_call: Call | None, error: Exception) -> Response:
    status, document = error_document(error)
    headers = getattr(error, "headers", None) or {}  # such as Allow
    return respond(document, status, **headers)


class Guard:
    """ASGI middleware: refuses callers from elsewhere, and answers what nobody else caught."""

    def __init__(self, inner: ASGIApp) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            headers = Headers(scope=scope)
            hosts, origin = headers.getlist("host"), headers.get("origin")
            if len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
                raise Refusal("the Host header must be a loopback name, such as 127.0.0.1")
            if origin is not None and not ORIGIN.fullmatch(origin):
                raise Refusal("web pages from elsewhere may not call this server", status=403)
            await self.inner(scope, receive, sending)
        except ClientDisconnect:
            pass
        except Exception as error:
            response = refuse(None, error)
            if not started:
                await response(scope, receive, send)


async def read_document(call: Call) -> dict[str, Any]:
    """The JSON object in the body. Raises Refusal."""
    body = bytearray()
    too_large = Refusal(f"the body has more than {MOST_BYTES:,} bytes", status=413)
    if int(call.headers.get("content-length", 0)) > MOST_BYTES:
        raise too_large
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in call.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refusal("the body took too long to arrive", status=408) from None
    document = await asyncio.to_thread(parse, bytes(body))
    if not isinstance(document, dict):
        raise Refusal("the body must be a JSON object")
    return document


def parse(body: bytes) -> Any:
    """Strict JSON: UTF-8, finite numbers, no more nesting than can be written back."""

    def whole(text: str) -> int:
        if len(text) > MOST_DIGITS:
            raise ValueError(f"a number has more than {MOST_DIGITS} digits")
        return int(text)

    def number(text: str) -> float:  # also of NaN, Infinity and -Infinity
        if not math.isfinite(value := float(text)):
            raise ValueError("a number is not finite")
        return value

    try:
        document = json.loads(
            body.decode(), parse_int=whole, parse_float=number, parse_constant=number
        )
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {error}") from None
    level = [document]
    for _ in range(MOST_DEPTH):
        level = [
            part
            for node in level
            if isinstance(node, dict | list)
            for part in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return document
    raise Refusal(f"the body is nested more than {MOST_DEPTH} deep")


@dataclass(frozen=True, slots=True)
class Completions:
    """A checked call of /v1/completions: a prompt (as text) and a request for each choice."""

    prompts: list[str]
    requests: list[Request]
    prompt_tokens: int
    echo: bool
    stream: bool
    include_usage: bool


def check_completions(given: Mapping[str, Any], predictor: Predictor) -> Completions:
    """Checks a body without nulls. Raises Refusal or DataError."""

    def flag(document: Mapping[str, Any], name: str) -> bool:
        if not isinstance(value := document.get(name) or False, bool):
            raise Refusal(f"`{name}` must be true or false", name)
        return value

    check_model(given.get("model", predictor.name), predictor.name)
    for name, inert in UNSUPPORTED.items():
        if name in given and given[name] not in inert:
            raise Refusal(f"`{name}` is unsupported", name, "unsupported_parameter")
    copies = given.get("n", 1)
    if type(copies) is not int or not 1 <= copies <= 8:
        raise Refusal("`n` must be a whole number from 1 to 8", "n")
    if isinstance(stop := given.get("stop"), list) and len(stop) > 4:
        raise Refusal("`stop` must be text or a list of at most 4 texts", "stop")
    options = given.get("stream_options", {})
    if not isinstance(options, dict):
        raise Refusal("`stream_options` must be an object", "stream_options")
    tokenizer: Tokenizer = predictor.task.tokenizer  # type: ignore[attr-defined]
    texts = prompt_texts(given.get("prompt"), tokenizer)
    if len(texts) * copies > MOST_CHOICES:
        raise Refusal(f"one call may ask for at most {MOST_CHOICES} choices", "prompt")
    prompts, requests = [], []
    for text in texts:
        request = predictor.request({**given, "prompt": text}, {"max_tokens": 16, "temperature": 1})
        for copy in range(copies):  # each its own text, and the first as /predict gives it
            seed = request.sampling.seed + copy if "seed" in given else secrets.randbits(63)
            sampling = dataclasses.replace(request.sampling, seed=seed % (1 << 63))
            requests.append(dataclasses.replace(request, sampling=sampling))
            prompts.append(text)
    # The model reads <|endoftext|> before each prompt, and engines that load the tokenizer from
    # the bundle count it as well.
    tokens = len(texts) + int(tokenizer.encode_batch(texts)[1].sum())
    return Completions(
        prompts, requests, tokens,
        flag(given, "echo"), flag(given, "stream"), flag(options, "include_usage"),
    )  # fmt: skip


def check_model(asked: Any, served: str) -> None:
    if asked != served:
        message = f"the model `{asked}` is not here; this server has `{served}`"
        raise Refusal(message, "model", "model_not_found", 404)


def prompt_texts(prompt: Any, tokenizer: Tokenizer) -> list[str]:
    """A text, texts, token ids, or lists of them, as texts. Raises Refusal."""

    def ids(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)

    def text(value: list[int]) -> str:
        if not all(0 <= i < tokenizer.size for i in value):
            raise Refusal(f"`prompt` holds ids outside of 0 … {tokenizer.size - 1}", "prompt")
        return tokenizer.decode(value)

    if isinstance(prompt, str):
        return [prompt]
    if ids(prompt):
        return [text(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(part, str) for part in prompt):
            return prompt
        if all(map(ids, prompt)):
            return [text(part) for part in prompt]
    raise Refusal("`prompt` must be text, token ids, or a list of texts or of token ids", "prompt")


class Service:
    """The endpoints, and the one thread that the model runs on."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.thread = ThreadPoolExecutor(1, "bigmodel")
        self.waiting = 0
        causal = predictor.model.config.shape.causal
        self.completes = predictor.task.field == "prompt" and causal
        self.model_document = {
            "id": predictor.name, "object": "model", "created": int(time.time()),
            "owned_by": "bigmodel",
        }  # fmt: skip

    @asynccontextmanager
    async def run(
        self, requests: Sequence[Request], receive: Receive
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The model's answers as they come. Leaving the context ends the model's work.

        They raise ClientDisconnect when the client is gone, and what the model raised."""
        if self.waiting >= MOST_WAITING:
            raise Refusal("too many calls are waiting; try again later", status=503)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        gone = threading.Event()

        def put(item: Event | Exception | None) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(queue.put_nowait, item)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()
            queue.put_nowait(ClientDisconnect())

        async def events() -> AsyncIterator[Event]:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item

        self.waiting += 1
        watcher = loop.create_task(watch())
        work = self.thread.submit(self.work, requests, gone, put)
        try:
            yield events()
        finally:
            self.waiting -= 1
            gone.set()
            work.cancel()
            watcher.cancel()

    def work(
        self, requests: Sequence[Request], gone: threading.Event,
        put: Callable[[Event | Exception | None], None],
    ) -> None:  # fmt: skip
        """Runs on the model's thread."""
        steps = 0

        def step(*_: Any) -> None:
            """Each step of the model begins with its embedding and gives each text one token.
            Text may be held back for many steps, so that here alone a client is always missed."""
            nonlocal steps
            if gone.is_set():
                raise ClientDisconnect
            steps += 1

        hook = self.predictor.model.embed.register_forward_pre_hook(step)
        try:
            for first in range(0, len(requests), TOGETHER):
                steps = 0
                for index, text, whole in self.predictor.answer(requests[first : first + TOGETHER]):
                    put((first + index, text, whole, steps))
            put(None)
        except Exception as error:
            put(error)
        finally:
            hook.remove()

    async def health(self, _call: Call) -> Response:
        return respond({"status": "ok"})

    async def models(self, _call: Call) -> Response:
        return respond({"object": "list", "data": [self.model_document]})

    async def model(self, call: Call) -> Response:
        check_model(call.path_params["model"], self.predictor.name)
        return respond(self.model_document)

    async def predict(self, call: Call) -> Response:
        """One line of `bigmodel predict`."""
        document = await read_document(call)
        request = await asyncio.to_thread(self.predictor.request, document, {})
        answer = {"id": document["id"]} if "id" in document else {}
        async with self.run([request], call.receive) as events:
            async for _, _, whole, _ in events:
                answer.update(whole or {})
        return respond(answer)

    async def completions(self, call: Call) -> ASGIApp:
        """OpenAI's text completions, whole or as server-sent events."""
        if not self.completes:
            raise Refusal("this model does not continue text; use POST /predict", status=404)
        document = await read_document(call)
        given = {name: value for name, value in document.items() if value is not None}
        asked = await asyncio.to_thread(check_completions, given, self.predictor)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion",
            "created": int(time.time()), "model": self.predictor.name,
        }  # fmt: skip
        starts = asked.prompts if asked.echo else [""] * len(asked.prompts)

        def choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
            return {"index": index, "text": text, "finish_reason": reason, "logprobs": None}

        def usage(written: int) -> dict[str, int]:
            read = asked.prompt_tokens
            return {"prompt_tokens": read, "completion_tokens": written,
                    "total_tokens": read + written}  # fmt: skip

        async def stream(_scope: Scope, receive: Receive, send: Send) -> None:
            """Headers go out with the first text: what fails before has a status of its own."""

            async def write(data: bytes, more: bool = True) -> None:
                body = b"data: " + data + b"\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": more})

            null = {"usage": None} if asked.include_usage else {}
            written, begun = 0, set[int]()
            try:
                async with self.run(asked.requests, receive) as events:
                    async for index, text, whole, tokens in events:
                        if not begun:
                            headers = [(b"content-type", b"text/event-stream; charset=utf-8"),
                                       (b"cache-control", b"no-cache")]  # fmt: skip
                            await send({"type": "http.response.start", "status": 200,
                                        "headers": headers})  # fmt: skip
                        text = text if index in begun else starts[index] + text
                        begun.add(index)
                        written += tokens if whole else 0
                        part = choice(index, text, whole["finish_reason"] if whole else None)
                        await write(encode({**head, "choices": [part], **null}))
            except Exception as error:
                if not begun or isinstance(error, ClientDisconnect):
                    raise
                return await write(encode(error_document(error)[1]), more=False)
            if asked.include_usage:
                await write(encode({**head, "choices": [], "usage": usage(written)}))
            await write(b"[DONE]", more=False)

        if asked.stream:
            return stream
        choices, written = {}, 0
        async with self.run(asked.requests, call.receive) as events:
            async for index, _, whole, tokens in events:
                if whole:
                    text = starts[index] + whole["text"]
                    choices[index] = choice(index, text, whole["finish_reason"])
                    written += tokens
        ordered = [choices[index] for index in range(len(choices))]
        return respond({**head, "choices": ordered, "usage": usage(written)})


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
        exception_handlers={HTTPException: refuse, DataError: refuse},
        middleware=[Middleware(Guard)],
        redirect_slashes=False, docs_url=None, redoc_url=None, openapi_url=None,
    )  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises UsageError for what is not loopback, or not free."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise UsageError(
            f"--host is `{host}`, which is not this machine alone, and this server has no keys",
            "use --host 127.0.0.1, and let others in through a proxy that asks who they are",
        )
    hint = "choose another port with --port; --port 0 takes a free one"
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port is `{port}`, but ports go from 0 to 65535", hint)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        return socket.create_server((str(address), port), family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"cannot listen at `{host}`, port `{port}`: {reason}", hint) from None


def serve(predictor: Predictor, host: str, port: int, context: Context) -> None:
    """Answers until SIGTERM or Ctrl-C, then returns: at once, or when answers under way have had
    GRACE seconds to end. Port 0 takes a free one. Raises UsageError, see `listen`."""
    with listen(host, port) as door:
        server = uvicorn.Server(uvicorn.Config(
            app(predictor), http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None,
            log_level="critical", access_log=False, server_header=False, proxy_headers=False,
            timeout_graceful_shutdown=GRACE,
        ))  # fmt: skip
        # uvicorn takes the signals over, and in the end raises them again for those before it.
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.signal(number, server.handle_exit) for number in numbers}
        try:
            name = f"[{host}]" if ":" in host else host
            context.note(
                f"serving http://{name}:{door.getsockname()[1]} for this machine alone "
                "(POST /predict, /v1/completions; Ctrl-C ends it)"
            )
            server.run(sockets=[door])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
