"""Prompts in one pass, where left padding reaches nothing; rows of the pool stored together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nextstep.engine.backends import torch as backends
from nextstep.engine.backends.torch import TorchBackend, left_pad, padded_positions, stripes
from nextstep.engine.scheduler import draw
from nextstep.model.nextstep import NextStepModel
from tests.conftest import TINY, random_model
from tests.engine.test_scheduler import job


@pytest.fixture(scope="module")
def model() -> NextStepModel:
    return random_model(TINY)


def test_padding_does_not_reach_the_state() -> None:
    ids, valid = left_pad([[7, 8], [9, 10, 11, 12]], 1)
    assert ids.tolist() == [[1, 1, 7, 8], [9, 10, 11, 12]]
    positions, mask = padded_positions(valid)
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert mask is not None
    assert mask[0, 0, 2].tolist() == [False, False, True, False]
    assert mask[0, 0, 0].tolist() == [True, False, False, False]
    assert padded_positions(torch.ones(2, 3, dtype=torch.bool))[1] is None


def test_rows_of_equal_branches_are_stored_in_stripes() -> None:
    assert [rows for rows, _ in stripes([9, 9, 9])] == [slice(0, 3, 1)]
    assert [rows for rows, _ in stripes([9, 4, 9, 4])] == [slice(0, 3, 2), slice(1, 4, 2)]
    assert stripes(list(range(9))) == []  # too many
    assert stripes([9, 4, 9, 9, 4, 4, 9]) == []  # as many rows as an even stripe has, but uneven


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_stripes_hold_every_row_once_at_its_position(positions: list[int]) -> None:
    found = {
        row: position
        for rows, position in stripes(positions)
        for row in range(rows.start, rows.stop, rows.step)
    }
    assert not found or found == dict(enumerate(positions))
    assert sum(len(positions[rows]) for rows, _ in stripes(positions)) in (0, len(positions))


def test_stripes_change_no_byte(model: NextStepModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [job(number) for number in (3, 3, 5, 3)]
    together = draw(model, pictures, TorchBackend(model, block_rows=0))
    used = []
    monkeypatch.setattr(backends, "stripes", lambda positions: used.append(positions) or [])
    by_number = draw(model, pictures, TorchBackend(model, block_rows=0))
    assert used and all(map(torch.equal, together, by_number))
