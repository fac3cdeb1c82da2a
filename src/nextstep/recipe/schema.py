"""The schema of recipes: every key that a YAML file may hold, what it means, what it may be."""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from nextstep.config import HEADS, SIZES, NextStepConfig
from nextstep.recipe.data_schema import Data
from nextstep.recipe.posttrain_schema import Distillation, Lora, Policy, Preference, Rollouts
from nextstep.recipe.run_schema import (
    Logging,
    Loss,
    Optimizer,
    Parallel,
    Probes,
    Published,
    SampleSheets,
    Saving,
    Schedule,
)
from nextstep.recipe.section import Count, Positive, Section, Weight

Stage = Literal["tokenizer", "pretrain", "anneal", "sft", "dpo", "rl", "distill"]
OWN_SECTIONS = {
    "preference": ("dpo",), "policy": ("rl",), "rollouts": ("rl",), "distillation": ("distill",),
    "lora": ("sft", "dpo", "rl"),
    "probes": ("pretrain", "anneal", "sft", "dpo", "rl", "distill"),
}  # fmt: skip
"""Section -> the stages that it is for."""
ORIGINS = {"dpo": ("rollouts",), "rl": ("world", "prompts"), "distill": ("rollouts",)}
"""Where the samples of a stage may come from; other stages take all but pictures and prompts."""


class Model(Section):
    """Which transformer is trained, and from which weights it starts."""

    size: str | None = None
    """A named size with fresh weights: nano, 0.5b, 3b or 14b."""
    folder: str | None = None
    """Start from a model folder, a shipped model or a hub id."""
    language_model: str | None = None
    """Start from a stock Qwen2/2.5 folder or hub id; projectors and flow head are fresh."""
    head: str | None = None
    """Named flow head: small, base or large; default the one of the size."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of `NextStepConfig` that differ from the size, e.g. image_position_side."""
    grow: bool = False
    """Let the overrides be larger than what `folder` holds; the larger model begins as its equal.
    With `train_text_tokenizer` new tokens begin as the mean of what they were spelled with."""
    fresh_head: bool = False
    """Leave the flow head of `folder` out and begin with a fresh one, of the shape that `head` or
    `overrides` say."""
    freeze: list[str] = Field(default_factory=list)
    """Patterns of parameter names that stay as they are, e.g. "embed_tokens.*"."""
    lr_scale: dict[str, Weight] = Field(default_factory=dict)
    """Pattern of parameter names -> factor on the learning rate; the first that fits counts."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None and value not in SIZES:
            raise ValueError(f"there is no size '{value}'; choose from {', '.join(SIZES)}")
        return value

    @field_validator("head")
    @classmethod
    def _head(cls, value: str | None) -> str | None:
        if value is not None and value not in HEADS:
            raise ValueError(f"there is no head '{value}'; choose from {', '.join(HEADS)}")
        return value

    @model_validator(mode="after")
    def _one_start(self) -> Model:
        starts = [s for s in (self.folder, self.language_model) if s is not None]
        if len(starts) > 1:
            raise ValueError("'folder' and 'language_model' are two starts; keep one of them")
        if not starts and self.size is None:
            raise ValueError("it needs a 'size', a 'folder' or a 'language_model'")
        if self.grow and (not self.folder or self.size):
            raise ValueError("'grow' enlarges the model of a 'folder' by 'overrides', not a 'size'")
        if self.fresh_head and (not self.folder or self.grow):
            raise ValueError("'fresh_head' is for a model of a 'folder' that does not 'grow'")
        if self.folder and self.head and not self.fresh_head:
            raise ValueError(
                "a model 'folder' has its head already; leave 'head' out or say 'fresh_head'"
            )
        if self.size:
            _ = self.named_config
        return self

    @property
    def named_config(self) -> NextStepConfig:
        """The config that `size`, `head` and `overrides` name.

        Raises:
            ValueError: for an unknown field or a value that fits no model.
        """
        assert self.size is not None
        base = NextStepConfig.named(self.size, self.head)
        known = base.to_dict()
        for name, value in self.overrides.items():
            if name not in known or name in ("format", "model_type"):
                raise ValueError(f"overrides.{name}: there is no such field of a model")
            if type(value) is not type(known[name]) and known[name] is not None:
                raise ValueError(
                    f"overrides.{name}: must be {type(known[name]).__name__}, not {value!r}"
                )
        return base.with_values(**self.overrides)

    def frozen(self, parameter: str) -> bool:
        """Whether a parameter of this name stays as it is."""
        return any(fnmatch.fnmatchcase(parameter, pattern) for pattern in self.freeze)


class TextTokenizerTraining(Section):
    """A text tokenizer of its own, made from the texts of the live sources."""

    vocab_size: Positive = 2048
    """Tokens in all, special ones included."""
    samples: Positive = 20_000
    """Samples whose texts it is made from."""


class Crops(Section):
    """What the tokenizer stage reads: random square crops."""

    size: Positive = 256
    """Side of a crop in pixels, a multiple of 16."""
    batch: Positive = 16
    """Crops of one optimizer step, over all ranks together."""
    per_micro: Positive | None = None
    """Crops that go through the network at once; default all of a rank."""

    @field_validator("size")
    @classmethod
    def _whole_tokens(cls, value: int) -> int:
        if value % 16:
            raise ValueError(f"must be a multiple of 16, not {value}")
        return value


class TokenizerWeights(Section):
    """Weights of the parts of the tokenizer's loss; 0 leaves a part out."""

    l1: Weight = 1.0
    """Absolute difference."""
    l2: Weight = 1.0
    """Squared difference."""
    gradient: Weight = 0.0
    """Absolute difference of neighbouring pixels' differences: sharp edges."""
    perceptual: Weight = 0.0
    """Distance of EfficientNet-Lite features."""
    kl: Weight = 0.0
    """Divergence of the encoder's Gaussian from the standard one."""
    adversarial: Weight = 0.0
    """What a patch critic, trained beside, says of the output."""

    @model_validator(mode="after")
    def _something(self) -> TokenizerWeights:
        if not (self.l1 or self.l2 or self.perceptual):
            raise ValueError("l1, l2 and perceptual cannot all be 0, or nothing ties the colours")
        return self


