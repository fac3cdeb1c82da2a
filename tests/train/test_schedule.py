"""Runs that end by the clock: the schedule falls with the time, and what was spent counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.errors import NextStepError
from nextstep.train import schedule
from nextstep.train.schedule import build_schedule, by_the_clock
from nextstep.train.trainer import Trainer
from tests.train.toy import CONFIG, ToySource, ToyStage, figures_of, toy_model

STEPS = 1000
NAMES = ("constant", "cosine", "warmup-stable-decay")


@given(st.sampled_from(NAMES), st.integers(0, STEPS - 1), st.floats(0, 1))
def test_without_time_a_schedule_is_as_it_was_and_the_clock_never_raises_it(
    name: str, step: int, passed: float
) -> None:
    made = build_schedule(name, STEPS, 10, 300 if name == NAMES[2] else 0, 0.0)
    assert by_the_clock(made, STEPS, step, 0.0) == made(step)
    assert by_the_clock(made, STEPS, step, passed) <= made(step)


def test_the_fall_ends_with_the_time_and_the_warm_up_goes_by_steps() -> None:
    made = build_schedule("warmup-stable-decay", STEPS, 10, 400)
    # Compiling took a tenth of the time: the first steps still rise.
    assert by_the_clock(made, STEPS, 0, 0.1) == pytest.approx(0.1)
    assert by_the_clock(made, STEPS, 40, 0.5) == 1
    assert by_the_clock(made, STEPS, 40, 0.8) == pytest.approx(0.5)
    assert by_the_clock(made, STEPS, 40, 1.0) == 0
    assert by_the_clock(made, STEPS, 40, 3.0) == 0


class FakeTime:
    """Every look at the clock takes half a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.5
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(schedule, "time", fake)
    return fake


def trainer(folder: Path, **settings: Any) -> Trainer:
    config = replace(CONFIG, steps=10_000, warmup=1, decay=5_000, minutes=0.25, **settings)
    return Trainer(toy_model(), ToyStage(), ToySource(), config, folder)


def test_a_run_ends_with_its_minutes_and_its_rate_has_fallen_by_then(
    tmp_path: Path, clock: FakeTime
) -> None:
    each = trainer(tmp_path)
    assert each.run()
    rates = [row["learning_rate"] for row in figures_of(tmp_path)]
    # Two looks a step: fifteen seconds are fifteen steps or one less.
    assert 12 <= each.step == len(rates) <= 15
    assert rates[:6] == [CONFIG.learning_rate] * 6
    assert rates[-1] < 0.2 * CONFIG.learning_rate
    assert rates == sorted(rates, reverse=True)
    again = trainer(tmp_path)
    assert again.resume()
    assert again.finished, "what was spent before counts"
    assert again.run()
    assert again.step == each.step


def test_a_run_that_was_stopped_has_the_rest_of_its_minutes(
    tmp_path: Path, clock: FakeTime
) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    begun = trainer(tmp_path / "pieces", save_every=5)
    for _ in range(5):
        begun.train_step(begun.stream.take())
    begun.save()
    begun.writer.wait()
    rest = trainer(tmp_path / "pieces")
    assert rest.resume()
    assert not rest.finished
    assert rest.run()
    assert 5 < rest.step <= whole.step + 4


def test_minutes_are_not_negative() -> None:
    with pytest.raises(NextStepError, match="minutes must not be negative"):
        replace(CONFIG, minutes=-1.0)
