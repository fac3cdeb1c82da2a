"""Memory counted on tensors without storage is that of tensors with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nextstep.estimate import counting
from nextstep.estimate.dry_run import (
    Peak,
    StorageCounter,
    encoding_peak,
    made_up_crops,
    made_up_rows,
    measure,
    sequence_peak,
    tokenizer_peak,
)
from nextstep.model.nextstep import NextStepModel
from nextstep.recipe.load import load_recipe
from nextstep.train.stages.pretrain import PretrainStage
from nextstep.train.stages.tokenizer import TokenizerStage
from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.tokenizer import ImageTokenizer
from tests.conftest import TINY, TINY_VAE

RECIPES = Path(__file__).parents[2] / "recipes"
LENGTHS = ((9, 16, 16), (12, 32, 16), (30, 0, 0))


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in a batch, which is there before the step."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_in(item)]
    return tensors_in(list(vars(value).values())) if hasattr(value, "__dict__") else []


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sequences(bf16: bool, checkpointing: bool) -> None:
    config = TINY.with_values(num_hidden_layers=4)
    planned = sequence_peak(
        config, LENGTHS, 3, 96, 2, bf16=bf16, cast=True, packed=True, checkpointing=checkpointing
    )
    stage = PretrainStage(config, row_length=96, head_batch_mul=2)
    batch = stage.prepare(made_up_rows(stage, LENGTHS, 3, 96), "cpu")
    batch.documents.head_rows(config.num_attention_heads, config.num_key_value_heads)
    model = NextStepModel(config).train()
    model.reset_parameters()
    model.gradient_checkpointing = checkpointing
    counter = StorageCounter([*model.parameters(), *tensors_in(batch)])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        real = measure(lambda: stage.losses(model, batch), model, counter)
    # What is made of the batch itself is known in one and met in the other.
    assert planned.kept == pytest.approx(real.kept, rel=0.001)
    # Two moments are nearly as high as each other, before the first gradient and after it.
    peaks = [one.highest + one.gradients for one in (planned, real)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.03)


def test_crops() -> None:
    recipe = load_recipe(
        RECIPES / "tokenizer-nano.yaml", ["tokenizer.crops.size=32", "precision=fp32"]
    )
    planned = tokenizer_peak(recipe, TINY_VAE, 2)
    stage = TokenizerStage(TINY_VAE, 0.4)
    model = stage.trainee(Autoencoder(TINY_VAE)).train()
    counter = StorageCounter([*model.parameters(), *model.buffers()])
    batch = made_up_crops(recipe, TINY_VAE, 2)
    assert planned == measure(lambda: stage.losses(model, batch), model, counter)


def test_pictures() -> None:
    planned = encoding_peak(TINY_VAE, 4, 32, bf16=False)
    tokenizer = ImageTokenizer(TINY_VAE)
    pixels = torch.zeros(4, 3, 32, 32)
    counter = StorageCounter([*tokenizer.parameters(), *tokenizer.buffers()])
    with counter, torch.no_grad():
        tokenizer.encode_tokens(pixels)
    assert planned == counter.highest > 0


def test_more_of_everything_takes_more() -> None:
    def peak(**changes: object) -> Peak:
        given = {"rows": 2, "row_length": 96, "levels": 2} | changes
        rows, length, levels = (given.pop(name) for name in ("rows", "row_length", "levels"))
        switches = {"bf16": False, "cast": True, "packed": True, "checkpointing": False}
        return sequence_peak(TINY, LENGTHS, rows, length, levels, **switches | given)  # type: ignore[arg-type]

    base = peak()
    assert peak(rows=4).kept > 1.7 * base.kept
    assert peak(levels=4).highest > base.highest
    assert peak(bf16=True, cast=False).kept < base.kept


def test_perceptual_and_adversarial_parts_are_counted() -> None:
    def peak(*changes: str) -> Peak:
        path = RECIPES / "tokenizer-0.5b.yaml"
        return tokenizer_peak(load_recipe(path, ["tokenizer.crops.size=32", *changes]), TINY_VAE, 1)

    plain = peak("tokenizer.weights={perceptual: 0}").kept
    assert peak("tokenizer.weights={perceptual: 1}").kept > 2 * plain
    assert peak("tokenizer.weights={perceptual: 0, adversarial: 0.1}").kept > plain


def test_documents_stand_for_their_mixture() -> None:
    data = load_recipe(RECIPES / "anneal-14b.yaml").data
    lengths = counting.document_lengths(data)
    mix = counting.mixture(data)
    mean = sum(text + image for text, image, _ in lengths) / len(lengths)
    assert mean == pytest.approx(1 / mix.documents, rel=0.25)
    assert any(image == 0 for _, image, _ in lengths)


def test_of_an_edit_one_picture_is_trained() -> None:
    data = load_recipe(RECIPES / "singles-nano.yaml").data
    trained = {image: targets for _, image, targets in counting.document_lengths(data)}
    assert trained == {64: 64, 128: 64}
    assert counting.mixture(data).targets == pytest.approx(64)
