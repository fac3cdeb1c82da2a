"""The one loop: every stage trains in it, on one process or on many.

    Trainer(model, stage, batches, TrainConfig(steps=1000, learning_rate=1e-3), folder).run()

    FOLDER/log.jsonl       figures and events, one JSON object a line
    FOLDER/checkpoints/    see `nextstep.train.checkpoint`

A run may be killed at any moment; `resume` takes up its newest whole checkpoint, on any number of
ranks, and on the same number of them goes on to the very same weights (bitwise on one process).

Legend: parameters of any shape; losses are scalars by their names.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nextstep.data.steps import StepStream
from nextstep.errors import NextStepError
from nextstep.model.precision import DTYPES, explained, matmul_rate, warn_if_slow
from nextstep.train import state
from nextstep.train.checkpoint import (
    CheckpointWriter,
    checkpoints,
    newest,
    set_aside,
    step_of,
)
from nextstep.train.checkpoint_integrity import DamagedCheckpointError, damage
from nextstep.train.config import TrainConfig
from nextstep.train.contracts import BatchSource, Stage, Step
from nextstep.train.metrics import JsonLines, Meter, Reporter, Row, StepReport, open_reporters
from nextstep.train.optimizer import freeze
from nextstep.train.parallel import (
    Peers,
    agreed_precision,
    gathered,
    is_sharded,
    let_go,
    new_host_group,
    shard,
)
from nextstep.train.schedule import Clock
from nextstep.train.step import Stepper
from nextstep.train.stop_signals import StopSignals

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["TrainConfig", "Trainer", "TrainingError"]


FIRST_ROWS = (1, 2, 5, 10)
"""Steps after which figures are logged before `log_every` is reached: a slow run shows early that
it learns."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what may help."""


