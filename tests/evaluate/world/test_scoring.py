"""The truth scores full marks, anything else does not, and interruptions lose nothing."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from rich.console import Console

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.generation import Run, generate
from nextstep.evaluate.benchmarks.report import make_report, worst_items, write_report
from nextstep.evaluate.benchmarks.scoring import score
from nextstep.evaluate.benchmarks.statistics import Row
from nextstep.evaluate.benchmarks.world import World, WorldJudge, begin, earlier_rows
from nextstep.evaluate.judges.protocol import Judge
from nextstep.evaluate.world.answering import ModelAnswerer
from nextstep.evaluate.world.card import table
from nextstep.evaluate.world.questions import WorldQuestion, asked_parts, chosen, questions
from nextstep.evaluate.world.run import Plan
from nextstep.evaluate.world.scoring import Scorer, psnr, widened
from nextstep.evaluate.world.sheets import RIGHT, WRONG, write_answers
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.scenes import Background, Scene, render
from nextstep.world.splits import SPLITS
from nextstep.world.tasks import TASKS
from tests.evaluate.benchmarks.fakes import FakeJudge
from tests.evaluate.world.fakes import SIZE, FakePipeline, PerfectEye

PAIRS = chosen()


def judged(asked: list[WorldQuestion], pipeline: FakePipeline) -> list[float]:
    eye = PerfectEye()
    for question in asked:
        eye.learn(question.example.scenes)
    answers = ModelAnswerer(pipeline, SIZE).answer(asked)  # type: ignore[arg-type]
    scorer = Scorer(eye, SIZE)  # type: ignore[arg-type]
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


def test_a_mirrored_object_is_recognised_by_pixels() -> None:
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
    eye, outputs = PerfectEye(), []
    for question in asked:
        part = question.example.parts[-1]
        assert isinstance(part, ImagePart)
        eye.learn(question.example.scenes)
        good = render(part.scene, SIZE)
        spoilt = np.clip(good.astype(int) + 40, 0, 255).astype(np.uint8)
        eye.detections[spoilt.tobytes()] = eye.detections[good.tobytes()]
        outputs.append((spoilt,))
    verdicts = Scorer(eye, SIZE).judge(asked, outputs)  # type: ignore[arg-type, arg-type]
    for verdict in verdicts:
        assert verdict.score == 0
        assert verdict.measures == {"asked": 1.0, "kept": 0.0}
        assert "kept at" in verdict.reasons[0]
    # What no image tokenizer can keep is not asked for.
    lenient = Scorer(eye, SIZE, lambda picture: np.clip(picture + 40.0, 0, 255).astype(np.uint8))  # type: ignore[arg-type]
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


def plan_pipeline(plan: Plan, eye: PerfectEye) -> FakePipeline:
    """One that gives the true answers; the eye knows their scenes."""
    asked = [one for pair in plan.pairs for one in plan.questions(*pair)]
    for one in asked:
        eye.learn(one.example.scenes)
    return FakePipeline(asked)


def judge(eye: PerfectEye) -> dict[str, Judge]:
    return {"scorer": WorldJudge(Scorer(eye, SIZE))}  # type: ignore[arg-type]


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    plan = Plan.of(["single", "read_count", "move"], ["seen"], count=3)
    eye, folder = PerfectEye(), tmp_path / "run"
    pipeline = plan_pipeline(plan, eye)
    run, settings = begin(plan, folder, pipeline, "one")

    def stop(count: int) -> None:
        if len(list(run.images.rglob("*.json"))) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        generate(run, pipeline, settings, stop)
    kept = {path: path.stat().st_mtime_ns for path in run.images.rglob("*.json")}
    assert len(kept) == 4
    run, settings = begin(plan, folder, pipeline, "one")
    told: list[int] = []
    generate(run, pipeline, settings, told.append)
    assert told == [4, 1, 1, 1, 1, 1]
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())
    scored = score(run, judge(eye), "scorer")
    assert [one.measured.values["score"] for one in scored] == [1.0] * 9


def test_a_run_may_be_asked_more_and_only_the_new_is_answered(tmp_path: Path) -> None:
    plan = Plan.of(["single", "read_count"], ["seen"], count=3)
    eye, folder = PerfectEye(), tmp_path / "run"
    run, settings = begin(plan, folder, plan_pipeline(plan, eye), "one")
    generate(run, plan_pipeline(plan, eye), settings)
    assert len(score(run, judge(eye), "scorer")) == 6
    more = Plan.of(["single", "move"], ["seen"], count=4)
    run, settings = begin(more, folder, plan_pipeline(more, eye), "one")
    assert [item.key for item in run.missing()] == [
        "single/seen/00003", *(f"move/seen/0000{n}" for n in range(4)),
    ]  # fmt: skip
    generate(run, plan_pipeline(more, eye), settings)
    opened = Run.open(folder, World())
    assert [item.key for item in opened.items] == [item.key for item in run.items]
    assert opened.manifest["items"] == 8
    told: list[int] = []
    score(opened, judge(eye), "scorer", told.append)
    assert told == [3, 5]
    assert set(make_report(opened, "scorer").metrics) == {
        "all", "drawing, seen", "editing, seen", "single/seen", "move/seen",
        "move/seen: asked", "move/seen: kept",
    }  # fmt: skip


def test_another_evaluation_in_the_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    plan = Plan.of(["single"], ["seen"], count=2)
    pipeline, folder = plan_pipeline(plan, PerfectEye()), tmp_path / "run"
    begin(plan, folder, pipeline, "one")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for changed in (replace(plan, seed=1), replace(plan, answers="drawn"), replace(plan, size=64)):
        with pytest.raises(NextStepError, match=r"differs in data.*choose another folder"):
            begin(changed, folder, pipeline, "one")
    pipeline.model_hash = "another"
    with pytest.raises(NextStepError, match="differs in model_hash"):
        begin(plan, folder, pipeline, "one")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(NextStepError, match="exists already"):
        begin(plan, tmp_path / "full", pipeline, "one")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def half_right(plan: Plan, folder: Path, eye: PerfectEye) -> Run:
    """A run whose answers with odd numbers are wrong."""
    pipeline = plan_pipeline(plan, eye)
    run, settings = begin(plan, folder, pipeline, "half")
    generate(run, pipeline, settings)
    blank = render(Scene(Background("gray")), SIZE)
    eye.learn([Scene(Background("gray"))])
    for item in run.items:
        question = item.record["question"]
        path = run.images / f"{item.key}.json"
        told = json.loads(path.read_text())
        for output in told["outputs"]:
            if question.index % 2 and "picture" in output:
                Image.fromarray(blank).save(path.parent / output["picture"])
            elif question.index % 2:
                output["text"] = "no"
        path.write_text(json.dumps(told | {"seconds": 2.0}))
    return run


def test_card_table_and_sheets(tmp_path: Path) -> None:
    plan = Plan.of(["words", "read_count", "turns"], ["seen"], count=4)
    eye = PerfectEye()
    run = half_right(plan, tmp_path / "run", eye)
    scored = score(run, judge(eye), "scorer")
    perfect = [Row(one.item.key, one.item.group, {"score": 1.0}) for one in scored]
    report = make_report(run, "scorer", {"perfect": perfect[:-1]})
    assert {"card.json", "report.md", "worst.png"} <= {p.name for p in write_report(report)}
    told = json.loads((run.folder / "card.json").read_text())
    assert told["tasks"]["words"]["seen"]["mean"] == 0.5
    assert told["tasks"]["words"]["seen"]["n"] == 4
    assert told["tasks"]["words"]["seen"]["seconds_per_picture"] == 2.0
    assert sum(p["n"] for p in told["tasks"]["words"]["seen"]["parts"].values()) == 4
    assert told["tasks"]["turns"]["seen"]["measures"]["all steps right"] == 0.5
    assert "seconds_per_picture" not in told["tasks"]["read_count"]["seen"]
    assert told["groups"]["drawing"]["seen"]["mean"] == 0.5
    assert told["groups"]["drawing"]["seen"]["n"] == 4
    assert told["differences"]["all"]["n"] == 11
    assert told["differences"]["words/seen"]["mean"] == -0.5
    assert told["differences"]["all"]["high"] < 0
    assert table(told).row_count >= 6
    # Long names are folded on narrow screens, not cut.
    console = Console(width=80, file=io.StringIO())
    told["tasks"] = {"read_count": {"held_out_phrasings": told["tasks"]["read_count"]["seen"]}}
    console.print(table(told))
    assert "held_out_" in console.file.getvalue() and "…" not in console.file.getvalue()
    # Of all that is wrong the sheet shows some of every task, with the reasons.
    worst = [one.item.group for one in worst_items(scored)]
    assert set(worst[:3]) == {"words/seen", "read_count/seen", "turns/seen"}
    assert all(one.measured.evidence["reasons"] for one in worst_items(scored)[:6])
    written = write_answers(run, scored, 3)
    assert [path.stem for path in written] == [f"{task}-{split}" for task, split in plan.pairs]
    words = Image.open(written[0]).convert("RGB")
    frames = [words.getpixel((place * (SIZE + 8), 0)) for place in range(3)]
    assert frames == [ImageColor.getrgb(colour) for colour in (RIGHT, WRONG, RIGHT)]


def test_missing_and_damaged_answers_count_as_wrong_and_are_listed(tmp_path: Path) -> None:
    plan = Plan.of(["single", "read_count"], ["seen"], count=2)
    eye = PerfectEye()
    pipeline = plan_pipeline(plan, eye)
    run, settings = begin(plan, tmp_path / "run", pipeline, "one")
    generate(run, pipeline, settings)
    (run.images / "single/seen/00001-0.png").write_bytes(b"no picture")
    (run.images / "read_count/seen/00000.json").unlink()
    scored = score(run, judge(eye), "scorer")
    assert [one.measured.values["score"] for one in scored] == [1.0, 0.0, 0.0, 1.0]
    failures = make_report(run, "scorer").to_dict()["failures"]
    assert set(failures) == {"single/seen/00001", "read_count/seen/00000"}
    with pytest.raises(NextStepError, match="does not know the emoji world"):
        score(run, {"scorer": FakeJudge()}, "other")


def test_verdicts_of_an_earlier_version_can_be_compared_with(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"key": "single/seen/00001", "score": 0.5, "reasons": []}\n')
    assert earlier_rows(path) == [Row("single/seen/00001", "single/seen", {"score": 0.5})]
    path.write_text('{"key": 3, "score": 0.5}\n')
    with pytest.raises(NextStepError, match="cannot be read as verdicts"):
        earlier_rows(path)


def test_plans_are_read_back_and_bad_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    plan = Plan.of(["drawing"], ["seen", "held_out_pairs"], 7, 3, 64, "core-48", "decoded")
    path.write_text(plan.to_json())
    assert Plan.read(path) == plan
    assert World().set_hash(path) == replace(plan, count=9, pairs=plan.pairs[:1]).identity()
    good = json.loads(plan.to_json())
    for change, why in (
        ({"pairs": [["single", "held_out_words"]]}, "none of these"),
        ({"pairs": [["nothing", "seen"]]}, "no task"),
        ({"pairs": []}, "no plan"),
        ({"count": "many"}, "no plan"),
        ({"colour": 3}, "no plan"),
        ({"answers": "me"}, "answers come from"),
        ({"edition": "core-1"}, "edition"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(NextStepError, match=why):
            Plan.read(path)
    path.write_text("[]")
    with pytest.raises(NextStepError, match="no plan"):
        Plan.read(path)


def test_known_figures() -> None:
    assert psnr(np.zeros(4), np.full(4, 25.5)) == pytest.approx(20.0)
    assert psnr(np.ones(3), np.ones(3)) == 99.0
    region = np.zeros((9, 9), bool)
    region[4, 4] = True
    assert widened(region, 2).sum() == 25
    region[0, 0] = True
    assert widened(region, 2).sum() == 25 + 9 - 1
    with pytest.raises(NextStepError, match="at least 1"):
        Plan.of(count=0)
    with pytest.raises(NextStepError, match="multiple of 16"):
        Plan.of(size=40)


def test_answers_are_kept_as_they_were_made(tmp_path: Path) -> None:
    plan = Plan.of(["read_word", "single"], ["seen"], count=2)
    pipeline = plan_pipeline(plan, PerfectEye())
    run, settings = begin(plan, tmp_path / "r", pipeline, "t")
    generate(run, pipeline, settings)
    tree = sorted(str(p.relative_to(run.images)) for p in run.images.rglob("*") if p.is_file())
    assert tree == [
        "read_word/seen/00000.json", "read_word/seen/00001.json",
        "single/seen/00000-0.png", "single/seen/00000.json",
        "single/seen/00001-0.png", "single/seen/00001.json",
    ]  # fmt: skip
    kept = json.loads((run.images / "read_word/seen/00000.json").read_text())
    part = plan.questions("read_word", "seen")[0].example.parts[-1]
    assert isinstance(part, TextPart)
    assert kept["outputs"] == [{"text": part.answers[0]}]
    question = plan.questions("single", "seen")[1]
    with Image.open(run.images / "single/seen/00001-0.png") as picture:
        assert picture.info["prompt"] == question.example.prompt(question.asked[0])
        assert (np.asarray(picture) == render(question.example.scenes[0], SIZE)).all()