class TokenizerOptions(Section):
    """The tokenizer stage: an autoencoder that decodes what it encoded, noise in between."""

    size: Literal["nano", "f8ch16"] = "f8ch16"
    """Named network: the shipped one of 3.9 M parameters, or the released one of 84 M."""
    channels: Positive | None = None
    """Channels of the latents of fresh weights; default the named size's 16."""
    folder: str | None = None
    """Start from this image tokenizer instead of fresh weights."""
    deterministic: bool = True
    """Encode to the mean, as released; otherwise to a sample of a Gaussian."""
    token_norm: Literal["per token", "global scale"] = "per token"
    """Normalise every image token over its values, as published; or shift and scale all latents by
    one pair of numbers, measured on the first crops, for studies. The latter leaves the encoder as
    it is, since its scale would move otherwise."""
    decoder_only: bool = False
    """Leave the encoder as it is, so that latents keep their meaning."""
    crops: Crops = Crops()
    """What it reads."""
    gamma: Weight = 0.5
    """Largest standard deviation of the noise on latents."""
    weights: TokenizerWeights = TokenizerWeights()
    """Parts of the loss."""
    adversarial_from: Count = 0
    """First step at which the autoencoder listens to the critic, which learns from the first on."""

    @model_validator(mode="after")
    def _fits(self) -> TokenizerOptions:
        if self.decoder_only and not self.folder:
            raise ValueError("'decoder_only' refines a trained tokenizer; name its 'folder'")
        if self.token_norm == "global scale" and not self.decoder_only:
            raise ValueError("token_norm: a 'global scale' is of a fixed encoder; set decoder_only")
        if self.channels and self.folder:
            raise ValueError("'channels' is of fresh weights; those of a 'folder' have theirs")
        if self.weights.kl and (self.deterministic or self.decoder_only):
            raise ValueError("weights.kl: trains an encoder that is not deterministic; set it to 0")
        return self


