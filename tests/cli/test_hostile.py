"""Bundles and working directories that somebody made to do harm: their hashes are right, and what
they hold is not what this program writes. Each ends with code 5 or 7, in bounded time and memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.artifacts import manifest
from bigmodel_cli.artifacts.records import as_json
from bigmodel_cli.artifacts.workdir import Workdir
from tests.conftest import PREPARE, TRAIN, Cli, environment

RUN = "work/runs/default"
BUNDLE = f"{RUN}/bundle"
SECONDS = 60  # on a busy machine; what hangs takes for ever
MEMORY = 6 << 30  # bytes of addresses, of which torch takes 3 GB


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a manifest; its checksum is right again."""
    document = manifest.read_json(path, "document", "")
    change(document)
    manifest.write_json(path, document)


def listed(folder: Path, name: str, record: Path, key: str) -> None:
    """Has a record list a file as it is now."""
    info = as_json(manifest.file_info(folder / name))
    rewrite(record, lambda document: document[key].update({name: info}))


def in_bundle(cli: Cli, name: str, data: bytes) -> None:
    (cli.cwd / BUNDLE / name).write_bytes(data)
    listed(cli.cwd / BUNDLE, name, cli.cwd / BUNDLE / "bigmodel.json", "files")


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def tokenizer(cli: Cli, **parts: Any) -> None:
    path = cli.cwd / BUNDLE / "tokenizer.json"
    in_bundle(cli, path.name, json.dumps({**json.loads(path.read_bytes()), **parts}).encode())


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def model(**values: Any) -> Callable[[Cli], None]:
    def change(cli: Cli) -> None:
        rewrite(cli.cwd / BUNDLE / "bigmodel.json", lambda d: d["model"].update(values))

    return change


def shape(**values: Any) -> Callable[[Cli], None]:
    def change(cli: Cli) -> None:
        path = cli.cwd / BUNDLE / "bigmodel.json"
        rewrite(path, lambda d: d["model"]["shape"].update(values))

    return change


def fields(**values: Any) -> Callable[[Cli], None]:
    def change(cli: Cli) -> None:
        rewrite(cli.cwd / BUNDLE / "bigmodel.json", lambda d: d.update(values))

    return change


def special(name: str, make: Callable[[Path], None]) -> Callable[[Cli], None]:
    """Something else in place of a listed file, with the size that it seems to have."""

    def change(cli: Cli) -> None:
        path = cli.cwd / BUNDLE / name
        path.unlink()
        make(path)
        info = {"bytes": 0, "sha256": "0" * 64}
        rewrite(cli.cwd / BUNDLE / "bigmodel.json", lambda d: d["files"].update({name: info}))

    return change


def options(**values: Any) -> Callable[[Cli], None]:
    def change(cli: Cli) -> None:
        rewrite(cli.cwd / BUNDLE / "task.json", lambda d: d["options"].update(values))
        listed(cli.cwd / BUNDLE, "task.json", cli.cwd / BUNDLE / "bigmodel.json", "files")

    return change


