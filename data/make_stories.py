"""Draw little animal tales from a probabilistic grammar whose entropy is known exactly.

No language model can need fewer than `entropy_bits()` bits per story on average, and one that has
learned the grammar needs no more. A rule of the grammar is a choice between options, and an option
is a template of plain text (ASCII, so that a character is a byte) and slots:

* `<rule>` draws an option of `rule`; `<rule=slot>` also remembers the option's key as `slot`;
* `<rule@slot>`, `<rule@slot.fact>` draw from the rule called "rule@KEY", where KEY is what `slot`
  remembers, or the `fact` about it in `FACTS`: an earlier choice steers a later one;
* `<@slot>`, `<@slot.fact>` repeat what was remembered, or a fact about it: this is no choice.

A memory is known to the rest of its template and to all that is drawn there, not outside. Options
are parted by "|", each "WEIGHT:template" or "WEIGHT KEY:template" (else the template is the key);
the probability of an option is its share of the weights of its rule.

A text has one derivation at most, so its probability is the product over its choices: the options
of a rule begin with plain texts of which none is a prefix of another. No rule leads back to itself
(the chain of meetings is written out), so every story ends and the probabilities add up to one.
"""

import argparse
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Slot(NamedTuple):
    """A place in a template: a draw from `rule` or, where `rule` is empty, a repetition."""

    rule: str
    slot: str  # what steers the draw, if anything, or what is repeated
    fact: str  # the fact about `slot` that is meant, or "" for what it remembers
    keep: str  # the slot that remembers the draw, or ""


Template = tuple[str | Slot, ...]
Option = tuple[float, str, Template]  # the probability, the key to remember, what is written
Rule = tuple[Option, ...]
Chooser = Callable[[Rule], Option]

_HELPERS = "6:owl|5:crow|4:hedgehog|4:donkey|3:snail|3:goose|2:mouse|2:bear|1:swan"
_WOMEN, _MEN = ("Poppy", "Tilda", "Hazel", "Mabel"), ("Oliver", "Bruno", "Jasper", "Rufus")
_LANDS = {"wood": ("fox", "mole", "badger"), "lake": ("otter", "duck"), "farm": ("hare", "goat")}

FACTS: dict[str, dict[str, str]] = {
    "He": dict.fromkeys(_WOMEN, "She") | dict.fromkeys(_MEN, "He"),
    "he": dict.fromkeys(_WOMEN, "she") | dict.fromkeys(_MEN, "he"),
    "land": {kind: land for land, kinds in _LANDS.items() for kind in kinds},
}

