"""Text classification: labels, strata, metrics against scikit-learn, what is cut."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bigmodel_cli.artifacts.records import Reason
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.tasks import load_task
from bigmodel_cli.tasks.classification import BINS, Classification
from bigmodel_cli.tasks.text_classification import TextClassification, TextClassificationOptions
from tests.conftest import Cli
from tests.stages import SERVICE, evaluate, prepare, train


def rows(folder: Path, pairs: list[tuple[str, Any]], name: str = "rows.jsonl") -> Path:
    lines = [json.dumps({"text": text, "label": label}) for text, label in pairs]
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder / name


def many(count: int, labels: dict[str, int]) -> list[tuple[str, Any]]:
    names = [label for label, n in labels.items() for _ in range(n)]
    assert len(names) == count
    return [(f"text number {i} of a {name} kind", name) for i, name in enumerate(names)]


def labels_of(work: Path, split: str) -> collections.Counter[str]:
    place = Workdir(work)
    task: Any = load_task(place.preprocessor, "")
    codes = Split(place.data, place.read_data().splits[split].shards).column("label")
    return collections.Counter(task.labels[code] for code in codes.tolist())


def judge(labels: int, logits: np.ndarray, classes: np.ndarray) -> tuple[Any, Any]:
    task = TextClassification(TextClassificationOptions())
    task.labels = [f"c{i}" for i in range(labels)]
    found = task.judge(logits, classes, np.arange(len(classes)))
    return task, found


def test_each_label_has_its_share_of_each_split(tmp_path: Path) -> None:
    data = many(1000, {"common": 800, "rare": 190, "single": 10})
    prepare(tmp_path / "w", rows(tmp_path, data), val="0.1", test="0.2")
    counts = {split: labels_of(tmp_path / "w", split) for split in ("train", "val", "test")}
    assert [sum(c.values()) for c in counts.values()] == [700, 100, 200]
    for name, total in {"common": 800, "rare": 190, "single": 10}.items():
        assert counts["val"][name] == pytest.approx(total * 0.1, abs=1)
        assert counts["test"][name] == pytest.approx(total * 0.2, abs=1)


def test_a_label_of_one_row_stays_in_training(tmp_path: Path) -> None:
    data = [*many(60, {"a": 30, "b": 30}), ("the only one of its kind", "c")]
    prepare(tmp_path / "w", rows(tmp_path, data), val="0.3", test="0.3")
    assert labels_of(tmp_path / "w", "train")["c"] == 1


def test_named_splits_are_kept(tmp_path: Path) -> None:
    source = rows(tmp_path, many(60, {"a": 30, "b": 30}))
    held = rows(tmp_path, [(f"held out {i}", "ab"[i % 2]) for i in range(40)], "held.jsonl")
    made = prepare(tmp_path / "w", source, val="0", test=str(held)).manifest
    assert [made.splits[s].units for s in ("train", "val", "test")] == [60, 0, 40]


def test_numbers_and_booleans_are_labels(tmp_path: Path) -> None:
    data = [(f"text {i}", [1, 2.5, True, "x"][i % 4]) for i in range(80)]
    prepare(tmp_path / "w", rows(tmp_path, data), val="0", test="0.5")
    assert set(labels_of(tmp_path / "w", "train")) == {"1", "2.5", "true", "x"}


@pytest.mark.parametrize(
    ("name", "text", "more"),
    [
        ("a.csv", "label,text\nspam,buy now\nham,see you\n", {}),
        ("a.tsv", "text\tlabel\nbuy now\tspam\nsee you\tham\n", {}),
        ("a.txt", 'spam\tbuy now\nham\tsee you\n', {"header": ("label,text",)}),
        ("a.data", "spam buy now\nham see you\n",
         {"header": ("label", "text"), "delimiter": " "}),
        ("a.dat", "spam::buy now\nham::see you\n",
         {"header": ("label", "text"), "delimiter": "::"}),
        ("a.json", '[{"text": "buy now", "label": "spam"}, {"text": "see you", "label": "ham"}]',
         {}),
        ("b.jsonl", '{"body": "buy now", "kind": "spam"}\n{"body": "see you", "kind": "ham"}\n',
         {"column": ("text=body", "label=kind")}),
    ],
)  # fmt: skip
def test_every_format_gives_the_same_units(
    tmp_path: Path, name: str, text: str, more: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(text)
    made = prepare(tmp_path / "w", tmp_path / name, val="0", test="0", tokenizer="bytes", **more)
    assert made.manifest.task == "text-classification"
    place = Workdir(tmp_path / "w")
    task: Any = load_task(place.preprocessor, "")
    split = Split(place.data, made.manifest.splits["train"].shards)
    found = {
        (task.tokenizer.decode(split.values("tokens", i, i + 1).tolist()),
         task.labels[split.column("label")[i]])
        for i in range(2)
    }  # fmt: skip
    assert found == {("buy now", "spam"), ("see you", "ham")}


def test_what_is_dropped_or_cut_is_in_the_ledger(tmp_path: Path) -> None:
    data: list[tuple[Any, Any]] = many(40, {"a": 20, "b": 20})
    data += [(None, "a"), ("", "a"), ("no label", None), ("blank label", "  "), data[0],
             (data[0][0], "b"), ("x" * 99, "b"), ("a list", ["a"])]  # fmt: skip
    made = prepare(tmp_path / "w", rows(tmp_path, data), tokenizer="bytes", context=50).manifest
    ledger = made.ledger
    dropped = {reason: entry.rows for reason, entry in ledger.dropped.items()}
    assert dropped == {"no_text": 1, "empty": 1, "no_label": 2, "duplicate_exact": 1,
                       "duplicate_contradicts": 1, "malformed": 1}  # fmt: skip
    assert ledger.came_in.rows == 48 == ledger.kept.rows + sum(dropped.values())
    assert ledger.removed["truncated"] == Reason(rows=1, bytes=50, where=["a text of 99 tokens"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (many(30, {"a": 30}), "only one label"),
        ([(f"text {i}", f"{i}") for i in range(50)], "50 different labels in 50 rows"),
        ([(f"text {i}", None) for i in range(9)], "nothing is left"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, data: list[tuple[str, Any]], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        prepare(tmp_path / "w", rows(tmp_path, data), val="0", test="0")
    assert not Workdir(tmp_path / "w").manifest.exists()


def test_columns_and_headers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = rows(tmp_path, many(40, {"a": 20, "b": 20}))
    with pytest.raises(UsageError, match="--column names `tekst`"):
        prepare(tmp_path / "w", source, column=("tekst=text",))
    with pytest.raises(UsageError, match="a name of its own"):
        prepare(tmp_path / "w", source, header=("label,label",))
    long = rows(tmp_path, [*many(40, {"a": 20, "b": 20}), ("x", "y" * 300)], "long.jsonl")
    made = prepare(tmp_path / "w", long).manifest
    assert made.ledger.dropped["long_label"].rows == 1


def test_an_option_of_another_task_is_refused(tmp_path: Path) -> None:
    source = rows(tmp_path, many(40, {"a": 20, "b": 20}))
    with pytest.raises(UsageError, match="--context is not an option of the task `language`"):
        prepare(tmp_path / "w", source, task="language", context=8)


# Metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_scikit_learns(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(200, 5)) * 2
    classes = random.integers(0, 4, 200)  # one class never is
    task, found = judge(5, logits, classes)
    sums = found.statistics.sum(0)
    values = {m.name: float(m.value(sums)) for m in task.metrics()}
    told = logits.argmax(-1)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert values["accuracy"] == pytest.approx((told == classes).mean())
    assert values["macro_f1"] == pytest.approx(f1_score(classes, told, average="macro"))
    nats = -np.log(chances[np.arange(200), classes])
    assert values["loss"] == pytest.approx(nats.mean())
    bins = np.minimum((chances.max(-1) * BINS).astype(int), BINS - 1)
    error = sum(
        abs((chances.max(-1)[bins == b] - (told == classes)[bins == b]).sum()) for b in range(BINS)
    )
    assert values["calibration_error"] == pytest.approx(error / 200)
    assert found.counts["confusion"].sum() == 200
    assert np.trace(found.counts["confusion"]) == (told == classes).sum()


def test_metrics_of_many_sums_are_those_of_each() -> None:
    random = np.random.default_rng(0)
    task, found = judge(3, random.normal(size=(40, 3)), random.integers(0, 3, 40))
    sums = np.stack([found.statistics[:20].sum(0), found.statistics.sum(0)])
    for metric in task.metrics():
        assert metric.value(sums).tolist() == [float(metric.value(part)) for part in sums]


def test_tables_show_each_class() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]))
    task, found = judge(2, logits, np.array([0, 1, 1]))
    classes, confusion = task.tables(found.statistics.sum(0), found.counts)
    assert classes.rows == [["c0", "0.5000", "1.0000", "0.6667", "1"],
                            ["c1", "1.0000", "0.5000", "0.6667", "2"]]  # fmt: skip
    assert confusion.rows == [["c0", "1", "0"], ["c1", "1", "1"]]


# Learning -------------------------------------------------------------------------------------


def optimum() -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("make_service", SERVICE.parent / "make_service.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_small_model_comes_near_the_best_possible_accuracy(tmp_path: Path) -> None:
    known = optimum()
    work = tmp_path / "w"
    prepare(work, SERVICE / "intents.jsonl", val="0.15", test="0.25")
    train(work, epochs=4, width=64, batch_size=16)
    metrics = evaluate(work).evaluation.metrics
    assert metrics["accuracy"].low <= known.best_accuracy() <= metrics["accuracy"].high + 0.02
    assert metrics["accuracy"].value > known.best_accuracy() - 0.04
    assert metrics["loss"].value < known.least_loss() + 0.15


def test_balanced_weights_change_the_loss_of_rare_classes(tmp_path: Path) -> None:
    work = tmp_path / "w"
    prepare(work, rows(tmp_path, many(100, {"a": 90, "b": 10})), val="0", test="0.2")
    place = Workdir(work)
    split = Split(place.data, place.read_data().splits["train"].shards)
    task: Any = load_task(place.preprocessor, "")
    object.__setattr__(task.options, "class_weights", "balanced")
    task.weigh(split)
    counts = np.bincount(split.column("label"))
    weights = task._weights.numpy()
    assert (weights * counts).sum() == pytest.approx(len(split))  # one, on the mean of the rows
    assert weights[1] / weights[0] == pytest.approx(counts[0] / counts[1])


@pytest.mark.slow
def test_the_command_line_says_what_it_found(empty: Cli) -> None:
    rows(empty.cwd, many(60, {"a": 40, "b": 20}))
    made = empty.works("prepare", "rows.jsonl", "--val", "0.2", "--test", "0.2")
    assert "task text-classification: text from `text`, label from `label`, in 1 file" in made.err
    assert "2 classes, the rarest in training `b` with 12" in made.err
    assert "texts" in made.out
    empty.works("train", "--steps", "2", "--width", "16", "--layers", "1", "--heads", "1")
    shown = empty.works("evaluate")
    assert "tfidf_logistic" in shown.out
    report = (empty.work / "runs/default/report.html").read_text("utf-8")
    assert "Confusion" in report
    assert "<h2>Classes</h2>" in report
    empty.works("deploy")
    answer = json.loads(empty.works("predict", "a text", "--json").out)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert answer["label"] == next(iter(answer["probabilities"]))
    empty.fails("predict", "a text", "--temperature", "1", code=2, says=["--temperature"],
                hint=["leave it out"])  # fmt: skip
    empty.fails("train", "--objective", "masked", code=2, says=["--objective"], hint=["language"])


def test_a_wrong_label_is_worth_infinity_to_nobody() -> None:
    _, found = judge(2, np.array([[1000.0, -1000.0]]), np.array([1]))
    assert math.isfinite(found.statistics.sum())
    assert issubclass(TextClassification, Classification)
