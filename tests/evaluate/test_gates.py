"""Gates and verdicts: what passes, what fails, how often by chance, and what is not compared."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from bigmodel_cli.artifacts.records import (
    BaselineRecord,
    DifferenceRecord,
    EarlierEvaluation,
    Evaluation,
    GateRecord,
    MetricRecord,
    as_json,
)
from bigmodel_cli.artifacts.statistics import Collector, Statistics, UnitStatistics, identify
from bigmodel_cli.errors import UsageError
from bigmodel_cli.evaluate import gates
from bigmodel_cli.evaluate.bootstrap import interval, resample
from bigmodel_cli.evaluate.compare import Earlier, Figures
from bigmodel_cli.tasks import Metric
from bigmodel_cli.tasks.metrics import exponential, ratio
from tests.conftest import Cli
from tests.stages import bigmodel

METRICS = (
    ratio("bits_per_byte", 0, 1, higher_is_better=False, ignores=("tokenization",)),
    ratio("accuracy", 2, 1, higher_is_better=True),
)
RUN = "work/runs/default"
PROTOCOL = {"data": "a", "tokenization": "t"}


def statistics(bits: NDArray[Any], sizes: NDArray[Any], hits: NDArray[Any]) -> Statistics:
    collector = Collector(len(sizes), 3)
    collector.add(np.arange(len(sizes)), np.stack([bits, sizes, hits], 1).astype(float))
    return collector.statistics()


def evaluation(found: Statistics, **protocol: str) -> Evaluation:
    sums = found.sums()
    draws = resample({"m": found}, METRICS, 0)["m"]
    values = {}
    for metric in METRICS:
        low, high = interval(draws, metric.name, found.units)
        values[metric.name] = MetricRecord(
            value=float(metric.value(sums)),
            low=low,
            high=high,
            n=found.units,
            higher_is_better=metric.higher_is_better,
        )
    names = ("task", "run", "checkpoint", "split", "data_fingerprint", "fingerprint", "weights")
    return Evaluation(
        metrics=values,
        unit="documents",
        protocol={**PROTOCOL, **protocol},
        baseline={},
        baselines={"b": {}},
        samples=[],
        environment={},
        gates=[],
        **dict.fromkeys(names, ""),
    )


def units(count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 200, count).astype(float)
    return {"bits": sizes * random.normal(2.0, 0.2, count), "sizes": sizes,
            "hits": sizes * random.uniform(0.4, 0.6, count)}  # fmt: skip


def judged(
    rule: str, ours: Statistics, theirs: Statistics, *, paired: bool = True,
    ids: tuple[NDArray[Any], NDArray[Any]] | None = None, **protocol: str,
) -> GateRecord:  # fmt: skip
    """One rule's verdict, with `theirs` as what was before and as the baseline."""
    mine, other = ids or (np.arange(ours.units, dtype=np.uint64),) * 2
    before = evaluation(theirs, **protocol)
    baseline = {
        name: BaselineRecord(value=entry.value or 0.0, name="b")
        for name, entry in before.metrics.items()
    }
    found = replace(evaluation(ours), baseline=baseline)
    own = UnitStatistics(mine, ours, {"b": theirs})
    beside = UnitStatistics(other, theirs, {}) if paired else None
    earlier = Earlier(
        Path("main.json"), msgspec.convert(as_json(before), EarlierEvaluation), beside, ""
    )
    figures = Figures(METRICS, found)
    figures.resample(own, earlier, 0, lambda _: None)
    return gates.judge(gates.parse([rule], METRICS, True), figures)[0]


@pytest.fixture(scope="module")
def pair() -> tuple[Statistics, Statistics]:
    """A model, and one before it whose bits are 1 % fewer on each unit, and hits 1 % more."""
    known = units(200)
    before = {**known, "bits": known["bits"] * 0.99, "hits": known["hits"] * 1.01}
    return statistics(**known), statistics(**before)


