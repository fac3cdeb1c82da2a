"""Solvers: from noise to one image token by integrating a velocity.

A solver asks for velocities at (x [..., D], t float) and takes a stream of standard normal draws
of the shape of x; it knows no network. It is a generator, so that whoever answers may collect the
questions of many solvers first; when it asks does not depend on the answers. All arithmetic is in
the dtype of the draws (fp32 in practice). In every rule n and d are the predicted noise and data
at (x, t).

Released variants (four code lines disagree, docs/concepts/solvers.md):
    v1      stochastic Euler to t = 0.96, then a deterministic step of 0.04
    v1.1    the same rule on a full grid, noise at the last step included
    sde     Flow-GRPO form with noise level
    cps     Flow-CPS form: coefficients keep the variance of the path; last step noise free
    ode     Euler
Ours:
    midpoint, heun   second order, two velocities a step
    ab2              second order Adams-Bashforth on an uneven grid, one velocity a step
    multistep        a rule given by a table of numbers, see `multistep`; without one `ab2` begun by
                     Euler's step
    flow_map         jumps of a head that predicts mean velocities, guidance folded in

Legend: D values per token after any leading shape; K velocity requests of a solver; t from 0
(noise) to 1 (data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from nextstep.flow import multistep
from nextstep.flow.multistep import Table
from nextstep.flow.path import V1_LAST_TIME, predicted_data, predicted_noise, uniform_grid, v1_grid

if TYPE_CHECKING:
    from torch import Tensor

Velocity: TypeAlias = "Callable[[Tensor, float], Tensor]"
Draw: TypeAlias = "Callable[[], Tensor]"
VelocityRequests: TypeAlias = "Generator[tuple[Tensor, float], Tensor, Tensor]"
"""Yields (x, t), is sent the velocity there, returns the token."""
DEFAULT_NOISE_LEVEL = 0.8
MAX_STEPS = 10_000
SHIFT_RANGE = (0.01, 100.0)


@dataclass(frozen=True)
class SolverSettings:
    """How one image token is integrated.

    Attributes:
        name: one of `SOLVERS`.
        steps: intervals of the time grid (v1: points of it, at least 2).
        shift: time shift, 1 is none.
        noise_level: strength of `sde` and `cps`; the others ignore it.
        guidance: of `flow_map`, whose head is told it; the others have branches for it.
        noise_from, noise_steps: a window of `sde` and `cps`: so many steps from number `noise_from`
            on are stochastic and all others are Euler's (MixGRPO, arXiv 2507.21802); 0 steps make
            all of them stochastic.
        noise_scale: every draw is multiplied by it; below 1 tokens come from nearer the middle of
            what the head holds possible (as the temperature of MAR does, arXiv 2406.11838).
        table: of `multistep` with as many steps, whose times then need no shift; empty for none.
        final_token_steps: of a picture's last token; steps fall evenly from `steps` at the first
            token to it (DiSA, arXiv 2505.20297: later tokens know more context). 0 keeps `steps`.

    Raises:
        ValueError: for an unknown name, a value out of range, or steps that fall below a table's.
    """

    name: str = "ode"
    steps: int = 20
    shift: float = 1.0
    noise_level: float = DEFAULT_NOISE_LEVEL
    noise_scale: float = 1.0
    table: Table = ()
    final_token_steps: int = 0
    noise_from: int = 0
    noise_steps: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in SOLVERS:
            raise ValueError(f"unknown solver '{self.name}'; choose from {', '.join(SOLVERS)}")
        least = 2 if self.name == "v1" else 1
        most = multistep.MAX_STEPS if self.name == "multistep" else MAX_STEPS
        if not least <= self.steps <= most:
            raise ValueError(
                f"steps must be at least {least} and at most {most} for solver "
                f"'{self.name}', not {self.steps}"
            )
        if not SHIFT_RANGE[0] <= self.shift <= SHIFT_RANGE[1]:
            raise ValueError(
                f"time shift must lie between {SHIFT_RANGE[0]} and {SHIFT_RANGE[1]:.0f}, "
                f"not {self.shift}"
            )
        if not (math.isfinite(self.noise_level) and 0 <= self.noise_level <= 1):
            raise ValueError(f"noise level must lie between 0 and 1, not {self.noise_level}")
        if not (math.isfinite(self.noise_scale) and 0 <= self.noise_scale <= 2):
            raise ValueError(f"noise scale must lie between 0 and 2, not {self.noise_scale}")
        if self.table:
            multistep.check_table(self.table, self.steps)
        self._check_window()
        if not self.final_token_steps:
            return
        if self.table:
            raise ValueError(
                f"a fitted solver takes {self.steps} steps for every token: choose another one "
                "(such as ab2), or no last steps"
            )
        if not least <= self.final_token_steps <= self.steps:
            raise ValueError(
                f"last steps must be at least {least} and at most the {self.steps} of the first "
                f"token, not {self.final_token_steps}"
            )

    def _check_window(self) -> None:
        if self.noise_from < 0 or self.noise_steps < 0:
            raise ValueError("noise from and noise steps must not be negative")
        if not self.noise_steps:
            return
        if self.noise_from + self.noise_steps > self.steps:
            raise ValueError(
                f"{self.noise_steps} stochastic steps from number {self.noise_from} on do not fit "
                f"into {self.steps} steps"
            )
        if self.final_token_steps:
            raise ValueError("a window of stochastic steps needs as many steps for every token")

    def at(self, index: int, count: int) -> SolverSettings:
        """What token `index` of a picture of `count` is integrated by."""
        if not self.final_token_steps:
            return self
        # max: a picture of one token takes the steps of the first.
        fall = (self.steps - self.final_token_steps) * index / max(1, count - 1)
        return replace(self, steps=round(self.steps - fall), final_token_steps=0)

    @property
    def draws(self) -> int:
        """Normal draws the first token takes, the starting point included; later ones no more."""
        # The last step of `v1` is plain; every step of `v1.1` is stochastic.
        extra = {"v1": self.steps - 1, "v1.1": self.steps}
        if self.name in STEP_RULES:
            # The last step of `cps` is free of noise.
            last = self.steps - (self.name == "cps")
            return 1 + sum(self.is_stochastic(step) for step in range(last))
        return 1 + extra.get(self.name, 0)

    def is_stochastic(self, step: int) -> bool:
        """Whether step number `step` of `sde` or `cps` draws noise, if any step does there."""
        if not self.noise_steps:
            return True
        return self.noise_from <= step < self.noise_from + self.noise_steps


def solve(velocity: Velocity, draw: Draw, settings: SolverSettings) -> Tensor:
    """One token per row: start from a draw, integrate to data.

    Args:
        velocity: (x [..., D], t) -> velocity [..., D], guidance already applied.
        draw: each call gives the next standard normal tensor [..., D] of the stream.
        settings: which solver, how many steps.

    Returns:
        [..., D].
    """
    requests = velocity_requests(draw, settings)
    try:
        x, t = next(requests)
        while True:
            x, t = requests.send(velocity(x, t))
    except StopIteration as end:
        token: Tensor = end.value
        return token


def velocity_requests(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    """The same as a generator of questions."""
    scale = settings.noise_scale
    return SOLVERS[settings.name](draw if scale == 1 else lambda: scale * draw(), settings)


def request_times(settings: SolverSettings) -> list[float]:
    """The times a solver asks for, in order."""
    import torch

    requests, times, nothing = (
        velocity_requests(lambda: torch.zeros(1), settings),
        [],
        torch.zeros(1),
    )
    try:
        times.append(next(requests)[1])
        while True:
            times.append(requests.send(nothing)[1])
    except StopIteration:
        return times


def request_rows(settings: SolverSettings) -> Tensor:
    """What a flow head is told with every question: time, span of the jump, guidance; [K, 3].

    Only `flow_map` jumps; the span of the others is 0.
    """
    import torch

    times = request_times(settings)
    spans = [0.0] * len(times)
    if settings.name == "flow_map":
        spans = [after - t for t, after in pairwise([*times, 1.0])]
    return torch.tensor([[t, s, settings.guidance] for t, s in zip(times, spans, strict=True)])


def _langevin_step(x: Tensor, v: Tensor, t: float, dt: float, xi: Tensor) -> Tensor:
    """x + (v - n)*dt + sqrt(2(1-t)dt)*xi: Euler on the SDE whose marginals are the path's."""
    n = predicted_noise(x, v, t)
    return x + (v - n) * dt + math.sqrt(2 * (1 - t) * dt) * xi


