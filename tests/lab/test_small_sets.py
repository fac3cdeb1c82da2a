"""`nextstep lab small-sets`: sets nest, keep objects out, and are judged by the word's style."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nextstep.evaluate.world.detector import shipped_detector
from nextstep.evaluate.world.scoring import Scorer
from nextstep.finetune.data import captioned
from nextstep.lab.small_sets import JUDGED, SmallSets
from nextstep.lab.study import Scale
from nextstep.lab.style_set import WORD, shots, write_set
from nextstep.world.scenes import render


def test_sets_nest_and_share_no_object_with_what_is_asked() -> None:
    small, large, asked = (
        shots(10, 1, False), shots(1000, 1, False), shots(200, 1, True),
    )  # fmt: skip
    assert large[:10] == small and shots(10, 2, False) != small
    assert len({shot.scene for shot in large}) == 1000
    assert not {shot.label for shot in large} & {shot.label for shot in asked}
    assert all(WORD in shot.caption for shot in (*large, *asked))


def test_true_pictures_are_judged_right_and_another_style_wrong() -> None:
    found = shots(4, 0, True)
    questions = [shot.question(number) for number, shot in enumerate(found)]
    scorer = Scorer(shipped_detector(JUDGED), 128)
    right = [(np.asarray(render(shot.scene, 128)),) for shot in found]
    assert [v.score for v in scorer.judge(questions, right)] == [1.0] * 4
    for shot in found:
        object.__setattr__(shot.scene.items[0], "style", "noto")
    wrong = [(np.asarray(render(shot.scene, 128)),) for shot in found]
    assert [v.score for v in scorer.judge(questions, wrong)] == [0.0] * 4


def test_a_written_set_is_read_as_captions_beside_pictures(tmp_path: Path) -> None:
    found = shots(3, 0, False)
    write_set(tmp_path, found, 32)
    write_set(tmp_path, found, 32)  # a unit that goes on finds its set
    captions = [item.record["caption"] for item in captioned(tmp_path)]
    assert captions == [shot.caption for shot in found]


def test_steps_are_those_of_the_defaults_and_a_share_of_them() -> None:
    study, scale = SmallSets(), Scale()
    cost = {arm.name: study.cost(arm, scale) for arm in study.arms(scale)}
    assert cost["untrained"].positions == 0
    assert cost["lora-100"].positions == cost["full-100"].positions == 625 * 8 * 96
    assert cost["lora-1000-short"].positions == 600 * 8 * 96
