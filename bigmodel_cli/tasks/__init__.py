"""The Task protocol: all that one kind of work adds, and the table of names.

A task is one file and one line in `TABLE`, or a package with an entry point. No stage asks which
task runs. Task modules import torch and numpy only inside of methods, so that help pages and fresh
stages stay quick.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bigmodel_cli.artifacts.manifest import read_json, write_json
from bigmodel_cli.artifacts.records import Table as Table
from bigmodel_cli.errors import ArtifactError, UsageError, did_you_mean
from bigmodel_cli.models.config import ModelConfig
from bigmodel_cli.models.sampling import Sampling, Search
from bigmodel_cli.options import convert, identity
from bigmodel_cli.options import keys as declared

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.models.shape import Shape

TABLE = {
    "language": "bigmodel_cli.tasks.language:Language",
    "chat": "bigmodel_cli.tasks.chat:Chat",
    "text-classification": "bigmodel_cli.tasks.text_classification:TextClassification",
    "translation": "bigmodel_cli.tasks.translation:Translation",
    "image-classification": "bigmodel_cli.tasks.image_classification:ImageClassification",
    "recommendation": "bigmodel_cli.tasks.recommendation:Recommendation",
}
SHADOWED = []  # tasks of other packages whose names are taken
for point in entry_points(group="bigmodel.tasks"):
    place = f"{point.module}:{point.attr}"
    if TABLE.setdefault(point.name, place) != place:
        SHADOWED.append(f"the task `{point.name}` of `{place}` is not used: the name is taken")
Document = Mapping[str, Any]  # a request, as JSON has it
Answer = dict[str, Any]
Piece = tuple[int, str, Answer | None]  # whose, new text, and all of it once it is finished
GREEDY = Sampling()
TASK_FILE = "task.json"
VALIDATION_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class Rows:
    """Some raw records: columns by the task's own names, and where each came from.

    `split`: the split that their source was named for, or None. `where(i)`: "file, line 7".
    """

    table: pa.RecordBatch
    split: str | None
    where: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Units:
    """Cleaned units: `table` is what `encode` gets, `keys` decides split and sameness.

    sizes: bytes in each unit, (n,) int64. split: whose they are, or None if their hashes decide
    it; groups: then units of one value stay together; strata: or each value is split by itself.
    rows: how many of the ledger's rows each unit stands for, (n,) int64, or None for one.
    """

    table: pa.RecordBatch
    keys: pa.Array
    sizes: NDArray[np.int64]
    split: str | None
    where: Callable[[int], str]
    strata: pa.Array | None = None
    groups: pa.Array | None = None
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """inputs: the model's keyword arguments. terms: how many loss terms the targets hold.
    What a task needs beside is in `extra`."""

    inputs: Mapping[str, Tensor]
    targets: Tensor
    terms: int
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors where the model is; a GPU gets the segments' bounds."""
        if device.type == "cpu":
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        inputs = {name: moved(tensor) for name, tensor in self.inputs.items()}
        if "tokens_BT" in inputs:
            inputs["bounds_S"] = moved(self.bounds())
        return Batch(inputs, moved(self.targets), self.terms, self.extra)

    def bounds(self) -> Tensor:
        """Where the segments of all rows, one after another, begin, and then the end, again and
        again: the next power of two from 8 for each row, so that few shapes are compiled. int32."""
        import torch
        import torch.nn.functional as F

        tokens_BT = self.inputs["tokens_BT"]
        begins_BT = torch.zeros(tokens_BT.shape, dtype=torch.bool)
        if (segments_BT := self.inputs.get("segments_BT")) is not None:
            begins_BT = segments_BT != segments_BT.roll(1, 1)
        begins_BT[:, 0] = True
        found_S = begins_BT.flatten().nonzero()[:, 0]
        room = 1 << max(len(found_S), 8 * len(tokens_BT) - 1).bit_length()
        return F.pad(found_S, (0, room - len(found_S)), value=tokens_BT.numel()).int()


