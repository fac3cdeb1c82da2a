"""What a recipe trains, counted: parameters, tokens and arithmetic, without any weight in memory.

Legend: E hidden size, W head width, K noise levels per token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from nextstep.config import NextStepConfig
from nextstep.recipe.data_schema import EXPECTED_PICTURES, EXPECTED_TEXT, SourceSettings
from nextstep.recipe.posttrain_schema import Distillation, Lora, Policy, Preference
from nextstep.recipe.shapes import autoencoder_config

if TYPE_CHECKING:
    from torch import nn

    from nextstep.recipe.data_schema import Data
    from nextstep.recipe.schema import Recipe
    from nextstep.train.flops import Work
    from nextstep.vae.config import AutoencoderConfig

M = TypeVar("M", bound="nn.Module")
BLOCK_TOKENS = 8
"""Ids around a picture: area tag, "rows*columns" in single digits, begin and end."""


@dataclass(frozen=True)
class Parameters:
    """How many parameters each part has.

    Attributes:
        backbone: layers and final norm.
        embeddings: text embedding, language-model head where it is not tied, learned positions.
        projectors: of image tokens in and of hidden states out.
        head: the flow head.
        trained: those that are not frozen.
    """

    backbone: int
    embeddings: int
    projectors: int
    head: int
    trained: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.backbone + self.embeddings + self.projectors + self.head


@dataclass(frozen=True)
class TokenMixture:
    """What an average document of the mixture holds.

    Attributes:
        text: trained text tokens, area tags included.
        image: image tokens.
        targets: image tokens that are trained.
        documents: documents per 1 token, i.e. 1 / mean length.
        context: mean number of earlier positions that a token attends to.
    """

    text: float
    image: float
    targets: float
    documents: float
    context: float

    @property
    def image_share(self) -> float:
        """Share of image tokens among all tokens."""
        return self.image * self.documents


def size_of(module: nn.Module) -> int:
    """Parameters of a module, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


@functools.lru_cache(maxsize=16)
def on_meta(kind: Callable[[Any], M], config: Any) -> M:
    """A module of this shape without memory behind it."""
    import torch

    with torch.device("meta"):
        return kind(config)


def count_parameters(recipe: Recipe, config: NextStepConfig) -> Parameters:
    """Count a model of this shape, with the recipe's frozen parts."""
    from nextstep.model.nextstep import NextStepModel

    model = on_meta(NextStepModel, config)
    counts = dict.fromkeys(("backbone", "embeddings", "projectors", "head"), 0)
    trained = 0
    assert recipe.model is not None
    for name, parameter in model.named_parameters():
        if name.startswith("image_head."):
            part = "head"
        elif "projector" in name:
            part = "projectors"
        elif "embed" in name or name.startswith("lm_head"):
            part = "embeddings"
        else:
            part = "backbone"
        counts[part] += parameter.numel()
        left_alone = recipe.model.frozen(name) or (recipe.stage == "distill" and part != "head")
        trained += 0 if left_alone else parameter.numel()
    if recipe.lora is not None:
        trained = _adapter_size(model, recipe.lora)
    return Parameters(**counts, trained=trained)


def _adapter_size(model: nn.Module, lora: Lora) -> int:
    """Parameters of an adapter."""
    from nextstep.model.adapter_config import AdapterConfig

    targets = AdapterConfig(lora.rank, lora.alpha, parts=tuple(lora.parts)).targets(model)
    return sum(lora.rank * sum(model.get_parameter(f"{name}.weight").shape) for name in targets)


def picture_tokens(source: SourceSettings, data: Data) -> float:
    """Image tokens of one picture of a source: its own size if it is live, else the areas' mean."""
    if source.world and "pixels" in source.world.options:
        sides = [source.world.options["pixels"]]
    else:
        sides = list(data.areas)
    return sum((side / 16) ** 2 for side in sides) / len(sides)


def mixture(data: Data) -> TokenMixture:
    """The average document, from the sources' shares and what is expected of their samples."""
    documents = _documents(data)
    lengths = [(share, text + image) for share, (text, image, _) in documents]
    mean = sum(share * length for share, length in lengths)
    squares = sum(share * length * length for share, length in lengths)
    return TokenMixture(
        text=sum(share * text for share, (text, _, _) in documents),
        image=sum(share * image for share, (_, image, _) in documents),
        targets=sum(share * targets for share, (_, _, targets) in documents),
        documents=1 / mean,
        # A token of a document of n sees n/2 others on average; long documents hold more tokens.
        context=squares / mean / 2,
    )


def _documents(data: Data) -> list[tuple[float, tuple[float, float, float]]]:
    """Of every source: share of the documents; text ids, image tokens, trained ones of one."""
    found = []
    for source in data.sources:
        kind = source.kind or "image_text"
        text = float(source.expected_text or EXPECTED_TEXT[kind])
        pictures = source.expected_pictures
        pictures = EXPECTED_PICTURES[kind] if pictures is None else pictures
        image = pictures * picture_tokens(source, data)
        text += pictures * BLOCK_TOKENS + 1
        # What is longer than a row is cut to it, text and pictures alike.
        fit = min(1.0, data.row_length / (text + image))
        # Of an edit the last picture alone is trained.
        trained = 1 / max(1.0, pictures) if kind == "image_to_image" else 1.0
        found.append((fit * text, fit * image, fit * image * trained))
    shares = list(data.shares.values())
    if data.mix == "tokens":
        lengths = (text + image for text, image, _ in found)
        shares = [share / length for share, length in zip(shares, lengths, strict=True)]
        shares = [share / sum(shares) for share in shares]
    return list(zip(shares, found, strict=True))


