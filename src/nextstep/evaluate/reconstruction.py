"""How well an image tokenizer gives back what it was shown: PSNR, SSIM, distances of features.

Legend: B pictures [B, 3, H, W] in [-1, 1], D features of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.fidelity import Moments, ScriptNet, frechet_distance
from nextstep.image.pictures import resize_and_crop, to_pixels
from nextstep.image.sizes import fitting_size

if TYPE_CHECKING:
    from nextstep.vae.perceptual import FeatureNet
    from nextstep.vae.tokenizer import ImageTokenizer

RANGE = 2.0
"""Pixels lie in [-1, 1]."""


@dataclass(frozen=True)
class Reconstruction:
    """Means over pictures.

    Attributes:
        pictures: how many.
        psnr: peak signal-to-noise ratio in dB.
        ssim: structural similarity (11-pixel Gaussian window), 1 for equal pictures.
        feature_distance: EfficientNet-Lite0 feature distance, 0 for equal pictures; None when it
            was not asked for.
        lpips: by VGG, 0 for equal pictures; None without its network.
        rfid: Frechet distance of Inception features to those of the originals; None without it.
    """

    pictures: int
    psnr: float
    ssim: float
    feature_distance: float | None = None
    lpips: float | None = None
    rfid: float | None = None

    def rounded(self) -> dict[str, float | int | None]:
        """For tables and JSON."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def measure(
    tokenizer: ImageTokenizer,
    pictures: Iterable[Image.Image],
    features: FeatureNet | None = None,
    max_pixels: int | None = None,
    lpips: ScriptNet | None = None,
    inception: ScriptNet | None = None,
) -> Reconstruction:
    """Encode and decode every picture and compare.

    Args:
        tokenizer: the image tokenizer, without any noise on its latents.
        pictures: RGB; each is cut to the nearest size that image tokens can cover.
        features: network of the feature distance; None leaves it out.
        max_pixels: larger pictures are shrunk to about this area first.
        lpips, inception: networks of these distances; None leaves one out.

    Raises:
        NextStepError: when there is no picture, or torchmetrics is not installed.
    """
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    shown, given_back = Moments(), Moments()
    for picture in pictures:
        side = tokenizer.config.token_pixels
        height, width = fitting_size(picture.height, picture.width, side, max_pixels)
        pixels = to_pixels([resize_and_crop(picture, height, width)]).to(tokenizer.device)
        tokens = tokenizer.encode_tokens(pixels)
        output = tokenizer.decode_tokens(tokens, tokenizer.grid(height, width))
        unlike = torch.zeros(()) if lpips is None else squared(lpips(output), lpips(pixels))
        if inception is not None:
            shown.add(inception(pixels))
            given_back.add(inception(output))
        sums += torch.tensor([*compared(output, pixels, features), float(unlike)])
        count += 1
    if not count:
        raise NextStepError("there are no pictures to measure the image tokenizer on")
    psnr, structure, feature, unlikeness = (sums / count).tolist()
    return Reconstruction(
        count,
        psnr,
        structure,
        None if features is None else feature,
        None if lpips is None else unlikeness,
        None if inception is None else frechet_distance(shown, given_back),
    )


def compared(
    output: torch.Tensor, pixels: torch.Tensor, features: FeatureNet | None = None
) -> tuple[float, float, float]:
    """PSNR in dB, SSIM and feature distance (0 without its network) of two pictures [1, 3, H, W].

    Raises:
        NextStepError: when torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        raise NextStepError("SSIM needs torchmetrics: pip install 'open-nextstep[eval]'") from None
    error = (output - pixels).square().mean().clamp(min=1e-12)
    distance = 0.0 if features is None else float(features.distance(output, pixels)[0])
    # Structural similarity compares brightness too, so its values must begin at black.
    similarity = torch.as_tensor(ssim((output + 1) / 2, (pixels + 1) / 2, data_range=1.0))
    return float(10 * torch.log10(RANGE**2 / error)), float(similarity), distance


def squared(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Squared distance of two rows of features [1, D]."""
    return (first - second).square().sum()
