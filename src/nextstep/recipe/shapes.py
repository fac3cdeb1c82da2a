"""Shapes of what a recipe trains: of the model and of the image tokenizer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nextstep.config import HEADS, NextStepConfig
from nextstep.errors import NextStepError
from nextstep.image.sizes import scaled_buckets
from nextstep.model.folder import find_folder, local_folder, read_model_config, tokenizer_folder
from nextstep.vae.config import NANO_AUTOENCODER, AutoencoderConfig, read_config

if TYPE_CHECKING:
    from nextstep.recipe.schema import Recipe

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
    config = read_model_config(find_folder(source))
    if model.language_model:
        config = config.with_values(**HEADS[model.head or "base"])
    if model.fresh_head and model.head:
        config = config.with_values(**HEADS[model.head])
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
    if recipe.tokenizer is not None:
        named = {"nano": NANO_AUTOENCODER, "f8ch16": AutoencoderConfig()}[recipe.tokenizer.size]
        channels = recipe.tokenizer.channels or named.latent_channels
        named = replace(named, latent_channels=channels)
        folder = recipe.tokenizer.folder
    else:
        assert recipe.model is not None
        named = NANO_AUTOENCODER if recipe.model.size == "nano" else AutoencoderConfig()
        folder = recipe.image_tokenizer or recipe.model.folder
    place = tokenizer_folder(folder) if folder else None
    return read_config(place) if place else named


def check_pictures(recipe: Recipe, config: NextStepConfig) -> None:
    """Make sure that learned positions reach as far as the pictures.

    Raises:
        NextStepError: with the side that is needed.
    """
    side, data = config.image_position_side, recipe.data
    if not side:
        return
    needed = max(
        (max(grid) for area in data.areas for grid in scaled_buckets(area))
        if data.aspects
        else [area // 16 for area in data.areas]
    )
    if any(source.shards for source in data.sources) and needed > side:
        raise NextStepError(
            f"data.areas: pictures of up to {needed} rows or columns do not fit learned positions "
            f"of {side}; raise model.overrides.image_position_side"
        )
