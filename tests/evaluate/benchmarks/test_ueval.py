"""UEval: text and pictures rated by criteria, on answers made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import ItemOutput
from nextstep.evaluate.benchmarks.statistics import Row, estimates
from nextstep.evaluate.benchmarks.ueval import UEval, is_met, rates, read_met
from nextstep.evaluate.judges.protocol import UnreadableError
from tests.evaluate.benchmarks.fakes import FakeJudge
from tests.evaluate.benchmarks.official import SETS, picture, write_json

PICTURE = picture(0)


@pytest.mark.parametrize(
    ("answer", "met"),
    [
        ('{"criteria_met": true}', True),
        ('{"criteria_met": false}', False),
        ('```json\n{"criteria_met": true}\n```', True),
        ('{"criteria_met": "yes"}', True),
        ('{"criteria_met": "not sure"}', False),
        ('{"criteria_met": null}', False),
        ('{"criteria_met": 1}', False),
        ('I think {"criteria_met": "True"} fits.', True),
        ('{"met": true}', None),
        ("true", None),
        ("", None),
        ('{"criteria_met": tru', None),
    ],
)
def test_ueval_answers(answer: str, met: bool | None) -> None:
    if met is None:
        with pytest.raises(UnreadableError):
            read_met(answer)
    else:
        assert read_met(answer) is met


def test_ueval_rates_text_and_pictures(tmp_path: Path) -> None:
    assert rates({"text": [True, False], "image": [True]}) == {
        "text": 0.5, "image": 1.0, "rate": 0.75,
    }  # fmt: skip
    assert rates({"text": [], "image": [False]}) == {"image": 0.0, "rate": 0.0}
    assert not is_met("unsure")
    benchmark = UEval()
    items = benchmark.read(SETS["ueval"](tmp_path))
    judge = FakeJudge('{"criteria_met": true}')
    found = benchmark.measure(items[0], ItemOutput([PICTURE], "a cup"), {"judge": judge})
    assert found.values == {"text": 1.0, "image": 1.0, "rate": 1.0}
    assert [count for _, count in judge.asked] == [0, 1, 1]
    nothing = benchmark.measure(items[0], ItemOutput([], ""), {"judge": judge})
    assert nothing.values == benchmark.lowest(items[0]) == {"text": 0.0, "image": 0.0, "rate": 0.0}
    assert len(nothing.failures) == 2
    rows = [Row("a", "art", found.values), Row("b", "space", nothing.values)]
    told = {name: one.value for name, one in estimates(rows, benchmark.metrics, 20).items()}
    assert (told["overall"], told["art"], told["space"], told["text"]) == (50, 100, 0, 50)


def test_ueval_results_of_the_official_scorer(tmp_path: Path) -> None:
    entry = {
        "id": 3, "text_results": [{"criteria_met": True}, {"criteria_met": "not sure"}],
        "image_results": [{"criteria_met": False}],
    }  # fmt: skip
    write_json(tmp_path / "results.json", {"items": [entry]})
    found = UEval().read_results(tmp_path / "results.json", [])
    assert found["3"].values == {"text": 0.5, "image": 0.0, "rate": 0.25}
    write_json(tmp_path / "results.json", [])
    with pytest.raises(NextStepError, match="no result of UEval"):
        UEval().read_results(tmp_path / "results.json", [])
