"""Requests as `prepare` reads rows: cleaning, blank texts, what is too long."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.artifacts.tokenizer import train as make_tokenizer
from bigmodel_cli.errors import DataError
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import Rows
from bigmodel_cli.tasks.clean import CONTROL, VISIBLE, Cleaning, cleaned, cut_control
from bigmodel_cli.tasks.language import Language, LanguageOptions
from bigmodel_cli.tasks.parameters import checked
from bigmodel_cli.tasks.recommendation.catalogue import Catalogue
from bigmodel_cli.tasks.requests import cleaned_field
from bigmodel_cli.tasks.text_classification import TextClassification, TextClassificationOptions
from bigmodel_cli.tasks.translation import Translation, TranslationOptions

ODD = [
    chr(code)
    for code in [
        *range(0x3001),
        *range(0xFE00, 0xFFFE),
        *range(0xE0000, 0xE0200, 16),
        0x3164,
        0x1D173,
    ]
    if unicodedata.category(chr(code)) in ("Cc", "Cf", "Zs", "Zl", "Zp")
    or code in (0x34F, 0x301, 0x115F, 0x180B, 0x2065, 0x2800, 0xFE0F, 0xFFA0, 0xFFF0, 0x3164)
]
FORMS = ("{}", "{0}{0}", "{}狐 a", "a{}b", "a {}", " {0} a {0} ")
TEXTS = [form.format(odd) for odd in ODD for form in FORMS]
BLANK = ["", " ", "\t\r\n", "\u3000\xa0", "\x00\x01", "\ufeff", "\u200b\u200d", "\u2060 \x7f",
         "\xad", "\u3164", "\ufe0f", "\u2800"]  # fmt: skip


def bytes_tokenizer() -> Any:
    return make_tokenizer([""], "bytes", 0, lambda run: run())


def language(objective: str = "next") -> Language:
    return Language(LanguageOptions(objective=objective, context=16), bytes_tokenizer())


def classifier() -> TextClassification:
    options = TextClassificationOptions(context=16)
    return TextClassification(options, bytes_tokenizer(), ["bad", "good"])


def translation() -> Translation:
    return Translation(TranslationOptions(context=32), bytes_tokenizer())


def prepared(texts: list[str], trim: bool) -> list[str | None]:
    """What `prepare` makes of rows; None for those that it drops."""
    whole = pa.array(texts, pa.large_string())
    rows = Rows(pa.RecordBatch.from_arrays([whole], names=["text"]), None, str)
    cleaning = Cleaning(rows, Ledger(), ["text"])
    (column,) = cleaning.texts
    if trim:
        column = pc.utf8_trim_whitespace(column)
    found = column.to_pylist()
    return [text if kept else None for text, kept in zip(found, cleaning.kept, strict=True)]


@pytest.mark.slow
def test_arrow_and_python_read_the_classes_of_characters_alike() -> None:
    """Rows are cleaned by the one, requests by the other."""
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for pattern in (CONTROL, VISIBLE):
        theirs = pc.match_substring_regex(pa.array(every, pa.large_string()), pattern)
        ours = re.compile(pattern)
        assert [char for char, found in zip(every, theirs.to_pylist(), strict=True)
                if found != bool(ours.search(char))] == []  # fmt: skip
    assert all(not re.search(VISIBLE, char) for char in every if char.isspace())


@pytest.mark.parametrize("trim", [False, True])
def test_odd_characters_are_cleaned_as_prepare_cleans_them(trim: bool) -> None:
    wanted = prepared(TEXTS, trim)
    assert 100 < sum(text is None for text in wanted) < len(TEXTS) / 2
    for text, right in zip(TEXTS, wanted, strict=True):
        if right is None:
            with pytest.raises(DataError, match="`text` is blank"):
                cleaned_field({"text": text}, "text", trim)
        else:
            assert cleaned_field({"text": text}, "text", trim) == right
            assert trim or right == cut_control(text)


@pytest.mark.parametrize("blank", BLANK)
def test_blank_texts_are_refused(blank: str) -> None:
    for task, field in (
        (classifier(), "text"),
        (translation(), "source"),
        (language("masked"), "prompt"),
    ):
        with pytest.raises(DataError, match=f"`{field}` is blank"):
            task.request({field: blank})


def test_what_shows_something_is_not_blank() -> None:
    for text in (".", "。", "\u200b!", "0", "\u0301", "🙂", "\ufffd", "<|endoftext|>"):
        task = classifier()
        wanted = [task.tokenizer.endoftext, *task.tokenizer.encode(text)]
        assert task.request({"text": text}).prompt == wanted
        assert cleaned(text) == (text, False)


def test_a_model_may_begin_a_text_but_not_read_control_characters_alone() -> None:
    task = language()
    end = task.tokenizer.endoftext
    assert task.request({"prompt": ""}).prompt == [end]
    for text in ("\n", "  "):  # which texts may begin with
        assert task.request({"prompt": text}).prompt == [end, *task.tokenizer.encode(text)]
    assert task.request({"prompt": "\x00狐\ufeff"}).prompt == task.request({"prompt": "狐"}).prompt
    for text in ("\x00", "\ufeff\x1f", "\u200b"):
        with pytest.raises(DataError, match="`prompt` is blank"):
            task.request({"prompt": text})


def test_ids_are_read_as_they_are() -> None:
    task = language()
    end, mask = task.tokenizer.endoftext, task.tokenizer.mask
    for ids in ([end], [mask, end, end], [200, 201], [task.tokenizer.size - 1] * 16):
        assert task.request({"prompt": ids}).prompt == ids
    for wrong in ([], [True], [1.0], [-1], [task.tokenizer.size], [[1]], ["a"], [None], {"a": 1}):
        with pytest.raises(DataError, match=r"^`prompt` must be text"):
            task.request({"prompt": wrong})
    with pytest.raises(DataError, match="`prompt` must be text"):
        language("masked").request({"prompt": [mask]})


@pytest.mark.parametrize(("make", "field", "most"), [
    (language, "prompt", 15), (translation, "source", 16),
])  # fmt: skip
def test_a_text_that_is_too_long_is_refused_with_both_numbers(
    make: Callable[[], Any], field: str, most: int
) -> None:
    task = make()
    task.request({field: "x" * most})
    counted = {"prompt": 1, "source": 0}[field]  # <|endoftext|> comes before a prompt
    said = rf"`{field}` has {most + 21 + counted} tokens, .* at most {most + counted}$"
    with pytest.raises(DataError, match=said):
        task.request({field: "狐" * 7 + "x" * most})
    if field == "prompt":
        task.request({field: [5] * 16})
        with pytest.raises(DataError, match=r"`prompt` has 17 tokens, .* at most 16$"):
            task.request({field: [5] * 17})


def test_a_long_text_is_classified_by_its_first_tokens_and_says_so() -> None:
    task = classifier()
    torch.manual_seed(0)
    model = SequenceModel(
        model_config("transformer", "nano", task.shape(), width=16, heads=2)
    ).eval()
    torch.nn.init.normal_(model.head.weight)
    texts = [
        "abcdefgh 狐狸",
        "abcdefgh 狐狸x",
        "abcdefgh 狐狸" + "y" * 1000,
    ]  # of 15, 16, 1015 bytes
    requests = [task.request({"text": text}) for text in texts]
    answers = {i: whole for i, _, whole in task.answer(model, requests) if whole}
    assert [answer.pop("truncated", None) for answer in answers.values()] == [None, 1, 1000]
    shown = [text for _, text, whole in task.answer(model, requests) if whole]
    assert "the last 1,000 tokens of the text were not read" in shown[2]
    assert "read" not in shown[0]
    assert answers[0]["probabilities"] == pytest.approx(answers[2]["probabilities"], abs=1e-5)


def test_a_masked_model_does_not_draw() -> None:
    task = language("masked")
    assert task.request({"prompt": "a<|mask|>"}).prompt == "a<|mask|>"
    known = {task.field, *task.fields}
    for name, value in (("temperature", 0.5), ("stop", ["x"]), ("top_k", 3)):
        with pytest.raises(DataError, match=f"`{name}` is unsupported"):
            checked({"prompt": "a<|mask|>", name: value}, known)


def test_numbers_find_their_items() -> None:
    names = ["1", "2.0", "007", "3", "3.0", "1e+20", "a", "-5", "0.1", "90071992547409931"]
    catalogue = Catalogue(names)

    def found(*items: Any) -> list[str]:
        return [names[place] for place in catalogue.known(items)]

    assert found(1, 1.0, "1", " 1\u3000") == ["1"] * 4
    assert found(2, 2.0, "2.0") == ["2.0"] * 3
    assert found(3, 3.0) == ["3", "3.0"]  # each by its own name, where it has one
    assert found(7, 7.0, "7") == []
    assert found("007", 1e20, 10**20, -5.0, 0.1) == ["007", "1e+20", "1e+20", "-5", "0.1"]
    assert found(90071992547409931, 90071992547409932) == ["90071992547409931"]
    assert found("1.0", "2", "A", "\ud800a", "", float("inf"), 1e300) == []
    assert found("a", 1, "zzz", 1, "a") == ["a", "1", "1", "a"]  # what comes again stays
    assert np.array(catalogue.known([])).size == 0


def test_a_prompt_without_a_visible_character_is_blank_unless_it_is_space() -> None:
    task = language("next")
    for blank in ("\u2060\u200d", "\x00", " \u200b"):
        with pytest.raises(DataError, match="blank"):
            task.request({"prompt": blank})
    for start in ("", " ", "\n\n"):
        assert task.request({"prompt": start})
