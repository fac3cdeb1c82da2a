"""The critic of adversarial tokenizer training: a PatchGAN that judges every patch of a picture.

Structure after Isola et al. (arXiv 1611.07004), with GroupNorm in place of BatchNorm, so that the
verdict on a picture does not depend on its neighbours in the batch or on how ranks share them.

Legend: B pictures, H W pixels, h w patches.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

SLOPE = 0.2
INIT_STD = 0.02
GROUPS = 8


class Critic(nn.Module):
    """4x4 convolutions, each halving the resolution, then one value a patch.

    Args:
        channels: of every halving; three of them judge patches of 46x46 pixels.
        seed: of the fresh weights.

    Raises:
        ValueError: when a width cannot be grouped.
    """

    def __init__(self, channels: tuple[int, ...] = (64, 128, 256), seed: int = 0) -> None:
        super().__init__()
        if not channels or any(width < 1 or width % GROUPS for width in channels):
            raise ValueError(f"the critic's widths must be multiples of {GROUPS}, not {channels}")
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for inputs, outputs in itertools.pairwise(channels):
            layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
            layers += [nn.GroupNorm(GROUPS, outputs), nn.LeakyReLU(SLOPE)]
        layers.append(nn.Conv2d(channels[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=INIT_STD, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> verdicts [B, 1, h, w], high for real ones."""
        return self.layers(pixels)


def critic_loss(critic: Critic, output: Tensor, target: Tensor) -> Tensor:
    """What the critic learns from: hinge loss of real and made pictures, one number each: [B].

    No gradient reaches the network that made `output`.
    """
    real, made = critic(target).float(), critic(output.detach()).float()
    return 0.5 * (F.relu(1 - real) + F.relu(1 + made)).mean((1, 2, 3))


def adversarial_loss(critic: Critic, output: Tensor) -> Tensor:
    """What the maker of `output` learns from the critic, one number each: [B].

    The critic is read with constants in the place of its weights, so no gradient reaches them.
    """
    constants = {name: value.detach() for name, value in critic.named_parameters()}
    return -functional_call(critic, constants, (output,)).float().mean((1, 2, 3))
