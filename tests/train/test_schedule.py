"""Runs in minutes: on time, decayed, and with little of the time spent on validations.

The clock is a made-up one that each update, row of a validation and checkpoint moves on, so that
slow machines take no longer to test than quick ones.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.artifacts import checkpoint
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import StoppedError
from bigmodel_cli.events import Context
from bigmodel_cli.train.engine import Engine
from tests.stages import Events, log, prepare, train

DECAY, RATE = 0.6, 0.006
SMALL: dict[str, Any] = {
    "minutes": 3.5,
    "decay": DECAY,
    "learning_rate": RATE,
    "layers": 1,
    "batch_size": 2,
    "length": 16,
}


@dataclass
class Machine:
    """Seconds that things take: an update, a row of a validation, a checkpoint. `slow(now)`
    multiplies the first two."""

    update: float
    row: float
    save: float = 0.1
    slow: Callable[[float], float] = lambda _: 1.0
    now: float = 0.0
    rows: list[int] = field(default_factory=list)  # of each validation
    checks: float = 0.0  # seconds of validations and checkpoints

    def install(self, patch: pytest.MonkeyPatch, load: float = 3.0) -> Context:
        """The context of a process that has been loading for a while."""
        step, validate, save = Engine.step, Engine.validate, checkpoint.save
        began = self.now
        self.now += load

        def stepping(engine: Engine, *rest: Any) -> Any:
            done = step(engine, *rest)
            self.now += self.update * self.slow(self.now)
            return done

        def validating(engine: Engine, split: Any, rows: int, limit: int, stopping: Any) -> Any:
            found = validate(engine, split, rows, limit, stopping)
            self._check((0.02 + limit * self.row) * self.slow(self.now))
            self.rows.append(limit)
            return found

        def saving(*arguments: Any) -> Any:
            self._check(self.save)
            return save(*arguments)

        patch.setattr(Engine, "step", stepping)
        patch.setattr(Engine, "validate", validating)
        patch.setattr(checkpoint, "save", saving)
        patch.setattr(time, "monotonic", lambda: self.now)
        return Context(started=began)

    def _check(self, seconds: float) -> None:
        self.now += seconds
        self.checks += seconds


# 210 s as Fashion-MNIST and Beauty have on a slow machine, where a whole validation took 15 s
MACHINES = {
    "quick validations": Machine(update=2.1, row=1e-4),
    "slow validations": Machine(update=2.1, row=15 / 2048),
    "slow checkpoints": Machine(update=2.1, row=15 / 2048, save=1.5),
    "few updates": Machine(update=9.0, row=15 / 2048),
}


def run(
    work: Path, machine: Machine, patch: pytest.MonkeyPatch, name: str = "default", **values: Any
) -> tuple[list[dict[str, Any]], Events]:  # fmt: skip
    events = Events()
    context = machine.install(patch)
    context = Context(events.append, context.stop, context.started)
    train(work, name, context, **{**SMALL, **values})
    return log(work, name), events


@pytest.mark.parametrize("slower", [1, 10])
@pytest.mark.parametrize("name", MACHINES)
def test_a_run_in_minutes_is_on_time_decayed_and_seldom_validates(
    work: Path, monkeypatch: pytest.MonkeyPatch, name: str, slower: int
) -> None:
    kind = MACHINES[name]
    machine = Machine(kind.update, kind.row, kind.save, lambda _: float(slower))
    with monkeypatch.context() as patch:
        lines, events = run(work, machine, patch)
    update = kind.update * slower
    assert abs(machine.now - 210) <= max(0.03 * 210, 2 * update)
    assert machine.checks <= 0.1 * 210
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates[-1] <= 1.5 * RATE * update / (DECAY * 210)  # at most that of the last of so many
    fixed = machine.rows[-1]
    validations = [line for line in lines if "validation" in line]
    assert machine.rows[-len(validations) :] == [fixed] * len(validations)
    assert 10 >= len(validations) >= (5 if slower == 1 and name != "few updates" else 1)
    assert validations[-1]["step"] == lines[-2]["step"]
    assert (f"each validation takes at most {fixed:,} rows" in events.notes) == (fixed < 2048)
    if name == "quick validations" and slower == 1:
        assert fixed == 2048
        assert len(validations) == 10
    state = checkpoint.read_state(Workdir(work).run("default").checkpoints
                                  / f"step-{validations[-1]['step']:08d}")  # fmt: skip
    assert state.finished
    assert state.allowance.rows == fixed


@pytest.mark.slow
@pytest.mark.parametrize("moment", [30, 180])
def test_a_machine_that_becomes_slow_meanwhile_is_noticed(
    work: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """So that the last validation, which takes ten times as long as those before, fits, too."""
    machine = Machine(1.0, 0.5 / 2048, 0.05, lambda now: 10.0 if now > moment else 1.0)
    with monkeypatch.context() as patch:
        run(work, machine, patch)
    assert abs(machine.now - 210) <= 0.03 * 210
    assert machine.checks <= 0.1 * 210


@pytest.mark.slow
def test_a_resumed_run_validates_as_many_rows_as_before_it_was_stopped(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a machine of another speed."""
    with monkeypatch.context() as patch:
        machine = Machine(2.1, 15 / 2048)
        context = machine.install(patch)
        inner = Engine.step

        def stepping(engine: Engine, index: int, *rest: Any) -> Any:
            if index == 50:
                context.stop.on_signal(signal.SIGTERM)
            return inner(engine, index, *rest)

        patch.setattr(Engine, "step", stepping)
        with pytest.raises(StoppedError):
            train(work, context=context, **SMALL)
    fixed, first = machine.rows[-1], machine.checks
    assert 16 <= fixed < 2048
    for row, slower in ((15 / 2048, 4.0), (1e-5, 1.0)):
        again = Machine(2.1, row, slow=lambda _, slower=slower: slower)  # type: ignore[misc]
        with monkeypatch.context() as patch:
            context = again.install(patch, load=0)
            train(work, context=context, **SMALL)
        if slower == 4.0:
            assert set(again.rows) == {fixed}
            assert first + again.checks <= 0.1 * 210
    assert not again.rows  # it was finished


