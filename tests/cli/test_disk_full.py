"""A disk that is full, in every stage, at 20 sizes of file and of disk: exit 7, and the old state
intact."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PREPARE, TINY, Cli, contents

pytestmark = pytest.mark.slow
SIZES, PAGE = 20, 4096
COMMANDS = {
    "prepare": (*PREPARE[:2], "--tokenizer", "chars", *PREPARE[4:]),
    "train": ("train", *TINY, "--steps", "4", "--checkpoint-every", "2", "--run", "other"),
    "evaluate": ("evaluate", "--force", "--samples", "1"),
    "deploy": ("deploy", "--force"),
}


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_disk_full_at_any_size_is_named_and_leaves_what_was_there(cli: Cli, stage: str) -> None:
    command = COMMANDS[stage]
    before = contents(cli.cwd)
    largest = 4 * max(len(data) for data in before.values())
    codes = []
    for number in range(SIZES):
        size = round(largest ** (number / (SIZES - 1)))
        result = cli(*command, file=size)
        codes.append(result.code)
        after = contents(cli.cwd)
        if result.code == 0:
            break
        assert result.code == 7, f"{size} bytes: {result}"
        assert "no room to write" in result.error()[0], f"{size} bytes: {result}"
        kept = [name for name in before if not name.endswith("report.html")]
        assert [n for n in kept if after.get(n) != before[n]] == [], f"{size} bytes"
    assert codes.count(7) >= 8, codes
    assert codes[-1] == 0, codes  # with room enough it goes on from what was left
    assert not list(cli.work.rglob(".tmp-*"))
    if stage == "evaluate":
        assert "up to date" in cli.works(*command[:1], *command[2:]).out
    if stage == "train":
        cli.works(*command[:-1], "undisturbed")
        runs = [cli.work / "runs" / name / "checkpoints" / "step-00000004" / "model.safetensors"
                for name in ("other", "undisturbed")]  # fmt: skip
        assert runs[0].read_bytes() == runs[1].read_bytes()


@pytest.fixture
def disk(cli: Cli) -> Iterator[Path]:
    """A small disk of its own with the finished working directory; its size is set by `resize`."""
    folder = cli.cwd / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        shutil.copytree(cli.work, folder / "work")
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_disk_without_room_is_named_and_leaves_what_was_there(
    cli: Cli, disk: Path, stage: str
) -> None:
    command = (*COMMANDS[stage], "-w", "disk/work")
    before, total = contents(disk), shutil.disk_usage(disk).used
    pages = 2 * sum(len(data) for data in before.values()) // PAGE
    codes = []
    for number in range(SIZES):
        resize(disk, total + PAGE * round(pages ** (number / (SIZES - 1))))
        result = cli(*command)
        codes.append(result.code)
        after = contents(disk)
        if result.code == 0:
            break
        assert result.code == 7, result
        kept = [name for name in before if not name.endswith("report.html")]
        assert [n for n in kept if after.get(n) != before[n]] == []
    assert codes.count(7) >= 3, codes
    assert codes[-1] == 0, codes
    assert not list(disk.rglob(".tmp-*"))
