"""Shared fixtures: the program as its users run it, on tiny data.

`cli` runs `bigmodel` in a folder of its own. A process that has the heavy imports done forks one
child for each command, which is the program from its `main` on and takes a tenth of the time; with
`cold=True` the command is a fresh `python -m bigmodel_cli`. Whatever runs, a traceback or an escape
code in what it writes fails the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# before torch is loaded: threads that spin while they wait slow all others, and as many tests run
# at a time as there are cores
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY = (
    "--size", "nano", "--width", "32", "--layers", "1", "--heads", "2", "--context", "32",
    "--batch-size", "2",
)  # fmt: skip
TRAIN = ("train", *TINY, "--steps", "2")
PREPARE = ("prepare", "corpus.jsonl", "--tokenizer", "bytes", "--val", "0.2", "--test", "0.2")
DOCUMENTS = [f"The fox number {i} ran over hill {i * 7} and saw {i * i} birds." for i in range(60)]
LIMITS = {"file": resource.RLIMIT_FSIZE, "memory": resource.RLIMIT_AS}

# The process that forks: it reads the name of a file with {argv, cwd, env, limits} and the child's
# three streams from a socket, and answers with the child's number and then its exit code.
FORKER = """
import contextlib, gc, io, json, os, resource, socket, sys, time
import matplotlib.pyplot, pyarrow.parquet, safetensors.torch, torch, transformers, typer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM
import bigmodel_cli.cli.app as app
import bigmodel_cli.deploy.predict, bigmodel_cli.deploy.run, bigmodel_cli.evaluate.run
import bigmodel_cli.prepare.readers, bigmodel_cli.train.run
with contextlib.redirect_stdout(io.StringIO()):  # what Typer imports late
    typer.main.get_command(app.build())(["predict", "--show-config"], standalone_mode=False)
gc.freeze()  # so that the children share all of it
link = socket.socket(fileno=int(sys.argv[1]))
while True:
    name, streams, _, _ = socket.recv_fds(link, 4096, 3)
    if not name:
        break
    pid = os.fork()
    if not pid:
        link.close()
        with open(name) as file:
            call = json.load(file)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(call["cwd"])
        os.environ.clear()
        os.environ.update(call["env"])
        for kind, most in call["limits"]:
            resource.setrlimit(kind, (most, most))
        sys.argv = ["bigmodel", *call["argv"]]
        app.STARTED = time.monotonic()
        try:
            app.main()
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(70)
    for stream in streams:
        os.close(stream)
    link.sendall(b"%d\\n" % pid)
    link.sendall(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and the text of both streams."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\nstdout:\n{self.out}\nstderr:\n{self.err}"

    def error(self) -> tuple[str, str]:
        """The message and the hint on stderr, of which there must be one each."""
        lines = self.err.splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
        assert len(errors) == 1, str(self)
        assert len(hints) == 1, f"no hint: {self}"
        return errors[0], hints[0]


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would change the program's mind."""
    odd = ("BIGMODEL_", "GITHUB_STEP", "NO_COLOR", "FORCE_COLOR")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(odd)}
    stages = ("TRAIN", "EVALUATE", "DEPLOY", "PREDICT", "SERVE")
    # one thread: where the machine is shared, two that wait for each other are slower by far
    threads = {f"BIGMODEL_{stage}_THREADS": "1" for stage in stages}
    return {**kept, **threads, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def limits(file: int | None, memory: int | None) -> list[tuple[int, int]]:
    named = {"file": file, "memory": memory}
    return [(LIMITS[name], most) for name, most in named.items() if most is not None]


class Forker:
    """The process that forks, and its socket."""

    def __init__(self, scratch: Path) -> None:
        self.call = scratch / "call.json"
        self.link, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKER, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            env=environment({}),
        )  # fmt: skip
        theirs.close()
        self.answers = self.link.makefile("rb")

    def __call__(
        self, argv: Iterable[str], cwd: Path, stdin: bytes, env: Mapping[str, str],
        most: list[tuple[int, int]], timeout: float,
    ) -> Result:  # fmt: skip
        call = {"argv": list(argv), "cwd": str(cwd), "env": environment(env), "limits": most}
        self.call.write_text(json.dumps(call))
        given = self.call.with_name("stdin")
        given.write_bytes(stdin)
        texts = [b"", b""]
        pipes = [os.pipe(), os.pipe()]

        def read(number: int) -> None:
            with open(pipes[number][0], "rb") as stream:
                texts[number] = stream.read()

        with given.open("rb") as source:
            streams = [source.fileno(), pipes[0][1], pipes[1][1]]
            socket.send_fds(self.link, [str(self.call).encode()], streams)
            pid = int(self.answers.readline())
        readers = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
        for number, reader in enumerate(readers):
            os.close(pipes[number][1])
            reader.start()
        alarm = threading.Timer(timeout, lambda: os.kill(pid, signal.SIGKILL))
        alarm.start()
        code = int(self.answers.readline())
        alarm.cancel()
        for reader in [*readers, alarm]:
            reader.join()
        return Result(code, texts[0].decode(), texts[1].decode())

    def close(self) -> None:
        self.link.close()
        self.answers.close()
        self.process.wait()


