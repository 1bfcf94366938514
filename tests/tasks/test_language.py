"""The language task: what text becomes, token by token, and how a split of it is scored."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.artifacts.shards import Columns, ShardWriter, Split
from bigmodel_cli.artifacts.tokenizer import default_vocabulary, train
from bigmodel_cli.errors import ArtifactError, DataError, UsageError
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.models.sizes import model_config
from bigmodel_cli.tasks import Rows, load_task, save_task, task_class
from bigmodel_cli.tasks.clean import clean_text
from bigmodel_cli.tasks.columns import text_column
from bigmodel_cli.tasks.keys import task_keys
from bigmodel_cli.tasks.language import PASSES, Language, LanguageOptions
from bigmodel_cli.tasks.packing import IGNORED, Sequences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from bigmodel_cli.tasks import Units

    Block = tuple[str | None, bool, bool]  # text, whether it follows, whether its document ends

EOT = 0


def encoded(made: Language, units: Any) -> Columns:
    return made.encode(units, Ledger())


def task(**options: Any) -> Language:
    """The task with a tokenizer of bytes, so that what a text becomes is known."""
    return Language(LanguageOptions(**options), train([""], "bytes", 0, lambda work: work()))


def table(blocks: Sequence[Block], rows: Sequence[int] | None = None) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [
            pa.array([block[0] for block in blocks], pa.large_string()),
            pa.array([block[1] for block in blocks], pa.bool_()),
            pa.array([block[2] for block in blocks], pa.bool_()),
            pa.array(rows if rows is not None else range(len(blocks)), pa.int64()),
        ],
        names=["text", "follows", "ends", "row"],
    )


def examples(columns: Columns) -> list[list[int]]:
    ends = np.cumsum(columns.lengths["tokens"]).tolist()
    tokens = columns.values["tokens"].tolist()
    return [tokens[first:last] for first, last in zip([0, *ends], ends)]


def split_of(folder: Path, made: Language, parts: Iterable[Sequence[Block]]) -> Split:
    writer = ShardWriter(folder, "val")
    for blocks in parts:
        writer.add(encoded(made, table(blocks)))
    return Split(folder, writer.close())


# Encoding -------------------------------------------------------------------------------------


def test_endoftext_precedes_every_document_and_is_its_last_target() -> None:
    made = task()
    columns = encoded(made, table([("ab", False, True), ("é", False, True)]))
    a, b, c, d = made.tokenizer.encode("abé")
    assert examples(columns) == [[EOT, a, b, EOT], [EOT, c, d, EOT]]
    assert columns.values["start"].tolist() == [1, 1]
    assert columns.values["bytes"].tolist() == [2, 2]


def test_blocks_that_follow_each_other_are_one_sequence() -> None:
    made = task()
    columns = encoded(
        made,
        table([("a", False, False), ("b", True, False), ("c", True, True), ("d", False, True)]),
    )
    a, b, c, d = made.tokenizer.encode("abcd")
    assert examples(columns) == [[EOT, a], [b], [c, EOT], [EOT, d, EOT]]
    assert columns.values["start"].tolist() == [1, 0, 0, 1]


def test_a_gap_begins_a_new_sequence_that_ends_only_where_its_document_does() -> None:
    made = task()
    blocks: list[Block] = [("a", False, False), ("c", True, False), ("d", True, True)]
    columns = encoded(made, table(blocks, rows=[0, 2, 3]))  # block 1 is in another split
    a, c, d = made.tokenizer.encode("acd")
    assert examples(columns) == [[EOT, a], [EOT, c], [d, EOT]]
    assert columns.values["start"].tolist() == [1, 1, 0]


def test_what_one_call_encodes_is_a_whole() -> None:
    made = task()
    columns = encoded(made, table([("b", True, False), ("c", True, True)], rows=[7, 8]))
    b, c = made.tokenizer.encode("bc")
    assert examples(columns) == [[EOT, b], [c, EOT]]


def test_layout_of_random_documents_tells_the_documents() -> None:
    made = task()
    draw = random.Random(0)
    for _ in range(50):
        documents = [
            [
                "".join(draw.choices("ab é😀\n", k=draw.randint(1, 6)))
                for _ in range(draw.randint(1, 5))
            ]
            for _ in range(draw.randint(1, 6))
        ]
        blocks: list[Block] = [
            (text, number > 0, number == len(document) - 1)
            for document in documents
            for number, text in enumerate(document)
        ]
        columns = encoded(made, table(blocks))
        stream = [token for example in examples(columns) for token in example]
        expected = []
        for document in documents:
            expected += [EOT, *made.tokenizer.encode("".join(document)), EOT]
        assert stream == expected
        assert columns.count == len(blocks)
        sizes = [len(text.encode()) for document in documents for text in document]
        assert columns.values["bytes"].tolist() == sizes


def test_endoftext_spelled_out_is_text() -> None:
    made = task()
    (tokens,) = examples(encoded(made, table([("<|endoftext|>", False, True)])))
    assert tokens[0] == tokens[-1] == EOT
    assert EOT not in tokens[1:-1]
    assert made.tokenizer.decode(tokens) == "<|endoftext|>"


def test_a_lossless_tokenizer_has_no_remarks_and_a_lossy_one_has() -> None:
    import tokenizers

    from bigmodel_cli.artifacts.tokenizer import Tokenizer

    made = task()
    encoded(made, table([("naïve", False, True)]))
    assert made.remarks() == []
    inner = tokenizers.Tokenizer.from_str(made.tokenizer.inner.to_str())
    inner.normalizer = tokenizers.normalizers.StripAccents()
    lossy = Language(LanguageOptions(), Tokenizer(inner))
    encoded(lossy, table([("nai\u0308ve", False, True)]))
    (remark,) = lossy.remarks()
    assert "2 bytes" in remark


# Cleaning -------------------------------------------------------------------------------------


def clean(blocks: Sequence[Block], shortest: int = 0) -> tuple[Units | None, Ledger]:
    ledger = Ledger()
    rows = Rows(table(blocks), None, lambda i: f"line {i}")
    units = clean_text(rows, ledger, shortest)
    if units is not None:
        ledger.keep(len(units.sizes), int(units.sizes.sum()))
    ledger.record()  # adds up
    return units, ledger


def whole(*texts: str | None) -> list[Block]:
    return [(text, False, True) for text in texts]


def test_control_characters_are_cut_out_and_counted() -> None:
    kept = "\t\n\x0c\r\x85\xa0\u2028\u200d"
    cut = [
        *range(9),
        0x0B,
        *range(0x0E, 0x20),
        0x7F,
        *range(0x80, 0x85),
        *range(0x86, 0xA0),
        0xFEFF,
    ]
    units, ledger = clean(whole("a" + kept + "z", "b" + "".join(map(chr, cut)) + "y"))
    assert units is not None
    assert units.table.column("text").to_pylist() == ["a" + kept + "z", "by"]
    assert units.sizes.tolist() == [2 + len(kept.encode()), 2]
    entry = ledger.removed["control_characters"]
    assert (entry.rows, entry.bytes) == (1, len("".join(map(chr, cut)).encode()))
    assert entry.where == ["line 1"]


def test_other_characters_are_never_touched() -> None:
    draw = random.Random(1)
    control = {*range(9), 0x0B, *range(0x0E, 0x20), *range(0x7F, 0x85), *range(0x86, 0xA0), 0xFEFF}
    for _ in range(20):
        text = "x" + "".join(
            chr(point)
            for point in (draw.randrange(0x110000) for _ in range(2000))
            if point not in control and not 0xD800 <= point < 0xE000
        )
        units, ledger = clean(whole(text))
        assert units is not None
        assert units.table.column("text").to_pylist() == [text]
        assert not ledger.removed


def test_each_drop_has_its_reason() -> None:
    blocks = whole("good enough", None, "", " \n\t\u3000 ", "short", "\x01\x02", "\x01long enough")
    units, ledger = clean(blocks, shortest=10)
    assert units is not None
    assert units.table.column("text").to_pylist() == ["good enough", "long enough"]
    assert [units.where(i) for i in range(2)] == ["line 0", "line 6"]
    found = {reason: (e.rows, e.bytes, e.where) for reason, e in ledger.dropped.items()}
    assert found == {
        "no_text": (1, 0, ["line 1"]),
        "empty": (3, 6 + 1, ["line 2", "line 3", "line 5"]),
        "too_short": (1, 5, ["line 4"]),
    }


def test_only_whole_documents_are_too_short() -> None:
    blocks: list[Block] = [
        ("ab", False, False), ("cd", True, False), ("ef", True, True), ("gh", False, True)
    ]  # fmt: skip
    units, ledger = clean(blocks, shortest=5)
    assert units is not None
    assert units.table.column("text").to_pylist() == ["ab", "cd", "ef"]
    assert ledger.dropped["too_short"].rows == 1


def test_length_is_in_characters() -> None:
    units, _ = clean(whole("éééé", "ééééé"), shortest=5)
    assert units is not None
    assert units.table.column("text").to_pylist() == ["ééééé"]


def test_nothing_left_is_none() -> None:
    units, ledger = clean(whole(None, "", " "))
    assert units is None
    assert ledger.rows_dropped == ledger.rows_in == 3


# Columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "wanted", "column"),
    [
        ({"id": "string", "text": "string"}, "", "text"),
        ({"content": "string", "title": "string"}, "", "content"),
        ({"text": "string", "content": "string"}, "", "text"),
        ({"id": "number", "lines": "string"}, "", "lines"),
        ({"text": "string", "title": "string"}, "title", "title"),
        ({"a": "string", "b": "string", "sentence": "string"}, "", "sentence"),
        ({"Text": "string", "Title": "string"}, "", "Text"),
        ({"userId": "string", "url": "string", "note": "string"}, "", "note"),
    ],
)
def test_the_column_of_text_is_found(found: dict[str, str], wanted: str, column: str) -> None:
    assert text_column(found, wanted, "here") == column
    assert task().columns(found, {"text": wanted}, "here") == {"text": column}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"a": "string", "b": "string"}, ""),
        ({"id": "number"}, ""),
        ({}, ""),
        ({"text": "string"}, "body"),
        ({"Heading": "string", "Title": "string"}, ""),
        ({"userId": "string", "url": "string"}, ""),
    ],
)
def test_an_unclear_column_is_asked_for(found: dict[str, str], wanted: str) -> None:
    with pytest.raises(DataError) as caught:
        text_column(found, wanted, "`here`")
    assert "`here`" in caught.value.message
    assert all(f"`{name}`" in caught.value.hint for name in found)


# Tokenizers and codecs ------------------------------------------------------------------------


def test_the_vocabulary_grows_with_the_text() -> None:
    sizes = [default_vocabulary(1 << power) for power in range(36)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1024, 32768)
    assert default_vocabulary((1 << 19) - 1) < default_vocabulary(1 << 19)


@pytest.mark.parametrize("kind", ["bpe", "chars", "bytes"])
def test_a_saved_task_loads_as_itself(tmp_path: Path, kind: str) -> None:
    made = Language(LanguageOptions(tokenizer=kind, vocab_size=300, context=77))
    texts = table([("hello there, hello", False, True), ("çé", False, True)])
    said = made.fit(lambda _: iter([texts]), 22, lambda work: work())
    assert kind in said
    save_task(made, tmp_path)
    again = load_task(tmp_path, "hint")
    assert isinstance(again, Language)
    assert again.options == made.options
    assert again.shape() == made.shape()
    for name in ("tokens", "start", "bytes"):
        np.testing.assert_array_equal(
            encoded(again, texts).values[name], encoded(made, texts).values[name]
        )


@pytest.mark.parametrize(
    "content",
    [
        '{"schema": 1, "task": "nonsense", "options": {}}',
        '{"schema": 1, "task": "language", "options": {"unknown": 1}}',
        '{"schema": 1, "task": "language"}',
        '{"schema": 1, "options": {}}',
        '{"schema": 99, "task": "language", "options": {}}',
        "[]",
        "",
    ],
)
def test_a_damaged_preprocessor_is_named(tmp_path: Path, content: str) -> None:
    save_task(task(), tmp_path)
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(ArtifactError):
        load_task(tmp_path, "hint")


def test_an_unknown_task_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        task_class("langauge")
    assert "`language`" in caught.value.hint


def test_options_belong_to_stages() -> None:
    prepare, training = (
        {key.name for key in task_keys(s, ["language"])} for s in ("prepare", "train")
    )
    assert prepare == {"min_chars", "tokenizer", "vocab_size"}
    assert training == {"objective", "context"}


# Scoring --------------------------------------------------------------------------------------

PARTS: list[list[Block]] = [
    whole("x" * 3, "yz" * 40, "é😀" * 9),
    [
        ("one long document, ", False, False),
        ("which goes on, ", True, False),
        ("ends.", True, True),
    ],
    whole("a", "b" * 31, "c" * 32, "d" * 33),
]


class Uniform:
    """A model that finds every token of the vocabulary equally likely."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, tokens_BT: torch.Tensor, segments_BT: Any = None) -> torch.Tensor:
        del segments_BT
        return torch.zeros(*tokens_BT.shape, self.size)


