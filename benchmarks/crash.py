"""What is left by a kill −9 or a SIGTERM anywhere: the same command, run again, ends with the bytes
of a run that nobody disturbed.

    python benchmarks/crash.py                     # all of it, about 45 minutes
    python benchmarks/crash.py --kills 4 --places 4 --stops 1

Each of prepare, train, evaluate and deploy is killed at seeded random moments, from its start to
its end; before and after each of its writes, fsyncs, renames and removals (crash.c is loaded into
the program and counts them; without a C compiler this part is left out; here the commands are
forked from a process that has the program loaded already, which saves most of the time); and sent
SIGTERM, upon which it has to end within 10 seconds with code 75. The command is run again, and
what it leaves is compared, byte for byte but for clock times. A run that is trained may lose no
more updates than lie between two checkpoints, none at a SIGTERM, and has to go on from its
checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STORIES = HERE.parent / "data" / "stories" / "stories.jsonl"
EVERY, STEPS = 3, 12
STAGES = {
    "prepare": ["prepare", str(STORIES), "--vocab-size", "400"],
    "train": ["train", "--size", "nano", "--width", "32", "--layers", "2", "--heads", "2",
              "--context", "32", "--batch-size", "8", "--steps", str(STEPS),
              "--checkpoint-every", str(EVERY)],
    "evaluate": ["evaluate", "--samples", "1"],
    "deploy": ["deploy"],
}  # fmt: skip
# what was there before: the same stage's result with other options, where that is replaced
BEFORE = {
    "prepare": ["prepare", str(STORIES), "--vocab-size", "350"],
    "evaluate": ["evaluate", "--samples", "0"],
    "deploy": ["deploy", "--precision", "bf16"],
}
TIMES = ("elapsed", "reserve", "log_bytes", "seconds", "checksum", "tokens_per_second")
SECONDS = 10  # within which SIGTERM is answered
LONGEST = 120  # seconds that a command may take
SERVER = """
import contextlib, importlib, json, os, pkgutil, signal, sys, time
import bigmodel_cli, datasets, gigatoken, pyarrow.json, safetensors.torch, tokenizers, torch
from bigmodel_cli.cli import app
for module in pkgutil.walk_packages(bigmodel_cli.__path__, "bigmodel_cli."):
    with contextlib.suppress(ImportError):  # of an extra
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if not pid:
        signal.alarm(asked["seconds"])
        os.chdir(asked["folder"])
        output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(asked["env"])
        sys.argv = ["bigmodel", *asked["words"]]
        app.STARTED = time.monotonic()
        app.main()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class BrokenError(Exception):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Stage:
    """One command, the folder that it starts from, and what it leaves there undisturbed."""

    name: str
    before: Path
    seconds: float
    after: Mapping[str, str]


def words(command: Sequence[str], work: Path) -> list[str]:
    found = [*command, "-w", str(work), "--quiet", "--json"]
    return found + ["--threads", "1", "--device", "cpu"] * (command[0] != "prepare")


def program(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Python, with this checkout's package and its output kept."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, env=env, **options
    )


def start(command: Sequence[str], work: Path) -> subprocess.Popen[bytes]:
    return program(
        "-m", "bigmodel_cli", *words(command, work), cwd=work.parent, stderr=subprocess.PIPE
    )


def finish(command: Sequence[str], work: Path) -> float:
    """Runs a command to its end; gives the seconds. Raises BrokenError when it fails."""
    began = time.monotonic()
    process = start(command, work)
    out, err = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise BrokenError(f"{command[0]} ended with {process.returncode}: {out + err!r}")
    return time.monotonic() - began