_TEXTS: dict[str, str] = {
    "story": "1:<opening> <size> <kind=kind> named <name=name> lived <home@kind.land>. <@name.He>"
    " was <trait><longing> a <colour=colour> <thing=thing>.\nOne <weather> <daytime> <@name>"
    " <leave>. <meeting1>",
    "opening": "5:Long ago|4:Once upon a time|3:Last year|1:In old times",
    "size": "5:a small|4:a young|2:a round|2:an old|1:a very tall",
    "kind": "6:fox|5:hare|4:otter|4:goat|3:duck|3:mole|1:badger",
    "name": "6:Poppy|5:Oliver|5:Tilda|5:Bruno|4:Hazel|3:Jasper|3:Mabel|2:Rufus",
    "home@wood": "4:under an oak|3:in a mossy den|3:among ferns",
    "home@lake": "4:by a slow river|3:near the reeds|3:below a bridge",
    "home@farm": "4:by a red barn|3:in a wide field|3:next to a mill",
    "trait": "1:brave|1:gentle|1:clever|1:loyal|1:honest|1:strong|1:proud|1:quiet",
    "longing": "6: and <wished>|2: but <flaw>, and <@name.he> <wished>"
    "|2:. Every <daytime> <@name.he> <hobby> and <wished>",
    "wished": "5:wished for|3:dreamed of|2:longed for|2:wanted",
    "flaw": "3:shy|2:often late|2:clumsy|1:poor",
    "daytime": "5:morning|3:evening|2:noon|2:night",
    "hobby": "1:sang to stars|1:ran races|1:baked cakes|1:swept the path",
    "colour": "1:silver|1:golden|1:red|1:blue|1:wooden|1:painted|1:tiny|1:glass",
    "thing": "6:bell|5:kite|4:lantern|3:drum|3:boat|2:crown|2:whistle|1:teapot",
    "weather": "1:windy|1:bright|1:misty|1:frosty|1:warm|1:rainy|1:calm|1:snowy",
    "leave": "4:set out|3:left home|2:packed lunch|2:put on boots|1:ran off",
    "where": "1:By a gate|1:By a well|1:On a hill|1:At a fair|1:In town|1:In a wood|1:In a mill",
    "mood": "4:a sleepy|3:a merry|3:a grumpy|2:a wise|2:an odd|2:a hungry",
    "helper": _HELPERS,
    "asked": "4:for a|2:about the|1:to find a",
    "reply": "4:Not today|4:Go past the <far>|3:Ask the wind|3:I lost mine|2:Never|1:Hush",
    "far": "1:lake|1:town|1:sea|1:river|1:hill",
    "call": "3:dear|2:little|2:good|2:kind|1:poor",
    "manner": "5:.|1:, yawning.|1:, bowing low.|1:, laughing.|1:, with a wink.",
    "ending": "1:<trial=moral> <found@kind.land> <@name.he> found the <@colour> <@thing>.<feast>"
    " <@kind> learned that <@moral>.",
    "trial": "5 patience outlasts rain:Soon a <grim> storm came, but <@name> waited under a leaf."
    "|4 a kind heart is never poor:In a net sat a <grim> rat, and <@name> set it free."
    "|4 courage grows in the dark:That night wolves howled, but <@name> walked on."
    "|3 a shared meal feeds two:At noon <@name> gave half a <food> to a <grim> stranger."
    "|2 truth outweighs gold:A <trader> dropped <count=n> coins, and <@name> gave all <@n> back."
    "|1 one more try is enough:Off a wall <@name> fell <count=n> times, and got up <@n> times.",
    "grim": "1:cold|1:wild|1:small|1:dark",
    "food": "2:loaf|1:pie",
    "trader": "2:baker|1:miller",
    "count": "4:two|3:three|2:seven",
    "found@wood": "4:Inside a log|3:Under roots|2:High in a nest",
    "found@lake": "4:Among lilies|3:On a sandbank|2:Below a pier",
    "found@farm": "4:Deep in hay|3:Behind a plough|2:In an old sack",
    "feast": "3:\nSo the|2:\nThe <@prev> came to <party>. The",
    "party": "3:tea|2:dinner|2:dance|2:sing",
}
# The chain of meetings: each leads to one more or to the ending; nobody is met twice in a row.
for _n in range(1, 4):
    _TEXTS[f"meeting{_n}"] = (
        f"1:<where> <@name{'.he' * (_n == 1)}> asked <mood> <helper{'@prev' * (_n > 1)}=prev> "
        f'<asked> <@colour> <@thing>. "<reply>, <call> <@kind>," said the <@prev><manner><more{_n}>'
    )
    _TEXTS[f"more{_n}"] = "2:\n<ending>" + f"|1: <meeting{_n + 1}>" * (_n < 3)
for _met in _HELPERS.split("|"):
    _TEXTS[f"helper@{_met[2:]}"] = f"{_HELPERS}|".replace(f"{_met}|", "").rstrip("|")

_TOKEN = re.compile(r"<(\w*)(?:@(\w+))?(?:\.(\w+))?(?:=(\w+))?>|([^<]+)")


def _options(text: str) -> Rule:
    """Read the options of a rule from its written form."""
    parts = [option.split(":", 1) for option in text.split("|")]
    total = sum(int(head.split()[0]) for head, _ in parts)
    options = []
    for head, template in parts:
        weight, _, key = head.partition(" ")
        tokens = tuple(plain or Slot(*slot) for *slot, plain in _TOKEN.findall(template))
        options.append((int(weight) / total, key or template, tokens))
    return tuple(options)


RULES: dict[str, Rule] = {name: _options(text) for name, text in _TEXTS.items()}
_START = RULES["story"][0][2]
_STEERING = set(re.findall(r"<\w+@(\w+)", " ".join(_TEXTS.values())))


def _known(token: Slot, memory: Mapping[str, str]) -> str:
    """Return what `token` repeats or, for a draw, the name of the rule that it draws from."""
    key = memory[token.slot] if token.slot else ""
    word = FACTS[token.fact][key] if token.fact else key
    return f"{token.rule}@{word}" if token.rule and word else token.rule or word


