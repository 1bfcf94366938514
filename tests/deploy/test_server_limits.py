"""What strangers may not do to the server: take its memory, its connections, or its time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import json
import resource
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from PIL import Image
from starlette.requests import ClientDisconnect

from bigmodel_cli.artifacts import checkpoint, tokenizer
from bigmodel_cli.artifacts.bundle import FILE as BUNDLE
from bigmodel_cli.artifacts.manifest import file_info, write_json
from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.deploy import connections, limits
from bigmodel_cli.deploy.limits import MOST_VALUES, Bodies, count_values, parse
from bigmodel_cli.deploy.model_thread import ModelThread
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.deploy.refusals import Refusal
from bigmodel_cli.errors import DataError
from bigmodel_cli.models import generate
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import Task, save_task
from bigmodel_cli.tasks.image_classification import (
    ImageClassification,
    ImageClassificationOptions,
)
from bigmodel_cli.tasks.language import Language, LanguageOptions
from bigmodel_cli.tasks.pixels import Form, announced
from tests.conftest import environment
from tests.stages import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = 512
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
SCRIPT = """
import resource, sys
from pathlib import Path
from bigmodel_cli.deploy import connections, limits, server
from bigmodel_cli.deploy.predict import Predictor
{settings}
predictor = Predictor(Path({folder!r}), "cpu", threads=1)
server.serve(predictor, "127.0.0.1", 0, lambda url: print(url, flush=True))
"""
QUICK = "connections.HEAD_SECONDS = 1; limits.BODY_SECONDS = 1; connections.SPARE_SECONDS = 1\n"


def write_bundle(folder: Path, task: Task) -> Path:
    """A bundle of a tiny model that learned nothing."""
    torch.manual_seed(0)
    folder.mkdir()
    save_task(task, folder)
    config = model_config(
        "transformer", "nano", task.shape(), width=32, layers=2, heads=2, hidden=64
    )
    checkpoint.save_tensors(folder / checkpoint.MODEL, SequenceModel(config).state_dict())
    files = {path.name: as_json(file_info(path)) for path in folder.iterdir()}
    manifest = {"name": "tiny", "layout": "native", "task": task.name, "fingerprint": "",
                "training": "", "data_fingerprint": ""}  # fmt: skip
    write_json(folder / BUNDLE, {"files": files, "model": config.to_json(), **manifest})
    return folder


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec = tokenizer.train(["some text"], "bytes", 0, lambda run: run())
    task = Language(LanguageOptions(objective="next", context=CONTEXT), codec)
    return write_bundle(tmp_path_factory.mktemp("language") / "bundle", task)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ImageClassificationOptions(image_size=16, patch=4)
    task = ImageClassification(options, Form(3, 16), ["猫", "dog"], [0.5] * 3, [0.2] * 3)
    return write_bundle(tmp_path_factory.mktemp("images") / "bundle", task)


@pytest.fixture(scope="module")
def predictor(language: Path) -> Predictor:
    return Predictor(language, "cpu", threads=1)


class Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.port = int(url.rpartition(":")[2])

    def memory(self, line: str) -> int:
        """MiB: VmRSS is what it has, VmHWM the most that it had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{line}:")[1].split()[0]) >> 10

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(sent)
        return connection

    def answers(self, **document: Any) -> float:
        """The seconds that a small request takes, on a connection of its own."""
        began = time.monotonic()
        document = document or {"prompt": "日本", "max_tokens": 1}
        answer = httpx.post(f"{self.url}/predict", json=document, timeout=30)
        assert answer.status_code == 200, answer.text
        return time.monotonic() - began


@contextlib.contextmanager
def serving(folder: Path, settings: str = "") -> Iterator[Server]:
    log = folder.parent / "stderr"
    script = SCRIPT.format(folder=str(folder), settings=settings)
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=stderr, text=True,
            env=environment({"PYTHONPATH": str(ROOT)}),
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            assert url, log.read_text()
            server = Server(process, url, log)
            server.answers(**({"image": png(8, 8)} if folder.parent.name.startswith("im") else {}))
            yield server
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(language: Path) -> Iterator[Server]:
    """With short patience."""
    with serving(language, QUICK) as found:
        yield found


