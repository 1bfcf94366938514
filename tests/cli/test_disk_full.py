"""A disk that is full at 20 sizes of file, in every stage: exit 7, and the old state intact."""

from __future__ import annotations

import pytest

from tests.conftest import PREPARE, TINY, Cli, contents

pytestmark = pytest.mark.slow
SIZES = 20
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