@pytest.mark.parametrize("source", ["previous", "baseline"])
@pytest.mark.parametrize(
    ("rule", "passed"),
    [
        ("bits_per_byte<=2.5", True), ("bits_per_byte<1.5", False), ("accuracy > .1e0", True),
        # 1 % worse on every unit: certain
        ("bits_per_byte<={}", False), ("bits_per_byte<{}", False), ("bits_per_byte>={}", True),
        ("bits_per_byte>{}", True),
        ("accuracy>={}", False), ("accuracy>{}", False), ("accuracy<={}", True),
        ("accuracy<{}", True),
        # within a margin
        ("bits_per_byte<={}+2%", True), ("bits_per_byte<= {} * 1.02 ", True),
        ("bits_per_byte<={}+0.5%", False), ("bits_per_byte<={}*1.005", False),
        ("bits_per_byte<={}+0.03", True), ("bits_per_byte<={}+0.01", False),
        ("accuracy>={}-2%", True), ("accuracy>={}-0.5%", False), ("accuracy>={}*0.98", True),
        ("accuracy>={}-0.01", True), ("accuracy>={}-0.001", False),
        # better by at least so much
        ("bits_per_byte<={}-0.5%", False), ("accuracy>={}+0.5%", False),
    ],
)  # fmt: skip
def test_rules_on_a_certain_difference(
    pair: tuple[Statistics, Statistics], rule: str, source: str, passed: bool
) -> None:
    gate = judged(rule.format(source), *pair)
    assert gate.passed is passed
    metric = rule.split("<")[0].split(">")[0].strip()
    value = float(next(m for m in METRICS if m.name == metric).value(pair[0].sums()))
    assert gate.value == pytest.approx(value)
    assert gate.difference.value == pytest.approx(value - gate.bound)
    assert gate.paired is ("{}" in rule)
    if "{}" in rule:
        assert gate.difference.low <= gate.difference.value + 1e-9
        assert gate.difference.high >= gate.difference.value - 1e-9
    else:
        assert gate.difference.low is None


@pytest.mark.parametrize(
    ("rule", "passed"),
    [("bits_per_byte<=previous", True), ("bits_per_byte>=previous", True),
     ("bits_per_byte<previous", False), ("bits_per_byte>previous", False),
     ("bits_per_byte<=previous+0.1%", False), ("bits_per_byte<=previous+20%", True)],
)  # fmt: skip
def test_what_is_unclear_passes_without_a_margin_only(rule: str, passed: bool) -> None:
    known = units(100)
    shaken = known["bits"] * (1 + 0.05 * (-1.0) ** np.arange(100))  # to and fro
    ours, theirs = statistics(**known), statistics(**{**known, "bits": shaken})
    gate = judged(rule, ours, theirs)
    assert gate.passed is passed
    if "%" not in rule:
        assert gate.difference.low < 0 < gate.difference.high


@pytest.mark.parametrize("rule", ["bits_per_byte<=previous", "bits_per_byte<=previous+0.5%"])
def test_a_model_passes_against_itself(rule: str) -> None:
    same = statistics(**units(50))
    gate = judged(rule, same, same)
    assert gate.passed
    assert not judged("bits_per_byte<previous", same, same).passed
    plain = judged("bits_per_byte<=previous", same, same).difference
    assert plain == DifferenceRecord(value=0.0, low=0.0, high=0.0)


def test_the_last_bits_of_a_sum_are_no_difference() -> None:
    known = units(80)
    shaken = {**known, "bits": known["bits"] * (1 + 1e-8)}  # every unit a little worse
    assert judged("bits_per_byte<=previous", statistics(**shaken), statistics(**known)).passed


