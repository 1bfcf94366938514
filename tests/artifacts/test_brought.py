"""Tokenizers that somebody else made: one id for each token, and a word about what they lose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from bigmodel_cli.artifacts.brought import UNUSED, bring, loss
from bigmodel_cli.artifacts.tokenizer import SPECIALS, Tokenizer, load
from bigmodel_cli.errors import ArtifactError, DataError, UsageError
from tests.conftest import Cli

WORDS = ["the", "ship", "sails", "over", "hills", "and", "saw", "birds", "number"]
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": True}  # fmt: skip


def spec(
    model: dict[str, Any], added: list[tuple[int, str]] | None = None, pre: Any = None,
    decoder: Any = None, normalizer: Any = None,
) -> dict[str, Any]:  # fmt: skip
    form = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokens = [{"id": i, "content": c, **form, "special": True} for i, c in added or []]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
            "normalizer": normalizer, "pre_tokenizer": pre or {"type": "WhitespaceSplit"},
            "post_processor": None, "decoder": decoder, "model": model}  # fmt: skip


def words(vocabulary: dict[str, int], **more: Any) -> dict[str, Any]:
    return spec({"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}, **more)


def unigram(pieces: list[str], unknown: int | None, **more: Any) -> dict[str, Any]:
    vocabulary = [[piece, -1.0 - place] for place, piece in enumerate(pieces)]
    model = {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": False}
    return spec(model, pre=METASPACE, decoder=METASPACE, **more)


def characters(letters: str, **more: Any) -> dict[str, Any]:
    """A BPE of characters without an unknown token: others vanish."""
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": []}
    fuse = {"type": "Fuse"}
    return spec(model, pre={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never",
                            "split": False}, decoder={"type": "Sequence", "decoders": [fuse, {
        "type": "Replace", "pattern": {"String": "▁"}, "content": " "}]}, **more)  # fmt: skip


def pieces_of_words(vocabulary: list[str], **more: Any) -> dict[str, Any]:
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100,
             "vocab": {piece: place for place, piece in enumerate(vocabulary)}}  # fmt: skip
    return spec(model, pre={"type": "BertPreTokenizer"},
                decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}, **more)  # fmt: skip


def brought(folder: Path, document: dict[str, Any]) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    return bring(str(folder))


def is_sound(made: Tokenizer) -> None:
    """Each id below the size is one token, and only one."""
    ids = made.inner.get_vocab(with_added_tokens=True)
    assert sorted(ids.values()) == list(range(made.size))
    assert {*SPECIALS} <= {*made.specials.values()}


HOLES = {
    "words": (words({"a": 0, "b": 1, "[UNK]": 9}), {"a": 0, "b": 1, "[UNK]": 9}),
    "added above": (words({"a": 1, "b": 2, "[UNK]": 0}, added=[(50, "<x>"), (7, "<y>")]),
                    {"[UNK]": 0, "a": 1, "b": 2, "<y>": 7, "<x>": 50}),
    "added in a hole": (words({"a": 0, "b": 5, "[UNK]": 3}, added=[(2, "<x>"), (9, "<y>")]),
                        {"a": 0, "<x>": 2, "[UNK]": 3, "b": 5, "<y>": 9}),
    "not from 0": (words({"a": 100, "b": 101, "[UNK]": 102}), {"a": 100, "b": 101, "[UNK]": 102}),
    "pieces": (unigram(["<unk>", "▁a", "b"], 0, added=[(0, "<unk>"), (9, "<x>")]),
               {"<unk>": 0, "▁a": 1, "b": 2, "<x>": 9}),
    "merged": (spec({"type": "BPE", "vocab": {"a": 0, "b": 3, "ab": 6}, "merges": ["a b"]}),
               {"a": 0, "b": 3, "ab": 6}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOLES)
def test_ids_with_holes_stay_and_ours_come_above_the_highest(tmp_path: Path, name: str) -> None:
    document, wanted = HOLES[name]
    made = brought(tmp_path, document)
    is_sound(made)
    ids = made.inner.get_vocab(with_added_tokens=True)
    assert {token: ids[token] for token in wanted} == wanted
    highest = max(wanted.values())
    assert [ids[token] for token in SPECIALS] == list(range(highest + 1, highest + 17))
    unused = {*range(highest + 1)} - {*wanted.values()}
    assert unused == {i for i, token in made.specials.items() if token == UNUSED.format(i)}
    made.save(tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert again.inner.get_vocab(with_added_tokens=True) == ids


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (words({"a": 1, "b": 1, "[UNK]": 0}), "`a` and `b` have the same id, 1"),
        (words({"a": 1, "[UNK]": 0}, added=[(1, "<x>")]), "`a` and `<x>` have the same id, 1"),
        (words({"a": 1, "[UNK]": 0}, added=[(5, "a")]), "`a` has two ids, 1 and 5"),
        (unigram(["a", "b", "a"], 0), "`a` has two ids"),
        (words({"a": 0, "[UNK]": 4_000_000_000}), "highest id is 4,000,000,000, but it has only 2"),
    ],
)
def test_ids_that_mean_two_tokens_are_refused(
    tmp_path: Path, document: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match="tokenizer") as caught:
        brought(tmp_path, document)
    assert says in caught.value.message


@pytest.mark.parametrize(
    "document",
    [words({"a": 0, "b": 1}), unigram(["▁a", "▁b"], None), pieces_of_words(["a", "b"]),
     spec({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "<unk>"})],
)  # fmt: skip
def test_a_text_that_has_no_tokens_is_named(tmp_path: Path, document: dict[str, Any]) -> None:
    made = brought(tmp_path, document)
    with pytest.raises(DataError, match="cannot encode `"):
        made.encode_batch(["a", "中文 c", "a"])


@pytest.mark.parametrize("ids", [{"a": 0, "b": 7, "[UNK]": 20}, {"a": 0, "b": 90, "[UNK]": 1}])
def test_a_saved_tokenizer_whose_tokens_share_ids_is_corrupt(
    tmp_path: Path, ids: dict[str, int]
) -> None:
    made = tokenizers.Tokenizer.from_str(json.dumps(words(ids)))
    made.add_special_tokens(list(SPECIALS))  # which `tokenizers` numbers from 3 on
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ArtifactError, match="one token must have one id"):
        load(tmp_path)


def test_words_that_spell_a_special_token_stay_plain(tmp_path: Path) -> None:
    vocabulary = {"[UNK]": 0, "a": 1, "<|endoftext|>": 2, "<|im_end|>": 3}
    for document in (words(vocabulary), unigram([*vocabulary], 0)):
        made = brought(tmp_path, document)
        assert made.endoftext == 2
        ids = made.encode("a <|endoftext|> a <|im_end|>")
        assert not {*ids} & ({*made.specials} - {0})
        assert 0 in ids


def test_a_special_token_in_a_text_needs_an_unknown_one(tmp_path: Path) -> None:
    made = brought(tmp_path, unigram(["a", "▁", "<|endoftext|>"], None))
    with pytest.raises(DataError, match="cannot encode"):
        made.encode("a<|endoftext|>")
    assert made.encode("a")


def test_dropout_of_merges_is_for_no_one(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
             "dropout": 0.9}  # fmt: skip
    made = brought(tmp_path, {"version": "1.0", "model": model})
    assert {tuple(made.encode("ab" * 20)) for _ in range(20)} == {(2,) * 20}


def test_what_does_not_come_back_is_counted_by_its_kind(tmp_path: Path) -> None:
    made = brought(tmp_path, pieces_of_words(["[UNK]", "hello", "cafe", "##s"], normalizer=BERT))
    found = loss(made, ["Hello Cafés", "hello  hello", "hello", "hello hello hello 中"])
    assert found is not None
    assert (found.texts, found.formed, found.spaced, found.missing) == (4, 1, 1, 1)
    assert found.lost == pytest.approx(3 / (len("Hello Cafés") + 1 + 12 + 5 + 18 + 3))
    assert '中" → "' in found.example
    assert found.changed == pytest.approx((3 + 4 + 1) / 50)  # 中, H, C, é and a space
    assert "3 of 4 texts (75.0%) and 16.00% of their bytes do not come back" in str(found)
    assert loss(made, ["hello hello", "cafes"]) is None
    sentences = brought(tmp_path, unigram(["<unk>", "▁", "a", "b", "▁a"], 0))
    assert loss(sentences, ["ab a", "b ab"]) is None
    found = loss(sentences, [" ab a"])  # a space before is not told from none
    assert found is None or (found.spaced, found.lost) == (1, 0)


def test_bytes_that_stand_for_characters_come_back(tmp_path: Path) -> None:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [],
             "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}  # fmt: skip
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}]  # fmt: skip
    never = {**METASPACE, "prepend_scheme": "never", "split": False}
    document = spec(model, pre=never, decoder={"type": "Sequence", "decoders": decoders})
    assert loss(brought(tmp_path, document), ["a 中文 café", " a\n😀"]) is None


# Through every task that reads text ------------------------------------------------------------

ROWS = {
    "language": lambda text, _: {"text": text},
    "chat": lambda text, _: {"messages": [{"role": "user", "content": text},
                                          {"role": "assistant", "content": text[::-1]}]},
    "text-classification": lambda text, i: {"text": text, "label": "ab"[i % 2]},
    "translation": lambda text, i: {"source": text, "target": f"{i} {text}"},
}  # fmt: skip


def corpus(cli: Cli, task: str, texts: list[str]) -> None:
    lines = [json.dumps(ROWS[task](text, i)) for i, text in enumerate(texts)]
    (cli.cwd / "rows.jsonl").write_text("\n".join(lines), "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("task", ROWS)
def test_every_task_says_what_a_tokenizer_loses(empty: Cli, task: str) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789▁."
    (empty.cwd / "tokenizer.json").write_text(json.dumps(characters(letters)))
    prepare = ("prepare", "rows.jsonl", "--tokenizer", "tokenizer.json", "--force")
    texts = [f"the ship number {i} sails over hill {i * i}." for i in range(80)]
    corpus(empty, task, texts)
    assert "not lossless" not in empty.works(*prepare).err
    corpus(empty, task, [f"{text} é" if i % 8 == 0 else text for i, text in enumerate(texts)])
    said = empty.works(*prepare).err
    assert "is not lossless" in said
    assert "é" in said
    corpus(empty, task, [f"数字{i}比{i * i}大吗，我不知道。" for i in range(80)])
    empty.refuses(*prepare, code=2, says=["loses more than 20% of the text", "数字"],
                  hint=["--tokenizer bpe"])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", ROWS)
def test_a_tokenizer_without_an_unknown_token_is_refused(empty: Cli, task: str) -> None:
    corpus(empty, task, [f"the ship number {i} sails over hill {i * i}." for i in range(80)])
    (empty.cwd / "tokenizer.json").write_text(json.dumps(words({"the": 0, "ship": 1})))
    empty.refuses("prepare", "rows.jsonl", "--tokenizer", "tokenizer.json", code=4,
                  says=["cannot encode"], hint=["--tokenizer bpe"])  # fmt: skip


@pytest.mark.slow
def test_a_model_trains_and_writes_with_ids_that_have_holes(empty: Cli) -> None:
    texts = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(12)) for i in range(1, 90)]
    texts = [f"{WORDS[i % 9]} {WORDS[i // 9 % 9]} {text}" for i, text in enumerate(texts)]
    corpus(empty, "language", texts)
    vocabulary = {"[UNK]": 3, **{word: 20 + 3 * place for place, word in enumerate(WORDS)}}
    (empty.cwd / "tokenizer.json").write_text(json.dumps(words(vocabulary)))
    said = empty.works("prepare", "rows.jsonl", "--tokenizer", "tokenizer.json").err
    assert "61 tokens, 35 of them for ids that it does not use" in said
    empty.train("--steps", "3")
    empty.works("evaluate")
    empty.works("deploy")
    line = {"prompt": "the ship", "max_tokens": 20, "temperature": 5}
    answer = json.loads(empty.works("predict", stdin=json.dumps(line).encode()).out)
    assert answer["text"].split()
    assert {*answer["text"].split()} <= {*WORDS}
