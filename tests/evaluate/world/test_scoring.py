"""The truth scores full marks, anything else does not, and interruptions lose nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from nextstep.errors import NextStepError
from nextstep.evaluate.world.answering import Answer, ModelAnswerer, Truth
from nextstep.evaluate.world.card import card, comparison, table
from nextstep.evaluate.world.questions import WorldQuestion, asked_parts, chosen, questions
from nextstep.evaluate.world.run import Plan, evaluate, read_scores, write_verdicts
from nextstep.evaluate.world.scoring import Scorer, psnr, widened
from nextstep.evaluate.world.sheets import RIGHT, WRONG, failure_sheet, write_answers
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.scenes import Background, Scene, render
from nextstep.world.splits import SPLITS
from nextstep.world.tasks import TASKS
from tests.evaluate.world.fakes import SIZE, FakePipeline, PerfectEye

PAIRS = chosen()


def judged(asked: list[WorldQuestion], pipeline: FakePipeline) -> list[float]:
    detector = PerfectEye()
    for question in asked:
        detector.learn(question.example.scenes)
    answers = ModelAnswerer(pipeline, SIZE).answer(asked)  # type: ignore[arg-type]
    scorer = Scorer(detector, SIZE)  # type: ignore[arg-type]
    return [v.score for v in scorer.judge(asked, [a.outputs for a in answers])]


@pytest.mark.parametrize("task", [name for name in TASKS if name != "plain"])
def test_the_truth_is_right_in_every_split(task: str) -> None:
    for name, split in PAIRS:
        if name == task:
            asked = questions(task, split, 4)
            assert judged(asked, FakePipeline(asked)) == [1.0] * 4, split


@pytest.mark.parametrize(
    "task",
    ["single", "counting", "move", "fill", "turns", "story", "next_state", "recall",
     "read_caption", "read_change"],
)  # fmt: skip
def test_the_truth_about_something_else_is_wrong(task: str) -> None:
    asked = questions(task, "seen", 8)
    other = dict(zip([q.key for q in asked], asked[1:] + asked[:1], strict=True))
    scores = judged(asked, FakePipeline(asked, lambda question: other[question.key]))
    assert np.mean(scores) <= 0.15


@pytest.mark.parametrize("task", ["move", "fill", "colourise", "recolour", "remove", "turns",
                                  "background", "style", "change_word", "skin_tone"])  # fmt: skip
def test_a_picture_left_as_it_was_is_no_edit(task: str) -> None:
    asked = questions(task, "seen", 6)

    def unchanged(question: WorldQuestion) -> WorldQuestion:
        source = question.example.parts[0]
        parts = tuple(
            replace(part, scene=source.scene)
            if isinstance(part, ImagePart) and isinstance(source, ImagePart)
            else part
            for part in question.example.parts
        )
        return replace(question, example=replace(question.example, parts=parts))

    assert judged(asked, FakePipeline(asked, unchanged)) == [0.0] * 6


def test_a_turned_thing_is_told_by_pixels() -> None:
    for question in questions("next_state", "seen", 60):
        example = question.example
        for place in question.asked:
            part = example.parts[place]
            assert isinstance(part, ImagePart) and part.kept is not None
            before = example.parts[part.kept]
            assert isinstance(before, ImagePart)
            flips = [[item.flip for item in shown.scene.items] for shown in (before, part)]
            if flips[0] != flips[1] and len(flips[0]) == len(flips[1]):
                scorer = Scorer(PerfectEye(), SIZE)  # type: ignore[arg-type]
                same = render(before.scene, SIZE)
                assert scorer._unchanged(before.scene, part.scene, same)
                assert not scorer._unchanged(before.scene, part.scene, render(part.scene, SIZE))
                return
    pytest.fail("nothing turned round in sixty samples")


def test_an_edit_must_keep_the_rest() -> None:
    asked = questions("remove", "seen", 3)
    detector, outputs = PerfectEye(), []
    for question in asked:
        part = question.example.parts[-1]
        assert isinstance(part, ImagePart)
        detector.learn(question.example.scenes)
        good = render(part.scene, SIZE)
        spoilt = np.clip(good.astype(int) + 40, 0, 255).astype(np.uint8)
        detector.detections[spoilt.tobytes()] = detector.detections[good.tobytes()]
        outputs.append((spoilt,))
    verdicts = Scorer(detector, SIZE).judge(asked, outputs)  # type: ignore[arg-type, arg-type]
    for verdict in verdicts:
        assert verdict.score == 0
        assert verdict.measures == {"asked": 1.0, "kept": 0.0}
        assert "kept at" in verdict.reasons[0]
    # What no image tokenizer can keep is not asked for.
    lenient = Scorer(
        detector, SIZE, lambda picture: np.clip(picture + 40.0, 0, 255).astype(np.uint8)
    )  # type: ignore[arg-type]
    assert [v.score for v in lenient.judge(asked, outputs)] == [1.0] * 3  # type: ignore[arg-type]


def test_what_is_asked() -> None:
    for task, split in PAIRS:
        for question in questions(task, split, 5):
            parts, asked = question.example.parts, question.asked
            assert asked == tuple(sorted(set(asked) & set(question.example.targets)))
            if task == "story":
                first = parts[1]
                assert isinstance(first, ImagePart) and first.spec is not None
                assert (1 in asked) == bool(first.spec.style and first.spec.background)
                assert asked[-1] == max(i for i, p in enumerate(parts) if isinstance(p, ImagePart))
            elif task in ("turns", "next_state"):
                assert all(
                    isinstance(parts[i], ImagePart) and parts[i].kept is not None for i in asked
                )  # type: ignore[union-attr]
            else:
                assert asked == asked_parts(question.example)[-1:]
    assert questions("single", "seen", 9)[:4] == questions("single", "seen", 4)
    assert questions("single", "seen", 2, seed=1) != questions("single", "seen", 2)
    assert {split for _, split in PAIRS} == set(SPLITS) - {"train"}
    assert chosen(["read_word"], ["held_out_words"]) == [("read_word", "held_out_words")]
    for bad, why in (
        ((["nothing"], None), "no task"),
        ((None, ["train"]), "no test split"),
        ((["plain"], None), "none of these"),
        ((["single"], ["held_out_words"]), "none of these"),
    ):
        with pytest.raises(NextStepError, match=why):
            chosen(*bad)


class Stopped(KeyboardInterrupt):
    pass


class Counting:
    """The truth, which breaks off after some answers."""

    def __init__(self, most: int) -> None:
        self.most, self.answered = most, 0

    def answer(self, asked: list[WorldQuestion]) -> list[Answer]:
        self.answered += len(asked)
        if self.answered > self.most:
            raise Stopped
        return Truth(SIZE).answer(asked)


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    plan = Plan.of(["single", "read_count", "move"], ["seen"], count=3)
    detector = PerfectEye()
    for pair in plan.pairs:
        for question in plan.questions(*pair):
            detector.learn(question.example.scenes)
    scorer, folder = Scorer(detector, SIZE), tmp_path / "run"  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        evaluate(plan, Counting(7), scorer, folder, "one")  # type: ignore[arg-type]
    rest, told = Counting(9), list[int]()
    results = evaluate(plan, rest, scorer, folder, "one", lambda *a: told.append(a[2]))  # type: ignore[arg-type]
    assert rest.answered == 3
    assert sum(told) == 9
    assert set(results.scores().values()) == {1.0}
    assert len(results.scores()) == 9
    more = replace(plan, count=4)
    for pair in more.pairs:
        detector.learn(more.questions(*pair)[-1].example.scenes)
    rest = Counting(9)
    evaluate(more, rest, scorer, folder, "one")  # type: ignore[arg-type]
    assert rest.answered == 3
    for who, other in (("two", plan), ("one", replace(plan, seed=1))):
        with pytest.raises(NextStepError, match="another evaluation"):
            evaluate(other, rest, scorer, folder, who)  # type: ignore[arg-type]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(NextStepError, match="exists already"):
        evaluate(plan, rest, scorer, tmp_path / "full", "one")  # type: ignore[arg-type]


def test_card_table_and_sheet(tmp_path: Path) -> None:
    plan = Plan.of(["words", "read_count", "turns"], ["seen"], count=4)
    detector = PerfectEye()
    for pair in plan.pairs:
        for question in plan.questions(*pair):
            detector.learn(question.example.scenes)
    blank = render(Scene(Background("gray")), SIZE)
    detector.learn([Scene(Background("gray"))])

    class HalfRight:
        def answer(self, asked: list[WorldQuestion]) -> list[Answer]:
            made = Truth(SIZE).answer(asked)
            wrong = [tuple("no" if isinstance(o, str) else blank for o in a.outputs) for a in made]
            return [
                Answer(wrong[i] if one.index % 2 else made[i].outputs, 2.0)
                for i, one in enumerate(asked)
            ]

    scorer = Scorer(detector, SIZE)  # type: ignore[arg-type]
    results = evaluate(plan, HalfRight(), scorer, tmp_path / "run", "half")
    told = card(results, {"model": "half"})
    json.dumps(told)
    assert told["tasks"]["words"]["seen"]["mean"] == 0.5
    assert told["tasks"]["words"]["seen"]["seconds_per_picture"] == 2.0
    assert sum(p["n"] for p in told["tasks"]["words"]["seen"]["parts"].values()) == 4
    assert told["tasks"]["turns"]["seen"]["measures"]["all steps right"] == 0.5
    assert "seconds_per_picture" not in told["tasks"]["read_count"]["seen"]
    assert told["groups"]["drawing"]["seen"]["mean"] == 0.5
    assert table(told).row_count >= 6
    sheet = failure_sheet(results.failures, SIZE)
    assert sheet is not None
    assert sheet.height > SIZE
    assert failure_sheet([], SIZE) is None
    written = write_answers(tmp_path / "run", results, 3)
    assert [path.stem for path in written] == [f"{task}-{split}" for task, split in plan.pairs]
    words = Image.open(written[0]).convert("RGB")
    frames = [words.getpixel((place * (SIZE + 8), 0)) for place in range(3)]
    assert frames == [ImageColor.getrgb(colour) for colour in (RIGHT, WRONG, RIGHT)]
    write_verdicts(tmp_path / "verdicts.jsonl", results)
    assert read_scores(tmp_path / "verdicts.jsonl") == results.scores()
    perfect = dict.fromkeys(results.scores(), 1.0)
    differences = comparison(perfect, results.scores())
    assert differences["all"]["mean"] == 0.5
    assert differences["all"]["low"] > 0
    with pytest.raises(NextStepError, match="verdicts"):
        read_scores(tmp_path / "none.jsonl")


def test_known_figures() -> None:
    assert psnr(np.zeros(4), np.full(4, 25.5)) == pytest.approx(20.0)
    assert psnr(np.ones(3), np.ones(3)) == 99.0
    region = np.zeros((9, 9), bool)
    region[4, 4] = True
    assert widened(region, 2).sum() == 25
    region[0, 0] = True
    assert widened(region, 2).sum() == 25 + 9 - 1
    assert Plan.of(["single"], None, 5).identity() == {"seed": 0, "size": 128, "edition": "full"}
    with pytest.raises(NextStepError, match="at least 1"):
        Plan.of(count=0)
    with pytest.raises(NextStepError, match="multiple of 16"):
        Plan.of(size=40)


def test_texts_are_kept_as_they_were_said(tmp_path: Path) -> None:
    plan = Plan.of(["read_word"], ["seen"], count=2)
    evaluate(plan, Truth(SIZE), Scorer(PerfectEye(), SIZE), tmp_path / "r", "t")  # type: ignore[arg-type]
    kept = json.loads((tmp_path / "r/answers/read_word/seen/00000.json").read_text())
    part = plan.questions("read_word", "seen")[0].example.parts[-1]
    assert isinstance(part, TextPart)
    assert kept["outputs"] == [{"text": part.answers[0]}]
