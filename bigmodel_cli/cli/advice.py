"""Advice as commands that work here: with the working directory and the run that were named."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

COMMANDS = "prepare|train|evaluate|deploy|predict|serve|status"
COMMAND = re.compile(rf"\bbigmodel ({COMMANDS})\b(?! --help)")
NEEDS_NO_RUN = ("prepare", "status")


def named(*flags: str) -> str:
    """The value of an option on this command line; "" if it is not there."""
    arguments = sys.argv[1:]
    for word, value in zip(arguments, [*arguments[1:], ""]):
        if word in flags:
            return value
        for flag in flags:
            if flag.startswith("--") and word.startswith(f"{flag}="):
                return word.partition("=")[2]
            if not flag.startswith("--") and re.match(rf"-q?{flag[1]}.", word):
                return word.partition(flag[1])[2].removeprefix("=")
    return ""


def workdir() -> Path:
    """The working directory, also where a command line is too wrong to be parsed."""
    return Path(named("-w", "--workdir") or os.environ.get("BIGMODEL_WORKDIR") or "work")


def here(text: str, run: str = "") -> str:
    """A text whose commands say the run and the working directory, where these are not the usual
    ones. run: another than the one that was named."""
    run = run or named("--run")
    run = "" if run == "default" else run
    place = named("-w", "--workdir")

    def complete(match: re.Match[str]) -> str:
        rest = re.split(r"[;,]", text[match.end() :])[0]
        more = ""
        if run and match.group(1) not in NEEDS_NO_RUN and "--run" not in rest:
            more += f" --run {shlex.quote(run)}"
        if place and not re.search(r" (-w|--workdir)\b", rest):
            more += f" -w {shlex.quote(place)}"
        return match.group() + more

    return COMMAND.sub(complete, text)
