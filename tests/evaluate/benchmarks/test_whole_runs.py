"""Every benchmark from its prompts to its report, with the shipped model and eight prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks import benchmark_class, generation, scoring
from nextstep.evaluate.benchmarks.base import EDIT, Item
from nextstep.evaluate.benchmarks.files import Claims
from nextstep.evaluate.benchmarks.generation import Run, Settings, generate, spread
from nextstep.evaluate.benchmarks.report import make_report, rows_of, write_report
from nextstep.evaluate.benchmarks.world import begin as begin_world
from nextstep.evaluate.judges.protocol import ScoredBox, UnavailableError
from nextstep.evaluate.world.run import Plan
from nextstep.pipeline import NextStepPipeline
from tests.evaluate.benchmarks.fakes import GOOD, FakeJudge
from tests.evaluate.benchmarks.official import SETS, SIZE, tree

SETTINGS = Settings(SIZE, batch_size=32, sampling={"reasoning": False})


@pytest.fixture(scope="module")
def nano() -> NextStepPipeline:
    return NextStepPipeline.from_pretrained("nano")


def begun(
    name: str, folder: Path, pipeline: NextStepPipeline, settings: Settings = SETTINGS
) -> Run:
    benchmark = benchmark_class(name)()
    data = folder / "set"
    path = data if data.exists() else SETS[name](data)
    if data.exists() and not benchmark.data_help.startswith("folder"):
        path = next(one for one in data.iterdir() if one.is_file())
    return Run.begin(folder / "run", benchmark, path, pipeline, "nano", settings)


def judge_for(name: str) -> FakeJudge:
    cup = ScoredBox("cup", 0.95, (2.0, 2.0, 20.0, 20.0))
    return FakeJudge(GOOD.get(name, ""), likely=0.75, found=[cup])


EXPECTED = {
    "geneval": 5 / 6, "geneval2": 75.0, "genai-bench": 0.75, "dpg-bench": 100.0, "wise": None,
    "wise-verified": None, "gedit": 7.0, "imgedit": 3.67, "unigenbench": 50.0,
    "unigenbench-zh": 50.0, "ueval": None,
}  # fmt: skip
"""The primary metric where the judge's answers settle it."""


