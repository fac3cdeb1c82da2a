"""Patchify, token norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextstep.vae.latents import normalise_latents, patchify, token_norm, unpatchify


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 5)
)
def test_patchify_is_undone(B: int, R: int, K: int, patch: int, C: int) -> None:
    latents = torch.randn(B, C, R * patch, K * patch)
    tokens = patchify(latents, patch)
    assert tokens.shape == (B, R * K, C * patch * patch)
    assert torch.equal(unpatchify(tokens, (R, K), patch), latents)


def test_order_is_raster_and_channel_major() -> None:
    latents = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    tokens = patchify(latents)
    # Token 4 is row 1, column 1; value c*4 + dy*2 + dx.
    for c in range(2):
        for dy in range(2):
            for dx in range(2):
                assert tokens[0, 4, c * 4 + dy * 2 + dx] == latents[0, c, 2 + dy, 2 + dx]


def test_odd_sides_and_wrong_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        patchify(torch.zeros(1, 4, 3, 4))
    with pytest.raises(ValueError, match="do not fill"):
        unpatchify(torch.zeros(1, 6, 16), (2, 2))


def test_token_norm() -> None:
    tokens = token_norm(torch.randn(3, 5, 64) * 7 + 2)
    assert torch.allclose(tokens.mean(-1), torch.zeros(3, 5), atol=1e-5)
    assert torch.allclose(tokens.var(-1, unbiased=False), torch.ones(3, 5), atol=1e-3)
    latents = torch.randn(2, 16, 4, 4)
    assert torch.allclose(patchify(normalise_latents(latents)), token_norm(patchify(latents)))