class Plan(Protocol):
    """The order of training: a pure function of the data, seed and epoch. `rows` per epoch, each
    of `row_tokens` positions that the model computes: all of them if they are `even`, else on the
    mean."""

    rows: int
    row_tokens: float
    even: bool

    def batch(self, position: int, count: int) -> Batch:
        """Rows position … position + count − 1 of the endless sequence of epochs."""
        ...

    def parts(self, position: int, count: int, most: int) -> Iterator[Batch]:
        """The same rows as batches of at most `most`, in whatever order spares padding."""
        for first in range(position, position + count, most):
            yield self.batch(first, min(most, position + count - first))


@dataclass(frozen=True, slots=True)
class Metric:
    """A function of summed statistics (…, k) → (…). of: the count (see Predictions) that it is a
    function of instead: then it has no interval, and does not judge checkpoints."""

    name: str
    higher_is_better: bool
    value: Callable[[NDArray[Any]], NDArray[np.float64]]
    ignores: tuple[str, ...] = ()  # keys of the protocol that do not matter for it
    compared: bool = True  # with baselines: of some figures a trivial answer is always the best
    of: str = ""


@dataclass(frozen=True, slots=True)
class Predictions:
    """units (m,) and additive statistics (m, k): several entries may add up to one unit. counts:
    sums over all of them that no interval is made of, such as a confusion matrix."""

    units: NDArray[np.int64]
    statistics: NDArray[np.float64]
    counts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proof:
    """Inputs of the model, each a batch of one, and the texts, or dialogues, that they are the
    first tokens of; requests whose answers have to be the same, where these say more."""

    inputs: list[Mapping[str, Tensor]]
    texts: list[Any] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of `predict`, checked: what the model gets, and how its answer is chosen."""

    prompt: Any
    max_tokens: int = 0
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    search: Search | None = None


class Task(ABC):
    """One kind of work, from raw row to answer. `options`: its own, a frozen torch-free dataclass
    whose fields name the stage that they belong to."""

    name: ClassVar[str]
    Options: ClassVar[type]
    unit_name: ClassVar[str]  # what an example is, in the plural
    measure: ClassVar[str] = "tokens"  # what the first ragged field of an example holds
    positions: ClassVar[str] = "tokens"  # what a row of the model's consists of
    # the columns (`*`: all others) that are no plain text: `value` is also a number, `json`
    # anything, as JSON; a `file` is its bytes, where a source holds these, a data: URI, or the path
    # to it
    kinds: ClassVar[Mapping[str, str]] = {}
    documents: ClassVar[bool] = False  # whether a file that holds no records is a row
    aligned: ClassVar[bool] = False  # or whether such files are columns, line by line
    defaults: ClassVar[Mapping[str, Any]] = {}  # of `train`, where other than for language
    field: ClassVar[str]  # of a request, that a plain text on the command line stands for
    # what a request may hold beside: options of `predict`, and what has none
    fields: tuple[str, ...] = ()
    intended_use: ClassVar[str] = "data like those that it learned from."  # of a bundle
    # whether requests may name files of this machine: only where its own user asks
    opens_files = False

    def __init__(self, options: Any) -> None:
        self.options = options

    def identity(self) -> dict[str, Any]:
        """The options that matter for the result, for the fingerprint: a file by its content."""
        return identity(self.options)

    # prepare ---------------------------------------------------------------------------------

    @classmethod
    def claims(cls, columns: Mapping[str, str]) -> bool:
        """Whether a source with these columns (name → type) is for this task."""
        del columns
        return False

    @abstractmethod
    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        """Which of a source's columns (name → type) to read, by the task's names for them;
        `wanted` are those that the user chose. Raises DataError."""

    def look(self, rows: Rows) -> bool:
        """Gets the first rows that are to be learned from, where val or test has sources of its
        own: what `units` has to know before it begins never comes from these. Gives whether they
        were enough."""
        del rows
        return True

    @abstractmethod
    def units(
        self, rows: Iterable[Rows], ledger: Ledger, shares: Mapping[str, float]
    ) -> Iterator[Units]:
        """Cleans, groups and filters rows into units; every drop goes to the ledger. shares: of
        val and test, where a split is to be made."""

    @abstractmethod
    def fit(
        self,
        sample: Callable[[int], Iterator[pa.RecordBatch]],
        size: int,
        wait: Callable[[Callable[[], None]], None],
    ) -> str:
        """Learns tokenizer, labels or catalogue from training units, of which there are `size`
        bytes; sample(n) streams about n bytes of them. Says what it chose."""

    @abstractmethod
    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        """Units of one split, in order, as examples; what is cut off them goes to the ledger."""

    def remarks(self) -> list[str]:
        """What a person should know of how encoding went."""
        return []

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the preprocessor: task.json and what it needs beside."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, options: Any) -> Task:
        """Reads the preprocessor. Raises ArtifactError."""

    # train -----------------------------------------------------------------------------------

    @abstractmethod
    def shape(self) -> Shape:
        """What the model takes and gives."""

    @abstractmethod
    def plan(self, split: Split, seed: int) -> Plan:
        """The training order of a split."""

    @abstractmethod
    def loss_sum(self, model: SequenceModel, batch: Batch) -> Tensor:
        """The sum over the batch's loss terms, never a mean."""

    @property
    def signature(self) -> str:
        """What the numbers mean that the model reads: only tasks of the same can share weights."""
        return ""

    @property
    def answers_with(self) -> str:
        """What the numbers mean that the model gives: the last layer of another is not taken."""
        return self.signature

    def fresh_ids(self, before: Task) -> list[int]:
        """The tokens that this task uses, but not the one of the same signature before."""
        del before
        return []

    def validation_rows(self) -> int:
        """How many rows of `scoring` judge a checkpoint while training."""
        return max(8, VALIDATION_TOKENS // self.shape().context)

    # evaluate --------------------------------------------------------------------------------

    def contents(self, split: Split) -> Iterator[bytes]:
        """What makes each unit of a split the same one in other data: what it says, where the
        numbers in its example depend on a tokenizer or a catalogue."""
        return split.raw()

    def sample(self, split: Split, units: NDArray[np.int64]) -> Split:
        """Some units of a split, in ascending order, to score instead of all of them."""
        return split.take(units)

    @property
    @abstractmethod
    def statistics(self) -> tuple[str, ...]:
        """The names of the additive statistics of a prediction."""

    @abstractmethod
    def metrics(self) -> Sequence[Metric]:
        """The first is the headline, by which the best checkpoint is chosen; `loss` is among
        them."""

    def tables(
        self, sums: NDArray[np.float64], counts: Mapping[str, NDArray[np.int64]]
    ) -> list[Table]:
        """What an evaluation says beside its metrics, from all statistics summed (k,)."""
        del sums, counts
        return []

    @abstractmethod
    def scoring(self, split: Split, rows: int, limit: int | None = None) -> Iterator[Batch]:
        """Batches of at most `rows` rows in which every loss term of the split (of its first
        `limit` rows) is scored once."""

    @abstractmethod
    def predict(self, model: SequenceModel, batch: Batch) -> Predictions:
        """The statistics of a scoring batch."""

    def answer_metrics(self) -> Sequence[Metric]:
        """Those of `answers`: they come first in an evaluation."""
        return ()

    def answers(self, model: SequenceModel, split: Split) -> Iterator[Predictions]:
        """The statistics of whole answers to a split, beside those of `scoring`, for which they are
        0: too slow to write to judge a checkpoint while training."""
        del model, split
        return iter(())

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """What makes two figures comparable, beside the data."""

    @abstractmethod
    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        """The trivial answers that a model must beat, each scored over the split, perhaps in parts
        that follow each other."""

    @abstractmethod
    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        """Some of what was held out, for people to read: `prompt`, `output` and `reference`, and
        `picture`, a data: URI, if there is one to show."""

    @abstractmethod
    def proof(self, split: Split, count: int) -> Proof:
        """Held-out inputs to compare two models by."""

    # predict ---------------------------------------------------------------------------------

    @abstractmethod
    def request(self, document: Document) -> Request:
        """Checks one line of `predict`, or one HTTP body. Raises DataError."""

    def pixels(self, document: Document) -> int:
        """How many pixels are decoded to check a request: in a server, many take turns."""
        del document
        return 0

    def echo(self, text: str) -> str:
        """What a screen shows of the request before its answer."""
        del text
        return ""

    @abstractmethod
    def answer(self, model: SequenceModel, requests: Sequence[Request]) -> Iterator[Piece]:
        """(request, new text, the whole answer once it is finished), as they come."""


def task_class(name: str) -> type[Task]:
    """The class behind a name. Raises UsageError."""
    if name not in TABLE:
        raise UsageError(f"--task is `{name}`", did_you_mean(name, TABLE))
    module, _, attribute = TABLE[name].partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
        if not (isinstance(kind, type) and issubclass(kind, Task)):
            raise TypeError("it is not a Task")
        if kind.name != name:
            raise ValueError(f"it names itself `{kind.name}`")
    except Exception as error:  # whatever somebody else's code may raise
        if module.startswith(f"{__name__}."):
            raise
        raise UsageError(
            f"the task `{name}`, which another package offers as `{TABLE[name]}`, cannot be "
            f"loaded: {error!r}",
            "repair or uninstall that package",
        ) from error
    return kind


def task_names() -> list[str]:
    """The tasks that can be loaded: one of another package that cannot must not stop the rest."""
    return [name for name in TABLE if not _problem(name)]


def unused_tasks() -> list[str]:
    """Which tasks of other packages are left out, and why."""
    return [*SHADOWED, *filter(None, map(_problem, TABLE))]


def _problem(name: str) -> str:
    """Why a task cannot be loaded; nothing if it can."""
    try:
        task_class(name)
    except UsageError as error:
        return error.message
    return ""


def stored_task(name: str) -> type[Task]:
    """The class of a task that an artifact names. Raises ArtifactError."""
    try:
        return task_class(name)
    except UsageError as error:
        if name in TABLE:
            raise ArtifactError(error.message, error.hint) from None
        hint = "install the package that has it, or make these again for one of: "
        raise ArtifactError(
            f"the task `{name}` is not installed", hint + ", ".join(TABLE)
        ) from None


def model_of(document: Document, task: Task, where: str, hint: str) -> ModelConfig:
    """The configuration of a model that was made for this task. Raises ArtifactError."""
    config = ModelConfig.from_json(document)
    if config.shape != task.shape():
        raise ArtifactError(f"{where} is corrupt: its model is not of its task", hint)
    return config


def save_task(task: Task, folder: Path) -> None:
    """Writes the preprocessor folder."""
    write_json(folder / TASK_FILE, {"task": task.name, "options": asdict(task.options)})
    task.save(folder)


def read_task_file(folder: Path, hint: str) -> dict[str, Any]:
    """task.json without what it needs beside: quick."""
    return read_json(folder / TASK_FILE, "preprocessor", hint)


def load_task(folder: Path, hint: str) -> Task:
    """Reads a preprocessor folder. Raises ArtifactError."""
    document = read_task_file(folder, hint)
    kind = stored_task(str(document.get("task")))
    try:
        known = {key.name: key for key in declared(kind.Options)}
        options = kind.Options(
            **{
                name: None if value is None else convert(known[name], value)
                for name, value in document["options"].items()
            }
        )
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise ArtifactError(f"the preprocessor `{folder}` is corrupt: {error}", hint) from None
    return kind.load(folder, options)