def _expand(
    template: Template, memory: dict[str, str], choose: Chooser, put: Callable[[str], object]
) -> float:
    """Give the plain text of a template to `put`, in order; return the bits of its choices."""
    total = 0.0
    memory = dict(memory)
    for token in template:
        if isinstance(token, str) or not token.rule:
            put(token if isinstance(token, str) else _known(token, memory))
            continue
        p, key, chosen = choose(RULES[_known(token, memory)])
        total += _expand(chosen, memory, choose, put) - math.log2(p)
        memory[token.keep] = key
    return total


def story(rng: random.Random) -> tuple[str, float]:
    """Draw a story; return its text and -log2 of the probability of that text, in bits."""
    parts: list[str] = []

    def choose(options: Rule) -> Option:
        ticket = rng.random()  # the last option also gets what rounding leaves over
        return next((o for o in options if (ticket := ticket - o[0]) < 0), options[-1])

    cost = _expand(_START, {}, choose, parts.append)
    return "".join(parts), cost


def bits(text: str) -> float:
    """Return -log2 of the probability of `text`, in bits; ValueError if it is not a story."""
    place = 0

    def choose(options: Rule) -> Option:
        for option in options:
            head = option[2][0]
            if len(options) == 1 or (isinstance(head, str) and text.startswith(head, place)):
                return option
        raise ValueError(f"not a story of the grammar: no choice fits at character {place}")

    def put(part: str) -> None:
        nonlocal place
        if not text.startswith(part, place):
            raise ValueError(f"not a story of the grammar: no {part!r} at character {place}")
        place += len(part)

    total = _expand(_START, {}, choose, put)
    if place != len(text):
        raise ValueError(f"not a story of the grammar: it should end at character {place}")
    return total


@cache
def _mean(tokens: Template, memory: frozenset[tuple[str, str]]) -> tuple[float, float]:
    """Return the exact mean bits and mean bytes of the rest of a template in a state of the story.

    The state `memory` has the key of a slot that steers choices. No choice depends on any other
    slot, so the state has only the rule that filled it: a repetition has the mean length then.
    """
    if not tokens:
        return 0.0, 0.0
    token, state, sums = tokens[0], dict(memory), [0.0, 0.0]
    if isinstance(token, Slot) and token.rule:
        rule = _known(token, state)
        for p, key, template in RULES[rule]:
            if token.keep:
                state[token.keep] = key if token.keep in _STEERING else rule
            inner, after = _mean(template, memory), _mean(tokens[1:], frozenset(state.items()))
            sums[0] += p * (inner[0] + after[0] - math.log2(p))
            sums[1] += p * (inner[1] + after[1])
        return sums[0], sums[1]
    mean_bits, mean_bytes = _mean(tokens[1:], memory)
    if isinstance(token, str):
        return mean_bits, mean_bytes + len(token)
    if token.slot in _STEERING:
        return mean_bits, mean_bytes + len(_known(token, state))
    lengths = (p * len(_known(token, {token.slot: key})) for p, key, _ in RULES[state[token.slot]])
    return mean_bits, mean_bytes + sum(lengths)


def entropy_bits() -> float:
    """Return the entropy of a story: the exact mean of its `bits`."""
    return _mean(_START, frozenset())[0]


def expected_bytes() -> float:
    """Return the exact mean length of a story, in bytes."""
    return _mean(_START, frozenset())[1]


def main(argv: list[str] | None = None) -> None:
    """Write stories as lines of JSON with `text` and `bits`; exit with status 2 on bad usage."""
    parser = argparse.ArgumentParser(description="Draw stories whose entropy is known exactly.")
    parser.add_argument("--stories", type=int, default=1600, help="how many (default 1600)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (default 0)")
    target = Path(__file__).resolve().parent / "stories" / "stories.jsonl"
    parser.add_argument("--output", type=Path, default=target, help="the file to write")
    options = parser.parse_args(argv)
    if options.stories < 1:
        parser.error("--stories must be at least 1")
    rng = random.Random(options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="ascii", newline="\n") as lines:
        for _ in range(options.stories):
            text, cost = story(rng)
            lines.write(json.dumps({"text": text, "bits": round(cost, 6)}) + "\n")


if __name__ == "__main__":
    main()
