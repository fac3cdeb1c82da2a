"""What fails in a step ends alone: the others keep going, with the bytes they have alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from nextstep.engine.backends.base import Prompt
from nextstep.engine.events import Event
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.sequence import TextSequence
from nextstep.engine.text_sampling import greedy
from nextstep.errors import NextStepError
from nextstep.flow.solvers import SolverSettings
from nextstep.pipeline import NextStepPipeline
from tests.conftest import TINY, random_model
from tests.engine.test_scheduler import alone, job, pictures

POISON = SolverSettings("ode", 7)
"""Marks the picture that the broken backend cannot make."""
WORDS = [7, 8, 9]
"""Ids before every text."""


def text(choose: Any = greedy) -> TextSequence:
    return TextSequence(Prompt(WORDS, []), 6, choose, (), ())


def poisoned() -> Any:
    asked = job(4)
    object.__setattr__(asked.decode, "solver", POISON)
    return asked


def broken(scheduler: Scheduler, phase: str, error: Exception, marked: list[int]) -> None:
    """Let a phase of the backend fail whenever the marked sequence takes part."""
    backend = scheduler.backend
    plain = getattr(backend, phase)

    def fails(*given: Any) -> Any:
        mine = [slot for t in marked if scheduler.knows(t) for slot in scheduler._sequence(t).slots]
        asked: Sequence[Any] = given[-1]
        if phase == "sample":
            bad = any(one.solver is POISON for one in given[0])
        elif phase == "prefill":
            bad = any(list(one.ids) == WORDS for one in given[0])
        elif phase == "step":
            bad = any(place.slot in mine for place in asked)
        else:
            bad = True
        if bad:
            raise error
        return plain(*given)

    setattr(backend, phase, fails)


@pytest.mark.parametrize("error", [NextStepError("not this one"), RuntimeError("out of memory")])
@pytest.mark.parametrize("phase", ["sample", "step", "prefill", "logits"])
def test_what_fails_ends_alone(phase: str, error: Exception) -> None:
    model, good = random_model(TINY), [job(2), job(5)]
    scheduler = Scheduler(model)
    tickets = [scheduler.submit(one) for one in good]
    marked = [scheduler.submit(poisoned() if phase in ("sample", "step") else text())]
    broken(scheduler, phase, error, marked)
    events = scheduler.run_until_idle()
    (failed,) = [event for event in events if event.kind == "failed"]
    assert (failed.ticket, failed.message) == (marked[0], str(error))
    assert failed.error is (None if isinstance(error, ValueError) else error)
    for ticket, one in zip(tickets, good, strict=True):
        assert torch.equal(pictures(events)[ticket], alone(model, one))
    assert not scheduler.used_bytes


def test_a_text_whose_id_cannot_be_chosen_leaves_the_draws_of_others_alone() -> None:
    def written(*others: TextSequence) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(3)

        def drawn(logits: torch.Tensor) -> int:
            return int(torch.multinomial(logits.softmax(-1), 1, generator=generator))

        scheduler = Scheduler(random_model(TINY))
        for one in others:
            scheduler.submit(one)
        ticket = scheduler.submit(text(drawn))
        ends: list[Event] = [e for e in scheduler.run_until_idle() if e.kind == "finished"]
        return next(event.ids for event in ends if event.ticket == ticket)

    def never(_: torch.Tensor) -> int:
        raise RuntimeError("no id")

    assert written(text(never)) == written()


def test_whoever_waits_gets_the_error_itself(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_pipeline.engine()
    error = RuntimeError("out of memory")

    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(engine.backend, "sample", fails)
    ticket = engine.submit(engine.request("a red apple"))
    with pytest.raises(RuntimeError) as caught:
        engine.wait([ticket])
    assert caught.value is error and engine.idle


def test_a_head_that_does_not_jump_refuses_its_solver_at_once() -> None:
    asked = job(2)
    object.__setattr__(asked.decode, "solver", SolverSettings("flow_map", 1))
    with pytest.raises(NextStepError, match="does not jump: solver 'flow_map'"):
        Scheduler(random_model(TINY)).submit(asked)
