"""What reaches a terminal: nothing that controls it, nothing that --quiet leaves out, and a line of
progress that fits; and advice that works as it is printed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from bigmodel_cli.cli import advice, render
from bigmodel_cli.errors import did_you_mean
from bigmodel_cli.events import Progress, StepDone, Validated
from tests.cli.test_bad_input import on_terminal
from tests.conftest import PREPARE, TRAIN, Cli, environment

ESCAPE = "\x1b]0;owned\x07\x9b31mred\u202e"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [(*PREPARE, "--force"), (*TRAIN, "--run", "new"), ("evaluate", "--force"),
                ("deploy", "--force")], ids=lambda command: command[0],
)  # fmt: skip
def test_quiet_leaves_nothing_but_warnings(cli: Cli, command: tuple[str, ...]) -> None:
    result = cli.works(*command, "-q")
    assert result.out == ""
    assert all("warning: " in line for line in result.err.splitlines()), str(result)


def test_quiet_still_gives_the_document_and_the_answers(cli: Cli) -> None:
    assert json.loads(cli.works("evaluate", "-q", "--json").out)["metrics"]
    assert cli.works("predict", "-q", "The", "--max-tokens", "3").out


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", "prepare", "train", "evaluate", "deploy", "predict"])
def test_h_is_help(empty: Cli, command: str) -> None:
    short, long = (empty.works(*filter(None, [command]), flag).out for flag in ("-h", "--help"))
    assert short == long
    assert "Usage" in short


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [("bigmodel tra", "train"), ("bigmodel train --learn", "--learning-rate"),
     ("bigmodel train --model t", "transformer"), ("bigmodel prepare --tokeni", "--tokenizer")],
)  # fmt: skip
def test_a_shell_completes_commands_options_and_choices(words: str, expected: str) -> None:
    import subprocess
    import sys

    env = {"_BIGMODEL_COMPLETE": "complete_bash", "COMP_WORDS": words,
           "COMP_CWORD": str(len(words.split()) - 1)}  # fmt: skip
    program = "import sys; sys.argv = ['bigmodel']; from bigmodel_cli.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment(env),
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert expected in done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("word", "expected"),
    [("lr", "learning_rate"), ("bs", "batch_size"), ("learnin_rate", "learning_rate"),
     ("warm", "warmup")],
)  # fmt: skip
def test_a_short_or_wrong_key_gets_a_suggestion(empty: Cli, word: str, expected: str) -> None:
    assert f"`{expected}`" in did_you_mean(word, ("learning_rate", "batch_size", "warmup", "clip"))
    empty.fails("train", "--set", f"{word}=0.1", code=2, hint=[expected])


@pytest.mark.slow
def test_what_controls_a_terminal_is_escaped_in_labels_and_answers(empty: Cli) -> None:
    rows = [{"text": f"the text number {i} of {kind}", "label": f"{ESCAPE} {kind}"}
            for i in range(20) for kind in ("a", "b")]  # fmt: skip
    (empty.cwd / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    empty.works("prepare", "rows.jsonl", "--tokenizer", "bytes", "--val", "0.2", "--test", "0.2")
    place = TRAIN.index("--context")  # which prepare has chosen
    empty.works(*TRAIN[:place], *TRAIN[place + 2 :])
    empty.works("evaluate", "--samples", "0")
    empty.works("deploy")
    _, shown = on_terminal(empty, "predict", "some text", env={"NO_COLOR": "1"})
    assert not set("\x1b\x07\x9b\u202e") & {*shown}
    assert "\\x1b]0;owned" in shown
    line = empty.works("predict", "--json", "some text").out
    assert not set("\x1b\x07\x9b\u202e") & {*line}
    assert ESCAPE in json.loads(line)["label"]  # and is what it was once it is read


@pytest.mark.slow
def test_a_hostile_field_of_a_manifest_is_escaped(cli: Cli) -> None:
    from bigmodel_cli.artifacts import manifest

    path = cli.work / "runs" / "default" / "evaluation.json"
    document = manifest.read_json(path, "evaluation", "")
    document["checkpoint"] = ESCAPE
    document["baseline"] = {k: {**v, "name": ESCAPE} for k, v in document["baseline"].items()}
    document["baselines"] = {ESCAPE: next(iter(document["baselines"].values()))}
    manifest.write_json(path, document)
    for command in ("status", "evaluate"):
        _, shown = on_terminal(cli, command, env={"NO_COLOR": "1"})
        assert "owned" in shown
        assert not set("\x1b\x07\x9b\u202e") & {*shown}, shown


def test_a_line_of_progress_keeps_its_bar_and_the_time_left() -> None:
    event = StepDone(step=12345, loss=1.234, gradient_norm=1.0, learning_rate=0.1, tokens=9,
                     unit="tokens", speed=123456.0, share_of_peak=0.52, seconds=9.0, left=1234.0,
                     done=0.5)  # fmt: skip
    columns = render._columns(event, Validated(12000, {"bits_per_byte": 1.234}))
    assert columns[:3] == ["step 12,345", "loss 1.234", "val bits_per_byte 1.234"]
    screen = render.Screen(quiet=False)
    for room in range(12, 120):
        text = screen._details(Progress("train", 1, 2), columns, room)
        assert len(text) <= room
        assert text.endswith("left 1234 s")
    assert "of peak" in text


@pytest.mark.slow
def test_eighty_columns_hold_the_whole_line_of_training(cli: Cli) -> None:
    command = [*TRAIN[:-2], "--minutes", "0.1", "--run", "new"]
    code, shown = on_terminal(cli, *command, env={"NO_COLOR": "1"})
    assert code == 0, shown
    lines = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[a-zA-Z]", shown) if "step" in line]
    lines = [line for line in lines if line.lstrip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ").startswith("train ")]
    assert lines
    assert all(len(line) <= 80 and "━" in line and "left" in line for line in lines), lines


def test_tables_are_aligned_for_chinese(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(["类别", "rows"], [["体育新闻", "1"], ["a", "1,000"]])
    lines = capsys.readouterr().out.splitlines()
    assert len({render.width_of(line) for line in lines}) == 1


# Advice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "text", "expected"),
    [
        ([], "bigmodel train --restart", "bigmodel train --restart"),
        (["-w", "a b"], "bigmodel train", "bigmodel train -w 'a b'"),
        (["--workdir=w2", "--run", "gru"], "first: bigmodel train",
         "first: bigmodel train --run gru -w w2"),
        (["--run", "gru"], "bigmodel prepare SOURCE --force", "bigmodel prepare SOURCE --force"),
        (["--run", "gru", "-w", "x"], "bigmodel train --from gru --run longer",
         "bigmodel train -w x --from gru --run longer"),
        (["--run", "default"], "bigmodel deploy --force", "bigmodel deploy --force"),
    ],
)  # fmt: skip
def test_advice_names_the_run_and_the_working_directory(
    argv: list[str], text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bigmodel", "evaluate", *argv])
    assert advice.here(text) == expected


def test_status_says_what_is_true(cli: Cli) -> None:
    (cli.work / "runs" / "default" / "evaluation.json").unlink()
    shutil.rmtree(cli.work / "runs" / "default" / "bundle")
    cli.work.rename(cli.cwd / "其他")
    out = cli.works("status", "-w", "其他").out
    assert "bigmodel evaluate -w '其他'" in out
    assert "bigmodel deploy -w '其他'" in out
    manifest = json.loads((cli.cwd / "其他" / "data" / "manifest.json").read_bytes())
    for split, part in manifest["splits"].items():
        assert f"{part['units']:,} {split}" in out
    (cli.cwd / "其他" / "runs" / "default").rename(cli.cwd / "其他" / "runs" / "gru")
    assert "bigmodel evaluate --run gru -w '其他'" in cli.works("status", "-w", "其他").out


@pytest.mark.slow
def test_status_shows_the_best_checkpoints_validation(cli: Cli) -> None:
    cli.works(*TRAIN[:-2], "--steps", "6", "--checkpoint-every", "1", "--learning-rate", "0.5",
              "--run", "odd", "--keep", "9")  # fmt: skip
    place = cli.work / "runs" / "odd"
    best = json.loads((place / "checkpoints" / "best.json").read_bytes())["name"]
    state = json.loads((place / "checkpoints" / best / "state.json").read_bytes())
    metric, value = next(iter(state["validation"].items()))
    assert f"best {best}: validation {metric} {value:.4g}" in cli.works("status").out


def test_a_hint_of_an_error_works_as_printed(cli: Cli) -> None:
    shutil.rmtree(cli.work / "runs" / "default" / "checkpoints")
    (cli.cwd / "work").rename(cli.cwd / "else where")
    result = cli("evaluate", "-w", "else where")
    assert result.code == 5
    assert "bigmodel train -w 'else where'" in result.error()[1]


def test_the_path_of_the_working_directory_is_found() -> None:
    assert isinstance(advice.workdir(), Path)
