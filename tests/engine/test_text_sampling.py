"""Choosing text ids."""

from __future__ import annotations

import torch

from nextstep.engine.text_sampling import NucleusChoice


def test_choices() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0, -9.0])
    assert NucleusChoice(1.0, 0.5, 0)(logits) == 1
    drawn = {NucleusChoice(1.0, 0.99, seed)(logits) for seed in range(60)}
    assert {1, 2} <= drawn
    assert 3 not in drawn
    assert NucleusChoice(1.0, 0.9, 5)(logits) == NucleusChoice(1.0, 0.9, 5)(logits)
