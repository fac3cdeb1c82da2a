"""One optimizer step: the gradient of the mean over all that a step holds, wherever it lies.

The loss is a sum over parts of weight * (sum over all micro-batches and ranks) / (count over the
same). The counts are exchanged before the first backward pass, so every micro-batch is divided by
the final count at once and gradients need only be added. So the update does not depend on how a
step's rows are dealt out to micro-batches and ranks, but for the order of additions.

Legend: parameters of any shape; losses and counts are scalars, summed over micro-batches and ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.errors import NextStepError
from nextstep.model.precision import DTYPES
from nextstep.train.config import TrainConfig
from nextstep.train.contracts import Stage, Step
from nextstep.train.ema import EMA, swapped
from nextstep.train.metrics import StepReport
from nextstep.train.optimizer import build_optimizers, set_rate
from nextstep.train.parallel import (
    Peers,
    add_up,
    is_shard,
    is_sharded,
    let_go,
    reduce_gradients,
    run_gathered,
    whole,
)
from nextstep.train.schedule import build_schedule, by_the_clock


@dataclass(frozen=True)
class Totals:
    """What the ranks of a step hold together.

    Attributes:
        counts: of every part of the loss.
        rounds: micro-batches of the rank that has most.
        tokens: trained on.
        flops: of forward and backward; 0 when the stage does not say.
        passed: share of the run's time by the clock of the first rank.
    """

    counts: dict[str, float]
    rounds: int
    tokens: float
    flops: float
    passed: float


class Stepper:
    """Takes steps: gradients, clipping, update, average.

    Args:
        model: whole, on every rank, or sharded by `parallel.shard`; frozen parts already frozen.
        stage: what is lost.
        config: see `TrainConfig`; its precision is no longer "auto".
        peers: the other ranks.
    """

    def __init__(self, model: nn.Module, stage: Stage, config: TrainConfig, peers: Peers) -> None:
        self.model, self.stage, self.config, self.peers = model, stage, config, peers
        self.device = next(model.parameters()).device
        self.schedule = build_schedule(
            config.schedule, config.steps, config.warmup, config.decay, config.final_rate
        )
        self.optimizers = build_optimizers(
            model,
            config.learning_rate,
            config.weight_decay,
            config.optimizer,
            config.betas,
            config.rate_scales,
            config.eps,
            copies=peers.world > 1 and not is_sharded(model),
            orthogonalised_in=DTYPES[config.precision],
        )
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.ema = EMA(model, config.ema) if config.ema else None

    def take(self, step: Step, number: int, passed: float = 0.0) -> StepReport:
        """Train on one step.

        When the loss or the gradient is no number anywhere, no rank updates anything.

        Args:
            step: this rank's part.
            number: of the step, from 0; it fixes the learning rate and the random state.
            passed: share of the run's time, see `schedule.by_the_clock`.
        """
        self.model.train()
        # Dropout is drawn anew on every rank, but the same again when a step is repeated.
        seed = (self.config.seed * 1_000_003 + number) * 65_537 + self.peers.rank
        _seed(seed % 2**63, self.device)
        with torch.no_grad():
            batches = [self.stage.prepare(batch, self.device) for batch in step.batches]
        totals = self._totals(batches, step.tokens, passed)
        batches = self._observed(batches, totals.rounds)
        mine = self._gradients(batches, totals)
        sums = dict(zip(totals.counts, self.peers.table(mine).sum(0).tolist(), strict=True))
        norm = self._clipped_norm()
        factor = by_the_clock(self.schedule, self.config.steps, number, totals.passed)
        rate = self.config.learning_rate * factor
        # The sums are those of all ranks, so all ranks decide alike.
        good = all(map(math.isfinite, (*sums.values(), norm)))
        if good:
            set_rate(self.optimizers, rate)
            for optimizer in self.optimizers:
                optimizer.step()
            if self.ema:
                self.ema.update(self.model)
        for parameter in self.trained:
            parameter.grad = None
        suspects = () if good else self._suspects(step.keys, sums, mine)
        return StepReport(
            sums, totals.counts, norm, rate, totals.tokens, totals.flops, not good, suspects
        )

    def _totals(self, batches: list[Any], tokens: int, passed: float) -> Totals:
        names = list(self.stage.loss_weights)
        counts = [self.stage.counts(batch) for batch in batches]
        count_flops: Callable[[Any], float] | None = getattr(self.stage, "flops", None)
        # fsum: exact, so that the order of micro-batches does not move a count.
        mine = [math.fsum(count.get(name, 0.0) for count in counts) for name in names]
        flops = math.fsum(map(count_flops, batches)) if count_flops else 0.0
        table = self.peers.table([*mine, float(tokens), flops, passed, float(len(batches))])
        *sums, all_tokens, all_flops, _, _ = table.sum(0).tolist()
        if not table[:, -1].all():
            raise NextStepError(
                f"a step has fewer micro-batches than there are processes ({self.peers.world}); "
                "use more rows a step or fewer processes"
            )
        rounds = int(table[:, -1].max())
        passed = float(table[0, -2])
        return Totals(dict(zip(names, sums, strict=True)), rounds, all_tokens, all_flops, passed)

    @torch.no_grad()
    def _observed(self, batches: list[Any], rounds: int) -> list[Any]:
        """The batches with what an `Observer`'s weights say of them, each by the code that trains.

        All ranks look equally often, because gathering weights takes all of them.
        """
        observe = getattr(self.stage, "observe", None)
        if observe is None:
            return batches
        average = self.ema.shadow if self.ema else None
        weights = self.stage.observed_weights(average)  # type: ignore[attr-defined]
        for name, other in weights.items():
            with contextlib.ExitStack() as stack:
                if other is not None:
                    stack.enter_context(swapped(self.model, other))
                for turn in range(rounds):
                    batch = batches[min(turn, len(batches) - 1)]
                    with self._autocast():
                        seen = run_gathered(self.model, observe, batch, name)
                    if turn < len(batches):
                        batches[turn] = seen
        if is_sharded(self.model):
            let_go(self.model)
        return batches

    def _autocast(self) -> torch.autocast:
        half = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _gradients(self, batches: list[Any], totals: Totals) -> list[float]:
        """Add up the gradients of all micro-batches; sums of the parts on this rank come back."""
        names, weights = list(totals.counts), self.stage.loss_weights
        seen = []
        for turn in range(totals.rounds):
            last = turn == totals.rounds - 1
            reduce_gradients(self.model, last or self.config.reduce_every_batch)
            # A rank with fewer micro-batches goes along with its last one, which then weighs
            # nothing: gathering weights takes all ranks.
            idle = turn >= len(batches)
            losses = self._losses(batches[-1 if idle else turn])
            loss = sum(
                losses[name] * (0.0 if idle else weights[name] / max(totals.counts[name], 1.0))
                for name in names
                if name in losses
            )
            if not isinstance(loss, Tensor):
                raise NextStepError(f"the stage gave none of its losses {', '.join(names)}")
            loss.backward()
            if not idle:
                seen.append(torch.stack([_value(losses, name, loss) for name in names]))
        # With ranks an unused parameter has a zero gradient, so without them it must have one too.
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.peers.world > 1 and not is_sharded(self.model):
            add_up([p.grad for p in self.trained if p.grad is not None])
        return torch.stack(seen).cpu().double().sum(0).tolist()

    def _losses(self, batch: Any) -> dict[str, Tensor]:
        with self._autocast():
            return run_gathered(self.model, self._losses_with_gradient, batch)

    def _losses_with_gradient(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The stage's losses; where only frozen parts were used, with a gradient of zero.

        Every rank must have a backward pass in every micro-batch. A micro-batch without pictures
        has none by itself when the flow head alone is trained.
        """
        losses = self.stage.losses(model, batch)
        if not losses or any(loss.requires_grad for loss in losses.values()):
            return losses
        # Inside this call the outermost weights are whole; those of layers need no such help.
        used = next(p for p in model.parameters() if p.requires_grad and not is_shard(p))
        name, loss = next(iter(losses.items()))
        return {**losses, name: loss + 0.0 * used.sum()}

    def _clipped_norm(self) -> float:
        """Clip the gradient to the configured norm; the norm before comes back."""
        gradients = [p.grad for p in self.trained if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        size, clip = float(norm), self.config.clip
        # Not by a factor of 1, which would be a pass over all gradients for nothing; torch's
        # factor is clip / (norm + 1e-6), at most 1.
        if clip and not size + 1e-6 <= clip:
            nn.utils.clip_grads_with_norm_(self.trained, clip, norm)
        return size

    def _suspects(
        self, keys: list[str], sums: dict[str, float], mine: list[float]
    ) -> tuple[str, ...]:
        """Keys of the ranks whose own loss was no number, or of all if only the gradient was."""
        everywhere = all(map(math.isfinite, sums.values()))
        here = not all(map(math.isfinite, mine))
        return tuple(self.peers.names(keys if here or everywhere else []))


def _seed(seed: int, device: torch.device) -> None:
    """Of what this process draws on; `torch.manual_seed` walks through all kinds of devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _value(losses: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    return losses[name].detach() if name in losses else torch.zeros_like(like)
