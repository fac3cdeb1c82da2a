"""LPIPS and Frechet distance by the networks of the literature, from their TorchScript files.

Two files are known everywhere: `vgg16.pt`, whose outputs are LPIPS features (Zhang et al. 2018,
arXiv 1801.03924, VGG variant), and `inception-2015-12-05.pt`, the Inception of FID (Heusel et al.
2017, arXiv 1706.08500). Neither ships here. Distances by other networks have other names.

Legend: B pictures, D features.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextstep.errors import NextStepError


class ScriptNet:
    """A TorchScript network on pictures of 0 to 255.

    Args:
        path: of the file.
        device: where it runs.
        options: arguments that its authors' own scripts give.

    Raises:
        NextStepError: when the file is missing or no TorchScript.
    """

    def __init__(self, path: Path, device: str = "cpu", **options: Any) -> None:
        try:
            with warnings.catch_warnings():
                # These files exist in this format alone, so its age is nothing to act on.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.net = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise NextStepError(f"{path} cannot be read as TorchScript: {reason}") from None
        self.options, self.device = options, device

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features [B, D] in fp64 of pixels [B, 3, H, W] in [-1, 1], rounded to 8 bits."""
        bytes_ = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
        found: Tensor = self.net(bytes_.to(self.device), **self.options)
        return found.flatten(1).double().cpu()


def lpips_net(path: Path, device: str = "cpu") -> ScriptNet:
    """`vgg16.pt`, whose squared feature differences sum to LPIPS."""
    return ScriptNet(path, device, resize_images=False, return_lpips=True)


def inception_net(path: Path, device: str = "cpu") -> ScriptNet:
    """`inception-2015-12-05.pt`, with 2,048 features of a picture."""
    return ScriptNet(path, device, return_features=True)


class Moments:
    """Mean and covariance of features that come one after another."""

    def __init__(self) -> None:
        self.count, self.total, self.products = 0, torch.zeros(0), torch.zeros(0)

    def add(self, features: Tensor) -> None:
        """Take up features [B, D]."""
        if not self.count:
            D = features.shape[1]
            self.total = torch.zeros(D, dtype=torch.float64)
            self.products = torch.zeros(D, D, dtype=torch.float64)
        self.count += len(features)
        self.total += features.sum(0)
        self.products += features.T @ features

    @property
    def mean(self) -> Tensor:
        """[D]"""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """[D, D], with the divisor n - 1."""
        outer = self.total[:, None] * self.total[None] / self.count
        return (self.products - outer) / max(1, self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two normal distributions."""
    apart = (first.mean - second.mean).square().sum()
    one, two = first.covariance, second.covariance
    # The product of two covariances has real eigenvalues of 0 or more, up to rounding.
    values = torch.linalg.eigvals(one @ two).real.clamp(min=0)
    return float(apart + one.trace() + two.trace() - 2 * values.sqrt().sum())