class Loaded:
    """A process that has the program and crash.c loaded, and forks for each command. (The order of
    sets, which Python draws for each process, is the same in all of them.)"""

    def __init__(self, root: Path, library: Path) -> None:
        self.output = root / "output"
        self.process = program(
            "-c", SERVER, stdin=subprocess.PIPE, env={"LD_PRELOAD": str(library)}
        )

    def run(self, command: Sequence[str], work: Path, **env: str) -> int:
        """The code that the command ends with; negative for a signal. Raises BrokenError."""
        self.output.unlink(missing_ok=True)
        asked = {
            "words": words(command, work),
            "folder": str(work.parent),
            "env": env,
            "output": str(self.output),
            "seconds": LONGEST,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise BrokenError(f"the process that forks ended with {self.process.wait()}")
        return int(line)

    def finish(self, command: Sequence[str], work: Path) -> None:
        """Runs a command to its end. Raises BrokenError when it fails."""
        if code := self.run(command, work):
            raise BrokenError(f"{command[0]} ended with {code}: {self.output.read_bytes()!r}")

    def close(self) -> None:
        self.process.communicate()


def found(work: Path) -> dict[str, str]:
    """Every file's hash, without clock times; what begins with a dot is a lock or a cache."""
    hashes = {}
    for path in sorted(p for p in work.rglob("*") if p.is_file() and not p.is_symlink()):
        name = str(path.relative_to(work))
        data = path.read_bytes()
        if ".tmp-" in name:
            raise BrokenError(f"`{name}` was left behind")
        if path.name.startswith("."):
            continue
        if path.suffix == ".json":
            data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            data = json.dumps(_timeless(lines), sort_keys=True).encode()
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def stages(root: Path) -> Iterator[Stage]:
    """Each stage with the folder that the one before it left."""
    work = root / "whole" / "work"
    work.mkdir(parents=True)
    for name, command in STAGES.items():
        if name in BEFORE:
            finish(BEFORE[name], work)
        before = root / name
        shutil.copytree(work.parent, before)
        finish(command, work)
        whole = found(work)
        shutil.rmtree(work.parent)  # once more, now that all files are in memory: the seconds
        shutil.copytree(before, work.parent)
        seconds = finish(command, work)
        if found(work) != whole:
            raise BrokenError(f"{name}, twice: other bytes")
        yield Stage(name, before, seconds, whole)


def fresh(stage: Stage) -> Path:
    """A copy of where the stage starts from, at the path where its hashes were made."""
    work = stage.before.parent / "whole" / "work"
    shutil.rmtree(work.parent)
    shutil.copytree(stage.before, work.parent)
    return work


def _saved(work: Path) -> int:
    """The step of the newest checkpoint."""
    states = work.glob("runs/default/checkpoints/step-*/state.json")
    return max([0, *(int(path.parent.name.removeprefix("step-")) for path in states)])


def _logged(work: Path) -> list[bytes]:
    """The lines of the updates that were made, in the log with their times."""
    path = work / "runs" / "default" / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"}\n") and b"gradient_norm" in line]


def again(
    stage: Stage, work: Path, how: str, finish: Callable[[Sequence[str], Path], Any] = finish
) -> None:
    """Runs the command once more and compares. Raises BrokenError."""
    saved, logged = _saved(work), _logged(work)
    if stage.name == "train" and len(logged) > saved + EVERY:
        raise BrokenError(f"{how}: {len(logged) - saved} updates are lost")
    finish(STAGES[stage.name], work)
    if stage.name == "train" and _logged(work)[:saved] != logged[:saved]:
        raise BrokenError(f"{how}: it began anew, although there was a checkpoint")
    after = found(work)
    if after != stage.after:
        odd = [
            name
            for name in sorted({*after, *stage.after})
            if after.get(name) != stage.after.get(name)
        ]
        raise BrokenError(f"{how}: other bytes in {', '.join(odd)}")


def kill(stage: Stage, moment: float) -> bool:
    """A kill −9 after a share of the time that the command takes; False where it was quicker."""
    work = fresh(stage)
    process = start(STAGES[stage.name], work)
    time.sleep(moment * stage.seconds)
    process.kill()
    process.communicate()
    again(stage, work, f"{stage.name}, killed after {moment:.2f} of its time")
    return process.returncode == -signal.SIGKILL


