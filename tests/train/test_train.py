"""Training: exactness, resuming, budgets, checkpoints, divergence."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.records import Length
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import (
    ArtifactError,
    DivergedError,
    InterruptError,
    StoppedError,
    UsageError,
)
from bigmodel_cli.events import CheckpointSaved, Context, StepDone, Validated
from bigmodel_cli.train import schedule
from bigmodel_cli.train.engine import Engine
from tests.stages import ROOT, TINY, Events, bigmodel, final_bytes, log, prepare, stories, train


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> Context:
    """A context whose program gets a signal while update `step` (from 1) is computed."""
    context = Context()
    inner = Engine.step

    def stepping(self: Engine, index: int, *rest: Any) -> Any:
        result = inner(self, index, *rest)
        if index + 1 == step:
            context.stop.on_signal(number)
        return result

    monkeypatch.setattr(Engine, "step", stepping)
    return context


EXACT: list[dict[str, Any]] = [
    {},
    {"model": "rnn", "cell": "lstm"},
    {"model": "rnn", "cell": "gru"},
    {"model": "mlp", "window": 4},
    {"objective": "masked"},
    {"model": "rnn", "objective": "masked"},
    {"model": "mlp", "objective": "masked"},
    {"optimizer": "adamw", "micro_batch": 3},
    {"precision": "bf16", "dropout": 0.2},
    {"epochs": 0.4, "checkpoint_every": 5, "steps": None},
    {"checkpoint_every": 3},
]


def kept(work: Path, run: str) -> list[str]:
    return sorted(path.parent.name for path in work.glob(f"runs/{run}/checkpoints/*/state.json"))


@pytest.mark.slow
@pytest.mark.parametrize("options", EXACT, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
def test_a_stopped_run_resumes_to_the_very_same_bytes(
    work: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    values = {"steps": 6, **options}
    values = {k: v for k, v in values.items() if v is not None}
    train(work, "whole", **values)
    for step in (1, 4):
        run = f"stopped-{step}"
        with monkeypatch.context() as patch, pytest.raises(StoppedError, match="SIGTERM"):
            train(work, run, stop_at(patch, step), **values)
        train(work, run, **values)
        assert final_bytes(work, run) == final_bytes(work, "whole")
        assert kept(work, run) == kept(work, "whole")
        losses = [(r["step"], r["validation"]["loss"]) for r in log(work, run) if "validation" in r]
        whole = [
            (r["step"], r["validation"]["loss"]) for r in log(work, "whole") if "validation" in r
        ]
        assert losses == whole


@pytest.mark.slow
def test_a_run_from_before_an_option_came_resumes(work: Path) -> None:
    train(work, "old", steps=2)
    path = Workdir(work).run("old").config
    document = json.loads(path.read_bytes())
    del document["checksum"], document["options"]["compile"], document["resolved"]["compile"]
    manifest.write_json(path, document)
    assert train(work, "old", steps=2).fresh


@pytest.mark.slow
def test_a_run_whose_updates_had_other_rows_resumes_with_a_warning(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        train(work, "old", stop_at(patch, 2))
    path = Workdir(work).run("old").config
    document = manifest.read_json(path, "", "")
    now = document["hardware"]["arithmetic"]
    document["hardware"]["arithmetic"] = 4  # the last whose updates were of rows of like lengths
    manifest.write_json(path, document)
    events = Events()
    assert train(work, "old", events.context()).step == 6
    assert f"another version, so not exact to the byte: arithmetic: 4 → {now}" in events.notes


@pytest.fixture(scope="module")
def compiler() -> None:
    """Skips where torch.compile cannot work, and says why."""
    code = "import torch, bigmodel_cli.models.device as d\n"
    code += "print(d.cannot_compile(torch.device('cpu')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if done.stdout.strip():
        pytest.skip(f"torch.compile does not work here: {done.stdout.strip()}")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("options", [{}, {"dropout": 0.2, "precision": "fp32", "micro_batch": 3}])
def test_compiled_kernels_resume_to_the_same_bytes_and_change_nothing_beyond_rounding(
    work: Path, options: dict[str, Any]
) -> None:
    """In processes of their own, so that each compiles anew."""
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "context": 32, **options}.items()]
    command = ["train", "-w", str(work), "--threads", "1", "--steps", "6", *flags]
    stepping = "import bigmodel_cli.train.engine as e, os, signal\ninner = e.Engine.step\n" + (
        "def step(self, number, *rest):\n"
        "    done = inner(self, number, *rest)\n"
        "    if number == 3: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return done\n"
        "e.Engine.step = step\n"
        "from bigmodel_cli.cli.app import main\nmain()\n"
    )
    for run, compiled in (("whole", "on"), ("eager", "off")):
        done = bigmodel(*command, "--run", run, "--compile", compiled)
        assert done.returncode == 0, done.stderr
        assert ("compiled" in done.stderr) == (compiled == "on")
    cut = [*command, "--run", "cut", "--compile", "on"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    stopped = subprocess.run([sys.executable, "-c", stepping, *cut], env=env, check=False)
    assert stopped.returncode == 75
    assert bigmodel(*cut).returncode == 0
    assert final_bytes(work, "cut") == final_bytes(work, "whole")
    losses = {run: [r["loss"] for r in log(work, run) if "loss" in r] for run in ("whole", "eager")}
    assert losses["whole"] == pytest.approx(losses["eager"], rel=2e-3)


@pytest.mark.slow
def test_without_a_compiler_nothing_is_compiled_and_asking_for_it_says_why(
    work: Path, tmp_path: Path
) -> None:
    env = {"CXX": str(tmp_path / "nothing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**TINY, "context": 32}.items()]
    done = bigmodel("train", "-w", work, *flags, "--steps", 2, "--compile", "on", env=env)
    assert done.returncode == 2, done.stderr
    assert "error: --compile on: " in done.stderr
    assert "install g++" in done.stderr
    assert "Traceback" not in done.stderr
    done = bigmodel("train", "-w", work, *flags, "--minutes", 0.3, env=env)
    assert done.returncode == 0, done.stderr
    assert "compiled" not in done.stderr  # too short a run


def test_long_runs_of_transformers_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from bigmodel_cli.models import device
    from bigmodel_cli.models.shape import Shape
    from bigmodel_cli.models.sizes import model_config
    from bigmodel_cli.train.resolve import _compile

    monkeypatch.setattr(device, "cannot_compile", lambda _: "")
    events = Events()

    def compiled(family: str, length: dict[str, Any], even: bool = True, **values: Any) -> bool:
        shape = Shape(2048, 256, True)
        resolved: Any = SimpleNamespace(
            length=Length(**length, text=""), batch_size=8, device="cpu", threads=2
        )
        model = model_config(family, "micro", shape)
        plan: Any = SimpleNamespace(row_tokens=256.0, even=even)
        return _compile(TrainConfig(**values), model, resolved, plan, events.context())

    assert compiled("transformer", {"steps": None, "seconds": 1200})
    assert not compiled("transformer", {"steps": None, "seconds": 300})
    assert compiled("transformer", {"steps": 100_000, "seconds": None})
    assert not compiled("transformer", {"steps": 100, "seconds": None})
    assert compiled("transformer", {"steps": 100, "seconds": None}, compile="on")
    assert not compiled("transformer", {"steps": 100_000, "seconds": None}, compile="off")
    assert not compiled("rnn", {"steps": 100_000, "seconds": None})
    with pytest.raises(UsageError, match="nothing to fuse in --model rnn"):
        compiled("rnn", {"steps": 100, "seconds": None}, compile="on")
    assert not compiled("transformer", {"steps": None, "seconds": 1200}, even=False)
    monkeypatch.setattr(device, "cannot_compile", lambda _: "no compiler")
    assert not compiled("transformer", {"steps": None, "seconds": 1200})
    assert "not compiled: no compiler" in events.notes
    with pytest.raises(UsageError, match="no compiler"):
        compiled("transformer", {"steps": 100, "seconds": None}, compile="on")


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_at_most_an_interval_and_changes_nothing(
    work: Path, tmp_path: Path
) -> None:
    """Kills the real program at seeded random moments, anywhere from import to saving."""
    values = ["--steps", "40", "--checkpoint-every", "4", "--threads", "1", "--context", "32"]
    values += [f"--{k}={v}" for k, v in TINY.items() if k != "batch_size"] + ["--batch-size", "8"]
    command = [sys.executable, "-m", "bigmodel_cli", "train", "-w", str(work), "-q", *values]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    subprocess.run([*command, "--run", "whole"], env=env, check=True, cwd=tmp_path)
    whole = time.monotonic() - began
    moments = random.Random(5)
    reached = 0
    for _ in range(6):
        process = subprocess.Popen([*command, "--run", "killed"], env=env, cwd=tmp_path)
        time.sleep(moments.uniform(0.2, 0.9) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        names = checkpoint.names(Workdir(work).run("killed").checkpoints)
        step = int(names[-1].removeprefix("step-")) if names else 0
        assert step >= reached  # nothing that was saved is lost
        reached = step
    assert reached > 0  # else the test tested nothing
    subprocess.run([*command, "--run", "killed"], env=env, check=True, cwd=tmp_path)
    assert final_bytes(work, "killed") == final_bytes(work, "whole")
    assert not list(Workdir(work).run("killed").folder.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_finished_run_is_up_to_date(work: Path) -> None:
    first = train(work)
    before = final_bytes(work)
    again = train(work)
    assert (again.fresh, again.step, again.checkpoint) == (True, 6, first.checkpoint)
    assert final_bytes(work) == before


@pytest.mark.slow
def test_ctrl_c_saves_and_says_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptError):
        train(work, "default", stop_at(patch, 3, signal.SIGINT))
    assert checkpoint.names(Workdir(work).run("default").checkpoints)[-1] == "step-00000003"


@pytest.mark.slow
def test_micro_batches_do_not_change_an_update(work: Path) -> None:
    """Sums divided by the update's own number of terms: 1 × 8, 2 × 4 and 8 × 1 rows are one."""
    weights = []
    for micro in (8, 4, 1):
        train(work, f"m{micro}", micro_batch=micro, steps=3, optimizer="adamw", precision="fp32")
        path = Workdir(work).run(f"m{micro}").checkpoints / "step-00000003" / checkpoint.MODEL
        weights.append(checkpoint.load_tensors(path))
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, other[name], atol=2e-5, rtol=1e-3)