def weights(data: bytes) -> Callable[[Cli], None]:
    return lambda cli: in_bundle(cli, "model.safetensors", data)


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BUNDLES: dict[str, Callable[[Cli], None]] = {
    "no files listed": fields(files={}),
    "files are a list": fields(files=["model.safetensors"]),
    "a file outside": fields(files={"../../../data/manifest.json": {"bytes": 1, "sha256": ""}}),
    "an absolute name": fields(files={"/etc/passwd": {"bytes": 1, "sha256": ""}}),
    "a size that is text": fields(files={"model.safetensors": {"bytes": "1", "sha256": ""}}),
    "the layout is unknown": fields(layout="pickle"),
    "the model is a list": fields(model=[]),
    "a pipe": special("model.safetensors", os.mkfifo),
    "a device": special("tokenizer.json", lambda path: path.symlink_to("/dev/zero")),
    "a link to elsewhere": special("task.json", lambda path: path.symlink_to("/etc/hostname")),
    "a folder": special("README.md", Path.mkdir),
    "the manifest is a pipe": lambda cli: (
        (cli.cwd / BUNDLE / "bigmodel.json").unlink(),
        os.mkfifo(cli.cwd / BUNDLE / "bigmodel.json"),
    )[1],
    "a billion layers": model(layers=10**9),
    "no heads": model(heads=0),
    "a width beyond all": model(width=1 << 62),
    "a width that is text": model(width="32"),
    "a family of its own": model(family="os.system"),
    "a negative window": model(sliding_window=-1),
    "another vocabulary": shape(vocabulary=5),
    "an endless context": shape(context=10**12),
    "a shape with more": shape(more=1),
    "an option of another type": options(context="long"),
    "an option beyond its range": options(context=1 << 40),
    "an unknown option": options(danger=True),
    "300,000 tensors": weights(header({f"t{i}": TENSOR for i in range(300_000)}, bytes(4))),
    "nested JSON in a head": weights(header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)),
    "a tensor of many sizes": weights(header({"a": {**TENSOR, "shape": [2] * 200_000}}, bytes(4))),
    "a size of 4,000 digits": weights(header({"a": {**TENSOR, "shape": [10**4000]}}, bytes(4))),
    "whole numbers as weights": weights(
        header({"embed.weight": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
    ),
    "an empty head": weights(header({})),
    "a growing text": lambda cli: tokenizer(
        cli, normalizer={"type": "Sequence",
                         "normalizers": [replace({"String": "a"}, "aa")] * 40},
    ),
    "a growing text by expressions": lambda cli: tokenizer(
        cli, normalizer=replace({"Regex": "(?:)"}, "x" * 1_000_000)
    ),
    "a growing answer": lambda cli: tokenizer(
        cli, decoder={"type": "Sequence", "decoders": [
            {"type": "ByteLevel"}, replace({"String": "e"}, "e" * 10_000_000)]},
    ),
    "a tokenizer that is nested": lambda cli: in_bundle(
        cli, "tokenizer.json", b'{"normalizer":' * 50_000
    ),
    "a file that is not listed": lambda cli: rewrite(
        cli.cwd / BUNDLE / "bigmodel.json", lambda d: d["files"].pop("tokenizer.json")
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_hostile_bundle_is_refused(cli: Cli, name: str) -> None:
    BUNDLES[name](cli)
    began = time.monotonic()
    command = ("predict", "a", "--max-tokens", "4", "--bundle", BUNDLE)
    result = cli(*command, timeout=SECONDS, memory=MEMORY)
    assert result.code == 5, str(result)
    assert result.error()[1]
    assert time.monotonic() - began < SECONDS


# Working directories -----------------------------------------------------------------------------

COMMANDS = {
    "data": (*PREPARE, "--force"),
    RUN.removeprefix("work/"): ("evaluate", "--force"),
}


@pytest.mark.parametrize("name", [".lock", ".lock-holder", ".lock-soft", "more", ".hashes.json"])
@pytest.mark.parametrize("folder", COMMANDS)
def test_nothing_is_written_through_a_planted_link(cli: Cli, folder: str, name: str) -> None:
    target = cli.cwd / "precious.txt"
    target.write_text("keep me")
    path = cli.work / folder / name
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    cli.fails(*COMMANDS[folder], code=7, says=[name], hint=["--workdir"])
    assert target.read_text() == "keep me"


@pytest.mark.parametrize("command", [("train", *TRAIN[1:], "--restart"), ("deploy", "--force")])
@pytest.mark.parametrize("name", ["log.jsonl", "checkpoints", "checkpoints/best.json", "bundle"])
def test_a_runs_files_are_not_written_through_links(
    cli: Cli, name: str, command: tuple[str, ...]
) -> None:
    path, away = cli.cwd / RUN / name, cli.cwd / "away"
    path.rename(away)
    path.symlink_to(away)
    before = {p: p.read_bytes() for p in [away, *away.rglob("*")] if p.is_file()}
    cli.fails(*command, code=7, says=[path.name, "link"])
    assert all(p.read_bytes() == data for p, data in before.items())


@pytest.mark.parametrize("name", ["runs", "runs/default", "data"])
def test_a_folder_that_is_a_link_is_not_written_to(cli: Cli, name: str) -> None:
    path = cli.work / name
    path.rename(cli.cwd / "away")
    path.symlink_to(cli.cwd / "away")
    command = COMMANDS["data"] if name == "data" else ("evaluate", "--force")
    cli.fails(*command, code=7, says=[f"`work/{name}`", "link"])


@pytest.mark.slow
def test_the_working_directory_itself_may_be_a_link(cli: Cli) -> None:
    cli.work.rename(cli.cwd / "disk")
    cli.work.symlink_to(cli.cwd / "disk")
    cli.works("evaluate", "--force")


def test_a_traceback_does_not_follow_a_link(tmp_path: Path) -> None:
    target = tmp_path / "precious.txt"
    target.write_text("keep me")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "traceback.txt").symlink_to(target)
    path = Workdir(tmp_path / "work").keep_traceback(ValueError("broken"))
    assert target.read_text() == "keep me"
    assert path is not None
    assert "broken" in path.read_text()


@pytest.mark.parametrize(
    "name", ["data/manifest.json", "runs/default/config.json", "runs/default/evaluation.json",
             "runs/default/checkpoints/best.json", "data/.lock-holder", "data/.hashes.json"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["status", "evaluate", " ".join(PREPARE)])
def test_a_pipe_in_place_of_a_file_holds_nobody_up(cli: Cli, name: str, command: str) -> None:
    path = cli.work / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    result = cli(*command.split(), timeout=SECONDS)
    assert result.code in (0, 5, 7), str(result)


def test_a_run_that_lists_no_preprocessor_is_not_worked_with(cli: Cli) -> None:
    rewrite(cli.cwd / RUN / "config.json", lambda document: document.update(codec={}))
    cli.fails("evaluate", "--force", code=5, says=["preprocessor", "not listed"])


def test_data_that_lie_about_their_examples_are_refused(cli: Cli) -> None:
    path = cli.work / "data" / "manifest.json"
    rewrite(path, lambda d: d["splits"]["test"]["shards"][0].update(examples=10**6))
    cli.fails("evaluate", "--force", code=5, says=["1,000,000 examples"])
    rewrite(path, lambda d: d["splits"]["test"]["shards"][0].update(name="../../corpus.jsonl"))
    cli.fails("evaluate", "--force", code=5, says=["../../corpus.jsonl"])


# Locks -------------------------------------------------------------------------------------------

WITHOUT = """
import errno, fcntl, os, sys
def flock(handle, operation):
    raise OSError(getattr(errno, os.environ["LOCKLESS"]), "no locks here")
fcntl.flock = flock
from bigmodel_cli.artifacts import workdir
if os.environ.get("HOLD"):
    clean = workdir.clean
    def hold(folder):
        clean(folder)
        print("held", flush=True)
        sys.stdin.read()
    workdir.clean = hold
from bigmodel_cli.__main__ import main
main()
"""


def lockless(cli: Cli, error: str, *argv: str, hold: bool = False) -> subprocess.Popen[bytes]:
    env = environment({"LOCKLESS": error, **({"HOLD": "1"} if hold else {})})
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT, *argv], cwd=cli.cwd, env=env, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_still_has_one_writer(cli: Cli, error: str) -> None:
    command = (*PREPARE, "--force")
    first = lockless(cli, error, *command, hold=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        second = lockless(cli, error, *command)
        out, err = second.communicate(timeout=SECONDS)
        assert second.returncode == 75, err
        assert b"in use" in err
        assert b".lock-soft" in err
    finally:
        first.kill()
        first.communicate()
    for _ in range(2):  # nobody holds it any more, whatever the killed one left
        again = lockless(cli, error, *command)
        out, err = again.communicate(timeout=SECONDS)
        assert again.returncode == 0, (out, err)
