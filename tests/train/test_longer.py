"""Advice is a command that works as it is printed, with -w and --run where they were given."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Cli

LONG = {"timeout": 120}


def advised(text: str) -> list[str]:
    """The words of the one command of ours in a text."""
    (line,) = [line for line in text.splitlines() if "bigmodel train" in line]
    command = line[line.index("bigmodel train") :].partition(";")[0]
    return shlex.split(command.removesuffix("."))[1:]


def config(work: Path, run: str) -> dict[str, Any]:
    return dict(json.loads((work / "runs" / run / "config.json").read_bytes()))


@pytest.mark.slow
def test_a_finished_run_is_made_longer_by_the_command_of_the_hint(cli: Cli) -> None:
    """Also a second time, with other options of the run, in another folder, in Chinese."""
    shutil.move(cli.work, cli.cwd / "我的 工作")
    place = ("-w", "我的 工作", "--run", "first")
    cli.works("train", *TINY, "--epochs", "0.4", "--learning-rate", "0.004", *place, **LONG)
    command = ("train", *TINY, "--learning-rate", "0.004", *place)
    done = cli.fails(*command, "--epochs", "0.6", code=2, says=("epochs: 0.4 → 0.6",),
                     hint=("--from first --run first-longer",))  # fmt: skip
    words = advised(done.err)
    assert words == ["train", "-w", "我的 工作", "--from", "first", "--run", "first-longer",
                     "--epochs", "0.2", "--batch-size", "2", "--learning-rate", "0.004",
                     "--context", "32"]  # fmt: skip
    cli.works(*words, **LONG)
    first, longer = (config(cli.cwd / "我的 工作", name) for name in ("first", "first-longer"))
    assert longer["origin"] == "first"
    assert longer["model"] == first["model"]
    again = cli.fails(*command, "--steps", "99999", code=2)
    assert "--run first-longer-2 --steps 99999" in again.error()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--steps", "1"), "steps: 2 → 1"),
        (("--steps", "4", "--seed", "3"), "seed: 0 → 3"),
        ((), "steps: 2 → null"),
        (("--learning-rate", "0.5", "--steps", "2"), "learning_rate: null → 0.5"),
    ],
)
def test_other_changes_name_restart_which_works(cli: Cli, more: tuple[str, ...], says: str) -> None:
    cli.fails("train", *TINY, *more, code=2, says=(says,), hint=("add --restart", "--run NAME"))
    length = more if "--steps" in more else (*more, "--steps", "2")
    cli.works("train", *TINY, *length, "--restart", **LONG)


@pytest.mark.slow
def test_a_run_that_learned_otherwise_is_continued_with_the_same_objective(cli: Cli) -> None:
    cli.works("train", *TINY, "--steps", "2", "--objective", "masked", "--run", "bert", **LONG)
    done = cli.fails(
        "train", *TINY, "--steps", "3", "--objective", "masked", "--run", "bert", code=2
    )
    words = advised(done.err)
    assert words[words.index("--objective") + 1] == "masked"
    cli.works(*words, **LONG)
    assert config(cli.work, "bert-longer")["model"]["shape"]["causal"] is False


@pytest.mark.slow
def test_what_an_evaluation_advises_works(cli: Cli) -> None:
    done = cli.works("evaluate", "--force", **LONG)
    assert "The model loses to" in done.out
    words = advised(done.out)
    assert words[1:5] == ["--from", "default", "--run", "longer"]
    assert "--steps" in words
    cli.works(*words, **LONG)
    assert config(cli.work, "longer")["origin"] == "default"


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, "1"])
def test_a_run_that_diverges_says_what_is_left_and_what_works(cli: Cli, every: str | None) -> None:
    more = ("--checkpoint-every", every) if every else ()
    command = ("train", *TINY, "--steps", "20", "--run", "wild", *more)
    done = cli.fails(*command, "--learning-rate", "1e30", code=6, says=("diverged",), **LONG)
    message, hint = done.error()
    kept = sorted(path.name for path in cli.work.glob("runs/wild/checkpoints/step-*"))
    if kept:
        assert any(message.endswith(f"before it is `{name}`") for name in kept)
        assert "bigmodel evaluate --run wild" in hint
    else:
        assert message.endswith("there is no checkpoint before it")
        assert "evaluate" not in hint
    assert "--restart --learning-rate 0.006" in hint
    cli.works(*command, "--restart", "--learning-rate", "0.006", **LONG)


@pytest.mark.slow
def test_a_run_from_itself_is_refused_with_a_name_that_is_free(cli: Cli) -> None:
    command = ("train", "--from", "default", "--context", "32", "--steps", "1")
    done = cli.fails(*command, code=2, says=("from itself",), hint=("--run longer",))
    words = done.error()[1].split()
    cli.works(*command, *words[words.index("--run") : words.index("--run") + 2], **LONG)


def test_hints_name_the_folder_and_run_of_the_command(cli: Cli) -> None:
    done = cli.fails("evaluate", "-w", "elsewhere", "--run", "mine", code=5)
    assert "bigmodel train --run mine -w elsewhere" in done.error()[1]
    done = cli.fails("train", "-w", "else where", "--run", "mine", "--steps", "1", code=5)
    assert done.error()[1].endswith("bigmodel prepare -w 'else where' SOURCE")
    done = cli("evaluate", "-w", "elsewhere", "--json")
    assert "bigmodel train -w elsewhere" in json.loads(done.out)["error"]["hint"]


@pytest.mark.slow
def test_a_hint_with_two_ways_names_the_run_in_its_command(cli: Cli) -> None:
    cli.train("--run", "mine", **LONG)
    cli.prepare("--seed", "3")
    done = cli.fails("evaluate", "--run", "mine", code=5)
    assert "bigmodel train --run mine --restart, or another --run" in done.error()[1]
