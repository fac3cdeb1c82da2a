"""Sections of a recipe on the run itself: optimizer, schedule, processes, what is written."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from nextstep.recipe.section import ChangedSettings, Count, Positive, Rate, Section, Share, Weight

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


class Loss(Section):
    """What is minimised."""

    text: Weight | None = None
    """Weight of cross-entropy; default the model's (0.01 as published)."""
    image: Weight | None = None
    """Weight of flow matching; default the model's (1 as published)."""
    head_batch_mul: Positive | None = None
    """Noise levels per image token; default the model's (4 as published)."""
    context_noise: Weight = 0.0
    """Largest standard deviation of noise on the image tokens that are read; targets stay clean."""
    context_noise_picture_prob: Share = 0.0
    """Share of pictures of which all tokens are read with heavy noise instead, so that names are
    read from the text and not from neighbouring tokens."""
    context_noise_picture_std: Weight = 8.0
    """Standard deviation of the heavy noise; image tokens have 1."""


class Optimizer(Section):
    """How weights follow gradients."""

    name: Literal["adamw", "muon", "sgd"] = "adamw"
    """AdamW; Muon for hidden matrices with AdamW for the rest; or SGD with momentum."""
    learning_rate: Rate
    """At the top of the schedule."""
    betas: list[Share] = Field(default=[0.9, 0.95], min_length=2, max_length=2)
    """Of AdamW; the first is the momentum of SGD."""
    eps: Rate = 1e-8
    """Of AdamW."""
    weight_decay: Weight = 0.1
    """On matrices; norms and biases never decay."""
    clip: Weight = 1.0
    """Largest norm of the gradient; 0 does not clip."""


class Schedule(Section):
    """How the learning rate runs over the steps."""

    kind: Literal["constant", "cosine", "warmup-stable-decay"] = "constant"
    """Flat, half a cosine down, or flat with a linear fall over the last `decay` steps; each
    after a linear warm-up."""
    warmup: Count = 0
    """Steps of the rise from 0."""
    decay: Count = 0
    """Steps of the fall at the end; of warmup-stable-decay alone."""
    final: Share = 0.0
    """Where a fall ends, as a share of the learning rate."""

    @model_validator(mode="after")
    def _decay_where_it_belongs(self) -> Schedule:
        if self.decay and self.kind != "warmup-stable-decay":
            raise ValueError(f"'decay' is for warmup-stable-decay; {self.kind} has no such stretch")
        return self


class Parallel(Section):
    """How many processes train together and how they share the weights."""

    ranks: Positive = 1
    """Processes that the recipe is made for, which `plan` reckons with; a run takes what it is
    given."""
    replicas: Positive = 1
    """Whole copies of the model; inside one, weights, gradients and optimizer state are split
    over ranks / replicas processes (HSDP). As many as ranks suits small models: nothing is split,
    and compiled code runs."""
    reduce_every_batch: bool = False
    """Sum gradients over ranks after every micro-batch, which keeps them split, instead of once a
    step, which sends less."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights until its backward pass; false is faster and takes the
    memory of a whole bf16 copy."""

    @model_validator(mode="after")
    def _divides(self) -> Parallel:
        if self.ranks % self.replicas:
            raise ValueError(f"{self.ranks} ranks cannot hold {self.replicas} equal replicas")
        return self


class Saving(Section):
    """When the whole state is written, and when a model folder."""

    minutes: Weight = 15.0
    """Between two checkpoints; 0 goes by `steps` alone."""
    steps: Count = 0
    """Between two checkpoints; 0 goes by `minutes` alone."""
    keep: Positive = 2
    """Newest checkpoints that are kept."""
    keep_every: Count = 0
    """Checkpoints of steps divisible by this are kept for good; 0 keeps none so."""
    in_background: bool = True
    """Write checkpoints while training goes on."""
    milestones: list[Positive] = Field(default_factory=list)
    """Steps at which a model folder with averaged weights is written, beside the end."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights in model folders."""


class Logging(Section):
    """Where figures go beside log.jsonl."""

    every: Positive = 20
    """Steps between two lines."""
    tensorboard: bool = False
    """Write event files into RUN/tensorboard."""
    wandb: str | None = None
    """Project on Weights & Biases; needs `pip install wandb`."""


class SampleSheets(Section):
    """Sheets of pictures drawn during training with the averaged weights."""

    prompts: list[str] = Field(min_length=1)
    """One picture each, the same seed every time."""
    every: Positive
    """Steps between two sheets; one more is drawn at the end."""
    height: Positive
    """Pixels, a multiple of 16."""
    width: Positive
    """Pixels, a multiple of 16."""
    seed: int = 0
    """Of all pictures."""
    settings: ChangedSettings = Field(default_factory=dict)
    """Generation settings, e.g. {guidance: 2.5, solver: ab2, steps: 12}; they also become the
    recommended ones of the model folder."""

    @field_validator("height", "width")
    @classmethod
    def _whole_tokens(cls, value: int) -> int:
        if value % 16:
            raise ValueError(f"must be a multiple of 16, not {value}")
        return value


class Probes(Section):
    """Figures of the emoji world during training, of the averaged weights: see `recipe.probes`."""

    every: Positive
    """Steps between two measurements; one more is made at the end."""
    edition: str = "core-48"
    """Of the world: core-48, core-96, core-144 or full."""
    tasks: list[str] = Field(default=["drawing"], min_length=1)
    """Names of tasks or groups that draw."""
    items: Positive = 32
    """Scenes, dealt out to the tasks."""
    gate: dict[Literal["lines_right", "name_gap"], float] = Field(default_factory=dict)
    """Least figures with which the next stage may begin; the log says whether they are reached."""

    @model_validator(mode="after")
    def _of_the_world(self) -> Probes:
        from nextstep.world.tasks import choose_tasks

        choose_tasks(self.tasks, self.edition)
        return self


class Published(Section):
    """What a paper reports of this stage; `plan` shows it beside its own figures."""

    tokens: str | None = None
    """Training tokens as printed, e.g. 1.23T."""
    tokens_per_rank: str | None = None
    """Tokens a rank and step as printed, e.g. 16K."""
    source: str = ""
    """Where it is reported."""

    @field_validator("tokens", "tokens_per_rank")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d+(\.\d+)?[KMBT]?", value):
            raise ValueError(f"must be a number with K, M, B or T, e.g. 1.23T, not '{value}'")
        return value

    @staticmethod
    def value(text: str) -> float:
        """The number that a text such as "1.23T" says."""
        suffix = text[-1] if text[-1] in SUFFIXES else ""
        return float(text.removesuffix(suffix)) * SUFFIXES[suffix]

    @staticmethod
    def agrees(value: float, text: str) -> bool:
        """Whether `value`, rounded as the text is, reads the same."""
        suffix = text[-1] if text[-1] in SUFFIXES else ""
        number = text.removesuffix(suffix)
        digits = len(number.partition(".")[2])
        return f"{value / SUFFIXES[suffix]:.{digits}f}" == number
