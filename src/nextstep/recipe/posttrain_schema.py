"""Sections of a recipe for the stages dpo, rl and distill, and for adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nextstep.recipe.section import ChangedSettings, Positive, Rate, Section, Share, Weight


class RewardSource(Section):
    """One reward."""

    kind: str
    """`world`, `python`, `ocr`, `clip`, `pickscore`, `hpsv2`, `imagereward` or `judge`."""
    weight: Weight = 1.0
    """Its share of the sum that samples are weighed by."""
    argument: str = ""
    """Of `python` a function, "FILE.py:NAME"; of model kinds a folder or hub id."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the kind; see the how-to on post-training."""


class Rollouts(Section):
    """How the stage `rl` draws its samples, and what they are judged by."""

    prompts: Positive = 8
    """Prompts of a rollout, over all ranks together."""
    samples: int = Field(default=8, ge=2)
    """Samples of a prompt."""
    updates: Positive = 1
    """Optimizer steps on the samples of a rollout. With several, a copy of the weights that drew
    them is held, and checkpoints are taken between rollouts alone."""
    minibatches: Positive = 1
    """Parts that the samples of a rollout are shared out to, some of every prompt in each; an
    optimizer step takes one part, so that as many updates as parts see every sample once."""
    height: Positive | None = None
    """Of pictures in pixels; default the model's own."""
    width: Positive | None = None
    """Of pictures in pixels; default the model's own."""
    settings: ChangedSettings = Field(default_factory=dict)
    """Generation settings that differ from the model's own, e.g. {guidance: 1.0, steps: 4}."""
    reasoning: bool = False
    """Let the model write a line before it draws, and train that too."""
    temperature: Rate = 1.0
    """Of what it writes."""
    rewards: list[RewardSource] = Field(min_length=1)
    """What samples are judged by."""
    watch: list[RewardSource] = Field(default_factory=list)
    """Rewards that are only logged; they show when the others are gamed."""
    advantage_scale: Literal["group", "global", "none"] = "global"
    """Standard deviation that advantages are divided by: of the prompt, or of the whole step."""
    least_spread: Weight = 0.0
    """Prompts whose rewards have a smaller standard deviation are left out."""
    most_mean: float | None = None
    """Prompts whose rewards have a larger mean are left out: they are solved."""
    quantize: str | None = None
    """Number format of the sampling weights: int8, int4 or bf16; on the CPU alone."""
    cache_gb: Rate = 1.0
    """Keys and values that may be held while samples are drawn."""

    @model_validator(mode="after")
    def _whole_passes(self) -> Rollouts:
        parts = self.minibatches
        if self.updates % parts:
            raise ValueError(f"updates: must be a multiple of minibatches ({parts})")
        if parts > self.samples:
            raise ValueError(f"minibatches: at most one a sample ({self.samples}), not {parts}")
        return self


class Policy(Section):
    """The loss of the stage `rl`."""

    method: Literal["nft", "grpo"] = "nft"
    """DiffusionNFT, which takes samples of any solver; or a policy gradient on the steps of `sde`
    or `cps`, without guidance."""
    beta: Rate = 1.0
    """Of nft: how far the positive and the negative policy lie from the one that drew."""
    clip: Rate = 1e-3
    """Of grpo: how far the ratio of probabilities of a solver step may move from 1."""
    text_clip: Rate = 0.2
    """How far the ratio of probabilities of what the model wrote may."""
    advantage_limit: Rate = 5.0
    """Largest absolute advantage."""
    image: Weight = 1.0
    """Weight of pictures; 0 leaves them out."""
    text: Weight = 0.0
    """Weight of what the model wrote."""
    bad_text: Share = 1.0
    """Share of the weight of ids with an advantage below 0; 0 learns from the better ones alone."""
    kl: Weight = 0.0
    """Weight of the distance to the weights that the run started from, times that of the part."""
    text_kl: Weight | None = None
    """The same for text alone; default `kl`."""
    window: int = Field(default=0, ge=0)
    """Of grpo: stochastic steps of the solver; 0 makes all of them stochastic."""
    slide_every: Positive = 25
    """Of grpo: rollouts after which the window moves on."""
    token_share: float = Field(default=1.0, gt=0, le=1)
    """Of grpo: share of a picture's tokens that is trained, the least certain first."""
    levels: Positive = 4
    """Noise levels per image token."""

    @property
    def distances(self) -> tuple[float, float]:
        """Weights of the distances of pictures and of text in the whole loss."""
        text = self.kl if self.text_kl is None else self.text_kl
        return self.kl * self.image, text * self.text

    @property
    def needs_reference(self) -> bool:
        """Whether the weights that the run started from are kept to compare with."""
        return any(self.distances)


class Preference(Section):
    """The loss of the stage `dpo`."""

    beta: Rate = 500.0
    """How strongly pictures are held to the reference, for errors that are means over tokens and
    values; 100 to 2000."""
    image: Weight = 1.0
    """Weight of pictures."""
    text: Weight = 0.0
    """Weight of what was written before them."""
    text_beta: Rate = 0.1
    """The same as `beta` for text."""
    sft: Weight = 0.0
    """Weight of the winners' flow loss, which keeps their error from rising."""
    safety: Share = 0.0
    """Holds back the loser's gradient so that the winner's error does not rise (Diffusion-SDPO);
    1 by as little as that takes, 0 never."""
    winners: Positive = 4
    """Samples of a prompt among which the winner is drawn, best first; the loser is of the rest."""
    draws: Positive = 4
    """Different draws of times and noise that a prompt's pairs meet before they come again."""
    reference: str | None = None
    """Folder that keeps what the reference says of pairs, default in the run's folder; runs that
    differ in other settings may share it."""
    levels: Positive = 4
    """Noise levels per image token."""


class Lora(Section):
    """Train small matrices beside the weights instead of the weights themselves."""

    rank: Positive = 16
    """Inner size of the matrices."""
    alpha: Rate | None = None
    """Their product counts alpha / rank times; default 2."""
    parts: list[Literal["attention", "mlp", "head", "projectors"]] = Field(
        default=["attention", "mlp", "head", "projectors"], min_length=1
    )
    """What gets them."""


class Distillation(Section):
    """The stage `distill`: few calls of the flow head without guidance branches."""

    method: Literal["regression", "shortcut", "meanflow"] = "regression"
    """How the head learns to jump; see the concept page."""
    calls: list[Positive] = Field(default=[1, 2], min_length=1)
    """Calls of the head per token that it is trained for."""
    guidance: list[Rate] = Field(default=[2.5], min_length=1)
    """Scales that are folded into the weights; the scale stays an input between them."""
    image_guidance: Rate | None = None
    """Source-picture scale of edits that is folded in; null distils drawings alone, and edits keep
    the solver that they had."""
    teacher_steps: Positive = 24
    """Midpoint steps of the teacher for a token."""
    batch: Positive = 1024
    """Tokens of an optimizer step, over all ranks together."""
    spans: Share = 0.25
    """Share of the spans of shortcut and meanflow that are not empty."""
    power: Weight = 0.0
    """Errors weigh 1/(error)^power; 0 weighs all alike."""

    @model_validator(mode="after")
    def _powers_of_two(self) -> Distillation:
        for calls in self.calls:
            if calls & (calls - 1) or calls > 8:
                raise ValueError(f"calls: must be 1, 2, 4 or 8, not {calls}")
        return self
