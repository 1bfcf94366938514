"""A key of JSON counts wherever it is, and numbers stay as they were written."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bigmodel_cli.artifacts.workdir import HashCache
from bigmodel_cli.events import Context
from bigmodel_cli.prepare import json_keys
from bigmodel_cli.prepare.json_keys import columns_of
from bigmodel_cli.prepare.records import Number, _as_text, whole
from bigmodel_cli.prepare.sources import Layout, Source

if TYPE_CHECKING:
    from tests.conftest import Cli


ALL_TRAIN = ("--tokenizer", "bytes", "--val", "0", "--test", "0")


def found(path: Path) -> dict[str, str]:
    return columns_of(Source(path.name, path), Layout())


def jsonl(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes((gzip.compress if path.suffix == ".gz" else bytes)(text.encode()))
    return path


FIRST = [{"text": f'a "key": {{"label": {i}}} in a text', "n": i} for i in range(5000)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"text": "b", "label": "c"}, {"label": "string"}),
        ({"标签": 1}, {"标签": "number"}),
        ({"a": {"label": 1}}, {"a": "other"}),
        ({"label": None}, {"label": "null"}),
        ({"label": True, "b": [1]}, {"label": "bool", "b": "other"}),
        ({'a"b\\': 1.5}, {'a"b\\': "number"}),
        ({"": ""}, {"": "string"}),
    ],
)
def test_a_key_counts_wherever_it_is(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], name: str
) -> None:
    for place in (0, 150, len(FIRST)):
        path = jsonl(tmp_path / name, [*FIRST[:place], row, *FIRST[place:]])
        assert found(path) == {"text": "string", "n": "number"} | columns


def test_a_type_is_that_of_the_first_value_that_is_not_null(tmp_path: Path) -> None:
    rows = [*({"a": None, "b": 1} for _ in range(3000)), {"a": "late", "b": "x"}]
    assert found(jsonl(tmp_path / "a.jsonl", rows)) == {"a": "string", "b": "number"}


def test_spaces_and_escapes_in_lines_hide_no_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"a": 1}\n' * 200 + b'{ "a" : 1 ,\t"b"\t:\r2, "\\u0063": "\\":", "d" :null}\r\n'
    )
    assert found(path) == {"a": "number", "b": "number", "c": "string", "d": "null"}


def test_the_quick_look_finds_what_reading_each_row_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(2)
    values: list[Any] = [1, None, True, "x", 'a "b": 1', "\\", "c:\\", "]}{["]
    values += [[{"z": 1}], {"y": {"x": 2}}]
    monkeypatch.setattr(json_keys, "BLOCK", 64)
    for number in range(60):
        rows = [{draw.choice("abcdef"): draw.choice(values) for _ in range(3)} for _ in range(20)]
        expected: dict[str, str] = {}
        json_keys.add_types(expected, rows)
        assert found(jsonl(tmp_path / f"{number}.jsonl", rows)) == expected


# The command ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_late_keys_reach_the_data(empty: Cli, name: str) -> None:
    rows: list[dict[str, str]] = [
        {"instruction": f"第{i}问,是什么?", "output": f"第{i}个回答"} for i in range(300)
    ]
    rows[250] |= {"input": "很晚的输入", "system": "很晚的系统"}
    write = {"a.jsonl": jsonl, "a.json": json_list}[name]
    command = ["prepare", name, "--task", "chat", *ALL_TRAIN]
    write(empty.cwd / name, rows)
    empty.works(*command)
    whole = empty.manifest()["splits"]["train"]["bytes"]
    write(empty.cwd / name, [{k: row[k] for k in ("instruction", "output")} for row in rows])
    empty.works(*command)
    lost = whole - empty.manifest()["splits"]["train"]["bytes"]
    assert lost >= len("很晚的输入很晚的系统".encode())


def json_list(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")


@pytest.mark.slow
def test_a_key_of_a_later_file_counts(empty: Cli) -> None:
    rows = [{"prompt": f"问题{i}是什么", "response": f"回答{i}"} for i in range(40)]
    jsonl(empty.cwd / "a.jsonl", rows)
    late = [{"instruction": f"说{i}", "output": f"好{i}", "input": f"入{i}"} for i in range(40)]
    jsonl(empty.cwd / "b.jsonl", late)
    empty.works("prepare", "a.jsonl", "b.jsonl", *ALL_TRAIN)
    assert empty.manifest()["task"] == "chat"
    assert empty.manifest()["splits"]["train"]["units"] == 80


@pytest.mark.slow
def test_the_task_is_found_by_a_key_that_comes_late(empty: Cli) -> None:
    rows: list[dict[str, Any]] = [{"text": f"第{i}句话很长很长"} for i in range(150)]
    rows += [{"text": f"第{i}句话很长很长", "label": i % 2} for i in range(150, 300)]
    jsonl(empty.cwd / "a.jsonl", rows)
    empty.works("prepare", "a.jsonl", "--tokenizer", "bytes", "--min-chars", "1")
    assert empty.manifest()["task"] == "text-classification"


NUMBERS = [1, 0, -7, 2**53 + 1, 12345678901234567890, 1.5, 1.0, "1.0", True]


@pytest.mark.slow
def test_numbers_stay_as_they_were_written(empty: Cli) -> None:
    """As classes of texts: 1 is no 1.0, and large ids are not rounded."""
    rows = [{"text": f"text {i} of number {n}", "label": n}
            for n in NUMBERS for i in range(12)]  # fmt: skip
    jsonl(empty.cwd / "a.jsonl", rows)
    empty.works("prepare", "a.jsonl", "--tokenizer", "bytes", "--min-chars", "1")
    labels = json.loads((empty.work / "data" / "preprocessor" / "labels.json").read_bytes())
    names = {"1", "0", "-7", "9007199254740993", "12345678901234567890", "1.5", "1.0", "true"}
    assert names == {*labels["labels"]} if isinstance(labels, dict) else names == {*labels}


def test_numbers_inside_of_dialogues_stay_whole() -> None:
    text = '{"a": 1, "b": 9007199254740993, "c": 1.5, "d": [2]}'
    value = json.loads(text, parse_int=whole, parse_float=Number)
    assert _as_text(value, "json") == text
    assert _as_text(json.loads("9" * 5000, parse_int=whole), "value") == "9" * 5000


@pytest.mark.slow
def test_a_key_counts_beside_one_of_that_name_inside_of_an_object(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": "a", "meta": {"label": "x", "n": 1}}] * 20_000
    path = jsonl(tmp_path / "a.jsonl", [*rows, {"text": "b", "label": "y"}])
    assert found(path)["label"] == "string"
    path = jsonl(tmp_path / "b.jsonl", [*rows, {"text": "b", "meta": {"title": "y"}}])
    assert "meta.title" in found(path)


def test_rows_with_keys_of_their_own_take_no_longer(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"text": "a", "meta": {f"id {i}": "v"}, f"key {i}": 1} for i in range(20_000)
    ]
    said: list[str] = []
    context = Context(emit=lambda event: said.append(str(event)))
    path = jsonl(tmp_path / "a.jsonl", rows)
    names = columns_of(Source(path.name, path), Layout(context=context))
    assert names["text"] == "string"
    assert len(names) < 20_000
    assert "over 256 different keys" in said[0]


def test_what_was_found_is_kept_beside_the_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 300 + '{"text": "b", "label": null}\n{"label": 1}\n')
    source = Source(path.name, path)
    expected = {"text": "string", "label": "number"}
    layout = Layout(cache=HashCache(tmp_path))
    assert columns_of(source, layout) == expected
    layout.cache.save()

    def never(*_: object) -> dict[str, str]:
        raise AssertionError("it was read again")

    with monkeypatch.context() as patch:
        patch.setattr(json_keys, "_columns", never)
        assert columns_of(source, Layout(cache=HashCache(tmp_path))) == expected
    cache = tmp_path / ".hashes.json"
    kept = cache.read_text()
    deep = json.dumps(dict.fromkeys(json.loads(kept), "[" * 100_000))
    for odd in (
        kept[:40],
        "[]",
        deep,
        '{"a":' * 100_000,
        kept.replace('{\\"', '[\\"'),
        kept.replace(": ", ": 1"),
    ):
        cache.write_text(odd)
        assert columns_of(source, Layout(cache=HashCache(tmp_path))) == expected
    path.write_text('{"other": "a"}\n')
    assert columns_of(source, Layout(cache=HashCache(tmp_path))) == {"other": "string"}


def test_force_reads_the_keys_again(empty: Cli) -> None:
    """Also where neither size nor time of a file say that it changed."""
    path = empty.cwd / "a.jsonl"
    rows = [{"text": f"the fox number {number}"} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stat = path.stat()
    empty.works("prepare", "a.jsonl", *ALL_TRAIN)
    path.write_text(path.read_text().replace('"text"', '"body"'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    empty.works("prepare", "a.jsonl", *ALL_TRAIN, "--force")
    assert empty.manifest()["ledger"]["kept"]["rows"] == 40
