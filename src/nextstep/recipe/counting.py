"""What a recipe trains, counted: parameters, tokens and arithmetic, without any weight in memory.

Legend: E hidden size, W head width, K noise levels per token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nextstep.config import NextStepConfig
from nextstep.errors import NextStepError
from nextstep.recipe.data_schema import EXPECTED_PICTURES, EXPECTED_TEXT, SourceSettings
from nextstep.recipe.places import local_folder, tokenizer_folder

if TYPE_CHECKING:
    from torch import nn

    from nextstep.image.autoencoder import AutoencoderConfig
    from nextstep.recipe.data_schema import Data
    from nextstep.recipe.schema import Recipe

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
class Mixture:
    """What an average document of the mixture holds.

    Attributes:
        text: trained text tokens, area tags included.
        image: image tokens.
        documents: documents per 1 token, i.e. 1 / mean length.
        context: mean number of earlier positions that a token attends to.
    """

    text: float
    image: float
    documents: float
    context: float

    @property
    def image_share(self) -> float:
        """Share of image tokens among all tokens."""
        return self.image * self.documents


SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "image_position_side", "fm_head_dim", "fm_head_layers",
)  # fmt: skip
"""Fields of a config that a folder must share with the size named beside it."""


def model_config(recipe: Recipe, fetch: bool = False) -> NextStepConfig:
    """Shape of the model that a recipe trains, from the folder it starts from or from its size.

    Args:
        recipe: of a stage on sequences.
        fetch: the folder must be there, or come from the hub; otherwise the size stands for a
            folder that is not there yet.

    Raises:
        NextStepError: when neither tells it, or they differ.
    """
    from nextstep import folders
    from nextstep.config import HEADS
    from nextstep.model.checkpoints import read_model_config

    model = recipe.model
    assert model is not None
    source = model.folder or model.language_model
    named = model.named_config if model.size is not None else None
    if source is None or not (fetch or local_folder(source)):
        if named is None:
            raise NextStepError(
                f"there is no model folder '{source}'; give model.size beside it to plan with"
            )
        return named
    config = read_model_config(folders.find_folder(source))
    if model.language_model:
        config = config.with_values(**HEADS[model.head or "base"])
    config = config.with_values(**model.overrides)
    for name in SHAPE if named else ():
        if getattr(named, name) != getattr(config, name):
            raise NextStepError(
                f"model.size: {source} has {name} = {getattr(config, name)}, size {model.size} "
                f"with its overrides has {getattr(named, name)}; leave 'size' out or change it"
            )
    return config


def autoencoder_config(recipe: Recipe) -> AutoencoderConfig:
    """Shape of the image tokenizer that a recipe trains or reads; the released one if absent."""
    from nextstep.image.autoencoder import NANO_AUTOENCODER, AutoencoderConfig
    from nextstep.image.vae_files import read_config

    if recipe.tokenizer is not None:
        named = {"nano": NANO_AUTOENCODER, "f8ch16": AutoencoderConfig()}[recipe.tokenizer.size]
        folder = recipe.tokenizer.folder
    else:
        assert recipe.model is not None
        named = NANO_AUTOENCODER if recipe.model.size == "nano" else AutoencoderConfig()
        folder = recipe.image_tokenizer or recipe.model.folder
    place = tokenizer_folder(folder) if folder else None
    return read_config(place) if place else named


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
        trained += 0 if recipe.model.frozen(name) else parameter.numel()
    return Parameters(**counts, trained=trained)


def picture_tokens(source: SourceSettings, data: Data) -> float:
    """Image tokens of one picture of a source: its own size if it is live, else the areas' mean."""
    if source.world and "pixels" in source.world.options:
        sides = [source.world.options["pixels"]]
    else:
        sides = list(data.areas)
    return sum((side / 16) ** 2 for side in sides) / len(sides)


def mixture(data: Data) -> Mixture:
    """The average document, from the sources' shares and what is expected of their samples."""
    lengths, rows = [], []
    for source in data.sources:
        kind = source.kind or "image_text"
        text = float(source.expected_text or EXPECTED_TEXT[kind])
        pictures = source.expected_pictures
        pictures = EXPECTED_PICTURES[kind] if pictures is None else pictures
        image = pictures * picture_tokens(source, data)
        rows.append((text + pictures * (BLOCK_TOKENS - 2) + 1, image))
        lengths.append(min(text + image + pictures * BLOCK_TOKENS + 1, data.row_length))
    shares = list(data.shares.values())
    if data.mix == "tokens":
        shares = [share / length for share, length in zip(shares, lengths, strict=True)]
        shares = [share / sum(shares) for share in shares]
    mean = sum(s * n for s, n in zip(shares, lengths, strict=True))
    squares = sum(s * n * n for s, n in zip(shares, lengths, strict=True))
    return Mixture(
        text=sum(s * text for s, (text, _) in zip(shares, rows, strict=True)),
        image=sum(s * image for s, (_, image) in zip(shares, rows, strict=True)),
        documents=1 / mean,
        # A token of a document of n sees n/2 others on average; long documents hold more tokens.
        context=squares / mean / 2,
    )


def step_flops(recipe: Recipe, config: NextStepConfig) -> float:
    """Arithmetic of one optimizer step over all ranks.

    Training, what checkpointing computes a second time, and the encoding of pictures.
    """
    from nextstep.train.flops import TRAINING, Work, train_flops

    data, mix = recipe.data, mixture(recipe.data)
    positions = float(data.rows * data.row_length)
    image = positions * mix.image_share
    layers = Work(positions, positions * mix.context)
    work = Work(
        positions, positions * mix.context, positions * mix.documents * mix.text, image, image,
        recipe.loss.head_batch_mul or config.fm_head_batch_mul,
    )  # fmt: skip
    again = train_flops(config, layers) / TRAINING if recipe.checkpointing else 0.0
    return train_flops(config, work) + again + encoding_flops(recipe, image)


def encoding_flops(recipe: Recipe, image_tokens: float) -> float:
    """Arithmetic of encoding the pictures of `image_tokens` tokens; none with a latent cache."""
    sources = recipe.data.sources
    cached = sum(
        share for s, share in zip(sources, recipe.data.shares.values(), strict=True) if s.latents
    )
    encoder, _ = autoencoder_flops(autoencoder_config(recipe))
    return encoder * image_tokens * (1 - cached)


@functools.lru_cache(maxsize=8)
def autoencoder_flops(config: AutoencoderConfig) -> tuple[float, float]:
    """Forward arithmetic of the encoder and of the decoder, per image token.

    Convolutions dominate, so a crop of 256 pixels stands for every size.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nextstep.image.autoencoder import Autoencoder

    side = 256
    network = on_meta(Autoencoder, config)
    with torch.device("meta"):
        pixels = torch.empty(1, 3, side, side)
        latents = torch.empty(
            1, config.latent_channels, side // config.down_factor, side // config.down_factor
        )
    found = []
    for part, given in ((network.encoder, pixels), (network.decoder, latents)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part(given)
        found.append(counter.get_total_flops() / (side / config.token_pixels) ** 2)
    return found[0], found[1]
