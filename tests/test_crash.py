"""A sample of benchmarks/crash.py: kill −9 and SIGTERM anywhere, and the same bytes in the end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.stages import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def crash() -> Any:
    spec = importlib.util.spec_from_file_location("crash", ROOT / "benchmarks" / "crash.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stages(crash: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("crash")
    return {stage.name: stage for stage in crash.stages(root)}


@pytest.fixture(scope="session")
def loaded(crash: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("loaded")
    library = crash.library(root)
    if library is None:
        pytest.skip("there is no C compiler")
    found = crash.Loaded(root, library)
    yield found
    found.close()


STAGES = ["prepare", "train", "evaluate", "deploy"]


@pytest.mark.parametrize("name", STAGES)
def test_a_kill_at_any_moment_changes_nothing_in_the_end(
    crash: Any, stages: dict[str, Any], name: str
) -> None:
    killed = [crash.kill(stages[name], moment) for moment in (0.5, 0.8)]
    assert any(killed)


@pytest.mark.parametrize("name", STAGES)
def test_a_kill_at_a_change_of_a_file_changes_nothing_in_the_end(
    crash: Any, stages: dict[str, Any], name: str, loaded: Any
) -> None:
    all_places = crash.places(stages[name], loaded)
    assert any(place.startswith("before rename") for place in all_places)
    assert any(place.startswith("after fsync") for place in all_places)
    last = max(i for i, place in enumerate(all_places) if "rename" in place)
    numbers = sorted({*crash.spread(6, len(all_places))[:-1], last})
    hit = [crash.inject(stages[name], loaded, n, all_places[n]) for n in numbers]
    assert sum(hit) >= 5


@pytest.mark.parametrize("name", STAGES)
def test_sigterm_at_any_moment_is_answered_soon(
    crash: Any, stages: dict[str, Any], name: str
) -> None:
    waits = [crash.stop(stages[name], moment) for moment in (0.3, 0.8)]
    assert max(wait or 0 for wait in waits) < crash.SECONDS
    assert any(wait is not None for wait in waits)


def test_other_bytes_are_noticed(crash: Any, stages: dict[str, Any]) -> None:
    work = crash.fresh(stages["train"])
    crash.finish(crash.STAGES["train"], work)
    saved = sorted(work.rglob("optimizer.safetensors"))[-1]
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    assert crash.found(work) != stages["train"].after
    (work / "data" / ".tmp-x").touch()
    with pytest.raises(crash.BrokenError, match="left behind"):
        crash.found(work)