def stop(stage: Stage, moment: float) -> float | None:
    """A SIGTERM; gives the seconds until it was answered, None where the command was quicker."""
    how = f"{stage.name}, SIGTERM after {moment:.2f} of its time"
    work = fresh(stage)
    process = start(STAGES[stage.name], work)
    time.sleep(moment * stage.seconds)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    took = time.monotonic() - began
    # before Python has read our code nobody answers but the system
    early = process.returncode == -signal.SIGTERM and not out and not err
    if process.returncode not in (0, 75) and not early:
        raise BrokenError(f"{how}: code {process.returncode}: {err!r}")
    if took > SECONDS:
        raise BrokenError(f"{how}: answered after {took:.0f} s")
    if stage.name == "train" and process.returncode == 75 and len(_logged(work)) > _saved(work):
        raise BrokenError(f"{how}: {len(_logged(work))} updates made, {_saved(work)} saved")
    again(stage, work, how)
    return None if process.returncode == 0 else took


def library(root: Path) -> Path | None:
    """crash.c, compiled; None without a compiler."""
    path = root / "crash.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    source = str(HERE / "crash.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


def places(stage: Stage, loaded: Loaded) -> list[str]:
    """Every moment before and after a change of a file: `before fsync …`."""
    work = fresh(stage)
    log = stage.before.parent / "moments"
    log.unlink(missing_ok=True)
    code = loaded.run(STAGES[stage.name], work, CRASH_UNDER=str(work), CRASH_LOG=str(log))
    if code:
        output = loaded.output.read_bytes()
        raise BrokenError(f"{stage.name} with its changes counted: code {code}: {output!r}")
    return log.read_text().splitlines()


def inject(stage: Stage, loaded: Loaded, number: int, what: str) -> bool:
    """A kill −9 at one of these moments; False where threads took another order, and fewer."""
    work = fresh(stage)
    env = {"CRASH_UNDER": str(work), "CRASH_AT": str(number)}
    code = loaded.run(STAGES[stage.name], work, **env)
    if code not in (-signal.SIGKILL, 0):
        output = loaded.output.read_bytes()
        raise BrokenError(f"{stage.name}, {what}: code {code}: {output!r}")
    again(stage, work, f"{stage.name}, killed {what}", loaded.finish)
    return code != 0


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` numbers, evenly, the first and the last among them."""
    if count >= total:
        return [*range(total)]
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=100, help="over all stages")
    options.add_argument("--places", type=int, default=1 << 20, help="most of each stage")
    options.add_argument("--stops", type=int, default=20, help="of each stage")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--stage", choices=STAGES, help="only this one")
    chosen = options.parse_args()
    moments = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        compiled = library(root)
        loaded = Loaded(root, compiled) if compiled and chosen.places else None
        if not compiled:
            print("no C compiler: nothing is injected")
        for stage in list(stages(root)):
            killed = 0
            if chosen.stage not in (None, stage.name):
                continue
            while killed < chosen.kills // len(STAGES):
                killed += kill(stage, moments.random())
            print(
                f"{stage.name}: killed at {killed} random moments of its "
                f"{stage.seconds:.1f} s: the same bytes",
                flush=True,
            )
            if loaded:
                found_places = places(stage, loaded)
                picked = spread(chosen.places, len(found_places))
                hit = sum(inject(stage, loaded, n, found_places[n]) for n in picked)
                print(
                    f"{stage.name}: killed at {hit} of {len(found_places)} places before and "
                    "after a change of a file: the same bytes",
                    flush=True,
                )
            answered: list[float] = []
            while len(answered) < chosen.stops:
                wait = stop(stage, moments.random())
                answered += [] if wait is None else [wait]
            if answered:
                print(
                    f"{stage.name}: {len(answered)} SIGTERMs, answered within "
                    f"{max(answered):.1f} s, and the same bytes",
                    flush=True,
                )
        if loaded:
            loaded.close()


if __name__ == "__main__":
    main()
