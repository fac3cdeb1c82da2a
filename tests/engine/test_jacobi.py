"""Jacobi decoding: exact at tolerance 0, self-consistent within it, the same bytes in any batch."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nextstep.engine.backends.base import Prompt
from nextstep.engine.decode import DecodeSettings, FixedTokens
from nextstep.engine.events import Event
from nextstep.engine.jacobi import JacobiDecoding, guesses
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.sequence import ImageSequence
from nextstep.errors import NextStepError
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SolverSettings
from nextstep.model.nextstep import NextStepModel
from tests.conftest import TINY, model_in, random_model

ONE = JacobiDecoding()
GRID = (4, 5)
SOLVERS = [SolverSettings("ode", 2), SolverSettings("ab2", 3), SolverSettings("v1", 3)]
KINDS = ["float32", "bfloat16", "float32 fp32", "bfloat16 bf16", "bfloat16 int8"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> NextStepModel:
    return model_in(request.param)


def job(number: int, jacobi: JacobiDecoding, given: FixedTokens | None = None) -> ImageSequence:
    dice = random.Random(number)
    guidance = GuidanceSettings(2.0, schedule="linear") if number % 2 else GuidanceSettings(3.0)
    how = DecodeSettings(GRID, SOLVERS[number % 3], guidance, jacobi=jacobi)
    prompts = {
        name: Prompt([*(dice.randrange(6, 320) for _ in range(4)), TINY.begin_of_image_id])
        for name in how.branches
    }
    return ImageSequence(prompts, how, (number, 0), given=given)


def drawn(model: NextStepModel, asked: ImageSequence) -> tuple[Tensor, int]:
    """Tokens, and passes they took."""
    scheduler = Scheduler(model)
    scheduler.submit(asked)
    passes, events = 0, list[Event]()
    while not scheduler.idle:
        events += scheduler.step()
        passes += 1
    assert events[-1].kind == "finished"
    counts = [len(event.tokens) for event in events if event.kind in ("token", "row")]
    assert counts == sorted(set(counts))
    return events[-1].tokens, passes


def test_without_tolerance_every_byte_is_the_plain_one(model: NextStepModel) -> None:
    for number in range(3):
        plain, _ = drawn(model, job(number, ONE))
        for width in (2, 5, 64):
            assert torch.equal(drawn(model, job(number, JacobiDecoding(width, 0.0)))[0], plain)


def test_every_token_lies_within_the_tolerance_of_what_those_before_it_give(
    model: NextStepModel,
) -> None:
    """And it takes fewer passes, or guesses would be for nothing."""
    taken, tolerance = 0, 0.05
    for number in range(3):
        tokens, passes = drawn(model, job(number, JacobiDecoding(6, tolerance)))
        taken += passes
        for index in range(len(tokens)):
            scheduler = Scheduler(model)
            ticket = scheduler.submit(replace(job(number, ONE), initial_tokens=tokens[:index]))
            scheduler.step()
            try:
                plain = scheduler.tokens(ticket)[index]
            except NextStepError:
                continue  # the last one ends it
            assert float((plain - tokens[index]).square().mean().sqrt()) <= tolerance
    assert taken < 3 * 20


def test_batch_composition_and_preemption_change_no_byte(model: NextStepModel) -> None:
    asked = [job(n, JacobiDecoding(2 + n, 0.3) if n % 4 else ONE) for n in range(6)]
    alone = [drawn(model, one)[0] for one in asked]
    for seed in range(5):
        dice, scheduler = random.Random(seed), Scheduler(model)
        tickets, aside = {scheduler.submit(one): place for place, one in enumerate(asked)}, set()
        done: dict[int, Tensor] = {}
        while len(done) < len(asked):
            live = [ticket for ticket in tickets if ticket not in done]
            ticket = dice.choice(live)
            if dice.random() < 0.4:
                scheduler.preempt(ticket)
                aside.add(ticket)
            for ticket in [one for one in aside if dice.random() < 0.6]:
                scheduler.resume(ticket)
                aside.discard(ticket)
            done |= {e.ticket: e.tokens for e in scheduler.step() if e.kind == "finished"}
        for ticket, place in tickets.items():
            assert torch.equal(done[ticket], alone[place])


def test_it_goes_on_from_tokens_and_guesses() -> None:
    model, asked = random_model(TINY), job(1, JacobiDecoding(6, 0.3))
    whole, passes = drawn(model, asked)
    for stop in range(1, passes):
        scheduler = Scheduler(model)
        ticket = scheduler.submit(asked)
        for _ in range(stop):
            scheduler.step()
        tokens, left = scheduler.tokens(ticket), scheduler.guesses(ticket)
        again = replace(asked, initial_tokens=tokens, initial_guesses=left)
        assert torch.equal(drawn(model, again)[0], whole)
    with pytest.raises(NextStepError, match="more guesses than its Jacobi window"):
        replace(asked, initial_tokens=whole[:-1], initial_guesses=whole[:1])
    with pytest.raises(NextStepError, match="more guesses than its Jacobi window"):
        replace(asked, initial_guesses=whole[:1])


def test_given_tokens_are_never_guessed() -> None:
    model = random_model(TINY)
    sampled = torch.tensor([bool(i % 7) for i in range(20)])
    given = FixedTokens(torch.randn(20, 64, generator=torch.Generator().manual_seed(1)), sampled)
    plain, _ = drawn(model, job(2, ONE, given))
    ahead, _ = drawn(model, job(2, JacobiDecoding(8, 0.0), given))
    assert torch.equal(ahead, plain)
    loose, _ = drawn(model, job(2, JacobiDecoding(8, 1.0), given))
    assert torch.equal(loose[~sampled], given.tokens[~sampled])


def test_a_token_that_is_no_number_ends_it() -> None:
    model = random_model(TINY)
    torch.nn.init.constant_(model.image_head.net.final_layer.linear.bias, math.inf)
    scheduler = Scheduler(model)
    scheduler.submit(job(0, JacobiDecoding(4, 0.2)))
    last = scheduler.run_until_idle()[-1]
    assert (last.kind, "image token 0 is not a finite number" in last.message) == ("failed", True)


def test_how_many_are_guessed() -> None:
    nothing = lambda index: False  # noqa: E731
    assert [JacobiDecoding(4).room(i, 10, nothing) for i in (1, 6, 7, 8, 9, 10)] == [
        3,
        3,
        2,
        1,
        0,
        0,
    ]
    assert ONE.room(3, 10, nothing) == 0
    assert [JacobiDecoding(4).room(i, 10, lambda j: j == 5) for i in (1, 2, 3, 4)] == [3, 2, 1, 0]


def test_settling_stops_at_the_first_that_moved() -> None:
    made = [torch.full((4,), float(value)) for value in (1, 2, 3, 4)]
    fed = [torch.full((4,), value) for value in (1.05, 2.5, 3.0)]
    known = JacobiDecoding(4, 0.1).settle(made, fed)
    assert [float(token[0]) for token in known] == pytest.approx([1.05, 2])
    moved = [torch.full((4,), math.nan), *fed[1:]]
    assert len(JacobiDecoding(4, 0.1).settle(made, moved)) == 1
    assert [len(guesses(made[2:], room, 4)) for room in (0, 1, 3)] == [0, 1, 3]


@pytest.mark.parametrize("bad", [(0, 0.1), (65, 0.1), (4, -0.1), (4, 1.5), (4, math.nan)])
def test_values_out_of_range(bad: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        JacobiDecoding(*bad)
