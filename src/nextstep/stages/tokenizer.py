"""Stage `tokenizer`: train the autoencoder to decode what it encoded, noise in between.

Pixels [B, 3, H, W] in [-1, 1] -> latents, token norm, perturbation -> pixels. The loss is L1 plus
L2 plus L1 on finite differences, which keeps edges sharp without a perceptual network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.image.autoencoder import Autoencoder
from nextstep.image.latents import normalise_latents, perturb


def reconstruction_loss(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """L1 + L2 + gradient L1 of two pixel tensors [B, 3, H, W]; scalars by name."""
    output = output.float()
    l1 = F.l1_loss(output, target)
    l2 = F.mse_loss(output, target)
    gradient = F.l1_loss(output.diff(dim=-1), target.diff(dim=-1)) + F.l1_loss(
        output.diff(dim=-2), target.diff(dim=-2)
    )
    return {"loss": l1 + l2 + gradient, "l1": l1.detach(), "l2": l2.detach()}


def tokenizer_loss(
    autoencoder: Autoencoder, pixels: Tensor, gamma: float, decoder_only: bool = False
) -> dict[str, Tensor]:
    """Encode, normalise, perturb with a ~ U[0, gamma], decode, compare (arXiv 2508.10711 eq. 3).

    With `decoder_only` the encoder stays as it is, so latents keep their meaning for a transformer
    that was trained on them.
    """
    with torch.set_grad_enabled(not decoder_only):
        mean = autoencoder.mean(pixels).float()
        latents = perturb(normalise_latents(mean, autoencoder.config.patch), gamma)
    return reconstruction_loss(autoencoder.decoder(latents), pixels)
