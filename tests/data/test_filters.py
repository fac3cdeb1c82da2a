"""What leaves a sample out."""

from __future__ import annotations

import random
from math import inf
from typing import Any

import pytest

from nextstep.data.filters import Filters
from nextstep.errors import NextStepError


def keeps(values: dict[str, Any], *sizes: tuple[int, int], **numbers: float) -> bool:
    return Filters.from_mapping(values).keep(sizes, numbers)


@pytest.mark.parametrize(
    ("values", "kept", "left_out"),
    [
        ({"height": 64}, [(1, 64)], [(999, 63)]),
        ({"width": 64}, [(64, 1)], [(63, 999)]),
        ({"area": 4096}, [(64, 64), (9999, 9999)], [(64, 63)]),
        ({"area": [100, 400]}, [(10, 10), (20, 20)], [(20, 21), (10, 9)]),
        ({"aspect_ratio": 2}, [(20, 10), (10, 20)], [(21, 10), (10, 21)]),
        ({}, [(1, 9000)], []),
    ],
)
def test_bounds_on_pictures(
    values: dict[str, Any], kept: list[tuple[int, int]], left_out: list[tuple[int, int]]
) -> None:
    assert all(keeps(values, size) for size in kept)
    assert not any(keeps(values, size) for size in left_out)


def test_pictures_of_one_sample_are_judged_together() -> None:
    pair = (100, 40), (40, 100)  # smallest sides 40 x 40, worst aspect 2.5
    assert keeps({"area": [1600, 1600], "aspect_ratio": 2.5}, *pair)
    assert not keeps({"area": 1601}, *pair)
    assert not keeps({"aspect_ratio": 2.4}, *pair)
    assert keeps({"area": 4096}), "plain text has no pictures to judge"


def test_numbers_from_zero_up_are_least_values_and_below_zero_largest_absolute_ones() -> None:
    assert keeps({"aesthetic": 5}, aesthetic=5.0)
    assert not keeps({"aesthetic": 5}, aesthetic=4.9)
    assert keeps({"skew": -0.3}, skew=-0.3)
    assert keeps({"skew": -0.3}, skew=0.1)
    assert not keeps({"skew": -0.3}, skew=0.31)
    assert not keeps({"aesthetic": 0}, other=1.0), "a sample without the number is left out"


def test_keywords_leave_out_their_share() -> None:
    filters = Filters.from_mapping({"keywords": {"Watermark": 0.9, "logo": 1, "cat": 0.0}})
    rng = random.Random(0)
    drops = sum(filters.drops("a watermark here", rng) for _ in range(5000))
    assert abs(drops / 5000 - 0.9) < 0.02
    assert filters.drops("a LOGO", rng)
    assert not any(filters.drops("a cat and a dog", rng) for _ in range(200))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": "tall"}, "filter height must be a number"),
        ({"area": [1, 2, 3]}, "a least and a most"),
        ({"area": [5, 2]}, "area from 5"),
        ({"keywords": ["logo"]}, "every word its share"),
        ({"keywords": {"logo": 2}}, "keyword 'logo' is a share"),
        ({"aesthetic": True}, "filter aesthetic must be a number"),
        ({"aspect_ratio": 0.5}, "aspect_ratio is at least 1"),
    ],
)
def test_bad_filters_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NextStepError, match=message):
        Filters.from_mapping(values)


def test_the_released_form_is_read() -> None:
    filters = Filters.from_mapping({"area": 65536, "aspect_ratio": 6, "clip": 0.2})
    assert filters == Filters(area=(65536, inf), aspect_ratio=6, numbers={"clip": 0.2})
