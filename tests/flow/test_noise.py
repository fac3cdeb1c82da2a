"""A picture's noise is its own."""

from __future__ import annotations

import pytest
import torch

from nextstep.flow.noise import AHEAD, KeyedNoise, picture_key


def read(keys: list[tuple[int, int]], tokens: int = 4) -> torch.Tensor:
    source = KeyedNoise(keys, draws=3, size=64)
    return torch.stack([source.token(i) for i in range(tokens)])


def test_neighbours_and_order_change_nothing() -> None:
    alone = read([(7, 0)])
    together = read([(1, 0), (7, 0), (7, 1)])
    assert torch.equal(together[:, :, 1], alone[:, :, 0])
    swapped = read([(7, 1), (7, 0)])
    assert torch.equal(swapped[:, :, 1], alone[:, :, 0])


def test_pictures_differ() -> None:
    both = read([(7, 0), (7, 1)])
    assert not torch.equal(both[:, :, 0], both[:, :, 1])
    keys = {picture_key(seed, index) for seed in range(50) for index in range(50)}
    assert len(keys) == 2500
    assert all(0 <= key < 2**63 for key in keys)


def test_draws_are_standard_normal() -> None:
    draws = read([(s, 0) for s in range(32)], tokens=32)
    assert abs(float(draws.mean())) < 0.01
    assert abs(float(draws.std()) - 1) < 0.01


@pytest.mark.parametrize(("draws", "size"), [(1, 64), (3, 64), (1, 16), (2, 8), (3, 20), (1, 4)])
def test_draws_are_those_of_one_token_after_another(draws: int, size: int) -> None:
    """However many are made in one call."""
    keys = [(3, 1), (4, 0)]
    source = KeyedNoise(keys, draws, size)
    generators = [torch.Generator().manual_seed(picture_key(*key)) for key in keys]
    for index in range(2 * AHEAD + 1):
        alone = [torch.randn(draws, size, generator=g, dtype=torch.float64) for g in generators]
        assert torch.equal(source.token(index), torch.stack(alone, 1).float())
