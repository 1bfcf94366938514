"""`bigmodel serve`: a bundle's folder, perhaps read-only, is all that it needs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import contents, environment
from tests.stages import ROOT, as_a_stranger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Cli

REQUEST = {"prompt": "The fox", "max_tokens": 5, "id": 7}
# every disk read-only, as in a container that is locked down; nothing else is changed
LOCKED = """
mount --make-rprivate /
for disk in $(awk '{print $2}' /proc/self/mounts | sort -u); do
    case $disk in /proc*|/dev|/dev/*|/sys*) ;; *) mount -o remount,ro,bind "$disk" ;; esac
done
if touch "$0" 2>/dev/null; then exit 99; fi
exec "$@"
"""
# the interpreter ends with 98 where anything is written to a file's name
AUDIT = """
import os, sys
NAMED = {"os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate", "os.rmdir",
         "os.chmod", "os.utime", "tempfile.mkstemp", "tempfile.mkdtemp", "shutil.copyfile"}

def look(event, arguments):
    writes = event == "open" and isinstance(arguments[2], int) and (
        arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ) and arguments[0] != "/dev/null" and not isinstance(arguments[0], int)
    if writes or (event in NAMED and arguments[0] != "/"):  # which is there
        os.write(2, f"{event} {arguments}\\n".encode())
        os._exit(98)

sys.addaudithook(look)
"""


@contextlib.contextmanager
def serving(
    cwd: Path, *argv: str | Path, before: list[str] | None = None, **env: str
) -> Iterator[dict[str, Any]]:
    """The document that a server prints once it answers; it must end well, and say no more."""
    command = [*(before or []), sys.executable, "-m", "bigmodel_cli", *map(str, argv)]
    with subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment({"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env}),
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            assert process.stderr
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield json.loads(line)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert process.stdout.read() == ""
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.fixture
def bundle(cli: Cli) -> Path:
    """A bundle alone, which nobody may write to."""
    folder = cli.cwd / "alone" / "model"
    shutil.copytree(cli.work / "runs" / "default" / "bundle", folder)
    shutil.rmtree(cli.work)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    folder.parent.chmod(0o555)
    return folder


def ask(url: str) -> dict[str, Any]:
    assert httpx.get(f"{url}/health").status_code == 200
    answer = httpx.post(f"{url}/predict", json=REQUEST, timeout=30)
    assert answer.status_code == 200
    return dict(answer.json())


def locked() -> list[str]:
    """A command line's beginning: where nothing at all can be written. Skips where it cannot be."""
    before = ["unshare", "--mount", "sh", "-c", LOCKED]
    tried = shutil.which("unshare") and subprocess.run([*before, "/tmp", "true"], check=False)
    if not tried or tried.returncode:
        pytest.skip("no private view of the disks is to be had here")
    return before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a stranger", "locked disks", "audited", "no folder"])
def test_a_bundle_is_enough_and_nothing_is_written(
    cli: Cli, bundle: Path, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    env = {"HOME": "/nonexistent"}
    before, cwd = [], bundle.parent
    if where == "a stranger":
        before = as_a_stranger()
        env["TMPDIR"] = "/nonexistent"
    elif where == "locked disks":
        before = [*locked(), str(bundle)]
    elif where == "audited":
        hook = tmp_path_factory.mktemp("hook")
        (hook / "sitecustomize.py").write_text(AUDIT)
        env["PYTHONPATH"] = f"{hook}{os.pathsep}{ROOT}"
    else:
        cwd = tmp_path_factory.mktemp("gone")
        before = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh"]
    there = contents(cli.cwd)
    wanted = cli.works("predict", "--bundle", bundle, stdin=json.dumps(REQUEST).encode())
    with serving(cwd, "serve", bundle, "--port", "0", "--json", before=before, **env) as document:
        assert document == {"url": document["url"], "bundle": str(bundle), "task": "language",
                            "model": "bigmodel-default"}  # fmt: skip
        assert ask(document["url"]) == json.loads(wanted.out)
    done = subprocess.run(
        [*before, sys.executable, "-m", "bigmodel_cli", "predict", "--bundle", str(bundle)],
        cwd=tmp_path_factory.mktemp("gone") if where == "no folder" else cwd,
        input=json.dumps(REQUEST), capture_output=True, text=True, timeout=60, check=False,
        env=environment({"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env}),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, wanted.out, "")
    assert contents(cli.cwd) == there


@pytest.mark.slow
def test_without_a_folder_it_takes_the_runs_bundle(cli: Cli) -> None:
    with serving(cli.cwd, "serve", "--port", "0", "--json", "-q") as document:
        assert document["bundle"] == "work/runs/default/bundle"
        assert ask(document["url"])["id"] == 7
    moved = cli.work.replace(cli.cwd / "other")
    with serving(cli.cwd, "serve", "-w", moved, "--json", BIGMODEL_SERVE_PORT="0") as document:
        assert document["bundle"] == str(moved / "runs" / "default" / "bundle")


@pytest.mark.slow
def test_deploy_serves_what_is_there_where_nothing_can_be_written(cli: Cli) -> None:
    """Nor has the working directory to be whole: the checkpoints are gone."""
    shutil.rmtree(cli.work / "runs" / "default" / "checkpoints")
    argv = ("deploy", "--serve", "--port", "0", "--json")
    with serving(cli.cwd, *argv, before=as_a_stranger()) as document:
        assert document["bundle"] == "work/runs/default/bundle"
        assert ask(document["url"])["id"] == 7
    for more in (["--force"], ["--precision", "bf16"], ["--checkpoint", "last"]):
        cli.fails("deploy", "--serve", "--port", "0", *more, code=5)


@pytest.mark.slow
def test_what_cannot_be_served(cli: Cli) -> None:
    cli.refuses("serve", "nowhere", code=5, says=["nowhere"], hint=["bigmodel deploy"])
    cli.refuses("serve", "--run", "nobody", code=5, says=["`nobody`"], hint=["default"])
    cli.refuses("serve", "-w", "none", code=5, says=["none/runs"], hint=["bigmodel deploy"])
    cli.refuses("serve", "--host", "0.0.0.0", code=2, says=["0.0.0.0"], hint=["--host 127.0.0.1"])
    cli.refuses("serve", "--port", "65536", code=2, says=["65536"])
    cli.refuses("serve", "--prot", "1", code=2, says=["--prot"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cli.refuses("serve", "--port", port, code=2, says=[port, "in use"], hint=["--port"])
    (cli.work / "runs" / "default" / "bundle" / "model.safetensors").write_bytes(b"x")
    failure = json.loads(cli("serve", "--port", "0", "--json").out)["error"]
    assert failure["code"] == 5
    assert "model.safetensors" in failure["message"]


def test_its_settings_come_from_recipes_and_the_environment(cli: Cli) -> None:
    (cli.cwd / "recipe.toml").write_text("[serve]\nport = 9\nthreads = 3\n")
    argv = ("serve", "model", "--config", "recipe.toml", "--show-config", "--json")
    shown = json.loads(cli.works(*argv, env={"BIGMODEL_SERVE_PORT": "10"}).out)["serve"]
    assert shown["bundle"] == {"value": "model", "origin": "flag"}
    assert (shown["port"]["value"], shown["host"]["value"]) == (10, "127.0.0.1")