@pytest.mark.slow
def test_an_update_has_no_more_rows_than_an_epoch(work: Path) -> None:
    """Whatever is asked for, as when somebody thinks of tokens: it would fill the memory."""
    events = Events()
    train(work, "all", events.context(), batch_size=10**15, length=128, steps=2)
    rows = json.loads(Workdir(work).run("all").config.read_text("utf-8"))["resolved"]["batch_size"]
    assert f"--batch-size 1,000,000,000,000,000: an epoch has {rows:,} rows" in events.notes
    train(work, "rows", batch_size=rows, length=128, steps=2)
    assert final_bytes(work, "all") == final_bytes(work, "rows")


@pytest.mark.slow
def test_other_options_are_listed_and_refused(work: Path) -> None:
    train(work)
    with pytest.raises(UsageError) as caught:
        train(work, learning_rate=0.5, length=16)
    assert "learning_rate: null → 0.5" in caught.value.message
    assert "context: 32 → 16" in caught.value.message
    assert "--restart" in caught.value.hint
    assert train(work).fresh  # nothing was lost
    assert train(work, restart=True, learning_rate=0.5).step == 6


@pytest.mark.slow
def test_new_data_are_noticed(work: Path, tmp_path: Path) -> None:
    train(work)
    prepare(work, stories(tmp_path, 150), vocab_size=400)
    with pytest.raises(UsageError, match="data have changed"):
        train(work)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(work: Path) -> None:
    train(work, keep=6)
    before = final_bytes(work)
    place = Workdir(work).run("default").checkpoints
    path = place / "step-00000006" / checkpoint.OPTIMIZER
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    state = place / "step-00000006" / "state.json"
    document = manifest.read_json(state, "", "")
    manifest.write_json(state, {**document, "finished": False})  # it has somewhere to go
    events = Events()
    train(work, "default", events.context(), keep=6)
    assert "step-00000006/optimizer.safetensors` is corrupt" in events.notes
    assert "resuming at step 5" in events.notes
    assert final_bytes(work) == before