def ended(sockets: list[socket.socket], seconds: float) -> int:
    """How many of them the server ends in that time."""
    deadline, open_ = time.monotonic() + seconds, {s.fileno(): s for s in sockets}
    poll = select.poll()
    for number in open_:
        poll.register(number, select.POLLIN)
    while open_ and (left := deadline - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            with contextlib.suppress(ConnectionError):
                if open_[number].recv(1 << 16):
                    continue
            poll.unregister(number)
            del open_[number]
    return len(sockets) - len(open_)


# Connections ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"P",
        HEAD,
        HEAD + b"Content-Length: 10\r\n\r\n",
        HEAD + b"Content-Length: 10\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
        HEAD + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",  # whole, and then nothing
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET",  # and then half of another
    ],
)
def test_what_is_sent_in_part_is_not_waited_for_for_ever(server: Server, half: bytes) -> None:
    sockets = [server.connect(half) for _ in range(10)]
    assert server.answers() < 2
    assert ended(sockets, 8) == 10
    for each in sockets:
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", HEAD + b"Content-Length: 1000\r\n\r\n"])
def test_a_byte_now_and_then_is_not_enough(server: Server, sent: bytes) -> None:
    connection = server.connect(sent)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 8:
            connection.sendall(b"x")
            if select.select([connection], [], [], 0.1)[0]:
                break
    assert time.monotonic() - began < 6
    if sent:
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
    connection.close()


@pytest.mark.slow
def test_a_client_that_never_reads(language: Path) -> None:
    """What is written for it is more than the system takes."""
    long = "é" * 1_800_000  # six times as many bytes in the answer
    document = {"prompt": "x", "max_tokens": 1, "id": long}
    body = json.dumps(document, ensure_ascii=False).encode()
    with serving(language, "connections.READ_SECONDS = 1") as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            time.sleep(5)
            connection.settimeout(5)
            assert received(connection) < 6 * len(long)
        slow = httpx.post(f"{server.url}/predict", content=body, timeout=20)  # one that does
        assert slow.json()["id"] == long


