"""Rules of the benchmarks whose judge gives grades, on answers made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import Item, ItemOutput
from nextstep.evaluate.benchmarks.gedit import GEdit, at_area, read_scores
from nextstep.evaluate.benchmarks.imgedit import ImgEdit, grade_of
from nextstep.evaluate.benchmarks.imgedit import read_grades as read_edit_grades
from nextstep.evaluate.benchmarks.statistics import Row, estimates
from nextstep.evaluate.benchmarks.wise import Wise, WiseVerified, grades_values, read_grades
from nextstep.evaluate.judges.protocol import UnreadableError
from tests.evaluate.benchmarks.fakes import GOOD, FakeJudge
from tests.evaluate.benchmarks.official import SETS, lines, picture, write_csv, write_json

PICTURE = picture(0)


@pytest.mark.parametrize(
    ("answer", "grades"),
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", (2, 1, 0)),
        ("**Consistency**: 2\n**Realism**: 2\n**Aesthetic Quality**: 2", (2, 2, 2)),
        ("consistency 0\nrealism 0\naesthetic quality 0", (0, 0, 0)),
        ("Consistency\uff1a 1\nRealism\uff1a1\nAesthetic Quality\uff1a1", (1, 1, 1)),
        ("**Consistency: 2**\n**Realism: 1**\n**Aesthetic Quality: 1**", (2, 1, 1)),
        ("Realism: 1\nAesthetic Quality: 0\nConsistency: 2", (2, 1, 0)),
        # The last of each counts, so a judge may correct itself.
        ("Consistency: 0\nConsistency: 2\nRealism: 1\nAesthetic Quality: 1", (2, 1, 1)),
        ("Consistency: 2\nRealism: 1", None),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: 1", None),
        ("Consistency: 21\nRealism: 1\nAesthetic Quality: 1", None),
        ("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 1", None),
        ("Consistency: two\nRealism: 1\nAesthetic Quality: 1", None),
        ("I cannot grade this image.", None),
        ("", None),
    ],
)
def test_wise_answers(answer: str, grades: tuple[int, int, int] | None) -> None:
    if grades is None:
        with pytest.raises(UnreadableError):
            read_grades(answer)
    else:
        assert read_grades(answer) == grades


@pytest.mark.parametrize(
    ("grades", "score"),
    [
        ((2, 2, 2), 1.0), ((0, 0, 0), 0.0), ((1, 1, 1), 0.5), ((2, 0, 0), 0.7), ((0, 2, 0), 0.2),
        ((0, 0, 2), 0.1), ((1, 0, 0), 0.35), ((2, 1, 1), 0.85), ((1, 2, 2), 0.65),
        ((0, 1, 1), 0.15), ((2, 2, 0), 0.9), ((1, 1, 2), 0.55),
    ],
)  # fmt: skip
def test_wiscores(grades: tuple[int, int, int], score: float) -> None:
    assert grades_values(grades)["score"] == pytest.approx(score)


def test_wise_kinds_follow_from_the_numbers_of_prompts() -> None:
    kinds = [Wise.category(n) for n in (1, 400, 401, 567, 568, 700, 701, 800, 801, 900, 901, 1000)]
    assert kinds[::2] == kinds[1::2] == list(Wise.sizes)
    assert [WiseVerified.category(n) for n in (401, 520, 521, 1000)] == [
        "time", "time", "space", "chemistry",
    ]  # fmt: skip
    for number in (0, 1001):
        with pytest.raises(NextStepError, match="numbered from 1 to 1000"):
            Wise.category(number)
    assert sum(Wise.weights.values()) == sum(WiseVerified.weights.values()) == pytest.approx(1)
    assert not WiseVerified.published  # the paper's rows are of the other set


def test_wise_overall_weighs_the_kinds(tmp_path: Path) -> None:
    scores = {"cultural": 1.0, "time": 0.5, "space": 0.5, "biology": 0, "physics": 0}
    rows = [Row(kind, kind, {"score": score}) for kind, score in scores.items()]
    # Without chemistry there is no overall score, rather than a wrong one.
    assert math.isnan(estimates(rows, Wise().metrics, 20)["overall"].value)
    rows.append(Row("chemistry", "chemistry", {"score": 1.0}))
    assert estimates(rows, Wise().metrics, 20)["overall"].value == pytest.approx(
        0.4 + 0.167 / 2 + 0.133 / 2 + 0.1
    )
    assert estimates(rows, WiseVerified().metrics, 20)["overall"].value == pytest.approx(
        0.4 + 0.06 + 0.06 + 0.12
    )
    judge = FakeJudge(GOOD["wise"])
    benchmark = Wise()
    item = benchmark.read(SETS["wise"](tmp_path))[0]
    assert (item.key, item.group) == ("1", "cultural")
    found = benchmark.measure(item, ItemOutput([PICTURE]), {"judge": judge})
    assert found.values["score"] == pytest.approx(0.85)
    assert '"prompt 1"' in judge.asked[0][0]
    assert '"because"' in judge.asked[0][0]
    missing = benchmark.measure(item, ItemOutput([None]), {"judge": judge})
    assert missing.values == benchmark.lowest(item)
    assert len(missing.failures) == 1


def test_the_users_wording_takes_the_place_of_ours(tmp_path: Path) -> None:
    judge = FakeJudge(GOOD["wise"])
    benchmark = Wise("Official words: {prompt} ({explanation})")
    item = benchmark.read(SETS["wise"](tmp_path))[0]
    benchmark.measure(item, ItemOutput([PICTURE]), {"judge": judge})
    assert judge.asked[0][0] == "Official words: prompt 1 (because)"


def test_wise_results_of_the_official_scorer(tmp_path: Path) -> None:
    some = [
        {"prompt_id": 1, "consistency": 2.0, "realism": 1.0, "aesthetic_quality": 1.0},
        {"prompt_id": 2, "consistency": 999, "realism": 999, "aesthetic_quality": 999},
    ]
    lines(tmp_path / "a_scores_results.jsonl", some)
    lines(tmp_path / "b_scores_results.jsonl", [some[0] | {"prompt_id": 700}])
    found = Wise().read_results(tmp_path, [])
    assert set(found) == {"1", "2", "700"}
    assert found["1"].values["score"] == pytest.approx(0.85)
    assert (found["2"].values["score"], len(found["2"].failures)) == (0.0, 1)
    verified = lines(tmp_path / "c.jsonl", [{"prompt_id": 3, "score": 1}])
    assert WiseVerified().read_results(verified, [])["3"].values == {"score": 1.0}


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 1", 1), ("score: 0", 0), ("**Score:** 1", 1), ("Score = 0", 0), ("Score: 1\n", 1),
        ("Thus the score 1", 1), ("Score: 1. Score: 1", 1), ("Score: 1. Score: 0", None),
        ("Score: 2", None), ("1", None), ("Score: one", None), ("", None), ("Score: 10", None),
    ],
)  # fmt: skip
def test_verified_answers(answer: str, score: int | None) -> None:
    if score is None:
        with pytest.raises(UnreadableError):
            WiseVerified().read_answer(answer)
    else:
        assert WiseVerified().read_answer(answer) == {"score": score}


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ('{"score": [8, 7], "reasoning": "ok"}', (8, 7)),
        ('{"reasoning": "ok", "score": [0, 10]}', (0, 10)),
        ('```json\n{"score": [8, 7]}\n```', (8, 7)),
        ('Here: {"score": [8.5, 7]} as asked', (8.5, 7)),
        ('{"score": ["8", "7"]}', (8, 7)),
        ('{"score": [8]}', None),
        ('{"score": [8, 7, 6]}', None),
        ('{"score": [11, 7]}', None),
        ('{"score": [-1, 7]}', None),
        ('{"score": [8, NaN]}', None),
        ('{"score": "8"}', None),
        ('{"score": [8, 7]', None),
        ("8, 7", None),
        ("", None),
    ],
)
def test_viescore_answers(answer: str, scores: tuple[float, ...] | None) -> None:
    if scores is None:
        with pytest.raises(UnreadableError):
            read_scores(answer)
    else:
        assert read_scores(answer) == scores


def gedit_item(language: str = "en", task: str = "subject-add", both: bool = False) -> Item:
    return Item("a", "add a cup", f"{language}/{task}", {"key": "k", "intersection": both})


@pytest.mark.parametrize(
    ("meaning", "quality", "overall"),
    [((8, 7), (9, 4), math.sqrt(28)), ((10, 10), (10, 10), 10), ((0, 10), (10, 10), 0),
     ((10, 0), (10, 10), 0), ((9, 9), (9, 0), 0), ((4, 9), (9, 9), 6)],
)  # fmt: skip
def test_viescore_takes_the_lower_of_each_pair(
    meaning: tuple[int, int], quality: tuple[int, int], overall: float
) -> None:
    judge = FakeJudge(lambda q: f'{{"score": {list(meaning if "asked for" in q else quality)}}}')
    outputs = ItemOutput([PICTURE], sources=[PICTURE])
    found = GEdit().measure(gedit_item(), outputs, {"judge": judge})
    assert found.values["semantics"] == min(meaning)
    assert found.values["quality"] == min(quality)
    assert found.values["overall"] == pytest.approx(overall)
    # The judge of meaning sees both pictures, the judge of quality the result alone.
    assert [count for _, count in judge.asked] == [2, 1]
    assert "add a cup" in judge.asked[0][0]


def test_gedit_averages_edits_then_tasks_of_each_language() -> None:
    benchmark = GEdit()

    def row(key: str, item: Item, overall: float) -> Row:
        return Row(key, item.group, benchmark._values(item, overall, overall))

    rows = [
        row("a", gedit_item(), 8), row("b", gedit_item(), 6),
        row("c", gedit_item(task="color_alter", both=True), 3),
        row("d", gedit_item("cn"), 9),
    ]  # fmt: skip
    told = {name: one.value for name, one in estimates(rows, benchmark.metrics, 20).items()}
    assert told["EN overall"] == pytest.approx((7 + 3) / 2)
    assert told["EN intersection overall"] == 3
    assert told["CN overall"] == 9
    assert "CN intersection overall" not in told


def test_gedit_failures_are_the_lowest_score() -> None:
    judge = FakeJudge("no idea")
    found = GEdit().measure(
        gedit_item(), ItemOutput([PICTURE], sources=[PICTURE]), {"judge": judge}
    )
    assert found.values["overall"] == 0
    assert len(found.failures) == 2
    none = GEdit().measure(gedit_item(), ItemOutput([None], sources=[PICTURE]), {"judge": judge})
    assert none.values["overall"] == 0
    assert len(none.failures) == 1


def test_gedit_pictures_are_judged_at_the_area_of_512(tmp_path: Path) -> None:
    assert at_area(picture(1, (48, 32))).size == (627, 418)
    assert at_area(picture(1, (32, 32))).size == (512, 512)


def test_gedit_is_read_from_arrow_files_too(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    benchmark = GEdit()
    items = benchmark.read(SETS["gedit"](tmp_path / "parquet"))
    table = pyarrow.parquet.read_table(tmp_path / "parquet")
    (tmp_path / "arrow").mkdir()
    path = str(tmp_path / "arrow/data-00000.arrow")
    with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    again = benchmark.read(tmp_path / "arrow")
    assert [item.key for item in again] == [item.key for item in items]
    for one, other in zip(items[3:5], again[3:5], strict=True):
        assert benchmark.sources(one)[0].tobytes() == benchmark.sources(other)[0].tobytes()
    (tmp_path / "arrow/data-00000.arrow").write_bytes(b"no")
    with pytest.raises(NextStepError, match="cannot be read as GEdit-Bench"):
        benchmark.read(tmp_path / "arrow")


def test_gedit_results_of_the_official_scorer(tmp_path: Path) -> None:
    benchmark = GEdit()
    items = benchmark.read(SETS["gedit"](tmp_path / "set"))
    row = {
        "key": "k0", "sementics_score": "8.0", "quality_score": "2.0", "overall_score": "4.0",
        "instruction_language": "en",
    }  # fmt: skip
    write_csv(tmp_path / "csv/m_subject-add_gpt4o_vie_score.csv", [row])
    found = benchmark.read_results(tmp_path / "csv", items)
    (key,) = found
    assert key == "en/subject-add/k0"
    assert found[key].values["overall"] == pytest.approx(4.0)
    assert found[key].values["intersection overall"] == pytest.approx(4.0)


FIRST = "why\nPrompt Compliance: {}\nVisual Seamlessness: {}\nPhysical & Detail Fidelity: {}"


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        (FIRST.format(5, 5, 5), 5.0),
        (FIRST.format(1, 1, 1), 1.0),
        (FIRST.format(4, 4, 3), 3.67),
        (FIRST.format(5, 4, 4), 4.33),
        # The rule that later grades are not above the first is the judge's to keep.
        (FIRST.format(2, 5, 5), 4.0),
        ("**Style Fidelity:** 3\n**Content: ** 3\n**Rendering:** 3", 3.0),
        ("Note: fine\n" + FIRST.format(3, 3, 3), 3.0),
        (FIRST.format(0, 3, 3), None),
        (FIRST.format(6, 3, 3), None),
        ("Prompt Compliance: 5\nVisual Seamlessness: 5", None),
        (FIRST.format("4/5", 4, 4), None),
        (FIRST.format(4.5, 4, 4), None),
        ("", None),
    ],
)
def test_imgedit_answers(answer: str, grade: float | None) -> None:
    if grade is None:
        with pytest.raises(UnreadableError):
            read_edit_grades(answer)
    else:
        assert grade_of(read_edit_grades(answer)) == pytest.approx(grade)


def test_imgedit_averages_types_and_counts_failures_as_one(tmp_path: Path) -> None:
    benchmark = ImgEdit()
    items = benchmark.read(SETS["imgedit"](tmp_path))
    judge = FakeJudge(GOOD["imgedit"])
    outputs = ItemOutput([PICTURE], sources=benchmark.sources(items[0]))
    found = benchmark.measure(items[0], outputs, {"judge": judge})
    assert found.values == {"score": 3.67}
    assert judge.asked[0][1] == 2
    assert "edit 0" in judge.asked[0][0]
    lost = benchmark.measure(items[1], ItemOutput([None], sources=[PICTURE]), {"judge": judge})
    assert lost.values == {"score": 1.0}
    rows = [Row("a", "add", found.values), Row("b", "style", lost.values)] + [
        Row(f"c{n}", "style", {"score": 4.0}) for n in range(2)
    ]
    told = {name: one.value for name, one in estimates(rows, benchmark.metrics, 20).items()}
    assert told["style"] == pytest.approx(3.0)
    assert told["overall"] == pytest.approx((3.67 + 3.0) / 2)


def test_imgedit_takes_the_official_wording_from_its_file(tmp_path: Path) -> None:
    data = SETS["imgedit"](tmp_path)
    write_json(data / "prompts.json", {"add": "Was <edit_prompt> added?"})
    benchmark = ImgEdit()
    items = benchmark.read(data)
    assert benchmark.question(items[0]) == "Was edit 0 added?"
    with pytest.raises(NextStepError, match="no text for 'style'"):
        benchmark.question(items[1])


def test_imgedit_results_of_the_official_scorer(tmp_path: Path) -> None:
    told = {"0": FIRST.format(4, 4, 4), "1": {"error": "x"}, "2": "no", "3": 3.33}
    write_json(tmp_path / "result.json", told)
    found = ImgEdit().read_results(tmp_path / "result.json", [])
    assert [found[key].values["score"] for key in told] == [4.0, 1.0, 1.0, 3.33]
    assert [len(found[key].failures) for key in told] == [0, 1, 1, 0]
