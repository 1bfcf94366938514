"""Gates: `metric <= bound`, where the bound is a number, `baseline` or `previous`, also scaled."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import ArtifactError, UsageError, did_you_mean
from bigmodel_cli.tasks import Metric

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
RULE = re.compile(
    rf"\s*([\w@]+)\s*(<=|>=|<|>)\s*(?:(-?{NUMBER})|([A-Za-z_]+)\s*(?:\*\s*({NUMBER}))?)\s*"
)


@dataclass(frozen=True)
class Rule:
    """`text` as the user wrote it. The bound is `number`, or `factor` times `source`'s figure."""

    text: str
    metric: str
    compare: str
    number: float | None
    source: str
    factor: float


def parse(texts: Sequence[str], metrics: Sequence[Metric], previous: bool) -> list[Rule]:
    """Reads rules; `previous`: whether there is an earlier evaluation. Raises UsageError."""
    known = [metric.name for metric in metrics]
    rules = []
    for text in texts:
        match = RULE.fullmatch(text)
        if not match:
            raise UsageError(
                f"`--require {text}` is no rule",
                f"for example: --require '{known[0]}<=2.5' or '{known[0]}<=baseline'",
            )
        metric, compare, number, source, factor = match.groups()
        if metric not in known:
            raise UsageError(
                f"`--require {text}` names no metric of this task", did_you_mean(metric, known)
            )
        if source and source not in ("baseline", "previous"):
            raise UsageError(
                f"`--require {text}`: `{source}` is no bound",
                did_you_mean(source, ("baseline", "previous")),
            )
        if source == "previous" and not previous:
            raise UsageError(
                f"`--require {text}` needs an earlier evaluation", "say --against evaluation.json"
            )
        if not math.isfinite(float(number or 0)) or not math.isfinite(float(factor or 1)):
            raise UsageError(f"`--require {text}` has a bound beyond all numbers")
        rules.append(
            Rule(text, metric, compare, float(number) if number else None, source or "",
                 float(factor or 1))
        )  # fmt: skip
    return rules


def judge(
    rules: Sequence[Rule],
    metrics: Sequence[Metric],
    document: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Each rule's verdict: rule, passed, value, bound, and by how much it is missed.

    Raises UsageError when the earlier figure was measured by another protocol.
    """
    verdicts = []
    for rule in rules:
        metric = next(m for m in metrics if m.name == rule.metric)
        value = document["metrics"][rule.metric]["value"]
        if rule.number is not None:
            bound = rule.number
        elif rule.source == "baseline":
            entry = document["baseline"].get(rule.metric)
            if entry is None:
                raise UsageError(f"`{rule.text}`: no baseline gives `{rule.metric}`")
            bound = entry["value"] * rule.factor
        else:
            assert previous is not None
            bound = _earlier(metric, document, previous) * rule.factor
        value = math.nan if value is None else value
        passed = COMPARE[rule.compare](value, bound)
        verdicts.append(
            {
                "rule": rule.text,
                "passed": passed,
                "value": None if math.isnan(value) else value,
                "bound": bound,
                "missed_by": None if passed or math.isnan(value) else abs(value - bound),
            }
        )
    return verdicts


def _earlier(metric: Metric, document: Mapping[str, Any], previous: Mapping[str, Any]) -> float:
    try:
        theirs, value = previous["protocol"], previous["metrics"][metric.name]["value"]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not isinstance(theirs, dict):
            raise TypeError
    except (KeyError, TypeError):
        raise ArtifactError(
            f"the earlier evaluation has no `{metric.name}`", "give another file to --against"
        ) from None
    ours = document["protocol"]
    differing = [
        f"{key}: {theirs.get(key)} → {ours.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if key not in metric.ignores and ours.get(key) != theirs.get(key)
    ]
    if differing:
        raise UsageError(
            f"`{metric.name}` was measured otherwise before, so it cannot be compared: "
            + "; ".join(differing),
            "evaluate both on the same data in the same way",
        )
    return float(value)