def test_units_in_another_order_are_the_same_units(pair: tuple[Statistics, Statistics]) -> None:
    ids = identify(f"document {i % 190}".encode() for i in range(200))  # some twice
    assert len(set(ids.tolist())) == 200
    order = np.random.default_rng(0).permutation(200)
    moved = pair[1].take(order)
    gate = judged("bits_per_byte<=previous", pair[0], moved, ids=(ids, ids[order]), data="b")
    plain = judged("bits_per_byte<=previous", *pair)
    assert gate.paired
    assert as_json(gate.difference) == pytest.approx(as_json(plain.difference), rel=1e-9)
    assert not gate.passed


def test_other_units_are_refused_with_their_counts(pair: tuple[Statistics, Statistics]) -> None:
    mine, other = np.arange(200, dtype=np.uint64), np.arange(50, 250, dtype=np.uint64)
    with pytest.raises(UsageError, match="150 of its 200 are among the 200") as caught:
        judged("bits_per_byte<=previous", *pair, ids=(mine, other), data="b")
    assert "main.json" in caught.value.message
    # the same data that a lossy tokenizer told otherwise are in the same order
    gate = judged("bits_per_byte<=previous", *pair, ids=(mine, other), tokenization="x")
    assert gate.paired


def test_figures_of_different_protocols_are_refused(pair: tuple[Statistics, Statistics]) -> None:
    with pytest.raises(UsageError, match="data: b → a"):
        judged("bits_per_byte<=previous", *pair, paired=False, data="b")
    other = {"tokenization": "another"}
    assert judged("bits_per_byte>=previous", *pair, **other).passed  # bytes are bytes
    with pytest.raises(UsageError, match="tokenization"):
        judged("accuracy>=previous", *pair, **other)


