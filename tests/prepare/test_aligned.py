"""Files whose lines belong together: which are, in which order, and what lines may hold."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.artifacts.ledger import Ledger
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.errors import DataError
from bigmodel_cli.prepare import readers, sources
from bigmodel_cli.prepare.aligned import together
from bigmodel_cli.prepare.sources import Layout, Source, find
from tests.stages import prepare

ENDS = {"source": "en", "target": "de"}


def found(folder: Path, *names: str) -> list[Source]:
    """Empty files of these names, as sources in this order."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return find([str(folder / name) for name in names], (), folder / "spool")


def rows(folder: Path, ledger: Ledger) -> list[tuple[str, str, str]]:
    """Source, target and place of each line of a.en and a.de."""
    (whole,) = together(find([str(folder / "a.en"), str(folder / "a.de")], (), folder / "spool"))
    layout = Layout(documents=False)
    parts = list(readers.read(whole, lambda *_: ENDS, layout, ledger, lambda _: None))
    return [
        (part.table["source"][i].as_py(), part.table["target"][i].as_py(), part.where(i))
        for part in parts
        for i in range(len(part.table))
    ]


def test_names_that_differ_in_their_end_alone_are_one_table(tmp_path: Path) -> None:
    whole = together(
        found(
            tmp_path, "a.v1.de", "a.v1.en.gz", "b.en", "b.de", "c.jsonl", "deep/b.de", "deep/b.en"
        )
    )
    # the end that comes first among all of them is the first column of each
    assert [[*source.columns] for source in whole] == [[], *[["de", "en"]] * 3]
    assert [source.name for source in whole][:3] == ["c.jsonl", "a.v1.{de,en}", "b.{de,en}"]
    for source in whole[1:]:
        assert source.path
        folders = {part.path.parent for part in source.columns.values() if part.path}
        assert folders == {source.path.parent}


@pytest.mark.parametrize("names", [["a.en"], ["a.en", "b.de"], ["a.en", "deep/a.de"],
                                   ["a.en", "a.en.gz", "a.de"], ["en", "de"]])  # fmt: skip
def test_a_file_without_its_other_is_refused_by_name(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match=r"`(a\.en|a\.en\.gz|en)`") as caught:
        together(found(tmp_path, *names))
    assert "train.en train.de" in caught.value.hint


@pytest.mark.parametrize("chunk", [1, 8 << 20])
def test_only_line_ends_end_lines_and_what_is_no_text_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK", chunk)
    en = "\ufeffone\r\ntwo\u2028still two\x85\x0c\n\nbad\nlast".encode()
    de = b"eins\nzwei\r\n\n\xff\xfe\nletzte\n"
    (tmp_path / "a.en").write_bytes(en)
    (tmp_path / "a.de").write_bytes(de)
    ledger = Ledger()
    assert rows(tmp_path, ledger) == [
        ("one", "eins", "a.{en,de}, line 1"),
        ("two\u2028still two\x85\x0c", "zwei", "a.{en,de}, line 2"),
        ("", "", "a.{en,de}, line 3"),
        ("last", "letzte", "a.{en,de}, line 5"),
    ]
    (entry,) = ledger.dropped.values()
    assert (ledger.rows_in, entry.rows, entry.where) == (1, 1, ["a.{en,de}, line 4 (not UTF-8)"])
    assert [*ledger.dropped] == ["unreadable"]


@pytest.mark.parametrize(("en", "de"), [(3, 2), (2, 3), (0, 2), (5000, 4999)])
def test_unlike_numbers_of_lines_are_told(tmp_path: Path, en: int, de: int) -> None:
    (tmp_path / "a.en").write_text("one\n" * en)
    (tmp_path / "a.de").write_text("eins\n" * de)
    with pytest.raises(DataError, match=rf"`a.en` has {en:,}, `a.de` has {de:,} lines"):
        rows(tmp_path, Ledger())


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    data = gzip.compress("".join(f"number {i * i}\n" for i in range(2000)).encode())
    (tmp_path / "a.en.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "a.de").write_text("eins\n" * 2000)
    with pytest.raises(DataError, match="cannot be read to its end"):
        prepare(tmp_path / "w", tmp_path / "a.en.gz", tmp_path / "a.de", tokenizer="bytes")


def test_what_changes_in_either_file_or_in_their_order_is_built_again(tmp_path: Path) -> None:
    for end, word in (("en", "number"), ("de", "Nummer")):
        text = "".join(f"{word} {i} of many words\n" for i in range(60))
        (tmp_path / f"a.{end}").write_text(text)
    files = [tmp_path / "a.en", tmp_path / "a.de"]
    work = tmp_path / "w"
    whole: dict[str, Any] = {"tokenizer": "bytes", "val": "0", "test": "0"}
    first = prepare(work, *files, **whole).manifest
    assert first.task == "translation"
    assert prepare(work, *files, **whole).fresh
    assert [item.name for item in first.recipe.inputs] == ["a.en", "a.de"]
    again = prepare(work, *files[::-1], **whole)  # the other direction
    assert not again.fresh
    (tmp_path / "a.de").write_text((tmp_path / "a.de").read_text().replace("59", "60"))
    assert not prepare(work, *files[::-1], **whole).fresh
    assert Workdir(work).read_data().ledger.came_in.rows == 60


def test_of_three_languages_two_must_be_named(tmp_path: Path) -> None:
    for end in ("en", "de", "fr"):
        text = "".join(f"{end} {i} and some more\n" for i in range(60))
        (tmp_path / f"a.{end}").write_text(text)
    files = [tmp_path / f"a.{end}" for end in ("en", "de", "fr")]
    with pytest.raises(DataError, match="3 languages: `en`, `de`, `fr`"):
        prepare(tmp_path / "w", *files, task="translation", tokenizer="bytes")
    with pytest.raises(DataError, match="cannot be both"):
        prepare(tmp_path / "w", *files, task="translation", tokenizer="bytes",
                column=("source=fr", "target=fr"))  # fmt: skip
    made = prepare(tmp_path / "w", *files, task="translation", tokenizer="bytes",
                   column=("source=fr", "target=en"))  # fmt: skip
    assert made.manifest.ledger.kept.rows == 60