def received(connection: socket.socket) -> int:
    """How many bytes come until the connection ends."""
    found = 0
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            found += len(part)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("files", [256, 4096])
def test_two_thousand_half_requests(language: Path, files: int) -> None:
    """A client with a whole one is answered meanwhile; one line tells of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 2000 if hard >= 2100 else hard - 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 100), hard))
    limit = f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))\n"
    try:
        with serving(language, QUICK.replace("= 1", "= 4", 1) + limit) as server:
            sockets = []
            for number in range(count):
                sockets.append(server.connect(HEAD))
                if number % 400 == 399:
                    assert server.answers() < 5
            descriptors = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
            assert descriptors < files
            assert server.answers() < 5
            assert ended(sockets, 20) == count
            assert len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())) < 60
            for each in sockets:
                each.close()
            text = server.log.read_text()
            assert "connections were ended" in text
            assert len(text.splitlines()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_no_descriptor_left_is_one_line(language: Path) -> None:
    """Even where connections are not bounded in time: something else took the descriptors."""
    settings = (
        "connections.most_connections = lambda: 10000\n"
        "server.Predictor = Predictor\n"
        "real = server.app\n"
        "def app(predictor):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 4096))\n"
        "    return real(predictor)\n"
        "server.app = app\n"
    )
    with serving(language, settings) as server:
        sockets = [server.connect(HEAD) for _ in range(100)]
        time.sleep(3.5)
        text = server.log.read_text()
        assert "out of system resource" in text
        assert len(text.splitlines()) == 1
        for each in sockets:
            each.close()
        assert server.answers() < 5


@pytest.mark.slow
def test_where_all_are_being_answered_the_next_is_refused(language: Path) -> None:
    endless = {"prompt": "x", "max_tokens": 1 << 20, "seed": 1}
    body = json.dumps(endless).encode()
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with serving(language, "connections.most_connections = lambda: 4") as server:
        sockets = [server.connect(whole) for _ in range(4)]
        time.sleep(1)
        answer = httpx.post(f"{server.url}/predict", json=endless)
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert answer.json()["error"]["type"] == "server_error"
        for each in sockets:
            each.close()
        assert server.answers() < 5


def test_connections_stay_below_the_limit_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, most in ((resource.RLIM_INFINITY, 1024), (1 << 20, 1024), (1024, 704), (20, 16)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert connections.most_connections() == most


# Bodies --------------------------------------------------------------------------------------


def filled(part: bytes, size: int = 4 << 20) -> bytes:
    head, tail = b'{"prompt": "x", "id": [', b"0]}"
    return head + part * ((size - len(head) - len(tail)) // len(part)) + tail


CROWDED = {
    "lists": b"[],",
    "objects": b"{},",
    "texts": b'"",',
    "numbers": b"1,",
    "fractions": b"1.5,",
    "nulls": b"null,",
    "pairs": b'{"":0},',
    "nested": b"[[[[[]]]]],",
    "spaced": b"[ ] ,",
}


@pytest.mark.parametrize("part", CROWDED.values(), ids=CROWDED)
def test_millions_of_values_are_refused_before_they_are_read(part: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(Refusal, match="values") as caught:
        parse(filled(part))
    assert caught.value.status_code == 400
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "value",
    [
        "a, b, c; [1, 2] {3}" * 150_000,  # nothing of it is a value
        '"quoted", \\ "twice", ' * 80_000,
        "\\" * 1_000_001 + '"',
        "你好，[世界]," * 100_000,
        [list(range(2048))] * 128,  # token ids
        ["text"] * 200_000,
        {"a": [{str(n): "," * n} for n in range(1_000)]},
    ],
    ids=lambda value: type(value).__name__ + str(value)[:12],
)
def test_honest_bodies_are_read(value: Any) -> None:
    body = json.dumps({"prompt": value}, ensure_ascii=False).encode()
    assert count_values(body) <= MOST_VALUES
    assert parse(body) == {"prompt": value}


@pytest.mark.parametrize(
    "document",
    [0, "a,b", [], [[]], {}, [1, [2, {"a": 3}]], {"a": [1, 2], "b": '",[,"'}, ["\\", "\\\\", '"']],
    ids=repr,
)
def test_values_are_counted_from_above(document: Any) -> None:
    def values(part: Any) -> int:
        inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return 1 + sum(map(values, inner))

    given = {"prompt": document}
    found = count_values(json.dumps(given).encode())
    assert values(given) - 1 <= found <= 2 * values(given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "size"),
    [(b"[],", 4 << 20), (b'"",', 4 << 20), (b"[],", 3 * (MOST_VALUES - 99) // 2)],
    ids=["lists", "texts", "just allowed"],
)
def test_others_are_answered_while_crowded_bodies_come(
    language: Path, part: bytes, size: int
) -> None:
    body, slowest, stop = filled(part, size), [0.0], threading.Event()
    with serving(language) as server, ThreadPoolExecutor(11) as pool:

        def look() -> None:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                while not stop.is_set():
                    began = time.monotonic()
                    assert client.get("/health").status_code == 200
                    slowest[0] = max(slowest[0], time.monotonic() - began)

        looking = pool.submit(look)
        posts = [pool.submit(httpx.post, f"{server.url}/predict", content=body, timeout=60)
                 for _ in range(10)]  # fmt: skip
        codes = {post.result().status_code for post in posts}
        stop.set()
        looking.result()
        assert codes <= {200, 400}
        assert slowest[0] < (1 if size == 4 << 20 else 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 300_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 5_000,
    ],
    ids=["parts of a body", "requests in one packet"],
)
def test_others_are_answered_while_tiny_parts_come(language: Path, sent: bytes) -> None:
    with serving(language) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        sockets = [server.connect() for _ in range(4)]
        threads = [threading.Thread(target=each.sendall, args=(sent,)) for each in sockets]
        for thread in threads:
            thread.start()
        slowest, end = 0.0, time.monotonic() + 3
        while time.monotonic() < end:
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        for each in sockets:
            each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for each in sockets:
            each.close()
        assert slowest < 1


def test_all_bodies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_BYTES_TOGETHER", 100)
    bodies = Bodies()

    class Call:
        def __init__(self, *parts: bytes) -> None:
            self.headers, self.parts, self.go_on = {}, parts, asyncio.Event()

        async def stream(self) -> Any:
            for part in self.parts:
                yield part
            await self.go_on.wait()

    async def read(call: Any) -> dict[str, Any]:
        async with bodies.read(call) as document:
            return dict(document)

    async def act() -> None:
        first, second = Call(b'{"a": ', b"1" * 60, b"}"), Call(b'"' * 60)
        reading = asyncio.create_task(read(first))
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal, match="try again") as caught:
            await read(second)
        assert caught.value.status_code == 503
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert bodies.held == 0
        small = Call(b'{"a": 1}')
        small.go_on.set()
        assert await read(small) == {"a": 1}
        assert bodies.held == 0

    asyncio.run(act())


# Pixels --------------------------------------------------------------------------------------


def png(width: int, height: int, mode: str = "L") -> str:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_the_pixels_of_a_request_are_known_from_its_head() -> None:
    from tests.prepare.test_images import bomb

    assert announced(png(7, 5)) == 35
    head = "data:image/png;base64," + base64.b64encode(bomb(8_000, 8_000)).decode()
    assert announced(head) == 64_000_000
    for other in (None, 5, "", "data:,x", "cat.png", "data:image/png;base64,QUJD"):
        assert announced(other) == 0


@pytest.mark.slow
def test_six_large_images_take_no_more_memory_than_one(images: Path) -> None:
    large, small = png(8_000, 8_000, "RGB"), png(40, 30, "RGB")
    with serving(images) as server, ThreadPoolExecutor(7) as pool:

        def ask(image: str) -> int:
            answer = httpx.post(f"{server.url}/predict", json={"image": image}, timeout=120)
            return answer.status_code

        assert ask(large) == 200
        one = server.memory("VmHWM")
        waiting = [pool.submit(ask, large) for _ in range(6)]
        assert ask(small) == 200
        assert [each.result() for each in waiting] == [200] * 6
        assert server.memory("VmHWM") < one + 100
        assert ask(png(8_001, 8_000)) == 400  # which would never fit


# Clients that leave --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [ClientDisconnect(), RuntimeError("a bug"), MemoryError(), DataError("too long", "cut it")],
    ids=lambda error: type(error).__name__,
)
def test_what_a_call_had_in_memory_is_freed_at_once(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """By counting references alone: the collector of cycles comes when it likes."""
    decoders: weakref.WeakSet[generate.Decoder] = weakref.WeakSet()
    made, leave = generate.Decoder.__init__, threading.Event()

    def init(self: generate.Decoder, *args: Any) -> None:
        made(self, *args)
        decoders.add(self)
        leave.set()

    steps = generate.Decoder.step

    def step(self: generate.Decoder) -> Any:
        if len(self.texts[0]) > 20 and not isinstance(error, ClientDisconnect):
            raise error
        return steps(self)

    monkeypatch.setattr(generate.Decoder, "__init__", init)
    monkeypatch.setattr(generate.Decoder, "step", step)
    thread = ModelThread(predictor)
    request = predictor.request({"prompt": "x", "max_tokens": 1 << 20}, {})

    async def receive() -> dict[str, Any]:
        if not isinstance(error, ClientDisconnect):
            await asyncio.sleep(100)
        while not leave.is_set():
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def act() -> str:
        told = ""
        try:
            async for _ in thread.run([request], receive):  # type: ignore[arg-type]
                assert len(decoders) == 1
        except Exception as found:
            told = f"{type(found).__name__} {getattr(found, 'status_code', '')}"
        await asyncio.wrap_future(thread.pool.submit(int))
        await asyncio.sleep(0.05)  # for what the thread may still have said
        return told

    gc.collect()
    gc.disable()
    try:
        wanted = {"ClientDisconnect": "ClientDisconnect ", "RuntimeError": "Refusal 500",
                  "MemoryError": "Refusal 503", "DataError": "DataError "}  # fmt: skip
        assert asyncio.run(act()) == wanted[type(error).__name__]
        error.__traceback__ = None  # of this test
        assert leave.is_set()
        assert len(decoders) == 0
    finally:
        gc.enable()


def leave(server: Server, seconds: float, **document: Any) -> None:
    """One who sends a request and is gone after that time."""
    body = json.dumps(document).encode()
    path = b"/v1/completions" if "stream" in document else b"/predict"
    head = HEAD.replace(b"/predict", path) + b"Content-Length: %d\r\n\r\n" % len(body)
    connection = server.connect(head + body)
    time.sleep(seconds)
    connection.close()


@pytest.mark.slow
def test_a_thousand_that_leave_take_no_memory(language: Path) -> None:
    document = {"prompt": "日本語" * 40, "max_tokens": 1 << 20, "temperature": 1}
    with serving(language) as server, ThreadPoolExecutor(20) as pool:

        def leave_all(count: int) -> None:
            for each in [
                pool.submit(leave, server, 0.2, **document, **({"stream": True} if n % 2 else {}))
                for n in range(count)
            ]:
                each.result()

        leave_all(100)
        server.answers()
        before = server.memory("VmRSS")
        leave_all(1000)
        assert server.answers() < 5
        assert server.memory("VmRSS") < before + 30


@pytest.mark.slow
def test_after_two_hundred_long_ones_that_left_the_next_is_answered(language: Path) -> None:
    with serving(language) as server, ThreadPoolExecutor(50) as pool:
        long = {"prompt": "x", "max_tokens": 10_000, "temperature": 1, "stream": True, "n": 8}
        for each in [pool.submit(leave, server, 0.5, **long) for _ in range(200)]:
            each.result()
        assert server.answers() < 5
        assert server.log.read_text() == ""
