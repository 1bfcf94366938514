"""Frozen dataclasses, one per stage, and how their values are found. No torch, no Typer.

Precedence: flag, then BIGMODEL_<STAGE>_<KEY>, then the recipe's table [<stage>], then the default.
A field is declared once, with `option(...)`: the command line, the recipe, the environment and
`--show-config` all read that declaration.
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
        return "--" + self.name.replace("_", "-")


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
    table = {key.name: key for key in known}
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
            if name not in table:
                raise UsageError(
                    f"unknown key `{name}` for `{stage}` ({origin})", did_you_mean(name, table)
                )
            values[name] = convert(table[name], raw)
            origins[name] = origin
    return Resolved(values, origins)


def _recipe(path: Path, stage: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no recipe at `{path}`", "give --config an existing TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"the recipe `{path}` cannot be read: {error}") from None
    stages = ("prepare", "train", "evaluate", "deploy", "predict")
    for name, value in document.items():
        if name not in stages or not isinstance(value, dict):
            raise UsageError(
                f"`{name}` in the recipe `{path}` is no stage's table", did_you_mean(name, stages)
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
    except (ValueError, KeyError):
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
        raise UsageError(f"{key.flag} is `{value}`, but must be at most {most:g}")
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


MOST_SEED = (1 << 63) - 1
SEED = "Seed of everything random."
THREADS = "CPU threads to compute with."
DEVICE = "Where to compute."
DEVICES = ("auto", "cpu", "cuda")
WORKDIR = Path("work")


@dataclass(frozen=True)
class PrepareConfig:
    sources: tuple[str, ...] = option(
        (),
        "Files, folders, globs, `-` for standard input, or hf:NAME[:SPLIT].",
        argument=True,
        metavar="SOURCE...",
    )
    task: str = option("language", "The kind of work that the data is for.")
    val: str = option(
        "0.05", "Validation split: a fraction of the units, or a source.", metavar="FRACTION|SOURCE"
    )
    test: str = option(
        "0.05", "Test split: a fraction of the units, or a source.", metavar="FRACTION|SOURCE"
    )
    exclude: tuple[str, ...] = option(
        (),
        "Leave out what this glob matches below a folder (repeatable): `*/tests/*`.",
        metavar="GLOB",
    )
    document_separator: str = option(
        "",
        r"What separates documents in a text file, such as '<|endoftext|>' or '\n\n'.",
        metavar="TEXT",
        shown_default="each file is one document",
    )
    max_loss: float | None = option(
        None,
        "Fail (exit 4) if more than this fraction of the rows is dropped.",
        minimum=0,
        maximum=1,
        shown_default="no limit",
    )
    seed: int = option(0, "Seed of the split.", minimum=0, maximum=MOST_SEED)
    threads: int = option(
        0, THREADS, minimum=0, maximum=4096, identity=False, shown_default="all", metavar="N"
    )
    force: bool = option(False, "Build again, even if up to date.", identity=False)


@dataclass(frozen=True)
class TrainConfig:
    model: str = option(
        "transformer", "The family.", choices=("transformer", "rnn", "mlp"), panel="Model"
    )
    size: str = option(
        "",
        "A named size; the table is above.",
        panel="Model",
        shown_default="micro on a CPU, small on a GPU",
    )
    width: int | None = option(
        None, "Features of the residual stream.", minimum=8, panel="Model", shown_default="by size"
    )
    layers: int | None = option(None, "Blocks.", minimum=1, panel="Model", shown_default="by size")
    heads: int | None = option(
        None, "Attention heads.", minimum=1, panel="Model", shown_default="by size"
    )
    kv_heads: int | None = option(
        None,
        "Key and value heads; fewer than --heads is grouped-query attention.",
        minimum=1,
        panel="Model",
        shown_default="--heads",
    )
    hidden: int | None = option(
        None,
        "Features inside a block's feed-forward part.",
        minimum=8,
        panel="Model",
        shown_default="by size",
    )
    cell: str = option(
        "lstm", "The recurrent cell of an rnn.", choices=("elman", "gru", "lstm"), panel="Model"
    )
    window: int = option(16, "Tokens that an mlp sees.", minimum=1, maximum=1024, panel="Model")
    dropout: float = option(
        0.0, "Dropped share of features.", minimum=0, maximum=0.9, panel="Model"
    )
    tie: bool = option(True, "Share the embedding with the output layer.", panel="Model")
    steps: int | None = option(
        None, "Length in updates.", minimum=1, panel="Length (one of)", shown_default=""
    )
    epochs: float | None = option(
        None,
        "Length in passes over the training split.",
        above=0,
        panel="Length (one of)",
        shown_default="",
    )
    tokens: int | None = option(
        None,
        "Length in training tokens.",
        minimum=1,
        panel="Length (one of)",
        shown_default="",
    )
    minutes: float | None = option(
        None,
        "Length in minutes, evaluation and saving included.",
        above=0,
        panel="Length (one of)",
        shown_default="5 if no length is given",
    )
    batch_size: int | None = option(
        None,
        "Rows (of --context tokens) per update.",
        minimum=1,
        panel="Optimization",
        shown_default="2,048 tokens, more above 4 M weights; on a GPU 8 times as many",
    )
    micro_batch: int | None = option(
        None,
        "Rows computed at a time; the rest is accumulated.",
        minimum=1,
        panel="Optimization",
        shown_default="what fits in memory",
        identity=False,
    )
    optimizer: str = option(
        "muon",
        "Muon on matrices with AdamW on the rest, or AdamW on all.",
        choices=("muon", "adamw"),
        panel="Optimization",
    )
    learning_rate: float | None = option(
        None,
        "Peak learning rate.",
        above=0,
        maximum=3e38,
        panel="Optimization",
        shown_default="by optimizer",
    )
    weight_decay: float = option(
        0.1, "Decoupled weight decay of matrices.", minimum=0, panel="Optimization"
    )
    warmup: float = option(
        0.02,
        "Share of the run in which the rate rises.",
        minimum=0,
        maximum=1,
        panel="Optimization",
    )
    decay: float = option(
        0.6,
        "Share of the run, at its end, in which the rate falls linearly to 0.",
        minimum=0,
        maximum=1,
        panel="Optimization",
    )
    clip: float = option(
        1.0, "Largest norm of the gradient; 0 is no limit.", minimum=0, panel="Optimization"
    )
    precision: str = option(
        "auto",
        "bf16 computes in bfloat16 with fp32 weights.",
        choices=("auto", "fp32", "bf16"),
        panel="Optimization",
        shown_default="bf16 where the hardware has it",
    )
    checkpoint_every: int | None = option(
        None,
        "Steps between checkpoints, each with a validation.",
        minimum=1,
        panel="Checkpoints",
        shown_default="a tenth of the run, at most 1,000 steps or 15 minutes",
    )
    keep: int = option(
        2, "Checkpoints kept beside the best one.", minimum=1, panel="Checkpoints", identity=False
    )
    seed: int = option(0, SEED, minimum=0, maximum=MOST_SEED)
    device: str = option("auto", DEVICE, choices=DEVICES)
    threads: int = option(
        0, THREADS, minimum=0, maximum=4096, identity=False, shown_default="all cores"
    )
    restart: bool = option(
        False, "Throw the run's checkpoints away and begin anew.", identity=False
    )


@dataclass(frozen=True)
class EvaluateConfig:
    split: str = option("test", "The split to score.", choices=("train", "val", "test"))
    checkpoint: str = option("best", "best, last, or step-N.", metavar="NAME")
    require: tuple[str, ...] = option(
        (),
        "Exit 3 unless it holds (repeatable): `bits_per_byte<=2.5`, `…<=baseline`, "
        "`…<=previous*1.01`.",
        metavar="RULE",
        identity=False,
    )
    against: str = option(
        "",
        "An earlier evaluation.json, for rules with `previous`.",
        metavar="FILE",
        identity=False,
        shown_default="",
    )
    samples: int = option(3, "Texts to generate for the report.", minimum=0, maximum=100)
    seed: int = option(0, SEED, minimum=0, maximum=MOST_SEED)
    device: str = option("auto", DEVICE, choices=DEVICES)
    threads: int = option(
        0, THREADS, minimum=0, maximum=4096, identity=False, shown_default="all cores"
    )
    force: bool = option(False, "Score again, even if up to date.", identity=False)


@dataclass(frozen=True)
class DeployConfig:
    checkpoint: str = option("best", "best, last, or step-N.", metavar="NAME")
    serve: bool = option(False, "Answer HTTP from the bundle after it is made.", identity=False)
    host: str = option("127.0.0.1", "Address to serve on.", identity=False)
    port: int = option(8000, "Port; 0 takes a free one.", minimum=0, maximum=65535, identity=False)
    precision: str = option(
        "fp32", "Precision to serve in.", choices=("fp32", "bf16"), identity=False
    )
    device: str = option("auto", DEVICE, choices=DEVICES, identity=False)
    threads: int = option(
        0, THREADS, minimum=0, maximum=4096, identity=False, shown_default="all cores"
    )
    force: bool = option(False, "Export again, even if up to date.", identity=False)


@dataclass(frozen=True)
class PredictConfig:
    prompt: str = option(
        "",
        "One request; without it, JSON lines are read from standard input.",
        argument=True,
        metavar="[PROMPT]",
    )
    bundle: str = option("", "A bundle anywhere.", metavar="FOLDER", shown_default="the run's own")
    max_tokens: int = option(64, "Most tokens to write.", minimum=1, maximum=1 << 20)
    temperature: float = option(
        0.0, "0 takes the most likely token; 1 draws as the model says.", minimum=0, maximum=100
    )
    top_k: int = option(0, "Draw among the K most likely tokens; 0 is no limit.", minimum=0)
    top_p: float = option(
        1.0, "Draw among the likeliest tokens of this total probability.", minimum=0, maximum=1
    )
    stop: tuple[str, ...] = option((), "Stop before this text (repeatable).", metavar="TEXT")
    seed: int = option(0, SEED, minimum=0, maximum=MOST_SEED)
    batch_size: int = option(32, "Requests answered at a time.", minimum=1, maximum=4096)
    precision: str = option("fp32", "Precision to compute in.", choices=("fp32", "bf16"))
    device: str = option("auto", DEVICE, choices=DEVICES)
    threads: int = option(0, THREADS, minimum=0, maximum=4096, shown_default="all cores")
