"""What a chat model reads and writes: dialogues cut to fit, replies scored as they are served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sacrebleu.metrics import CHRF

from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import DataError
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import load_task
from bigmodel_cli.tasks.chat import Chat
from bigmodel_cli.tasks.chat.template import calls_in
from tests.conftest import Cli
from tests.stages import prepare
from tests.tasks.test_chat import TALK, rows, shown, task, train_split
from tests.tasks.test_dialogues import CALL, OPENAI, USED, WEATHER

TOOLS = [{"type": "function", "function": WEATHER}]
START = "<|endoftext|><|im_start|>system\nBe kind.<|im_end|>\n"
ASKED = "<|im_start|>assistant\n"


def talk(turns: int, size: int = 30) -> list[dict[str, str]]:
    """What the system says, then as many exchanges, and a last question."""
    found = [TALK[0]]
    for turn in range(turns):
        found += [{"role": "user", "content": f"question {turn} " + "问" * (size // 3)},
                  {"role": "assistant", "content": f"answer {turn}"}]  # fmt: skip
    return [*found, {"role": "user", "content": "last question"}]


def model_of(made: Chat) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(model_config("transformer", "nano", made.shape(), width=16, heads=2))


def answer(made: Chat, document: dict[str, Any]) -> dict[str, Any]:
    request = made.request(document)
    (last,) = [last for *_, last in made.answer(model_of(made), [request]) if last]
    return last


@pytest.mark.parametrize("most", [1, 64, 10_000])
def test_a_dialogue_is_cut_to_be_answered_as_in_training(most: int) -> None:
    """The system's message and the frame stay, the oldest whole turns go, and it is said."""
    made = task(context=256)
    document = {"messages": talk(6), "max_tokens": most}
    tokens, left_out = made.request(document).prompt
    text = shown(made, tokens)
    assert text.startswith(f"{START}<|im_start|>user\nquestion {left_out // 2} ")
    assert text.endswith(f"<|im_start|>user\nlast question<|im_end|>\n{ASKED}")
    assert left_out % 2 == 0
    room = 256 - min(most, 128)
    assert len(tokens) <= room
    longer = made.request({"messages": talk(6)[:1] + talk(6)[left_out - 1 :], "max_tokens": most})
    assert longer.prompt[1] == 2  # one turn more has no room
    assert answer(made, document)["truncated"] == left_out


def test_what_fits_is_not_cut_and_nothing_is_said() -> None:
    made = task(context=256)
    document = {"messages": talk(1), "max_tokens": 8}
    tokens, left_out = made.request(document).prompt
    assert left_out == 0
    assert shown(made, tokens).startswith(f"{START}<|im_start|>user\nquestion 0")
    assert "truncated" not in answer(made, document)


def test_results_of_tools_are_not_parted_from_their_calls() -> None:
    made = task(context=1024)
    again = [*OPENAI[:3], {"role": "assistant", "content": "Yes. " + "x" * 400}] * 3 + OPENAI[:3]
    tokens, left_out = made.request({"messages": again, "max_tokens": 100}).prompt
    assert left_out == 8
    assert shown(made, tokens).startswith("<|endoftext|><|im_start|>user\nWarm?<|im_end|>\n")


def test_the_last_message_stays_where_its_turn_is_too_long() -> None:
    made = task(context=128)
    asked = [{"role": "user", "content": "x" * 100}, {"role": "user", "content": "Well?"}]
    tokens, left_out = made.request({"messages": [TALK[0], *asked]}).prompt
    assert shown(made, tokens) == f"{START}<|im_start|>user\nWell?<|im_end|>\n{ASKED}"
    assert left_out == 1


@pytest.mark.parametrize(
    ("messages", "size"),
    [
        ([{"role": "user", "content": "x" * 400}], 400 + 1 + 8 + 11),
        ([*TALK[1:3], {"role": "system", "content": "y" * 300}, TALK[1]], 300 + 1 + 10 + 13 + 11),
    ],
)
def test_what_cannot_be_kept_is_an_error_with_both_numbers(
    messages: list[dict[str, str]], size: int
) -> None:
    with pytest.raises(DataError, match=f"{size} tokens.* reads 256"):
        task(context=256).request({"messages": messages})


