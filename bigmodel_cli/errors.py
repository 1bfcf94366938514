"""The error trees. Each class owns its exit code; libraries raise, `cli` alone prints.

BigmodelError      1   a bug of ours
├── UsageError     2   wrong usage or configuration
├── GateError      3   a gate said no
├── DataError      4   input data unusable
├── ArtifactError  5   an artifact missing, corrupt, stale or of a newer format
├── DivergedError  6   training diverged
└── ResourceError  7   out of memory, threads or disk, or not writable

StopError              no Exception: a signal may come anywhere, and nobody who guards against a
│                      library's failures may take it for one
├── StoppedError  75   stopped by SIGTERM, or the folder is in use: run the same command again
└── InterruptError 130 Ctrl-C, likewise resumable
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class _Told:
    """What happened, with the value in backticks, and a hint: the command to run next."""

    code = 1
    default_hint = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)  # type: ignore[call-arg]
        self.message = message
        self.hint = hint or self.default_hint


class BigmodelError(_Told, Exception):
    pass


class StopError(_Told, BaseException):
    pass


class UsageError(BigmodelError):
    code = 2
    default_hint = "see bigmodel --help"


class GateError(BigmodelError):
    code = 3


class DataError(BigmodelError):
    code = 4
    default_hint = "correct the input, or leave it out"


class ArtifactError(BigmodelError):
    code = 5


class FormatError(ArtifactError):
    """Of a newer format: never ours to replace or to work around."""


class DivergedError(BigmodelError):
    code = 6


class ResourceError(BigmodelError):
    code = 7


class StoppedError(StopError):
    code = 75


class InterruptError(StopError):
    code = 130


NO_MEMORY = "try a smaller --micro-batch, --size or --context, or --threads 1"
NO_THREAD = "use --threads 1, free some memory, or allow more processes (ulimit -u)"
# what libraries say, in lower case, in errors of many kinds (Rust's panics among them)
SHORT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "bad allocation",
    "bad_alloc",
    "failed to map segment from shared object",
    "could not create a primitive",
)
SHORT_OF_THREADS = (
    "can't start new thread",
    "can't allocate lock",
    "threadpoolbuilderror",
    "resource temporarily unavailable",
    "thread creation failed",
    "pthread_create",
)


def shortage(error: BaseException) -> ResourceError | None:
    """What an error of Python's or of a library's means where memory or threads ran out, else
    None."""
    text = str(error).lower()
    if any(words in text for words in SHORT_OF_THREADS):
        return ResourceError("the system has no thread to give", NO_THREAD)
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or any(words in text for words in SHORT_OF_MEMORY):
        return ResourceError("out of memory", NO_MEMORY)
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known words, else all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.6)
    near = near or [name for name in names if _abbreviates(word, name)][:3]
    if near:
        return "did you mean " + " or ".join(f"`{name}`" for name in near) + "?"
    return "known: " + ", ".join(names)


def _abbreviates(word: str, name: str) -> bool:
    """Whether a word is a name's beginning, one of its parts, or their initials: `lr`."""
    parts = name.replace("-", "_").split("_")
    initials = "".join(part[:1] for part in parts)
    return bool(word) and (name.startswith(word) or word in (*parts, initials))
