"""Forms of dialogues: nothing that a row says vanishes, whatever it is kept as."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import dialogues, load_task
from bigmodel_cli.tasks.dialogues import requested
from tests.conftest import Cli
from tests.stages import Events, prepare
from tests.tasks.test_chat import TALK, rows, shown, train_split

USER = {"role": "user", "content": "几点了？"}
REPLY = {"role": "assistant", "content": "三点。"}
WEATHER = {
    "name": "weather", "description": "The weather of a city: 天气",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"},
                                                    "days": {"type": "integer"}}},
}  # fmt: skip
SYSTEM = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    + json.dumps({"type": "function", "function": WEATHER}, ensure_ascii=False)
    + "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京", "days": 2}}\n</tool_call>'
RESULT = '<tool_response>\n{"celsius": [20, 21.5]}\n</tool_response>'
USED = [
    {"role": "system", "content": SYSTEM}, {"role": "user", "content": "Warm?"},
    {"role": "assistant", "content": CALL}, {"role": "user", "content": RESULT},
    {"role": "assistant", "content": "Yes."},
]  # fmt: skip
# the same, as OpenAI and ShareGPT keep it
ARGUMENTS = {"city": "北京", "days": 2}
OPENAI = [
    {"role": "user", "content": "Warm?"},
    {"role": "assistant", "content": None,
     "tool_calls": [{"id": "1", "type": "function",
                     "function": {"name": "weather", "arguments": ARGUMENTS}}]},
    {"role": "tool", "tool_call_id": "1", "content": '{"celsius": [20, 21.5]}'},
    {"role": "assistant", "content": "Yes."},
]  # fmt: skip
SHAREGPT = [
    {"from": "human", "value": "Warm?"},
    {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": ARGUMENTS})},
    {"from": "observation", "value": '{"celsius": [20, 21.5]}'},
    {"from": "gpt", "value": "Yes."},
]


def read(folder: Path, source: Path, *more: str) -> str:
    """What the model reads of the only row."""
    made = prepare(folder / "w", source, val="0", test="0", tokenizer="bytes", column=more,
                   task="chat", force=True).manifest  # fmt: skip
    assert made.ledger.dropped == {}
    loaded: Any = load_task(Workdir(folder / "w").preprocessor, "")
    return shown(loaded, train_split(folder / "w").values("tokens", 0, 1).tolist())


def chatml(talk: list[dict[str, str]]) -> str:
    turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in talk)
    return "<|endoftext|>" + "".join(turns)


def plain(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row's messages, as they are when its values went through a reader."""
    chosen = dialogues.columns(dict.fromkeys(row, "string"), {})
    json_parts = ("messages", "history", "tools")
    given = {n: json.dumps(row[c]) if n in json_parts else row[c] for n, c in chosen.items()}
    found, reason = dialogues.messages(given)
    assert found is not None, reason
    return found


@pytest.mark.parametrize("name", ["system_prompt", "persona"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK[1:]},
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in TALK[1:]]},
        {"prompt": "Bye", "response": "See you.", "history": [["Hello", "Hi!"]]},
        {"instruction": "Bye", "output": "See you.", "history": '[["Hello", "Hi!"]]'},
    ],
)
def test_a_column_of_the_systems_is_its_message(
    tmp_path: Path, row: dict[str, Any], name: str
) -> None:
    source = rows(tmp_path, [{**row, name: "Be kind."}])
    named = [f"system={name}"] if name == "persona" else []
    assert read(tmp_path, source, *named) == chatml(TALK)


def test_a_system_that_is_said_twice_or_is_empty_is_one_or_none() -> None:
    assert plain({"messages": TALK, "system": "Be kind."}) == TALK
    assert plain({"messages": TALK, "system": None}) == TALK
    empty = {"role": "system", "content": " "}
    assert plain({"messages": [empty, *TALK[1:]], "system": ""}) == TALK[1:]


def test_rows_that_differ_in_their_history_alone_are_not_duplicates(tmp_path: Path) -> None:
    lines = [{"instruction": "Go on.", "input": "", "output": "Yes.", "history": before}
             for before in ([["一", "二"]], [["三", "四"]], [])]  # fmt: skip
    source = rows(tmp_path, lines)
    ledger = prepare(tmp_path / "w", source, val="0", test="0", tokenizer="bytes").manifest.ledger
    assert ledger.kept.rows == 3
    assert plain(lines[0]) == [
        {"role": "user", "content": "一"}, {"role": "assistant", "content": "二"},
        {"role": "user", "content": "Go on."}, {"role": "assistant", "content": "Yes."},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name it.", "context": "A dog.", "response": "Dog."},  # Dolly
        {"question": "Name it.", "context": "A dog.", "answer": "Dog."},
        {"prompt": "Name it.", "input": "A dog.", "completion": "Dog."},
    ],
)
def test_what_a_question_is_about_is_a_part_of_it(row: dict[str, str]) -> None:
    assert plain(row) == [{"role": "user", "content": "Name it.\n\nA dog."},
                          {"role": "assistant", "content": "Dog."}]  # fmt: skip