def test_a_reply_ends_where_the_context_does() -> None:
    """It is as long as there is room for, and the model reads its first token to the end."""
    made = task(context=64)
    request = made.request({"messages": "Hello", "max_tokens": 1000})
    tokens, _ = request.prompt
    seen: list[int] = []
    model = model_of(made)
    model.embed.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    whole = [last for *_, last in made.answer(model, [request]) if last]
    assert whole[0]["finish_reason"] == "length"
    assert seen == [len(tokens)] + [1] * (64 - len(tokens))  # nothing is read twice


def test_tools_are_requested_and_called_in_openais_form() -> None:
    made = task(context=2048)
    request = made.request({"messages": OPENAI[:3], "tools": TOOLS})
    ((expected, _),) = made._encode([USED[:4]], prompt=True)
    assert request.prompt == (expected, 0)
    developer = made.request({"messages": [{"role": "developer", "content": "Be kind."}, TALK[1]]})
    assert developer.prompt == made.request({"messages": TALK[:2]}).prompt
    said, calls = calls_in(f"Let me see.\n{CALL}\n{CALL}")
    assert said == "Let me see."
    again = {"role": "assistant", "content": said, "tool_calls": calls}
    both = made.request({"messages": [TALK[1], again, OPENAI[2]]}).prompt[0]
    assert f"Let me see.\n{CALL}\n{CALL}<|im_end|>" in shown(made, both)


@pytest.mark.parametrize(
    "text",
    ["Hello", "<tool_call>\n", CALL[:-5], CALL + "\nand more", "say <tool_call>\n{}\n</tool_call>",
     '<tool_call>\n{"name": 1, "arguments": {}}\n</tool_call>', "<tool_call>\n[]\n</tool_call>"],
)  # fmt: skip
def test_what_is_no_whole_call_is_text(text: str) -> None:
    assert calls_in(text) == (text, [])


@pytest.mark.parametrize(
    "document",
    [
        {"messages": [{"role": "user", "content": "  \n"}]},
        {"messages": " "},
        {"messages": [{"role": "user", "content": "\x00\ufeff"}]},
        {"messages": [TALK[1], {"role": "assistant", "content": ""}, TALK[3]]},
        {"messages": [TALK[1], {"role": "assistant", "content": None}, TALK[3]]},
        {"messages": TALK[:2], "tools": ["weather"]},
        {"messages": TALK[:2], "tools": [{"type": "function", "function": {"name": "\ud800"}}]},
        {"messages": [TALK[0]], "tools": "[]"},
        {"messages": [TALK[1], {"role": "assistant", "tool_calls": [{"name": "f",
                                                                    "arguments": "["}]}, TALK[3]]},
    ],
)  # fmt: skip
def test_blank_messages_and_odd_tools_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        task().request(document)


def test_requests_are_cleaned_as_rows_are(tmp_path: Path) -> None:
    dirty = [{**m, "content": f" {m['content'][:1]}\x00\x85\ufeff{m['content'][1:]}\x7f\n"}
             for m in TALK]  # fmt: skip
    prepare(tmp_path / "w", rows(tmp_path, [{"messages": dirty}]), val="0", test="0",
            tokenizer="bytes")  # fmt: skip
    made: Any = load_task(Workdir(tmp_path / "w").preprocessor, "")
    tokens, _ = made.request({"messages": dirty[:4]}).prompt
    assert tokens == train_split(tmp_path / "w").values("tokens", 0, 1).tolist()[: len(tokens)]


