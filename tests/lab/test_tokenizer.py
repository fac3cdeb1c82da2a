"""`nextstep lab tokenizer`: its statistics on latents with known properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nextstep.lab.study import Scale
from nextstep.lab.tokenizer import (
    Tokenizers,
    effective_rank,
    reconstructions,
    statistics_of,
    variance_shares,
)
from nextstep.recipe.load import RecipeError, load_recipe, recipe_file
from nextstep.recipe.shapes import autoencoder_config
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.tokenizer import ImageTokenizer

SMALL = AutoencoderConfig((16, 16), layers_per_block=1, latent_channels=4, norm_groups=4)


def test_effective_rank_is_the_number_of_equal_directions() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12))[0][:3]
    shares = variance_shares(torch.randn(200_000, 3) @ basis)
    assert effective_rank(shares) == pytest.approx(3, rel=0.01)
    assert shares[:3].sum() == pytest.approx(1)
    assert effective_rank(np.array([1.0, 0.0])) == pytest.approx(1)


def test_noise_on_latents_costs_quality_and_is_the_same_every_time() -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(SMALL)
    pictures = {f"{n}": torch.rand(1, 3, 32, 32) * 2 - 1 for n in range(2)}
    found = reconstructions(tokenizer, pictures)
    assert found == reconstructions(tokenizer, dict(reversed(pictures.items())))
    assert set(found) == {
        name + suffix
        for name in ("psnr", "ssim", "feature distance")
        for suffix in ("", " disturbed")
    }
    assert found["feature distance disturbed"] != found["feature distance"]
    values, tables = statistics_of(tokenizer, pictures)
    assert len(tables["channels"]) == 4 and len(tables["spectrum"]) == 16
    # Tokens are normalised over their values, so one direction has no variance.
    assert tables["spectrum"][-1]["share"] < 1e-6
    assert 1 < values["effective rank"] < 15
    counts = sum(row["count"] for row in tables["histograms"])
    assert counts == 2 * 4 * 16 * 16


def test_arms_differ_in_channels_and_noise_alone() -> None:
    study, scale = Tokenizers(), Scale()
    recipes = [study.tokenizer_recipe(arm, scale, 3) for arm in study.arms(scale)]
    options = [recipe.model_dump() for recipe in recipes]
    told = {(one["tokenizer"].pop("channels"), one["tokenizer"].pop("gamma")) for one in options}
    assert told == {(channels, noise) for channels in (4, 16) for noise in (0.0, 0.3, 0.5)}
    assert all(one == options[0] for one in options)


def test_channels_of_a_recipe_shape_fresh_weights_and_no_others() -> None:
    file = recipe_file("lab-tokenizer")
    assert autoencoder_config(load_recipe(file, ["tokenizer.channels=4"])).latent_channels == 4
    assert autoencoder_config(load_recipe(file, ["tokenizer.channels=null"])).latent_channels == 16
    with pytest.raises(RecipeError, match="those of a 'folder' have theirs"):
        load_recipe(file, ["tokenizer.folder=nano"])
