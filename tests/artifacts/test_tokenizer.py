"""Tokenizers lose nothing of any text, and mean the same to every engine that loads them."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers

from bigmodel_cli.artifacts import tokenizer as subject
from bigmodel_cli.artifacts.brought import bring
from bigmodel_cli.artifacts.tokenizer import SPECIALS, Tokenizer, load, train
from bigmodel_cli.errors import ArtifactError, UsageError
from bigmodel_cli.tasks.requests import TextStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

KINDS = ("bpe", "chars", "bytes")
# As published with Qwen2 and Qwen2.5; llama.cpp's LLAMA_VOCAB_PRE_TYPE_QWEN2 is the same.
QWEN2_PUBLISHED = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
CORPUS = [
    "The ship's captain said they'll sail at 12:30, didn't he?\n\n\tdef f(x): return x ** 2\n",
    "Die Straße führt nach Süden. Où est la bibliothèque ? Ελληνικά και русский язык.\n",
    "数字は123456789です。\u3000全角スペース 한국어 조선말\n",
    "the the the and and of of of to to in in a a a a sailing sailed sails sail\n" * 4,
]
NASTY = [
    "",
    " ",
    "\n",
    "\n\n \t \r\n\r\n   \n",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇪🇺",
    "e\u0301 é a\u0308\u0323 \u1100\u1161\u11a8 각 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "שלום עולם \u202eمرحبا\u202c \u200f\u200e",
    "\ud7ff\ue000\uf8ff\ufffd\ufffe\uffff\U00010000\U0010ffff",
    "9" * 3000 + " 1 22 333 4444 ٣٤٥ ⅷ ½",
    "<|endoftext|> <|pad|><|mask|> <|im_start|>user<|im_end|><|spare_0|> <|endoftext",
    "\x00\x01\x7f\x85\xa0\u2028\u2029\u3000\ufeff",
    "İstanbul ǅ ﬁ Å Ω K ſ",
    "I'LL she'S 'tis rock'n'roll ''''",
    "no newline at the end",
]


def at_once(work: Callable[[], None]) -> None:
    work()


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> Tokenizer:
    return train(CORPUS, request.param, 400, at_once)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train(CORPUS, "bpe", 500, at_once)


def any_text(draw: random.Random, longest: int = 60) -> str:
    """A random text of all planes of Unicode, with many of its troublesome characters."""
    ranges = [(32, 127), (9, 14), (0, 256), (0x300, 0x370), (0x590, 0x700), (0xD7F0, 0xD800),
              (0xE000, 0xE010), (0xFFF0, 0x10000), (0x1F300, 0x1FA00), (0x10FFF0, 0x110000),
              (0x2000, 0x2070), (48, 58)]  # fmt: skip
    parts = []
    for _ in range(draw.randrange(longest)):
        if draw.random() < 0.05:
            parts.append(draw.choice([*SPECIALS, "\r\n", "'ll", "   "]))
        else:
            parts.append(chr(draw.randrange(*draw.choice(ranges))))
    return "".join(parts)


# Two encoders ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_the_fast_encoder_gives_the_very_same_ids(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "PIECE", 3000)
    slow, fast = (train(CORPUS, kind, 500, at_once) for _ in range(2))
    assert fast.hasten(CORPUS) == ""
    monkeypatch.setattr(fast, "inner", None)  # only the fast one is left
    draw = random.Random(1)
    texts = [*NASTY, *(any_text(draw, 300) for _ in range(1500)), "line\n" * 2000, "x" * 9000]
    for one, other in zip(slow.encode_batch(texts), fast.encode_batch(texts)):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    for texts in ([], [""], ["", ""]):
        assert [part.tolist() for part in fast.encode_batch(texts)] == [[], [0] * len(texts)]


def test_the_fast_encoder_finds_the_added_tokens_of_a_brought_tokenizer(tmp_path: Path) -> None:
    inner = train(CORPUS, "bpe", 400, at_once).inner
    inner.add_tokens(["__init__", "def "])
    inner.save(str(tmp_path / "tokenizer.json"))
    slow, fast = bring(str(tmp_path)), bring(str(tmp_path))
    assert fast.hasten([]) == ""
    text = "def __init__(self): <|endoftext|>__init__"
    assert fast.encode(text) == slow.encode(text)
    assert len(slow.encode("__init__")) == 1
    assert not set(fast.encode(text)) & set(fast.specials)


def test_the_fast_encoder_starts_anew_where_memory_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = (train(CORPUS, "bpe", 500, at_once) for _ in range(2))
    fast.hasten(CORPUS)
    first = fast._fast
    fast.encode("some words")
    assert fast._fast is first
    before = subject.peak_memory()
    assert before > 10 << 20  # of bytes, whatever the system counts in
    monkeypatch.setattr(subject, "peak_memory", lambda: before + 2 * subject.CACHE)
    assert fast.encode(CORPUS[0]) == slow.encode(CORPUS[0])
    assert fast._fast is not first


def test_an_encoder_that_differs_in_one_text_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import awkward as ak
    import gigatoken

    right = gigatoken.Tokenizer.encode_batch

    def wrong(self: Any, texts: Any) -> Any:
        found = [ids.tolist() for ids in right(self, texts)]
        return ak.Array(
            [ids[:-1] if "fox" in text else ids for ids, text in zip(found, texts.to_list())]
        )

    monkeypatch.setattr(gigatoken.Tokenizer, "encode_batch", wrong)
    made, same = (train(CORPUS, "bpe", 500, at_once) for _ in range(2))
    assert made.hasten(["a dog", "a fox", "a cat"]) == 'gigatoken encodes "a fox" in another way'
    assert made.encode("a fox") == same.encode("a fox")


def test_a_kind_that_the_fast_encoder_does_not_know_is_encoded_as_before() -> None:
    made, same = (train(CORPUS, "chars", 0, at_once) for _ in range(2))
    assert made.hasten(CORPUS) == ""
    assert made.encode("日本 x") == same.encode("日本 x")


# Lossless -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", NASTY)
def test_decoding_gives_back_the_text(made: Tokenizer, text: str) -> None:
    ids = made.encode(text)
    assert made.decode(ids) == text
    assert int(made.token_lengths[ids].sum()) == len(text.encode())
    assert b"".join(made.token_bytes[i] for i in ids) == text.encode()
    assert not set(ids) & set(made.specials)


def test_decoding_gives_back_random_texts(made: Tokenizer) -> None:
    draw = random.Random(0)
    texts = [any_text(draw) for _ in range(400)]
    ids, counts = made.encode_batch(texts)
    ends = np.cumsum(counts)
    assert ends[-1] == len(ids)
    for text, first, last in zip(texts, [0, *ends], ends):
        assert made.decode(ids[first:last].tolist()) == text
        assert made.token_lengths[ids[first:last]].sum() == len(text.encode())
    assert not set(ids.tolist()) & set(made.specials)


def test_chars_has_a_token_for_each_known_character_and_none_for_two() -> None:
    made = train(CORPUS, "chars", 272, at_once)
    for text in CORPUS:
        assert len(made.encode(text)) == len(text)
    assert {len(raw.decode()) for raw in made.token_bytes if raw.decode(errors="ignore")} == {1}
    raw = [char.encode() for char in "".join(CORPUS)]
    beginnings = {char[:n] for char in raw for n in range(2, len(char) + 1)}
    assert made.size == len(SPECIALS) + 256 + len(beginnings)


def test_chars_falls_back_to_bytes_for_an_unknown_character() -> None:
    made = train(["aé€😀"], "chars", 272, at_once)
    assert [len(made.encode(c)) for c in "aé€😀"] == [1, 1, 1, 1]
    assert [len(made.encode(c)) for c in "bè₭😁"] == [1, 2, 2, 2]  # known beginnings are one token
    assert made.decode(made.encode("è€😁é")) == "è€😁é"


def test_bytes_has_one_token_for_each_byte() -> None:
    made = train(CORPUS, "bytes", 0, at_once)
    assert made.size == len(SPECIALS) + 256
    for text in NASTY:
        assert [made.token_bytes[i] for i in made.encode(text)] == [
            bytes([b]) for b in text.encode()
        ]


def test_a_bpe_tokenizer_has_at_most_the_size_that_was_asked() -> None:
    sizes = {size: train(CORPUS, "bpe", size, at_once).size for size in (272, 300, 400, 10_000)}
    assert [sizes[size] for size in (272, 300, 400)] == [272, 300, 400]
    assert 400 < sizes[10_000] < 1000  # there is no more to merge
    made = train(CORPUS, "bpe", 400, at_once)
    assert len({raw for raw in made.token_bytes if raw}) == 400 - len(SPECIALS)
    assert len(made.encode(" the sail")) < 4  # it merged what is frequent


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_the_dtype_holds_every_id(size: int, dtype: Any) -> None:
    inner = train(CORPUS, "bytes", 0, at_once).inner
    inner = tokenizers.Tokenizer.from_str(inner.to_str())
    inner.add_tokens([f"#{i}#" for i in range(size - inner.get_vocab_size())])
    made = Tokenizer(inner)
    assert made.size == size
    assert made.dtype == dtype
    last = f"#{size - len(SPECIALS) - 256 - 1}#"
    assert made.encode(last) == [size - 1]


# What is in the file --------------------------------------------------------------------------


def regexes(spec: dict[str, Any]) -> list[str]:
    return re.findall(r'"Regex": *"((?:[^"\\]|\\.)*)"', json.dumps(spec["pre_tokenizer"]))


def test_the_file_holds_exactly_qwen2s_regex_and_no_normalizer(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    bpe.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert [json.loads(f'"{found}"') for found in regexes(spec)] == [QWEN2_PUBLISHED]
    assert spec["normalizer"] is None
    split, byte_level = spec["pre_tokenizer"]["pretokenizers"]
    assert (split["behavior"], split["invert"]) == ("Isolated", False)
    assert (byte_level["add_prefix_space"], byte_level["use_regex"]) == (False, False)
    assert spec["model"]["byte_fallback"] is False
    assert not spec["model"]["ignore_merges"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello world", ["Hello", " world"]),
        ("she'll I'M x's", ["she", "'ll", " I", "'M", " x", "'s"]),
        ("in 2024", ["in", " ", "2", "0", "2", "4"]),
        ("a  b\n\n c", ["a", " ", " b", "\n\n", " c"]),
        ("f(x):\n\treturn", ["f", "(x", "):\n", "\treturn"]),
        ("x   \n y", ["x", "   \n", " y"]),
    ],
)
def test_text_is_split_as_qwen2_does(bpe: Tokenizer, text: str, words: list[str]) -> None:
    split = [text[a:b] for _, (a, b) in bpe.inner.pre_tokenizer.pre_tokenize_str(text)]
    assert split == words


def test_specials_come_first_in_a_fixed_order(made: Tokenizer) -> None:
    assert [made.inner.id_to_token(i) for i in range(len(SPECIALS))] == list(SPECIALS)
    assert made.specials == dict(enumerate(SPECIALS))
    assert (made.endoftext, made.pad, made.mask) == (0, 1, 2)
    assert all(made.token_bytes[i] == b"" for i in made.specials)


def test_the_saved_file_begins_every_text_with_endoftext(made: Tokenizer, tmp_path: Path) -> None:
    made.save(tmp_path)
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("", "Once upon a time", "naïve 12 👍🏽"):
        assert plain.encode(text).ids == [made.endoftext, *made.encode(text)]
        assert plain.decode(plain.encode(text).ids) == text


def test_a_saved_tokenizer_loads_as_itself(made: Tokenizer, tmp_path: Path) -> None:
    made.save(tmp_path)
    again = load(tmp_path)
    assert again.signature == made.signature
    assert again.token_bytes == made.token_bytes
    assert all(again.encode(text) == made.encode(text) for text in (*CORPUS, *NASTY))
    again.save(tmp_path / "again")
    first, second = (folder / "tokenizer.json" for folder in (tmp_path, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_training_twice_gives_the_same_file() -> None:
    draw = random.Random(1)
    texts = [" ".join(any_text(draw, 8) for _ in range(20)) for _ in range(60)]
    for kind in KINDS:
        first, second = (train(iter(texts), kind, 700, at_once) for _ in range(2))
        assert first.inner.to_str() == second.inner.to_str()
    assert first.signature != train(CORPUS, "bpe", 700, at_once).signature


def test_specials_are_special_only_when_they_are_added(made: Tokenizer) -> None:
    for name in SPECIALS:
        ids = made.encode(f"a {name} b")
        assert not set(ids) & set(made.specials)
        assert made.decode(ids) == f"a {name} b"
        assert made.decode([made.endoftext, *ids, made.pad]) == f"a {name} b"


# Pieces of long texts -------------------------------------------------------------------------


def long_texts() -> list[str]:
    draw = random.Random(2)
    return [
        "x" * 5000,
        " " * 5000,
        "\n" * 5000,
        " " + "x" * 5000,
        "a " + "x" * 5000 + " b",
        "\r\n".join(["line"] * 900),
        "😀" * 1500,
        *(any_text(draw, 4000) for _ in range(4)),
    ]


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1000])
def test_a_text_encoded_in_pieces_has_the_same_bytes(
    made: Tokenizer, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(subject, "PIECE", piece)
    monkeypatch.setattr(subject, "BATCH", 3 * piece)
    texts = [text[: 400 * piece] for text in long_texts()]
    ids, counts = made.encode_batch(["before", *texts, "", "after"])
    ends = np.cumsum(counts).tolist()
    found = [made.decode(ids[a:b].tolist()) for a, b in zip([0, *ends], ends)]
    assert found == ["before", *texts, "", "after"]


def test_pieces_of_lines_have_the_very_same_tokens(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(f"line {i}: the captain sails, they'll follow" for i in range(400))
    whole = bpe.encode(text)
    monkeypatch.setattr(subject, "PIECE", 500)
    assert bpe.encode(text) == whole


# Somebody else's ------------------------------------------------------------------------------


def foreign(added: Sequence[str] = (), special: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer in GPT-2's form, without our special tokens."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_special_tokens(list(special))
    inner.add_tokens(list(added))
    return inner


def test_a_brought_tokenizer_keeps_its_ids_and_gains_the_specials(tmp_path: Path) -> None:
    inner = foreign()
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    (tmp_path / "theirs").mkdir()
    inner.save(str(tmp_path / "theirs" / "tokenizer.json"))
    inner.no_truncation()
    inner.no_padding()
    for source in (tmp_path / "theirs", tmp_path / "theirs" / "tokenizer.json"):
        made = bring(str(source))
        assert made.size == 300 + len(SPECIALS)
        assert sorted(made.specials.values()) == sorted(SPECIALS)
        for text in (*CORPUS, *NASTY):
            assert made.encode(text) == inner.encode(text).ids
            assert made.decode(made.encode(text)) == text
        made.save(tmp_path / "ours")
        assert load(tmp_path / "ours").encode(CORPUS[0]) == made.encode(CORPUS[0])


def test_a_brought_tokenizer_keeps_specials_that_it_has(tmp_path: Path) -> None:
    inner = foreign(special=["<|im_end|>", "<|endoftext|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    made = bring(str(tmp_path))
    assert made.endoftext == inner.token_to_id("<|endoftext|>") == 301
    assert made.size == 300 + len(SPECIALS)
    assert made.inner.encode("the").ids == [301, *made.encode("the")]


def test_a_brought_plain_token_named_like_a_special_becomes_one(tmp_path: Path) -> None:
    foreign(added=["<|endoftext|>"]).save(str(tmp_path / "tokenizer.json"))
    made = bring(str(tmp_path))
    text = "spelled out: <|endoftext|>"
    assert made.endoftext not in made.encode(text)
    assert made.decode([made.endoftext, *made.encode(text), made.endoftext]) == text


def test_an_added_token_of_a_brought_tokenizer_counts_its_own_bytes(tmp_path: Path) -> None:
    foreign(added=["café", "naïve<ø>", "plain"]).save(str(tmp_path / "tokenizer.json"))
    made = bring(str(tmp_path))
    for text in ("un café!", "naïve<ø>", "it's plain"):
        ids = made.encode(text)
        assert made.decode(ids) == text
        assert int(made.token_lengths[ids].sum()) == len(text.encode())


def test_a_tokenizer_that_is_not_byte_level_decodes_with_its_own_rules(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    words = {"[UNK]": 0, "the": 1, "ship": 2, "sails": 3}
    inner = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "tokenizer.json"))
    made = bring(str(tmp_path))
    assert not made.byte_level
    assert made.encode("the ship  flies") == [1, 2, 0]
    assert made.decode([1, 2, made.endoftext]) == "the ship"
    stream = TextStream(made)
    for token in (1, 2, 3):
        stream.feed(token)
    stream.close()
    assert stream.text == made.decode([1, 2, 3])


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match="cannot be loaded"):
        bring(str(tmp_path))
    with pytest.raises(ArtifactError, match="tokenizer"):
        load(tmp_path)


def test_loading_a_tokenizer_without_our_specials_is_an_error(tmp_path: Path) -> None:
    foreign().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ArtifactError, match="endoftext"):
        load(tmp_path)


# Streams --------------------------------------------------------------------------------------


def test_a_stream_never_shows_half_a_character(made: Tokenizer) -> None:
    for text in (*NASTY, *CORPUS):
        stream, shown = TextStream(made), ""
        for token in made.encode(text):
            stream.feed(token)
            assert stream.text.startswith(shown)  # what was shown stays
            assert text.startswith(stream.text)
            shown = stream.text
        stream.close()
        assert stream.text == text


def test_a_stream_of_any_tokens_ends_as_decode_does(made: Tokenizer) -> None:
    draw = random.Random(3)
    for _ in range(300):
        ids = [draw.randrange(made.size) for _ in range(draw.randrange(30))]
        stream, shown = TextStream(made), ""
        for token in ids:
            stream.feed(token)
            assert stream.text.startswith(shown)
            shown = stream.text
        stream.close()
        assert stream.text == made.decode(ids)


def test_a_stream_holds_back_an_incomplete_character() -> None:
    made = train([""], "bytes", 0, at_once)
    stream = TextStream(made)
    shown = []
    for token in made.encode("a😀b"):
        stream.feed(token)
        shown.append(stream.text)
    assert shown == ["a", "a", "a", "a", "a😀", "a😀b"]
    stream = TextStream(made)
    for token in made.encode("a😀")[:-1]:
        stream.feed(token)
    assert stream.text == "a"
    stream.close()
    assert stream.text == "a\ufffd"
