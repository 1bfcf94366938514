"""The run from its state to its end: updates, log, validations, checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from bigmodel_cli.artifacts import checkpoint, manifest
from bigmodel_cli.artifacts.records import Best, CheckpointState
from bigmodel_cli.artifacts.workdir import Run
from bigmodel_cli.config import TrainConfig
from bigmodel_cli.errors import DivergedError
from bigmodel_cli.events import CheckpointSaved, Context, StepDone, Validated
from bigmodel_cli.train import distributed
from bigmodel_cli.train.contention import Contention

if TYPE_CHECKING:
    from bigmodel_cli.artifacts.shards import Split
    from bigmodel_cli.train.engine import Engine, Step
    from bigmodel_cli.train.schedule import Clock

# how many validations and checkpoints a run has, unless --checkpoint-every says otherwise; but no
# more than so many steps or seconds may be lost
EVALUATIONS, MOST_STEPS, MOST_SECONDS = 10, 1000, 900


@dataclass(frozen=True)
class Trained:
    """run: the folder; step: updates made; validation: the best one's metrics; fresh: whether the
    run was finished before."""

    run: str
    checkpoint: str
    step: int
    tokens: int
    seconds: float
    validation: Mapping[str, float | None]
    fresh: bool


class Loop:
    """The run from its state to its end: updates, log, validations, checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        place: Run,
        context: Context,
        engine: Engine,
        clock: Clock,
        val: Split,
        state: CheckpointState | None,
    ) -> None:
        from bigmodel_cli.train.engine import peak_flops
        from bigmodel_cli.train.schedule import Allowance

        self.config, self.place, self.context = config, place, context
        self.engine, self.clock, self.val = engine, clock, val
        self.step = state.step if state else 0
        self.tokens = state.tokens if state else 0
        self.decay_began = state.decay_began if state else None
        self.best = state.best if state else None
        if state and (not self.best or self.best.name not in checkpoint.names(place.checkpoints)):
            self.best = Best(name=self.name)  # the other was lost with a damaged checkpoint
        self.validation = state.validation if state else None  # of this very step
        self.saved = self.step if state else -1
        self.finished = state.finished if state else False
        shape = engine.model.config
        self.row_tokens = engine.plan.row_tokens
        self.every = config.checkpoint_every
        if self.every is None and clock.length.steps is not None:
            self.every = min(MOST_STEPS, -(-clock.length.steps // EVALUATIONS))
        clock.look()
        self.allowance: Allowance | None = None
        if clock.length.seconds is not None:
            self.allowance = Allowance(
                clock,
                engine.task.validation_rows(),
                max(EVALUATIONS, math.ceil(clock.length.seconds / MOST_SECONDS)),
                sum(weight.numel() for weight in engine.model.parameters()),
                (state and state.allowance) or None,
                clock.progress(self.step),
            )
        self.speed = 0.0  # tokens per second, lately
        self.flops = 3 * shape.flops()
        import torch

        dtype = torch.bfloat16 if engine.precision == "bf16" else torch.float32
        self.peak = peak_flops(engine.device, dtype)
        self.contention = Contention(torch.get_num_threads() if engine.device.type == "cpu" else 1)
        self.leads = distributed.leads()
        if not self.leads:
            return
        place.folder.mkdir(parents=True, exist_ok=True)
        if state:  # also when the record is damaged
            self._mark_best()
        if place.log.exists():
            with place.log.open("r+b") as file:  # what is later than the checkpoint happens again
                file.truncate(min(state.log_bytes if state else 0, place.log.stat().st_size))

    def run(self) -> Trained:
        path = self.place.log if self.leads else Path(os.devnull)
        with self.context.stop.deferred(), path.open("a", encoding="utf-8") as log:
            self.log = log
            if self.validation:
                self.context.emit(Validated(self.step, self.validation))
            self.clock.pause()  # loading is no part of a step's time
            done = self.clock.done(self.step)
            due = self.step and (done or (self.every and self.step % self.every == 0))
            if due and len(self.val) and self.validation is None:
                # stopped while it was validated: what follows has to see the same best checkpoint
                self._validate_and_save(finished=done)
            while not self.clock.done(self.step):
                if not self._update():
                    break
                if self._due():
                    self._check()
                if self._stopping():
                    break
            if self._stopping():
                if self.step != self.saved and self.step:
                    self._save(finished=False, interim=True)
                self.context.stop.raise_()
            if self.saved != self.step or (self.validation is None and len(self.val)):
                self._validate_and_save(finished=True)
            elif not self.finished:  # time ran out while the last checkpoint was made
                self._save(finished=True)
            if not self.finished and self._stopping():
                self.context.stop.raise_()
        assert self.best
        best = self.place.checkpoints / self.best.name
        shown = distributed.lead(lambda: checkpoint.read_state(best).validation or {})
        return Trained(
            self.place.name,
            self.best.name,
            self.step,
            self.tokens,
            self.clock.elapsed,
            shown,
            fresh=False,
        )

    def _is_signalled(self) -> bool:
        """Whether this rank got a signal to stop."""
        return self.context.stop.requested is not None

    def _stopping(self) -> bool:
        return distributed.any_(self._is_signalled())

    def _due(self) -> bool:
        """Whether a checkpoint falls on this step: every so many, or every tenth of the time."""
        if self.every is not None:
            return self.step % self.every == 0
        assert self.allowance
        return self.allowance.next <= self.clock.progress(self.step) < 1

    def _check(self) -> None:
        """A validation and a checkpoint; in a run in minutes as far as they may take the time."""
        allowance = self.allowance
        if allowance:
            self._fix_rows()
        if not allowance or allowance.affordable > 1:
            self._validate_and_save(finished=self.clock.done(self.step))
        elif allowance.left > self.clock.reserve + allowance.saving:
            self._save(finished=False, interim=True)
            self.clock.pause()
        if allowance:
            if allowance.affordable < 2 and allowance.more:
                allowance.more = False
                self.context.note(
                    "a tenth of the time is used up by validations and checkpoints: "
                    "only the last one follows"
                )
            allowance.plan(self.clock.progress(self.step))

    def _fix_rows(self) -> None:
        """Measures validations of a few rows, of a few more, until they tell what others take."""
        allowance, clock = self.allowance, self.clock
        if not allowance or allowance.rows is not None or not len(self.val):
            return
        if self.config.checkpoint_every:
            allowance.parts = clock.checkpoints(self.config.checkpoint_every)
        from bigmodel_cli.train.schedule import FIRST_ROWS

        rows, took = 0, 0.0
        while not rows or not allowance.enough(rows, took):
            rows = min(allowance.full, 4 * rows or FIRST_ROWS)
            began = clock.look()
            found = self._validate(rows)
            took = clock.look() - began
            allowance.spent += took
            if found is None:  # stopped
                return
        if less := allowance.fix(rows, took):
            self.context.note("so that they take at most a tenth of the time, " + less)
        clock.pause()

    def _validate(self, limit: int) -> dict[str, float | None] | None:
        return self.engine.validate(
            self.val, max(1, self.engine.micro_batch), limit, self._is_signalled
        )

    def _update(self) -> bool:
        from bigmodel_cli.train.schedule import rate

        config, clock = self.config, self.clock
        progress = clock.progress(self.step)
        share = rate(progress, self.step, clock.length.steps, config.warmup, config.decay)
        if self.decay_began is None and progress >= 1 - config.decay:
            self.decay_began = self.step
        try:
            done = self.engine.step(self.step, share, self._is_signalled)
        except DivergedError as error:
            raise self._diverged(error.message) from None
        if done is None:
            return False
        self.step += 1
        self.validation = None
        self.tokens = round(self.step * self.engine.batch_size * self.row_tokens)
        self.speed = self.engine.batch_size * self.row_tokens / clock.tick()
        self._report(done, share)
        if busy := self.contention.warning():
            self.context.warn(busy)
        return True

    def _diverged(self, message: str) -> DivergedError:
        """What is left, and what to try next."""
        from bigmodel_cli.train.optim import LEARNING_RATES

        saved = (
            f"the best checkpoint before it is `{self.best.name}`"
            if self.best
            else ("there is no checkpoint before it")
        )
        rate = min(self.engine.optimizers.learning_rate / 10, LEARNING_RATES[self.config.optimizer])
        return DivergedError(
            f"{message}; {saved}",
            f"train it again from nothing with a lower rate: add --restart --learning-rate {rate:g}"
            + "; or score that checkpoint: bigmodel evaluate" * bool(self.best),
        )

    def _report(self, done: Step, share: float) -> None:
        clock = self.clock
        rate = self.engine.optimizers.learning_rate * share
        record = {
            "step": self.step,
            "loss": done.loss,
            "gradient_norm": done.norm,
            "learning_rate": rate,
            "tokens": self.tokens,
            "seconds": round(clock.elapsed, 3),
            "tokens_per_second": round(self.speed),
        }
        self._write(record)
        self.context.emit(
            StepDone(
                step=self.step,
                loss=done.loss,
                gradient_norm=done.norm,
                learning_rate=rate,
                tokens=self.tokens,
                unit=self.engine.task.positions,
                speed=self.speed,
                share_of_peak=self.speed * self.flops / self.peak,
                seconds=clock.elapsed,
                left=clock.left(self.step),
                done=clock.progress(self.step),
            )
        )

    def _write(self, record: Mapping[str, Any]) -> None:
        with manifest.storage(self.place.log):
            self.log.write(json.dumps(record, allow_nan=False) + "\n")
            self.log.flush()

    def _validate_and_save(self, finished: bool) -> None:
        self._fix_rows()
        began = self.clock.look()
        self.validation = None
        if len(self.val):
            rows = self.allowance.rows if self.allowance else None
            self.validation = self._validate(rows or self.engine.task.validation_rows())
            if self.allowance:
                self.allowance.spent += self.clock.look() - began
        if self.validation is not None:
            if self.validation["loss"] is None:
                raise self._diverged(
                    f"training diverged by step {self.step}: the validation loss is not finite"
                )
            self.context.emit(Validated(self.step, self.validation))
            values = {k: v and round(v, 6) for k, v in self.validation.items()}
            self._write(
                {
                    "step": self.step,
                    "validation": values,
                    "tokens": self.tokens,
                    "seconds": round(self.clock.elapsed, 3),
                }
            )
        self._save(finished and not self._stopping())
        self.clock.pause()
        self.clock.keep(self.clock.elapsed - began)

    def _save(self, finished: bool, interim: bool = False) -> None:
        began = self.clock.look()
        headline = self.engine.task.metrics()[0]
        found = self.validation or {}
        value, loss = found.get(headline.name), found.get("loss")
        if not self.best or not len(self.val) or self._is_better(value, loss):
            known = value is not None
            self.best = Best(name=self.name, value=value, loss=loss if known else None)
        distributed.check_weights(self.engine.model.parameters())
        if self.allowance:  # so that the checkpoint tells of itself, too
            self.allowance.spent += self.allowance.saving
        distributed.lead(lambda: self._write_checkpoint(finished, interim))
        if self.allowance:
            self.allowance.saved(self.clock.look() - began)
        self.saved, self.finished = self.step, finished

    def _write_checkpoint(self, finished: bool, interim: bool) -> None:
        with manifest.storage(self.place.log):
            self.log.flush()
            os.fsync(self.log.fileno())
        assert self.best
        state = CheckpointState(
            step=self.step,
            tokens=self.tokens,
            elapsed=self.clock.elapsed,
            reserve=self.clock.reserve,
            decay_began=self.decay_began,
            best=self.best,
            keep=self.config.keep,
            validation=self.validation,
            finished=finished,
            interim=interim,
            log_bytes=self.place.log.stat().st_size,
            allowance=self.allowance.state() if self.allowance else UNSET,
            files={},
        )
        folder = self.place.checkpoints
        if self.saved == self.step:
            checkpoint.amend(folder / self.name, state)
        else:
            weights, optimizer = self.engine.model.state_dict(), self.engine.optimizers.tensors()
            checkpoint.save(folder, weights, optimizer, state)
        self._mark_best()
        checkpoint.prune(folder, self.config.keep, self.best.name)
        self.context.emit(CheckpointSaved(self.step, self.name, self.best.name))

    @property
    def name(self) -> str:
        """The checkpoint's of this step."""
        return f"step-{self.step:08d}"

    def _is_better(self, value: float | None, loss: float | None) -> bool:
        """Whether these are better than the best checkpoint's: of equals, by the lower loss."""
        if value is None or loss is None or self.best is None:
            return False
        sign = 1 if self.engine.task.metrics()[0].higher_is_better else -1
        best = -math.inf if self.best.value is None else sign * self.best.value
        return (sign * value, -loss) > (best, -(self.best.loss or 0.0))

    def _mark_best(self) -> None:
        assert self.best
        checkpoint.mark_best(self.place.checkpoints, self.best.name, self.best.value)
