"""Changes that fade in from the border of a mask inwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from nextstep.image.masks import feathered, paste

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def test_change_grows_evenly_from_the_border() -> None:
    mask = np.zeros((11, 11), bool)
    mask[2:9, 2:9] = True
    found = feathered(mask, 2)
    assert found[5].tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3, 0, 0])
    assert (feathered(mask, 0) == mask).all()
    assert (feathered(np.ones((4, 4), bool), 9) == 1).all(), "a picture's edge is no border"


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 6))
def test_shares_follow_the_distance_to_what_stays(mask: np.ndarray, width: int) -> None:
    outside = np.argwhere(~mask)
    for (row, column), share in np.ndenumerate(feathered(mask, width)):
        away = np.abs(outside - (row, column)).max(axis=1).min() if len(outside) else 99
        assert share == pytest.approx(min(1.0, away / (width + 1)))


@settings(max_examples=60, deadline=None)
@given(MASKS, st.integers(0, 6), st.integers(0, 2**31))
def test_pixels_outside_stay_and_pixels_deep_inside_are_new(
    mask: np.ndarray, width: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (2, *mask.shape, 3), np.uint8)
    new, old = map(Image.fromarray, values)
    made = np.asarray(paste(new, old, mask, width)).astype(int)
    share = feathered(mask, width)
    assert (made[~mask] == values[1][~mask]).all()
    assert (made[share == 1] == values[0][share == 1]).all()
    low, high = values.astype(int).min(0), values.astype(int).max(0)
    assert ((low <= made) & (made <= high)).all()