def batches(made: Language, split: Split, rows: int, limit: int | None = None) -> Iterator[Any]:
    for batch in made.scoring(split, rows, limit):
        assert len(batch.targets) <= rows
        assert batch.targets.shape == batch.inputs["tokens_BT"].shape
        assert batch.targets.shape[1] <= made.options.context
        assert batch.terms == int((batch.targets != IGNORED).sum()) > 0
        yield batch


@pytest.mark.parametrize("context", [2, 3, 8, 32, 500])
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_scoring_scores_each_target_of_each_unit_once(
    tmp_path: Path, context: int, rows: int
) -> None:
    made = task(context=context)
    split = split_of(tmp_path, made, PARTS)
    sequences = Sequences.of(split)
    expected: Counter[tuple[int, int]] = Counter()
    units = np.repeat(np.arange(len(split)), split.lengths("tokens"))
    at = 0
    for index, length in enumerate(sequences.lengths.tolist()):
        tokens = sequences.tokens(index).tolist()
        expected.update(zip(units[at + 1 : at + length].tolist(), tokens[1:]))
        at += length
    found: Counter[tuple[int, int]] = Counter()
    total = 0
    for batch in batches(made, split, rows):
        scored = batch.targets.numpy() != IGNORED
        found.update(
            zip(batch.extra["units"][scored].tolist(), batch.targets.numpy()[scored].tolist())
        )
        total += int(batch.extra["sizes"][scored].sum())
    assert found == expected
    assert total == int(split.column("bytes").sum())