class Recipe(Section):
    """A whole training run."""

    stage: Stage
    """tokenizer, pretrain, anneal, sft, dpo, rl or distill; pretrain, anneal and sft differ in
    their data and schedule."""
    description: str = ""
    """One line for people."""
    seed: int = 0
    """Of fresh weights, of the order of samples and of every draw."""
    steps: Positive
    """Optimizer steps, at most where `minutes` are given."""
    minutes: Weight = 0.0
    """Of the whole run by the clock: it ends then, whatever its step, and the learning rate falls
    over the share of the time that `schedule.decay` is of `steps`; 0 goes by steps alone."""
    model: Model | None = None
    """The transformer; not for the tokenizer stage."""
    image_tokenizer: str | None = None
    """Folder of the image tokenizer, a model folder that holds one, or the name of a shipped
    model; not for the tokenizer stage."""
    text_tokenizer: str | None = None
    """Folder of the text tokenizer, or the name of a shipped model; default the one in the model's
    folder."""
    train_text_tokenizer: TextTokenizerTraining | None = None
    """Make a text tokenizer instead of reading one."""
    data: Data
    """Samples."""
    tokenizer: TokenizerOptions | None = None
    """Options of the tokenizer stage."""
    loss: Loss = Loss()
    """Options of the stages that learn from examples."""
    preference: Preference | None = None
    """Options of dpo."""
    policy: Policy | None = None
    """Options of rl: its loss."""
    rollouts: Rollouts | None = None
    """Options of rl: samples and rewards."""
    distillation: Distillation | None = None
    """Options of distill."""
    lora: Lora | None = None
    """Train an adapter, which is merged into the model folders; for sft, dpo and rl."""
    optimizer: Optimizer
    """How weights follow gradients."""
    schedule: Schedule = Schedule()
    """How the learning rate runs."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running average of the weights; 0 keeps none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the computation; master weights are fp32. auto takes bf16 where the device computes it at
    least as fast as fp32, which is timed at the start; the log says what was taken."""
    compile: bool = False
    """Train layers and flow head through torch.compile, which takes some minutes at first."""
    activation_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them."""
    max_bad_steps: Positive = 5
    """Training stops after so many steps in a row whose loss or gradient is no number."""
    parallel: Parallel = Parallel()
    """Processes."""
    saving: Saving = Saving()
    """Checkpoints and model folders."""
    logging: Logging = Logging()
    """Figures."""
    samples: SampleSheets | None = None
    """Sheets of pictures during training."""
    probes: Probes | None = None
    """Figures of the emoji world during training."""
    published: Published | None = None
    """What a paper reports of this stage."""
    next: str | None = None
    """Recipe of the stage that follows, beside this file; `plan` shows the whole row of stages."""

    @model_validator(mode="after")
    def _sections_of_the_stage(self) -> Recipe:
        for section, stages in OWN_SECTIONS.items():
            if getattr(self, section) is not None and self.stage not in stages:
                raise ValueError(f"'{section}' is for {' and '.join(stages)}, not for {self.stage}")
        if self.data.processes and self.stage not in ("pretrain", "anneal", "sft"):
            raise ValueError(
                f"data.processes: is for pretrain, anneal and sft, not for {self.stage}"
            )
        if self.stage == "rl" and self.rollouts is None:
            raise ValueError("the rl stage needs a 'rollouts' section with its rewards")
        for place, source in enumerate(self.data.sources):
            allowed = ORIGINS.get(self.stage)
            if allowed and not any(getattr(source, name) for name in allowed):
                raise ValueError(
                    f"data.sources[{place}]: the {self.stage} stage reads {' or '.join(allowed)}"
                )
            if source.prompts and self.stage != "rl":
                raise ValueError(f"data.sources[{place}].prompts: are for the rl stage")
        if self.policy and self.policy.method == "grpo":
            self._grpo_samples()
        if self.rollouts:
            for key, steps in (("steps", self.steps), ("saving.steps", self.saving.steps)):
                if steps % self.rollouts.updates:
                    raise ValueError(
                        f"{key}: must be a multiple of rollouts.updates "
                        f"({self.rollouts.updates}), not {steps}"
                    )
        return self

    def _grpo_samples(self) -> None:
        assert self.rollouts is not None
        told = self.rollouts.settings
        if told.get("solver") not in ("sde", "cps") or "steps" not in told:
            raise ValueError(
                "rollouts.settings: grpo needs steps with a density; say solver: cps (or sde) and "
                "steps"
            )
        if told.get("guidance") != 1 or told.get("image_guidance", 1) != 1:
            raise ValueError(
                "rollouts.settings: grpo trains without guidance; say guidance: 1.0, and leave out "
                "image_guidance"
            )

    @model_validator(mode="after")
    def _parts_of_the_stage(self) -> Recipe:
        if self.stage == "tokenizer":
            for name in ("model", "image_tokenizer", "text_tokenizer", "train_text_tokenizer"):
                if getattr(self, name) is not None:
                    raise ValueError(f"the tokenizer stage has no '{name}'; leave it out")
            if self.tokenizer is None:
                raise ValueError("the tokenizer stage needs a 'tokenizer' section")
            return self
        for place, source in enumerate(self.data.sources):
            if source.pictures:
                raise ValueError(
                    f"data.sources[{place}].pictures: are for the tokenizer stage; "
                    "make shards of them with `nextstep data build`"
                )
        if self.tokenizer is not None:
            raise ValueError(f"'tokenizer' is for the tokenizer stage, not for {self.stage}")
        if self.model is None:
            raise ValueError(f"the {self.stage} stage needs a 'model' section")
        if self.text_tokenizer and self.train_text_tokenizer:
            raise ValueError("'text_tokenizer' and 'train_text_tokenizer' exclude each other")
        self._tokenizers_given()
        return self

    def _tokenizers_given(self) -> None:
        assert self.model is not None
        if self.image_tokenizer is None and self.model.folder is None:
            raise ValueError("'image_tokenizer' is missing; name the folder of one")
        text = self.text_tokenizer or self.train_text_tokenizer
        if not text and not (self.model.folder or self.model.language_model):
            raise ValueError("'text_tokenizer' or 'train_text_tokenizer' is missing")

    @model_validator(mode="after")
    def _steps_fit(self) -> Recipe:
        rise, fall = self.schedule.warmup, self.schedule.decay
        if rise + fall > self.steps:
            raise ValueError(
                f"schedule: warm-up ({rise}) and decay ({fall}) are longer than {self.steps} steps"
            )
        late = [step for step in self.saving.milestones if step > self.steps]
        if late:
            raise ValueError(f"saving.milestones: {late[0]} lies behind the last step {self.steps}")
        if self.samples and self.stage == "tokenizer":
            raise ValueError("'samples' draws from prompts; the tokenizer stage reads none")
        return self