@dataclass
class Cli:
    """`bigmodel` in the folder `cwd`; `seen` holds every result."""

    cwd: Path
    forker: Forker
    seen: list[Result] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.cwd / "work"

    def __call__(
        self, *argv: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None,
        cold: bool = False, file: int | None = None, memory: int | None = None,
        timeout: float = 60,
    ) -> Result:  # fmt: skip
        """Runs one command. file: most bytes that a file may have; memory: of address space."""
        words, most = [str(word) for word in argv], limits(file, memory)
        if cold:
            done = subprocess.run(
                [sys.executable, "-m", "bigmodel_cli", *words], cwd=self.cwd, input=stdin,
                env=environment(env or {}), capture_output=True, timeout=timeout, check=False,
                preexec_fn=lambda: [resource.setrlimit(k, (v, v)) for k, v in most] and None,
            )  # fmt: skip
            result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
        else:
            result = self.forker(words, self.cwd, stdin, env or {}, most, timeout)
        self.seen.append(result)
        for text in (result.out, result.err):
            assert "Traceback" not in text, str(result)
            assert "\x1b" not in text, str(result)
        assert result.code != -signal.SIGKILL, f"still running after {timeout} s: {result}"
        return result

    def works(self, *argv: str | Path, **how: Any) -> Result:
        """Runs a command that must succeed."""
        result = self(*argv, **how)
        assert result.code == 0, str(result)
        return result

    def prepare(self, *more: str | Path, **how: Any) -> Result:
        """Prepares corpus.jsonl, as the finished folder did."""
        return self.works(*PREPARE, *more, **how)

    def train(self, *more: str | Path, **how: Any) -> Result:
        """Trains the tiny model, as the finished folder did."""
        return self.works(*TRAIN, *more, **how)

    def fails(
        self, *argv: str | Path, code: int, says: Iterable[str] = (), hint: Iterable[str] = (),
        **how: Any,
    ) -> Result:  # fmt: skip
        """Runs a command that must fail in the documented way, with nothing on stdout."""
        result = self(*argv, **how)
        assert result.code == code, str(result)
        message, advice = result.error()
        for word in says:
            assert word in message, str(result)
        for word in hint:
            assert word in advice, str(result)
        assert result.out == "", str(result)
        return result

    def refuses(self, *argv: str | Path, **how: Any) -> Result:
        """As `fails`, for a command that must leave the whole folder as it is."""
        with unchanged(self.cwd):
            return self.fails(*argv, **how)

    def start(self, *argv: str, **how: Any) -> subprocess.Popen[bytes]:
        """Begins a command in a fresh process; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "bigmodel_cli", *argv], cwd=self.cwd, env=environment({}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
        )  # fmt: skip

    def manifest(self) -> dict[str, Any]:
        """The prepared data's manifest."""
        return dict(json.loads((self.work / "data" / "manifest.json").read_bytes()))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for locks and caches, whose names begin with a dot."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """What was in the folder before is there afterwards, byte for byte, and nothing else."""
    before = contents(folder)
    yield
    after = contents(folder)
    assert sorted(before) == sorted(after)
    assert [name for name in before if before[name] != after[name]] == []


def write_corpus(folder: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (folder / "corpus.jsonl").write_text(lines)


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    process = Forker(tmp_path_factory.mktemp("forker"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, forker: Forker) -> Path:
    """A folder with corpus.jsonl and a work directory in which every stage is done. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    write_corpus(folder)
    cli = Cli(folder, forker)
    for command in (PREPARE, TRAIN, ("evaluate",), ("deploy",)):
        cli.works(*command)
    return folder


@pytest.fixture
def empty(tmp_path: Path, forker: Forker) -> Cli:
    """The program in a folder that holds corpus.jsonl and nothing else."""
    write_corpus(tmp_path)
    return Cli(tmp_path, forker)


@pytest.fixture
def cli(tmp_path: Path, forker: Forker, finished: Path) -> Cli:
    """The program in a copy of the finished folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Cli(tmp_path, forker)
