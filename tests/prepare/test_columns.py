"""Parquet's types as text."""

from __future__ import annotations

import datetime
import decimal
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import readers
from bigmodel_cli.prepare.sources import Layout, find


def values(path: Path, name: str = "c", kind: str = "value") -> list[str | None]:
    (source,) = find([str(path)], (), path)
    layout = Layout(kinds={name: kind})
    read = readers.read(source, lambda *_: {name: name}, layout, Ledger(), lambda _: None)
    return [value for rows in read for value in rows.table.column(name).to_pylist()]


TIME = datetime.datetime(2020, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None, 2**53 + 1]), ["1", None, "9007199254740993"]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([1.0, None, float("nan"), 2.5, 2.0**53]),
         ["1", None, None, "2.5", "9007199254740992"]),
        (pa.array([1.0, 0.1], pa.float32()), ["1", "0.1"]),
        (pa.array([1, None, 2]).dictionary_encode(), ["1", None, "2"]),
        (pa.array([1.5, 2.0]).dictionary_encode(), ["1.5", "2"]),
        (pa.array(["好", None, "好"]).dictionary_encode(), ["好", None, "好"]),
        (pa.array(["好", "a"], pa.large_string()).dictionary_encode(), ["好", "a"]),
        (pa.array(["好"], pa.string_view()), ["好"]),
        (pa.array([decimal.Decimal("1.10"), None]), ["1.10", None]),
        (pa.array([datetime.date(2020, 1, 2)]), ["2020-01-02"]),
        (pa.array([TIME]), ["2020-01-02 03:04:05.000000"]),
        (pa.array([True, None]), ["true", None]),
        (pa.array([b"text"]), ["text"]),
        (pa.nulls(2), [None, None]),
    ],
)  # fmt: skip
def test_values_are_written_as_people_write_them(
    tmp_path: Path, column: Any, expected: list[str | None]
) -> None:
    path = tmp_path / "a.parquet"
    beside = pa.array([{"x": [1]}] * len(column))
    pyarrow.parquet.write_table(pa.table({"beside": beside, "c": column}), path)
    assert values(path) == expected


def test_what_is_no_text_is_named_with_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for column, kind in ((pa.array([b"\xff\xfe"]), "binary"), (pa.array([[1]]), "list")):
        pyarrow.parquet.write_table(pa.table({"c": column}), path)
        with pytest.raises(DataError, match=f"the column `c` of `a.parquet` holds {kind}"):
            values(path)


def test_a_column_that_is_there_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = [pa.array([name]) for name in "xyz"]
    pyarrow.parquet.write_table(pa.table(columns, names=["a", "a", "c"]), path)
    assert values(path) == ["z"]
    with pytest.raises(DataError, match=r"`a\.parquet` has 2 columns named `a`"):
        values(path, "a")


@pytest.mark.slow
def test_a_long_text_that_comes_again_and_again_fits_in_memory(tmp_path: Path) -> None:
    """197 kB that hold 2.6 GB: one text, and where it is."""
    path = tmp_path / "a.parquet"
    text = random.Random(0).randbytes(50_000).hex()
    places = pa.array([0] * 26_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(places, pa.array([text]))
    pyarrow.parquet.write_table(pa.table({"c": column}), path)
    assert path.stat().st_size < 200_000
    (source,) = find([str(path)], (), path)
    count = 0
    for rows in readers.read(source, lambda *_: {"c": "c"}, Layout(), Ledger(), lambda _: None):
        assert rows.table.nbytes < 64 << 20
        assert rows.table.column("c")[0].as_py() == text
        count += len(rows.table)
    assert count == 26_000


def test_dates_inside_of_dialogues_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"c": [{"role": "user", "content": "好", "at": TIME}]}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    assert values(path, kind="json") == [
        '[{"role": "user", "content": "好", "at": "2020-01-02 03:04:05"}]'
    ]