def test_every_turn_is_scored_of_the_model_and_of_the_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But those that are not to be learned. A model that is right at the last turn alone is not
    right."""

    def one(number: int) -> dict[str, Any]:
        more = [{"role": "user", "content": f"And {number}?"},
                {"role": "assistant", "content": "No.", "weight": 0},
                {"role": "user", "content": f"Well, {number}?"},
                {"role": "assistant", "content": f"The last answer is {number}."}]  # fmt: skip
        return {"messages": [{**TALK[1], "content": f"Hello {number}"}, TALK[2], *more]}

    work = tmp_path / "w"
    for name, numbers in (("train", range(8)), ("test", range(8, 11))):
        rows(tmp_path, [one(number) for number in numbers], f"{name}.jsonl")
    prepare(work, tmp_path / "train.jsonl", val="0", test=str(tmp_path / "test.jsonl"),
            tokenizer="bytes", context=256)  # fmt: skip
    made: Any = load_task(Workdir(work).preprocessor, "")

    def write(_model: Any, _tokenizer: Any, prompts: Any, *_: Any) -> Any:
        for index, tokens in enumerate(prompts):
            text = shown(made, tokens)
            number = text.split("Hello ")[1].split("<|")[0]
            last = f"The last answer is {number}." if "Well" in text else "wrong"
            yield index, last, "stop", last

    monkeypatch.setattr("bigmodel_cli.tasks.requests.write", write)
    shards = Workdir(work).read_data().splits["test"].shards
    split = Split(Workdir(work).data, shards)
    (metric,) = made.answer_metrics()

    def chrf(predictions: Any) -> float:
        assert {*predictions.units.tolist()} == {0, 1, 2}
        return float(metric.value(predictions.statistics.sum(0)))

    def expected(answers: list[str]) -> Any:
        said = [m for number in range(8, 11) for m in ("Hi!", f"The last answer is {number}.")]
        return pytest.approx(CHRF().corpus_score(answers, [said]).score)

    (found,) = made.answers(None, split)
    right = [m for number in range(8, 11) for m in ("wrong", f"The last answer is {number}.")]
    assert chrf(found) == expected(right)
    assert found.counts["questions"].tolist() == [6, 0]
    baselines = dict(made.baselines(train_split(work), split))
    assert chrf(baselines["most_common_reply"]) == expected(["Hi!"] * 6)
    assert chrf(baselines["nearest_prompt"]) > chrf(baselines["most_common_reply"])


@pytest.mark.slow
def test_predict_gives_the_figure_of_evaluate_in_chinese(empty: Cli) -> None:
    """Over the raw rows of the test split, control characters, padding and all."""
    colours, things = "红橙黄绿蓝紫黑白", ["自行车", "帽子", "桌子", "杯子", "雨伞"]
    lines = []
    for place in range(40):
        colour, thing = colours[place % 8], things[place // 8]
        lines.append({"system": "说\u0085中文。", "messages": [
            {"role": "user", "content": f" 我的{thing}\x00是什么颜色？"},
            {"role": "assistant", "content": f"您的{thing}是{colour}色的。\n"},
            {"role": "user", "content": "\ufeff谢谢！"},
            {"role": "assistant", "content": "不客气，再见！"},
        ]})  # fmt: skip
    for name, part in (("train", lines[:30]), ("test", lines[30:])):
        rows(empty.cwd, part, f"{name}.jsonl")
    made = empty.works("prepare", "train.jsonl", "--test", "test.jsonl", "--val", "0",
                       "--context", "160")  # fmt: skip
    assert "task chat" in made.err
    empty.works("train", "--steps", "60", "--width", "32", "--layers", "1", "--heads", "2",
                "--batch-size", "8")  # fmt: skip
    document = json.loads(empty.works("evaluate", "--json").out)
    empty.works("deploy")
    asked, references = [], []
    for line in lines[30:]:
        system, talk = {"role": "system", "content": line["system"]}, line["messages"]
        for turn in (1, 3):
            asked.append({"messages": [system, *talk[:turn]], "max_tokens": 256})  # type: ignore[index]
            references.append(talk[turn]["content"].strip())  # type: ignore[index]
    stdin = "".join(json.dumps(request) + "\n" for request in asked).encode()
    out = empty.works("predict", stdin=stdin).out.splitlines()
    answers = [json.loads(line)["message"]["content"] for line in out]
    served = CHRF().corpus_score(answers, [references]).score
    assert document["metrics"]["chrf"]["value"] == pytest.approx(served)
    assert served > 30  # which is something that one of no training does not reach
    assert document["tables"][0]["rows"][0] == ["answered", "20"]
