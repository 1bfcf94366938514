"""Evaluations that are stopped, or score a sample; and the statistics that they keep."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmodel_cli.artifacts.records import File, as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.statistics import (
    Collector,
    Statistics,
    UnitStatistics,
    identify,
    pack,
    unpack,
)
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import EvaluateConfig
from bigmodel_cli.errors import ArtifactError, StoppedError
from bigmodel_cli.evaluate import scoring
from bigmodel_cli.evaluate.run import run
from bigmodel_cli.events import Context, Note, Progress
from bigmodel_cli.tasks import load_task
from tests.conftest import Cli
from tests.stages import evaluate, prepare, stories, train

RUN = "work/runs/default"
WORDS = {"dog": "狗", "cat": "猫", "eats": "吃", "sees": "看见", "fish": "鱼", "birds": "鸟"}


def pairs(folder: Path) -> Path:
    """Sentences with their Chinese translations."""
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for i in range(300):
            words = [[*WORDS][i * k % 6] for k in (1, 5, 7, 11)] + [str(i)]
            target = "".join(WORDS.get(word, word) for word in words)
            file.write(json.dumps({"source": " ".join(words), "target": target}) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    work = folder / "work"
    prepare(work, pairs(folder), vocab_size=300, test="0.3")
    train(work, task={"context": 32}, layers=1)
    return work


# What is kept ------------------------------------------------------------------------------------


def dense(found: Statistics) -> np.ndarray[Any, Any]:
    whole = found.matrix()
    return np.asarray(whole if isinstance(whole, np.ndarray) else whole.toarray())


def test_statistics_come_back_as_they_were(tmp_path: Path) -> None:
    """Whole numbers, fractions, none, and figures that a baseline does not have."""
    random = np.random.default_rng(0)
    table = np.zeros((100, 9))
    table[:, 0] = random.normal(size=100)
    table[:, 1] = random.integers(0, 70_000, 100)
    table[random.integers(0, 100, 20), 2] = 1
    table[:, 3] = np.nan
    table[7, 5] = -3
    table[:, 6] = 255
    table[:, 7] = np.float32(0.1)
    table[3, 8] = 2.0**40
    collector = Collector(100, 9)
    for part in np.array_split(random.permutation(100), 7):
        collector.add(part, table[part] / 2)
        collector.add(np.repeat(part, 2), np.repeat(table[part] / 4, 2, axis=0))
    found = collector.statistics()
    np.testing.assert_allclose(dense(found), table, rtol=1e-15)
    back = unpack("m", pack("m", found), 100, 9)
    np.testing.assert_array_equal(dense(back), dense(found))
    ids = identify([b"a", b"b", b"a"] + [bytes([i]) for i in range(97)])
    assert len(set(ids.tolist())) == 100
    path = tmp_path / "evaluation.safetensors"
    info = UnitStatistics(ids, found, {"most/popular": found}).write(path)
    read = UnitStatistics.read(path, info)
    np.testing.assert_array_equal(dense(read.baselines["most/popular"]), dense(found))
    assert read.ids.tolist() == ids.tolist()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"evaluation\.safetensors"):
        UnitStatistics.read(path, info)


@pytest.mark.slow
def test_many_classes_take_little_room(tmp_path: Path) -> None:
    """4,096 classes: 12,321 statistics of a unit, of which it has seven."""
    count, columns = 2000, 3 + 3 * 4096 + 30
    random = np.random.default_rng(0)
    collector = Collector(count, columns)
    for first in range(0, count, 50):
        part = np.zeros((50, columns))
        for row in part:
            row[0] = random.random()
            row[1 + random.integers(0, columns - 1, 6)] = 1
        collector.add(np.arange(first, first + 50), part)
    found = collector.statistics()
    path = tmp_path / "evaluation.safetensors"
    UnitStatistics(np.arange(count, dtype=np.uint64), found, {}).write(path)
    assert path.stat().st_size < 64 * count + 24 * 4096 * 3
    assert found.sums().sum() == pytest.approx(dense(found).sum())


def test_a_unit_has_one_id_in_all_data_that_hold_it(trained: Path, tmp_path: Path) -> None:
    """Whatever its split, order and tokenizer."""

    def ids(work: Path) -> set[int]:
        place = Workdir(work)
        data = place.read_data()
        task = load_task(place.preprocessor, "")
        found: list[int] = []
        for split in data.splits.values():
            found += identify(task.contents(Split(place.data, split.shards))).tolist()
        return set(found)

    prepare(tmp_path / "b", pairs(tmp_path), tokenizer="bytes", seed=1)
    assert len(ids(trained)) == 300
    assert ids(trained) == ids(tmp_path / "b")
    texts = stories(tmp_path, 60)
    prepare(tmp_path / "c", texts, vocab_size=300)
    prepare(tmp_path / "d", texts, tokenizer="bytes", seed=1)
    assert ids(tmp_path / "c") == ids(tmp_path / "d")


# Stopped and continued ---------------------------------------------------------------------------


class Killed(BaseException):
    """As a kill −9: nothing is saved after it."""


def outcome(work: Path) -> dict[str, bytes]:
    folder = Workdir(work).run("default").folder
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name.startswith("eval")}


def run_until(
    work: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple[str, float], killed: bool
) -> list[str]:
    """Evaluates until `done` units or more of a phase are there; gives the phases seen."""
    context = Context()
    seen: list[str] = []

    def emit(event: Note | Progress) -> None:
        if isinstance(event, Note):
            seen.append(event.message)
            return
        seen.append(event.phase)
        if event.phase == moment[0] and event.done >= moment[1]:
            if killed:
                raise Killed
            context.stop.on_signal(signal.SIGTERM)

    config = EvaluateConfig(device="cpu", threads=1, force=True)
    told = Context(emit, context.stop)
    monkeypatch.setattr(scoring, "SAVE_SECONDS", 0.0)
    with pytest.raises(Killed if killed else StoppedError):
        run(config, Workdir(work), "default", told)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_stopped_evaluation_continues_to_the_same_bytes(
    trained: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(scoring, "TOGETHER", 16)
    monkeypatch.setattr(scoring, "SAVE_SHARE", 0)
    evaluate(trained, threads=1, force=True)
    whole = outcome(trained)
    assert sorted(whole) == ["evaluation.json", "evaluation.safetensors"]
    for path in (
        Workdir(trained).run("default").statistics,
        Workdir(trained).run("default").evaluation,
    ):
        path.unlink()
    stops = [("score", 20), ("score", 60), ("answer", 17), ("answer", 70), ("baselines", 1),
             ("samples", 0), ("bootstrap", 0)]  # fmt: skip
    for number, moment in enumerate(stops):
        seen = run_until(trained, monkeypatch, moment, killed)
        assert sorted(outcome(trained)) == ["evaluation.partial.safetensors"]
        if number:
            assert any("continuing the evaluation" in message for message in seen)
    seen.clear()
    context = Context(lambda e: seen.append(e.phase if isinstance(e, Progress) else e.message))
    run(EvaluateConfig(device="cpu", threads=1), Workdir(trained), "default", context)
    assert not {"answer", "baselines"} & {*seen}  # which were done
    assert outcome(trained) == whole


@pytest.mark.slow
def test_what_is_left_of_another_evaluation_is_not_continued(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "TOGETHER", 16)
    evaluate(trained, threads=1, force=True)
    whole = outcome(trained)
    notes: list[str] = []
    context = Context(lambda e: notes.append(e.message) if isinstance(e, Note) else None)
    place = Workdir(trained).run("default")
    for change in ("another", "flipped"):
        run_until(trained, monkeypatch, ("answer", 17), False)
        if change == "flipped":
            data = bytearray(place.partial.read_bytes())
            data[-3] ^= 1
            place.partial.write_bytes(data)
        limit = 30 if change == "another" else None
        config = EvaluateConfig(device="cpu", threads=1, force=True, limit=limit)
        run(config, Workdir(trained), "default", context)
        assert not place.partial.exists()
    assert "it was another evaluation" in notes[0]
    assert "its hash differs" in notes[1]
    assert outcome(trained) == whole


@pytest.mark.slow
def test_a_signal_stops_the_command_and_the_same_command_continues(cli: Cli) -> None:
    """The program itself, at several moments."""
    plain = json.loads(cli.works("evaluate", "--force", "--json").out)
    codes = set()
    for wait in (1.5, 2.5, 3.0, 3.5, 4.0, 5.0, 7.0):
        process = cli.start("evaluate", "--force", "--threads", "1")
        time.sleep(wait)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert b"Traceback" not in errors
        codes.add(process.returncode)
    assert codes <= {0, 75, -signal.SIGTERM}, codes  # the last: before the program's first lines
    again = json.loads(cli.works("evaluate", "--force", "--json").out)
    assert again == plain
    assert not (cli.cwd / RUN / "evaluation.partial.safetensors").exists()


# Samples -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sample_is_the_same_for_model_answers_and_baselines(trained: Path) -> None:
    found = as_json(evaluate(trained, limit=20, force=True).evaluation)
    assert {metric["n"] for metric in found["metrics"].values()} == {20}
    assert found["protocol"]["sample"] == "20 of 91 pairs, drawn by --seed 0"
    place = Workdir(trained).run("default")
    own = UnitStatistics.read(place.statistics, File(**found["statistics"]))
    assert {own.model.units, *(part.units for part in own.baselines.values())} == {20}
    whole = evaluate(trained, force=True)
    every = UnitStatistics.read(place.statistics, whole.evaluation.statistics)
    assert "sample" not in whole.evaluation.protocol
    assert set(own.ids.tolist()) < set(every.ids.tolist())
    places = {unit: row for row, unit in enumerate(every.ids.tolist())}
    rows = [places[unit] for unit in own.ids.tolist()]
    for name in own.baselines:  # each unit has what it has in the whole
        np.testing.assert_array_equal(
            dense(own.baselines[name]), dense(every.baselines[name])[rows]
        )
    np.testing.assert_allclose(dense(own.model)[:, 0], dense(every.model)[rows, 0], rtol=1e-4)
    assert (
        evaluate(trained, limit=1000, force=True).evaluation.protocol == whole.evaluation.protocol
    )


@pytest.mark.slow
def test_parts_of_a_long_text_are_scored_whole(tmp_path: Path) -> None:
    """Each token of a drawn part is a target, though the part before it was not drawn."""
    path = tmp_path / "long.txt"
    path.write_text("".join(f"Line {i} says 你好 {i * i}.\n" for i in range(4000)), "utf-8")
    work = tmp_path / "work"
    prepare(work, path, tokenizer="bytes", test="0.3")
    train(work, steps=1)
    total = Workdir(work).read_data().splits["test"].units
    assert total >= 6
    found = as_json(evaluate(work, limit=4).evaluation)
    place = Workdir(work)
    own = UnitStatistics.read(place.run("default").statistics, File(**found["statistics"]))
    _, tokens, size, _ = dense(own.model).T
    assert ((tokens - size >= 0) & (tokens - size <= 1)).all()  # bytes, and perhaps the end


@pytest.mark.slow
def test_other_samples_are_not_compared(cli: Cli) -> None:
    plain = json.loads(cli.works("evaluate", "--limit", "5", "--json").out)
    assert plain["metrics"]["loss"]["n"] == 5
    for name in ("json", "safetensors"):
        (cli.cwd / f"main.{name}").write_bytes((cli.cwd / RUN / f"evaluation.{name}").read_bytes())
    rule = ("--against", "main.json", "--require", "loss<=previous")
    cli.works("evaluate", "--limit", "5", *rule)
    message = cli.fails("evaluate", *rule, code=2, says=["`main.json`", "5 of its 5"])
    assert "--limit" in message.error()[1]
    cli.fails("evaluate", "--limit", "5", "--seed", "1", *rule, code=2, says=["of its 5"])
    cli.fails("evaluate", "--limit", "0", code=2, says=["limit"])
    (cli.cwd / "main.safetensors").unlink()
    cli.fails("evaluate", *rule, code=2, says=["sample: 5 of "])


@pytest.mark.slow
def test_every_phase_shows_progress(trained: Path) -> None:
    seen: dict[str, list[Progress]] = {}
    context = Context(
        lambda e: seen.setdefault(e.phase, []).append(e) if isinstance(e, Progress) else None
    )
    config = EvaluateConfig(device="cpu", threads=1, force=True)
    run(config, Workdir(trained), "default", context)
    assert {"score", "answer", "baselines", "samples", "bootstrap"} <= {*seen}
    for phase in ("score", "answer", "bootstrap"):
        assert seen[phase][-1].done == seen[phase][-1].total
    details = [event.detail for event in seen["baselines"]]
    assert details == ["", "last copy", "last dictionary"]