@pytest.mark.parametrize("context", [2, 5, 16, 64])
def test_a_masked_model_is_asked_for_each_target_once_without_seeing_it(
    tmp_path: Path, context: int
) -> None:
    made = task(context=context, objective="masked")
    split = split_of(tmp_path, made, PARTS)
    total = size = 0
    for batch in batches(made, split, 3):
        told = batch.targets != IGNORED
        inputs = batch.inputs["tokens_BT"]
        assert (inputs[told] == made.tokenizer.mask).all()
        assert (inputs[~told] != made.tokenizer.mask).all()
        hidden = told.float().mean(1).max()
        assert hidden <= 1 / PASSES + 1 / told.shape[1]
        total += batch.terms
        size += int(batch.extra["sizes"][told.numpy()].sum())
    assert total == int((Sequences.of(split).lengths - 1).sum())
    assert size == int(split.column("bytes").sum())


def test_a_limit_takes_the_first_rows_only(tmp_path: Path) -> None:
    made = task(context=8)
    split = split_of(tmp_path, made, PARTS)
    assert sum(len(batch.targets) for batch in batches(made, split, 2, limit=3)) == 3


def test_statistics_of_a_uniform_model_are_known(tmp_path: Path) -> None:
    made = task(context=16)
    split = split_of(tmp_path, made, PARTS)
    model: Any = Uniform(made.tokenizer.size)
    sums, unit_bytes = np.zeros(4), np.zeros(len(split))
    for batch in batches(made, split, 5):
        predictions = made.predict(model, batch)
        sums += predictions.statistics.sum(0)
        np.add.at(unit_bytes, predictions.units, predictions.statistics[:, 2])
    targets = int((Sequences.of(split).lengths - 1).sum())
    size = int(split.column("bytes").sum())
    assert unit_bytes.tolist() == split.column("bytes").tolist()
    assert sums[:3] == pytest.approx([targets * math.log(made.tokenizer.size), targets, size])
    values = {metric.name: float(metric.value(sums)) for metric in made.metrics()}
    assert values["loss"] == pytest.approx(math.log(made.tokenizer.size))
    assert values["perplexity"] == pytest.approx(made.tokenizer.size)
    assert values["bits_per_byte"] == pytest.approx(targets * math.log2(made.tokenizer.size) / size)


