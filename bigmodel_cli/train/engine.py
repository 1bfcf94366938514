"""The training loop's inside: one update, one validation. Knows no task and no files.

The loss is a sum over terms divided by the update's count of terms, so that neither micro-batches
nor padding change an update.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bigmodel_cli.artifacts.records import Hardware
from bigmodel_cli.artifacts.shards import Split
from bigmodel_cli.errors import DivergedError
from bigmodel_cli.models.device import autocast, neighbours
from bigmodel_cli.models.sequence import SequenceModel
from bigmodel_cli.tasks import Batch, Plan, Task
from bigmodel_cli.train import distributed
from bigmodel_cli.train.optim import Optimizers

# one more whenever an update of the same model computes other bits there, or has other rows
ARITHMETIC = {"cpu": 6, "cuda": 7}
LONG_PRODUCT = 0.1  # seconds after which no larger matrix product is measured


def memory_bytes(device: torch.device) -> int:
    """The size of the memory that this process may plan with, not what is free of it now, so that
    it is the same on every try: torchrun's ranks on one machine share it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(path).read_text()))
    return total // neighbours()


def hardware(device: torch.device) -> Hardware:
    """What has to be the same for a resume to be exact to the byte."""
    name = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return Hardware(
        device=device.type,
        name=name,
        torch=torch.__version__.split("+")[0],
        simd=torch.backends.cpu.get_cpu_capability(),
        arithmetic=ARITHMETIC[device.type],
        ranks=distributed.world(),
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measured: floating-point operations per second of a large matrix product, but of no larger
    one than takes a moment, since bf16 is slow on processors without it. Only for show."""
    best = 0.0
    for size in (4096,) if device.type == "cuda" else (256, 512, 1024):
        a = torch.randn(size, size, device=device, dtype=dtype)
        for _ in range(4):
            began = time.perf_counter()
            (a @ a).sum().item()
            seconds = time.perf_counter() - began
            best = max(best, 2 * size**3 / seconds)
            if seconds > LONG_PRODUCT and device.type == "cpu":
                return best
    return best


@dataclass
class Engine:
    """A model, its optimizers and its data's order. One update is `step`."""

    task: Task
    model: SequenceModel
    optimizers: Optimizers
    plan: Plan
    device: torch.device
    precision: str
    batch_size: int
    micro_batch: int
    clip: float
    seed: int
    compiled: bool = False
    _ahead: tuple[int, list[Batch]] = (-1, [])  # the batches of an update that is to come

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.precision)

    def warm_up(self) -> None:
        """Has what is compiled compiled now, for each size of micro-batch, and changes nothing."""
        begin, end = distributed.share(self.batch_size)
        sizes = {min(self.micro_batch, end - row) for row in range(begin, end, self.micro_batch)}
        self.model.train()
        for size in sizes:
            with self.autocast():
                loss = self.task.loss_sum(self.model, self.plan.batch(0, size).to(self.device))
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers.zero()

    def step(self, number: int, share: float, stopping: Callable[[], bool]) -> Step | None:
        """Update `number` (from 0) with `share` of the peak learning rate; None if `stopping` said
        so, before anything changed. Raises DivergedError, and then the weights are lost, too."""
        self.model.train()
        # what is random in a step (dropout) depends on the step alone: resuming needs no state
        key = (
            (self.seed, number) if distributed.leads() else (self.seed, number, distributed.rank())
        )
        torch.manual_seed(hash(key) & 0x7FFF_FFFF_FFFF)
        made, batches = self._ahead
        if made != number:
            batches = self._batches(number)
        stop, terms = distributed.total(stopping(), sum(batch.terms for batch in batches))
        if stop:
            return None
        terms = max(1, terms)
        parts = torch.zeros((), device=self.device)
        with self.autocast():  # around all: what is not compiled casts weights once
            for batch in batches:
                if distributed.world() == 1 and stopping():
                    self.optimizers.zero()
                    return None
                part = self.task.loss_sum(self.model, batch) / terms
                with torch.autocast(self.device.type, enabled=False):
                    part.backward()  # type: ignore[no-untyped-call]
                parts += part.detach()
        distributed.sum_gradients(self.model.parameters())
        norm: Any = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or math.inf)
        self.optimizers.step(share)
        if self.device.type == "cuda":  # while it is at work
            self._ahead = number + 1, self._batches(number + 1)
        loss, norm = torch.stack([parts, norm]).tolist()  # the one wait for the device
        (loss,) = distributed.total(loss)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"training diverged at step {number + 1}: loss {loss}, gradient norm {norm}"
            )
        return Step(loss, norm, int(terms))

    def _batches(self, number: int) -> list[Batch]:
        """This rank's rows of update `number`, some at a time, where the model is."""
        begin, end = distributed.share(self.batch_size)
        first = number * self.batch_size + begin
        parts = self.plan.parts(first, end - begin, self.micro_batch)
        return [batch.to(self.device) for batch in parts]

    def validate(
        self, split: Split, rows: int, limit: int, stopping: Callable[[], bool]
    ) -> dict[str, float | None] | None:
        """The task's metrics on the first `limit` rows of a split, None where one is no
        number; None if stopped."""
        self.model.eval()
        sums = np.zeros(len(self.task.statistics))
        eager = contextlib.nullcontext()
        if self.compiled:  # its batches have many shapes
            eager = torch.compiler.set_stance("force_eager")
        with eager:
            for number, batch in enumerate(self.task.scoring(split, rows, limit)):
                turn = number % distributed.world()
                if not turn and distributed.any_(stopping()):
                    return None
                if turn != distributed.rank():
                    continue
                with torch.inference_mode(), self.autocast():
                    predictions = self.task.predict(self.model, batch.to(self.device))
                sums += predictions.statistics.sum(0)
        sums = np.array(distributed.total(*sums))
        metrics = [metric for metric in self.task.metrics() if not metric.of]
        values = {metric.name: float(metric.value(sums)) for metric in metrics}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Step:
    """loss: mean over the update's terms (nats); norm: of the gradient before clipping."""

    loss: float
    norm: float
    terms: int
