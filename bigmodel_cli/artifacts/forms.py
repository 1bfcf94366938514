"""What the JSON artifacts have to hold: which fields, and of which kinds.

A hash says that a file is what somebody wrote; only this says that it is what this program writes.
Fields that are not named here may hold anything. A name that ends in `?` may be missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from bigmodel_cli.config import TrainConfig
from bigmodel_cli.options import keys

MOST_NUMBER = 1 << 53  # what JSON's readers agree on


class Kind(NamedTuple):
    """A value of JSON: what it is called, and whether something is one."""

    name: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


Form = Kind | list[Any] | Mapping[str, Any]
TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number", lambda value: type(value) is int and 0 <= value <= MOST_NUMBER)
POSITIVE = Kind("a positive number", lambda value: _is_number(value) and value > 0)
NUMBER = Kind("a number", _is_number)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
STEP = Kind("a checkpoint's name", lambda value: bool(re.fullmatch(r"step-\d{8,18}", str(value))))
FIGURES = Kind(
    "numbers by their names, or null",
    lambda value: (
        value is None
        or (isinstance(value, dict) and all(x is None or _is_number(x) for x in value.values()))
    ),
)
CELL = Kind("text or a number", lambda value: isinstance(value, str) or _is_number(value))
ANY, SOME = "*", "+"  # in place of a field's name: whatever the names are; at least one


def maybe(kind: Kind) -> Kind:
    """The same, or null."""
    return Kind(f"{kind.name} or null", lambda value: value is None or kind.holds(value))


def one_of(names: Iterable[str]) -> Kind:
    known = tuple(names)
    return Kind("one of " + ", ".join(known), lambda value: value in known)


FILE = {"bytes": COUNT, "sha256": TEXT}
FILES = {ANY: FILE}
SHARDS = [{"name": TEXT, "examples": COUNT, **FILE}]
SPLIT = {"units": COUNT, "bytes": COUNT, "tokens": COUNT, "content": TEXT, "shards": SHARDS}
AMOUNT = {"rows": COUNT, "bytes": COUNT}
REASONS = {ANY: {**AMOUNT, "where": [TEXT]}}
DATA = {
    "task": TEXT,
    "unit": TEXT,
    "measure?": TEXT,
    "fingerprint": TEXT,
    "recipe": {
        "inputs": [{"name": TEXT, "sha256": TEXT, "named?": {ANY: maybe(TEXT)}}],
        "options": OBJECT,
    },
    "command": {"sources": [TEXT], "exclude": [TEXT]},
    "splits": {"train": SPLIT, "val": SPLIT, "test": SPLIT},
    "ledger": {"in": AMOUNT, "kept": AMOUNT, "dropped": REASONS, "removed": REASONS},
    "codec": FILES,
}
OPTIONS = {f"{k.name}?": maybe(NUMBER) for k in keys(TrainConfig) if k.type in (int, float)}
RUN = {
    "run": TEXT, "task": TEXT, "options": OPTIONS, "fingerprint": TEXT, "data_fingerprint": TEXT,
    "origin?": maybe(TEXT), "model": OBJECT, "codec": FILES,
    "hardware": {"name": TEXT, "device": TEXT},
    "resolved": {
        "batch_size": POSITIVE, "micro_batch": POSITIVE, "threads": POSITIVE,
        "precision": one_of(("fp32", "bf16")), "learning_rate": POSITIVE, "device": TEXT,
        "length": {"steps": maybe(COUNT), "seconds": maybe(POSITIVE), "text": TEXT},
    },
}  # fmt: skip
BEST = {"name": STEP}
CHECKPOINT = {
    "step": COUNT, "tokens": COUNT, "elapsed": NUMBER, "reserve?": NUMBER, "finished?": FLAG,
    "decay_began?": maybe(COUNT), "best?": {"name?": STEP, "value?": NUMBER, "loss?": NUMBER},
    "keep?": COUNT, "log_bytes?": COUNT, "files": FILES, "validation?": FIGURES,
    "allowance?": {"rows": maybe(COUNT), "spent": NUMBER, "saving": NUMBER, "pace": NUMBER},
}  # fmt: skip
EVALUATION = {
    "task": TEXT, "run": TEXT, "checkpoint": TEXT, "split": TEXT, "unit": TEXT,
    "fingerprint": TEXT, "data_fingerprint": TEXT, "weights": TEXT, "protocol": OBJECT,
    "metrics": {SOME: {"value": maybe(NUMBER), "low": maybe(NUMBER), "high": maybe(NUMBER),
                       "n": COUNT, "higher_is_better": FLAG}},
    "baseline": {ANY: {"value": NUMBER, "name": TEXT, "model_is?": TEXT}},
    "tables?": [{"title": TEXT, "header": [TEXT], "rows": [[CELL]]}],
    "baselines": {ANY: {ANY: maybe(NUMBER)}},
    "gates": [{"rule": TEXT, "passed": FLAG, "value": maybe(NUMBER)}],
    "samples": [{"prompt": TEXT, "output": TEXT, "reference": TEXT}],
    "environment": OBJECT, "statistics?": FILE,
}  # fmt: skip
PROOF = {"proof": TEXT}
RECEIPT = {
    "split": TEXT,
    "run": TEXT,
    "checkpoint": TEXT,
    "weights": TEXT,
    "evaluated": FLAG,
    "bigmodel": PROOF,
    "transformers": PROOF,
    "precision?": {"name": TEXT, "metric": TEXT, "terms": COUNT},
}
BUNDLE = {
    "name": TEXT,
    "task": TEXT,
    "model": OBJECT,
    "layout": one_of(("huggingface", "native")),
    "precision?": one_of(("fp32", "bf16", "int8")),
    "fingerprint": TEXT,
    "training": TEXT,
    "data_fingerprint": TEXT,
    "files": FILES,
}


def problem(value: Any, form: Form, name: str = "") -> str:
    """The first field that is not what the form says, in words; nothing if all are."""
    if isinstance(form, Kind):
        return "" if form.holds(value) else f"`{name}` must be {form.name}"
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"`{name}` must be a list"
        items: Iterable[tuple[str, Any, Form]] = (
            (f"{name}[{place}]", item, form[0]) for place, item in enumerate(value)
        )
    else:
        if not isinstance(value, dict):
            return f"`{name}` must be an object"
        within = f"{name}." if name else ""
        wild = next((key for key in (ANY, SOME) if key in form), "")
        if wild == SOME and not value:
            return f"`{name}` must not be empty"
        if wild:
            items = ((f"{within}{key}", item, form[wild]) for key, item in value.items())
        else:
            wanted = {key.removesuffix("?"): key for key in form}
            missing = [key for key, name in wanted.items() if key == name and key not in value]
            if missing:
                return f"`{within}{missing[0]}` is missing"
            items = (
                (f"{within}{key}", value[key], form[name])
                for key, name in wanted.items()
                if key in value
            )
    return next(filter(None, (problem(item, inner, where) for where, item, inner in items)), "")
