"""Recipe keys that studies need: a fresh flow head, and latents with one scale for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nextstep.config import NextStepConfig
from nextstep.data.documents import Document
from nextstep.engine.settings import ModelDefaults
from nextstep.model.folder import read_model_config
from nextstep.model.nextstep import NextStepModel
from nextstep.recipe.load import RecipeError, check_recipe
from nextstep.recipe.samples import fitting
from nextstep.recipe.shapes import model_config
from nextstep.recipe.tokenizer_parts import TokenizerParts
from nextstep.recipe.weights import first_weights
from nextstep.text.sequence import build_sequence, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.parallel import Ranks
from nextstep.train.stages.pretrain import PretrainStage
from nextstep.train.stages.tokenizer import PictureBatch
from nextstep.vae.config import NANO_AUTOENCODER
from nextstep.vae.tokenizer import ImageTokenizer
from tests.conftest import TINY


def sequence_recipe(folder: Path, **model: object) -> dict[str, object]:
    return {
        "stage": "pretrain", "steps": 2, "seed": 4, "model": {"folder": str(folder), **model},
        "image_tokenizer": str(folder), "text_tokenizer": str(folder),
        "data": {"sources": [{"world": {"name": "world", "options": {"pixels": 32}}}],
                 "areas": [32], "row_length": 256},
        "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip


def test_a_fresh_head_of_another_shape_stands_on_the_folders_backbone(tiny_folder: Path) -> None:
    raw = sequence_recipe(
        tiny_folder, fresh_head=True, overrides={"fm_head_dim": 48, "fm_head_layers": 1}
    )
    made = check_recipe(raw, "here")
    config = model_config(made, fetch=True)
    old = read_model_config(tiny_folder)
    assert (config.fm_head_dim, config.fm_head_layers) == (48, 1)
    given = dict(first_weights(made, config))
    with torch.device("meta"):
        model = NextStepModel(config)
    for name, parameter in model.named_parameters():
        assert given[name].shape == parameter.shape, name
    kept = dict(first_weights(check_recipe(sequence_recipe(tiny_folder), "here"), old))
    for name, tensor in given.items():
        if not name.startswith("image_head."):
            assert torch.equal(tensor, kept[name]), name
    # As every fresh head it begins with a velocity of nothing.
    assert not given["image_head.net.final_layer.linear.weight"].any()


def test_a_head_is_named_beside_a_folder_only_when_it_is_fresh(tiny_folder: Path) -> None:
    with pytest.raises(RecipeError, match="say 'fresh_head'"):
        check_recipe(sequence_recipe(tiny_folder, head="small"), "here")
    made = check_recipe(sequence_recipe(tiny_folder, head="small", fresh_head=True), "here")
    assert model_config(made, fetch=True).fm_head_dim == 1024


def test_a_fresh_head_needs_a_folder() -> None:
    raw = sequence_recipe(Path("nowhere"))
    raw["model"] = {"size": "nano", "fresh_head": True}
    with pytest.raises(RecipeError, match="'fresh_head' is for a model of a 'folder'"):
        check_recipe(raw, "here")


def decoder_recipe(**tokenizer: object) -> dict[str, object]:
    options = {"size": "nano", "folder": "nano", "decoder_only": True,
               "crops": {"size": 32, "batch": 32}, "token_norm": "global scale"}  # fmt: skip
    return {
        "stage": "tokenizer", "steps": 2, "precision": "fp32",
        "tokenizer": {**options, **tokenizer},
        "data": {"sources": [{"world": {"name": "scenes", "options": {"sides": [32, 64]}}}]},
        "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip


def test_a_global_scale_gives_latents_of_mean_0_and_variance_1(tmp_path: Path) -> None:
    parts = TokenizerParts(check_recipe(decoder_recipe(), "here"), Ranks(), "here")
    assert not parts.config.token_norm
    tokenizer = ImageTokenizer(parts.config, parts.model.autoencoder)
    (batch,) = parts.batches.next_step().batches
    latents = tokenizer.encode(batch.pixels)
    assert float(latents.mean()) == pytest.approx(0, abs=0.1)
    assert float(latents.std()) == pytest.approx(1, abs=0.1)
    # What training decodes is what the tokenizer decodes of what it encoded.
    quiet = PictureBatch(batch.pixels, batch.seeds)
    output, _, _ = parts.model(quiet)
    assert torch.allclose(output.clamp(-1, 1), tokenizer.decode(latents), atol=1e-4)
    # And its noise is in units of the scaled latents.
    noise = torch.randn_like(latents)
    loud = replace(quiet, level=torch.full((len(noise), 1, 1, 1), 0.7), noise=noise)
    output, _, _ = parts.model(loud)
    assert torch.allclose(output.clamp(-1, 1), tokenizer.decode(latents + 0.7 * noise), atol=1e-4)


def test_a_global_scale_is_measured_alike_when_a_run_goes_on() -> None:
    configs = [
        TokenizerParts(check_recipe(decoder_recipe(), "here"), Ranks(), "here").config
        for _ in range(2)
    ]
    assert configs[0] == configs[1]


def test_a_global_scale_with_an_encoder_that_moves_is_refused() -> None:
    with pytest.raises(RecipeError, match="set decoder_only"):
        check_recipe(decoder_recipe(decoder_only=False), "here")


def test_models_on_globally_scaled_tokens_sample_without_the_norm() -> None:
    config = TokenizerParts(check_recipe(decoder_recipe(), "here"), Ranks(), "here").config
    with torch.device("meta"):
        scaled, normed = ImageTokenizer(config), ImageTokenizer(replace(config, token_norm=True))
    found = fitting(ModelDefaults(), scaled)
    assert not found.generate.token_norm and not found.edit.token_norm
    assert fitting(ModelDefaults(), normed) == ModelDefaults()
    stages = [PretrainStage(NextStepConfig.named("nano"), one) for one in (scaled, normed, None)]
    assert [stage.normalise for stage in stages] == [False, True, True]


@pytest.mark.parametrize("normed", [True, False])
def test_noisy_context_is_normalised_only_where_tokens_are(
    text_tokenizer: TextTokenizer, normed: bool
) -> None:
    with torch.device("meta"):
        tokenizer = ImageTokenizer(replace(NANO_AUTOENCODER, token_norm=normed))
    stage = PretrainStage(TINY, tokenizer, row_length=64, context_noise=0.5)
    sequence = build_sequence(text_to_image("an apple", (2, 2)), text_tokenizer)
    tokens = 3 + 2 * torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    rows = [[(Document("apple", sequence, (0,), 7), [tokens])]]
    prepared = stage.prepare(stage.batch_of(rows), "cpu")
    assert torch.equal(prepared.targets, tokens)
    assert (abs(float(prepared.context.mean()) - 3) < 0.5) is not normed
    assert prepared.context.std(-1).mean() == pytest.approx(1 if normed else 2, abs=0.3)
