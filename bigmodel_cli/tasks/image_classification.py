"""Image classification: image → one of the labels that prepare found.

A unit is an image with its label; labels are split each by itself. Legend: B rows, C channels,
S the side of an image, T positions.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bigmodel_cli.artifacts.manifest import read_json, write_json
from bigmodel_cli.errors import ArtifactError, UsageError
from bigmodel_cli.models.shape import ImageShape, Shape
from bigmodel_cli.options import option
from bigmodel_cli.tasks import Batch, Document, Piece, Predictions, Proof, Request, Rows, Units
from bigmodel_cli.tasks.classification import ROWS, Classification, ClassOptions, shown_label
from bigmodel_cli.tasks.columns import IMAGE_NAMES, LABEL_NAMES

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from bigmodel_cli.artifacts.ledger import Ledger
    from bigmodel_cli.artifacts.shards import Columns, Split
    from bigmodel_cli.models.sequence import SequenceModel
    from bigmodel_cli.tasks.pixels import Form
    from bigmodel_cli.tasks.rows import ShuffledPlan

IMAGES_FILE = "pictures.json"
TOGETHER = 1024  # images that are decoded between two looks at the memory
SAMPLE_BYTES = 32 << 20  # of images as they came, whose values are averaged
FEWEST = 7  # patches in a row that an image is cut into
BASELINE_IMAGES, BASELINE_SIDE, BASELINE_STEPS = 10_000, 32, 100  # of logistic regression
SURE = -40.0  # the logarithm of a chance for what a baseline does not know


@dataclass(frozen=True)
class ImageClassificationOptions(ClassOptions):
    """Options of the task, by stage."""

    image_size: int | None = option(
        None,
        "Side of every image in pixels.",
        stage="prepare",
        minimum=4,
        maximum=1024,
        shown_default="the images' own up to 64, else 64",
    )
    color: str = option(
        "auto",
        "Whether images are grey or coloured.",
        stage="prepare",
        choices=("auto", "grey", "rgb"),
        shown_default="what the first images are",
    )
    patch: int | None = option(
        None,
        "Side of a patch in pixels.",
        stage="train",
        minimum=1,
        maximum=1024,
        panel="Model",
        shown_default="the largest that leaves 7 in a row",
    )
    stem: str = option(
        "conv",
        "How patches are embedded: each by itself, or by small convolutions that overlap.",
        stage="train",
        choices=("patch", "conv"),
        panel="Model",
    )
    shift: int | None = option(
        None,
        "Maximum shift of an image in training, in pixels.",
        stage="train",
        minimum=0,
        maximum=512,
        panel="Optimization",
        shown_default="a 14th of the size",
    )
    flip: bool = option(
        False, "Mirror half of the images in training.", stage="train", panel="Optimization"
    )
    erase: float = option(
        0.0,
        "Fraction of the images in which training erases a rectangle.",
        stage="train",
        minimum=0,
        maximum=1,
        panel="Optimization",
    )


class ImageClassification(Classification):
    name = "image-classification"
    Options = ImageClassificationOptions
    unit_name = "images"
    measure = "pixels"
    positions = "patches"
    kinds: ClassVar[Mapping[str, str]] = {"image": "file", "label": "value"}
    field = "image"
    intended_use = (
        "images of the kind that it learned from. It gives every image one of its labels, also one "
        "that belongs to none of them; its probabilities mean little there."
    )

    def __init__(
        self,
        options: Any,
        form: Form | None = None,
        labels: Sequence[str] = (),
        mean: Sequence[float] = (),
        deviation: Sequence[float] = (),
    ) -> None:
        super().__init__(options)
        self.labels = list(labels)
        self._form, self.mean, self.deviation = form, list(mean), list(deviation)
        # images of more than 8 bits a value (`deep`), and those of which a person should know
        self._found: Counter[str] = Counter()

    @property
    def form(self) -> Form:
        """What every image becomes."""
        assert self._form is not None, "units or load comes first"
        return self._form

    @property
    def signature(self) -> str:
        return f"pixels of {self.form.channels} channels"

    # prepare ---------------------------------------------------------------------------------

    @classmethod
    def claims(cls, columns: Mapping[str, str]) -> bool:
        from bigmodel_cli.tasks.columns import usual

        return bool(usual(columns, IMAGE_NAMES) and usual(columns, LABEL_NAMES))

    def columns(
        self, found: Mapping[str, str], wanted: Mapping[str, str], where: str
    ) -> dict[str, str]:
        from bigmodel_cli.tasks.columns import named_column

        names = {"image": IMAGE_NAMES, "label": LABEL_NAMES}
        chosen = {
            n: named_column(found, n, wanted.get(n), usual, where) for n, usual in names.items()
        }
        self.label_column = chosen["label"]
        return chosen

    def look(self, rows: Rows) -> bool:
        """Chooses the size and the colour of all images by the first ones, if they are not set."""
        from bigmodel_cli.tasks.pixels import usual_form

        images = rows.table.column("image")
        self._form = usual_form(images, self.options.image_size, self.options.color)
        return self._form is not None

    def units(
        self, rows: Iterable[Rows], ledger: Ledger, shares: Mapping[str, float]
    ) -> Iterator[Units]:
        del shares
        for batch in rows:
            if self._form is None:
                self.look(batch)
            for first in range(0, batch.table.num_rows, TOGETHER):
                units = self._decoded(batch, first, ledger)
                units = units and self.labelled(units, ledger)
                if units is not None:
                    yield units
        self.check_labels(ledger)

    def _decoded(self, rows: Rows, first: int, ledger: Ledger) -> Units | None:
        """Some rows as pixels; what is no image is dropped. None if nothing is left."""
        import numpy as np
        import pyarrow as pa

        from bigmodel_cli.tasks.clean import as_column
        from bigmodel_cli.tasks.pixels import (
            USUAL,
            Form,
            ImageError,
            array,
            halved,
            is_grey,
            opened,
            values,
        )

        table = rows.table.slice(first, TOGETHER)
        images = table.column("image")
        form = self._form or Form(1, USUAL)  # of no image that can be read
        fades = form.channels == 1 and self.options.color == "auto"
        places, sizes, pixels = [], [], []
        for index in range(len(images)):
            data = images[index].as_buffer()
            size = 0 if data is None else data.size
            ledger.came_in(1, size)
            try:
                image = opened(b"" if data is None else data.to_pybytes())
                self._found["halved"] += halved(image)
                coloured = fades and image.mode[0] not in "1LIF"
                if coloured:
                    in_colour = array(image, dataclasses.replace(form, channels=3))
                    self._found["faded"] += not is_grey(in_colour)
                    image = opened(data.to_pybytes())
                found = values(image, form)
                self._found["deep"] += found.dtype != np.uint8
                pixels.append(found.tobytes())
            except ImageError as error:
                ledger.drop(str(error), size, rows.where(first + index))
                continue
            places.append(index)
            sizes.append(size)
        if not places:
            return None
        kept = np.array(places, np.int64)
        column = pa.array(pixels, pa.large_binary())
        labels = table.column("label").take(as_column(kept))
        return Units(
            pa.RecordBatch.from_arrays([column, labels], names=["pixels", "label"]),
            column,
            np.array(sizes, np.int64),
            rows.split,
            lambda i: rows.where(first + int(kept[i])),
        )

    def fit(
        self,
        sample: Callable[[int], Iterator[pa.RecordBatch]],
        size: int,
        wait: Callable[[Callable[[], None]], None],
    ) -> str:
        import numpy as np

        del wait
        classes = self.fit_labels(sample, size)
        said = self._fit_white(sample, size) if self._found["deep"] else ""
        C, S = self.form.channels, self.form.size
        count, sums, squares = 0, np.zeros(C), np.zeros(C)
        for part in sample(SAMPLE_BYTES):
            pixels = self._pixels(part.column("pixels")).astype(np.float32)
            count += len(pixels) * S * S
            sums += pixels.sum((0, 2, 3), dtype=np.float64)
            squares += np.square(pixels).sum((0, 2, 3), dtype=np.float64)
        mean = sums / max(1, count)
        deviation = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 1.0))
        self.mean, self.deviation = mean.round(4).tolist(), deviation.round(4).tolist()
        return f"{classes}; {'grey' if C == 1 else 'coloured'} images of {S} × {S}{said}"

    def _fit_white(self, sample: Callable[[int], Iterator[pa.RecordBatch]], size: int) -> str:
        """Learns from the whole train split which value is white."""
        from bigmodel_cli.tasks.pixels import deep, white_of

        images = (i for part in sample(size) for i in part.column("pixels").to_pylist())
        found = (deep(image, self.form) for image in images)
        top = max((float(each.max()) for each in found if each is not None), default=65535.0)
        self._form = dataclasses.replace(self.form, white=white_of(top))
        count = self._found["deep"]
        return (
            f"; {count:,} have more than 8 bits a value, of which the largest in training is "
            f"{top:,.6g}: {self.form.white:,.6g} is white"
        )

    def _pixels(self, column: pa.Array) -> NDArray[np.uint8]:
        """Pixels (n, C, S, S) of a column of them."""
        import numpy as np

        from bigmodel_cli.tasks.pixels import deep, scaled

        C, S = self.form.channels, self.form.size
        images = column.to_pylist()
        if self._found["deep"]:
            for place, image in enumerate(images):
                if (found := deep(image, self.form)) is not None:
                    images[place] = scaled(found, self.form).tobytes()
        return np.frombuffer(b"".join(images), np.uint8).reshape(len(images), C, S, S)

    def encode(self, units: pa.RecordBatch, ledger: Ledger) -> Columns:
        del ledger
        import numpy as np

        from bigmodel_cli.artifacts.shards import Columns
        from bigmodel_cli.tasks.pixels import deep

        pixels = self._pixels(units.column("pixels"))
        if self._found["deep"]:
            found = (deep(image, self.form) for image in units.column("pixels").to_pylist())
            white = self.form.white or 0
            self._found["clipped"] += sum(
                each is not None and each.max() > white + 0.5 for each in found
            )
        lengths = np.full(len(pixels), pixels[:1].size)
        return Columns(
            len(pixels),
            {"pixels": pixels.reshape(-1), "label": self.codes(units.column("label"))},
            {"pixels": lengths},
        )

    def remarks(self) -> list[str]:
        from bigmodel_cli.tasks.pixels import REMARKS

        said = [text.format(self._found[why]) for why, text in REMARKS.items() if self._found[why]]
        return [*self.label_remarks(), *said]

    def save(self, folder: Path) -> None:
        self.save_labels(folder)
        form = {k: v for k, v in dataclasses.asdict(self.form).items() if v is not None}
        write_json(folder / IMAGES_FILE, {**form, "mean": self.mean, "deviation": self.deviation})

    @classmethod
    def load(cls, folder: Path, options: Any) -> Self:
        from bigmodel_cli.tasks.pixels import Form

        document = read_json(folder / IMAGES_FILE, "preprocessor", "make it again")
        try:
            white = float(document["white"]) if "white" in document else None
            form = Form(int(document["channels"]), int(document["size"]), white)
            mean, deviation = ([float(n) for n in document[k]] for k in ("mean", "deviation"))
            if not (
                form.channels == len(mean) == len(deviation)
                and form.channels in (1, 3)
                and 4 <= form.size <= 1024
                and math.isfinite(sum(mean))
                and min(deviation) > 0
            ):
                raise ValueError(document)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the preprocessor `{folder}` is corrupt: {error!r}", "make it again"
            ) from None
        task = cls(options, form, cls.read_labels(folder), mean, deviation)
        return task.read_untrained(folder)

    # train -----------------------------------------------------------------------------------

    def shape(self) -> Shape:
        size = self.form.size
        fitting = [n for n in range(1, size + 1) if not size % n]
        patch = self.options.patch or max([n for n in fitting if size // n >= FEWEST] or [1])
        if patch not in fitting:
            raise UsageError(
                f"--patch {patch} does not divide the images' {size} pixels",
                "choose one of " + ", ".join(map(str, fitting)),
            )
        image = ImageShape(self.form.channels, size, patch, self.options.stem)
        return Shape(0, image.positions, causal=False, classes=len(self.labels), image=image)

    def _raw(self, split: Split, examples: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pixels of some examples: (B, C, S, S)."""
        import numpy as np

        C, S = self.form.channels, self.form.size
        rows = [split.values("pixels", i, i + 1) for i in examples.tolist()]
        return np.stack(rows).reshape(-1, C, S, S)

    def _inputs(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Pixels as the model wants them: of mean 0 and deviation 1 over the train split."""
        import numpy as np
        import torch

        mean, deviation = (
            np.array(part, np.float32)[:, None, None] for part in (self.mean, self.deviation)
        )
        return {"pixels_BCHW": torch.from_numpy((pixels - mean) / deviation)}

    def _batch(
        self, split: Split, examples: NDArray[np.int64], pixels: NDArray[np.uint8] | None = None
    ) -> Batch:
        import torch

        pixels = self._raw(split, examples) if pixels is None else pixels
        targets = torch.from_numpy(split.column("label")[examples].astype("int64"))
        return Batch(self._inputs(pixels), targets, len(examples), {"units": examples})

    def plan(self, split: Split, seed: int) -> ShuffledPlan:
        import numpy as np

        from bigmodel_cli.tasks.pixels import Augmentation
        from bigmodel_cli.tasks.rows import ShuffledPlan

        self.weigh(split)
        shift, size = self.options.shift, self.form.size
        shift = min(round(size / 14) if shift is None else shift, size - 1)
        augment = Augmentation(shift, self.options.flip, self.options.erase)
        fill = np.array(self.mean).round().astype(np.uint8)

        def make(examples: NDArray[np.int64], epochs: NDArray[np.int64]) -> Batch:
            pixels = augment(self._raw(split, examples), fill, seed, examples, epochs)
            return self._batch(split, examples, pixels)

        return ShuffledPlan(np.full(len(split), self.shape().context), seed, make)

    # evaluate --------------------------------------------------------------------------------

    def scoring(self, split: Split, rows: int, limit: int | None = None) -> Iterator[Batch]:
        from bigmodel_cli.tasks.rows import by_length

        for examples in by_length(split.lengths("pixels"), max(rows, ROWS), limit):
            yield self._batch(split, examples)

    def protocol(self) -> dict[str, Any]:
        return {
            **super().protocol(),
            "image_size": self.form.size,
            "color": "grey" if self.form.channels == 1 else "rgb",
        }

    def baselines(self, train: Split, split: Split) -> Iterator[tuple[str, Predictions]]:
        import warnings

        import numpy as np
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        from bigmodel_cli.tasks.packing import BASELINE, generator
        from bigmodel_cli.tasks.pixels import thumbnails

        yield from self.majority(train, split)
        chosen = generator(BASELINE, 0).permutation(len(train))[:BASELINE_IMAGES]
        known = train.column("label")[chosen]
        if len(np.unique(known)) < 2:
            return
        model = LogisticRegression(max_iter=BASELINE_STEPS)
        with warnings.catch_warnings():  # a baseline may end a little before its optimum
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(thumbnails(self._raw(train, chosen), BASELINE_SIDE), known)
        answers = np.full((len(split), len(self.labels)), SURE)
        for first in range(0, len(split), TOGETHER):
            part = np.arange(first, min(first + TOGETHER, len(split)))
            features = thumbnails(self._raw(split, part), BASELINE_SIDE)
            answers[part[:, None], model.classes_] = model.predict_log_proba(features)
        yield from self.judged("pixel_logistic", answers, split)

    def samples(
        self, model: SequenceModel, split: Split, count: int, seed: int
    ) -> list[dict[str, str]]:
        import numpy as np

        from bigmodel_cli.tasks.packing import SAMPLES, generator
        from bigmodel_cli.tasks.pixels import data_uri

        found = []
        for unit in generator(SAMPLES, seed).permutation(len(split))[:count].tolist():
            pixels = self._raw(split, np.array([unit]))[0]
            answer = next(last for *_, last in self.answer(model, [Request(pixels)]) if last)
            found.append(
                {
                    "prompt": f"image {unit:,}\n",
                    "picture": data_uri(pixels),
                    "output": shown_label(answer),
                    "reference": self.labels[int(split.column("label")[unit])],
                }
            )
        return found

    def proof(self, split: Split, count: int) -> Proof:
        import numpy as np

        units = range(min(count, len(split)))
        return Proof([dict(self._batch(split, np.array([unit])).inputs) for unit in units])

    # predict ---------------------------------------------------------------------------------

    def request(self, document: Document) -> Request:
        from bigmodel_cli.tasks.pixels import requested_image
        from bigmodel_cli.tasks.requests import text_field

        return Request(requested_image(text_field(document, "image"), self.form, self.opens_files))

    def pixels(self, document: Document) -> int:
        from bigmodel_cli.tasks.pixels import announced

        return announced(document.get("image"))

    def answer(self, model: SequenceModel, requests: Sequence[Request]) -> Iterator[Piece]:
        import numpy as np

        def inputs(requests: Sequence[Request]) -> Mapping[str, Tensor]:
            return self._inputs(np.stack([request.prompt for request in requests]))

        yield from self.classify(model, requests, inputs)
