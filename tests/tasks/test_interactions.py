"""Interactions: times, the stable core, the split, and a ledger that adds up."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bigmodel_cli.artifacts.records import LedgerRecord
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import DataError
from bigmodel_cli.tasks import load_task
from bigmodel_cli.tasks.recommendation.interactions import core, numbers
from tests.stages import Events, prepare

Row = tuple[str, str, float]


def write(path: Path, rows: Sequence[Sequence[Any]], header: str = "user,item,timestamp") -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def units(work: Path, split: str) -> list[tuple[list[str], list[str]]]:
    """(before, items) of each unit, by name."""
    place = Workdir(work)
    names = load_task(place.preprocessor, "").names  # type: ignore[attr-defined]
    found = Split(place.data, place.read_data().splits[split].shards)
    return [
        tuple([names[i] for i in found.values(f, u, u + 1)] for f in ("before", "items"))  # type: ignore[misc]
        for u in range(len(found))
    ]


def ledger(work: Path) -> LedgerRecord:
    """The ledger, which adds up, also with what the shards hold."""
    data = Workdir(work).read_data()
    found = data.ledger
    for what in ("rows", "bytes"):
        lost = sum(getattr(entry, what) for entry in found.dropped.values())
        assert getattr(found.came_in, what) == getattr(found.kept, what) + lost
    splits = data.splits.values()
    assert sum(part.tokens for part in splits) == found.kept.rows
    assert sum(part.bytes for part in splits) == found.kept.bytes
    return found


def simple_core(pairs: list[tuple[int, int]], least: int) -> set[int]:
    """The places that stay, by taking away one by one."""
    left = set(range(len(pairs)))
    while True:
        users = Counter(pairs[place][0] for place in left)
        items = Counter(pairs[place][1] for place in left)
        bad = [p for p in left if users[pairs[p][0]] < least or items[pairs[p][1]] < least]
        if not bad:
            return left
        left.discard(random.choice(bad))


@pytest.mark.parametrize("seed", range(20))
def test_the_core_is_the_one_stable_rest(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [(rng.randrange(12), int(rng.triangular(0, 15, 0))) for _ in range(60)]
    users, items = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
    least = rng.randint(1, 5)
    dropped = [place for _, places in core(users, items, least) for place in places.tolist()]
    assert len(dropped) == len(set(dropped))
    assert set(range(60)) - set(dropped) == simple_core(pairs, least)


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["1", "2.5", "-3e2"], [1, 2.5, -300]),
        (["1970-01-02", "1970-01-01"], [86400, 0]),
        (["1970-01-01T00:00:01Z", "1970-01-01 00:01:00"], [1, 60]),
        (["1970-01-01T01:00:00+01:00", " 7 ", "1970-01-01T00:00:00.5"], [0, 7, 0.5]),
        (["1", None, "", "soon", "nan", "inf"], [1, *[math.nan] * 5]),
    ],
)
def test_times_are_numbers_or_iso_dates(texts: list[str | None], wanted: list[float]) -> None:
    np.testing.assert_equal(numbers(pa.array(texts, pa.large_string())), np.array(wanted, float))


def test_leave_one_out_by_hand(tmp_path: Path) -> None:
    rows = [("a", "x", 3), ("b", "y", 1), ("a", "y", 1), ("a", "z", 2), ("c", "x", 1),
            ("b", "x", 1), ("a", "w", 3), ("b", "z", 0), ("c", "z", 9)]  # fmt: skip
    work = tmp_path / "work"
    prepare(work, write(tmp_path / "rows.csv", rows), min_count=1)
    # a: y z x w (x and w at one time, x first in the file); b: z y x; c has too few for a target
    assert units(work, "train") == [([], ["y", "z"]), ([], ["z"]), ([], ["x", "z"])]
    assert units(work, "val") == [(["y", "z"], ["x"]), (["z"], ["y"])]
    assert units(work, "test") == [(["y", "z", "x"], ["w"]), (["z", "y"], ["x"])]
    assert ledger(work).dropped == {}
    codec = load_task(Workdir(work).preprocessor, "")
    assert codec.names == ["z", "x", "y", "w"]  # type: ignore[attr-defined]
    assert codec.counts == [3, 1, 1, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("shares", "train"), [
    ({"val": "0"}, ["y", "z", "x"]), ({"test": "0"}, ["y", "z", "x"]),
    ({"val": "0", "test": "0"}, ["y", "z", "x", "w"]),
])  # fmt: skip
def test_a_split_without_a_share_takes_nothing(
    tmp_path: Path, shares: dict[str, str], train: list[str]
) -> None:
    source = write(tmp_path / "rows.csv", [("a", i, n) for n, i in enumerate("yzxw")])
    prepare(tmp_path / "work", source, min_count=1, **shares)
    assert units(tmp_path / "work", "train") == [([], train)]
    held = [split for split in ("val", "test") if units(tmp_path / "work", split)]
    assert held == [name for name in ("val", "test") if name not in shares]


def random_rows(seed: int, count: int = 400) -> list[Row]:
    rng = random.Random(seed)
    return [(f"u{rng.randrange(15)}", f"i{rng.randrange(20)}", rng.randrange(100))
            for _ in range(count)]  # fmt: skip


def test_a_split_in_time_never_lets_the_future_into_training(tmp_path: Path) -> None:
    rows = [(user, f"{item}-{n}", time) for n, (user, item, time) in enumerate(random_rows(1))]
    work = tmp_path / "work"
    prepare(work, write(tmp_path / "rows.csv", rows), min_count=1, split_by="time",
            val="0.1", test="0.2")  # fmt: skip
    when = {item: time for _, item, time in rows}
    times = {
        split: [when[item] for _, items in units(work, split) for item in items]
        for split in ("train", "val", "test")
    }
    assert max(times["train"]) < min(times["val"])
    assert max(times["val"]) < min(times["test"])
    assert len(times["test"]) == pytest.approx(80, abs=8)  # what happens at one time stays together
    assert len(times["val"]) == pytest.approx(40, abs=8)
    for before, items in units(work, "test"):
        assert [when[i] for i in before + items] == sorted(when[i] for i in before + items)
        assert all(when[item] < min(times["test"]) for item in before)
    ledger(work)


@pytest.mark.parametrize("split_by", ["leave-one-out", "time"])
@pytest.mark.parametrize("seed", range(3))
def test_everything_is_kept_or_counted(tmp_path: Path, seed: int, split_by: str) -> None:
    rng = random.Random(seed)
    lines = [f"{user},{item},{time},{rng.randint(1, 5)}" for user, item, time in random_rows(seed)]
    lines += ["", "u1,,3,5", ",i1,3,5", "u1,i1,soon,5", "u1,i1,3", "u1,i1,3,good", "u9,i9,2,5"] * 2
    rng.shuffle(lines)
    (tmp_path / "rows.csv").write_text("userId,movieId,timestamp,rating\n" + "\n".join(lines))
    work = tmp_path / "work"
    prepare(work, tmp_path / "rows.csv", min_count=6, min_rating=2, split_by=split_by, test="0.2",
            val="0.2")  # fmt: skip
    found = ledger(work)
    assert found.came_in.rows == len(lines) - 2
    dropped = {name: entry.rows for name, entry in found.dropped.items()}
    again = [line for line in lines if line.count(",") == 3]
    assert dropped["malformed"] == 2
    assert dropped["no_item"] == dropped["no_user"] == dropped["bad_timestamp"] == 2
    assert dropped["bad_rating"] == 2
    assert dropped["low_rating"] == sum(line.endswith(",1") for line in again)
    assert set(found.dropped) <= {"malformed", "no_item", "no_user", "bad_timestamp",
                                     "bad_rating", "low_rating", "duplicate_exact", "rare_user",
                                     "rare_item"}  # fmt: skip
    # what is left is a core: counted over all splits
    kept = [items for split in ("train", "val", "test") for _, items in units(work, split)]
    assert min(Counter(item for items in kept for item in items).values()) >= 6


def test_a_repeat_is_dropped_only_if_it_is_of_the_same_time(tmp_path: Path) -> None:
    rows = [("a", "x", 1), ("a", "y", 1), ("a", "x", 1), ("a", "x", 2), ("b", "x", 1)]
    work = tmp_path / "work"
    prepare(work, write(tmp_path / "rows.csv", rows), min_count=1, val="0", test="0")
    assert units(work, "train") == [([], ["x", "y", "x"]), ([], ["x"])]
    entry = ledger(work).dropped["duplicate_exact"]
    assert (entry.rows, entry.where) == (1, ["rows.csv, line 4"])


def test_without_timestamps_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    rows = [("b", "y"), ("a", "x"), ("b", "x"), ("b", "y")]
    work, events = tmp_path / "work", Events()
    source = write(tmp_path / "rows.csv", rows, "user,item")
    prepare(work, source, min_count=1, val="0", test="0", told=events.context())
    assert units(work, "train") == [([], ["y", "x", "y"]), ([], ["x"])]
    assert "no timestamps" in events.notes


def test_ties_in_time_are_told(tmp_path: Path) -> None:
    events = Events()
    source = write(tmp_path / "rows.csv", [("a", "x", 1), ("a", "y", 1), ("a", "z", 2)])
    prepare(tmp_path / "work", source, min_count=1, told=events.context(), val="0", test="0")
    assert "1 of 3 interactions have the same user and time" in events.notes


def test_sources_that_are_named_for_splits_stay_so(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    write(folder / "train.csv", [("a", "x", 1), ("a", "y", 2), ("b", "y", 9), ("b", "x", 8)])
    write(folder / "test.csv", [("a", "z", 0), ("c", "x", 1), ("c", "y", 2)])
    prepare(tmp_path / "work", folder, min_count=1, val="0")
    assert units(tmp_path / "work", "train") == [([], ["x", "y"]), ([], ["x", "y"])]
    assert units(tmp_path / "work", "test") == [(["x", "y"], ["z"]), ([], ["x", "y"])]
    ledger(tmp_path / "work")


def test_some_sources_with_timestamps_and_some_without_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [("a", "x", 1)])
    write(tmp_path / "b.csv", [("a", "x")], "user,item")
    with pytest.raises(DataError, match="some have none"):
        prepare(tmp_path / "work", tmp_path / "a.csv", tmp_path / "b.csv", task="recommendation")


HEADERLESS = ("a::x::5::1", "a::y::3::2", "a::z::4::3")
RECORDS: dict[str, tuple[bytes, dict[str, Any]]] = {
    "rows.csv": (b"user,item,ts\na,x,1\na,y,2\na,z,3\n", {}),
    "rows.tsv": (b"user_id\titem_id\ttimestamp\na\tx\t1\na\ty\t2\na\tz\t3\n", {}),
    "rows.inter": (b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
                   b"a\tx\t1\t1\na\ty\t1\t2\na\tz\t1\t3\n", {}),
    "rows.jsonl": (b'{"user": "a", "item": "x", "time": 1}\n{"user": "a", "item": "y", "time": 2}\n'
                   b'{"user": "a", "item": "z", "time": "1970-01-02"}\n', {}),
    "ratings.dat": ("\n".join(HEADERLESS).encode(),
                    {"header": ("user,item,rating,timestamp",), "delimiter": "::"}),
    "pairs.txt": (b"a x\na y\na z\n", {"header": ("user,item",), "delimiter": " "}),
    "odd.csv": (b"who,what\na,x\na,y\na,z\n", {"column": ("user=who", "item=what")}),
}  # fmt: skip


@pytest.mark.parametrize("name", [*RECORDS, "rows.parquet"])
def test_every_format_is_read_and_known(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        import pyarrow.parquet

        times = pa.array([1, 2, 3], pa.timestamp("ms"))
        table = pa.table({"userId": [7, 7, 7], "movieId": ["x", "y", "z"], "timestamp": times})
        pyarrow.parquet.write_table(table, path)
    else:
        path.write_bytes(RECORDS[name][0])
    options = RECORDS[name][1] if name in RECORDS else {}
    done = prepare(tmp_path / "work", path, min_count=1, **options)
    assert done.manifest.task == "recommendation"
    assert units(tmp_path / "work", "test") == [(["x", "y"], ["z"])]
    assert ledger(tmp_path / "work").came_in.rows == 3


def test_rows_of_test_that_may_be_in_train_are_told_of(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{(u + n) % 9}") for u in range(20) for n in range(7)]
    train = write(tmp_path / "train.csv", rows, "user,item")
    test = write(tmp_path / "test.csv", rows[-30:], "user,item")
    events = Events()
    prepare(tmp_path / "w", train, val="0", test=str(test), told=events.context())
    assert "30 interactions of val and test are in train, too" in events.notes
