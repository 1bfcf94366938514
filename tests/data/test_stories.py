"""The sample of stories: reproducible, and its entropy is what `data/make_stories.py` says."""

import importlib.util
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean, stdev
from types import ModuleType
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
SAMPLE = DATA / "stories" / "stories.jsonl"
LARGE_SAMPLE = 20_000


def load_script() -> ModuleType:
    """Import the script by its path: `data/` is not a package."""
    spec = importlib.util.spec_from_file_location("make_stories", DATA / "make_stories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stories = load_script()


def sample() -> list[tuple[str, float]]:
    """The committed stories with their recorded bits."""
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="ascii").splitlines()]
    assert all(list(row) == ["text", "bits"] for row in rows)
    return [(row["text"], row["bits"]) for row in rows]


def expansions(template: Sequence[Any], memory: dict[str, str]) -> Iterator[tuple[float, str]]:
    """All that a template can become, each with its probability, by plain enumeration."""
    if not template:
        yield 1.0, ""
        return
    token, rest = template[0], template[1:]
    if isinstance(token, str) or not token.rule:
        word = token if isinstance(token, str) else stories._known(token, memory)
        yield from ((p, word + tail) for p, tail in expansions(rest, memory))
        return
    for p, key, chosen in stories.RULES[stories._known(token, memory)]:
        tails = list(expansions(rest, {**memory, token.keep: key}))
        for q, text in expansions(chosen, memory):
            yield from ((p * q * r, text + tail) for r, tail in tails)


def test_regenerating_gives_the_committed_file(tmp_path: Path) -> None:
    stories.main(["--output", str(tmp_path / "new" / "stories.jsonl")])
    assert (tmp_path / "new" / "stories.jsonl").read_bytes() == SAMPLE.read_bytes()


def test_seed_and_number_of_stories_count(tmp_path: Path) -> None:
    written = []
    for seed in ("0", "1"):
        stories.main(["--stories", "3", "--seed", seed, "--output", str(tmp_path / seed)])
        written.append((tmp_path / seed).read_bytes().splitlines(keepends=True))
    assert written[0] == SAMPLE.read_bytes().splitlines(keepends=True)[:3]
    assert len(written[1]) == 3
    assert written[1] != written[0]


def test_no_stories_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        stories.main(["--stories", "0", "--output", str(tmp_path / "none")])
    assert stopped.value.code == 2
    assert not (tmp_path / "none").exists()


def test_recorded_bits_are_those_of_the_text() -> None:
    for text, recorded in sample():
        assert round(stories.bits(text), 6) == recorded


def test_shape_of_the_sample() -> None:
    texts = [text for text, _ in sample()]
    assert len(texts) == 1600
    assert len(set(texts)) == len(texts)
    assert all(250 <= len(text.encode()) <= 800 for text in texts)
    assert SAMPLE.stat().st_size < 800_000
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert 150 <= len(words) <= 250


def test_facts_are_restated_within_256_bytes() -> None:
    for text, _ in sample():
        start = re.search(r"(\w+) named (\w+) .* an? (\w+ \w+)\.\nOne ", text, re.DOTALL)
        assert start is not None
        for fact in start.groups():
            places = [match.start() for match in re.finditer(rf"\b{fact}\b", text)]
            assert len(places) > 2
            assert max(b - a for a, b in pairwise(places)) <= 256


def test_bits_rejects_what_is_no_story() -> None:
    text = sample()[0][0]
    for broken in ("", " ", text[:-1], text + " ", text + text, "\n" + text, text.lower()):
        with pytest.raises(ValueError, match="not a story"):
            stories.bits(broken)


def test_bits_rejects_a_missing_or_doubled_character_anywhere() -> None:
    for text, _ in sample()[:4]:
        for place, character in enumerate(text):
            for patch in ("", character * 2):
                with pytest.raises(ValueError, match="not a story"):
                    stories.bits(text[:place] + patch + text[place + 1 :])


