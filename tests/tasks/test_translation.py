"""Translation: every format gives the same pairs, what is learned, filters, answers."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.tokenizer import train as make_tokenizer
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.deploy.predict import Predictor
from bigmodel_cli.errors import DataError
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import load_task
from bigmodel_cli.tasks.packing import IGNORED
from bigmodel_cli.tasks.translation import Translation, TranslationOptions
from tests.conftest import Cli
from tests.data.test_translations import drawn
from tests.stages import deploy, evaluate, prepare, train

PAIRS = [("the dog sleeps", "der Hund schläft"), ("a cat\truns", "eine Katze läuft"),
         ("two birds, and more", "zwei Vögel, und mehr")]  # fmt: skip


def jsonl(folder: Path, pairs: list[tuple[Any, Any]], name: str = "pairs.jsonl") -> Path:
    lines = (json.dumps({"source": a, "target": b}) + "\n" for a, b in pairs)
    (folder / name).write_text("".join(lines), "utf-8")
    return folder / name


def split_of(work: Path, name: str = "train") -> Split:
    place = Workdir(work)
    return Split(place.data, place.read_data().splits[name].shards)


def pairs_of(split: Split) -> set[tuple[str, str]]:
    return {
        tuple(split.values(side, i, i + 1).tobytes().decode() for side in ("source", "target"))
        for i in range(len(split))
    }  # type: ignore[return-value]


def write(folder: Path, kind: str) -> tuple[list[Path | str], dict[str, Any]]:
    """PAIRS in a format, and what to say of it."""
    if kind == "jsonl":
        return [jsonl(folder, PAIRS)], {}
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([("src", "tgt"), *PAIRS])
        (folder / "a.csv").write_text(text.getvalue(), "utf-8")
        return [folder / "a.csv"], {}
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        table = pa.table({"english": [a for a, _ in PAIRS], "deutsch": [b for _, b in PAIRS]})
        pyarrow.parquet.write_table(table, folder / "a.parquet")
        return [folder / "a.parquet"], {"column": ("source=english", "target=deutsch"),
                                        "task": "translation"}  # fmt: skip
    if kind == "header":
        (folder / "a.txt").write_text("".join(f"{a}::{b}\n" for a, b in PAIRS), "utf-8")
        return [folder / "a.txt"], {"header": ("source,target",), "delimiter": "::"}
    for end, place in (("en", 0), ("de", 1)):
        data = "".join(pair[place] + "\n" for pair in PAIRS).encode()
        name = f"a.{end}" + ".gz" * (kind == "gz")
        (folder / name).write_bytes(gzip.compress(data) if kind == "gz" else data)
    files: list[Path | str] = sorted(folder.glob("a.*"), reverse=True)  # .en first
    return files, {}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "header", "lines", "gz"])
def test_every_format_gives_the_same_pairs(tmp_path: Path, kind: str) -> None:
    sources, more = write(tmp_path, kind)
    made = prepare(tmp_path / "w", *sources, tokenizer="bytes", val="0", test="0", **more)
    assert made.manifest.task == "translation"
    assert pairs_of(split_of(tmp_path / "w")) == set(PAIRS)


def test_the_direction_can_be_chosen(tmp_path: Path) -> None:
    sources, _ = write(tmp_path, "lines")
    prepare(tmp_path / "w", *sources, tokenizer="bytes", val="0", test="0",
            column=("source=de", "target=en"))  # fmt: skip
    assert pairs_of(split_of(tmp_path / "w")) == {(b, a) for a, b in PAIRS}


def test_aligned_files_that_are_named_for_splits_are_these(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 3), ("test", 2)):
        for end in ("en", "de"):
            text = "".join(f"{split} {i} in {end} words\n" for i in range(count))
            (tmp_path / f"{split}.{end}").write_text(text)
    made = prepare(tmp_path / "w", tmp_path, tokenizer="bytes").manifest
    assert [made.splits[s].units for s in ("train", "val", "test")] == [40, 3, 2]


def test_files_of_unlike_lengths_are_refused_with_their_counts(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    with pytest.raises(DataError, match=r"3.*2|2.*3"):
        prepare(tmp_path / "w", tmp_path / "a.en", tmp_path / "a.de", tokenizer="bytes")
    (tmp_path / "b.en").write_text("one\n")
    with pytest.raises(DataError, match="no file beside it"):
        prepare(tmp_path / "w", tmp_path / "b.en", task="translation", tokenizer="bytes")


def test_what_is_dropped_is_counted_and_adds_up(tmp_path: Path) -> None:
    odd: list[tuple[Any, Any]] = [
        ("copied text", "copied text"), (None, "nichts"), ("nothing", ""), ("x" * 200, "kurz"),
        ("a list", ["nein"]), PAIRS[0], ("control\x00led", " gesteuert "),
    ]  # fmt: skip
    made = prepare(tmp_path / "w", jsonl(tmp_path, [*PAIRS, *odd]), tokenizer="bytes", val="0",
                   test="0").manifest  # fmt: skip
    dropped = {reason: e.rows for reason, e in made.ledger.dropped.items()}
    assert dropped == {"copied": 1, "no_text": 1, "empty": 1, "length_mismatch": 1, "malformed": 1,
                       "duplicate_exact": 1}  # fmt: skip
    assert ("controlled", "gesteuert") in pairs_of(split_of(tmp_path / "w"))


def test_a_source_is_in_one_split_whatever_its_translations(tmp_path: Path) -> None:
    pairs = [(f"sentence {i}", f"Satz {i} ({n})") for i in range(150) for n in range(2)]
    work = tmp_path / "w"
    prepare(work, jsonl(tmp_path, pairs), tokenizer="bytes", val="0.2", test="0.2")
    seen = [{a for a, _ in pairs_of(split_of(work, name))} for name in ("train", "val", "test")]
    assert sum(map(len, seen)) == 150
    assert len(set().union(*seen)) == 150


def test_a_source_of_a_named_test_file_is_not_learned_from(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [(f"sentence {i}", f"Satz {i}") for i in range(60)])
    held = jsonl(
        tmp_path, [(f"sentence {i}", f"Ein Satz {i}") for i in range(50, 90)], "held.jsonl"
    )
    made = prepare(tmp_path / "w", source, tokenizer="bytes", val="0", test=str(held)).manifest
    assert made.ledger.dropped["in_held_out"].rows == 10
    assert [made.splits[s].units for s in ("train", "test")] == [50, 40]


def test_only_the_target_is_learned(tmp_path: Path) -> None:
    prepare(tmp_path / "w", jsonl(tmp_path, PAIRS), tokenizer="bytes", val="0", test="0")
    made: Any = load_task(Workdir(tmp_path / "w").preprocessor, "")
    split = split_of(tmp_path / "w")
    wanted = pairs_of(split)
    found = set()
    for batch in made.scoring(split, 2):
        for row, targets in zip(batch.inputs["tokens_BT"], batch.targets, strict=True):
            told = targets[targets != IGNORED].tolist()
            assert told[-1] == made.tokenizer.endoftext
            first = int((targets != IGNORED).nonzero()[0])
            source = row[1:first].tolist()
            found.add((made.tokenizer.decode(source), made.tokenizer.decode(told[:-1])))
    assert found == wanted


@pytest.mark.parametrize("family", ["transformer", "rnn", "mlp"])
def test_padding_does_not_change_the_loss(tmp_path: Path, family: str) -> None:
    prepare(tmp_path / "w", jsonl(tmp_path, PAIRS), tokenizer="bytes", val="0", test="0")
    made: Any = load_task(Workdir(tmp_path / "w").preprocessor, "")
    torch.manual_seed(0)
    model = SequenceModel(model_config(family, "nano", made.shape(), width=16, heads=2)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    split = split_of(tmp_path / "w")
    with torch.inference_mode():
        sums = [
            sum(float(made.loss_sum(model, batch)) for batch in made.scoring(split, rows))
            for rows in (1, 3)
        ]
        nats = sum(made.predict(model, b).statistics[:, 0].sum() for b in made.scoring(split, 2))
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    assert nats == pytest.approx(sums[0], rel=1e-5)


def test_a_long_pair_is_cut_and_counted(tmp_path: Path) -> None:
    long = ("a very long source " * 20, "ein sehr langes Ziel " * 20)
    prepare(tmp_path / "w", jsonl(tmp_path, [*PAIRS, long]), tokenizer="bytes", val="0", test="0")
    made: Any = load_task(Workdir(tmp_path / "w").preprocessor, "")
    object.__setattr__(made.options, "context", 64)
    split = split_of(tmp_path / "w")
    batches = list(made.scoring(split, 4))
    assert max(batch.inputs["tokens_BT"].shape[1] for batch in batches) <= 64
    assert sum(batch.extra["cut"].sum() for batch in batches) == 1


@pytest.mark.parametrize("source", [None, 3, "\ud800", ["x"]])
def test_requests_without_a_sentence_are_refused(source: Any) -> None:
    made = Translation(TranslationOptions(), make_tokenizer([""], "bytes", 0, lambda w: w()))
    with pytest.raises(DataError):
        made.request({"source": source})


@pytest.mark.parametrize("more", [{"beam": 0}, {"beam": "x"}, {"beam": 10**6},
                                  {"length_penalty": -1}, {"length_penalty": "x"}])  # fmt: skip
def test_searches_that_cannot_be_are_refused(more: dict[str, Any]) -> None:
    made = Translation(TranslationOptions(), make_tokenizer([""], "bytes", 0, lambda w: w()))
    with pytest.raises(DataError, match=next(iter(more))):
        made.request({"source": "a dog", **more})


@pytest.mark.slow
def test_a_small_transformer_learns_the_grammar(tmp_path: Path) -> None:
    work = tmp_path / "w"
    prepare(work, drawn(tmp_path, 3000), val="0.05", test="0.05", vocab_size=512)
    train(work, epochs=3, width=64, layers=2, heads=4, batch_size=16, dropout=0.0)
    document = as_json(evaluate(work).evaluation)
    bleu, base = document["metrics"]["bleu"], document["baselines"]
    assert bleu["value"] > 75  # 100 is perfect
    assert bleu["value"] > max(base["copy"]["bleu"], base["dictionary"]["bleu"]) + 30
    assert document["protocol"]["beam"] == 5
    assert deploy(work).receipt.bigmodel.answers_identical > 0
    predictor = Predictor(Workdir(work).run("default").bundle, "cpu", 2)
    lines = [json.dumps({"source": a}).encode() for a, _ in sorted(pairs_of(split_of(work)))[:9]]
    together = predictor.answer_lines(lines, {})
    assert together == [predictor.answer_lines([line], {})[0] for line in lines]


@pytest.mark.slow
def test_the_chain_through_the_program(empty: Cli) -> None:
    drawn(empty.cwd, 200)
    made = empty.works("prepare", "pairs.jsonl", "--val", "0.1", "--test", "0.1")
    assert "task translation" in made.err
    assert "pairs" in made.out
    empty.works("train", "--steps", "2", "--width", "16", "--layers", "1", "--heads", "1")
    shown = empty.works("evaluate", "--json")
    document = json.loads(shown.out)
    assert {"bleu", "chrf", "perplexity", "loss"} <= set(document["metrics"])
    assert {"copy", "dictionary"} <= set(document["baselines"])
    assert "tok:13a" in document["protocol"]["bleu"]
    empty.works("deploy")
    answer = json.loads(empty.works("predict", "The dog.", "--beam", "2", "--json").out)
    assert set(answer) == {"target"}
    line = b'{"source": "a dog", "beam": 1, "length_penalty": 0}\n{"source": 1}\n'
    done = empty("predict", stdin=line)
    assert done.code == 4
    good, bad = (json.loads(text) for text in done.out.splitlines())
    assert set(good) == {"target"}
    assert "`source`" in bad["error"]["message"]
    empty.fails("predict", "a dog", "--temperature", "1", code=2, says=["--temperature"],
                hint=["leave"])  # fmt: skip
    assert np.isfinite(document["metrics"]["loss"]["value"])
