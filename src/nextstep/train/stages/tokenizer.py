"""Stage `tokenizer`: train the autoencoder to decode what it encoded, noise in between.

Pixels [B, 3, H, W] in [-1, 1] -> latents, token norm, perturbation -> pixels. Parts of the
loss, all summed over pictures:

    l1, l2       per pixel
    gradient     L1 on finite differences, which keeps edges sharp without a perceptual network
    perceptual   EfficientNet-Lite0 feature distance; that network is never trained
    kl           of the encoder's Gaussian to the standard one, when it is not deterministic
    adversarial  what a PatchGAN critic says of the output
    critic       what the critic itself learns from

The critic is a part of the trained module, and its loss a part of the loss. Each of the two
adversarial parts reaches the weights of one side only (the other side is held constant), so one
backward pass and one optimizer step train both, at the same time. The loop needs no second
optimizer, and saving, resuming, accumulation and ranks hold for the critic as for everything else.

Legend: B pictures, C latent channels, h w latents.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.discriminator import Critic, adversarial_loss, critic_loss
from nextstep.vae.latents import normalise_latents
from nextstep.vae.perceptual import FeatureNet

PARTS = ("l1", "l2", "gradient", "perceptual", "kl", "adversarial")
PLAIN: dict[str, float] = {"l1": 1.0, "l2": 1.0, "gradient": 1.0}
"""Weights without any second network."""


def reconstruction_parts(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """l1, l2 and gradient of two pixel tensors [B, 3, H, W], one number a picture: [B] each."""
    error = output.float() - target

    def mean(values: Tensor) -> Tensor:
        return values.mean((1, 2, 3))

    return {
        "l1": mean(error.abs()),
        "l2": mean(error.square()),
        "gradient": mean(error.diff(dim=-1).abs()) + mean(error.diff(dim=-2).abs()),
    }


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of one size and what is random about their use.

    Attributes:
        pixels: [B, 3, H, W] in [-1, 1].
        seeds: one a picture; every draw comes from it.
        step: of the run, for parts of the loss that begin later.
        level: [B, 1, 1, 1] standard deviation of each picture's perturbation, set by `prepare`.
        noise: [B, C, h, w] of the perturbation, set by `prepare`.
        sample: [B, C, h, w] of the encoder's Gaussian, set by `prepare` when it has one.
    """

    pixels: Tensor
    seeds: tuple[int, ...]
    step: int = 0
    level: Tensor | None = None
    noise: Tensor | None = None
    sample: Tensor | None = None


