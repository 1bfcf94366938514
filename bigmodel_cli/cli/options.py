"""Configuration keys as Typer options: each key is declared once, in its dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bigmodel_cli.errors import UsageError
from bigmodel_cli.options import Key


def _folder(text: str) -> Path:
    if not str(text).strip():
        raise UsageError("--workdir is empty", "name a folder, such as work")
    return Path(text)


WORKDIR = Annotated[
    str,
    typer.Option(
        "--workdir",
        "-w",
        envvar="BIGMODEL_WORKDIR",
        help="The working directory.",
        rich_help_panel="Everywhere",
        metavar="FOLDER",
    ),
]
RUN = Annotated[
    str,
    typer.Option("--run", help="The training run.", rich_help_panel="Everywhere", metavar="NAME"),
]


@dataclass(frozen=True)
class Common:
    """The options that every command has, but for the working directory and the run."""

    config: Path | None
    set: Sequence[str]
    show_config: bool
    json: bool
    quiet: bool


COMMON: list[tuple[str, Any, Any]] = [
    ("config", Annotated[
        Path | None,
        typer.Option("--config", help="A TOML recipe, with a table for each stage.",
                     metavar="FILE", rich_help_panel="Everywhere")], None),
    ("set_", Annotated[
        list[str] | None,
        typer.Option("--set", help="Set any key (repeatable).", metavar="KEY=VALUE",
                     rich_help_panel="Everywhere")], None),
    ("show_config", Annotated[
        bool,
        typer.Option("--show-config", help="Print what is in force and where it came from.",
                     rich_help_panel="Everywhere")], False),
    ("json_", Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document.", rich_help_panel="Everywhere")],
     False),
    ("quiet", Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Show warnings and errors only.",
                     rich_help_panel="Everywhere")], False),
]  # fmt: skip


def layout(text: str) -> str:
    """Help as Typer wants it: indented paragraphs stand as they are written."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        "\b\n" + part if part.startswith("    ") else part.replace("\n", " ") for part in paragraphs
    )


def annotation(key: Key) -> Any:
    """The key's Typer annotation. Its value is None when it is not on the command line."""
    meta = key.meta
    shown: Any = meta["shown_default"] or (
        ("yes" if key.default else "no") if key.type is bool else str(key.default)
    )
    if key.default in (None, "", (), False) and not meta["shown_default"]:
        shown = False
    metavar = meta["metavar"] or ("|".join(meta["choices"]) if meta["choices"] else None)
    metavar = metavar or {int: "N", float: "X", str: "TEXT"}.get(key.type)
    if meta["argument"]:
        if key.repeated:
            return Annotated[
                list[str] | None, typer.Argument(help=_escape(meta["help"]), metavar=metavar)
            ]
        return Annotated[str | None, typer.Argument(help=_escape(meta["help"]), metavar=metavar)]
    flag = key.flag
    if key.type is bool:
        metavar = None
        if key.default:
            flag = f"{flag}/--no-{flag[2:]}"
    kind: Any = list[str] if key.repeated else bool if key.type is bool else str
    return Annotated[
        kind | None,
        typer.Option(
            flag,
            help=_escape(meta["help"]),
            metavar=metavar,
            show_default=shown,
            rich_help_panel=meta["panel"] or "Options",
            autocompletion=(lambda: list(meta["choices"])) if meta["choices"] else None,
        ),
    ]


def command(
    app: typer.Typer,
    name: str,
    keys: Sequence[Key],
    act: Callable[..., None],
    help_: str,
    *,
    run: bool = True,
) -> None:
    """Registers `act(workdir, run, flags, common)` as a command with these keys."""

    def callback(**values: Any) -> None:
        common = Common(
            values.pop("config"),
            values.pop("set_") or (),
            *(values.pop(name) for name in ("show_config", "json_", "quiet")),
        )
        workdir, chosen = _folder(values.pop("workdir")), values.pop("run", "default")
        act(workdir, chosen, {k: v for k, v in values.items() if v not in (None, [])}, common)

    parameters = [_parameter(key.name, annotation(key), None) for key in keys]
    parameters.append(_parameter("workdir", WORKDIR, "work"))
    if run:
        parameters.append(_parameter("run", RUN, "default"))
    parameters += [_parameter(*item) for item in COMMON]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in parameters}
    app.command(name, help=layout(help_))(callback)


def _escape(text: str) -> str:
    """Square brackets are no markup of ours."""
    return text.replace("[", r"\[")


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
