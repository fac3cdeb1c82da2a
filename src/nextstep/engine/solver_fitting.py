"""Fitting a solver of few steps to one of many, for one model and its guidance.

Tokens are sampled with the solver of many steps; what stood before each, its noise and the token
that came out are kept. Then times and sums of a rule of few steps (`flow.multistep`) are found by
gradient, so that it makes the same tokens of the same noise. (S4S, arXiv 2502.17423.)

Legend: M tokens, b branches, D values per token, E hidden size, W head width, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Backend, SampleRequest
from nextstep.engine.scheduler import draw
from nextstep.engine.sequence import ImageSequence
from nextstep.errors import NextStepError
from nextstep.flow.guidance import combine
from nextstep.flow.multistep import Table, adams_bashforth, check_fit, rule
from nextstep.flow.solvers import SolverSettings
from nextstep.model.flow_head import FlowHead
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import token_norm

TEACHER = SolverSettings("midpoint", 50)
"""100 evaluations; a fifth of them come seven times nearer on nano than 8 steps of `ab2`."""
LEAST_GAP = 1e-3
"""Times stay this far apart, as a share of their own part."""


@dataclass(frozen=True)
class TokenSamples:
    """Tokens of a solver of many steps.

    Attributes:
        hidden: [b, M, E], states of the branches.
        weights: a branch -> [M, 1], of its velocity.
        noise: [M, D], multiplied by the noise scale.
        tokens: [M, D] as they came out, normalised if `normalised`.
        normalised: whether tokens are.
    """

    hidden: Tensor
    weights: dict[str, Tensor]
    noise: Tensor
    tokens: Tensor
    normalised: bool

    def __len__(self) -> int:
        return len(self.noise)

    def part(self, places: Tensor) -> TokenSamples:
        """Some of them."""
        weights = {name: weight[places] for name, weight in self.weights.items()}
        return TokenSamples(
            self.hidden[:, places], weights, self.noise[places], self.tokens[places],
            self.normalised,
        )  # fmt: skip

    @staticmethod
    def together(parts: list[TokenSamples]) -> TokenSamples:
        """TokenSamples of several batches with the same branches."""
        first = parts[0]
        return TokenSamples(
            torch.cat([part.hidden for part in parts], dim=1),
            {name: torch.cat([part.weights[name] for part in parts]) for name in first.weights},
            torch.cat([part.noise for part in parts]),
            torch.cat([part.tokens for part in parts]),
            first.normalised,
        )


class Recorder:
    """A backend that keeps what every token was made of.

    Args:
        backend: that computes.

    Attributes:
        kept: of every call of `sample`.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.kept: list[TokenSamples] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """See `Backend.sample`."""
        tokens = self.backend.sample(requests)
        first = requests[0]
        weights = {
            name: torch.tensor([[one.weights[name]] for one in requests]) for name in first.branches
        }
        states = torch.stack([one.hidden.float().cpu() for one in requests], dim=1)
        noise = torch.stack([one.solver.noise_scale * one.draws[0].cpu() for one in requests])
        self.kept.append(TokenSamples(states, weights, noise, torch.stack(tokens), first.normalise))
        return tokens


def record(model: NextStepModel, jobs: Sequence[ImageSequence]) -> TokenSamples:
    """Sample pictures together and keep their tokens.

    Args:
        model: in eval mode.
        jobs: alike in settings, with a solver that draws no noise on its way, such as `TEACHER`.

    Raises:
        NextStepError: when the solver draws noise on its way.
    """
    solver = jobs[0].decode.solver
    if solver.draws != 1:
        raise NextStepError(
            f"solver '{solver.name}' draws noise on its way, so no other can make its "
            "tokens; fit to ode, midpoint, heun, ab2 or multistep"
        )
    recorder = Recorder(backend_of(model, block_rows=0))
    draw(model, jobs, recorder)
    return TokenSamples.together(recorder.kept)