def test_bits_rejects_a_contradiction_with_what_came_before() -> None:
    text = (
        "Long ago a small fox named Poppy lived under an oak. She was brave and wished for a red"
        " kite.\nOne windy night Poppy set out. By a gate she asked a wise owl for a red kite."
        ' "Never, dear fox," said the owl. On a hill Poppy asked a merry crow for a red kite.'
        ' "Hush, good fox," said the crow.\nThat night wolves howled, but Poppy walked on.'
        " Inside a log she found the red kite.\nThe crow came to tea. The fox learned that"
        " courage grows in the dark."
    )
    assert 60 < stories.bits(text) < 100
    for old, new in (
        ("but Poppy", "but Tilda"),  # another name
        ("She was", "He was"),  # another pronoun
        ("log she", "log he"),
        ("good fox", "good hare"),  # another kind
        ("The fox", "The mole"),
        ("found the red kite", "found the blue kite"),  # another wish
        ("found the red kite", "found the red bell"),
        ("said the crow", "said the owl"),  # another speaker
        ("The crow came", "The owl came"),  # another friend
        ("a merry crow", "a merry owl"),  # the same animal twice in a row
        ("under an oak", "near the reeds"),  # a home that this kind does not have
        ("Inside a log", "Deep in hay"),
        ("courage grows in the dark", "patience outlasts rain"),  # the moral of another trial
    ):
        assert text.count(old) == 1
        with pytest.raises(ValueError, match="not a story"):
            stories.bits(text.replace(old, new))


@pytest.mark.slow
def test_analytic_means_agree_with_a_large_sample() -> None:
    rng = random.Random(20_000)
    drawn = [stories.story(rng) for _ in range(LARGE_SAMPLE)]
    assert all(stories.bits(text) == cost for text, cost in drawn)
    for values, exact in (
        ([cost for _, cost in drawn], stories.entropy_bits()),
        ([len(text.encode()) for text, _ in drawn], stories.expected_bytes()),
    ):
        assert abs(fmean(values) - exact) < 3 * stdev(values) / math.sqrt(LARGE_SAMPLE)
    assert stories.entropy_bits() > 60


def test_committed_sample_is_a_typical_one() -> None:
    costs = [bits for _, bits in sample()]
    assert abs(fmean(costs) - stories.entropy_bits()) < 3 * stdev(costs) / math.sqrt(len(costs))


def test_probabilities_of_every_choice_add_up_to_one() -> None:
    for options in stories.RULES.values():
        assert math.fsum(p for p, _, _ in options) == pytest.approx(1, abs=1e-12)
        assert all(p > 0 for p, _, _ in options)


def test_every_story_ends() -> None:
    below: dict[str, set[str]] = {}
    for name, options in stories.RULES.items():
        slots = [token for _, _, template in options for token in template]
        drawn = {(s.rule, bool(s.slot)) for s in slots if not isinstance(s, str) and s.rule}
        below[name] = {
            other
            for rule, steered in drawn
            for other in stories.RULES
            if (other.startswith(f"{rule}@") if steered else other == rule)
        }
    order = list(TopologicalSorter(below).static_order())  # raises CycleError if one leads back
    assert order[-1] == "story"
    assert set(order) == set(stories.RULES)


def test_every_choice_can_be_told_from_its_first_text() -> None:
    for options in stories.RULES.values():
        heads = [template[0] for _, _, template in options]
        for one, other in combinations(heads, 2):
            assert isinstance(one, str)
            assert isinstance(other, str)
            assert not one.startswith(other)
            assert not other.startswith(one)


def test_means_agree_with_enumeration() -> None:
    slot = stories.Slot
    template = (
        *(slot("kind", "", "", "kind"), slot("name", "", "", "name"), " "),
        *(slot("trial", "", "", "moral"), " ", slot("found", "kind", "land", ""), " "),
        *(slot("", "name", "he", ""), slot("", "kind", "", ""), slot("", "moral", "", "")),
    )
    texts = list(expansions(template, {}))
    assert len({text for _, text in texts}) == len(texts) == 7 * 8 * 26 * 3
    assert math.fsum(p for p, _ in texts) == pytest.approx(1, abs=1e-12)
    mean_bits, mean_bytes = stories._mean(template, frozenset())
    assert mean_bits == pytest.approx(-math.fsum(p * math.log2(p) for p, _ in texts), abs=1e-9)
    assert mean_bytes == pytest.approx(math.fsum(p * len(text) for p, text in texts), abs=1e-9)
