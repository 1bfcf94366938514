"""Prepared data to train on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.stages import prepare, stories


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 stories, prepared. Read only."""
    folder = tmp_path_factory.mktemp("data")
    prepare(folder / "work", stories(folder, 160), vocab_size=400)
    return folder / "work"


@pytest.fixture
def work(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "work"))