def document_lengths(data: Data) -> tuple[tuple[int, int, int], ...]:
    """(text ids, image tokens, trained ones) of documents that stand for the mixture.

    Each source gives as many as its share asks for, out of about `SAMPLE`, dealt out evenly.
    """
    made: list[tuple[float, tuple[int, int, int]]] = []
    for share, (text, image, targets) in _documents(data):
        number = max(1, round(share * SAMPLE)) if share else 0
        length = (max(1, round(text)), round(image), round(targets))
        made += [((place + 0.5) / number, length) for place in range(number)]
    return tuple(length for _, length in sorted(made, key=lambda pair: pair[0]))


SAMPLE = 20
"""Documents that stand for a mixture."""


def step_rows(recipe: Recipe) -> int:
    """Rows of one optimizer step over all ranks; of rl a row holds one sample."""
    if recipe.rollouts is not None:
        return -(-recipe.rollouts.prompts * recipe.rollouts.samples // recipe.rollouts.minibatches)
    return recipe.data.rows


def step_positions(recipe: Recipe) -> float:
    """Positions, or tokens of a cache, that one optimizer step trains on, over all ranks."""
    if recipe.stage == "distill":
        return float((recipe.distillation or Distillation()).batch)
    if recipe.rollouts is not None:
        return step_rows(recipe) / mixture(recipe.data).documents
    return float(recipe.data.rows * recipe.data.row_length)


def noise_levels(recipe: Recipe, config: NextStepConfig) -> int:
    """Noise levels that an image token is trained at."""
    if recipe.stage == "dpo":
        return (recipe.preference or Preference()).levels
    if recipe.stage == "rl":
        return (recipe.policy or Policy()).levels
    return recipe.loss.head_batch_mul or config.fm_head_batch_mul


def step_flops(recipe: Recipe, config: NextStepConfig) -> float:
    """Arithmetic of one optimizer step over all ranks.

    Training, what checkpointing computes a second time, and the encoding of pictures; of dpo and
    rl what other weights say of the same rows, of rl the drawing of the samples, without rewards.
    """
    from nextstep.train.flops import TRAINING, Work, head_numbers, train_flops

    mix, positions = mixture(recipe.data), step_positions(recipe)
    if recipe.stage == "distill":
        once, each_level = head_numbers(config)
        # Out-projector, head, and about one more pass of it for targets.
        return float(2 * positions * (TRAINING + 1) * (once + each_level + config.hidden_size**2))
    image = positions * mix.image_share
    targets = positions * mix.documents * mix.targets
    layers = Work(positions, positions * mix.context)
    work = Work(
        positions, positions * mix.context, positions * mix.documents * mix.text, image, targets,
        noise_levels(recipe, config),
    )  # fmt: skip
    again = train_flops(config, layers) / TRAINING if recipe.activation_checkpointing else 0.0
    training = train_flops(config, work)
    if recipe.stage == "dpo":
        return training + again + training / TRAINING
    if recipe.rollouts is not None:
        looks = 1 + (recipe.policy or Policy()).needs_reference
        # The rows of a step are one of so many parts of what was drawn.
        passes = recipe.rollouts.updates // recipe.rollouts.minibatches
        drawing = drawing_flops(recipe, config, work) / passes
        return training + again + looks * training / TRAINING + drawing
    return training + again + encoding_flops(recipe, image)


def drawing_flops(recipe: Recipe, config: NextStepConfig, work: Work) -> float:
    """Arithmetic of drawing the samples of a step of rl, all branches and solver steps."""
    from nextstep.train.flops import TRAINING, train_flops

    assert recipe.rollouts is not None
    told = recipe.rollouts.settings
    steps, guidance = int(told.get("steps", 8)), float(told.get("guidance", 2.0))
    branches = 1 if guidance == 1 else 2
    return branches * train_flops(config, replace(work, levels=steps)) / TRAINING


def encoding_flops(recipe: Recipe, image_tokens: float) -> float:
    """Arithmetic of encoding the pictures of `image_tokens` tokens; none with a latent cache."""
    return encoder_flops(autoencoder_config(recipe)) * image_tokens * fresh_share(recipe.data)


def fresh_share(data: Data) -> float:
    """Share of the samples whose pictures are encoded while training runs."""
    pairs = zip(data.sources, data.shares.values(), strict=True)
    held = ("latents", "compose_latents", "rollouts", "prompts")
    return sum(share for source, share in pairs if not any(getattr(source, n) for n in held))


@functools.lru_cache(maxsize=8)
def encoder_flops(config: AutoencoderConfig) -> float:
    """Forward arithmetic of the encoder per image token, from a crop of 256 pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nextstep.vae.autoencoder import Autoencoder

    side = 256
    network = on_meta(Autoencoder, config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.encoder(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / (side / config.token_pixels) ** 2


def tokenizer_flops(recipe: Recipe, config: AutoencoderConfig) -> float:
    """Arithmetic of one optimizer step of the tokenizer stage, all its networks included."""
    from nextstep.estimate.dry_run import made_up_crops
    from nextstep.recipe.tokenizer_parts import tokenizer_stage
    from nextstep.vae.perceptual import FeatureNet

    assert recipe.tokenizer is not None
    stage = tokenizer_stage(recipe, config, FeatureNet())
    return recipe.tokenizer.crops.batch * stage.flops(made_up_crops(recipe, config, 1))
