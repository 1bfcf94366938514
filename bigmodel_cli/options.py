"""Options: declared once, with `option(...)` in a dataclass, and how their values are found.

Precedence: flag, then BIGMODEL_<STAGE>_<KEY>, then the recipe's table [<stage>], then the default.
The command line, the recipe, the environment and `--show-config` all read the one declaration.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bigmodel_cli.errors import UsageError, did_you_mean

T = TypeVar("T")
MOST: dict[type, float] = {int: 1 << 53, float: 1e9}  # where a key says no other maximum


def option(
    default: Any,
    help: str,  # noqa: A002
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    identity: bool = True,
    panel: str = "",
    stage: str = "",
    metavar: str = "",
    argument: bool = False,
    shown_default: str = "",
) -> Any:
    """A configuration field. `identity=False`: does not change the result, so it is no part of
    the fingerprint. `above`: an exclusive lower bound. `stage`: for a task's options, whose
    command it belongs to. `shown_default`: what the help says instead of an automatic None."""
    return field(
        default=default,
        metadata={
            "help": help,
            "choices": tuple(choices),
            "minimum": minimum,
            "maximum": maximum,
            "above": above,
            "identity": identity,
            "panel": panel,
            "stage": stage,
            "metavar": metavar,
            "argument": argument,
            "shown_default": shown_default,
        },
    )


@dataclass(frozen=True)
class Key:
    """One configuration key: a dataclass field with its plain type (`int`, not `int | None`)."""

    name: str
    type: type
    repeated: bool
    default: Any
    meta: Mapping[str, Any]

    @property
    def flag(self) -> str:
        return "--" + self.name.rstrip("_").replace("_", "-")  # `from_` for Python is --from


@functools.cache
def keys(config: type, stage: str = "") -> tuple[Key, ...]:
    """The keys that a dataclass declares; with `stage`, those of that stage only."""
    hints = typing.get_type_hints(config)
    found = []
    for item in dataclasses.fields(config):
        if stage and item.metadata.get("stage") != stage:
            continue
        kind, repeated = hints[item.name], False
        if isinstance(kind, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        if typing.get_origin(kind) is tuple:
            kind, repeated = typing.get_args(kind)[0], True
        found.append(Key(item.name, kind, repeated, item.default, item.metadata))
    return tuple(found)


@dataclass(frozen=True)
class Resolved:
    """Every key's value, and where it came from."""

    values: dict[str, Any]
    origins: dict[str, str]

    def build(self, config: type[T], **more: Any) -> T:
        """An instance of `config` from the values that are among its fields."""
        names = {item.name for item in dataclasses.fields(config)}  # type: ignore[arg-type]
        return config(**{k: v for k, v in self.values.items() if k in names}, **more)

    def said(self, known: Iterable[Key]) -> dict[str, Any]:
        """Those of the keys that somebody set, with their values."""
        return {k.name: self.values[k.name] for k in known if self.origins[k.name] != "default"}


def resolve(
    stage: str,
    known: Iterable[Key],
    flags: Mapping[str, Any],
    *,
    recipe: Path | None = None,
    sets: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Resolved:
    """Finds each key's value by precedence. `sets` are `key=value` flags.

    Raises UsageError for an unknown key, or a value of the wrong type or out of its range.
    """
    table = {key.name.rstrip("_"): key for key in known}
    prefix = f"BIGMODEL_{stage.upper()}_"
    layers: list[tuple[str, dict[str, Any]]] = [
        (f"recipe {recipe}", _recipe(recipe, stage) if recipe else {}),
        (
            "environment",
            {k[len(prefix) :].lower(): v for k, v in environ.items() if k.startswith(prefix)},
        ),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ]
    for item in sets:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"`--set {item}` is not key=value", "for example: --set val=0.1")
        layers.append(("flag --set", {name.strip().replace("-", "_"): value.strip()}))
    values = {key.name: key.default for key in table.values()}
    origins = dict.fromkeys(values, "default")
    for origin, layer in layers:
        for name, raw in layer.items():
            name = name.rstrip("_")
            if name not in table:
                raise UsageError(
                    f"unknown key `{name}` for `{stage}` ({origin})", did_you_mean(name, table)
                )
            values[table[name].name] = convert(table[name], raw)
            origins[table[name].name] = origin
    return Resolved(values, origins)


def _recipe(path: Path, stage: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no recipe at `{path}`", "give --config an existing TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"the recipe `{path}` cannot be read: {error}") from None
    stages = ("prepare", "train", "evaluate", "deploy", "serve", "predict")
    for name, value in document.items():
        if name not in stages or not isinstance(value, dict):
            raise UsageError(
                f"`{name}` in the recipe `{path}` is not a table of a stage",
                did_you_mean(name, stages),
            )
    return {name.replace("-", "_"): value for name, value in document.get(stage, {}).items()}


def convert(key: Key, raw: Any) -> Any:
    """`raw` (a string from a shell, or a TOML value) as the key's type, checked."""
    if key.repeated and isinstance(raw, Mapping):
        raise UsageError(f"{key.flag} is `{raw}`, but must be a list")
    if key.repeated:
        items = raw if isinstance(raw, list | tuple) else str(raw).split(",")
        return tuple(_convert_one(key, item) for item in items)
    return _convert_one(key, raw)


def _convert_one(key: Key, raw: Any) -> Any:
    if not isinstance(raw, str | int | float) or (isinstance(raw, bool) and key.type is not bool):
        raise UsageError(f"{key.flag} is `{raw}`, but must be one value")
    try:
        if key.type is bool:
            if not isinstance(raw, bool):
                raw = {
                    "1": True,
                    "true": True,
                    "yes": True,
                    "0": False,
                    "false": False,
                    "no": False,
                }[str(raw).lower()]
            value: Any = raw
        elif key.type is int:
            value = int(raw) if isinstance(raw, int) else _whole(str(raw))
        elif key.type is float:
            value = float(raw)
            if not math.isfinite(value):
                raise ValueError
        else:
            value = str(raw)
    except (ValueError, KeyError, OverflowError):
        name = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        raise UsageError(f"{key.flag} is `{raw}`, but must be {name[key.type.__name__]}") from None
    meta = key.meta
    if meta["choices"] and value not in meta["choices"]:
        raise UsageError(f"{key.flag} is `{value}`", did_you_mean(value, meta["choices"]))
    if meta["minimum"] is not None and value < meta["minimum"]:
        raise UsageError(f"{key.flag} is `{value}`, but must be at least {meta['minimum']:g}")
    if meta["above"] is not None and value <= meta["above"]:
        raise UsageError(f"{key.flag} is `{value}`, but must be above {meta['above']:g}")
    most = meta["maximum"] if meta["maximum"] is not None else MOST.get(key.type)
    if most is not None and value > most:
        bound = f"{most:g}" if isinstance(most, float) else most  # to the last digit
        raise UsageError(f"{key.flag} is `{value}`, but must be at most {bound}")
    return value


def _whole(text: str) -> int:
    """A whole number, also as 1e8 or 1_000."""
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if value.is_integer():
            return int(value)
        raise


def identity(config: Any) -> dict[str, Any]:
    """The options that matter for the result, for the fingerprint."""
    return {
        item.name: getattr(config, item.name)
        for item in dataclasses.fields(config)
        if item.metadata.get("identity", True)
    }
