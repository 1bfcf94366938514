"""Runs that begin from the weights of others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.artifacts import checkpoint
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import ArtifactError, UsageError
from bigmodel_cli.tasks import load_task
from tests.stages import SERVICE, STORIES, Events, deploy, final_bytes, prepare, stories, train


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with language models: next (transformer and mlp), and masked."""
    folder = tmp_path_factory.mktemp("origin")
    work = folder / "language"
    prepare(work, stories(folder, 80), vocab_size=300)
    train(work, "next")
    train(work, "rnn", model="rnn")
    train(work, "bert", objective="masked")
    deploy(work, "next")
    return work


def service(folder: Path, name: str, tokenizer: object, count: int = 60) -> Path:
    lines = (SERVICE / name).read_text("utf-8").splitlines(keepends=True)[:count]
    (folder / name).write_text("".join(lines), "utf-8")
    prepare(folder / "w", folder / name, tokenizer=str(tokenizer), val="0.2", test="0.2")
    return folder / "w"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_tensors(folder / checkpoint.names(folder)[-1] / checkpoint.MODEL)


# nothing is learned, so that what was taken over is seen as it came
STILL: dict[str, Any] = {
    "steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0, "width": None, "layers": None,
    "heads": None, "size": "", "precision": "fp32",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_chat_begins_from_a_language_model(language: Path, tmp_path: Path, kind: str) -> None:
    source = Workdir(language).run("next")
    folder = source.folder if kind == "run" else source.bundle
    work = service(tmp_path, "dialogues.jsonl", folder)
    events = Events()
    train(work, context=events.context(), from_=str(folder), **STILL)
    before = weights(source.checkpoints)
    after = weights(Workdir(work).run("default").checkpoints)
    assert before.keys() == after.keys()
    task: Any = load_task(Workdir(work).preprocessor, "")
    fresh = [task.tokenizer.inner.token_to_id(n) for n in ("<|im_start|>", "<|im_end|>")]
    used = torch.ones(len(before["embed.weight"]), dtype=torch.bool)
    used[fresh] = False
    for name, tensor in before.items():
        if name == "embed.weight":
            torch.testing.assert_close(after[name][used], tensor[used])
            mean = tensor[used].mean(0)
            torch.testing.assert_close(after[name][fresh], mean.expand(2, -1))
        else:
            torch.testing.assert_close(after[name], tensor)
    assert "new: nothing" in events.notes


def test_a_classifier_begins_from_a_masked_model(language: Path, tmp_path: Path) -> None:
    source = Workdir(language).run("bert")
    work = service(tmp_path, "intents.jsonl", source.preprocessor)
    events = Events()
    train(work, context=events.context(), from_=str(source.folder), **STILL)
    before = weights(source.checkpoints)
    after = weights(Workdir(work).run("default").checkpoints)
    assert set(after) - set(before) == {"head.weight", "head.bias"}
    for name in set(after) & set(before):
        torch.testing.assert_close(after[name], before[name])
    assert "new: head.bias, head.weight" in events.notes


@pytest.mark.slow
def test_a_run_of_this_directory_goes_by_its_name_and_resumes_exactly(language: Path) -> None:
    more: dict[str, Any] = {"width": None, "layers": None, "heads": None, "size": ""}
    train(language, "again", from_="next", steps=4, **more)
    train(language, "cut", from_="next", steps=4, checkpoint_every=1, **more)
    place = Workdir(language).run("cut")
    for name in checkpoint.names(place.checkpoints):  # killed before its first checkpoint
        shutil.rmtree(place.checkpoints / name)
    train(language, "cut", from_="next", steps=4, checkpoint_every=1, **more)
    assert final_bytes(language, "cut") == final_bytes(language, "again")
    assert train(language, "again", from_="next", steps=4, **more).fresh
    with pytest.raises(UsageError, match="from_"):
        train(language, "again", from_="bert", steps=4, **more)


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"from_": "nobody"}, UsageError, "no run or bundle `nobody`"),
        ({"from_": "next", "width": 48}, UsageError, "--width is 48, but `next` has 32"),
        ({"from_": "next", "model": "rnn"}, UsageError, "--model is rnn"),
        ({"from_": "next", "size": "nano"}, UsageError, "--size"),
    ],
)
def test_what_does_not_fit_is_refused(
    language: Path, values: dict[str, Any], error: type[Exception], says: str
) -> None:
    more: dict[str, Any] = {"width": None, "layers": None, "heads": None, "size": "", **values}
    with pytest.raises(error, match=says):
        train(language, "other", **more)
    assert not Workdir(language).run("other").config.exists()