def _solve_v1(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    times = v1_grid(settings.steps, settings.shift)
    x = draw()
    for t, after in pairwise(times):
        x = _langevin_step(x, (yield x, t), t, after - t, draw())
    # The released code takes a fixed step of 0.04 here; with a time shift the last time is not 0.96
    # and the result stops short of t = 1.
    return x + (1 - V1_LAST_TIME) * (yield x, times[-1])


def _solve_v1_1(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    times = uniform_grid(settings.steps, settings.shift)
    x = draw()
    for t, after in pairwise(times):
        x = _langevin_step(x, (yield x, t), t, after - t, draw())
    return x


def sde_step(
    x: Tensor, v: Tensor, t: float, after: float, settings: SolverSettings
) -> tuple[Tensor, float]:
    """Mean and standard deviation of a step of Flow-GRPO's form, from (x, t) to time `after`.

    std = level*sqrt(sigma/(1-sigma)) with sigma = 1-t; noise at the last step too.
    """
    dt, sigma = after - t, 1 - t
    # At t = 0 the denominator 1 - sigma vanishes; the released code takes 1 minus the second-last
    # time of the grid there, which is the second time only without a shift.
    first = 1 - uniform_grid(settings.steps, settings.shift)[-2]
    std = settings.noise_level * math.sqrt(sigma / (t if t > 0 else first))
    n, d = predicted_noise(x, v, t), predicted_data(x, v, t)
    # What the stochastic step adds in variance, the drift takes from the predicted noise, so that
    # the marginals stay those of the path.
    drift = std**2 * dt / (2 * sigma)
    return n * (1 - after - drift) + d * after, std * math.sqrt(dt)


def cps_step(
    x: Tensor, v: Tensor, t: float, after: float, settings: SolverSettings
) -> tuple[Tensor, float]:
    """Mean and standard deviation of a step of Flow-CPS' form, from (x, t) to time `after`.

    std = (1-t')*sin(level*pi/2); what noise is left keeps the total at (1-t').
    """
    n, d = predicted_noise(x, v, t), predicted_data(x, v, t)
    std = (1 - after) * math.sin(settings.noise_level * math.pi / 2)
    # max: rounding can make the difference slightly negative at a noise level of 1.
    kept = math.sqrt(max((1 - after) ** 2 - std**2, 0.0))
    return n * kept + d * after, std if after < 1 else 0.0


STEP_RULES = {"sde": sde_step, "cps": cps_step}
"""Solvers whose steps are Gaussian with a density: what policy gradients need."""


def _solve_stochastic(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    step, times = STEP_RULES[settings.name], uniform_grid(settings.steps, settings.shift)
    x = draw()
    for number, (t, after) in enumerate(pairwise(times)):
        v = yield x, t
        if not settings.is_stochastic(number):
            x = x + (after - t) * v
            continue
        x, std = step(x, v, t, after, settings)
        # `sde` takes a sample even where std is 0: the number of samples per token is fixed.
        if std or settings.name == "sde":
            x = x + std * draw()
    return x


def _solve_ode(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    times = uniform_grid(settings.steps, settings.shift)
    x = draw()
    for t, after in pairwise(times):
        x = x + (after - t) * (yield x, t)
    return x


def _solve_midpoint(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    times = uniform_grid(settings.steps, settings.shift)
    x = draw()
    for t, after in pairwise(times):
        dt = after - t
        middle = x + dt / 2 * (yield x, t)
        x = x + dt * (yield middle, t + dt / 2)
    return x


def _solve_heun(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    times = uniform_grid(settings.steps, settings.shift)
    x = draw()
    for t, after in pairwise(times):
        dt = after - t
        v = yield x, t
        x = x + dt / 2 * (v + (yield x + dt * v, after))
    return x


def _solve_ab2(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    """Line through the last two velocities, integrated over the step; midpoint to begin with."""
    times = uniform_grid(settings.steps, settings.shift)
    x = draw()
    before: tuple[float, Tensor] | None = None
    for t, after in pairwise(times):
        dt = after - t
        v = yield x, t
        if before is None:
            # No earlier velocity yet: a midpoint step keeps second order.
            slope_step = dt * (yield x + dt / 2 * v, t + dt / 2)
        else:
            # The line through (t0, v0) and (t, v), integrated from t to t + dt: dt*v + dt^2/2 *
            # (v - v0)/(t - t0); the steps may differ in length.
            ratio = dt / (2 * (t - before[0]))
            slope_step = dt * (v + ratio * (v - before[1]))
        before = (t, v)
        x = x + slope_step
    return x


def _solve_multistep(draw: Draw, settings: SolverSettings) -> VelocityRequests:
    table = settings.table or multistep.adams_bashforth(settings.steps, settings.shift)
    x = draw()
    velocities: list[Tensor] = []
    for t, row in zip(*multistep.rule(table, settings.steps), strict=True):
        velocities.append((yield x, t))
        for share, v in zip(row, velocities, strict=True):
            # Rules of low order have many zeros, which need no product.
            x = x + share * v if share else x
    return x


SOLVERS: dict[str, Callable[[Draw, SolverSettings], VelocityRequests]] = {
    "v1": _solve_v1,
    "v1.1": _solve_v1_1,
    "sde": _solve_stochastic,
    "cps": _solve_stochastic,
    "ode": _solve_ode,
    "midpoint": _solve_midpoint,
    "heun": _solve_heun,
    "ab2": _solve_ab2,
    "multistep": _solve_multistep,
    # A jump over a span by its mean velocity is Euler's step.
    "flow_map": _solve_ode,
}
