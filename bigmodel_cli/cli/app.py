"""The program: its commands, its signals, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from bigmodel_cli import __version__
from bigmodel_cli.artifacts.workdir import Workdir
from bigmodel_cli.cli import deploy, evaluate, predict, prepare, render, serve, status, train
from bigmodel_cli.cli.advice import workdir
from bigmodel_cli.cli.options import layout
from bigmodel_cli.errors import (
    NO_MEMORY,
    BigmodelError,
    InterruptError,
    ResourceError,
    StopError,
    shortage,
)
from bigmodel_cli.events import Stop

STARTED = time.monotonic()
ROOM = 256 << 20  # bytes: a program that cannot have so many more is out of memory
OTHERS_SECONDS = 5  # for rank 0 to say what went wrong
STOP = Stop()

HELP = """From raw data to a running model in four commands that can prove what they did.

    bigmodel prepare data/stories
    bigmodel train --minutes 5
    bigmodel evaluate --require "bits_per_byte<=baseline"
    bigmodel deploy && bigmodel predict "One day"

Everything lives in the working directory (./work, or -w). Exit codes: 0 done or up to date,
1 a bug of ours, 2 wrong usage, 3 a gate said no, 4 unusable input data, 5 a missing or corrupt
artifact, 6 training diverged, 7 out of memory, threads or disk, or not writable, 75 stopped (run it
again), 130 Ctrl-C."""


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"bigmodel {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The Typer app with every command."""
    app = typer.Typer(
        name="bigmodel",
        help=layout(HELP),
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def top(
        version: Annotated[
            bool,
            typer.Option(
                "--version", help="Print the version.", callback=show_version, is_eager=True
            ),
        ] = False,
    ) -> None:
        del version

    for module in (prepare, train, evaluate, deploy, serve, predict, status):
        module.register(app)
    return app


def main() -> None:
    """Runs the command line and exits with the documented code."""
    _mend_streams()
    arguments = sys.argv[1:]
    as_json = "--json" in arguments[: arguments.index("--") if "--" in arguments else None]
    # Threads that wait for each other spin for a moment before they sleep: for longer, they make a
    # shared machine crawl (docs/defaults.md). It has to be said before torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # of a thread that ends for want of memory, the one that waits for it speaks
    sys.unraisablehook = lambda found: (
        None if isinstance(found.exc_value, MemoryError) else sys.__unraisablehook__(found)
    )
    signal.signal(signal.SIGINT, STOP.on_signal)
    signal.signal(signal.SIGTERM, STOP.on_signal)
    code = 0
    try:
        command = typer.main.get_command(build())
        code = int(command(standalone_mode=False) or 0)
        sys.stdout.flush()
    except typer.Exit as exit_:
        code = exit_.exit_code
    except typer.TyperException as error:
        # Typer names the option and the value itself; help without a command is no error
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            code = 2
        else:
            path = getattr(getattr(error, "ctx", None), "command_path", "bigmodel")
            code = error.exit_code
            render.error(error.format_message(), f"see {path} --help", code, as_json)
    except BrokenPipeError:  # the reader of our output is gone: `bigmodel predict | head`
        code = _unheard()
    except (KeyboardInterrupt, typer.Abort):
        error_ = InterruptError("interrupted", "run the same command again to continue")
        code = _show(error_, as_json)
    except SystemExit as error:
        gone = isinstance(error.__context__, BrokenPipeError)  # which Typer has met
        code = _unheard() if gone else _show(error, as_json)
    except BaseException as error:
        # what a library makes of a signal that it met in the middle of its import is no bug
        met = STOP.requested is not None and as_known(error) is None
        if met:
            place = Workdir(workdir())
            if place.root.is_dir():
                place.keep_traceback(error)
        code = _show(STOP.error() if met else error, as_json)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    # threads of libraries may be in the middle of a long call: they end with the process
    os._exit(code)


def _unheard() -> int:
    """What is still to be said goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _show(error: BaseException, as_json: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    known = as_known(error)
    if os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        as_json = False  # one document in all
        # what rank 0 meets as well, it says, and torchrun ends this one meanwhile
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(OTHERS_SECONDS)
    if known is None:
        place = Workdir(workdir())  # which is not made for it: `serve` and `predict` need none
        path = place.keep_traceback(error) if place.root.is_dir() else None
        where = f"; the traceback is in `{path}`" if path else f" ({_last_line(error)})"
        known = BigmodelError(
            f"this is a bug of ours: {type(error).__name__}: {error}{where}", "please report it"
        )
    with contextlib.suppress(OSError, ValueError):  # there may be nowhere left to say it
        render.error(known.message, known.hint, known.code, as_json)
    return known.code


def _last_line(error: BaseException) -> str:
    """Where an error was raised."""
    line = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {line.filename}:{line.lineno}"


def _mend_streams() -> None:
    """A closed stream becomes /dev/null; what a terminal's encoding lacks becomes a `?`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None and name != "stdin":
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")


def as_known(error: BaseException) -> BigmodelError | StopError | None:
    """Our own error, or what an error of Python's or torch's means; None for a bug."""
    if isinstance(error, BigmodelError | StopError):
        return error
    if short := shortage(error):
        return short
    if "usable temporary directory" in str(error):  # torch looks for one when it is loaded
        return ResourceError(
            f"no room in the temporary directory `{os.environ.get('TMPDIR', '/tmp')}`",
            "free some space and run again",
        )
    if isinstance(error, OSError):
        from bigmodel_cli.artifacts.manifest import storage

        try:
            with storage(Path(error.filename or workdir())):
                raise error
        except ResourceError as named:
            return named
        except OSError:
            where = f"`{error.filename}`: " if error.filename else ""
            return ResourceError(
                f"{where}{error.strerror or error}", "check the disk, the paths and permissions"
            )
    if not _has_room():  # which libraries, in the middle of an import, report as errors of any kind
        return ResourceError("out of memory", NO_MEMORY)
    return None


def _has_room() -> bool:
    """Whether a little more memory is to be had."""
    try:
        mmap.mmap(-1, ROOM).close()
    except (OSError, MemoryError):
        return False
    return True


def __getattr__(name: str) -> Any:
    if name == "app":  # for documentation tools and tests
        return build()
    raise AttributeError(name)