def test_the_loss_is_a_sum_however_rows_are_batched(tmp_path: Path) -> None:
    made = task(context=12)
    split = split_of(tmp_path, made, PARTS)
    plan = made.plan(split, 0)
    torch.manual_seed(0)
    config = model_config("rnn", "nano", made.shape(), width=16, layers=1, heads=1)
    model = SequenceModel(config)
    sums = []
    for size in (1, 2, 4, 8):
        parts = [plan.batch(first, size) for first in range(0, 8, size)]
        sums.append(sum(made.loss_sum(model, part).item() for part in parts))
        assert sum(part.terms for part in parts) == plan.batch(0, 8).terms
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-6)
    with torch.inference_mode():
        for batch in batches(made, split, 5):  # and it is what evaluation scores
            nats = made.predict(model, batch).statistics[:, 0].sum()
            assert made.loss_sum(model, batch).item() == pytest.approx(nats, rel=1e-5)


def test_baselines_score_every_byte_of_the_split_once(tmp_path: Path) -> None:
    made = task(context=12)
    known = split_of(tmp_path / "train", made, [whole("abc" * 50, "xyz" * 30)])
    split = split_of(tmp_path / "val", made, PARTS)
    names = []
    for name, predictions in made.baselines(known, split):
        names.append(name)
        sums = np.zeros(len(split))
        np.add.at(sums, predictions.units, predictions.statistics[:, 2])
        assert sums.tolist() == split.column("bytes").tolist()
        assert int(predictions.statistics[:, 1].sum()) == int(
            (Sequences.of(split).lengths - 1).sum()
        )
    assert names == ["unigram", "kneser_ney_5"]
