"""Prompts in one pass: left padding reaches nothing."""

from __future__ import annotations

import torch

from nextstep.engine.backends.torch import left_pad, padded_positions


def test_padding_does_not_reach_the_state() -> None:
    ids, valid = left_pad([[7, 8], [9, 10, 11, 12]], 1)
    assert ids.tolist() == [[1, 1, 7, 8], [9, 10, 11, 12]]
    positions, mask = padded_positions(valid)
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert mask is not None
    assert mask[0, 0, 2].tolist() == [False, False, True, False]
    assert mask[0, 0, 0].tolist() == [True, False, False, False]
    assert padded_positions(torch.ones(2, 3, dtype=torch.bool))[1] is None
