"""Choosing text ids."""

from __future__ import annotations

import math

import pytest
import torch

from nextstep.engine.text_sampling import NucleusChoice, text_choice
from nextstep.errors import NextStepError


def test_choices() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0, -9.0])
    assert NucleusChoice(1.0, 0.5, 0)(logits) == 1
    drawn = {NucleusChoice(1.0, 0.99, seed)(logits) for seed in range(60)}
    assert {1, 2} <= drawn
    assert 3 not in drawn
    assert NucleusChoice(1.0, 0.9, 5)(logits) == NucleusChoice(1.0, 0.9, 5)(logits)


@pytest.mark.parametrize("temperature", [-1.0, math.inf, math.nan])
def test_a_temperature_is_a_finite_number(temperature: float) -> None:
    with pytest.raises(NextStepError, match="temperature must be a number from 0 on"):
        text_choice(0, 0, temperature, 0.9)


def test_any_finite_temperature_draws_an_id() -> None:
    """At the largest all ids are as likely; fp32 has no number for it."""
    logits = torch.tensor([0.0, 3.0, 2.0, -9.0])
    drawn = {text_choice(0, place, 1e300, 1.0)(logits) for place in range(60)}
    assert drawn == {0, 1, 2, 3}
    assert text_choice(0, 0, 1e-300, 1.0)(logits) == 1
