"""The detector on true scenes: backgrounds, drawings, boxes, signs, and whole tasks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nextstep.errors import ModelFileError
from nextstep.evaluate.world.answering import Truth
from nextstep.evaluate.world.background import background_of
from nextstep.evaluate.world.boxes import foreground, groups, tightened
from nextstep.evaluate.world.candidates import looks_like_sign
from nextstep.evaluate.world.detector import Detector, shipped_detector
from nextstep.evaluate.world.network import (
    SIGN_HEIGHT,
    SIGN_WIDTH,
    DetectorNetwork,
    SignReader,
    fold_norms,
    sign_cuts,
    spelled,
    with_norms,
)
from nextstep.evaluate.world.questions import questions
from nextstep.evaluate.world.scoring import Scorer
from nextstep.evaluate.world.templates import bank, match
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Background, Scene, SceneItem, Sign, render
from nextstep.world.vocabulary import COLOURS, STYLES


def test_every_background_is_recognised() -> None:
    box = [(40, 40, 88, 88)]
    for first in COLOURS:
        for second in COLOURS:
            background = Background(first, None if second == first else second)
            scene = Scene(background, (SceneItem("dog face", "noto", size=0.36),))
            picture = render(scene)
            noisy = picture + np.random.default_rng(0).normal(0, 12, picture.shape)
            for shown in (picture, noisy.clip(0, 255).astype(np.uint8)):
                assert background_of(shown, box) == background.colours
    stripes = np.indices((128, 128, 3))[0] // 8 % 2 * 255
    assert background_of(stripes.astype(np.uint8), []) == ()


@pytest.mark.parametrize("free", [0, 1, 2])
def test_background_is_found_where_a_box_leaves_few_columns(free: int) -> None:
    background = Background("blue")
    shown = render(Scene(background))
    assert background_of(shown, [(0, 0, 128 - 4 - free, 128)]) == background.colours


def test_drawings_are_recognised_by_their_pixels() -> None:
    rng = random.Random(3)
    right = 0
    nobody_knows = np.zeros(len(bank().drawn), np.float32)
    for _ in range(20):
        name, style = rng.choice(list(world_objects())), rng.choice(STYLES)
        tint = rng.choice(("red", "blue", None))
        item = SceneItem(name, style, rng.uniform(0.3, 0.7), 0.5, rng.uniform(0.3, 0.5), tint=tint)
        scene = Scene(Background("green", "white"), (item,))
        behind = render(Scene(scene.background))
        box = np.array(item.box(128), float) + np.array([1.0, -1.0, 0.5, 1.0])
        found = match(render(scene), behind, [box], nobody_knows, 0.0005)
        assert set(found) == set(STYLES)
        best = min(found.values(), key=lambda fit: fit.cost).drawn
        right += (best.name, best.style, best.tint) == (name, style, tint)
    assert right >= 18


def test_boxes_by_pixels() -> None:
    left, right = (
        SceneItem("bomb", "noto", 0.25, 0.5, 0.3),
        SceneItem("dog face", "noto", 0.7, 0.5, 0.4),
    )
    scene = Scene(Background("white"), (left, right))
    apart = foreground(render(scene), render(Scene(scene.background)))
    for item in scene.items:
        box = np.array(item.box(128), float)
        off = box + np.array([3.0, -2.0, -3.0, 4.0])
        assert np.abs(tightened(apart >= 26, off) - box).max() <= 2
    guesses = np.array([item.box(128) for item in scene.items], float)
    found = sorted(groups(apart, guesses), key=lambda group: float(group.box[0]))
    assert [group.members for group in found] == [[0], [1]]
    alone = groups(apart, guesses[:0])
    assert len(alone) == 2
    assert groups(np.zeros_like(apart), guesses) == []


def test_signs_are_known_by_paper_and_frame() -> None:
    for colour in COLOURS:
        sign = Sign("HELLO", height=0.3)
        picture = render(Scene(Background(colour), sign=sign))
        assert looks_like_sign(picture, np.array(sign.box(128), float))
        item = SceneItem("t-shirt", "mono", tint="gray")
        picture = render(Scene(Background(colour), (item,)))
        assert not looks_like_sign(picture, np.array(item.box(128), float))


def test_norms_fold_away_exactly() -> None:
    torch.manual_seed(0)
    for network, shape in ((DetectorNetwork(), (2, 3, 128, 128)), (SignReader(), (2, 1, 48, 128))):
        with_norms(network)
        inputs = torch.randn(shape)
        network.train()
        for _ in range(3):
            network(inputs)
        network.eval()
        before = network(inputs)
        fold_norms(network)
        after = network(inputs)
        if isinstance(before, dict):
            assert all(torch.allclose(before[k], after[k], atol=1e-3) for k in before)
            assert before["name"].shape == (2, 301, 16, 16)
        else:
            assert torch.allclose(before, after, atol=1e-3)
        assert not any("norm" in name for name in network.state_dict())


def test_signs_are_cut_out_and_spelled() -> None:
    pixels = torch.full((1, 3, 128, 128), -0.5)
    pixels[:, :, 40:70, 10:110] = 1.0
    cuts = sign_cuts(pixels, torch.tensor([[10.0, 40.0, 110.0, 70.0]]))
    assert cuts.shape == (1, 1, SIGN_HEIGHT, SIGN_WIDTH)
    assert torch.isclose(cuts, torch.ones(())).sum() == 100 * 30
    assert sign_cuts(pixels, torch.tensor([[-20.0, -9.0, -3.0, -2.0]])).abs().sum() == 0
    path = torch.tensor([[0, 3, 3, 0, 1, 0, 20, 20, 20, 0, 20]])
    logits = torch.nn.functional.one_hot(path, 27).float().transpose(1, 2)
    assert spelled(logits) == ["CATT"]


@pytest.mark.parametrize(
    ("tasks", "least"),
    [
        (("single", "two_objects", "counting", "colours", "position", "attributes", "sizes"), 0.9),
        (("add", "replace", "move", "resize", "style", "next_state", "story", "recall"), 0.9),
        (("words", "change_word"), 0.8),
    ],
)
def test_true_scenes_are_judged_right(tasks: tuple[str, ...], least: float) -> None:
    scorer, scores = Scorer(shipped_detector(), 128), []
    for task in tasks:
        for split in ("seen", "held_out_styles"):
            asked = questions(task, split, 2 if len(tasks) < 3 else 1, seed=5)
            answers = [answer.outputs for answer in Truth(128).answer(asked)]
            scores += [verdict.score for verdict in scorer.judge(asked, answers)]
    assert np.mean(scores) >= least


def test_pictures_of_another_size_are_seen_too() -> None:
    scene = Scene(Background("blue"), (SceneItem("lemon", "noto", 0.3, 0.5, 0.4),))
    (detections,) = shipped_detector().detect([render(scene, 256)])
    assert [obj.name for obj in detections.objects] == ["lemon"]
    assert detections.background == ("blue",)
    assert detections.style == "noto"
    assert shipped_detector().detect([]) == []


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read as the scorer"):
        Detector.open(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of that kind")
    with pytest.raises(ModelFileError, match="cannot be read as the scorer"):
        Detector.open(tmp_path / "bad.safetensors")
