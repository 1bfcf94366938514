"""--verify-resume: the user's own proof that a killed run resumes to the same bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import GateError
from bigmodel_cli.events import Context
from bigmodel_cli.train import verify_resume as subject
from tests.stages import TINY, bigmodel

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"context": 32, "objective": "next"}
KINDS: list[list[str]] = [
    ["--dropout", "0.1"],
    ["--model", "rnn", "--precision", "fp32"],
    ["--model", "mlp", "--micro-batch", "3"],
    ["--objective", "masked", "--optimizer", "adamw"],
    ["--model", "rnn", "--objective", "masked", "--cell", "gru"],
]


def in_process(work: Path, steps: int = 3) -> dict[str, Any]:
    config = TrainConfig(**TINY, device="cpu", threads=1, verify_resume=steps)  # type: ignore[arg-type]
    return subject.verify(config, OPTIONS, Workdir(work), Context())


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "kind"), list(enumerate(KINDS, 3)), ids=str)
def test_a_killed_run_is_proved_to_resume_and_nothing_is_kept(
    work: Path, steps: int, kind: list[str]
) -> None:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "context": 32}.items()]
    done = bigmodel("train", "-w", work, *flags, *kind, "--threads", 1, "--verify-resume", steps,
                    "--json", "--quiet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    proof = json.loads(done.stdout)
    assert proof["verified"] is True
    assert proof["killed_after"] == steps // 2 + 1
    assert proof["resumed_from"].startswith("step-")
    assert proof["compiled"] is False
    assert proof["compared"] == ["losses", "optimizer", "state", "weights"]
    assert [path.name for path in work.iterdir()] == ["data"]


@pytest.mark.slow
def test_a_run_that_resumes_otherwise_is_told_from_the_whole_one(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(arguments: tuple[Any, ...], wanted: int) -> None:
        if wanted == 0:  # trains it all with another seed
            subject._train(dataclasses.replace(arguments[0], seed=1), *arguments[1:])

    monkeypatch.setattr(subject, "_child", child)
    with pytest.raises(GateError, match=r"after step 2 is not the whole one: weights, optimizer"):
        in_process(work)
    assert [path.name for path in work.iterdir()] == ["data"]


@pytest.mark.slow
def test_the_same_run_twice_is_the_same(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        subject, "_child", lambda arguments, wanted: wanted or subject._train(*arguments)
    )
    assert in_process(work)["verified"] is True