@pytest.mark.slow
def test_few_validations_are_said(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each takes less than an eighth of the task's rows, there are fewer of them."""
    machine = Machine(2.1, 0.015)
    with monkeypatch.context() as patch:
        lines, events = run(work, machine, patch)
    count = sum("validation" in line for line in lines)
    assert set(machine.rows[-count:]) == {256}
    assert 3 <= count <= 5
    assert "takes at most 256 rows, not 2,048 and there are about" in events.notes
    kept = [path.name for path in Workdir(work).run("default").checkpoints.glob("step-*")]
    assert len(kept) <= 3


@pytest.mark.slow
def test_checkpoints_that_are_asked_for_take_no_more_than_a_tenth_either(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(2.1, 15 / 2048)
    with monkeypatch.context() as patch:
        run(work, machine, patch, checkpoint_every=5)
    assert machine.checks <= 0.1 * 210
    assert abs(machine.now - 210) <= 0.03 * 210


@pytest.mark.slow
def test_a_run_without_a_validation_split_is_on_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("狐狸跑过了小山。\n" * 3 + "A fox ran.\n" * 200)
    prepare(tmp_path / "work", tmp_path / "text.txt", tokenizer="bytes", val="0", test="0")
    machine = Machine(2.1, 1.0, save=0.5)
    with monkeypatch.context() as patch:
        lines, _ = run(tmp_path / "work", machine, patch)
    assert not machine.rows
    assert abs(machine.now - 210) <= 0.03 * 210
    assert machine.checks <= 0.1 * 210
    assert lines[-1]["step"] > 80


@pytest.mark.slow
def test_runs_in_steps_validate_all_rows_however_slow(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(0.1, 1.0)
    with monkeypatch.context() as patch:
        lines, _ = run(work, machine, patch, minutes=None, steps=6)
    assert machine.rows == [2048] * 6
    assert sum("validation" in line for line in lines) == 6
    state = Workdir(work).run("default").checkpoints / "step-00000006" / checkpoint.STATE
    assert "allowance" not in json.loads(state.read_bytes())
