"""Image classification: the whole chain on shapes whose best accuracy is known."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.deploy import server
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import DataError, UsageError
from bigmodel_cli.events import Context
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import TASK_FILE, load_task
from bigmodel_cli.train.loop import Trained
from bigmodel_cli.train.run import run as train_run
from tests.conftest import Cli, Forker
from tests.data.test_shapes import shapes
from tests.stages import evaluate, final_bytes, log, prepare

FAMILIES = ("transformer", "rnn", "mlp")
AUGMENTED = {"shift": 1, "flip": True, "erase": 0.5}


def train(work: Path, run: str = "default", **values: Any) -> Trained:
    """Trains a tiny model; what is no option of training's is one of the task's."""
    known = TrainConfig.__dataclass_fields__
    options = {"patch": 3, **{k: v for k, v in values.items() if k not in known}}
    config = {"width": 16, "layers": 1, "heads": 2, "batch_size": 8, "device": "cpu", "threads": 1,
              **{k: v for k, v in values.items() if k in known}}  # fmt: skip
    whole = {"stem": "conv", "shift": None, "flip": False, "erase": 0.0, "class_weights": "none"}
    return train_run(TrainConfig(**config), {**whole, **options}, Workdir(work), run, Context())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared shapes. Read only, but for runs of one's own."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes.main(["--images", "240", "--output", str(folder / "in")])
    prepare(folder / "work", folder / "in", val="0.2", test="0.2")
    return folder / "work"


@pytest.fixture
def fresh(work: Path, tmp_path: Path) -> Path:
    shutil.copytree(work / "data", tmp_path / "work" / "data")
    return tmp_path / "work"


def loaded(work: Path, **options: Any) -> tuple[Any, Split]:
    """The task and its train split."""
    import dataclasses

    task: Any = load_task(work / "data" / "preprocessor", "")
    task.options = dataclasses.replace(task.options, patch=3, **options)
    data = Workdir(work).read_data()
    return task, Split(work / "data", data.splits["train"].shards)


def test_splits_are_stratified(work: Path) -> None:
    task, train_split = loaded(work)
    data = Workdir(work).read_data()
    assert task.labels == sorted(shapes.SHAPES)
    counts = {
        name: np.bincount(Split(work / "data", part.shards).column("label"), minlength=6)
        for name, part in data.splits.items()
    }
    whole = sum(counts.values())
    assert whole.sum() == 240
    for name in ("val", "test"):
        assert np.abs(counts[name] - 0.2 * whole).max() <= 1, name
    assert data.splits["train"].tokens == len(train_split) * 144
    assert data.measure == "pixels"


def test_inputs_have_mean_0_and_deviation_1(work: Path) -> None:
    task, split = loaded(work, shift=0)
    pixels = task.plan(split, 0).batch(0, len(split)).inputs["pixels_BCHW"]
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-3)
    assert float(pixels.std()) == pytest.approx(1, abs=1e-3)


def test_an_epoch_holds_every_picture_once_and_none_is_twice_the_same(work: Path) -> None:
    task, split = loaded(work, **AUGMENTED)
    plan = task.plan(split, 3)
    assert plan.rows == len(split)
    assert plan.even
    seen = [np.sort(plan.batch(e * plan.rows, plan.rows).extra["units"]) for e in (0, 1)]
    assert np.array_equal(seen[0], np.arange(plan.rows))
    assert np.array_equal(seen[1], seen[0])
    # a batch across epochs is its parts, whatever came before
    across = plan.batch(plan.rows - 3, 6)
    parts = [task.plan(split, 3).batch(p, 3) for p in (plan.rows - 3, plan.rows)]
    joined = torch.cat([part.inputs["pixels_BCHW"] for part in parts])
    assert torch.equal(across.inputs["pixels_BCHW"], joined)
    by_epoch = []
    for epoch in (0, 1):
        batch = plan.batch(epoch * plan.rows, plan.rows)
        order = np.argsort(batch.extra["units"])
        by_epoch.append(batch.inputs["pixels_BCHW"][order])
    same = (by_epoch[0] == by_epoch[1]).flatten(1).all(1)
    assert int(same.sum()) < plan.rows // 4


def test_held_out_pictures_are_not_augmented(work: Path) -> None:
    task, split = loaded(work, **AUGMENTED)
    batches = list(task.scoring(split, 5))
    units = np.concatenate([batch.extra["units"] for batch in batches])
    assert np.array_equal(units, np.arange(len(split)))
    raw = split.values("pixels", 7, 8).reshape(12, 12)
    seen = batches[0].inputs["pixels_BCHW"][7, 0].numpy() * task.deviation[0] + task.mean[0]
    assert np.allclose(seen, raw, atol=0.01)


def test_a_part_of_a_split_has_all_classes(work: Path) -> None:
    """Folders of classes come one after another: the first images would be of one class."""
    task, split = loaded(work)
    batches = list(task.scoring(split, 5, limit=24))
    assert sum(batch.terms for batch in batches) == 24
    assert len({int(label) for batch in batches for label in batch.targets}) == 6


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_give_the_same_gradient(family: str, work: Path) -> None:
    task, split = loaded(work, **AUGMENTED)
    torch.manual_seed(0)
    model = SequenceModel(
        model_config(family, "nano", task.shape(), width=16, layers=2, heads=2)
    ).double()
    plan = task.plan(split, 0)
    gradients = []
    for size in (8, 4, 1):
        model.zero_grad()
        for first in range(0, 8, size):
            task.loss_sum(model, plan.batch(first, size)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert max(float(g.abs().max()) for g in gradients[0]) > 0.1
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_is_exact(family: str, fresh: Path) -> None:
    """2 + 2 steps of an augmented run are 4 steps, to the byte; the first epoch has 18."""
    values = {"model": family, "dropout": 0.1, "checkpoint_every": 18, **AUGMENTED}
    train(fresh, "whole", steps=36, **values)

    class Stopped(Exception):  # noqa: N818
        pass

    from bigmodel_cli.train import loop

    update = loop.Loop._update

    def stopping(self: Any) -> bool:
        if self.step == 20:
            raise Stopped
        return update(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_update", stopping)
        with pytest.raises(Stopped):
            train(fresh, "cut", steps=36, **values)
    train(fresh, "cut", steps=36, **values)
    assert final_bytes(fresh, "cut") == final_bytes(fresh, "whole")
    losses = [[line.get("loss") for line in log(fresh, run)] for run in ("whole", "cut")]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("changed", AUGMENTED)
def test_augmentation_changes_what_is_learned(changed: str, fresh: Path) -> None:
    train(fresh, "plain", steps=2, shift=0)
    train(fresh, "other", steps=2, **{"shift": 0, changed: AUGMENTED[changed]})
    assert final_bytes(fresh, "plain") != final_bytes(fresh, "other")


def test_a_patch_has_to_divide_the_size(fresh: Path) -> None:
    with pytest.raises(UsageError, match="--patch 5 does not divide the images' 12 pixels"):
        train(fresh, patch=5, steps=1)


@pytest.mark.parametrize(
    ("size", "patch"), [(8, 1), (12, 1), (28, 4), (32, 4), (64, 8), (224, 32), (4, 1), (30, 3)]
)
def test_patches_by_size(size: int, patch: int, work: Path) -> None:
    from bigmodel_cli.tasks.pixels import Form

    task: Any = load_task(work / "data" / "preprocessor", "")
    task._form = Form(1, size)
    assert task.shape().image.patch == patch
    assert task.shape().context == (size // patch) ** 2


@pytest.mark.slow
def test_evaluation_and_its_baselines(fresh: Path) -> None:
    train(fresh, steps=4)
    found = as_json(evaluate(fresh).evaluation)
    assert list(found["metrics"]) == ["accuracy", "macro_f1", "loss", "calibration_error"]
    assert found["metrics"]["accuracy"]["n"] == 48
    assert set(found["baselines"]) == {"majority", "pixel_logistic"}
    task, _ = loaded(fresh)
    test = Split(fresh / "data", Workdir(fresh).read_data().splits["test"].shards)
    most = np.bincount(test.column("label"), minlength=6)
    assert found["baselines"]["majority"]["accuracy"] <= most.max() / 48
    titles = [table["title"] for table in found["tables"]]
    assert titles == ["Classes", "Confusion"]
    assert sum(int(row[-1]) for row in found["tables"][0]["rows"]) == 48
    assert found["protocol"]["image_size"] == 12
    assert found["protocol"]["classes"] == task.labels
    report = (fresh / "runs" / "default" / "report.html").read_text("utf-8")
    assert report.count("src='data:image/png;base64,") == 3


def test_the_baseline_of_pixels_is_that_of_the_library(work: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    task, split = loaded(work)
    test = Split(work / "data", Workdir(work).read_data().splits["test"].shards)
    x, held = (
        part.values("pixels", 0, len(part)).reshape(len(part), -1) / np.float32(255)
        for part in (split, test)
    )
    model = LogisticRegression(max_iter=1000).fit(x, split.column("label"))
    wanted = model.score(held, test.column("label"))
    scored = dict(task.baselines(split, test))["pixel_logistic"].statistics
    assert scored[:, 2].mean() == pytest.approx(wanted, abs=1 / 48 + 1e-9)


@pytest.fixture(scope="module")
def deployed(work: Path, tmp_path_factory: pytest.TempPathFactory, forker: Forker) -> Path:
    """A folder with a bundle of a run, through the program. Read only."""
    folder = tmp_path_factory.mktemp("deployed")
    shutil.copytree(work / "data", folder / "work" / "data")
    cli = Cli(folder, forker)
    tiny = ("--width", "16", "--layers", "1", "--heads", "2", "--patch", "3")
    cli.works("train", *tiny, "--steps", "4", "--batch-size", "8")
    cli.works("evaluate")
    cli.works("deploy", "--precision", "int8")
    return folder


def picture(folder: Path) -> tuple[Path, str]:
    """An image as a file, and as a data: URI."""
    drawn = shapes.png(shapes.SHAPES["ring"][7])
    path = folder / "ring.png"
    path.write_bytes(drawn)
    return path, "data:image/png;base64," + base64.b64encode(drawn).decode()


@pytest.mark.slow
def test_the_whole_chain(deployed: Path, tmp_path: Path, forker: Forker) -> None:
    path, uri = picture(tmp_path)
    cli = Cli(tmp_path, forker)
    bundle = ("--bundle", str(deployed / "work" / "runs" / "default" / "bundle"))
    receipt = json.loads((Path(bundle[1]) / "receipt.json").read_text())
    assert receipt["bigmodel"]["proof"] == "passed"
    assert receipt["bigmodel"]["tokens"] == 4 * 16
    assert receipt["precision"]["metric"] == "accuracy"
    document = json.loads(cli.works("predict", path.name, "--json", *bundle).out)
    assert set(document["probabilities"]) == set(shapes.SHAPES)
    assert sum(document["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    best = max(document["probabilities"], key=lambda k: document["probabilities"][k])
    assert document["label"] == best
    assert best in cli.works("predict", uri, *bundle).out.splitlines()[0]
    lines = [{"id": 1, "image": str(path)}, {"id": 2, "image": uri}, {"id": 3, "image": "none.png"},
             {"id": 4, "image": "https://example.org/a.png"}, {"id": 5, "image": 7}, {"id": 6},
             {"id": 7, "image": "data:image/png;base64,QUJD"}]  # fmt: skip
    stdin = "".join(json.dumps(line) + "\n" for line in lines).encode()
    answers = [json.loads(line) for line in
               cli("predict", *bundle, stdin=stdin).out.splitlines()]  # fmt: skip
    assert [answer.pop("id") for answer in answers] == [1, 2, 3, 4, 5, 6, 7]
    assert answers[0] == answers[1] == document
    says = ["not a readable file", "nothing is fetched", "must be text", "must be text",
            "not a readable image"]  # fmt: skip
    for answer, words in zip(answers[2:], says, strict=True):
        assert answer["error"]["code"] == 4
        assert words in answer["error"]["message"]


def test_the_server_opens_no_files(deployed: Path, tmp_path: Path) -> None:
    path, uri = picture(tmp_path)
    predictor = Predictor(deployed / "work" / "runs" / "default" / "bundle", "cpu", threads=1)
    client = TestClient(server.app(predictor), base_url="http://127.0.0.1")
    answer = client.post("/predict", json={"image": uri})
    assert answer.status_code == 200
    assert set(answer.json()["probabilities"]) == set(shapes.SHAPES)
    for hidden in (str(path), "/etc/passwd", f"file://{path}", "https://example.org/a.png"):
        refused = client.post("/predict", json={"image": hidden})
        assert refused.status_code == 400
        message = refused.json()["error"]["message"]
        assert "must be a data: URI here" in message  # the same, whether it is there or not
        assert hidden not in message


def test_requests_that_are_too_large(deployed: Path) -> None:
    from tests.prepare.test_images import bomb

    codec = deployed / "work" / "runs" / "default" / "bundle"
    assert (codec / TASK_FILE).exists()
    task = load_task(codec, "")
    for sizes in ((9_000, 9_000), (60_000, 60_000)):
        uri = "data:image/png;base64," + base64.b64encode(bomb(*sizes)).decode()
        with pytest.raises(DataError, match="too large"):
            task.request({"image": uri})


def test_an_answer_is_that_of_training(deployed: Path) -> None:
    """A file that was in the train split gives the very input that training saw."""
    task, split = loaded(deployed / "work", shift=0)
    raw = split.values("pixels", 5, 6).reshape(12, 12)
    file = io.BytesIO()
    Image.fromarray(raw).convert("RGB").save(file, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    asked = task._inputs(task.request({"image": uri}).prompt[None])
    batch = task._batch(split, np.array([5]))
    assert torch.equal(asked["pixels_BCHW"], batch.inputs["pixels_BCHW"])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_comes_near_the_optimum(family: str, tmp_path: Path) -> None:
    """Within 4 points of the best answers for these very images, and not beyond them."""
    shapes.main(["--images", "6000", "--output", str(tmp_path / "in")])
    prepare(tmp_path / "work", tmp_path / "in", val="0.1", test="0.2")
    train(tmp_path / "work", model=family, width=32, layers=2, heads=2, patch=2, batch_size=32,
          epochs=16)  # fmt: skip
    found = evaluate(tmp_path / "work").evaluation.metrics["accuracy"]
    test = Split(tmp_path / "work" / "data",
                 Workdir(tmp_path / "work").read_data().splits["test"].shards)  # fmt: skip
    labels = sorted(shapes.SHAPES)
    drawn = [
        (labels[int(label)], sum(1 << int(place) for place in np.flatnonzero(
            test.values("pixels", i, i + 1))))
        for i, label in enumerate(test.column("label"))
    ]  # fmt: skip
    best, _ = shapes.optimum(drawn)
    assert best > 0.98
    assert best - 0.04 < found.value <= best + 0.005
