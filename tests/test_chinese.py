"""Every task in Chinese, from raw data to an answer, with figures that say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import TINY, Cli

pytestmark = pytest.mark.slow
SEASONS = ["春天", "夏天", "秋天", "冬天"]
GOOD = ["真好吃", "很喜欢", "非常满意", "值得推荐", "环境不错"]
BAD = ["太难吃", "不喜欢", "非常失望", "浪费时间", "环境很差"]
FRUIT = ["苹果", "香蕉", "西瓜", "葡萄", "橙子", "梨子", "桃子", "草莓"]


def lines(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "数据.jsonl").write_text(text, "utf-8")


def language(folder: Path) -> None:
    lines(folder, [{"text": f"{SEASONS[i % 4]}里第{i // 4:02}天。"} for i in range(200)])


def classification(folder: Path) -> None:
    kinds = (("好评", GOOD), ("差评", BAD))
    lines(folder, [
        {"text": f"第{i}次来，{words[i // 2 % 5]}，{words[i // 10 % 5]}。", "label": label}
        for i in range(200) for label, words in [kinds[i % 2]]
    ])  # fmt: skip


def translation(folder: Path) -> None:
    names = {"apple": "苹果", "banana": "香蕉", "melon": "西瓜", "grape": "葡萄"}
    lines(folder, [
        {"source": f"I have {i} {a}s and a {b}.", "target": f"我有{i}个{names[a]}和{names[b]}。"}
        for i in range(20) for a in names for b in names if a != b
    ])  # fmt: skip


def pictures(folder: Path) -> None:
    for place, name in enumerate(["猫", "狗"]):
        (folder / "数据.jsonl" / name).mkdir(parents=True)
        for i in range(40):
            shade = 200 * place + i
            Image.new("L", (8, 8), shade).save(folder / "数据.jsonl" / name / f"图{i}.png")


def recommendation(folder: Path) -> None:
    lines(folder, [
        {"user": f"用户{u}", "item": FRUIT[(u + step) % 8], "timestamp": step}
        for u in range(60) for step in range(6)
    ])  # fmt: skip


def written(answer: Any) -> bool:
    return isinstance(answer["text"], str)


CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], Callable[[Any], bool]]] = {
    "language": (language, {"prompt": "春天里", "max_tokens": 8}, written),
    "text-classification": (classification, {"text": "真好吃，非常满意"},
                            lambda answer: answer["label"] in ("好评", "差评")),
    "translation": (translation, {"source": "I have 3 apples."},
                    lambda answer: isinstance(answer["target"], str)),
    "image-classification": (pictures, {"image": "数据.jsonl/猫/图3.png"},
                             lambda answer: {*answer["probabilities"]} == {"猫", "狗"}),
    "recommendation": (recommendation, {"history": ["苹果", "香蕉"], "k": 3},
                       lambda answer: {item["item"] for item in answer["items"]} <= {*FRUIT}),
}  # fmt: skip


@pytest.mark.parametrize("task", CASES)
def test_the_chain_works_in_chinese(empty: Cli, task: str) -> None:
    write, request, right = CASES[task]
    write(empty.cwd)
    shares = ("--val", "0.15", "--test", "0.15")
    said = empty.works("prepare", "数据.jsonl", "--task", task, *shares)
    dropped = empty.manifest()["ledger"]["dropped"]
    assert sum(entry["rows"] for entry in dropped.values()) == 0, said
    size = TINY if task == "language" else TINY[:8]
    empty.works("train", *size, "--steps", "2")
    empty.works("evaluate")
    empty.works("deploy")
    line = json.dumps(request, ensure_ascii=False).encode()
    answer = json.loads(empty.works("predict", stdin=line).out)
    assert right(answer), answer
    found = json.loads((empty.work / "runs/default/evaluation.json").read_bytes())
    if task == "text-classification":  # words of the other class are told by their characters
        assert found["baselines"]["tfidf_logistic"]["accuracy"] > 0.9
    if task == "translation":
        assert "tok:zh" in found["protocol"]["bleu"]
        copied, known = (found["baselines"][name] for name in ("copy", "dictionary"))
        assert known["chrf"] > 2 * copied["chrf"]
