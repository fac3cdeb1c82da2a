"""What a fine-tuning is asked to do, and what a run of it leaves behind for the next start."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nextstep.config import PRECISIONS
from nextstep.errors import NextStepError
from nextstep.model.adapter_config import AdapterConfig

MOST_PROMPTS = 16
EPOCHS, FEWEST_STEPS, MOST_STEPS = 50, 100, 2000
"""Uses of every sample by default, and the bounds of the steps that this makes."""

MOST_SAMPLES = 8
"""Samples of a step by default, where there are so many."""

WIDTH_RATE = 0.25
"""Learning rate of an adapter times the model's width; chosen on the nano model."""

MAY_CHANGE = ("output", "merge", "sheets", "precision", "tensorboard")
"""Settings that need not be the same when a run goes on."""

FITS = ("crop", "aspect")
"""What pictures of another shape are brought to: the model's own shape, or their own."""

FULL_SHARE = 0.1
"""Learning rate of full training as a share of an adapter's."""


@dataclass(frozen=True)
class FinetuneSettings:
    """What a fine-tuning is asked to do.

    Attributes:
        data: folder of pictures; see `data.captioned`.
        output: folder of the result.
        model: model folder, shipped name or hub id to start from.
        caption: see `data.captioned`.
        edits: samples are edits.
        encoding: of captions in files without a byte order mark; by default UTF-8.
        full: train all weights instead of an adapter.
        adapter: shape of the adapter.
        steps: optimizer steps; default `EPOCHS` uses of every sample, within bounds.
        minutes: instead of steps: as many as fit, by timing the first ones.
        batch: samples of one step; default at most `MOST_SAMPLES`.
        learning_rate: its peak; default by the model's width.
        drop_text: share of uses without their caption. By default there are none: what the model
            draws without text stays as it was, so guidance leads from there to what is new.
        context_noise: noise on the image tokens that are read; see `train.stages.pretrain`.
            Without it a model learns from perfect tokens and draws among its own.
        prompts: drawn before, during and after; default captions of the first samples.
        sheets: how often they are drawn on the way.
        seed: of everything.
        precision: what is computed in, as in `TrainConfig`.
        tensorboard: write event files beside the log.
        merge: write the whole model with the adapter merged into it as well.
        fit: what pictures are brought to, "crop" or "aspect"; see `data.shapes`.

    Raises:
        NextStepError: for settings that exclude each other or are out of range.
    """

    data: Path
    output: Path
    model: str = "nano"
    caption: str | None = None
    edits: bool = False
    full: bool = False
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    steps: int | None = None
    minutes: float | None = None
    batch: int | None = None
    learning_rate: float | None = None
    drop_text: float = 0.0
    context_noise: float = 0.5
    prompts: tuple[str, ...] = ()
    sheets: int = 3
    seed: int = 0
    merge: bool = False
    precision: str = "auto"
    tensorboard: bool = False
    encoding: str | None = None
    fit: str | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise NextStepError("give a number of steps or of minutes, not both")
        for name in ("steps", "minutes", "batch", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise NextStepError(f"{name.replace('_', ' ')} must be above 0, not {value}")
        for name in ("context_noise", "sheets"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise NextStepError(
                    f"{name.replace('_', ' ')} must be a finite number and not negative"
                )
        if self.precision not in PRECISIONS:
            raise NextStepError(
                f"precision '{self.precision}' is unknown; choose from {', '.join(PRECISIONS)}"
            )
        if self.fit not in (None, *FITS):
            raise NextStepError(f"fit '{self.fit}' is unknown; choose from {', '.join(FITS)}")
        if len(self.prompts) > MOST_PROMPTS:
            raise NextStepError(f"at most {MOST_PROMPTS} prompts are drawn")
        if self.edits and self.prompts:
            raise NextStepError("edits are shown on the first samples; leave --prompt out")

    def batch_of(self, samples: int) -> int:
        """Samples of one step, of so many in all."""
        return self.batch or min(MOST_SAMPLES, samples)

    def steps_of(self, samples: int) -> int:
        """Steps, where minutes do not decide."""
        uses = EPOCHS * samples // self.batch_of(samples)
        return self.steps or min(max(uses, FEWEST_STEPS), MOST_STEPS)

    def rate_of(self, width: int) -> float:
        """Peak of the learning rate for a model of that width."""
        return self.learning_rate or WIDTH_RATE / width * (FULL_SHARE if self.full else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, without what may change when a run goes on."""
        told = asdict(self) | {"data": str(self.data.absolute()), "prompts": list(self.prompts)}
        told["adapter"]["parts"] = list(self.adapter.parts)
        return {n: v for n, v in told.items() if n not in MAY_CHANGE}


@dataclass(frozen=True)
class Finetuned:
    """How a fine-tuning ended.

    Attributes:
        adapter, model: folders that were written, or None.
        sheet: the comparison, or None when it was stopped early.
        steps, planned: taken, of those planned.
        seconds: of training in this process, sheets included.
        finished: whether the last step was reached.
    """

    adapter: Path | None
    model: Path | None
    sheet: Path | None
    steps: int
    planned: int
    seconds: float
    finished: bool
