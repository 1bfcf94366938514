"""Answering requests from a bundle, and from nothing else."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli.artifacts import bundle, checkpoint
from bigmodel_cli.artifacts.bundle import HINT
from bigmodel_cli.errors import ArtifactError, BigmodelError, DataError
from bigmodel_cli.models.device import set_up
from bigmodel_cli.models.precision import lower
from bigmodel_cli.models.sequence import build
from bigmodel_cli.tasks import Answer, Piece, Request, load_task, model_of
from bigmodel_cli.tasks.parameters import checked

LONGEST_LINE = 64 << 20


class Predictor:
    """A bundle, verified and loaded. `task` checks and answers; `name` is the model's."""

    def __init__(
        self, folder: Path, device: str = "auto", threads: int = 0, precision: str = "auto"
    ) -> None:
        """precision `auto`: the bundle's own. Raises ArtifactError when the bundle is missing or
        corrupt, UsageError for a precision that the model cannot have."""
        from bigmodel_cli.models.qwen3 import native_weights

        self.manifest = bundle.read(folder)
        self.task = load_task(folder, HINT)
        config = model_of(self.manifest.model, self.task, f"the bundle `{folder}`", HINT)
        self.name, own = self.manifest.name, self.manifest.precision
        path = folder / checkpoint.MODEL
        weights = checkpoint.load_tensors(path, "bundle", HINT)
        if not all(map(checkpoint.is_finite, weights.values())):
            raise ArtifactError(f"the bundle `{path}` is corrupt: not all numbers are finite", HINT)
        if self.manifest.layout == "huggingface":
            weights = native_weights(weights, config)
        if precision == "auto" and own == "int8" and device == "auto":
            device = "cpu"  # a GPU has no kernels for what the bundle asks
        self.device = set_up(device, threads)
        model = build(config, weights, str(path)).to(self.device)
        self.model = lower(model, own if precision == "auto" else precision)

    @property
    def names(self) -> set[str]:
        """What a request may hold. An `id` comes back with its answer."""
        return {"id", self.task.field, *self.task.fields}

    def request(self, document: Any, defaults: Mapping[str, Any]) -> Request:
        """Checks one request. Raises DataError."""
        return self.task.request({**defaults, **self._checked(document)[0]})

    def ignored(self, document: Any) -> list[str]:
        """The unknown names in a request, which is otherwise good. Raises DataError."""
        return self._checked(document)[1]

    def _checked(self, document: Any) -> tuple[dict[str, Any], list[str]]:
        if not isinstance(document, dict):
            raise DataError(
                "a request is a JSON object", f'for example {{"{self.task.field}": "…"}}'
            )
        return checked(document, self.names)

    def answer(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """(request, new text, the whole answer once it is finished), as they come."""
        yield from self.task.answer(self.model, requests)

    def answer_lines(
        self,
        lines: Sequence[bytes],
        defaults: Mapping[str, Any],
        ignored: Counter[str] | None = None,
    ) -> list[Answer]:
        """One answer for each JSON line, in order, `id` passed through; a bad line yields
        {"error": {…}} in its place. ignored: counts the unknown names in good lines."""
        answers: list[Answer] = [{} for _ in lines]
        requests: list[Request] = []
        places: list[int] = []
        for place, line in enumerate(lines):
            try:
                try:
                    if len(line) > LONGEST_LINE:
                        raise ValueError(f"over {LONGEST_LINE >> 20} MiB")
                    document = json.loads(line, parse_constant=_refuse, parse_float=_finite)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"not a line of JSON: {error}") from None
                if isinstance(document, dict) and "id" in document:
                    answers[place]["id"] = document["id"]
                requests.append(self.request(document, defaults))
                places.append(place)
                if ignored is not None:
                    ignored.update(self.ignored(document))
            except BigmodelError as error:
                answers[place]["error"] = error_document(error)
        try:
            for index, _, whole in self.answer(requests) if requests else ():
                if whole is not None:
                    answers[places[index]].update(whole)
        except DataError as error:  # of one request, found only by the model
            if len(lines) == 1:
                answers[0]["error"] = error_document(error)
            else:
                return [self.answer_lines([line], defaults)[0] for line in lines]
        return answers


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"`{text[:40]}` is too large a number")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"`{constant}` is not a JSON number")


def error_document(error: BigmodelError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint}