@pytest.mark.slow
def test_no_whole_checkpoint_is_an_error(work: Path) -> None:
    train(work)
    for path in Workdir(work).run("default").checkpoints.glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="no checkpoint"):
        train(work)


@pytest.mark.slow
def test_divergence_leaves_the_last_checkpoint(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Engine.step

    def breaking(self: Engine, index: int, *rest: Any) -> Any:
        if index == 3:
            with torch.no_grad():
                self.model.embed.weight[0, 0] = float("nan")
        return inner(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", breaking)
        with pytest.raises(DivergedError, match="step 4") as caught:
            train(work, checkpoint_every=3)
    assert caught.value.message.endswith("the best checkpoint before it is `step-00000003`")
    names = checkpoint.names(Workdir(work).run("default").checkpoints)
    assert names == ["step-00000003"]
    weights = checkpoint.load_tensors(
        Workdir(work).run("default").checkpoints / names[0] / checkpoint.MODEL
    )
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
def test_best_and_last_are_kept(work: Path) -> None:
    done = train(work, steps=8, checkpoint_every=1, keep=2, learning_rate=2.0)
    names = checkpoint.names(Workdir(work).run("default").checkpoints)
    assert names[-2:] == ["step-00000007", "step-00000008"]
    assert done.checkpoint in names
    assert len(names) <= 3
    losses = {r["step"]: r["validation"]["loss"] for r in log(work) if "validation" in r}
    assert int(done.checkpoint.removeprefix("step-")) == min(losses, key=losses.__getitem__)


@pytest.mark.slow
def test_a_time_budget_ends_on_time_with_its_decay_complete(work: Path) -> None:
    began = time.monotonic()
    events = Events()
    done = train(work, "default", events.context(), minutes=0.2, threads=2)
    took = time.monotonic() - began
    assert took < 0.2 * 60 + 1.5  # a second's grace for a busy machine
    assert took > 0.2 * 60 * 0.9
    rates = [r["learning_rate"] for r in log(work) if "learning_rate" in r]
    assert rates[-1] < 0.15 * max(rates)
    assert done.step > 10


@pytest.mark.slow
def test_a_time_budget_goes_on_where_it_was(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        train(work, "default", stop_at(patch, 3), minutes=0.05)
    began = time.monotonic()
    done = train(work, minutes=0.05)
    assert done.step > 3
    assert time.monotonic() - began < 3 + 1.5


def test_two_lengths_are_refused(work: Path) -> None:
    with pytest.raises(UsageError, match="--steps and --minutes"):
        train(work, steps=3, minutes=1.0)


@pytest.mark.parametrize(
    ("given", "steps"),
    [({"steps": 7}, 7), ({"epochs": 2.0}, 50), ({"tokens": 8 * 32 * 10 + 1}, 11)],
)
def test_lengths_as_steps(given: dict[str, Any], steps: int) -> None:
    assert schedule.length(TrainConfig(**given), 200, 8, 32).steps == steps


def test_the_rate_rises_holds_and_falls() -> None:
    total = 100
    rates = [schedule.rate(s / total, s, total, 0.1, 0.5) for s in range(total)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == 1.0
    assert rates[9:51] == [1.0] * 42
    assert rates[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in itertools.pairwise(rates[50:]))


@pytest.mark.slow
def test_a_model_learns_the_stories(work: Path) -> None:
    """Far from optimal in 60 steps, but far better than knowing the tokens' frequencies."""
    train(work, steps=60, learning_rate=0.01, length=64)
    losses = [r["validation"]["loss"] for r in log(work) if "validation" in r]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    ("family", "given", "said"),
    [
        ("rnn", {"heads": 2}, "--heads changes nothing: a recurrent model has none"),
        ("mlp", {"cell": "gru"}, "--cell changes nothing: an mlp has none"),
        ("transformer", {"window": 3}, "--window changes nothing: a transformer has none"),
    ],
)
def test_an_option_that_the_family_does_not_have_is_said(
    work: Path, family: str, given: dict[str, Any], said: str
) -> None:
    events = Events()
    values = {"heads": None, **given, "model": family, "steps": 1, "width": 32}
    train(work, f"odd-{family}", events.context(), **values)
    assert said in events.notes
    assert events.notes.count("changes nothing") == 1


def test_what_a_run_does_is_reported_as_data(work: Path) -> None:
    events = Events()
    done = train(work, "events", events.context(), steps=6, checkpoint_every=3)
    steps = [event for event in events if isinstance(event, StepDone)]
    validated = [event for event in events if isinstance(event, Validated)]
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    place = Workdir(work).run("events")
    lines = [json.loads(line) for line in place.log.read_text().splitlines()]
    updates = [line for line in lines if "validation" not in line]
    assert [event.step for event in steps] == [*range(1, 7)]
    for event, line in zip(steps, updates, strict=True):
        for name in ("loss", "gradient_norm", "learning_rate", "tokens"):
            assert getattr(event, name) == line[name], name
        assert event.unit == "tokens"
        assert event.done == event.step / 6
    assert [event.step for event in validated] == [3, 6]
    assert list(validated[-1].values) == list(done.validation)
    assert [event.name for event in saved] == checkpoint.names(place.checkpoints)
    assert saved[-1].best == done.checkpoint
    # one that continues says what it was validated with last
    events.clear()
    checkpoint_folder = place.checkpoints / saved[-1].name
    shutil.rmtree(checkpoint_folder)
    train(work, "events", events.context(), steps=6, checkpoint_every=3)
    kinds = [type(event) for event in events if isinstance(event, StepDone | Validated)]
    assert kinds == [Validated, *[StepDone] * 3, Validated]
