"""Solvers against fields with closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nextstep.flow.multistep import adams_bashforth, steps_of, table_length
from nextstep.flow.path import shift_time, uniform_grid, v1_grid
from nextstep.flow.solvers import SOLVERS, SolverSettings, request_times, solve

DETERMINISTIC = ("ode", "midpoint", "heun", "ab2", "multistep")


def stream(seed: int, shape: tuple[int, ...]) -> tuple[list[Tensor], object]:
    """Draws that are kept as they are taken."""
    generator = torch.Generator().manual_seed(seed)
    taken: list[Tensor] = []

    def draw() -> Tensor:
        taken.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        return taken[-1]

    return taken, draw


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.2])
def test_constant_field_is_exact(name: str, shift: float) -> None:
    taken, draw = stream(0, (3, 4))
    c = torch.full((3, 4), 0.7, dtype=torch.float64)
    x = solve(lambda x, t: c, draw, SolverSettings(name, steps=5, shift=shift))
    assert torch.allclose(x, taken[0] + c, atol=1e-12)


@pytest.mark.parametrize("name", ["midpoint", "heun", "ab2"])
def test_field_linear_in_time_is_exact_for_second_order(name: str) -> None:
    taken, draw = stream(1, (2, 3))
    x = solve(lambda x, t: torch.full_like(x, 3 * t + 1), draw, SolverSettings(name, steps=7))
    assert torch.allclose(x, taken[0] + 2.5, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "order"), [("ode", 1), ("midpoint", 2), ("heun", 2), ("ab2", 2), ("multistep", 2)]
)
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_order_of_convergence(name: str, order: int, shift: float) -> None:
    """dx/dt = a(t) x has x(1) = x(0) exp(integral a); half the step, error / 2^order."""

    def error(steps: int) -> float:
        taken, draw = stream(2, (4,))
        field = lambda x, t: (math.cos(3 * t) - 0.5) * x  # noqa: E731
        x = solve(field, draw, SolverSettings(name, steps=steps, shift=shift))
        return float((x - taken[0] * math.exp(math.sin(3) / 3 - 0.5)).abs().max())

    measured = math.log2(error(64) / error(128))
    assert abs(measured - order) < 0.2


def test_a_table_is_the_rule_that_is_applied() -> None:
    """x_1 = x_0 + t_1 v_0; x_2 = x_1 + c_10 v_0 + (1 - t_1 - c_10) v_1."""
    taken, draw = stream(3, (4,))
    settings = SolverSettings("multistep", 2, table=(0.3, -0.2))
    velocity = lambda x, t: (t + 1) * x  # noqa: E731
    x = solve(velocity, draw, settings)
    v0 = taken[0]
    x1 = taken[0] + 0.3 * v0
    assert torch.allclose(x, x1 - 0.2 * v0 + 0.9 * 1.3 * x1, atol=1e-12)
    assert request_times(settings) == [0.0, 0.3]


@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=8, unique=True),
    st.integers(0, 2**31),
)
def test_any_table_is_exact_for_constant_velocity(times: list[float], seed: int) -> None:
    steps = len(times) + 1
    rows = torch.randn(
        table_length(steps) - len(times), generator=torch.Generator().manual_seed(seed)
    )
    table = (*sorted(times), *rows.tolist())
    assert steps_of(table) == steps
    taken, draw = stream(5, (3,))
    c = torch.full((3,), -1.3, dtype=torch.float64)
    x = solve(lambda x, t: c, draw, SolverSettings("multistep", steps, table=table))
    assert torch.allclose(x, taken[0] + c, atol=1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.2])
def test_the_rule_without_a_table_has_one(shift: float) -> None:
    velocity = gaussian_velocity(0.2, 0.5)
    made = [
        solve(velocity, stream(6, (5,))[1], SolverSettings("multistep", 6, shift, table=table))
        for table in ((), adams_bashforth(6, shift))
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ((0.5,), "cannot have a table of 1 numbers"),
        ((0.3, 0.6, 0.0, 0.0, 0.0), "has 3 steps, not 2"),
        ((0.0, 0.1), "rising times"),
        ((1.0, 0.1), "rising times"),
        ((0.5, math.nan), "finite numbers"),
    ],
)
def test_a_table_that_is_no_rule_is_refused(table: tuple[float, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SolverSettings("multistep", 2, table=table)


def gaussian_velocity(mean: float, std: float):
    """Exact velocity when data ~ N(mean, std^2) and noise ~ N(0, 1), per coordinate.

    x_t has variance t^2 std^2 + (1-t)^2, and E[data - noise | x_t] is linear in x_t.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        variance = t**2 * std**2 + (1 - t) ** 2
        slope = (t * std**2 - (1 - t)) / variance
        return mean + slope * (x - t * mean)

    return velocity


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "cps"])
def test_gaussian_data_is_reached(name: str) -> None:
    """Sampled moments meet the data's. `cps` is left out: its noise does not shrink with the step,
    so it narrows the distribution by design."""
    mean, std, steps = 1.5, 0.6, 200
    _, draw = stream(3, (40_000,))
    x = solve(gaussian_velocity(mean, std), draw, SolverSettings(name, steps=steps))
    assert abs(float(x.mean()) - mean) < 0.02
    assert abs(float(x.std()) - std) < 0.02


def test_ode_of_gaussian_is_the_known_map() -> None:
    """The exact flow between Gaussians carries x_0 to mean + std * x_0."""
    taken, draw = stream(4, (100,))
    x = solve(gaussian_velocity(-0.4, 2.0), draw, SolverSettings("midpoint", steps=400))
    assert torch.allclose(x, -0.4 + 2.0 * taken[0], atol=1e-3)


