"""TrainConfig: every number of a run that is neither model, data nor stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nextstep.config import PRECISIONS
from nextstep.errors import NextStepError

OPTIMIZERS = ("adamw", "muon", "sgd")
SCHEDULES = ("constant", "cosine", "warmup-stable-decay")


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained.

    Attributes:
        steps: optimizer steps of the whole run, at most where `minutes` are given.
        minutes: after which the run ends, whatever its step; the schedule then falls by the clock
            where that is ahead of the steps. 0 goes by steps alone.
        learning_rate: peak of the schedule.
        optimizer: "adamw", "muon" (Muon for hidden matrices, AdamW for the rest) or "sgd".
        betas: decay of AdamW's running means; the first is the momentum of "sgd".
        eps: AdamW's smallest divisor.
        weight_decay: on matrices and embeddings; norms and biases never decay.
        clip: largest global norm of the gradient; 0 does not clip.
        schedule: "constant" (after the warm-up), "cosine" or "warmup-stable-decay".
        warmup: steps in which the rate rises from 0.
        decay: last steps in which "warmup-stable-decay" falls.
        final_rate: where a decay ends, as a share of `learning_rate`.
        rate_scales: factor on the rate by parameter name, patterns as in `fnmatch`; the first that
            matches counts, so {"image_*": 1.0, "*": 0.1} trains the image parts at the full rate.
        freeze: patterns of the names of parameters that are not trained.
        ema: decay of the averaged weights; 0 keeps none.
        precision: "bf16" computes in bf16 over fp32 master weights, "fp32" in fp32; "auto" is what
            the device computes faster, see `model.precision`. Muon's orthogonalisation follows it.
        gradient_checkpointing: compute activations again in the backward pass, for memory.
        reduce_every_batch: many devices only: sum gradients over ranks after every micro-batch,
            which keeps them sharded, instead of once a step, which sends less.
        reshard_after_forward: many devices only: free a layer's gathered weights until its backward
            pass; False is faster and takes the memory of a whole bf16 copy.
        max_bad_steps: stop after so many steps in a row whose loss or gradient is no number.
        seed: of everything that draws from torch's generator (dropout); batches carry their own.
        log_every: steps between two lines of the log.
        save_every: steps between two checkpoints; 0 goes by `save_minutes` alone.
        save_minutes: minutes between two checkpoints; 0 goes by `save_every` alone.
        save_in_background: write checkpoints while training goes on.
        save_frozen: put frozen weights into checkpoints too; without them a resumed run takes
            those from the model it is given.
        keep: newest checkpoints that are kept.
        keep_every: checkpoints of steps divisible by this are kept for good; 0 keeps none so.
        sample_every: steps between two calls of `on_sample`; 0 calls it never.
        prefetch: make the next step's batches while this one is trained.
        progress: show a progress line on a terminal.
        tensorboard: write event files beside the log.
        wandb: project to report to; "" reports nowhere.
        measure_peak: measure the device's matrix-product rate at the start, so that the log can
            say which share of it training reaches.
    """

    steps: int
    learning_rate: float
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    schedule: str = "warmup-stable-decay"
    warmup: int = 0
    decay: int = 0
    final_rate: float = 0.0
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    ema: float = 0.999
    minutes: float = 0.0
    precision: str = "auto"
    gradient_checkpointing: bool = False
    reduce_every_batch: bool = False
    reshard_after_forward: bool = True
    max_bad_steps: int = 5
    seed: int = 0
    log_every: int = 10
    save_every: int = 0
    save_minutes: float = 15.0
    save_in_background: bool = True
    save_frozen: bool = True
    keep: int = 2
    keep_every: int = 0
    sample_every: int = 0
    prefetch: bool = True
    progress: bool = False
    tensorboard: bool = False
    wandb: str = ""
    measure_peak: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                raise NextStepError(
                    f"{name} '{getattr(self, name)}' is unknown; choose from {', '.join(allowed)}"
                )
        for name in ("steps", "log_every", "keep", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise NextStepError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise NextStepError(f"{name} must not be negative, it is {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise NextStepError(f"ema must be from 0 up to below 1, not {self.ema}")
        if self.warmup + self.decay > self.steps:
            raise NextStepError(
                f"warmup ({self.warmup}) and decay ({self.decay}) do not fit into "
                f"{self.steps} steps"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"betas": list(self.betas), "freeze": list(self.freeze)}

    def differences(self, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings whose value in `other` (from `to_dict`) is not the present one: (old, now)."""
        mine = self.to_dict()
        return {
            name: (other[name], mine[name])
            for name in mine
            if name in other and other[name] != mine[name]
        }


NOT_NEGATIVE = (
    "minutes", "learning_rate", "eps", "weight_decay", "clip", "warmup", "decay", "final_rate",
    "save_every", "save_minutes", "keep_every", "sample_every",
)  # fmt: skip
