"""What the stages exchange, as records: the fields of each JSON artifact, and what these may be.

A hash says that a file is what somebody wrote; only reading it into its record says that it is
what this program writes. `manifest.read_record` and `manifest.write_record` are the only ways in
and out. Names that are not here are ignored, so that an older version reads what a newer one adds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from bigmodel_cli.config import TrainConfig
from bigmodel_cli.options import keys

SCHEMA = 1  # of every JSON artifact; a reader refuses a newer one
MODEL = "model.safetensors"
LARGEST = 1.7e308  # what JSON writes beyond it is read as infinite
Count = Annotated[int, Meta(ge=0, le=1 << 53)]  # what JSON's readers agree on
Size = Annotated[int, Meta(ge=1, le=1 << 53)]
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Meta(gt=0, le=LARGEST)]
StepName = Annotated[str, Meta(pattern=r"^step-[0-9]{8,18}\Z")]
Values = dict[str, Number | None]  # metrics by their names; null: not a number
NUMERIC = [key.name for key in keys(TrainConfig) if key.type in (int, float)]


class Part(Struct, frozen=True, kw_only=True):
    """A part of an artifact."""


class Artifact(Struct, frozen=True, kw_only=True):
    """What a file holds."""

    schema: int = SCHEMA


class File(Struct, frozen=True):
    """A file's size in bytes, and its hash."""

    bytes: Count
    sha256: str


Files = dict[str, File]


# prepare: data/manifest.json


class Shard(File, frozen=True, kw_only=True):
    name: str
    examples: Count


class SplitRecord(Part, frozen=True, kw_only=True):
    """units, bytes: of what was kept; tokens: or pixels, or items; content: a hash of the units."""

    units: Count
    bytes: Count
    tokens: Count
    content: str
    shards: list[Shard]


class Amount(Part, frozen=True, kw_only=True):
    """Rows, and bytes of their text."""

    rows: Count
    bytes: Count


class Reason(Amount, frozen=True, kw_only=True):
    """What went for one reason, and where the first ones were."""

    where: list[str]

    @property
    def first(self) -> str:
        return self.where[0] if self.where else "nobody noted where"


class LedgerRecord(Part, frozen=True, kw_only=True):
    """in = kept + the sum of the reasons. dropped: whole rows; removed: bytes of rows that were
    kept."""

    came_in: Amount = field(name="in")
    kept: Amount
    dropped: dict[str, Reason]
    removed: dict[str, Reason]


class Input(Part, frozen=True, kw_only=True):
    """A source. named: the hashes of the files that its rows name; null: not readable."""

    name: str
    sha256: str
    split: str | None = None
    named: dict[str, str | None] | UnsetType = UNSET


class Recipe(Part, frozen=True, kw_only=True):
    """What decides the fingerprint of prepared data."""

    inputs: list[Input]
    options: dict[str, Any]
    stage: str = "prepare"
    rules: int | None = None


class Command(Part, frozen=True, kw_only=True):
    """The sources that the command named."""

    sources: list[str]
    exclude: list[str]


class DataManifest(Artifact, frozen=True, kw_only=True):
    task: str
    unit: str
    fingerprint: str
    recipe: Recipe
    command: Command
    splits: dict[str, SplitRecord]
    ledger: LedgerRecord
    preprocessor: Files = field(name="codec")
    measure: str = "tokens"
    stage: str = "prepare"

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            if name not in self.splits:
                raise ValueError(f"`splits` has no `{name}`")


# train: config.json, checkpoints/step-*/state.json, checkpoints/best.json


class Length(Struct, frozen=True):
    """How long a run is: either `steps`, or `seconds`; `text` says it and why."""

    steps: Count | None
    seconds: Positive | None
    text: str

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("`length` must have either `steps` or `seconds`")


class Resolved(Part, frozen=True, kw_only=True):
    """What a configuration became on the machine where the run was started."""

    batch_size: Size
    micro_batch: Size
    threads: Size
    precision: Literal["fp32", "bf16"]
    learning_rate: Positive
    device: Literal["cpu", "cuda"]
    length: Length
    compile: bool = False


