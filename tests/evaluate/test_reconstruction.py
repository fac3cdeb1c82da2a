"""Reconstruction figures on a tokenizer whose errors are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextstep.errors import NextStepError
from nextstep.evaluate.fidelity import Moments, frechet_distance, inception_net, lpips_net
from nextstep.evaluate.reconstruction import measure
from nextstep.vae.perceptual import FeatureNet
from nextstep.vae.tokenizer import ImageTokenizer
from tests.cli.test_commands import nextstep
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


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(60, 200, (height, width, 3), dtype=np.uint8)
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
    assert list(off.rounded())[:4] == ["pictures", "psnr", "ssim", "feature_distance"]


def test_large_pictures_are_shrunk() -> None:
    tokenizer = OffBy(0.0)
    measure(tokenizer, [noise(128, 64)], max_pixels=32 * 64)
    assert tokenizer.kept.shape[-2:] == (64, 32)


def test_nothing_to_measure() -> None:
    with pytest.raises(NextStepError, match="no pictures"):
        measure(OffBy(0.0), [])


class Sums(torch.nn.Module):
    """Stands for a published TorchScript: the mean of every channel, and of the upper half."""

    def forward(
        self, x: Tensor, resize_images: bool = False, return_lpips: bool = False,
        return_features: bool = False,
    ) -> Tensor:  # fmt: skip
        upper = x[:, :, : x.shape[2] // 2].mean(dim=[2, 3])
        return torch.cat([x.mean(dim=[2, 3]), upper], dim=1) / 255


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    torch.jit.script(Sums()).save(str(path))
    return path


def test_lpips_is_the_squared_distance_of_its_networks_features(script: Path) -> None:
    off = measure(OffBy(0.1), [noise(48, 64)], lpips=lpips_net(script))
    # All six features move by 0.1 of a range of 2, up to the rounding to 8 bits.
    assert off.lpips == pytest.approx(6 * 0.05**2, rel=0.05)
    assert measure(OffBy(0.0), [noise(48, 64)], lpips=lpips_net(script)).lpips == 0.0
    assert off.rfid is None


def test_rfid_is_the_distance_of_both_sets(script: Path) -> None:
    pictures = [noise(32, 32, seed) for seed in range(12)]
    same = measure(OffBy(0.0), pictures, inception=inception_net(script))
    assert same.rfid == pytest.approx(0.0, abs=1e-9)
    # A shift of all pictures moves the means alone.
    off = measure(OffBy(0.1), pictures, inception=inception_net(script))
    assert off.rfid == pytest.approx(6 * 0.05**2, rel=0.05)


def test_frechet_distance_of_known_normals() -> None:
    generator = torch.Generator().manual_seed(0)
    narrow, wide = Moments(), Moments()
    for _ in range(20):
        draws = torch.randn(1000, 3, generator=generator, dtype=torch.float64)
        narrow.add(draws)
        wide.add(3 * draws + torch.tensor([2.0, 0, 0]))
    # |m|^2 = 4, and (3 - 1)^2 for each of three dimensions.
    assert frechet_distance(narrow, wide) == pytest.approx(4 + 3 * 4, rel=0.03)
    assert frechet_distance(wide, narrow) == pytest.approx(frechet_distance(narrow, wide))
    torch.testing.assert_close(wide.covariance, 9 * narrow.covariance)


def test_files_that_are_no_networks(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"no")
    with pytest.raises(NextStepError, match="cannot be read as TorchScript"):
        lpips_net(tmp_path / "net.pt")


def test_the_command_on_a_folder(
    tmp_path: Path, script: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "pictures/deep").mkdir(parents=True)
    for number in range(3):
        noise(40, 48, number).save(tmp_path / f"pictures/deep/{number}.png")
    ask = ("eval", "reconstruction", tmp_path / "pictures", "-m", "nano", "--size", 32)
    status, said, _ = nextstep(capsys, *ask, "--lpips", script, "--inception", script, "--json")
    told = json.loads(said)
    assert status == 0
    assert told["pictures"] == 3
    assert told["psnr"] > 5
    assert told["lpips"] > 0
    assert told["rfid"] > 0
    status, said, _ = nextstep(capsys, *ask, "--limit", 1)
    assert (status, "rfid" in said, "1 pictures" in said) == (0, False, True)
    (tmp_path / "none").mkdir()
    status, _, err = nextstep(capsys, "eval", "reconstruction", tmp_path / "none")
    assert (status, "no pictures" in err) == (2, True)
