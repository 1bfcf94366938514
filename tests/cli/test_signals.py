"""SIGTERM and Ctrl-C, sent to the real program in every stage: answered within seconds, nothing
lost, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import StoppedError
from bigmodel_cli.events import Stop
from tests.conftest import environment
from tests.stages import ROOT, STORIES, final_bytes, prepare, train

pytestmark = pytest.mark.slow
SMALL = ["--size", "nano", "--width", "64", "--context", "64", "--threads", "1", "--device", "cpu"]


def start(work: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bigmodel_cli", *map(str, arguments), "-w", str(work)],
        env=environment({"PYTHONPATH": str(ROOT)}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def interrupt(process: subprocess.Popen[str], after: float, number: int) -> int | None:
    """Sends the signal; gives the exit code, or None if the program was quicker."""
    time.sleep(after)
    if process.poll() is not None:
        process.communicate()
        return None
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert "Traceback" not in errors
    if process.returncode:
        assert "run the same command again" in errors
    return process.returncode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_prepare_is_stopped_at_any_moment(tmp_path: Path, number: int, code: int) -> None:
    """While it reads, learns a tokenizer, and encodes."""
    text = tmp_path / "text.txt"
    words = STORIES.read_text("utf-8").split()
    shuffled = random.Random(0)
    with text.open("w") as file:
        for _ in range(60_000):
            file.write(" ".join(shuffled.choices(words, k=20)) + "\n")
    began = time.monotonic()
    start(tmp_path / "whole", "prepare", text).communicate()
    whole = time.monotonic() - began
    codes = [
        interrupt(start(tmp_path / "cut", "prepare", text), part * whole, number)
        for part in (0.3, 0.5, 0.7, 0.9)
    ]
    assert code in codes
    assert set(codes) <= {code, None, 0}
    start(tmp_path / "cut", "prepare", text).communicate()
    assert not list((tmp_path / "cut").rglob(".tmp-*"))
    assert {p.name: p.read_bytes() for p in (tmp_path / "cut/data").glob("*.safetensors")} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole/data").glob("*.safetensors")
    }


def test_train_saves_and_goes_on_wherever_it_is_stopped(tmp_path: Path) -> None:
    """While torch loads, while it trains, validates and saves: the bytes are the same."""
    work = tmp_path / "work"
    prepare(work, STORIES)
    command = ["train", *SMALL, "--steps", 30, "--checkpoint-every", 3]
    began = time.monotonic()
    start(work, *command, "--run", "whole").communicate()
    whole = time.monotonic() - began
    codes = []
    for part in (0.2, 0.6, 0.75, 0.5):
        number = signal.SIGTERM if part != 0.6 else signal.SIGINT
        codes.append(interrupt(start(work, *command, "--run", "cut"), part * whole, number))
    assert 75 in codes
    assert set(codes) <= {75, 130, 0, None}
    start(work, *command, "--run", "cut").communicate()
    assert final_bytes(work, "cut") == final_bytes(work, "whole")


@pytest.mark.parametrize("command", ["evaluate", "deploy"])
def test_evaluate_and_deploy_leave_nothing_half(tmp_path: Path, command: str) -> None:
    work = tmp_path / "work"
    prepare(work, STORIES)
    train(work, steps=2)
    began = time.monotonic()
    start(work, command, "--force").communicate()
    whole = time.monotonic() - began
    codes = [
        interrupt(start(work, command, "--force"), part * whole, signal.SIGTERM)
        for part in (0.3, 0.6, 0.8)
    ]
    assert 75 in codes
    assert set(codes) <= {75, 0, None}
    again = start(work, command)
    assert "up to date" in again.communicate()[0]  # what was there is whole
    assert not list(Workdir(work).run("default").folder.rglob(".tmp-*"))


def test_a_signal_that_a_library_turns_into_another_error_is_still_a_stop(tmp_path: Path) -> None:
    """matplotlib's C code does so while it is imported."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except BaseException as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "bigmodel_cli", "prepare", STORIES, "-w", tmp_path / "work"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert process.returncode == 75, process.stderr
    assert "bug" not in process.stderr


def test_nobody_takes_a_signal_for_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where we guard against whatever a library raises: reading a tokenizer, an image, a line."""
    from PIL import Image
    from tokenizers import Tokenizer as Inner

    from bigmodel_cli.artifacts import tokenizer
    from bigmodel_cli.artifacts.manifest import read_json
    from bigmodel_cli.deploy.predict import Predictor
    from bigmodel_cli.tasks import pixels

    def signalled(*_: object, **__: object) -> None:
        Stop().on_signal(signal.SIGTERM)

    (tmp_path / tokenizer.FILE).write_text("{}")
    predictor = object.__new__(Predictor)
    read: list[tuple[Any, str, Callable[[], object]]] = [
        (Inner, "from_str", lambda: tokenizer.load(tmp_path)),
        (Image, "open", lambda: pixels.opened(b"GIF89a")),
        (json, "loads", lambda: read_json(tmp_path / tokenizer.FILE, "codec", "")),
        (Predictor, "request", lambda: Predictor.answer_lines(predictor, [b"{}"], {})),
    ]
    for owner, name, call in read:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, signalled)
            with pytest.raises(StoppedError):
                call()
