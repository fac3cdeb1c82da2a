"""`nextstep lab context`: where answers lie, stretched positions, and what decides the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nextstep.lab.context import FACTOR, Back, Context, backs, groups, parted, stretched
from nextstep.lab.study import MeasuredUnit, Scale, StudyResults
from nextstep.model.backbone import rotary_angles
from nextstep.pipeline import NextStepPipeline


def test_every_item_is_known_by_distance_and_number_of_pictures() -> None:
    found = backs(40)
    assert len(found) == 40
    assert {back.pictures for back in found.values()} == {4, 5, 6, 7, 8}
    assert all(4 <= back.distance <= back.pictures for back in found.values())


def test_items_are_parted_by_where_their_answer_lies() -> None:
    assert groups(Back(4, 4)) == ["near", "few pictures", "distance 4"]
    assert groups(Back(7, 8)) == ["far", "many pictures", "distance 7"]
    found = parted({"score@wide": {"a": 1.0, "b": 0.0}}, {"a": Back(4, 4), "b": Back(7, 8)})
    assert found["score near@wide"] == {"a": 1.0} and found["score far@wide"] == {"b": 0.0}


def test_stretched_positions_turn_the_slowest_pair_by_as_much_over_a_longer_context(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = stretched(tiny_folder, tmp_path / "wide", FACTOR)
    plain, wide = (json.loads((one / "config.json").read_text()) for one in (tiny_folder, folder))
    d = plain["head_dim"]
    last = torch.tensor([[0, 100]]), torch.tensor([[0, int(100 * FACTOR)]])
    before, after = (
        rotary_angles(at, d, config["rope_theta"])[1][0, 0, 1, d // 2 - 1]
        for at, config in zip(last, (plain, wide), strict=True)
    )
    assert float(after) == pytest.approx(float(before), rel=1e-3)
    assert wide["max_position_embeddings"] == FACTOR * plain["max_position_embeddings"]
    NextStepPipeline.from_pretrained(folder)
    assert stretched(tiny_folder, folder, FACTOR) == folder


def results(near: float, far: float) -> StudyResults:
    arms = Context().arms(Scale())
    items = {
        f"score {name}": {f"{n:03}": float(n < 200 * share) for n in range(200)}
        for name, share in (("near", near), ("far", far))
    }
    found = {(arm.name, seed): MeasuredUnit(items=items) for arm in arms for seed in (0, 1)}
    return StudyResults(arms, found, Scale())


@pytest.mark.parametrize(
    ("near", "far", "verdict"),
    [
        (0.9, 0.9, "reproduced"), (0.9, 0.5, "contradicted"), (0.1, 0.1, "not reproduced"),
        (0.9, 0.8, "not reproduced"),
    ],
)  # fmt: skip
def test_verdict_compares_far_with_near(near: float, far: float, verdict: str) -> None:
    assert Context().conclude(results(near, far)).verdict == verdict
