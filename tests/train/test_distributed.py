"""torchrun's ranks: the same updates as one process makes, one run to resume, one voice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.artifacts import checkpoint
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import StoppedError, UsageError
from bigmodel_cli.train import distributed
from tests.conftest import environment
from tests.stages import ROOT, TINY, log, prepare
from tests.test_tasks import KINDS

FLAGS = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "context": 32}.items()]
SAME = [*FLAGS, "--optimizer", "adamw", "--precision", "fp32", "--device", "cpu", "--threads", "1"]


def start(work: Path, *arguments: object, ranks: int = 2) -> subprocess.Popen[str]:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "--"]
    words = [
        *torchrun * (ranks > 1),
        "bigmodel_cli",
        "train",
        "-w",
        str(work),
        *map(str, arguments),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", *words], text=True,
        env=environment({"PYTHONPATH": str(ROOT)}), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def train(work: Path, *arguments: object, ranks: int = 2) -> tuple[int, str, str]:
    process = start(work, *arguments, ranks=ranks)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def weights(work: Path, run: str) -> dict[str, torch.Tensor]:
    place = Workdir(work).run(run).checkpoints
    return checkpoint.load_tensors(place / checkpoint.names(place)[-1] / checkpoint.MODEL)


def losses(work: Path, run: str) -> list[tuple[int, float, float]]:
    return [(x["step"], x["loss"], x["gradient_norm"]) for x in log(work, run) if "loss" in x]


def alike(work: Path, one: str, other: str) -> None:
    for ours, theirs in zip(losses(work, one), losses(work, other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    expected = weights(work, other)
    for name, tensor in weights(work, one).items():
        torch.testing.assert_close(tensor, expected[name], atol=5e-5, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["--model", "rnn"], ["--model", "mlp"],
                                  ["--objective", "masked", "--batch-size", "7"]])  # fmt: skip
def test_two_ranks_make_the_updates_of_one(work: Path, kind: list[str]) -> None:
    """Also of rows that cannot be halved, and of rows with unlike numbers of loss terms."""
    flags = [*SAME, *kind, "--steps", "4", "--checkpoint-every", "2"]
    code, out, err = train(work, *flags, "--run", "two", "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 4  # one document: rank 0 alone speaks
    assert err.count("weights; 4 steps") == 1
    assert "2 ranks of 1 threads" in err
    code, _, err = train(work, *flags, "--run", "one", ranks=1)
    assert code == 0, err
    alike(work, "two", "one")


@pytest.mark.slow
def test_a_run_of_two_ranks_resumes_on_one_with_the_same_order(work: Path) -> None:
    flags = [*SAME, "--steps", "60", "--checkpoint-every", "3", "--keep", "60"]
    process = start(work, *flags, "--run", "cut")
    saved = Workdir(work).run("cut").checkpoints
    began = time.monotonic()
    while not checkpoint.names(saved):
        assert process.poll() is None
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    for folder in Path("/proc").glob("[0-9]*"):  # torchrun's ranks have sessions of their own
        with contextlib.suppress(OSError):
            if str(work).encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
    process.communicate()
    reached = int(checkpoint.names(saved)[-1].removeprefix("step-"))
    assert reached < 60
    code, _, err = train(work, *flags, "--run", "cut", ranks=1)
    assert code == 0, err
    assert f"resuming at step {reached}" in err
    assert "ranks: 2 → null" in err  # on other hardware, so not to the byte
    code, _, err = train(work, *flags, "--run", "whole", ranks=1)
    assert code == 0, err
    alike(work, "cut", "whole")


@pytest.mark.slow
def test_sigterm_to_all_ranks_saves_one_checkpoint(work: Path) -> None:
    process = start(work, *SAME, "--steps", 100_000, "--checkpoint-every", 50_000, "--run", "long")
    place = Workdir(work).run("long")
    began = time.monotonic()
    while not (place.log.exists() and place.log.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "stopped by SIGTERM" in err
    assert len(checkpoint.names(place.checkpoints)) == 1
    assert not list(place.folder.rglob(".tmp-*"))


@pytest.mark.slow
def test_what_is_wrong_is_said_once(work: Path) -> None:
    code, out, err = train(work, *SAME, "--steps", 2, "--context", 10**6)
    assert code != 0
    assert out == ""
    assert err.count("error: --context is 1,000,000") == 1
    code, _, err = train(work, *SAME, "--verify-resume", 4)
    assert code != 0
    assert "call it without torchrun" in err


def test_rows_are_shared_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    for ranks in (1, 2, 3, 7):
        for rows in (1, 2, 8, 13):
            taken: list[int] = []
            for rank in range(ranks):
                monkeypatch.setenv("WORLD_SIZE", str(ranks))
                monkeypatch.setenv("RANK", str(rank))
                taken += range(*distributed.share(rows))
            assert taken == [*range(rows)]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_an_odd_environment_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "two")
    with pytest.raises(UsageError, match=f"{name}=`two`"):
        distributed.rank()


def test_ranks_that_are_nowhere_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # but no address to meet at
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(StoppedError, match="lost the others"), distributed.joined():
        pass


def test_alone_every_number_is_ones_own() -> None:
    values: list[Any] = [
        distributed.total(1, 2.5),
        distributed.of_rank_0(3.0),
        distributed.any_(False),
    ]
    assert values == [[1, 2.5], 3.0, False]
    assert distributed.lead(lambda: "mine") == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KINDS))
def test_two_ranks_make_the_updates_of_one_for_every_task(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    work = tmp_path / "w"
    prepare(work, kind.source(tmp_path), val="0.2", test="0.2", **kind.options)
    flags = [*(flag for flag in SAME if "context" not in flag), "--steps", "3", "--dropout", "0"]
    for run, ranks in (("two", 2), ("one", 1)):
        code, _, err = train(work, *flags, "--run", run, ranks=ranks)
        assert code == 0, err
    alike(work, "two", "one")
