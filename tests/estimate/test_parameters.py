"""Counts in closed form are those of the networks."""

from __future__ import annotations

import pytest
import torch

from nextstep.config import SIZES, NextStepConfig
from nextstep.estimate.parameters import autoencoder_parameters, model_parameters
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.config import NANO_AUTOENCODER, AutoencoderConfig
from tests.conftest import TINY, TINY_VAE


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("config", [
    *(NextStepConfig.named(name) for name in SIZES), TINY,
    TINY.with_values(image_position_side=8, mlp_bias=True, o_attention_bias=True),
    TINY.with_values(attention_bias=False, tie_word_embeddings=True, fm_head_dim=48),
])  # fmt: skip
def test_parts_of_a_model_are_counted(config: NextStepConfig) -> None:
    with torch.device("meta"):
        model = NextStepModel(config)
    counted = model_parameters(config)
    assert sum(counted.values()) == size(model)
    assert counted["flow head"] == size(model.image_head)
    assert counted["in-projector"] == size(model.image_in_projector)
    assert counted["out-projector"] == size(model.image_out_projector)


@pytest.mark.parametrize("config", [AutoencoderConfig(), NANO_AUTOENCODER, TINY_VAE])
def test_image_tokenizer_is_counted(config: AutoencoderConfig) -> None:
    with torch.device("meta"):
        assert autoencoder_parameters(config) == size(Autoencoder(config))