@pytest.mark.parametrize("name", SETS)
def test_from_prompts_to_the_number(
    name: str, nano: NextStepPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MOST_TEXT", 3)
    monkeypatch.setattr(generation, "MOST_PICTURES", 1)
    run = begun(name, tmp_path, nano)
    told: list[int] = []
    generate(run, nano, SETTINGS, told.append)
    assert sum(told) == 8
    assert not run.missing()
    judge = judge_for(name)
    scored = scoring.score(run, dict.fromkeys(run.benchmark.roles, judge), "fake")
    assert len(scored) == 8
    if name != "ueval":  # the small model may not draw where it is not asked for a picture
        assert not any(one.measured.failures for one in scored)
    report = make_report(run, "fake", {"itself": rows_of(run, "fake")})
    files = {path.name for path in write_report(report)}
    assert files == {"report.json", "report.md", "report.png", "worst.png"}
    shown = json.loads((run.folder / "report.json").read_text())
    metric = shown["metrics"][run.benchmark.primary]
    if EXPECTED.get(name) is not None:
        assert metric["value"] == pytest.approx(EXPECTED[name], abs=0.01)
    notes = " ".join(shown["notes"])
    assert "not the complete official set" in notes
    assert "judged by fake" in notes
    assert all(one["value"] in (0.0, None) for one in shown["differences"]["itself"].values())
    page = (run.folder / "report.md").read_text()
    assert run.benchmark.primary in page
    for row in run.benchmark.published:
        assert row in page
    with Image.open(run.folder / "worst.png") as sheet:
        assert sheet.width > 128


def test_the_world_from_its_plan_to_the_number(nano: NextStepPipeline, tmp_path: Path) -> None:
    tasks = ["single", "remove", "next_state", "read_colour"]
    plan = Plan.of(tasks, ["seen"], count=2, edition="core-48")
    weights = {"model": "nano", "vae": None}
    run, settings = begin_world(plan, tmp_path / "run", nano, "nano", weights=weights)
    assert len(run.items) == 8
    generate(run, nano, settings)
    assert nano.vocabulary is not None
    scored = scoring.score(run, run.benchmark.own_judges(run.manifest, run.items), "world-scorer")
    assert not any(one.measured.failures for one in scored)
    report = make_report(run, "world-scorer", {"itself": rows_of(run, "world-scorer")})
    files = {path.name for path in write_report(report)}
    assert files == {"report.json", "report.md", "report.png", "worst.png", "card.json"}
    card = json.loads((run.folder / "card.json").read_text())
    assert set(card["tasks"]) == set(tasks)
    assert card["groups"]["drawing"]["seen"]["n"] == 2
    assert card["tasks"]["single"]["seen"]["mean"] >= 0.5
    assert all(one["mean"] == 0 for one in card["differences"].values())
    assert not [note for note in report.notes() if "officially" in note or "official set" in note]


def test_a_run_goes_on_where_it_stopped(nano: NextStepPipeline, tmp_path: Path) -> None:
    run = begun("wise", tmp_path / "a", nano)
    generate(run, nano, SETTINGS)
    whole = tree(run.images)
    other = begun("wise", tmp_path / "b", nano)
    stopped = KeyboardInterrupt()

    def stop(count: int) -> None:
        if count and len(list(other.images.glob("*.png"))) == 3:
            raise stopped

    with pytest.raises(KeyboardInterrupt):
        generate(other, nano, SETTINGS, stop)
    kept = {p.name: p.stat().st_mtime_ns for p in other.images.glob("*.png")}
    assert len(kept) == 3
    again = begun("wise", tmp_path / "b", nano, replace(SETTINGS, batch_size=1))
    generate(again, nano, replace(SETTINGS, batch_size=1))
    # The same pictures but for rounding, whatever was made together; what was there is left alone.
    assert set(tree(again.images)) == set(whole)
    for name in whole:
        with Image.open(run.images / name) as one, Image.open(again.images / name) as two:
            assert one.info == two.info
            apart = np.asarray(one).astype(int) - np.asarray(two)
            assert np.abs(apart).max() <= 2
    assert all((other.images / name).stat().st_mtime_ns == at for name, at in kept.items())


def test_another_run_in_the_folder_is_refused(nano: NextStepPipeline, tmp_path: Path) -> None:
    run = begun("wise", tmp_path, nano)
    with pytest.raises(NextStepError, match="differs in seed, settings, size"):
        begun("wise", tmp_path, nano, Settings(64, 1, sampling={"guidance": 3.0}))
    with pytest.raises(NextStepError, match="is a run of wise, not of geneval"):
        Run.open(run.folder, benchmark_class("geneval")())
    first = next((tmp_path / "set").iterdir())
    first.write_text(first.read_text() + " ")
    with pytest.raises(NextStepError, match="differs in data"):
        begun("wise", tmp_path, nano)
    with pytest.raises(NextStepError, match="is not the set that"):
        Run.open(run.folder, benchmark_class("wise")())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(NextStepError, match="exists already and is no run"):
        Run.begin(tmp_path / "other", run.benchmark, tmp_path / "set", nano, "nano", SETTINGS)
    with pytest.raises(NextStepError, match="holds no run"):
        Run.open(tmp_path, run.benchmark)


def test_items_of_another_living_process_are_left_to_it(
    nano: NextStepPipeline, tmp_path: Path
) -> None:
    run = begun("wise", tmp_path, nano)
    path = run.folder / "claims"
    # A process that holds the first two items until it is killed.
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, pathlib\n"
         "from nextstep.evaluate.benchmarks.files import Claims\n"
         f"with Claims(pathlib.Path({str(path)!r})) as claims:\n"
         "    print(claims.take(0), claims.take(1), flush=True)\n"
         "    sys.stdin.read()\n"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True True\n"
    generate(run, nano, SETTINGS)
    assert [item.key for item in run.missing()] == ["1", "2"]
    holder.kill()
    holder.wait()
    generate(run, nano, SETTINGS)
    assert not run.missing()
    with Claims(path) as claims:
        assert claims.take(0)
        claims.release(0)


def test_a_subset_is_spread_over_the_set() -> None:
    items = [Item(str(n), "", "") for n in range(10)]
    assert [item.key for item in spread(items, 3)] == ["0", "3", "6"]
    assert spread(items, 30) == spread(items, None) == items


def test_scores_go_on_and_follow_changed_pictures(nano: NextStepPipeline, tmp_path: Path) -> None:
    run = begun("wise", tmp_path, nano)
    generate(run, nano, SETTINGS)
    judge = judge_for("wise")
    scoring.score(run, {"judge": judge}, "fake")
    assert len(judge.asked) == 8
    scoring.score(run, {"judge": judge}, "fake")
    assert len(judge.asked) == 8
    # A line that a stop cut off is no verdict.
    path = run.folder / "scores/fake/items.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(NextStepError, match=r"1 of 8 items .* have no verdict"):
        make_report(run, "fake")
    scoring.score(run, {"judge": judge}, "fake")
    assert len(judge.asked) == 9
    (run.images / "1.png").unlink()
    with pytest.raises(NextStepError, match="such as 1; score it first"):
        make_report(run, "fake")
    scored = scoring.score(run, {"judge": judge}, "fake")
    assert len(judge.asked) == 9  # a missing picture is not asked about
    assert scored[0].measured.failures == ["picture 0 is missing or cannot be read"]
    report = make_report(run, "fake").to_dict()
    assert report["failures"] == {"1": ["picture 0 is missing or cannot be read"]}
    assert "1 items had failures" in " ".join(report["notes"])


def test_a_judge_that_is_gone_leaves_items_for_later(
    nano: NextStepPipeline, tmp_path: Path
) -> None:
    run = begun("wise", tmp_path, nano)
    generate(run, nano, SETTINGS)
    calls = 0

    def answers(_: str) -> str | BaseException:
        nonlocal calls
        calls += 1
        return GOOD["wise"] if calls <= 2 else UnavailableError("no answer in 8 tries")

    with pytest.raises(UnavailableError, match="6 of 8 items are not judged yet"):
        scoring.score(run, {"judge": FakeJudge(answers)}, "fake")
    assert calls < 8  # after three in a row it is not asked any more
    judge = judge_for("wise")
    scored = scoring.score(run, {"judge": judge}, "fake")
    assert len(judge.asked) == 6
    assert not any(one.measured.failures for one in scored)


def test_judges_are_named_and_kept_apart(nano: NextStepPipeline, tmp_path: Path) -> None:
    run = begun("gedit", tmp_path, nano)
    judges = {"judge": judge_for("gedit")}
    scoring.score(run, judges, "one")
    with pytest.raises(NextStepError, match="verdicts of other judges"):
        scoring.score(run, {"judge": FakeJudge(GOOD["gedit"], name="gpt-4.1")}, "one")
    scoring.score(run, {"judge": FakeJudge(GOOD["gedit"], name="gpt-4.1")}, "two")
    assert scoring.names_of_scores(run) == ["one", "two"]
    told = json.loads((run.folder / "scores/two/judges.json").read_text())
    assert told["roles"]["judge"]["is_official"]
    assert told["roles"]["judge"]["wording"] == "ours"
    notes = " ".join(make_report(run, "two").notes())
    assert "officially gpt" not in notes
    assert "worded by this project" in notes
    with pytest.raises(NextStepError, match="has no role 'painter'"):
        scoring.score(run, {"painter": judge_for("gedit")}, "x")
    with pytest.raises(NextStepError, match=r"needs a judge for .* .officially gpt-4.1"):
        scoring.score(run, {}, "x")
    with pytest.raises(NextStepError, match="no name for scores"):
        scoring.score(run, judges, "a/b")
    with pytest.raises(NextStepError, match="has no scores 'x'"):
        make_report(run, "x")


def test_results_of_the_official_scorer_are_reported(
    nano: NextStepPipeline, tmp_path: Path
) -> None:
    run = begun("wise", tmp_path, nano)
    generate(run, nano, SETTINGS)
    path = tmp_path / "scores_results.jsonl"
    line = {"prompt_id": 1, "consistency": 2, "realism": 2, "aesthetic_quality": 2}
    path.write_text(json.dumps(line) + "\n")
    scored = scoring.import_results(run, path, "official")
    scores = [one.measured.values["score"] for one in scored]
    assert scores == pytest.approx([1.0] + [0.0] * 7)
    report = make_report(run, "official")
    assert report.metrics["cultural"].value == pytest.approx(1 / 3)
    assert "verdicts of the official scorer" in " ".join(report.notes())
    path.write_text(json.dumps(line | {"prompt_id": 999}) + "\n")
    with pytest.raises(NextStepError, match="no results of this run's items"):
        scoring.import_results(run, path, "other")
    assert benchmark_class("gedit").kind == EDIT