def test_a_column_is_read_once(tmp_path: Path) -> None:
    source = rows(tmp_path, [{"input": "Hello", "output": "Hi!"}])
    assert read(tmp_path, source, "prompt=input", "response=output") == chatml(TALK[1:3])


@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False},
     {"learn": "false"}, {"train_on_turn": False}, {"loss_mask": 0}, {"mask": True},
     {"masked": 1}],
)  # fmt: skip
def test_turns_marked_not_to_be_learned_have_no_loss_but_are_read(
    tmp_path: Path, mark: dict[str, Any]
) -> None:
    talk = [TALK[0], TALK[1], {**TALK[2], **mark}, TALK[3], {**TALK[4], "weight": 1, "mask": None}]
    source = rows(tmp_path, [{"messages": talk}])
    assert read(tmp_path, source) == chatml(TALK)
    split = train_split(tmp_path / "w")
    made: Any = load_task(Workdir(tmp_path / "w").preprocessor, "")
    tokens, learned = (split.values(name, 0, 1) for name in ("tokens", "learned"))
    assert shown(made, tokens[learned > 0].tolist()) == "See you.<|im_end|>"
    assert split.column("bytes").tolist() == [len("See you.")]
    assert made._questions(split) == [(0, 4)]


def test_a_dialogue_is_the_same_one_whatever_is_learned_of_it(tmp_path: Path) -> None:
    """What is held out is not learned from."""
    talks = [TALK, [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]]
    source = rows(tmp_path, [{"messages": talk} for talk in talks])
    made = prepare(tmp_path / "w", source, val="0", test="0", tokenizer="bytes").manifest
    assert made.ledger.dropped["duplicate_exact"].rows == 1


def test_a_dialogue_of_which_nothing_is_learned_is_counted_and_so_is_an_odd_mark(
    tmp_path: Path,
) -> None:
    lines = [TALK, [*TALK[1:2], {**TALK[2], "weight": 0}], [*TALK[1:2], {**TALK[2], "weight": 0.5}]]
    source = rows(tmp_path, [{"messages": talk} for talk in lines])
    made = prepare(tmp_path / "w", source, val="0", test="0", tokenizer="bytes").manifest
    dropped = {reason: entry.rows for reason, entry in made.ledger.dropped.items()}
    assert dropped == {"not_learned": 1, "unclear_mark": 1}


@pytest.mark.parametrize(
    "talk",
    [
        [{"role": None, "from": "human", "content": None, "value": "几点了？"},
         {"role": "assistant", "from": None, "content": "三点。", "value": None}],
        [{"role": "user", "content": "几点了？", "from": None, "value": None},
         {"from": "gpt", "value": "三点。", "role": None, "content": None}],
        json.dumps([USER, REPLY]),
        json.dumps(json.dumps([USER, REPLY])),
    ],
)  # fmt: skip
def test_nulls_beside_and_json_in_texts_are_read_through(tmp_path: Path, talk: Any) -> None:
    assert read(tmp_path, rows(tmp_path, [{"messages": talk}])) == chatml([USER, REPLY])


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_dialogues_in_json_texts_are_read_from_every_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    row = {"messages": json.dumps([USER, REPLY], ensure_ascii=False), "tools": "[]",
           "system": "说中文。"}  # fmt: skip
    if ending == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist([row]), path)
    elif ending == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([[*row], [*row.values()]])
    elif ending == "tsv":
        path.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n", "utf-8")
    else:
        path.write_text(json.dumps(row if ending == "jsonl" else [row]))
    assert read(tmp_path, path) == chatml([{"role": "system", "content": "说中文。"}, USER, REPLY])


@pytest.mark.parametrize(
    ("talk", "tools"),
    [('[{"role": "user", "content": "\\ud800"}]', None), ("[" * 100_000, None), ("[{", None),
     (json.dumps([USER, REPLY]), '[{"name": "\\ud800"}]')],
)  # fmt: skip
def test_json_texts_that_hold_no_dialogue_are_counted(
    tmp_path: Path, talk: str, tools: str | None
) -> None:
    table = pa.table({"messages": [json.dumps(TALK), talk], "tools": [None, tools]})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    made = prepare(tmp_path / "w", tmp_path / "t.parquet", val="0", test="0", tokenizer="bytes")
    assert made.manifest.ledger.dropped["malformed"].rows == 1


