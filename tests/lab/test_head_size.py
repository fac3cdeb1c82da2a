"""`nextstep lab head-size`: which arms differ in what, and what decides the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextstep.estimate.counting import count_parameters
from nextstep.lab.head_size import BASE, HEADS, HeadSize
from nextstep.lab.study import MeasuredUnit, Scale, StudyResults, StudyUnit
from nextstep.recipe.shapes import model_config


def test_heads_stand_in_about_the_published_proportions() -> None:
    """Published: 40M, 157M, 528M (arXiv 2508.10711 table 6)."""
    study, scale = HeadSize(), Scale()
    arms = {arm.name: arm for arm in study.arms(scale)}
    recipes = {name: study.recipe(arms[f"joint-{name}"], scale) for name in HEADS}
    heads = [count_parameters(one, model_config(one)).head for one in recipes.values()]
    assert heads[1] / heads[0] == pytest.approx(157 / 40, rel=0.2)
    assert heads[2] / heads[0] == pytest.approx(528 / 40, rel=0.2)


def test_backbones_are_half_and_double_and_heads_alike() -> None:
    study, scale = HeadSize(), Scale()
    arms = {arm.name: arm for arm in study.arms(scale)}
    counts = {}
    for name in (BASE, "backbone-half", "backbone-double"):
        recipe = study.recipe(arms[name], scale)
        counts[name] = count_parameters(recipe, model_config(recipe))
    base = counts[BASE].backbone
    assert counts["backbone-half"].backbone / base == pytest.approx(0.5, rel=0.01)
    assert counts["backbone-double"].backbone / base == pytest.approx(2, rel=0.01)
    assert len({one.head for one in counts.values()}) == 1


def test_frozen_arms_start_from_the_base_arm_of_their_seed_and_train_the_head_alone() -> None:
    study, scale = HeadSize(), Scale()
    arm = next(one for one in study.arms(scale) if one.name == "frozen-large")
    assert arm.needs == BASE
    unit = StudyUnit(arm, 1, Path("runs/lab"), scale)
    recipe = study.recipe(arm, scale, 1, study.further(unit))
    assert recipe.model is not None and recipe.model.fresh_head
    assert recipe.model.folder == "runs/lab/joint-base/seed-1/run/model"
    assert recipe.model.frozen("layers.3.mlp.up_proj.weight")
    assert not recipe.model.frozen("image_head.net.input_proj.weight")


def results(gains: dict[str, float]) -> StudyResults:
    """Losses of all arms with these gains from small to large head and half to double backbone."""
    losses = dict.fromkeys([arm.name for arm in HeadSize().arms(Scale())], 0.5)
    losses |= {
        "frozen-small": 0.5 + gains["head"],
        "joint-small": 0.5 + gains["head"],
        "backbone-half": 0.5 + gains["backbone"],
    }
    found = {
        (name, seed): MeasuredUnit(
            {"head parameters": 1e6, "backbone parameters": 1e6},
            {
                "im_loss": {f"{n:03}": loss + n / 500 for n in range(100)},
                "score": {f"{n:03}": n % 2 for n in range(100)},
            },
        )
        for name, loss in losses.items()
        for seed in (0, 1)
    }
    return StudyResults(HeadSize().arms(Scale()), found, Scale())


@pytest.mark.parametrize(
    ("head", "backbone", "verdict"),
    [(0.01, 0.1, "reproduced"), (0.08, 0.1, "not reproduced"), (0.1, 0.02, "contradicted")],
)
def test_verdict_compares_what_head_and_backbone_are_worth(
    head: float, backbone: float, verdict: str
) -> None:
    found = HeadSize().conclude(results({"head": head, "backbone": backbone}))
    assert found.verdict == verdict
