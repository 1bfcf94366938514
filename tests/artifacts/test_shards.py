"""Shards give back what was written, over all files, and name what was damaged since."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bigmodel_cli.artifacts import shards
from bigmodel_cli.artifacts.records import Shard
from bigmodel_cli.artifacts.shards import Columns, ShardWriter, Split, read_header
from bigmodel_cli.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Example = tuple[NDArray[Any], int]


def examples(count: int, seed: int, dtype: Any = np.uint16) -> list[Example]:
    random = np.random.default_rng(seed)
    return [
        (random.integers(0, 60000, random.integers(0, 9)).astype(dtype), int(random.integers(1000)))
        for _ in range(count)
    ]


def columns(part: Sequence[Example]) -> Columns:
    return Columns(
        len(part),
        {
            "tokens": np.concatenate([tokens for tokens, _ in part]),
            "bytes": np.array([size for _, size in part], np.int64),
        },
        {"tokens": np.array([len(tokens) for tokens, _ in part])},
    )


def write(folder: Path, data: Sequence[Example], cuts: Sequence[int]) -> list[dict[str, Any]]:
    """Writes `data` with one call of `add` between two cuts."""
    writer = ShardWriter(folder, "train")
    for first, last in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if last > first:
            writer.add(columns(data[first:last]))
    return writer.close()


def check(split: Split, data: Sequence[Example]) -> None:
    """Every example of the split is the one that was written."""
    assert len(split) == len(data)
    np.testing.assert_array_equal(split.column("bytes"), [size for _, size in data])
    np.testing.assert_array_equal(split.lengths("tokens"), [len(tokens) for tokens, _ in data])
    for index, (tokens, _) in enumerate(data):
        found = split.values("tokens", index, index + 1)
        assert found.dtype == tokens.dtype
        np.testing.assert_array_equal(found, tokens)


@pytest.mark.parametrize("limit", [1, 100, 1000, 1 << 30])
def test_examples_come_back_whatever_the_size_of_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", limit)
    for seed in range(5):
        folder = tmp_path / str(seed)
        data = examples(60, seed)
        random = np.random.default_rng(seed)
        cuts = sorted(random.choice(np.arange(1, 60), 11, replace=False).tolist())
        infos = write(folder, data, cuts)
        if limit == 1:
            assert len(infos) == len(cuts) + 1
        if limit == 1 << 30:
            assert len(infos) == 1
        check(Split(folder, infos), data)


def test_what_one_call_adds_stays_in_one_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    data = examples(12, 0)
    infos = write(tmp_path, data, [5, 6])
    assert [info.examples for info in infos] == [5, 1, 6]
    split = Split(tmp_path, infos)
    expected = np.concatenate([tokens for tokens, _ in data[6:12]])
    np.testing.assert_array_equal(split.values("tokens", 6, 12), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_a_dtype_is_kept_to_its_largest_value(tmp_path: Path, dtype: Any) -> None:
    largest = np.array([0, np.iinfo(dtype).max], dtype)
    infos = write(tmp_path, [(largest, 1)], [])
    check(Split(tmp_path, infos), [(largest, 1)])


def test_a_split_without_examples_has_no_shards(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "val")
    writer.add(Columns(0, {}, {}))
    assert writer.close() == []
    assert not list(tmp_path.iterdir())
    split = Split(tmp_path, [])
    assert len(split) == len(split.column("bytes")) == len(split.lengths("tokens")) == 0


def test_a_record_describes_its_file(tmp_path: Path) -> None:
    (info,) = write(tmp_path, examples(7, 1), [])
    data = (tmp_path / info.name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    name = f"train-00000-{digest[:12]}.safetensors"
    assert info == Shard(name=name, examples=7, bytes=len(data), sha256=digest)
    assert [path.name for path in tmp_path.iterdir()] == [info.name]  # nothing temporary


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a", examples(9, 2), [4])
    second = write(tmp_path / "b", examples(9, 2), [7])
    other = write(tmp_path / "c", examples(9, 3), [4])
    assert first == second
    assert first[0].sha256 != other[0].sha256


def test_shards_are_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    data = examples(5, 4)
    (info,) = write(tmp_path, data, [])
    arrays = load_file(tmp_path / info.name)
    lengths = [len(tokens) for tokens, _ in data]
    np.testing.assert_array_equal(arrays["tokens"], np.concatenate([t for t, _ in data]))
    np.testing.assert_array_equal(arrays["tokens.offsets"], np.cumsum([0, *lengths]))


def test_values_are_mapped_not_copied(tmp_path: Path) -> None:
    (info,) = write(tmp_path, examples(50, 5), [])
    split = Split(tmp_path, [info])
    whole, part = split.values("tokens", 0, 50), split.values("tokens", 10, 20)
    assert np.shares_memory(whole, part)
    assert not whole.flags.writeable
    assert not whole.flags.owndata


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    (info,) = write(tmp_path, examples(4, 6), [])
    path = tmp_path / info.name
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in [0, 7, 8, 20, len(whole) - 1, *random.integers(0, len(whole), 20).tolist()]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=info.name):
            Split(tmp_path, [info])
    path.write_bytes(whole)
    check(Split(tmp_path, [info]), examples(4, 6))


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_of_any_shorter_length_is_named(tmp_path: Path, verify: bool) -> None:
    (info,) = write(tmp_path, examples(4, 7), [])
    path = tmp_path / info.name
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=info.name) as caught:
            Split(tmp_path, [info], verify=verify)
        assert caught.value.hint
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError, match="bytes where"):
        Split(tmp_path, [info])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (info,) = write(tmp_path, examples(4, 8), [])
    (tmp_path / info.name).unlink()
    for verify in (True, False):
        with pytest.raises(ArtifactError, match="missing"):
            Split(tmp_path, [info], verify=verify)


@pytest.mark.parametrize(
    "header",
    [
        {"tokens": {"dtype": "U16", "shape": [4], "data_offsets": [0, 9999]}},
        {"tokens": {"dtype": "U16", "shape": [4], "data_offsets": [8, 0]}},
        {"tokens": {"dtype": "U16", "shape": [3], "data_offsets": [0, 8]}},
        {"tokens": {"dtype": "U16", "shape": [4]}},
        {"tokens": []},
        {"tokens": {"dtype": "U16", "shape": "4", "data_offsets": [0, 8]}},
        {"tokens": {"dtype": "U16", "shape": [-4], "data_offsets": [0, 8]}},
        [],
        "text",
        None,
    ],
)
def test_a_header_that_lies_is_corrupt(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(ArtifactError, match="corrupt"):
        read_header(path)


def test_a_good_header_says_where_the_data_begins(tmp_path: Path) -> None:
    (info,) = write(tmp_path, examples(3, 9), [])
    header, start = read_header(tmp_path / info.name)
    begin, end = header["tokens"]["data_offsets"]
    data = (tmp_path / info.name).read_bytes()[start + begin : start + end]
    expected = np.concatenate([tokens for tokens, _ in examples(3, 9)])
    np.testing.assert_array_equal(np.frombuffer(data, np.uint16), expected)