class Hardware(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What has to be the same for a resume to be exact to the byte."""

    device: str
    name: str
    torch: str = ""
    simd: str = ""
    arithmetic: int | str = ""
    ranks: Size = 1


class RunConfig(Artifact, frozen=True, kw_only=True):
    """A run, fully resolved. origin: what --from named; model: see models.config."""

    stage: str = "train"
    run: str
    task: str
    options: dict[str, Any]
    data_fingerprint: str
    fingerprint: str
    origin: str | None = None
    resolved: Resolved
    model: dict[str, Any]
    hardware: Hardware
    preprocessor: Files = field(name="codec", default_factory=dict)

    def __post_init__(self) -> None:
        for name in NUMERIC:
            try:
                msgspec.convert(self.options.get(name), Number | None)
            except msgspec.ValidationError as error:
                raise ValueError(f"`options.{name}`: {error}") from None


class Best(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The best checkpoint so far, with its headline metric and its loss, if it was validated."""

    name: StepName
    value: Number | None = None
    loss: Number | None = None


class AllowanceState(Part, frozen=True, kw_only=True):
    """What a run in minutes knows of its validations and checkpoints: how many rows one takes, and
    the seconds of all so far, of saving, and of an update."""

    rows: Count | None = None
    spent: Number = 0.0
    saving: Number | None = None
    pace: Number = 0.0


class CheckpointState(Artifact, frozen=True, kw_only=True):
    """Where a run stands. interim: saved only because it was stopped."""

    step: Count
    tokens: Count
    elapsed: Number
    reserve: Number = 0.0
    decay_began: Count | None = None
    best: Best | None = None
    keep: Count | None = None
    validation: Values | None = None
    finished: bool = False
    interim: bool = False
    log_bytes: Count = 0
    allowance: AllowanceState | UnsetType = UNSET
    files: Files

    @property
    def weights(self) -> str:
        """The hash of the weights, on which all that follows depends."""
        return self.files[MODEL].sha256


class BestRecord(Artifact, frozen=True, kw_only=True):
    name: StepName
    validation: Number | None = None


# evaluate: evaluation.json


class MetricRecord(Part, frozen=True, kw_only=True):
    """A metric with its interval of 95 %; n: units."""

    value: Number | None
    low: Number | None
    high: Number | None
    n: Count
    higher_is_better: bool


class DifferenceRecord(Part, frozen=True, kw_only=True):
    """low, high: bounds of 95 % confidence each."""

    value: Number | None
    low: Number | None
    high: Number | None


class BaselineRecord(Part, frozen=True, kw_only=True):
    """The strongest baseline of a metric, and what the difference to it says of the model."""

    value: Number
    name: str
    difference: DifferenceRecord | UnsetType | None = UNSET
    model_is: str | UnsetType = UNSET


class GateRecord(Part, frozen=True, kw_only=True):
    rule: str
    passed: bool
    value: Number | None
    bound: Number | None = None
    difference: DifferenceRecord | None = None
    paired: bool = False


class Table(Struct, frozen=True):
    """A table for the report: the first cell of each row names it."""

    title: str
    header: list[str]
    rows: list[list[str | Count | Number]]


class Sample(Part, frozen=True, kw_only=True):
    """image: a data: URI."""

    prompt: str
    output: str
    reference: str
    image: str | UnsetType = field(name="picture", default=UNSET)


class Evaluation(Artifact, frozen=True, kw_only=True):
    """protocol: what makes two figures comparable; baseline: the strongest one for each metric."""

    task: str
    run: str
    checkpoint: str
    split: str
    protocol: dict[str, Any]
    metrics: Annotated[dict[str, MetricRecord], Meta(min_length=1)]
    unit: str
    measure: str = "tokens"
    baseline: dict[str, BaselineRecord]
    baselines: dict[str, Values]
    tables: list[Table] = field(default_factory=list)
    data_fingerprint: str
    samples: list[Sample]
    environment: dict[str, str]
    fingerprint: str
    weights: str
    gates: list[GateRecord]
    statistics: File | None = None

    def __post_init__(self) -> None:
        for name, entry in self.baseline.items():
            if entry.name not in self.baselines:
                raise ValueError(f"`baseline.{name}.name`: there is no baseline `{entry.name}`")

    @property
    def count(self) -> int:
        """Units that were scored."""
        return next(iter(self.metrics.values())).n


class EarlierEvaluation(Artifact, frozen=True, kw_only=True):
    """An evaluation of any version, to compare with."""

    metrics: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    statistics: File | None = None


# deploy: bundle/bigmodel.json, bundle/receipt.json


class Bundle(Artifact, frozen=True, kw_only=True):
    """layout: whether the weights have the names of Hugging Face; training: a fingerprint."""

    name: str
    task: str
    model: dict[str, Any]
    layout: Literal["huggingface", "native"]
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    fingerprint: str
    training: str
    data_fingerprint: str
    files: Files

    def __post_init__(self) -> None:
        if MODEL not in self.files:
            raise ValueError(f"`files` has no `{MODEL}`")


class Proof(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a loader answers beside the checkpoint. proof: `passed`, or why there is none."""

    proof: str
    loader: str | None = None
    loading_info: str | None = None
    tokenizer_identical: bool | None = None
    texts: Count | None = None
    tokens: Count | None = None
    largest_logit_difference: Number | None = None
    greedy_tokens: Count | None = None
    greedy_identical: Count | None = None
    answers: Count | None = None
    answers_identical: Count | None = None


class Effect(Part, frozen=True, kw_only=True):
    """What a precision costs: the headline metric over so many terms, in fp32 and so."""

    name: str
    metric: str
    terms: Count
    fp32: Number | None = None
    bf16: Number | UnsetType | None = UNSET
    int8: Number | UnsetType | None = UNSET

    @property
    def value(self) -> float | None:
        found = getattr(self, self.name, None)
        return found if isinstance(found, float) else None


class Receipt(Artifact, frozen=True, kw_only=True):
    """evaluated_in: the precision of the evaluation; answers_in: that of the bundle."""

    split: str
    bigmodel: Proof
    transformers: Proof
    precision: Effect | UnsetType = UNSET
    run: str
    checkpoint: str
    weights: str
    evaluated: bool
    evaluated_in: str | None = None
    answers_in: str = "fp32"

    @property
    def proofs(self) -> dict[str, Proof]:
        """By their loaders."""
        return {"bigmodel": self.bigmodel, "transformers": self.transformers}


def as_json(record: Struct) -> dict[str, Any]:
    """A record as JSON has it."""
    document: dict[str, Any] = msgspec.to_builtins(record, enc_hook=_plain)
    return document


def _plain(value: Any) -> Any:
    """Text and numbers of numpy's and torch's own types as Python's."""
    if isinstance(value, str):
        return str(value)
    if getattr(value, "ndim", 1) == 0:
        return value.item()
    raise TypeError(f"`{value!r:.60}` is not of JSON's kinds")
