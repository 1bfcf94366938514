"""The stages' configurations: frozen dataclasses, one per stage. No torch, no Typer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigmodel_cli.options import option

MOST_SEED = (1 << 63) - 1
THREADS = "Number of CPU threads."


# options that several stages have


def _seed() -> Any:
    return option(0, "Random seed.", minimum=0, maximum=MOST_SEED)


def _device(identity: bool = True) -> Any:
    choices = ("auto", "cpu", "cuda")
    return option("auto", "Device to compute on.", choices=choices, identity=identity)


def _threads() -> Any:
    return option(0, THREADS, minimum=0, maximum=4096, identity=False, shown_default="all cores")


def _answer_precision() -> Any:
    return option(
        "auto",
        "Precision to compute in.",
        choices=("auto", "fp32", "bf16", "int8"),
        shown_default="the bundle's own",
    )


def _host() -> Any:
    return option("127.0.0.1", "Address to serve on.", identity=False)


def _port() -> Any:
    return option(8000, "Port; 0 takes a free one.", minimum=0, maximum=65535, identity=False)


@dataclass(frozen=True)
class PrepareConfig:
    sources: tuple[str, ...] = option(
        (),
        "Files, folders, globs, `-` for standard input, or hf:NAME[:SPLIT].",
        argument=True,
        metavar="SOURCE...",
    )
    task: str = option(
        "auto",
        "The task that the data is for.",
        metavar="NAME",
        shown_default="detected from the columns, else language",
    )
    column: tuple[str, ...] = option(
        (),
        "Map one of the task's columns to one of the source (repeatable): `text=body`.",
        metavar="NAME=COLUMN",
    )
    header: tuple[str, ...] = option(
        (),
        "The columns of files that have no header line: `label,text`.",
        metavar="NAMES",
    )
    delimiter: str = option(
        "",
        r"What separates columns, such as '::' or '\t', also of standard input. Quotes enclose a "
        "field in .csv, and where it is a comma; elsewhere a quote is a character.",
        metavar="TEXT",
        shown_default="what the first lines tell, of , ; | and tab",
    )
    encoding: str = option(
        "",
        "The encoding of text, .csv, .tsv and JSON, by its name in Python: `gbk`, `utf-16`, "
        "`latin-1`. A byte order mark takes precedence.",
        metavar="NAME",
        shown_default="UTF-8",
    )
    val: str = option(
        "0.05", "Validation split: a fraction of the units, or a source.", metavar="FRACTION|SOURCE"
    )
    test: str = option(
        "0.05", "Test split: a fraction of the units, or a source.", metavar="FRACTION|SOURCE"
    )
    exclude: tuple[str, ...] = option(
        (),
        "Exclude files that match this glob, below a folder (repeatable): `*/tests/*`.",
        metavar="GLOB",
    )
    document_separator: str = option(
        "",
        r"Separator between documents in a text file, such as '<|endoftext|>' or '\n\n'.",
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
        shown_default="nano on a CPU, small on a GPU",
    )
    from_: str = option(
        "",
        "Initialize from the weights of this run or bundle; they also decide the model's shape.",
        panel="Model",
        metavar="RUN|FOLDER",
        shown_default="",
    )
    width: int | None = option(
        None,
        "Width: features of the residual stream.",
        minimum=8,
        panel="Model",
        shown_default="by size",
    )
    layers: int | None = option(
        None, "Number of layers.", minimum=1, panel="Model", shown_default="by size"
    )
    heads: int | None = option(
        None, "Number of attention heads.", minimum=1, panel="Model", shown_default="by size"
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
        "Hidden width of the feed-forward layers.",
        minimum=8,
        panel="Model",
        shown_default="by size",
    )
    cell: str = option(
        "lstm", "The recurrent cell of an rnn.", choices=("elman", "gru", "lstm"), panel="Model"
    )
    window: int = option(
        16,
        "Tokens that an mlp sees; 0: the mean of all so far.",
        minimum=0,
        maximum=1024,
        panel="Model",
    )
    dropout: float = option(0.0, "Dropout rate.", minimum=0, maximum=0.9, panel="Model")
    tie: bool = option(True, "Tie the output layer's weights to the embedding.", panel="Model")
    steps: int | None = option(
        None, "Train for this many steps.", minimum=1, panel="Length (one of)", shown_default=""
    )
    epochs: float | None = option(
        None,
        "Train for this many passes over the training split.",
        above=0,
        panel="Length (one of)",
        shown_default="",
    )
    tokens: int | None = option(
        None,
        "Train for this many tokens.",
        minimum=1,
        panel="Length (one of)",
        shown_default="",
    )
    minutes: float | None = option(
        None,
        "Train for this many minutes, of which validations and checkpoints take at most a tenth.",
        above=0,
        panel="Length (one of)",
        shown_default="5 if no length is given",
    )
    batch_size: int | None = option(
        None,
        "Rows (of --context tokens) per step, at most those of an epoch.",
        minimum=1,
        panel="Optimization",
        shown_default="2,048 tokens, more above 4 M weights; on a GPU 8 times as many",
    )
    micro_batch: int | None = option(
        None,
        "Rows computed at a time; the gradients of the others are accumulated.",
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
        "Fraction of the run in which the learning rate rises.",
        minimum=0,
        maximum=1,
        panel="Optimization",
    )
    decay: float = option(
        0.6,
        "Fraction of the run, at its end, in which the learning rate falls linearly to 0.",
        minimum=0,
        maximum=1,
        panel="Optimization",
    )
    clip: float = option(
        1.0, "Maximum norm of the gradient; 0 is no limit.", minimum=0, panel="Optimization"
    )
    precision: str = option(
        "auto",
        "bf16 computes in bfloat16 with fp32 weights.",
        choices=("auto", "fp32", "bf16"),
        panel="Optimization",
        shown_default="bf16 where the hardware has it",
    )
    compile: str = option(
        "auto",
        "Fuse a transformer's kernels with torch.compile.",
        choices=("auto", "on", "off"),
        panel="Optimization",
        shown_default="on in runs of about 10 minutes (GPU: 1) and more, with a C++ compiler",
    )
    checkpoint_every: int | None = option(
        None,
        "Steps between checkpoints, each with a validation.",
        minimum=1,
        panel="Checkpoints",
        shown_default="a tenth of the run, at most 1,000 steps or 15 minutes",
    )
    verify_resume: int | None = option(
        None,
        "Prove it: train so many steps whole, and again with a kill −9 and a resume, compare every "
        "byte, and keep neither. Say --compile on to prove that of a long run.",
        minimum=3,
        panel="Checkpoints",
        identity=False,
        metavar="STEPS",
        shown_default="",
    )
    keep: int = option(
        2,
        "Number of recent checkpoints to keep, beside the best one.",
        minimum=1,
        panel="Checkpoints",
        identity=False,
    )
    seed: int = _seed()
    device: str = _device()
    threads: int = _threads()
    restart: bool = option(
        False,
        "Delete the run (checkpoints, log, evaluation, bundle) and start again.",
        identity=False,
    )


@dataclass(frozen=True)
class EvaluateConfig:
    split: str = option("test", "The split to score.", choices=("train", "val", "test"))
    checkpoint: str = option("best", "best, last, or step-N.", metavar="NAME")
    limit: int | None = option(
        None,
        "Score so many units, drawn by --seed, instead of the whole split. Figures of different "
        "samples are not compared.",
        minimum=1,
        shown_default="all",
    )
    require: tuple[str, ...] = option(
        (),
        "Exit 3 unless it holds (repeatable). `m<=2.5` compares the figure itself. `m<=baseline` "
        "(the strongest one) and `m<=previous` fail only if the model is worse with 95 % "
        "confidence: unclear passes. With a margin, `m<=previous+0.5%`, `+0.01` or `*1.005`, it "
        "passes only if the model is worse by no more than that with 95 % confidence: unclear "
        "fails. `m<previous`: only if it is better with 95 % confidence. `>=`, `>` likewise.",
        metavar="RULE",
        identity=False,
    )
    against: str = option(
        "",
        "An earlier evaluation.json, for rules with `previous`; with its evaluation.safetensors "
        "beside it both are compared unit by unit.",
        metavar="FILE",
        identity=False,
        shown_default="",
    )
    samples: int = option(3, "Texts to generate for the report.", minimum=0, maximum=100)
    seed: int = _seed()
    device: str = _device()
    threads: int = _threads()
    force: bool = option(False, "Score again, even if up to date.", identity=False)


@dataclass(frozen=True)
class ServeConfig:
    bundle: str = option(
        "",
        "The bundle's folder; without it, that of --run.",
        argument=True,
        metavar="[BUNDLE]",
    )
    host: str = _host()
    port: int = _port()
    precision: str = _answer_precision()
    device: str = _device()
    threads: int = _threads()


@dataclass(frozen=True)
class DeployConfig:
    checkpoint: str = option("best", "best, last, or step-N.", metavar="NAME")
    serve: bool = option(False, "Answer HTTP from the bundle after it is made.", identity=False)
    host: str = _host()
    port: int = _port()
    precision: str = option(
        "fp32",
        "Precision that the bundle answers in; the receipt says what fewer bits cost.",
        choices=("fp32", "bf16", "int8"),
    )
    device: str = _device(identity=False)
    threads: int = _threads()
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
    max_tokens: int = option(64, "Maximum tokens to generate.", minimum=1, maximum=1 << 20)
    temperature: float = option(
        0.0, "Sampling temperature; 0 takes the most likely token.", minimum=0, maximum=100
    )
    top_k: int = option(0, "Sample from the K most likely tokens; 0 is no limit.", minimum=0)
    top_p: float = option(
        1.0, "Sample from the most likely tokens of this total probability.", minimum=0, maximum=1
    )
    beam: int = option(5, "Beam size; 1 is greedy search.", minimum=1, maximum=64)
    length_penalty: float = option(
        1.0,
        "Exponent of the length that a log probability is divided by; a larger one favours long "
        "translations.",
        minimum=0,
        maximum=10,
    )
    stop: tuple[str, ...] = option((), "Stop before this text (repeatable).", metavar="TEXT")
    k: int = option(10, "Number of items to recommend.", minimum=1, maximum=1000)
    repeat: bool | None = option(
        None,
        "Recommend items of the history as well.",
        shown_default="as in training",
    )
    seed: int = _seed()
    batch_size: int = option(32, "Requests that are answered together.", minimum=1, maximum=4096)
    precision: str = _answer_precision()
    device: str = _device()
    threads: int = _threads()