class TokenizerModel(nn.Module):
    """What the stage trains: the autoencoder and, for adversarial training, its critic.

    Encode, normalise, perturb with a ~ U[0, gamma], decode (arXiv 2508.10711 eq. 3).
    """

    def __init__(self, autoencoder: Autoencoder, critic: Critic | None = None) -> None:
        super().__init__()
        self.autoencoder, self.critic = autoencoder, critic

    def forward(
        self, batch: PictureBatch, decoder_only: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A prepared batch -> pixels [B, 3, H, W], means and log-variances [B, C, h, w], fp32."""
        config = self.autoencoder.config
        with torch.no_grad() if decoder_only else contextlib.nullcontext():
            moments = self.autoencoder.encoder(batch.pixels).float()
            mean, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(-30, 20)
            if config.token_norm:
                mean = normalise_latents(mean, config.patch)
            latents = mean
            if batch.sample is not None:
                latents = latents + torch.exp(0.5 * logvar) * batch.sample
        if batch.level is not None and batch.noise is not None:
            # The noise is on latents as a transformer reads them, scaled; the decoder's are not.
            latents = latents + batch.level * batch.noise / config.scaling_factor
        return self.autoencoder.decoder(latents).float(), mean, logvar


class TokenizerStage:
    """Trains a `TokenizerModel`; see `nextstep.train.contracts.Stage`.

    Args:
        config: of the autoencoder.
        gamma: largest standard deviation of the perturbation.
        weights: of the parts of the loss, any of `PARTS`; a part that is left out or 0 is not
            computed. Default `PLAIN`.
        decoder_only: refine the decoder and leave the encoder as it is, so that latents keep their
            meaning for a transformer that was trained on them.
        adversarial_from: first step at which the autoencoder listens to the critic, which learns
            from the first step on.
        features: network of the perceptual part; default the published weights.

    Raises:
        ValueError: for a weight or gamma that cannot be, or a part that this autoencoder lacks.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        gamma: float = 0.5,
        weights: Mapping[str, float] | None = None,
        decoder_only: bool = False,
        adversarial_from: int = 0,
        features: FeatureNet | None = None,
    ) -> None:
        given = dict(PLAIN if weights is None else weights)
        _check(given, gamma, config, decoder_only)
        self.config, self.gamma, self.decoder_only = config, gamma, decoder_only
        self.adversarial_from = adversarial_from
        self.loss_weights = {name: value for name, value in given.items() if value > 0}
        self.adversarial = "adversarial" in self.loss_weights
        if self.adversarial:
            self.loss_weights["critic"] = 1.0
        self.features = features
        if "perceptual" in self.loss_weights and features is None:
            self.features = FeatureNet.from_package()
        self.critic_channels: tuple[int, ...] = (64, 128, 256)
        self._flops: dict[tuple[int, ...], float] = {}

    def trainee(
        self, autoencoder: Autoencoder, critic_channels: tuple[int, ...] = (64, 128, 256)
    ) -> TokenizerModel:
        """The module to train: the right parts frozen, a fresh critic where one is needed.

        The autoencoder's weights lie channels last from then on.
        """
        self.critic_channels = critic_channels
        autoencoder.requires_grad_(True)
        autoencoder.encoder.requires_grad_(not self.decoder_only)
        # Convolutions gain, forward and backward; see the log of 2026-11-29.
        for weight in autoencoder.parameters():
            if weight.ndim == 4:  # in place: `Module.to` fails on the tensors of a dry run
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return TokenizerModel(autoencoder, Critic(critic_channels) if self.adversarial else None)

    def flops(self, batch: PictureBatch) -> float:
        """Operations of forward and backward on a prepared micro-batch, all networks included."""
        shape = tuple(batch.pixels.shape)
        if shape not in self._flops:
            self._flops[shape] = self._counted(batch)
        return self._flops[shape]

    def _counted(self, batch: PictureBatch) -> float:
        """Count on tensors without values, with networks of the same shape."""
        from torch.utils.flop_counter import FlopCounterMode

        twin = copy.copy(self)
        twin.features = None if self.features is None else copy.deepcopy(self.features).to("meta")
        model = twin.trainee(Autoencoder(self.config), self.critic_channels).to("meta")
        moved: dict[str, Any] = {
            field.name: value.to("meta")
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), Tensor)
        }
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            torch.stack(list(twin.losses(model, replace(batch, **moved)).values())).sum().backward()
        return float(counter.get_total_flops())

    def prepare(self, batch: PictureBatch, device: Any) -> PictureBatch:
        """Move the pictures and draw their noise, each from its own seed."""
        B, _, height, width = batch.pixels.shape
        down = self.config.down_factor
        shape = (self.config.latent_channels, height // down, width // down)
        level, noise, sample = [], [], []
        for seed in batch.seeds:
            generator = torch.Generator().manual_seed(seed)
            level.append(torch.rand((), generator=generator) * self.gamma)
            noise.append(torch.randn(shape, generator=generator))
            sample.append(torch.randn(shape, generator=generator))
        if self.features is not None:
            self.features.to(device)
        return replace(
            batch,
            pixels=batch.pixels.to(device),
            level=torch.stack(level).view(B, 1, 1, 1).to(device),
            noise=torch.stack(noise).to(device),
            sample=None if self.config.deterministic else torch.stack(sample).to(device),
        )

    def counts(self, batch: PictureBatch) -> dict[str, float]:
        """Every part is a sum over the pictures."""
        return dict.fromkeys(self.loss_weights, float(len(batch.pixels)))

    def losses(self, model: TokenizerModel, batch: PictureBatch) -> dict[str, Tensor]:
        """Sums over pictures of the parts that have a weight."""
        output, mean, logvar = model(batch, self.decoder_only)
        parts = reconstruction_parts(output, batch.pixels)
        if "perceptual" in self.loss_weights and self.features is not None:
            parts["perceptual"] = self.features.distance(output, batch.pixels)
        if "kl" in self.loss_weights:
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
            parts["kl"] = divergence.mean((1, 2, 3))
        if self.adversarial:
            assert model.critic is not None
            parts["critic"] = critic_loss(model.critic, output, batch.pixels)
            parts["adversarial"] = adversarial_loss(model.critic, output)
            if batch.step < self.adversarial_from:
                parts["adversarial"] = parts["adversarial"].detach()
        return {name: parts[name].sum() for name in self.loss_weights}


def _check(
    weights: dict[str, float], gamma: float, config: AutoencoderConfig, decoder_only: bool
) -> None:
    for name, value in weights.items():
        if name not in PARTS:
            raise ValueError(f"unknown part '{name}' of the loss; choose from {', '.join(PARTS)}")
        if not value >= 0:
            raise ValueError(f"the weight of '{name}' must not be negative, it is {value}")
    if not any(weights.get(name, 0) > 0 for name in ("l1", "l2", "perceptual")):
        raise ValueError("one of l1, l2 and perceptual needs a weight, or nothing ties the colours")
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, it is {gamma}")
    if weights.get("kl", 0) > 0 and (config.deterministic or decoder_only):
        raise ValueError("kl trains an encoder that is not deterministic; leave it out here")
