"""`nextstep lab paradigms`: what a picture costs, and that all arms are comparable."""

from __future__ import annotations

import pytest

from nextstep.lab.paradigms.measuring import QUANTIZER, positions_drawn
from nextstep.lab.paradigms.study import Paradigms
from nextstep.lab.study import Scale


def test_passes_of_the_backbone_are_counted() -> None:
    """ab2 with 12 steps asks 13 times, and a finished token is read once more to be kept."""
    assert positions_drawn("continuous", 16) == positions_drawn("discrete", 16) == 16
    assert positions_drawn("transfusion", 16) == positions_drawn("causal-diffusion", 16) == 224


def test_arms_have_backbones_of_one_size_and_equal_positions() -> None:
    study, scale = Paradigms(), Scale()
    costs = {arm.name: study.cost(arm, scale) for arm in study.arms(scale)}
    trained = [cost for name, cost in costs.items() if name != QUANTIZER]
    assert len({cost.positions for cost in trained}) == 1
    # Flow head and projectors against embedding and softmax of 4,375 codes.
    ours = costs["continuous"].parameters
    assert costs["transfusion"].parameters == pytest.approx(ours, rel=0.05)
    assert costs["discrete"].parameters == pytest.approx(ours, rel=0.25)
    assert costs["continuous-lm"].flops > costs["continuous"].flops > costs["transfusion"].flops
