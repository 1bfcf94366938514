"""The names in requests: known, refused, misspelled, ignored."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest

from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import TABLE, task_class
from bigmodel_cli.tasks.parameters import (
    ALIASES,
    OTHERS,
    SHORTEST_OTHER,
    UNSUPPORTED,
    checked,
    edits,
)

KNOWN = ("id", "prompt", "max_tokens", "temperature", "top_k", "top_p", "stop", "seed")


def refused(document: dict[str, Any], known: tuple[str, ...] = KNOWN) -> str:
    with pytest.raises(DataError) as caught:
        checked({"prompt": "x", **document}, known)
    return f"{caught.value.message} | {caught.value.hint}"


def test_every_field_of_another_task_is_in_the_table() -> None:
    fields = {name for task in TABLE for name in task_class(task).fields}
    assert fields - {*UNSUPPORTED} == {"seed"}  # without draws every seed gives the same answer


def test_what_other_engines_heed_is_refused_unless_it_asks_for_nothing() -> None:
    for name, neutral in UNSUPPORTED.items():
        if name in KNOWN:
            continue
        for value in neutral:
            assert checked({"prompt": "x", name: value}, KNOWN) == ({"prompt": "x"}, [])
        assert f"`{name}` is unsupported" in refused({name: "odd"})
        assert checked({name: None}, KNOWN) == ({}, [])
    both = refused({"min_p": 0.1, "logit_bias": {"5": 1}, "n": 2})
    assert "`min_p`, `logit_bias`, `n` are unsupported" in both
    mixed = refused({"min_p": 0.1, "temprature": 1, "stopp": "a", "logit_bias": {"5": 1}})
    assert (
        "`temprature`, `stopp` are unknown; did you mean `temperature`, `stop`?; `min_p`" in mixed
    )


@pytest.mark.parametrize(("wrong", "right"), [
    ("temprature", "temperature"), ("Temperature", "temperature"), ("max_token", "max_tokens"),
    ("maxTokens", "max_tokens"), ("MAX_TOKENS", "max_tokens"), ("max-tokens", "max_tokens"),
    ("top-p", "top_p"), ("topK", "top_k"), ("stops", "stop"), ("sotp", "stop"), ("sed", "seed"),
    ("promt", "prompt"), ("frequency_penality", "frequency_penalty"), ("stopp", "stop"),
    ("max_new_tokens", "max_tokens"),
    ("stop_sequences", "stop"), ("max_completion_token", "max_completion_tokens"),
])  # fmt: skip
def test_a_misspelled_name_is_refused_with_the_one_that_was_meant(wrong: str, right: str) -> None:
    said = refused({wrong: 1})
    assert f"`{wrong}` is unknown" in said
    assert f"did you mean `{right}`?" in said


@pytest.mark.slow
def test_two_edits_of_any_long_name_are_refused() -> None:
    draw = random.Random(0)
    longer = [name for name in (*UNSUPPORTED, *ALIASES) if len(name) >= SHORTEST_OTHER]
    names = [name for name in {*KNOWN, *longer} if len(name) > 4]
    exact = {*KNOWN, *UNSUPPORTED, *ALIASES, *OTHERS}
    for name in sorted(names) * 5:
        other = name
        for _ in range(2):
            place, kind = draw.randrange(len(other)), draw.randrange(3)
            letter = draw.choice(string.ascii_lowercase) if kind else ""
            other = other[:place] + letter + other[place + (kind < 2) :]
        if other not in exact:
            assert edits(name, other) <= 2
            assert f"`{other}` is unknown" in refused({other: 1})


def test_edits_are_levenshteins() -> None:
    for one, other, count in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3),
                              ("flaw", "lawn", 2), ("stop", "stop", 0)]:  # fmt: skip
        assert edits(one, other) == edits(other, one) == count


def test_any_other_name_is_ignored_and_listed() -> None:
    given = {
        "user": 1,
        "store": True,
        "metadata": {},
        "foo": 2,
        "用户": 3,
        "": 4,
        "x": 5,
        "year": 6,
    }
    assert checked({"prompt": "x", **given, "none": None}, KNOWN) == ({"prompt": "x"}, [*given])
    assert checked({"text": "x", "seed": 1}, ("id", "text"))[1] == ["seed"]
    said = refused({f"name {i}": i for i in range(257)})
    assert "257 names" in said


def test_names_of_another_task_are_refused() -> None:
    said = refused({"beam": 3, "k": 5})
    assert "`beam`, `k` are unsupported" in said
    known = ("id", "source", "beam", "length_penalty")
    assert "`temperature` is unsupported" in refused({"temperature": 0.7}, known)
    assert "`max_tokens` is unsupported" in refused({"max_tokens": 7}, known)
    assert "`max_completion_tokens` is unsupported" in refused({"max_completion_tokens": 7}, known)


def test_openais_later_name_of_max_tokens() -> None:
    kept, ignored = checked({"max_completion_tokens": 7}, KNOWN)
    assert (kept, ignored) == ({"max_tokens": 7}, [])
    assert checked({"max_completion_tokens": 7, "max_tokens": 7}, KNOWN)[0] == {"max_tokens": 7}
    assert checked({"max_completion_tokens": 7, "max_tokens": None}, KNOWN)[0] == {"max_tokens": 7}
    assert "different" in refused({"max_completion_tokens": 7, "max_tokens": 8})


def test_capitals_do_not_count_in_the_shortest_names_either() -> None:
    with pytest.raises(DataError, match="unknown; did you mean `k`"):
        checked({"K": 3}, {"history", "k"})
    assert "did you mean `temperature`" in refused({"temp": 1})
