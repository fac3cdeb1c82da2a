"""Reconstruction figures on a tokenizer whose errors are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextstep.errors import NextStepError
from nextstep.evaluate.reconstruction import measure
from nextstep.vae.perceptual import FeatureNet
from nextstep.vae.tokenizer import ImageTokenizer
from tests.conftest import TINY_VAE


class OffBy(ImageTokenizer):
    """Gives back what it was shown, every value off by `error`."""

    def __init__(self, error: float) -> None:
        super().__init__(TINY_VAE)
        self.error = error

    def encode_tokens(self, pixels: Tensor) -> Tensor:
        self.kept = pixels
        return pixels

    def decode_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        assert tokens.shape[-2:] == (16 * grid[0], 16 * grid[1])
        return tokens + self.error


def noise(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_known_errors_give_known_figures() -> None:
    torch.manual_seed(0)
    features = FeatureNet((0,))
    pictures = [noise(48, 64), noise(35, 30)]  # the second is cut to 32x32
    same = measure(OffBy(0.0), pictures, features)
    assert (same.pictures, same.feature_distance) == (2, 0.0)
    assert same.ssim == pytest.approx(1.0)
    off = measure(OffBy(0.1), pictures, features)
    assert off.psnr == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)
    # Every window has a mean near 128/255, where an offset of 1/20 is a small part of brightness.
    assert off.ssim == pytest.approx(2 * 0.51 * 0.56 / (0.51**2 + 0.56**2), abs=0.01)
    assert off.feature_distance is not None and off.feature_distance > 0
    assert measure(OffBy(0.1), pictures).feature_distance is None
    assert set(off.rounded()) == {"pictures", "psnr", "ssim", "feature_distance"}


def test_large_pictures_are_shrunk() -> None:
    tokenizer = OffBy(0.0)
    measure(tokenizer, [noise(128, 64)], max_pixels=32 * 64)
    assert tokenizer.kept.shape[-2:] == (64, 32)


def test_nothing_to_measure() -> None:
    with pytest.raises(NextStepError, match="no pictures"):
        measure(OffBy(0.0), [])