def test_v1_1_keeps_the_last_noise() -> None:
    """The last step adds fresh noise of std sqrt(2)/N (facts of the 1.1 code)."""
    steps = 10

    def run(last: float) -> Tensor:
        draws = [torch.full((3,), 0.1 * i, dtype=torch.float64) for i in range(steps)]
        feed = iter([*draws, torch.full((3,), last, dtype=torch.float64)])
        return solve(lambda x, t: 0.5 - x, lambda: next(feed), SolverSettings("v1.1", steps=steps))

    change = run(1.0) - run(0.0)
    assert torch.allclose(change, torch.full_like(change, math.sqrt(2) / steps), atol=1e-12)


def test_cps_keeps_the_variance_of_the_path() -> None:
    """With one data point p, x_t - t*p has std 1-t at every time that is asked."""
    _, draw = stream(9, (50_000,))
    spreads = {}

    def velocity(x: Tensor, t: float) -> Tensor:
        spreads[t] = float((x - 0.3 * t).std())
        return (0.3 - x) / (1 - t)

    solve(velocity, draw, SolverSettings("cps", steps=10, noise_level=0.8))
    for t, spread in spreads.items():
        assert abs(spread - (1 - t)) < 0.01


@pytest.mark.parametrize("name", ["v1", "cps", "ode", "midpoint", "ab2"])
def test_single_data_point_without_last_noise(name: str) -> None:
    """Solvers whose last step is noise free end close to the only data point."""
    _, draw = stream(6, (1000,))

    def velocity(x: Tensor, t: float) -> Tensor:
        return (0.3 - x) / max(1 - t, 1e-9)

    x = solve(velocity, draw, SolverSettings(name, steps=50))
    assert float((x - 0.3).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["sde", "cps"])
def test_no_noise_level_is_the_ode(name: str) -> None:
    def run(solver: str) -> Tensor:
        _, draw = stream(7, (5,))
        return solve(
            gaussian_velocity(0.2, 0.5), draw, SolverSettings(solver, steps=9, noise_level=0.0)
        )

    assert torch.allclose(run(name), run("ode"), atol=1e-12)


@pytest.mark.parametrize("name", list(SOLVERS))
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_draws_are_counted(name: str, steps: int) -> None:
    taken, draw = stream(8, (2, 2))
    settings = SolverSettings(name, steps=steps)
    x = solve(lambda x, t: -x, draw, settings)
    assert len(taken) == settings.draws
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("shift", [1.0, 3.2])
def test_first_step_of_sde(shift: float) -> None:
    """At t = 0 the noise is level / sqrt(1 - second-last time), as in the training release."""
    steps, level = 6, 0.8
    times = uniform_grid(steps, shift)
    seen = []

    def velocity(x: Tensor, t: float) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    draws = [torch.zeros(1), torch.ones(1), *[torch.zeros(1)] * (steps - 1)]
    feed = iter(draws)
    solve(velocity, lambda: next(feed), SolverSettings("sde", steps, shift, level))
    expected = level / math.sqrt(1 - times[-2]) * math.sqrt(times[1])
    assert float(seen[1]) == pytest.approx(expected)


def test_grids() -> None:
    assert uniform_grid(4) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert uniform_grid(4, 3.0)[-1] == 1.0
    assert v1_grid(4)[-1] == pytest.approx(0.96)
    # The quirk that v1 keeps: under shift 3.2 the last time is 0.88.
    assert v1_grid(28, 3.2)[-1] == pytest.approx(0.88, abs=0.005)
    assert shift_time(0.5, 1.0) == 0.5
    assert shift_time(0.5, 3.0) < 0.5


@pytest.mark.parametrize("name", SOLVERS)
def test_the_noise_scale_multiplies_every_draw(name: str) -> None:
    velocity = gaussian_velocity(0.2, 0.5)
    whole, scaled = (torch.Generator().manual_seed(5) for _ in range(2))
    settings = SolverSettings(name, steps=6)
    wanted = solve(
        velocity, lambda: 0.7 * torch.randn(4, 8, generator=whole, dtype=torch.float64), settings
    )
    found = solve(
        velocity,
        lambda: torch.randn(4, 8, generator=scaled, dtype=torch.float64),
        replace(settings, noise_scale=0.7),
    )
    assert torch.equal(found, wanted)
    assert request_times(replace(settings, noise_scale=0.7)) == request_times(settings)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "euler"},
        {"steps": 0},
        {"steps": 10**9},
        {"name": "v1", "steps": 1},
        {"shift": 1e-20},
        {"shift": 0.0},
        {"shift": math.nan},
        {"noise_level": -0.1},
        {"noise_level": math.inf},
        {"noise_scale": -1.0},
        {"noise_scale": math.nan},
        {"steps": 4, "final_token_steps": 5},
        {"final_token_steps": -1},
        {"name": "v1", "final_token_steps": 1},
        {"name": "multistep", "steps": 2, "table": (0.3, -0.2), "final_token_steps": 1},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"solver|steps|shift|noise"):
        SolverSettings(**bad)


def test_steps_fall_along_the_tokens() -> None:
    settings = SolverSettings("v1", 12, 2.0, final_token_steps=4)
    counts = [settings.at(index, 9) for index in range(9)]
    assert [own.steps for own in counts] == [12, 11, 10, 9, 8, 7, 6, 5, 4]
    assert counts[0] == SolverSettings("v1", 12, 2.0)
    assert settings.draws == max(own.draws for own in counts)
    assert settings.at(0, 1).steps == 12
    even = SolverSettings("ode", 7)
    assert even.at(5, 9) is even