@pytest.mark.parametrize(
    "row",
    [
        {"messages": OPENAI, "tools": [{"type": "function", "function": WEATHER}]},
        {"messages": OPENAI, "functions": [WEATHER]},
        {"messages": [OPENAI[0], {"role": "assistant", "content": "",
                                  "function_call": OPENAI[1]["tool_calls"][0]["function"]},
                      {"role": "function", "name": "weather", "content": OPENAI[2]["content"]},
                      OPENAI[3]], "tools": json.dumps([WEATHER])},
        {"conversations": SHAREGPT, "tools": json.dumps([WEATHER])},
        {"conversations": json.dumps(SHAREGPT), "tools": [WEATHER]},
        {"conversations": [SHAREGPT[0], {"from": "gpt", "value": CALL},
                           {"from": "tool", "value": RESULT}, SHAREGPT[3]], "tools": [WEATHER]},
        {"conversations": [{"from": "system", "value": SYSTEM}, SHAREGPT[0],
                           {"from": "gpt", "value": CALL}, {"from": "tool", "value": RESULT},
                           SHAREGPT[3]], "tools": json.dumps([WEATHER])},
    ],
)  # fmt: skip
def test_tools_their_calls_and_their_results_are_a_part_of_the_dialogue(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    """Whole numbers stay whole, calls are learned and results are not."""
    assert read(tmp_path, rows(tmp_path, [row])) == chatml(USED)
    split = train_split(tmp_path / "w")
    made: Any = load_task(Workdir(tmp_path / "w").preprocessor, "")
    tokens, learned = (split.values(name, 0, 1) for name in ("tokens", "learned"))
    assert shown(made, tokens[learned > 0].tolist()) == CALL + "<|im_end|>Yes.<|im_end|>"


def test_several_calls_and_results_are_one_turn_each() -> None:
    call = OPENAI[1]["tool_calls"][0]
    as_text = {"type": "function", "function": {"name": "now", "arguments": ""}}
    calling = {"role": "assistant", "content": "Let me see.", "tool_calls": [call, as_text]}
    noon = {"role": "tool", "content": [{"type": "text", "text": "noon"}]}
    talk = [OPENAI[0], calling, {"role": "tool", "content": "20"}, noon, OPENAI[3]]
    found = plain({"messages": talk})
    assert [m["role"] for m in found] == ["user", "assistant", "user", "assistant"]
    assert found[1]["content"] == (
        f'Let me see.\n{CALL}\n<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>'
    )
    assert found[2]["content"] == (
        "<tool_response>\n20\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*OPENAI[:1], {"role": "assistant", "tool_calls": [{"function": {}}]}]},
        {"messages": [*OPENAI[:1], {"role": "assistant", "tool_calls": [{"name": "f",
                                    "arguments": "{"}]}]},
        {"messages": OPENAI, "tools": ["weather"]},
        {"messages": OPENAI, "tools": [{"type": "function"}]},
        {"conversations": [SHAREGPT[0], {"from": "function_call", "value": "weather(北京)"}]},
    ],
)  # fmt: skip
def test_tools_of_no_form_are_counted(tmp_path: Path, row: dict[str, Any]) -> None:
    source = rows(tmp_path, [{("messages" if "messages" in row else "conversations"): TALK}, row])
    made = prepare(tmp_path / "w", source, val="0", test="0", tokenizer="bytes").manifest
    assert {r: e.rows for r, e in made.ledger.dropped.items()} == {"malformed": 1}


@pytest.mark.parametrize(("good", "warned"), [(2, False), (1, True)])
def test_a_half_of_the_rows_dropped_is_a_warning(tmp_path: Path, good: int, warned: bool) -> None:
    lines = [{"messages": [{**TALK[1], "content": f"Hello {i}"}, TALK[2]]} for i in range(good)]
    events = Events()
    prepare(tmp_path / "w", rows(tmp_path, [*lines, {"messages": TALK[1:2]}]), val="0", test="0",
            tokenizer="bytes", told=events.context())  # fmt: skip
    assert ("1 of 2 rows were dropped: 1 no_reply" in events.notes) == warned


def test_half_of_the_rows_dropped_is_a_warning_for_text_as_well(empty: Cli) -> None:
    texts = ["A story about a dog.", "x", "y", "Another story about a cat.", "z"]
    (empty.cwd / "few.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made = empty.works("prepare", "few.jsonl", "--val", "0", "--test", "0")
    assert "warning: 3 of 5 rows were dropped: 3 too_short" in made.err


def test_the_system_of_a_request_is_read_as_that_of_a_row() -> None:
    asked = {"role": "user", "content": "问"}
    found = requested({"system": " 说是 ", "messages": [asked]})
    assert found == requested({"messages": [{"role": "system", "content": "说是"}, asked]})
    assert requested({"system": "说是", "messages": found}) == found
    for blank in ("\u200b", " \x00"):
        with pytest.raises(DataError, match="blank"):
            requested({"messages": [{"role": "user", "content": blank}]})
