"""Rules of the benchmarks that ask yes-or-no questions, on answers made by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import Item, ItemOutput
from nextstep.evaluate.benchmarks.dpg_bench import DPGBench, Question, is_yes, score_of
from nextstep.evaluate.benchmarks.genai_bench import QUESTION, GenAIBench
from nextstep.evaluate.benchmarks.generation import Run
from nextstep.evaluate.benchmarks.geneval2 import GenEval2, answer_forms, geometric_mean
from nextstep.evaluate.benchmarks.oneig import aligned_share
from nextstep.evaluate.benchmarks.report import make_report
from nextstep.evaluate.benchmarks.scoring import import_results
from nextstep.evaluate.benchmarks.statistics import Row, estimates
from nextstep.evaluate.benchmarks.ueval import UEval
from nextstep.evaluate.benchmarks.unigenbench import UniGenBench, read_points, values_of
from nextstep.evaluate.judges.protocol import RefusedError, UnreadableError
from tests.evaluate.benchmarks.fakes import FakeJudge
from tests.evaluate.benchmarks.official import SETS, picture, write_csv, write_json

PICTURE = picture(0)


def asked(*parents: tuple[int, ...]) -> list[Question]:
    """Questions 1, 2, ... with the parents of each."""
    return [Question(n, some, "entity - whole", f"q{n}") for n, some in enumerate(parents, 1)]


CHAIN = asked((0,), (1,), (2,))
BEFORE = asked((2,), (0,))


@pytest.mark.parametrize(
    ("questions", "answers", "score"),
    [
        (asked((0,)), [True], 1.0),
        (asked((0,)), [False], 0.0),
        (asked((0,), (0,)), [True, False], 0.5),
        (asked((0,), (1,)), [True, True], 1.0),
        # A child of a no is a no.
        (asked((0,), (1,)), [False, True], 0.0),
        # A no from a parent passes on to the grandchild.
        (CHAIN, [False, True, True], 0.0),
        (CHAIN, [True, False, True], 1 / 3),
        (CHAIN, [True, True, False], 2 / 3),
        # Questions are gone through in order: this child comes before its parent.
        (BEFORE, [True, False], 0.0),
        (BEFORE, [True, True], 1.0),
        # Any of several parents answered no is enough.
        (asked((0,), (0,), (1, 2)), [True, False, True], 1 / 3),
        (asked((0,), (0,), (1, 2)), [True, True, True], 1.0),
        # A parent that is not among the questions holds.
        (asked((0,), (9,)), [True, True], 1.0),
    ],
)
def test_dpg_scores(questions: list[Question], answers: list[bool], score: float) -> None:
    told = {one.number: answer for one, answer in zip(questions, answers, strict=True)}
    assert score_of(questions, told) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [("yes", True), ("Yes.", True), (" YES ", True), ("no", False), ("", False),
     ("yes, it is", False), ("yellow", False)],
)  # fmt: skip
def test_dpg_answers(answer: str, yes: bool) -> None:
    assert is_yes(answer) is yes


def test_dpg_means_over_pictures_and_categories(tmp_path: Path) -> None:
    benchmark = DPGBench()
    item = benchmark.read(SETS["dpg-bench"](tmp_path))[0]
    judge = FakeJudge(lambda question: "yes" if question == "Is it 1?" else "no")
    found = benchmark.measure(item, ItemOutput([PICTURE, PICTURE, None, PICTURE]), {"judge": judge})
    # Three pictures with one question of two, one missing.
    assert found.values["score"] == pytest.approx(3 * 0.5 / 4)
    assert found.failures == ["picture 2 is missing or cannot be read"]
    told = estimates([Row("a", "", found.values)], benchmark.metrics, 20)
    assert told["score"].value == pytest.approx(37.5)
    assert told["entity"].value == told["entity - whole"].value == pytest.approx(75.0)
    assert told["attribute - color"].value == 0.0
    lowest = benchmark.lowest(item)
    assert set(lowest) == set(found.values)
    assert lowest["score"] == 0.0


def test_dpg_keeps_the_first_row_which_the_official_scorer_loses(tmp_path: Path) -> None:
    item = DPGBench().read(SETS["dpg-bench"](tmp_path))[0]
    assert [one.number for one in item.record["questions"]] == [1, 2]


def test_dpg_results_of_the_official_scorer(tmp_path: Path) -> None:
    path = tmp_path / "results.txt"
    path.write_text("out/part0.png, 1.0, 0.5, 0.5, 1.0, 0.75\nDPG-Bench score: 75.0\n")
    found = DPGBench().read_results(path, [])
    assert found["part0"].values == {"score": 0.75}


@pytest.mark.parametrize(
    ("answers", "parents", "share"),
    [
        ({1: True}, {1: [0]}, 1.0),
        ({1: False}, {1: [0]}, 0.0),
        ({1: True, 2: True}, {2: [1]}, 1.0),
        ({1: False, 2: True}, {2: [1]}, 0.0),
        ({1: True, 2: False}, {2: [1]}, 0.5),
        # Unlike DPG-Bench, the parent's own answer decides for the grandchild.
        ({1: False, 2: True, 3: True}, {2: [1], 3: [2]}, 1 / 3),
        ({1: True, 2: False, 3: True}, {2: [1], 3: [2]}, 1 / 3),
        ({1: True, 2: True, 3: True}, {3: [1, 2]}, 1.0),
        ({1: True, 2: False, 3: True}, {3: [1, 2]}, 1 / 3),
        ({1: True, 2: True}, {2: [7]}, 1.0),
        ({1: True, 2: True}, {}, 1.0),
        ({1: False, 2: False}, {2: [1]}, 0.0),
    ],
)
def test_oneig_alignment(
    answers: dict[int, bool], parents: dict[int, list[int]], share: float
) -> None:
    assert aligned_share(answers, parents) == pytest.approx(share)


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1.0], 1.0), ([0.5], 0.5), ([0.25, 1.0], 0.5), ([1.0, 1.0, 1.0], 1.0), ([0.0, 1.0], 0.0),
        ([0.0], 0.0), ([0.1, 0.1], 0.1), ([0.2, 0.8], 0.4), ([0.5, 0.5, 0.0], 0.0),
        ([0.9, 0.9, 0.9, 0.9], 0.9), ([0.125, 0.5, 1.0], 0.0625 ** (1 / 3)), ([1e-12, 1.0], 1e-6),
    ],
)  # fmt: skip
def test_geometric_means(values: list[float], mean: float) -> None:
    assert geometric_mean(values) == pytest.approx(mean)


def test_geneval2_answers_may_be_digits_or_capitalised() -> None:
    assert answer_forms("four") == ["four", "Four", "4"]
    assert answer_forms("Yes") == ["Yes", "yes"]


def test_geneval2_means_atoms_of_a_prompt_and_skills_of_all(tmp_path: Path) -> None:
    benchmark = GenEval2()
    items = benchmark.read(SETS["geneval2"](tmp_path))
    judge = FakeJudge(likely=0.25)
    found = benchmark.measure(items[0], ItemOutput([PICTURE]), {"judge": judge})
    assert judge.asked[0][0] == "How many cups are in the image? Answer in one word."
    assert found.values["am"] == found.values["gm"] == 0.25
    rows = [Row("a", "2", found.values), Row("b", "2", benchmark.lowest(items[1]))]
    told = estimates(rows, benchmark.metrics, 20)
    assert told["Soft-TIFA AM"].value == told["count"].value == pytest.approx(12.5)
    assert math.isnan(told["verb"].value)
    lists = [[0.25, 1.0]] * 8
    write_json(tmp_path / "lists.json", lists)
    imported = benchmark.read_results(tmp_path / "lists.json", items)
    assert imported["00003"].values["gm"] == pytest.approx(0.5)
    write_json(tmp_path / "lists.json", lists[:7])
    with pytest.raises(NextStepError, match="not one list of atoms"):
        benchmark.read_results(tmp_path / "lists.json", items)


def test_genai_bench_averages_probabilities_by_skill(tmp_path: Path) -> None:
    benchmark = GenAIBench()
    items = benchmark.read(SETS["genai-bench"](tmp_path))
    assert [item.group for item in items] == ["basic"] * 4 + ["advanced"] * 3 + ["untagged"]
    judge = FakeJudge(likely=0.8)
    found = benchmark.measure(
        items[4], ItemOutput([PICTURE, None, PICTURE, PICTURE]), {"judge": judge}
    )
    assert judge.asked == [(QUESTION.format(prompt="prompt 4"), 1)] * 3
    assert found.values == pytest.approx({"score": 0.6, "advanced": 0.6, "counting": 0.6})
    rows = [
        Row(item.key, item.group, benchmark._values(item, score))
        for item, score in zip(items, [1, 1, 0, 0, 1, 0.5, 0, 1], strict=True)
    ]
    told = {name: one.value for name, one in estimates(rows, benchmark.metrics, 20).items()}
    assert told["basic"] == 0.5
    assert told["advanced"] == 0.5
    # The prompt without a skill is in no mean, as in the official scorer.
    assert told["overall"] == pytest.approx(3.5 / 7)
    assert told["attribute"] == told["counting"] == 1.0
    assert math.isnan(told["negation"])


class Scripted(FakeJudge):
    """Gives probabilities in the order in which it is asked; None is a refusal."""

    def __init__(self, likely: Iterable[float | None]) -> None:
        super().__init__()
        self.script = iter(likely)

    def yes_probability(self, question: str, *_: object) -> float:
        likely = next(self.script)
        if likely is None:
            raise RefusedError("the judge refuses to answer")
        return likely


NAN, GONE = math.nan, "gone"
"""An answer that is no number, and a picture that is not there."""
BASIC, ADVANCED, BOTH = ["basic", "scene"], ["advanced", "negation"], ["basic", "advanced"]


@pytest.mark.parametrize(
    ("tags", "pictures", "expected", "failures"),
    [
        # All alike, and a tie between skills.
        ([BASIC], [[0.5, 0.5, 0.5, 0.5]], {"basic": 0.5, "scene": 0.5, "overall": 0.5}, 0),
        ([BASIC, ADVANCED], [[0.25] * 4, [0.25] * 4],
         {"basic": 0.25, "advanced": 0.25, "overall": 0.25}, 0),
        # Pictures of a prompt are averaged before prompts are.
        ([BASIC], [[1.0, 0.0, 0.5, 0.5]], {"basic": 0.5, "overall": 0.5}, 0),
        # A prompt with both tags counts in both means and once in all.
        ([BOTH], [[0.5, 0.5, 1.0, 1.0]], {"basic": 0.75, "advanced": 0.75, "overall": 0.75}, 0),
        ([BOTH, BASIC], [[1.0] * 4, [0.0] * 4], {"basic": 0.5, "advanced": 1.0, "overall": 0.5}, 0),
        # Skills of unequal numbers: all prompts count alike in the whole, not the skills.
        ([BASIC, BASIC, BASIC, ADVANCED], [[1.0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4],
         {"basic": 1.0, "advanced": 0.0, "overall": 0.75}, 0),
        # No skill at all, or none that anybody asked about: no mean, and no division by zero.
        ([[]], [[1.0] * 4], {"overall": NAN, "basic": NAN, "advanced": NAN}, 0),
        ([[], ADVANCED], [[1.0] * 4, [0.5] * 4], {"overall": 0.5, "advanced": 0.5}, 0),
        # Missing pictures, refusals and answers that are no number are zeros, not left out.
        ([BASIC], [[1.0, GONE, 1.0, 1.0]], {"basic": 0.75}, 1),
        ([BASIC], [[GONE] * 4], {"basic": 0.0, "overall": 0.0}, 4),
        ([ADVANCED], [[1.0, None, 1.0, 1.0]], {"advanced": 0.75, "negation": 0.75}, 1),
        ([ADVANCED], [[1.0, NAN, math.inf, 1.0]], {"advanced": 0.5}, 2),
        # The ends of the range.
        ([BASIC, BASIC], [[0.0] * 4, [1.0] * 4], {"basic": 0.5, "scene": 0.5}, 0),
        ([ADVANCED, BASIC], [[1e-9] * 4, [1.0 - 1e-9] * 4], {"advanced": 0.0, "basic": 1.0}, 0),
    ],
)  # fmt: skip
def test_genai_bench_means(
    tags: list[list[str]], pictures: list[list[float | str | None]],
    expected: dict[str, float], failures: int, tmp_path: Path,
) -> None:  # fmt: skip
    skills: dict[str, list[int]] = {}
    for number, some in enumerate(tags):
        for skill in some:
            skills.setdefault(skill, []).append(number)
    write_json(tmp_path / "genai_image.json",
               {f"{n:05d}": {"prompt": f"prompt {n}"} for n in range(len(tags))})  # fmt: skip
    write_json(tmp_path / "genai_skills.json", skills)
    benchmark, rows, failed = GenAIBench(), list[Row](), 0
    for item, likely in zip(benchmark.read(tmp_path), pictures, strict=True):
        shown = ItemOutput([None if one == GONE else PICTURE for one in likely])
        judge = Scripted(one for one in likely if not isinstance(one, str))
        found = benchmark.measure(item, shown, {"judge": judge})
        rows.append(Row(item.key, item.group, found.values))
        failed += len(found.failures)
    told = {name: one.value for name, one in estimates(rows, benchmark.metrics, 20).items()}
    assert failed == failures
    for name, value in expected.items():
        assert told[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_genai_bench_results_of_the_official_scorer(tmp_path: Path) -> None:
    benchmark = GenAIBench()
    items = benchmark.read(SETS["genai-bench"](tmp_path))
    torch.save(torch.arange(8.0)[:, None, None] / 8, tmp_path / "scores.pt")
    found = benchmark.read_results(tmp_path / "scores.pt", items)
    assert found["00004"].values["counting"] == 0.5
    torch.save(torch.zeros(3, 1, 1), tmp_path / "scores.pt")
    with pytest.raises(NextStepError, match="3 scores for 8 prompts"):
        benchmark.read_results(tmp_path / "scores.pt", items)
    (tmp_path / "scores.pt").write_bytes(b"no")
    with pytest.raises(NextStepError, match="cannot be read as scores"):
        benchmark.read_results(tmp_path / "scores.pt", items)


def test_official_results_that_are_no_number_count_as_the_lowest(tmp_path: Path) -> None:
    benchmark = GenAIBench()
    run = Run(
        tmp_path / "run", benchmark, benchmark.read(SETS["genai-bench"](tmp_path)), {"model": "m"}
    )
    torch.save(torch.tensor([1.0, NAN, *[0.5] * 6])[:, None, None], tmp_path / "scores.pt")
    scored = import_results(run, tmp_path / "scores.pt", "official")
    assert scored[1].measured.values == {"score": 0.0, "basic": 0.0, "attribute": 0.0}
    assert scored[1].measured.failures == ["the official scorer gave no number"]
    # The mean is of all eight, not of the seven that have a number.
    told = make_report(run, "official").metrics
    assert told["basic"].value == pytest.approx((1.0 + 0.0 + 0.5 + 0.5) / 4)


def test_a_refusal_counts_as_impossible_and_is_listed(tmp_path: Path) -> None:
    class Refusing(FakeJudge):
        def yes_probability(self, *_: object) -> float:
            raise RefusedError("the judge refuses to answer: content filter")

    benchmark = GenAIBench()
    item = benchmark.read(SETS["genai-bench"](tmp_path))[0]
    found = benchmark.measure(item, ItemOutput([PICTURE] * 4), {"judge": Refusing()})
    assert found.values["score"] == 0.0
    assert len(found.failures) == 4
    assert "content filter" in found.failures[0]


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ("<score>[1, 0]</score>", [1, 0]),
        ("<analysis>['a', 'b']</analysis>\n<score> [0, 0] </score>", [0, 0]),
        ("<score>\n[1,\n1]\n</score> done", [1, 1]),
        ("<score>[1.0, 0]</score>", [1, 0]),
        ("<score>[1]</score>", None),
        ("<score>[1, 0, 1]</score>", None),
        ("<score>[1, 2]</score>", None),
        ("<score>[1, 'x']</score>", None),
        ("<score>1, 0</score>", None),
        ("<score>[1, 0</score>", None),
        ("<score>open('x')</score>", None),
        ("[1, 0]", None),
        ("", None),
    ],
)
def test_unigenbench_answers(answer: str, points: list[int] | None) -> None:
    if points is None:
        with pytest.raises(UnreadableError):
            read_points(answer, 2)
    else:
        assert read_points(answer, 2) == points


def test_unigenbench_counts_points_by_dimension(tmp_path: Path) -> None:
    benchmark = UniGenBench()
    items = benchmark.read(SETS["unigenbench"](tmp_path))
    points = [("Attribute - Color", "x"), ("Attribute - Size", "y"), ("Style", "z")]
    rows = [Row("a", "", values_of(points, [[1, 0, 1], [1, 0, 0]]))]
    told = {name: one.value for name, one in estimates(rows, benchmark.metrics, 20).items()}
    assert told["Attribute - Color"] == 100
    assert told["Attribute - Size"] == 0
    assert told["Attribute"] == told["Style"] == told["overall"] == told["points"] == 50
    judge = FakeJudge("<score>[1, 0]</score>")
    found = benchmark.measure(items[0], ItemOutput([PICTURE, None, None, None]), {"judge": judge})
    assert found.values["points"] == pytest.approx(0.125)
    assert len(found.failures) == 3
    assert "- Attribute - Color: red\n- Style: a sketch" in judge.asked[0][0]
    unread = FakeJudge("who knows")
    found = benchmark.measure(items[0], ItemOutput([PICTURE] * 4), {"judge": unread})
    assert found.values["points"] == 0
    assert len(unread.asked) == 12  # three tries a picture
    assert "cannot be read" in found.failures[0]


def test_unigenbench_results_of_the_official_scorer(tmp_path: Path) -> None:
    benchmark = UniGenBench()
    items = benchmark.read(SETS["unigenbench"](tmp_path))
    rows = [{"index": "0", "result_json": '{"score": [1, 1]}'}] * 3
    write_csv(tmp_path / "results.csv", rows)
    found = benchmark.read_results(tmp_path / "results.csv", items)
    assert found["0"].values["points"] == pytest.approx(0.75)
    assert len(found["0"].failures) == 1
    write_csv(tmp_path / "results.csv", [{"index": "0", "result_json": '{"score": [1]}'}])
    with pytest.raises(NextStepError, match="another number of points"):
        benchmark.read_results(tmp_path / "results.csv", items)


def test_items_are_named_once(tmp_path: Path) -> None:
    item = Item("a", "p", "")
    with pytest.raises(NextStepError, match="twice"):
        UEval().check_items([item, item], tmp_path)
