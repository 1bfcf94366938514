"""The working directory's places."""

from __future__ import annotations

import json
from pathlib import Path

from bigmodel_cli.artifacts.workdir import Workdir
from tests.stages import deploy, evaluate, prepare, stories, train


def test_a_preprocessor_by_its_former_name_is_read_and_then_replaced(tmp_path: Path) -> None:
    work, rows = tmp_path / "work", stories(tmp_path, 60)
    prepare(work, rows, tokenizer="bytes", val="0.2", test="0")
    train(work)
    places = Workdir(work), Workdir(work).run("default")
    for place in places:
        place.preprocessor.rename(place.preprocessor.with_name("codec"))
        assert place.preprocessor.name == "codec"
    assert prepare(work, rows, tokenizer="bytes", val="0.2", test="0").fresh
    assert train(work).fresh
    assert not evaluate(work, split="val").fresh
    deploy(work)
    from_former = f"{work}/runs/default"  # a tokenizer, by the folder of a run
    other = tmp_path / "other"
    prepare(other, rows, tokenizer=from_former, val="0.2", test="0")
    assert json.loads((other / "data/preprocessor/tokenizer.json").read_bytes())
    prepare(work, rows, tokenizer="bytes", val="0.2", test="0", force=True)
    train(work, restart=True)
    for place in places:
        assert place.preprocessor.name == "preprocessor"
        assert not place.preprocessor.with_name("codec").exists()
