"""Gates: `metric <= bound`, where the bound is a number, or the figure of the strongest `baseline`
or of a `previous` evaluation, with a margin or without.

A number is compared with the figure itself. A figure of the same units has noise of its own, so
that its difference is judged, by its bounds of 95 % confidence:

    <=  passes unless the figure is above the bound for certain: what is unclear passes
    <=  with a margin: passes if the figure is for certain not above the bound: unclear fails
    <   passes if the figure is below the bound for certain: unclear fails

and `>=`, `>` likewise, whichever way the metric is better.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigmodel_cli.artifacts.records import GateRecord
from bigmodel_cli.errors import UsageError, did_you_mean
from bigmodel_cli.tasks import Metric

if TYPE_CHECKING:
    from bigmodel_cli.evaluate.compare import Figures

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
RULE = re.compile(
    rf"\s*([\w@]+)\s*(<=|>=|<|>)\s*"
    rf"(?:(-?{NUMBER})|([A-Za-z_]+)\s*(?:([*+-])\s*({NUMBER})\s*(%?))?)\s*"
)
SOURCES = ("baseline", "previous")
FORMS = "a rule is METRIC<=NUMBER, METRIC<=baseline or METRIC<=previous+0.5% (or with >=, <, >)"


@dataclass(frozen=True)
class Rule:
    """`text` as the user wrote it. The bound is `number`, or `factor` times the figure of `source`
    plus `shift`; margin: whether the user gave one of these."""

    text: str
    metric: str
    compare: str
    number: float | None
    source: str
    factor: float
    shift: float
    margin: bool


def parse(texts: Sequence[str], metrics: Sequence[Metric], previous: bool) -> list[Rule]:
    """Reads rules; `previous`: whether there is an earlier evaluation. Raises UsageError."""
    known = {metric.name: ">=" if metric.higher_is_better else "<=" for metric in metrics}
    rules = []
    for text in texts:
        match = RULE.fullmatch(text)
        if not match:
            first = next(iter(known))
            raise UsageError(
                f"`--require {text}` is not a rule",
                f"{FORMS}; for example: --require '{first}{known[first]}baseline'",
            )
        metric, compare, number, source, sign, size, percent = match.groups()
        if metric not in known:
            raise UsageError(
                f"`--require {text}` names an unknown metric", did_you_mean(metric, known)
            )
        if source and source not in SOURCES:
            raise UsageError(
                f"`--require {text}`: `{source}` is not a bound", did_you_mean(source, SOURCES)
            )
        if sign == "*" and percent:
            raise UsageError(
                f"`--require {text}` is not a rule",
                f"write {source}*{size} without %, or {source}+{size}%",
            )
        if source == "previous" and not previous:
            raise UsageError(
                f"`--require {text}` needs an earlier evaluation", "add --against evaluation.json"
            )
        margin = float(size or 0) * (-1 if sign == "-" else 1) / (100 if percent else 1)
        if not math.isfinite(float(number or 0)) or not math.isfinite(margin):
            raise UsageError(
                f"`--require {text}` has a bound that is not a finite number",
                "give a smaller number",
            )
        factor = margin if sign == "*" else 1 + margin if percent else 1.0
        shift = 0.0 if sign == "*" or percent else margin
        rules.append(
            Rule(text, metric, compare, float(number) if number else None, source or "", factor,
                 shift, bool(sign))
        )  # fmt: skip
    return rules


def wrong_way(rules: Sequence[Rule], metrics: Sequence[Metric]) -> list[str]:
    """What is to be said of rules that a better model would fail."""
    higher = {metric.name: metric.higher_is_better for metric in metrics}
    return [
        f"`--require {rule.text}` fails a better model: "
        f"{'more' if higher[rule.metric] else 'less'} {rule.metric} is better"
        for rule in rules
        if rule.source and (rule.compare[0] == "<") == higher[rule.metric]
    ]


def judge(rules: Sequence[Rule], figures: Figures) -> list[GateRecord]:
    """Each rule's verdict: rule, passed, value, bound, the difference of these (`low`, `high`: its
    bounds of 95 % confidence each), and whether that was paired, unit by unit.

    Raises UsageError when a figure of `previous` or `baseline` is missing, or of another protocol.
    """
    return [_judge(rule, figures) for rule in rules]


def _judge(rule: Rule, figures: Figures) -> GateRecord:
    from bigmodel_cli.evaluate.bootstrap import Difference

    value = figures.value(rule.metric)
    paired = False
    if rule.number is not None:
        bound = rule.number
        found = Difference(value - bound, None, None)
        passed = COMPARE[rule.compare](value, bound)
    else:
        theirs = figures.other(rule.source, rule.metric)
        bound = theirs.value * rule.factor + rule.shift
        found, paired = figures.difference(rule.metric, theirs, rule.factor, rule.shift)
        passed = _holds(rule, found)
    known = not math.isnan(value)
    return GateRecord(
        rule=rule.text,
        passed=passed and known,
        value=value if known else None,
        bound=bound,
        difference=found.record() if known else None,
        paired=paired,
    )


def _holds(rule: Rule, found: Any) -> bool:
    """Whether a difference to another figure keeps a rule: see above."""
    certain = rule.margin or len(rule.compare) == 1
    upwards = rule.compare[0] == ">"
    end = found.least if certain == upwards else found.most
    return COMPARE[rule.compare](end, 0.0)
