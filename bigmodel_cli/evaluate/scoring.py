"""Scores the model and the baselines unit by unit, and keeps what it has when it is stopped."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.artifacts.statistics import Collector, Partial
from bigmodel_cli.errors import StopError
from bigmodel_cli.events import Context, Progress
from bigmodel_cli.models.device import autocast
from bigmodel_cli.models.precision import lower
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.tasks import Predictions, Task

TOGETHER = 64  # units of about the same length that are answered in one step
SAVE_SECONDS = 10.0  # between two writes of what there is so far
SAVE_SHARE = 20  # and at least so many times as long as the last one took
SCORE, ANSWER, BASELINES = "score", "answer", "baselines"


class Scorer:
    """One evaluation's work, in steps whose number `partial` keeps: a stopped evaluation continues
    with the next one, and adds up the same numbers in the same order."""

    def __init__(self, task: Task, split: Split, partial: Partial, context: Context) -> None:
        self.task, self.split, self.partial, self.context = task, split, partial, context
        self._saved, self._pause = time.monotonic(), SAVE_SECONDS

    def run(self, model: SequenceModel, train: Split, rows: int, precision: str) -> None:
        """Adds everything that is not there yet. precision: of scoring; answers are written as a
        bundle writes them, which `model` is made ready for."""
        try:
            with autocast(model.device, precision):
                self._score(model, rows)
            lower(model, "fp32")
            if self.task.answer_metrics():
                self._answer(model)
            self._baselines(train)
        except StopError:
            with self.context.stop.deferred():
                if self.partial.done:
                    self.partial.save()
            raise

    def _score(self, model: SequenceModel, rows: int) -> None:
        done = self.partial.done.get(SCORE, 0)
        seen = np.zeros(len(self.split), bool)
        for number, batch in enumerate(self.task.scoring(self.split, rows)):
            if number >= done:
                with torch.inference_mode():
                    found = self.task.predict(model, batch.to(model.device))
                self._add(SCORE, [found])
                seen[found.units] = True
            elif "units" in batch.extra:  # scored before it was stopped
                seen[np.unique(batch.extra["units"])] = True
            self._show(SCORE, int(seen.sum()))

    def _answer(self, model: SequenceModel) -> None:
        done = self.partial.done.get(ANSWER, 0)
        order = np.argsort(-self.split.sizes(), kind="stable")
        for begin in range(done * TOGETHER, len(self.split), TOGETHER):
            units = order[begin : begin + TOGETHER]
            found, seen = [], np.zeros(len(units), bool)  # a unit may have several answers
            for part in self.task.answers(model, self.split.take(units)):
                found.append(Predictions(units[part.units], part.statistics, part.counts))
                seen[part.units] = True
                self._show(ANSWER, begin + int(seen.sum()))
            self._add(ANSWER, found)
            self._show(ANSWER, begin + len(units))

    def _baselines(self, train: Split) -> None:
        if self.partial.done.get(BASELINES):
            return
        collectors: dict[str, Collector] = {}
        counts: dict[str, dict[str, NDArray[np.int64]]] = {}
        self.context.emit(Progress(BASELINES))
        for name, found in self.task.baselines(train, self.split):
            empty = Collector(len(self.split), len(self.task.statistics))
            collectors.setdefault(name, empty).add(found.units, found.statistics)
            known = counts.setdefault(name, {})
            for key, count in found.counts.items():
                known[key] = known[key] + count if key in known else count
            self.context.emit(Progress(BASELINES, len(collectors), None, "scored", f"last {name}"))
        self.partial.baselines = {
            name: (collector.statistics(), counts[name]) for name, collector in collectors.items()
        }
        self._add(BASELINES, [])
        self.partial.save()  # what is left is quick, but for the samples

    def _add(self, phase: str, found: list[Predictions]) -> None:
        """Counts a step; a signal waits until it is whole."""
        with self.context.stop.deferred():
            self.partial.add(phase, found)
            if time.monotonic() - self._saved > self._pause:
                began = time.monotonic()
                self.partial.save()
                self._saved = time.monotonic()
                self._pause = max(SAVE_SECONDS, SAVE_SHARE * (self._saved - began))
        if self.context.stop.requested:
            self.context.stop.raise_()

    def _show(self, phase: str, done: int) -> None:
        self.context.emit(Progress(phase, done, len(self.split), self.task.unit_name))
