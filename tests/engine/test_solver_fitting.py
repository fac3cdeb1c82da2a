"""Fitting a solver of few steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextstep.engine.backends.base import Prompt
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.sequence import ImageSequence
from nextstep.engine.settings import GenerationSettings
from nextstep.engine.solver_fitting import Rule, TokenSamples, fit, mean_square, record
from nextstep.errors import NextStepError
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.multistep import MOST_FITTED, adams_bashforth, rule
from nextstep.flow.solvers import SolverSettings, solve
from nextstep.model.flow_head import FlowHead
from tests.conftest import TINY, random_model


class Bent(FlowHead):
    """A head whose velocity is known: data N(c, 0.3^2), c its condition."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def embed_condition(self, condition: Tensor) -> Tensor:
        return condition

    def embed_time(self, t: Tensor) -> Tensor:
        return t

    def velocity(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        variance = time**2 * 0.09 + (1 - time) ** 2
        return condition + (time * 0.09 - (1 - time)) / variance * (x - time * condition)


def bent_samples(count: int) -> TokenSamples:
    """Its tokens by the closed form c + 0.3 * noise."""
    generator = torch.Generator().manual_seed(0)
    hidden, noise = torch.randn(2, count, 4, generator=generator).unbind()
    weights = {"conditional": torch.ones(count, 1)}
    return TokenSamples(hidden[None], weights, noise, hidden + 0.3 * noise, False)


@pytest.mark.parametrize("steps", [2, 5])
def test_a_rule_begins_as_adams_bashforth(steps: int) -> None:
    made, plain = Rule(steps).table(), adams_bashforth(steps)
    assert made == pytest.approx(plain, abs=2e-3)
    times, sums = Rule(steps).numbers()
    found_times, rows = rule(made, steps)
    assert times[:-1].tolist() == pytest.approx(found_times, abs=1e-6)
    for own, row in zip(sums.tolist(), rows, strict=True):
        assert own[: len(row)] == pytest.approx(row, abs=1e-6)


def test_the_fitted_rule_is_much_nearer() -> None:
    samples = bent_samples(400)
    found = fit(Bent(), lambda hidden: hidden, samples, 4, iterations=200, batch=64)
    assert found.after < found.before / 5
    # What was measured is what the solver does with the table.
    settings = SolverSettings("multistep", 4, table=found.table)
    velocity = lambda x, t: Bent().velocity(x, torch.tensor(t), samples.hidden[0])  # noqa: E731
    made = solve(velocity, lambda: samples.noise, settings)
    assert float((made - samples.tokens).pow(2).mean().sqrt()) < found.before / 4
    again = fit(Bent(), lambda hidden: hidden, samples, 4, iterations=200, batch=64)
    assert again.table == found.table


def test_what_is_recorded_makes_the_same_tokens() -> None:
    """Samples of guided pictures: the teacher as a rule of its own gives their tokens again."""
    model = random_model(TINY)
    teacher = SolverSettings("ode", 3, noise_scale=0.7)
    how = DecodeSettings((2, 2), teacher, GuidanceSettings(2.0, schedule="linear"))
    begin = TINY.begin_of_image_id
    jobs = [
        ImageSequence(
            {name: Prompt([*range(7, 7 + n), begin]) for name in how.branches}, how, (1, n)
        )
        for n in (2, 4)
    ]
    samples = record(model, jobs)
    assert samples.hidden.shape == (2, 8, TINY.hidden_size)
    assert samples.normalised
    euler = Rule(3)
    with torch.no_grad():
        euler.before.zero_()
        euler.gaps.zero_()
    condition = model.image_head.embed_condition(model.image_condition(samples.hidden))
    with torch.no_grad():
        assert (
            float(mean_square(euler, model.image_head, condition, samples, torch.arange(8))) < 1e-9
        )


def test_wrong_values_are_refused() -> None:
    with pytest.raises(NextStepError, match="too few"):
        fit(Bent(), lambda hidden: hidden, bent_samples(19), 4)
    with pytest.raises(NextStepError, match="2 to 16"):
        fit(Bent(), lambda hidden: hidden, bent_samples(40), MOST_FITTED + 1)
    how = DecodeSettings((2, 2), SolverSettings("v1", 3), GuidanceSettings())
    asked = ImageSequence({name: Prompt([7, 8]) for name in how.branches}, how, (1, 0))
    with pytest.raises(NextStepError, match="draws noise on its way"):
        record(random_model(TINY), [asked])


def test_settings_take_the_steps_of_their_table() -> None:
    table = adams_bashforth(4)
    own = GenerationSettings(solver="ab2", steps=12, table=list(table))  # type: ignore[arg-type]
    assert own.table == table
    assert own.solver_settings.table == ()
    assert "table" not in own.recorded()
    fitted = own.with_values(solver="multistep")
    assert (fitted.solver_settings.steps, fitted.solver_settings.table) == (4, table)
    assert (fitted.recorded()["table"], fitted.recorded()["steps"]) == (table, 4)
    assert fitted.with_values(solver="heun").solver_settings == SolverSettings("heun", 12)
    assert fitted.with_values(table=()).solver_settings == SolverSettings("multistep", 12)
    shorter = fitted.with_values(table=adams_bashforth(3))
    assert shorter.solver_settings.steps == 3
    longer = fitted.with_values(steps=7)
    assert longer.solver_settings == SolverSettings("multistep", 7)
    falling = fitted.with_values(steps=7, final_token_steps=3)
    assert falling.solver_settings == SolverSettings("multistep", 7, final_token_steps=3)
    with pytest.raises(ValueError, match="takes 4 steps for every token"):
        fitted.with_values(final_token_steps=2)
    assert own.with_values(steps=7, table=table).table == table
    with pytest.raises(ValueError, match="has 4 steps, not 7"):
        fitted.with_values(steps=7, table=table)
    with pytest.raises(ValueError, match="rising times"):
        GenerationSettings(table=(0.0, 0.1))