class Rule(nn.Module):
    """A multistep rule whose numbers are parameters; times stay in order.

    Args:
        steps: S, at least 2.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        table = adams_bashforth(steps)
        times, rows = rule(table, steps)
        gaps = torch.tensor([*times[1:], 1.0]) - torch.tensor(times)
        self.steps = steps
        self.gaps = nn.Parameter(gaps.log())
        self.before = nn.Parameter(torch.tensor([c for row in rows for c in row[:-1]]))

    def numbers(self) -> tuple[Tensor, Tensor]:
        """(times [S + 1] from 0 to 1, sums c [S, S], zero above the diagonal)."""
        gaps = self.gaps.softmax(0) + LEAST_GAP / self.steps
        gaps = gaps / gaps.sum()
        times = torch.cat((gaps.new_zeros(1), gaps.cumsum(0)))
        rows, columns = torch.tril_indices(self.steps, self.steps, -1)
        sums = gaps.new_zeros(self.steps, self.steps).index_put((rows, columns), self.before)
        return times, sums + torch.diag(gaps - sums.sum(1))

    def table(self) -> Table:
        """As `SolverSettings` takes it."""
        times, sums = (part.detach().double() for part in self.numbers())
        rows, columns = torch.tril_indices(self.steps, self.steps, -1)
        return (*times[1:-1].tolist(), *sums[rows, columns].tolist())

    def forward(self, velocity: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """Noise [M, D] -> tokens [M, D]; velocity takes x and a time []."""
        times, sums = self.numbers()
        asked: list[Tensor] = []
        for k in range(self.steps):
            asked.append(velocity(x, times[k]))
            x = x + (sums[k, : k + 1, None, None] * torch.stack(asked)).sum(0)
        return x


@dataclass(frozen=True)
class Fitted:
    """What `fit` gives.

    Attributes:
        table: of the rule.
        before, after: distance of a token to the one of many steps, root of the mean square of a
            value, by `ab2` begun by Euler's step and by the fitted rule, on tokens that were not
            fitted to.
    """

    table: Table
    before: float
    after: float


def fit(
    head: FlowHead,
    condition: Callable[[Tensor], Tensor],
    samples: TokenSamples,
    steps: int,
    iterations: int = 300,
    batch: int = 256,
    rate: float = 0.01,
    seed: int = 0,
    on_iteration: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Find a rule of few steps.

    Args:
        head: of the model in fp32, weights not packed.
        condition: hidden states [..., E] -> what the head is given, e.g. `image_condition`.
        samples: a fifth of them is kept for judging.
        steps: S, at least 2.
        iterations: of Adam, each on `batch` tokens; its rate falls from `rate` to 0.
        seed: of the choice of tokens.
        on_iteration: told (number, mean square).

    Raises:
        NextStepError: when there are too few samples, or too few or many steps.
    """
    check_fit(steps, len(samples))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(samples), generator=generator)
    held, own = order[: len(order) // 5], order[len(order) // 5 :]
    found = Rule(steps)
    optimizer = torch.optim.Adam(found.parameters(), rate)
    with torch.no_grad():
        conditions = head.embed_condition(condition(samples.hidden).float())
        before = mean_square(found, head, conditions, samples, held).sqrt().item()
    for number in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * number / iterations))
        places = own[torch.randint(len(own), (min(batch, len(own)),), generator=generator)]
        error = mean_square(found, head, conditions, samples, places)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        if on_iteration is not None:
            on_iteration(number, error.item())
    with torch.no_grad():
        after = mean_square(found, head, conditions, samples, held).sqrt().item()
    return Fitted(found.table(), before, after)


def mean_square(
    found: Rule,
    head: FlowHead,
    conditions: Tensor,
    samples: TokenSamples,
    places: Tensor,
) -> Tensor:
    """Mean square of the distance of a rule's tokens to the given ones, [].

    Args:
        found: the rule.
        head: of the model.
        conditions: embedded, [b, M, W].
        samples: what it is to make.
        places: of those that count.
    """
    part, own = samples.part(places), conditions[:, places]
    names, b = list(part.weights), len(own)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        rows = x.expand(b, -1, -1)
        return combine(head.velocity(rows, head.embed_time(t[None]), own), names, part.weights)

    token = found(velocity, part.noise)
    return (token_norm(token) if part.normalised else token).sub(part.tokens).pow(2).mean()
