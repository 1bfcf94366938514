"""Recommendation: figures by brute force, baselines by hand, exactness, answers, bad input."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import random
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import ArtifactError, StoppedError
from bigmodel_cli.events import Context
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import load_task
from bigmodel_cli.tasks.recommendation import Recommendation, RecommendationOptions
from bigmodel_cli.tasks.recommendation.ranking import CUTS, STATISTICS, Judge, Targets
from bigmodel_cli.train.engine import Engine
from tests.conftest import Cli
from tests.stages import ROOT, deploy, evaluate, final_bytes, prepare, train
from tests.tasks.test_interactions import write


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sessions", ROOT / "data/make_sessions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sessions = load_script()
FAMILIES: list[dict[str, Any]] = [
    {"model": "transformer"}, {"model": "rnn", "cell": "gru"}, {"model": "mlp", "window": 4},
    {"model": "mlp", "window": 0},
]  # fmt: skip
TOP = {name: place for place, name in enumerate(STATISTICS)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 users of the chain, prepared; histories are longer than the context of `opened`."""
    folder = tmp_path_factory.mktemp("sessions")
    sessions.main(["--users", "200", "--output", str(folder / "sessions.csv")])
    prepare(folder / "work", folder / "sessions.csv")
    return folder / "work"


@pytest.fixture
def work(data: Path, tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").symlink_to(data / "data")
    return tmp_path / "work"


def opened(
    work: Path, context: int = 12, repeat: bool = False, split: str = "test"
) -> tuple[Recommendation, Split]:
    task = load_task(Workdir(work).preprocessor, "")
    assert isinstance(task, Recommendation)
    task.options = RecommendationOptions(context=context, repeat=repeat)
    shards = Workdir(work).read_data().splits[split].shards
    return task, Split(Workdir(work).data, shards)


def fit(
    work: Path, run: str = "default", context: Context | None = None, *, length: int = 12,
    repeat: bool = False, **values: Any,
) -> None:  # fmt: skip
    options = {"context": length, "repeat": repeat}
    train(work, run, context, task=options, **{"layers": 1, **values})


def random_model(task: Recommendation, **options: Any) -> SequenceModel:
    torch.manual_seed(0)
    config = model_config(options.pop("model", "transformer"), "nano", task.shape(), width=32,
                          layers=1, heads=2, **options)  # fmt: skip
    model = SequenceModel(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def brute_force(scores: list[float], target: int, hidden: set[int]) -> dict[str, float]:
    """The mean of each statistic over all orders of equal scores, by walking through the ranks."""
    found = dict.fromkeys(STATISTICS[2:], 0.0)
    if target in hidden:
        return found
    order = sorted((i for i in range(len(scores)) if i not in hidden), key=lambda i: -scores[i])
    ranks = [rank for rank, i in enumerate(order, 1) if scores[i] == scores[target]]
    for rank in ranks:
        found["reciprocal_rank"] += 1 / rank / len(ranks)
        for k in CUTS:
            found[f"hit@{k}"] += (rank <= k) / len(ranks)
            found[f"dcg@{k}"] += (rank <= k) / math.log2(rank + 1) / len(ranks)
    return found


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("split", ["test", "train"])
def test_the_statistics_are_those_of_a_full_ranking(work: Path, repeat: bool, split: str) -> None:
    task, held = opened(work, repeat=repeat, split=split)
    model = random_model(task)
    wanted: dict[int, list[dict[str, float]]] = {}
    recommended: set[int] = set()
    chosen = [n * len(held) // 6 for n in range(6)]  # evenly spread
    for unit in chosen:
        before, items = (held.values(f, unit, unit + 1).tolist() for f in ("before", "items"))
        history = before + items
        for place in range(max(1, len(before)), len(history)):
            seen = history[:place]
            with torch.inference_mode():
                logits = model(torch.tensor([seen[-12:]]))[0, -1].double()
            hidden = set() if repeat else set(seen)
            each = brute_force(logits.tolist(), history[place], hidden)
            each["nats"] = -float(logits.log_softmax(-1)[history[place]])
            wanted.setdefault(unit, []).append(each | {"targets": 1})
            order = [i for i in logits.argsort(descending=True).tolist() if i not in hidden]
            recommended |= set(order[:10])
    sums = np.zeros((len(held), len(STATISTICS)))
    counts = np.zeros(len(task.names), np.int64)
    for batch in task.scoring(held, 1, 6):
        with torch.inference_mode():
            found = task.predict(model, batch)
        np.add.at(sums, found.units, found.statistics)
        counts += found.counts["recommended"]
    assert np.flatnonzero(sums[:, 1]).tolist() == chosen
    for unit, every in wanted.items():
        for name in STATISTICS:
            assert sums[unit, TOP[name]] == pytest.approx(sum(e[name] for e in every), abs=1e-4)
    assert set(np.flatnonzero(counts).tolist()) == recommended
    assert counts.sum() == 10 * sums[:, 1].sum()


def figures(statistics: Any) -> dict[str, float]:
    sums = np.asarray(statistics).sum(0)
    return {name: sums[TOP[name]] / sums[1] for name in STATISTICS}


def test_equal_scores_do_no_better_than_chance() -> None:
    V, hidden = 40, [0, 1, 2, 3, 4]
    judge = Judge(V, repeat=False)
    targets = Targets(np.array([0]), np.array([7]), np.array(hidden), np.array([5]))
    judge.add(targets, torch.zeros(1, V), torch.zeros(1))
    found = figures(judge.predictions().statistics)
    for k in CUTS:
        assert found[f"hit@{k}"] == pytest.approx(k / 35)
    assert found["reciprocal_rank"] == pytest.approx(sum(1 / r for r in range(1, 36)) / 35)


@pytest.mark.parametrize("scores", [[0.0, 9, 1, 1, -2], [0, 0, 0, 0, 0], [3, 1, 3, 1, 1]])
@pytest.mark.parametrize("seen", [[], [0], [1, 2], [0, 1, 2, 3]])
def test_the_judge_agrees_with_walking_through_the_ranks(
    scores: list[float], seen: list[int]
) -> None:
    for target in range(5):
        judge = Judge(5, repeat=False)
        one = Targets(np.array([0]), np.array([target]), np.array(seen, np.int64),
                      np.array([len(seen)]))  # fmt: skip
        judge.add(one, torch.tensor([scores]).float(), torch.zeros(1))
        found = figures(judge.predictions().statistics)
        wanted = brute_force(scores, target, set(seen))
        assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_scores_that_are_no_numbers_never_hit() -> None:
    judge = Judge(4, repeat=False)
    one = Targets(np.array([0]), np.array([1]), np.array([0]), np.array([1]))
    judge.add(one, torch.full((1, 4), math.nan), torch.full((1,), math.nan))
    assert judge.predictions().statistics[0, 2:].sum() == 0


BY_HAND = [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x"), ("b", "y"), ("b", "w"),
           ("c", "w"), ("c", "x"), ("c", "z"), ("d", "x"), ("d", "y"), ("d", "w")]  # fmt: skip


def test_the_baselines_by_hand(tmp_path: Path) -> None:
    work = tmp_path / "work"
    prepare(work, write(tmp_path / "rows.csv", BY_HAND, "user,item"), min_count=1, val="0")
    task, train_split = opened(work, split="train")
    _, test = opened(work)
    # training: a xy, b xy, c wx, d xy; so x 4, y 3, w 1, z 0; the targets are z, w, z, w
    assert list(zip(task.names, task.counts, strict=True)) == [
        ("x", 4), ("y", 3), ("w", 1), ("z", 0),
    ]  # fmt: skip
    found = dict(task.baselines(train_split, test))
    popular = found["most_popular"].statistics
    assert popular[:, TOP["nats"]] == pytest.approx(-np.log(np.array([1, 2, 1, 2]) / 12))
    # a, b, d have seen x and y: w comes before z; c has seen w and x: y comes before z
    assert popular[:, TOP["hit@1"]].tolist() == [0, 1, 0, 1]
    assert popular[:, TOP["reciprocal_rank"]].tolist() == [0.5, 1, 0.5, 1]
    assert found["most_popular"].counts["recommended"].tolist() == [0, 1, 3, 4]
    # after y (users a, b, d) only x is alike, and seen: w and z are equal; after x (all users)
    # y has √(3·3/(4·3)) of likeness, and z none
    near = found["item_knn"].statistics
    assert np.isnan(near[:, 0]).all()
    assert near[:, TOP["hit@1"]].tolist() == [0.5, 0.5, 0, 0.5]
    assert near[:, TOP["reciprocal_rank"]].tolist() == [0.75, 0.75, 0.5, 0.75]


def test_the_neighbours_are_ranked_by_their_cosine() -> None:
    from bigmodel_cli.tasks.recommendation.ranking import neighbours

    rng = random.Random(0)
    histories = [[rng.randrange(8) for _ in range(rng.randint(1, 6))] for _ in range(30)]
    score = neighbours([np.array(h) for h in histories], 8)
    users = [{u for u, h in enumerate(histories) if item in h} for item in range(8)]
    targets = Targets(np.zeros(8, np.int64), np.zeros(8, np.int64), np.arange(8), np.ones(8, int))
    scores, nats = score(targets)
    assert nats.isnan().all()
    for a, b in itertools.product(range(8), repeat=2):
        wanted = len(users[a] & users[b]) / math.sqrt(len(users[a]) * len(users[b]))
        assert float(scores[a, b]) == pytest.approx(0 if a == b else wanted, abs=1e-6)


@pytest.mark.parametrize("context", [2, 7, 50])
def test_every_item_but_the_first_is_a_target_once_an_epoch(work: Path, context: int) -> None:
    task, split = opened(work, context, split="train")
    plan = task.plan(split, 3)
    wanted = sorted(
        (a, b) for unit in range(len(split))
        for a, b in itertools.pairwise(split.values("items", unit, unit + 1).tolist())
    )  # fmt: skip
    for epoch in (0, 5):
        found = []
        for row in range(plan.rows):
            batch = plan.batch(epoch * plan.rows + row, 1)
            inputs, targets = batch.inputs["tokens_BT"][0].tolist(), batch.targets[0].tolist()
            assert len(inputs) <= context
            assert batch.terms == sum(target >= 0 for target in targets)
            found += [(a, b) for a, b in zip(inputs, targets, strict=True) if b >= 0]
        assert sorted(found) == wanted


@pytest.mark.parametrize("options", FAMILIES, ids=lambda o: "-".join(map(str, o.values())))
def test_micro_batches_and_padding_do_not_change_an_update(
    work: Path, options: dict[str, Any]
) -> None:
    task, split = opened(work, split="train")
    model = random_model(task, **options)
    plan = task.plan(split, 0)
    gradients = []
    for size in (8, 4, 1):
        model.zero_grad()
        for first in range(0, 8, size):
            task.loss_sum(model, plan.batch(first, size)).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()
                          if p.grad is not None})  # fmt: skip
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", FAMILIES, ids=lambda o: "-".join(map(str, o.values())))
def test_a_stopped_run_resumes_to_the_very_same_bytes(
    work: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    values = {"steps": 4, "dropout": 0.2, **options}
    fit(work, "whole", **values)
    context = Context()
    inner = Engine.step

    def stepping(self: Engine, index: int, *rest: Any) -> Any:
        result = inner(self, index, *rest)
        if index == 1:
            context.stop.on_signal(signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", stepping)
        with pytest.raises(StoppedError):
            fit(work, "stopped", context, **values)
    fit(work, "stopped", **values)
    assert final_bytes(work, "stopped") == final_bytes(work, "whole")


@pytest.mark.slow
def test_evaluation_tells_coverage_without_an_interval_and_the_protocol(work: Path) -> None:
    fit(work, steps=2)
    document = as_json(evaluate(work, require=("coverage>0.1", "hr@10>=baseline*0.01")).evaluation)
    coverage = document["metrics"]["coverage"]
    assert 0 < coverage["value"] <= 1
    assert (coverage["low"], coverage["high"]) == (None, None)
    assert document["baselines"]["most_popular"]["coverage"] < 1
    assert [gate["passed"] for gate in document["gates"]] == [True, True]
    assert document["protocol"]["candidates"] == 100
    assert document["protocol"]["split_by"] == "leave-one-out"
    fit(work, "again", steps=2, repeat=True)
    again = as_json(evaluate(work, "again").evaluation)
    assert again["protocol"]["seen"] != document["protocol"]["seen"]


@pytest.fixture(scope="module")
def predictor(data: Path) -> Predictor:
    fit(data, "bundle", steps=2)
    done = deploy(data, "bundle")
    assert done.layout == "native"
    assert done.receipt.bigmodel.proof == "passed"
    return Predictor(done.folder, "cpu", 1)


def answer(predictor: Predictor, **document: Any) -> dict[str, Any]:
    (found,) = predictor.answer_lines([json.dumps(document).encode()], {"k": 10, "repeat": None})
    return found


def test_an_answer_is_what_the_model_says_of_the_last_items(predictor: Predictor) -> None:
    task = predictor.task
    assert isinstance(task, Recommendation)
    history = [(7 * n) % 90 for n in range(30)]
    with torch.inference_mode():
        logits = predictor.model(torch.tensor([history[-12:]]))[0, -1].log_softmax(-1)
    wanted = [i for i in logits.argsort(descending=True).tolist() if i not in history][:4]
    names = [task.names[i] for i in history]
    found = answer(predictor, history=[*names[:5], "unknown", *names[5:]], k=4)
    assert [entry["item"] for entry in found["items"]] == [task.names[i] for i in wanted]
    scores = [entry["score"] for entry in found["items"]]
    assert scores == pytest.approx(logits[wanted].tolist(), abs=1e-3)
    assert not found["fallback"]
    again = answer(predictor, history=names, k=100, repeat=True)
    assert len(again["items"]) == 100
    assert len(answer(predictor, history=names, k=1000)["items"]) == 100 - len(set(history))


def test_answers_do_not_depend_on_their_company(predictor: Predictor) -> None:
    task = predictor.task
    assert isinstance(task, Recommendation)
    lines = [json.dumps({"history": task.names[:n], "id": n}).encode() for n in range(30)]
    together = predictor.answer_lines(lines, {})
    for line, found in zip(lines, together, strict=True):
        (alone,) = predictor.answer_lines([line], {})
        assert [e["item"] for e in alone["items"]] == [e["item"] for e in found["items"]]
        assert alone["id"] == found["id"]
        assert alone["fallback"] == (found["id"] == 0)


@pytest.mark.parametrize("history", [[], ["new"], ["new", 5, 1e300], "", ["\ud800", "", " "]])
def test_who_is_not_known_gets_what_is_popular(predictor: Predictor, history: Any) -> None:
    task = predictor.task
    assert isinstance(task, Recommendation)
    found = answer(predictor, history=history, k=3)
    assert found["fallback"]
    assert [entry["item"] for entry in found["items"]] == task.names[:3]
    total = sum(task.counts) + 100
    assert found["items"][0]["score"] == round(math.log((task.counts[0] + 1) / total), 4)
    assert task.counts == sorted(task.counts, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(("document", "says"), [
    ({}, "must be a list of items, but is `null`"), ({"history": 5}, "`5`"),
    ({"history": {"a": 1}}, "must be a list"), ({"history": [["a"]]}, "must be a list"),
    ({"history": [True]}, "must be a list"), ({"history": [], "k": 0}, "from 1 to 1000"),
    ({"history": [], "k": 1001}, "from 1 to 1000"), ({"history": [], "k": "5"}, "`k`"),
    ({"history": [], "k": 2.5}, "`k`"), ({"history": [], "repeat": "no"}, "`repeat`"),
    ({"history": ["a"] * ((1 << 20) + 1)}, "more than"),
])  # fmt: skip
def test_bad_requests_are_refused(predictor: Predictor, document: Any, says: str) -> None:
    assert says in answer(predictor, **document)["error"]["message"]


def test_a_damaged_catalogue_is_refused(data: Path, tmp_path: Path) -> None:
    from bigmodel_cli.artifacts.manifest import read_json, write_json

    items = read_json(Workdir(data).preprocessor / "items.json", "codec", "")
    for change in ({"items": items["items"][1:]}, {"items": []}, {"counts": None},
                   {"items": [1] * 100}, {"counts": ["1"] * 100}):  # fmt: skip
        write_json(tmp_path / "items.json", {**items, **change})
        with pytest.raises(ArtifactError, match="corrupt"):
            Recommendation.load(tmp_path, RecommendationOptions())


# the program ------------------------------------------------------------------------------------

TINY = ("--size", "nano", "--width", "32", "--layers", "1", "--heads", "2", "--steps", "2")


@pytest.mark.slow
def test_the_chain_through_the_program(empty: Cli) -> None:
    (empty.cwd / "corpus.jsonl").unlink()
    sessions.main(["--users", "60", "--output", str(empty.cwd / "sessions.csv")])
    empty.works("prepare", "sessions.csv")
    assert empty.manifest()["task"] == "recommendation"
    assert "up to date" in empty.works("prepare", "sessions.csv").out
    empty.works("train", *TINY)
    out = empty.works("evaluate", "--require", "ndcg@10>=0").out
    for word in ("ndcg@10", "coverage", "60 users"):
        assert word in out
    empty.works("deploy")
    assert "up to date" in empty.works("deploy").out
    assert not list((empty.work / "runs/default/bundle").glob("tokenizer*"))
    shown = empty.works("predict", "i1, i2", "--k", "3").out
    assert len(shown.splitlines()) == 3
    known = json.loads(empty.works("predict", "i1,i2", "--json").out)
    assert len(known["items"]) == 10
    assert not known["fallback"]
    assert not {"i1", "i2"} & {entry["item"] for entry in known["items"]}
    every = json.loads(empty.works("predict", "i1,i2", "--json", "--k", "1000", "--repeat").out)
    assert {"i1", "i2"} <= {entry["item"] for entry in every["items"]}
    assert "the most popular" in empty.works("predict", "nothing", "--k", "2").out
    lines = b'{"history": ["i5"], "k": 2, "id": "a"}\n{"history": "i5"}\nno\n'
    done = empty("predict", "--k", "4", stdin=lines)
    assert done.code == 4
    first, second, third = map(json.loads, done.out.splitlines())
    assert (len(first["items"]), first["id"], len(second["items"])) == (2, "a", 4)
    assert third["error"]["code"] == 4
    empty.fails("predict", "i1", "--temperature", "1", code=2, says=["--temperature"])
    empty.fails("predict", "i1", "--k", "0", code=2, says=["`0`"])


BAD: dict[str, tuple[bytes, list[str], int, list[str]]] = {
    "no item column": (b"user,thing\na,x\n", ["--task", "recommendation"], 4, ["item"]),
    "no such column": (b"user,item\na,x\n", ["--column", "timestamp=when"], 4, ["`when`"]),
    "no rating": (b"user,item\na,x\n", ["--min-rating", "3"], 4, ["rating"]),
    "nothing is frequent": (b"user,item\na,x\n", [], 4, ["1 rare_user"]),
    "too short for targets": (b"user,item\na,x\na,y\n", ["--min-count", "1"], 4, ["val", "empty"]),
    "one instant": (b"user,item,time\na,x,1\na,y,1\nb,x,1\n",
                    ["--min-count", "1", "--split-by", "time", "--test", "0.5"], 4,
                    ["train", "empty"]),
    "not UTF-8": (b"user,item\na,\xff\n", ["--min-count", "1"], 4, ["unreadable"]),
    "a zero byte": (b"user,item\na,x\x00\n", ["--min-count", "1"], 4, ["malformed"]),
    "no rows": (b"user,item\n", [], 4, ["nothing is left"]),
    "a bad count": (b"user,item\na,x\n", ["--min-count", "0"], 2, ["`0`"]),
    "a bad way to split": (b"user,item\na,x\n", ["--split-by", "user"], 2, ["`user`"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_bad_csv_is_refused(empty: Cli, name: str) -> None:
    content, options, code, says = BAD[name]
    (empty.cwd / "rows.csv").write_bytes(content)
    empty.fails("prepare", "rows.csv", *options, code=code, says=says)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content", "says"), [
    ("rows.jsonl", b'{"user": "a", "item": ["x"]}\n{"user": "a"}\n[]\n', ["malformed", "no_item"]),
    ("rows.tsv", b"user\titem\na\n\tx\n", ["malformed", "no_user"]),
    ("rows.parquet", b"PAR1 this is none", ["rows.parquet"]),
    ("rows.json", b'[{"user": 1, "item": null}]', ["no_item"]),
    ("rows.inter", b"user_id:token\titem_id:token\ttimestamp:float\na\tx\tlate\n",
     ["bad_timestamp"]),
])  # fmt: skip
def test_bad_rows_of_other_formats_are_counted(
    empty: Cli, name: str, content: bytes, says: list[str]
) -> None:
    (empty.cwd / name).write_bytes(content)
    empty.fails("prepare", name, "--task", "recommendation", "--min-count", "1", code=4, says=says)


@pytest.mark.slow
def test_lines_of_other_files_that_are_cut_short_are_counted(empty: Cli) -> None:
    (empty.cwd / "ratings.dat").write_bytes(b"a::x::5::1\na::y\na::y::5::2\na::z::5::\xff\n")
    empty.works("prepare", "ratings.dat", "--header", "user,item,rating,timestamp", "--delimiter",
                "::", "--min-count", "1", "--val", "0", "--test", "0")  # fmt: skip
    dropped = empty.manifest()["ledger"]["dropped"]
    assert {name: entry["where"] for name, entry in dropped.items()} == {
        "malformed": ["ratings.dat, line 2"],
        "unreadable": ["ratings.dat, line 4 (not UTF-8)"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("options", [*FAMILIES[:2], {"model": "mlp", "window": 1}],
                         ids=lambda o: o["model"])  # fmt: skip
def test_a_small_model_comes_near_the_best_ranking_and_never_beyond(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    work, best = tmp_path / "work", sessions.best()
    sessions.main(["--users", "3000", "--output", str(tmp_path / "sessions.csv")])
    prepare(work, tmp_path / "sessions.csv")
    fit(work, width=64, heads=2, epochs=12, length=16, batch_size=64, repeat=True,
        weight_decay=0.0, dropout=0.1, **options)  # fmt: skip
    document = as_json(evaluate(work).evaluation)
    found = {name: entry["value"] for name, entry in document["metrics"].items()}
    for name, share in (("hr@10", 0.93), ("ndcg@10", 0.9)):
        spread = math.sqrt(0.25 / 3000)
        assert share * best[name] < found[name] < best[name] + 3 * spread
    assert best["loss"] - 0.1 < found["loss"] < 1.12 * best["loss"]
    assert document["metrics"]["ndcg@10"]["low"] > document["baselines"]["item_knn"]["ndcg@10"]


@pytest.mark.slow
def test_a_history_of_all_items_leaves_nothing_to_recommend(work: Path) -> None:
    train(work)
    deploy(work)
    predictor = Predictor(Workdir(work).run("default").bundle, "cpu", 1)
    names = predictor.task.names  # type: ignore[attr-defined]
    lines = [json.dumps({"history": names}).encode(), b'{"history": ["nobody had it"]}']
    known, unknown = predictor.answer_lines(lines, {})
    assert known == {"items": [], "fallback": False, "truncated": len(names) - 50}
    assert unknown["fallback"]
    assert unknown["unknown"] == 1
