"""The image tokenizer through the kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep.kernels import build
from nextstep.vae import kernel_maps
from nextstep.vae.autoencoder import Autoencoder
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.kernel_maps import KernelMaps, normalise_tokens
from nextstep.vae.latents import token_norm
from nextstep.vae.tokenizer import ImageTokenizer

needs_kernels = pytest.mark.skipif(not build.is_available(), reason="needs the kernels")
WIDTHS = ((16, 32), (32, 16, 48), (64, 80))


def network(widths: tuple[int, ...], latents: int = 16, layers: int = 1) -> Autoencoder:
    """Made-up weights, norms not all 1 and 0."""
    torch.manual_seed(0)
    config = AutoencoderConfig(
        block_channels=widths, layers_per_block=layers, norm_groups=8, latent_channels=latents
    )
    made = Autoencoder(config).requires_grad_(False).eval()
    for part in made.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.weight.uniform_(0.5, 1.5)
            part.bias.uniform_(-0.5, 0.5)
    return made


def tokenizer(dtype: torch.dtype = torch.float32) -> ImageTokenizer:
    made = network(WIDTHS[0])
    return ImageTokenizer(made.config, made).to(dtype)


@needs_kernels
@settings(max_examples=12)
@given(
    st.sampled_from(WIDTHS), st.integers(1, 9), st.integers(1, 9), st.sampled_from((3, 16)),
    st.integers(1, 2),
)  # fmt: skip
def test_both_directions_are_the_network_s(
    widths: tuple[int, ...], rows: int, columns: int, latents: int, layers: int
) -> None:
    """Maps of odd sides too; against the same in fp64."""
    own = network(widths, latents, layers)
    small = torch.randn(2, latents, rows, columns)
    large = torch.randn(2, 3, rows * 4, columns * 4)
    for part, x in ((own.decoder, small), (own.encoder, large)):
        made = KernelMaps(part)(x)
        right = part.double()(x.double())
        part.float()
        assert made.shape == right.shape
        assert (made - right).abs().max() < 2e-5 * right.abs().max().clamp(min=1)


@needs_kernels
def test_picture_has_the_bytes_it_has_alone_with_any_number_of_threads() -> None:
    own = network(WIDTHS[1])
    before = torch.get_num_threads()
    for part, x in (
        (own.decoder, torch.randn(3, 16, 6, 10)), (own.encoder, torch.randn(3, 3, 40, 56)),
    ):  # fmt: skip
        maps = KernelMaps(part)
        try:
            torch.set_num_threads(1)
            alone = torch.cat([maps(one[None]) for one in x])
            torch.set_num_threads(3)
            assert torch.equal(maps(x), alone)
        finally:
            torch.set_num_threads(before)


@needs_kernels
def test_places_far_from_zero_are_normalised_well() -> None:
    """Group norm of numbers whose mean is a thousand times their spread."""
    norm = torch.nn.GroupNorm(4, 32)
    x = torch.randn(1, 32, 9, 11) + 1000
    made = kernel_maps.PackedNorm(norm)(x[0].permute(1, 2, 0).contiguous(), silu=False)
    right = norm.double()(x.double())[0].permute(1, 2, 0)
    assert (made - right).abs().max() < 1e-3  # a step of fp32 at 1000 is 6e-5


@needs_kernels
def test_tokenizer_follows_weights_that_change() -> None:
    own, latents = tokenizer(), torch.randn(1, 16, 4, 4)
    before = own.decode(latents)
    own.autoencoder.decoder.conv_out.bias.add_(0.25)
    assert torch.allclose(own.decode(latents), (before + 0.25).clamp(-1, 1), atol=1e-5)
    own.autoencoder.decoder.conv_out = network(WIDTHS[0]).decoder.conv_out
    assert torch.equal(own.decode(latents), before)


@needs_kernels
def test_encoding_is_normalised_like_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    own, pixels = tokenizer(), torch.rand(2, 3, 16, 32) * 2 - 1
    made = own.encode(pixels)
    monkeypatch.setattr(build, "is_available", lambda: False)
    assert not own.uses_kernels
    assert torch.allclose(made, own.encode(pixels), atol=1e-5)
    assert torch.allclose(normalise_tokens(made, 1e-6), token_norm(made), atol=1e-5)


def test_bf16_and_narrow_networks_go_through_torch() -> None:
    assert not tokenizer(torch.bfloat16).uses_kernels
    assert not kernel_maps.fits(AutoencoderConfig(block_channels=(16, 24)))
    assert tokenizer(torch.bfloat16).decode(torch.randn(1, 16, 4, 4)).shape == (1, 3, 8, 8)
