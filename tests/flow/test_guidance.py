"""Branches are decided once, and any scales give the released formula."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextstep.flow.guidance import (
    CONDITIONAL,
    IMAGE_ONLY,
    SCHEDULES,
    UNCONDITIONAL,
    GuidanceSettings,
    combine,
)

scales = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-2, 20))


def released(settings: GuidanceSettings, index: int, count: int, v: dict, images: bool):
    text, image = settings.at(index, count)
    if not images or settings.image_guidance == 1:
        return v[UNCONDITIONAL] + text * (v[CONDITIONAL] - v[UNCONDITIONAL])
    return (
        v[UNCONDITIONAL]
        + image * (v[IMAGE_ONLY] - v[UNCONDITIONAL])
        + text * (v[CONDITIONAL] - v[IMAGE_ONLY])
    )


@given(scales, scales, st.sampled_from(SCHEDULES), st.booleans(), st.integers(0, 8))
def test_any_scales_equal_the_released_formula(
    text: float, image: float, schedule: str, images: bool, index: int
) -> None:
    settings = GuidanceSettings(text, image, schedule)
    branches = settings.branches(9, images)
    generator = torch.Generator().manual_seed(0)
    every = {
        name: torch.randn(2, 5, generator=generator, dtype=torch.float64)
        for name in (CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL)
    }
    mixed = combine(
        torch.stack([every[name] for name in branches]),
        branches,
        settings.weights(index, 9, images),
    )
    assert torch.allclose(mixed, released(settings, index, 9, every, images), atol=1e-9)


def test_only_needed_branches_run() -> None:
    def names(text: float, image: float, images: bool) -> list[str]:
        return GuidanceSettings(text, image).branches(4, images)

    assert names(1.0, 1.0, False) == [CONDITIONAL]
    assert names(1.0, 3.0, False) == [CONDITIONAL]  # no picture: image guidance means nothing
    assert names(0.5, 1.0, False) == [CONDITIONAL, UNCONDITIONAL]
    assert names(7.5, 1.0, True) == [CONDITIONAL, UNCONDITIONAL]  # as the release does
    assert names(1.0, 1.0, True) == [CONDITIONAL]
    assert names(2.0, 0.0, True) == [CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL]
    assert names(1.0, 2.0, True) == [CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL]
    assert names(3.0, 3.0, True) == [CONDITIONAL, UNCONDITIONAL]
    assert names(7.5, 1.5, True) == [CONDITIONAL, IMAGE_ONLY, UNCONDITIONAL]


def test_schedules() -> None:
    falling = GuidanceSettings(5.0, 3.0, "linear")
    assert falling.at(0, 8) == (5.0, 3.0)
    assert falling.at(7, 8) == (1.5, 1.25)
    rising = GuidanceSettings(5.0, 1.0, "linear-rising")
    assert rising.at(0, 8) == (2.5, 1.0)
    assert rising.at(8, 8) == (5.0, 1.0)
    assert GuidanceSettings(5.0, 1.0).at(3, 8) == (5.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scales_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="guidance must be a finite number"):
        GuidanceSettings(bad)
    with pytest.raises(ValueError, match="image guidance must be a finite number"):
        GuidanceSettings(1.0, bad)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="cosine"):
        GuidanceSettings(1.0, 1.0, "cosine")
