"""The tokenizer stage of a recipe: what is trained, on what, and how the result is written.

Legend: weights of any shape by their names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nextstep.model.folder import tokenizer_folder
from nextstep.recipe import build
from nextstep.recipe.load import RecipeError
from nextstep.recipe.shapes import autoencoder_config
from nextstep.train.parallel import Ranks, build_mesh
from nextstep.train.stages.tokenizer import TokenizerStage
from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.files import load_image_tokenizer, save_image_tokenizer
from nextstep.vae.tokenizer import ImageTokenizer

if TYPE_CHECKING:
    from nextstep.recipe.schema import Recipe
    from nextstep.train.stages.crops import CropBatches
    from nextstep.train.trainer import Trainer
    from nextstep.vae.config import AutoencoderConfig
    from nextstep.vae.perceptual import FeatureNet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEASURED = 128
"""Crops that a global scale is measured on."""


class TokenizerParts:
    """A run of the tokenizer stage.

    Args:
        recipe: of the stage.
        ranks: this process among all.
        where: name of the recipe file, for complaints.

    Raises:
        NextStepError: when a part cannot be had or does not fit.
    """

    def __init__(self, recipe: Recipe, ranks: Ranks, where: str) -> None:
        self.recipe = recipe
        self.batches = build.open_crops(recipe, ranks, where)
        autoencoder = _first_autoencoder(recipe, where)
        if recipe.tokenizer is not None and recipe.tokenizer.token_norm == "global scale":
            crops = build.open_crops(recipe, Ranks(), where)
            autoencoder.config = scaled_globally(autoencoder, crops)
        self.config: AutoencoderConfig = autoencoder.config
        self.stage = tokenizer_stage(recipe, self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed + 1)  # of the critic
            self.model = self.stage.trainee(autoencoder).to(ranks.device)
        self.mesh = build_mesh(ranks, recipe.parallel.replicas)

    def save(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write an image tokenizer folder with these whole weights."""
        dtype, prefix = DTYPES[self.recipe.saving.dtype], "autoencoder."
        with torch.device("meta"):
            network = Autoencoder(self.config)
        own = {
            name.removeprefix(prefix): tensor.to(dtype)
            for name, tensor in weights.items()
            if name.startswith(prefix)
        }
        network.load_state_dict(own, assign=True)
        save_image_tokenizer(ImageTokenizer(self.config, network), folder)

    def draw(self, weights: dict[str, Tensor], path: Path) -> None:
        """The stage has no prompts to draw."""
        raise NotImplementedError("the tokenizer stage draws no sheets")

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The stage draws no scenes."""
        raise NotImplementedError("the tokenizer stage draws no scenes")

    def attach(self, trainer: Trainer) -> None:
        """Nothing here needs the trainer."""

    def close(self) -> None:
        """Nothing runs beside the training."""


def tokenizer_stage(
    recipe: Recipe, config: AutoencoderConfig, features: FeatureNet | None = None
) -> TokenizerStage:
    """The stage with the recipe's options.

    Args:
        recipe: of the tokenizer stage.
        config: of the autoencoder.
        features: network of the perceptual part; default the published weights.

    Raises:
        ModelFileError: when those are asked for and not installed.
    """
    options = recipe.tokenizer
    assert options is not None
    return TokenizerStage(
        config,
        options.gamma,
        options.weights.model_dump(),
        options.decoder_only,
        options.adversarial_from,
        features,
    )


@torch.no_grad()
def scaled_globally(autoencoder: Autoencoder, crops: CropBatches) -> AutoencoderConfig:
    """The shape of an autoencoder whose latents have mean 0 and variance 1 over the first crops.

    Args:
        autoencoder: whose encoder stays as it is.
        crops: of one process; at least `MEASURED` of them are read.
    """
    found: list[Tensor] = []
    while sum(map(len, found)) < MEASURED:
        for batch in crops.next_step().batches:
            found.append(autoencoder.encoder(batch.pixels).float().chunk(2, dim=1)[0])
    latents = torch.cat(found)
    return replace(
        autoencoder.config,
        token_norm=False,
        shift_factor=float(latents.mean()),
        scaling_factor=float(1 / latents.std()),
    )


def _first_autoencoder(recipe: Recipe, where: str) -> Autoencoder:
    """With the weights of the folder that the recipe names, or fresh ones."""
    options = recipe.tokenizer
    assert options is not None
    config = autoencoder_config(recipe)
    if options.folder is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return Autoencoder(replace(config, deterministic=options.deterministic))
    folder = tokenizer_folder(options.folder)
    if folder is None:
        raise RecipeError(f"{where}: tokenizer.folder: there is no folder '{options.folder}'")
    autoencoder = load_image_tokenizer(folder, torch.float32).autoencoder
    autoencoder.config = replace(autoencoder.config, deterministic=options.deterministic)
    return autoencoder