class Trainer:
    """Trains a model with a stage on a stream of steps.

    Args:
        model: fp32 master weights on the device to train on; or already sharded.
        stage: what is lost; with a method `flops(batch)` the log also tells FLOP/s.
        batches: the stream of steps of this rank.
        config: see `TrainConfig`.
        folder: of this run; log and checkpoints go there. All ranks must see the same folder.
        mesh: of all ranks (`parallel.build_mesh`); a model that is not sharded yet is sharded over
            it. None for one process.
        on_save: called on every rank after each checkpoint was taken, and at the end.
        on_sample: called on every rank every `sample_every` steps, and at the end.

    Attributes:
        step: steps taken.
        finished: whether that was the last one, or the time is over.
        resumable: whether a checkpoint may be taken after it, see `Step`.
        skipped: how many of them left the weights alone.

    Raises:
        NextStepError: when a pattern in the config fits nothing, or gradient checkpointing is asked
            of a model that has none.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        batches: BatchSource,
        config: TrainConfig,
        folder: Path,
        *,
        mesh: DeviceMesh | None = None,
        on_save: Callable[[Trainer], None] | None = None,
        on_sample: Callable[[Trainer], None] | None = None,
    ) -> None:
        freeze(model, config.freeze)
        set_gradient_checkpointing(model, config.gradient_checkpointing)
        self.peers = Peers(mesh)
        device = next(model.parameters()).device
        precision = agreed_precision(config.precision, device, self.peers.world)
        chosen = [] if precision == config.precision else [f"{precision}: {explained(device)}"]
        config = replace(config, precision=precision)
        warn_if_slow(device.type, DTYPES[precision])
        if mesh is not None and not is_sharded(model):
            shard(model, mesh, config.precision, config.reshard_after_forward)
        self.model, self.stage, self.config, self.folder = model, stage, config, Path(folder)
        self.on_save, self.on_sample = on_save, on_sample
        self.stepper = Stepper(model, stage, config, self.peers)
        self.stream = StepStream(batches, config.prefetch)
        self.step = self.skipped = self.bad_in_a_row = 0
        self.batch_state, self.resumable = batches.state_dict(), True
        self.finished, self.clock = False, Clock(config.minutes)
        self.reporters: list[Reporter] = []
        self.log: JsonLines | None = None
        self.events: list[Row] = []
        for detail in chosen:
            self._event("precision", detail)
        self.saved_at: int | None = None
        self.writer = CheckpointWriter(
            self.folder / "checkpoints",
            config.keep,
            config.keep_every,
            config.save_in_background,
            None if mesh is None else new_host_group(),
            self.peers.leads,
        )

    def run(self) -> bool:
        """Train to the last step, or until SIGTERM, SIGINT or SIGUSR1, and save.

        Returns:
            Whether the last step was reached, or the end of the time.

        Raises:
            TrainingError: when the loss or gradient stays no number.
            NextStepError: when the folder holds later checkpoints of a run not taken up.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.writer.wait)
            stack.callback(self._close_reporters)
            stop = stack.enter_context(StopSignals(self.peers.leads))
            meter = self._begin()
            self.writer.clear_leftovers()
            saved = time.monotonic()
            self.finished = self._is_over(self.clock.passed >= 1)
            while not self.finished:
                report = self.train_step(self.stream.take(self.step + 1 < self.config.steps))
                meter.add(report)
                self._watch(report)
                save, stopping, over = self.peers.any(
                    self._save_due(saved), bool(stop.asked), self.clock.passed >= 1
                )
                self.finished = self._is_over(over and self.resumable)
                self._tell(meter)
                if stopping and self.resumable:
                    self._event("stopped", f"by {stop.asked or 'another rank'}")
                    break
                if save and self.resumable:
                    self.save()
                    saved = time.monotonic()
                if self._sample_due():
                    self._sample()
            self.save()
            if self.on_sample and self.config.sample_every and not self._sample_due():
                self._sample()
        return self.finished

    def _is_over(self, late: bool) -> bool:
        return self.step >= self.config.steps or late

    def train_step(self, step: Step) -> StepReport:
        """Take one step and count it."""
        report = self.stepper.take(step, self.step, self.clock.passed)
        self.step += 1
        self.batch_state, self.resumable = step.state, step.resumable
        self.skipped += report.skipped
        self.bad_in_a_row = self.bad_in_a_row + 1 if report.skipped else 0
        return report

    def save(self) -> None:
        """Take a checkpoint of the present state; it is written while training goes on."""
        if self.saved_at == self.step:
            return
        self._let_go()
        record = state.record(
            self.stepper, self.batch_state, self.skipped, self.peers.world, self.clock.seconds
        )
        tensors = state.tensors(self.stepper)
        self.writer.save(self.step, tensors, record)
        self.saved_at = self.step
        if self.on_save:
            self.on_save(self)

    def resume(self, path: Path | None = None) -> bool:
        """Go on from a checkpoint.

        Args:
            path: of a checkpoint; default the newest one of this run that is not damaged. Damaged
                ones are set aside, which is warned of and logged.

        Returns:
            False when there is none, and the run begins at step 0.

        Raises:
            ModelFileError: when it is of another model, naming what differs; when it is damaged,
                or all of the run are.
            NextStepError: when it was made with another optimizer.
        """
        if path is not None:
            self._refuse_damaged(path)
            record = state.restore(self.stepper, path, self.writer.group)
        elif (found := self._restore_newest()) is None:
            return False
        else:
            path, record = found
        self.step, self.skipped = record["step"], record["skipped"]
        self.batch_state = record["batches"]
        self.clock = Clock(self.config.minutes, record.get("seconds", 0.0))
        self.stream.load_state_dict(self.batch_state)
        self.finished = self._is_over(self.clock.passed >= 1)
        self.saved_at = self.step if path.parent == self.writer.folder else None
        changed = self.config.differences(record["config"])
        told = [f"{name} {old} -> {now}" for name, (old, now) in changed.items()]
        if record["world"] != self.peers.world:
            told.append(f"ranks {record['world']} -> {self.peers.world}")
        self._event("resumed", "; ".join(told))
        return True

    def _restore_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Restore the newest checkpoint that is as it was written, and set the others aside."""
        damaged: dict[Path, str] = {}
        restored = None
        for path in reversed(checkpoints(self.writer.folder)):
            try:
                self._refuse_damaged(path)
                restored = path, state.restore(self.stepper, path, self.writer.group)
                break
            except DamagedCheckpointError as error:
                damaged[path] = str(error)
        if damaged and not restored:
            raise DamagedCheckpointError(
                f"all checkpoints of {self.folder} are damaged: {next(iter(damaged.values()))}; "
                "begin anew in another folder"
            )
        self.peers.any(False)  # all ranks have read before one renames
        for path, reason in damaged.items():
            self._event("damaged", reason)
            if self.peers.leads:
                kept = set_aside(path)
                warnings.warn(
                    f"{reason}; it is kept as {kept.name}, and training goes on from "
                    f"{restored[0].name if restored else ''}",
                    stacklevel=3,
                )
        return restored

    def _refuse_damaged(self, path: Path) -> None:
        """Raise on all ranks when one finds a file that is not as it was written."""
        found = self.peers.names([damage(path, self.peers.rank, self.peers.world)])
        if reason := next(filter(None, found), ""):
            raise DamagedCheckpointError(f"the checkpoint {path} is damaged ({reason})")

    def weights(self, average: bool = True) -> dict[str, Tensor]:
        """Whole weights in the memory of the leading rank; every rank must ask, others get {}.

        Args:
            average: the averaged ones, where an average is kept.
        """
        self._let_go()
        return gathered(state.weights(self.stepper, average), self.peers.leads)

    def weights_everywhere(self, average: bool = True) -> dict[str, Tensor]:
        """Whole weights in the memory of every rank; all must ask.

        Args:
            average: the averaged ones, where an average is kept.
        """
        self._let_go()
        return gathered(state.weights(self.stepper, average), True)

    def note(self, event: str, **figures: Any) -> None:
        """Put an event with figures of its own into the log, as of the step that comes."""
        self._event(event, step=self.step + 1, **figures)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Inside the block the model, in eval mode, carries the averaged weights, if any.

        Call a sharded one through `parallel.run_gathered`, on every rank.
        """
        ema = self.stepper.ema
        self._let_go()
        with ema.applied(self.model) if ema else contextlib.nullcontext(), torch.no_grad():
            self.model.eval()
            try:
                yield self.model
            finally:
                self._let_go()

    def _let_go(self) -> None:
        if is_sharded(self.model):
            let_go(self.model)

    def _begin(self) -> Meter:
        """Open the log and measure what the device can do."""
        there = newest(self.writer.folder)
        if there and (step_of(there) > self.step or self.saved_at is None):
            raise NextStepError(
                f"{self.folder} already holds a run that stands at step {step_of(there)}; resume "
                "it, remove its later checkpoints, or choose another folder"
            )
        peak = 0.0
        if self.config.measure_peak and hasattr(self.stage, "flops"):
            mine = matmul_rate(self.stepper.device, DTYPES[self.config.precision])
            peak = float(self.peers.table([mine]).sum())
        if self.peers.leads:
            self.log, self.reporters = open_reporters(self.folder, self.config, self.step)
            events, self.events = self.events, []
            for row in events:
                self.log.write(row)
        return Meter(self.stage.loss_weights, peak, skipped=self.skipped)

    def _tell(self, meter: Meter) -> None:
        due = self.step % self.config.log_every == 0 or self.step in FIRST_ROWS
        if not due and not self.finished:
            return
        row = meter.row(self.step, self.config.steps)
        for reporter in self.reporters:
            reporter.write(row)

    def report(self, event: str, **figures: Any) -> None:
        """Write figures of an event into the log."""
        self._event(event, **figures)

    def _event(self, event: str, detail: str = "", **more: Any) -> None:
        row = {"step": self.step, "event": event, "detail": detail, **more}
        if not self.peers.leads:
            return
        if self.log is None:
            self.events.append(row)
        for reporter in self.reporters:
            reporter.write(row)

    def _watch(self, report: StepReport) -> None:
        """Tell of a skipped step, and stop when there are too many in a row."""
        if not report.skipped:
            return
        wrong = [name for name, value in report.parts().items() if value - value != 0]
        what = f"{', '.join(wrong)} of the loss" if wrong else "the gradient"
        self._event("skipped", f"{what} was no number", samples=list(report.suspects))
        if self.bad_in_a_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"{what} was no number in {self.bad_in_a_row} steps in a row, up to step "
                f"{self.step}; lower the learning rate, or look at the samples that "
                f"{self.folder / 'log.jsonl'} names"
            )

    def _save_due(self, saved: float) -> bool:
        """By the step, or by the leading rank's clock."""
        every, minutes = self.config.save_every, self.config.save_minutes
        if every and self.step % every == 0:
            return True
        return bool(minutes and self.peers.leads and time.monotonic() - saved > 60 * minutes)

    def _sample_due(self) -> bool:
        return bool(self.config.sample_every and self.step % self.config.sample_every == 0)

    def _sample(self) -> None:
        if self.on_sample:
            self.on_sample(self)

    def _close_reporters(self) -> None:
        for reporter in self.reporters:
            reporter.close()
        self.reporters, self.log = [], None


def set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Switch it in every module that has it.

    Raises:
        NextStepError: when it is asked for and none has.
    """
    able = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    if on and not able:
        raise NextStepError("this model has no gradient checkpointing; switch it off")
    for module in able:
        module.gradient_checkpointing = on  # type: ignore[assignment]
