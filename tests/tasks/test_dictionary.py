"""The word-for-word dictionary on pairs whose dictionary is known."""

from __future__ import annotations

import random

import pytest

from bigmodel_cli.tasks.translation import dictionary
from bigmodel_cli.tasks.translation.dictionary import Dictionary

KNOWN = {
    word: word[::-1].upper()
    for word in ["apple", "bread", "chair", "door", "egg", "fish", "goat", "hat"]
}


def pairs(count: int) -> list[tuple[str, str]]:
    """Sentences and their translations, whose words come in another order."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        words = draw.sample(sorted(KNOWN), draw.randrange(2, 5))
        others = [KNOWN[word] for word in words]
        draw.shuffle(others)
        found.append((" ".join(words) + ".", "der " + " ".join(others) + "!"))
    return found


def test_it_finds_which_word_stands_for_which() -> None:
    words = Dictionary(pairs(200))
    assert {word: words.best[word] for word in KNOWN} == KNOWN
    assert words.translate("goat door unseen egg, fish") == "TAOG ROOD unseen GGE, HSIF"


def test_it_learns_from_no_more_than_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionary, "PLACES", 60)
    words = Dictionary(pairs(200))
    assert 0 < len({*words.best} & {*KNOWN}) < len(KNOWN)
    assert Dictionary([]).translate("as it is.") == "as it is."