def test_without_its_statistics_an_earlier_figure_has_the_noise_of_its_interval(
    pair: tuple[Statistics, Statistics],
) -> None:
    gate = judged("bits_per_byte<=previous", *pair, paired=False)
    assert gate.passed  # 1 % is nothing beside the noise of 200 units
    assert not gate.paired
    spread = gate.difference.high - gate.difference.low
    intervals = [evaluation(part).metrics["bits_per_byte"] for part in pair]
    deviations = [(i.high - i.low) / (2 * 1.96) for i in intervals]
    assert spread == pytest.approx(2 * 1.645 * math.hypot(*deviations), rel=0.1)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("bits_per_bite<=2", "bits_per_byte"),
        ("bits_per_byte=2", "is not a rule"),
        ("bits_per_byte<=basline", "baseline"),
        ("bits_per_byte<=2*3", "is not a rule"),
        ("bits_per_byte<=2+1%", "is not a rule"),
        ("bits_per_byte<=previous+", "is not a rule"),
        ("bits_per_byte<=previous*101%", "previous+101%"),
        ("bits_per_byte<=previous+1e999", "finite"),
        ("", "is not a rule"),
        ("bits_per_byte<=previous", "--against"),
    ],
)
def test_bad_rules_are_refused_with_a_hint(rule: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        gates.parse([rule], METRICS, "previous+" in rule or "*" in rule)
    assert message in caught.value.message + caught.value.hint


# How often chance decides -------------------------------------------------------------------------


def simulated(
    runs: int, count: int, effect: float, metric: str, correlation: float, seed: int
) -> tuple[dict[str, list[float]], float]:
    """Pairs of evaluations of the same units, whose figures differ by `effect` in truth: the
    bounds of each pair's difference, and its standard deviation."""
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {"low": [], "high": [], "value": []}
    for run in range(runs):
        sizes = random.lognormal(4, 0.7, count).round() + 1
        common = random.normal(0, 0.3, count) * math.sqrt(correlation)
        rest = math.sqrt(1 - correlation)
        levels = [2 + common + rest * random.normal(0, 0.3, count) for _ in range(2)]
        hits = [random.random(count) < 0.5 + c / 3 for c in (common, common)]
        theirs = statistics(levels[0] * sizes, sizes, hits[0] * sizes)
        ours = statistics((levels[1] + effect) * sizes, sizes, hits[1] * sizes)
        draws = resample({"a": ours, "b": theirs}, METRICS, run)
        judge = next(m for m in METRICS if m.name == metric)
        from bigmodel_cli.evaluate.bootstrap import difference

        values = [float(judge.value(part.sums())) for part in (ours, theirs)]
        bounds = difference(*values, count, draws["a"][metric], draws["b"][metric])
        for name in found:
            found[name].append(getattr(bounds, name))
    return found, float(np.std(found["value"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "metric", "correlation"),
    [(30, "bits_per_byte", 0.9), (200, "bits_per_byte", 0.0), (100, "accuracy", 0.9)],
)
def test_equal_models_are_called_worse_in_about_5_of_100_runs(
    count: int, metric: str, correlation: float
) -> None:
    found, _ = simulated(1000, count, 0.0, metric, correlation, 7)
    worse, better = (np.array(found["low"]) > 0).mean(), (np.array(found["high"]) < 0).mean()
    assert 0.03 <= worse <= 0.07
    assert 0.03 <= better <= 0.07


@pytest.mark.slow
def test_power_and_noninferiority_are_what_the_theory_says() -> None:
    """By the normal distribution: a difference of d is seen with the chance Φ(d/σ − 1.645)."""
    effect = 0.03
    found, deviation = simulated(1000, 150, effect, "bits_per_byte", 0.7, 11)
    power = (np.array(found["low"]) > 0).mean()
    expected = 0.5 * (1 + math.erf((effect / deviation - 1.645) / math.sqrt(2)))
    assert 0.3 < expected < 0.9
    assert power == pytest.approx(expected, abs=0.05)
    # a model that is worse by just the margin passes in about 5 of 100 runs
    passed = (np.array(found["high"]) <= effect).mean()
    assert 0.03 <= passed <= 0.07


@pytest.mark.slow
def test_the_bootstrap_covers_the_truth_about_95_times_in_100() -> None:
    """Ratios of sums over units of unequal size, whose true value is known."""
    random = np.random.default_rng(3)
    metric = ratio("r", 0, 1, higher_is_better=True)
    for count in (8, 60):
        covered = 0
        for trial in range(400):
            sizes = random.integers(1, 20, count).astype(float)
            hits = random.binomial(sizes.astype(int), 0.3).astype(float)
            found = statistics(hits, sizes, sizes)
            low, high = interval(resample({"m": found}, [metric], trial)["m"], "r", count)
            assert low is not None
            assert high is not None
            covered += low <= 0.3 <= high
        assert 0.92 <= covered / 400 <= 0.98


def test_one_unit_gives_no_interval() -> None:
    one = statistics(np.ones(1), np.ones(1), np.ones(1))
    metrics: list[Metric] = [exponential("e", METRICS[0])]
    assert interval(resample({"m": one}, metrics, 0)["m"], "e", 1) == (None, None)
    gate = judged("bits_per_byte<=previous", one, one)
    assert (gate.passed, gate.difference.low, gate.paired) == (True, None, False)


# The command -------------------------------------------------------------------------------------


def keep(cli: Cli, *names: str) -> None:
    """Keeps the evaluation as main.json, with the files of these ends."""
    for name in names:
        shutil.copy(cli.cwd / RUN / f"evaluation.{name}", cli.cwd / f"main.{name}")


RULE = ("--against", "main.json", "--require", "bits_per_byte<=previous")


@pytest.mark.slow
def test_an_evaluation_passes_against_itself_paired(cli: Cli) -> None:
    keep(cli, "json", "safetensors")
    for path in ("main.json", f"{RUN}/evaluation.json"):
        for more in ((), ("--force",)):
            rule = ("--against", path, *RULE[2:], "--require", "bits_per_byte<=previous+0.5%")
            found = json.loads(cli.works("evaluate", *rule, *more, "--json").out)["gates"]
            assert [(g["passed"], g["paired"]) for g in found] == [(True, True)] * 2
            assert found[0]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_an_earlier_evaluation_without_statistics_is_judged_unpaired_aloud(cli: Cli) -> None:
    keep(cli, "json")
    done = cli.works("evaluate", *RULE, "--json")
    assert "`main.json` has no `main.safetensors` beside it" in done.err
    gate = json.loads(done.out)["gates"][0]
    assert (gate["passed"], gate["paired"]) == (True, False)
    assert gate["difference"]["low"] < 0 < gate["difference"]["high"]


@pytest.mark.slow
def test_damaged_statistics_are_named(cli: Cli) -> None:
    keep(cli, "json", "safetensors")
    data = bytearray((cli.cwd / "main.safetensors").read_bytes())
    data[-1] ^= 1
    (cli.cwd / "main.safetensors").write_bytes(data)
    cli.fails("evaluate", *RULE, code=5, says=["main.safetensors"])
    path = cli.cwd / RUN / "evaluation.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    done = cli.works("evaluate")
    assert "evaluation.safetensors" in done.err
    assert "up to date" not in done.out
    assert path.read_bytes() == whole


def test_against_without_a_rule_that_needs_it_is_said(cli: Cli) -> None:
    keep(cli, "json", "safetensors")
    done = cli.works("evaluate", "--against", "main.json")
    assert "no --require compares with `previous`" in done.err


def test_what_verdicts_say_is_what_gates_say(cli: Cli) -> None:
    rules = [f"bits_per_byte{compare}baseline" for compare in ("<=", "<")]
    done = cli("evaluate", "--json", "--require", rules[0], "--require", rules[1])
    found = json.loads(done.out)
    passed = tuple(gate["passed"] for gate in found["gates"])
    said = {(False, False): "worse", (True, False): "unclear", (True, True): "better"}[passed]
    entry = found["baseline"]["bits_per_byte"]
    assert entry["model_is"] == said
    assert entry["difference"] == found["gates"][0]["difference"]
    assert f"{said}" in (cli.cwd / RUN / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_a_model_that_loses_is_trained_longer_by_the_command_that_is_named(cli: Cli) -> None:
    done = cli.works("evaluate", "--force")
    advice = re.search(r"train it longer: bigmodel (.*--run (\S+).*)\n", done.out)
    assert advice
    cli.works(*shlex.split(advice[1]))
    cli.works("evaluate", "--run", advice[2])


@pytest.mark.slow
def test_a_training_run_that_restarts_takes_the_statistics_with_it(cli: Cli) -> None:
    assert (cli.cwd / RUN / "evaluation.safetensors").exists()
    cli.train("--restart")
    assert not (cli.cwd / RUN / "evaluation.safetensors").exists()


@pytest.mark.slow
def test_help_says_what_unclear_means() -> None:
    text = " ".join(bigmodel("evaluate", "--help", env={"COLUMNS": "200"}).stdout.split())
    for words in ("compares the figure itself", "unclear passes", "unclear fails"):
        assert words in text


def test_a_gate_the_wrong_way_round_is_said() -> None:
    metrics = [
        ratio("accuracy", 0, 1, higher_is_better=True),
        ratio("loss", 0, 1, higher_is_better=False),
    ]
    texts = ["accuracy<=baseline", "loss>previous", "accuracy>=baseline", "loss<=previous+1%",
             "accuracy<=0.99"]  # fmt: skip
    said = gates.wrong_way(gates.parse(texts, metrics, previous=True), metrics)
    assert [line.partition(" fails")[0] for line in said] == [
        "`--require accuracy<=baseline`", "`--require loss>previous`"
    ]  # fmt: skip
    with pytest.raises(UsageError) as caught:
        gates.parse(["x"], metrics, previous=False)
    assert "'accuracy>=baseline'" in caught.value.hint
