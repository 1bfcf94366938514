"""Scripts without spaces: their words, their lengths, and what counts in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from bigmodel_cli.artifacts.manifest import write_json
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import ArtifactError
from bigmodel_cli.tasks import load_task, scripts
from bigmodel_cli.tasks.chat.replies import nearest
from bigmodel_cli.tasks.overlap import BLEU_FILE, bleu
from bigmodel_cli.tasks.translation.dictionary import Dictionary
from bigmodel_cli.tasks.words import WORDS
from tests.stages import prepare

TEXTS = {
    "13a": ["Ein kleiner Hund.", "오늘 날씨가 좋다", "Привет, мир", "हिन्दी में", "GDP in 中国", ""],
    "zh": ["我爱你。", "我用 Python 编程", "𠀀𠀁", "繁體中文也是"],
    "char": ["これは本です", "カタカナ", "ฉันรักเธอ", "ສະບາຍດີ", "မင်္ဂလာပါ", "ភាសាខ្មែរ"],
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't  stop, now.", ["don't", "stop,", "now."]),
        ("我爱Python 3.5。", ["我", "爱", "Python", "3.5。"]),
        ("こんにちは", ["こ", "ん", "に", "ち", "は"]),
        ("ฉันรัก", ["ฉั", "น", "รั", "ก"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("오늘 날씨", ["오늘", "날씨"]),
    ],
)
def test_a_character_is_a_word_where_there_are_no_spaces(text: str, words: list[str]) -> None:
    assert re.findall(WORDS, text) == words


@pytest.mark.parametrize("name", TEXTS)
def test_bleu_counts_by_the_script(name: str) -> None:
    for text in TEXTS[name]:
        assert scripts.bleu_tokenizer([text]) == name, text
    assert f"tok:{name}" in bleu(0, name).signature


def test_dense_characters_count_as_three() -> None:
    texts = pa.array(["我爱你，ok", "ฉันรัก", "오늘 x", "café…", ""], pa.large_string())
    assert scripts.lengths(texts, scripts.WIDE).tolist() == [12, 18, 8, 5, 0]
    assert scripts.lengths(texts, scripts.DENSE).tolist() == [12, 6, 8, 5, 0]


def test_the_dictionary_learns_characters() -> None:
    signs = dict(zip("abcdefgh", "天地玄黄宇宙洪荒", strict=True))
    names = {letter: f"word{letter}" for letter in signs}
    orders = [[*[*signs][i % 8 :: 3], [*signs][i * 5 % 8]] for i in range(60)]
    pairs = [("".join(signs[x] for x in o), " ".join(names[x] for x in o)) for o in orders]
    assert Dictionary(pairs).translate("宇地。") == "worde wordb。"
    back = Dictionary([(english, chinese) for chinese, english in pairs])
    assert back.translate("worde wordb") == "宇地"


def test_the_nearest_prompt_is_found_by_characters() -> None:
    known = [("今天天气怎么样呢", "晴"), ("你叫什么名字呢", "小明"), ("几点开门呢", "九点")]
    assert [*nearest(known, ["请问天气怎么样", "名字叫什么", "什么时候开门"])] == [
        "晴",
        "小明",
        "九点",
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [("今天下雨了我在家。", True), ("我们走吧", True), ("好的！", False), ("오늘 날씨가", True),
     ("ไปไหนมา", True), ("nine char", False), ("ten chars.", True), ("привет мир", True),
     ("——……“”‘’", False)],
)  # fmt: skip
def test_short_documents_are_measured_by_their_script(
    tmp_path: Path, text: str, kept: bool
) -> None:
    lines = [json.dumps({"text": t}) for t in [text, *(f"a longer text {i}" for i in range(9))]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    made = prepare(tmp_path / "w", tmp_path / "a.jsonl", val="0", test="0", tokenizer="bytes")
    assert made.manifest.splits["train"].units == 9 + kept


def test_pairs_of_other_scripts_are_of_like_length(tmp_path: Path) -> None:
    pairs = [
        ("I have never been to that big city before.", "我没去过那个大城市。"),
        ("Where are you going tonight, my friend?", "今晚去哪？"),
        ("ผมไม่เคยไปเมืองใหญ่แห่งนั้นมาก่อน", "I have never been there."),
        ("このりんごはおいしい。", "This apple is delicious."),
        ("안녕하세요 여러분", "Hello, everybody"),
        ("好。", "This is a long sentence that says much more than its source does."),
    ]
    lines = [json.dumps({"source": s, "target": t}) for s, t in pairs]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    made = prepare(tmp_path / "w", tmp_path / "a.jsonl", val="0", test="0", tokenizer="bytes")
    dropped = made.manifest.ledger.dropped
    assert dropped["length_mismatch"].where == ["a.jsonl, line 6"]
    assert dropped["length_mismatch"].rows == 1


def test_the_tokenizer_of_bleu_is_kept_with_the_data(tmp_path: Path) -> None:
    for place, (name, texts) in enumerate(TEXTS.items()):
        lines = [json.dumps({"source": f"text {i}", "target": f"{texts[0]}{i}"}) for i in range(40)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
        work = tmp_path / str(place)
        prepare(work, tmp_path / "a.jsonl", tokenizer="bytes")
        task = load_task(Workdir(work).preprocessor, "")
        assert f"tok:{name}" in task.protocol()["bleu"]
        assert (Workdir(work).preprocessor / BLEU_FILE).exists() == (name != "13a")
    write_json(Workdir(tmp_path / "1").preprocessor / BLEU_FILE, {"tokenizer": "mecab"})
    with pytest.raises(ArtifactError, match="mecab"):
        load_task(Workdir(tmp_path / "1").preprocessor, "")