@pytest.mark.slow
def test_another_tokenizer_is_refused_with_what_to_do(language: Path, tmp_path: Path) -> None:
    work = service(tmp_path, "dialogues.jsonl", "bytes")
    source = Workdir(language).run("next")
    with pytest.raises(UsageError, match="other tokens") as caught:
        train(work, from_=str(source.folder), **STILL)
    assert f"--tokenizer {source.preprocessor}" in caught.value.hint
    prepare(work, tmp_path / "dialogues.jsonl", tokenizer=str(source.preprocessor))
    train(work, from_=str(source.folder), **STILL)


def test_an_rnn_of_one_direction_is_no_classifier(language: Path, tmp_path: Path) -> None:
    source = Workdir(language).run("rnn")
    work = service(tmp_path, "intents.jsonl", source.preprocessor)
    with pytest.raises(UsageError, match="one direction"):
        train(work, from_=str(source.folder), **STILL)


@pytest.mark.slow
def test_a_run_goes_on_when_its_origin_is_gone(language: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(Workdir(language).run("next").bundle, bundle)
    work = service(tmp_path, "dialogues.jsonl", bundle)
    train(work, from_=str(bundle), **{**STILL, "steps": 2})
    shutil.rmtree(bundle)
    events = Events()
    again = train(work, context=events.context(), from_=str(bundle), **{**STILL, "steps": 2})
    assert again.fresh
    assert "continues with what it took there" in events.notes
    for name, other in (("default", str(tmp_path / "bundel")), ("another", str(bundle))):
        with pytest.raises(UsageError, match="no run or bundle"):
            train(work, name, from_=other, **{**STILL, "steps": 2})
    with pytest.raises(UsageError, match="no run or bundle"):
        train(work, from_=str(bundle), restart=True, **{**STILL, "steps": 2})
    for file in Workdir(work).run("default").checkpoints.glob("*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="is whole"):
        train(work, from_=str(bundle), **{**STILL, "steps": 2})


def test_damaged_weights_are_refused(language: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(Workdir(language).run("next").bundle, bundle)
    path = bundle / checkpoint.MODEL
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="corrupt"):
        train(language, "other", from_=str(bundle), **STILL)
    assert json.loads(STORIES.read_text("utf-8").splitlines()[0])


@pytest.mark.slow
def test_items_of_others_are_refused_and_other_labels_begin_anew(
    language: Path, tmp_path: Path
) -> None:
    """Numbers that mean something else are not taken over."""
    works = []
    for letter in "ab":
        lines = [f"u{u},{letter}{(u * 7 + i) % 20},{i}" for u in range(40) for i in range(9)]
        path = tmp_path / f"{letter}.csv"
        path.write_text("\n".join(["user,item,timestamp", *lines]))
        works.append(tmp_path / letter)
        prepare(works[-1], path)
    train(works[0])
    source = Workdir(works[0]).run("default").folder
    with pytest.raises(UsageError, match="other interactions"):
        train(works[1], from_=str(source), **STILL)
    with pytest.raises(UsageError, match="itself"):
        train(works[0], from_="default", **STILL)
    codec = Workdir(language).run("bert").preprocessor
    first = service(tmp_path, "intents.jsonl", codec)
    train(first)
    rows = (tmp_path / "intents.jsonl").read_text("utf-8").replace('"refund"', '"money"')
    (tmp_path / "other.jsonl").write_text(rows, "utf-8")
    prepare(tmp_path / "other", tmp_path / "other.jsonl", tokenizer=str(codec))
    events = Events()
    train(tmp_path / "other", context=events.context(),
          from_=str(Workdir(first).run("default").folder), **STILL)  # fmt: skip
    assert "new: head.bias, head.weight" in events.notes
