"""`bigmodel predict`: lines that are refused, what of them is ignored, prompts of one's own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bigmodel_cli.artifacts.manifest import file_info, read_json, write_json
from bigmodel_cli.artifacts.records import as_json
from tests.conftest import Cli

CONTEXT = 32  # of the finished model, which reads bytes


def lines(*documents: Any) -> bytes:
    return "".join(json.dumps(document) + "\n" for document in documents).encode()


def test_lines_that_cannot_be_answered_as_they_say(cli: Cli) -> None:
    bad: dict[str, dict[str, Any]] = {
        "`temprature` is unknown; did you mean `temperature`?": {"temprature": 0.5},
        "did you mean `max_tokens`?": {"max_token": 5},
        "`min_p` is unsupported": {"min_p": 0.1},
        "`frequency_penalty`, `logit_bias` are unsupported":
            {"frequency_penalty": 1, "logit_bias": {"5": 1}},
        "`n` is unsupported": {"n": 2},
        "`prompt` is blank": {"prompt": "\x00\ufeff"},
        f"`prompt` has 301 tokens, but the model reads at most {CONTEXT}": {"prompt": "狐" * 100},
        f"`prompt` has 33 tokens, but the model reads at most {CONTEXT}": {"prompt": [5] * 33},
        "a list of token ids below 272": {"prompt": [272]},
        "`max_tokens` must be": {"max_tokens": 0},
    }  # fmt: skip
    documents = [{"id": i, "prompt": "The", **more} for i, more in enumerate(bad.values())]
    done = cli("predict", "--max-tokens", "2", stdin=lines(*documents, {"prompt": "The"}))
    assert done.code == 4
    assert "10 of 11 lines were bad" in done.err
    *answers, good = map(json.loads, done.out.splitlines())
    for number, (says, answer) in enumerate(zip(bad, answers, strict=True)):
        assert answer["id"] == number
        assert answer["error"]["code"] == 4
        assert says in f"{answer['error']['message']} {answer['error']['hint']}"
    assert set(good) == {"text", "finish_reason"}


def test_unknown_names_are_ignored_with_one_warning(cli: Cli) -> None:
    documents = [
        {"id": "a", "prompt": "The", "label": 1, "用户": 2},
        {"id": "b", "prompt": "The", "label": 1, "min_p": 0, "response_format": {"type": "text"}},
        {"id": "c", "prompt": "The", "label": None},
    ]
    given = lines(*documents)
    done = cli.works("predict", "--max-tokens", "2", "--batch-size", "1", stdin=given)
    warnings = [line.partition(" ")[2] for line in done.err.splitlines() if "warning" in line]
    assert warnings == ["warning: unknown names in the lines were ignored: `label` (2), `用户` (1)"]
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer.pop("id") for answer in answers] == ["a", "b", "c"]
    assert answers[0] == answers[1] == answers[2]
    plain = cli.works("predict", "--max-tokens", "2", stdin=lines({"prompt": "The"}))
    assert "ignored" not in plain.err
    assert json.loads(plain.out) == answers[0]


def test_control_characters_make_no_other_answer(cli: Cli) -> None:
    documents = [{"prompt": "The fox 狐"}, {"prompt": "The\x00 fox \ufeff狐", "max_tokens": 5},
                 {"prompt": "The fox 狐", "max_completion_tokens": 5}]  # fmt: skip
    done = cli.works("predict", "--max-tokens", "5", stdin=lines(*documents))
    first, second, third = map(json.loads, done.out.splitlines())
    assert first == second == third


@pytest.mark.slow
def test_a_prompt_on_the_command_line(cli: Cli) -> None:
    assert cli.works("predict", "", "--max-tokens", "3").out.endswith("\n")  # a text of its own
    cli.fails("predict", "x" * 32, code=4, says=["33 tokens", "at most 32"], hint=["shorten"])
    cli.works("predict", "x" * 31, "--max-tokens", "1")
    cli.fails("predict", "\ufeff", code=4, says=["blank"])


def test_numbers_that_are_not_finite_cost_their_own_line(cli: Cli) -> None:
    good = {"prompt": "The", "max_tokens": 2}
    data = lines(good) + b'{"id": 1e999, "prompt": "The"}\n' + lines(good)
    answers = [json.loads(line) for line in cli("predict", stdin=data).out.splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, False]


def test_weights_that_are_not_finite_are_corrupt(cli: Cli) -> None:
    from safetensors.torch import load_file, save_file

    folder = cli.work / "runs" / "default" / "bundle"
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[:3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    path = folder / "bigmodel.json"
    document = read_json(path, "bundle", "")
    document["files"]["model.safetensors"] = as_json(file_info(folder / "model.safetensors"))
    write_json(path, document)
    cli.fails("predict", "The", code=5, says=("finite",))
