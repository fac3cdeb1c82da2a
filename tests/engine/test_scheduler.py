"""The scheduler: equal bytes in any batch, admission, order, deadlines."""

from __future__ import annotations

import itertools
import math
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nextstep.engine.backends.base import Prompt
from nextstep.engine.backends.sampling_head import SamplingHead
from nextstep.engine.backends.torch import TorchBackend, cache_bytes
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.events import ENDS, Event
from nextstep.engine.scheduler import EngineLimits, Scheduler
from nextstep.engine.sequence import ImageSequence
from nextstep.errors import NextStepError
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SolverSettings
from nextstep.model.nextstep import NextStepModel
from tests.conftest import TINY, model_in, random_model
from tests.engine.reference import reference_tokens

BOI, PLACE = TINY.begin_of_image_id, TINY.image_placeholder_id
GRIDS = [(1, 1), (1, 3), (2, 2), (3, 1), (2, 1)]
HOW = [
    (SolverSettings("ode", 2), GuidanceSettings()),
    (SolverSettings("ode", 3, 2.0), GuidanceSettings(3.0)),
    (SolverSettings("v1", 2), GuidanceSettings(4.0, schedule="linear")),
    (SolverSettings("sde", 2), GuidanceSettings(2.0, 1.5)),
    (SolverSettings("cps", 2), GuidanceSettings(0.5)),
    (SolverSettings("heun", 1), GuidanceSettings(1.0, 2.0)),
    (SolverSettings("ab2", 2), GuidanceSettings(2.0)),
    (SolverSettings("v1", 5, final_token_steps=2), GuidanceSettings(3.0)),
]


def job(number: int, **more: object) -> ImageSequence:
    """A different picture for every number: text length, sources, grid, branches, solver."""
    dice = random.Random(number)
    solver, guidance = HOW[number % len(HOW)]
    edit = number % 3 == 0
    how = DecodeSettings(GRIDS[number % len(GRIDS)], solver, guidance, dice.random() < 0.8, edit)
    generator = torch.Generator().manual_seed(number)
    prompts = {}
    for name in how.branches:
        ids = [dice.randrange(6, 320) for _ in range(dice.randrange(1, 12))]
        source = [torch.randn(2, 64, generator=generator)] if edit else []
        prompts[name] = Prompt([*ids, *([PLACE, PLACE] if edit else []), BOI], source)
    return ImageSequence(prompts, how, (number, 1), **more)  # type: ignore[arg-type]


def check_once(monkeypatch: pytest.MonkeyPatch, model: NextStepModel) -> None:
    """Later backends of the model take the rows that this machine keeps apart, found once."""
    rows = Scheduler(model).backend.block_rows

    def known(backend: TorchBackend) -> None:
        if backend.block_rows != rows:
            backend.block_rows, backend.head = rows, SamplingHead(backend.model, rows)

    monkeypatch.setattr(TorchBackend, "check", known)


def pictures(events: list[Event]) -> dict[int, Tensor]:
    return {event.ticket: event.tokens for event in events if event.kind == "finished"}


def alone(model: NextStepModel, asked: ImageSequence) -> Tensor:
    scheduler = Scheduler(model)
    ticket = scheduler.submit(asked)
    return pictures(scheduler.run_until_idle())[ticket]


KINDS = ["float32", "bfloat16", "float32 fp32", "bfloat16 bf16", "float32 int8", "bfloat16 int4"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> NextStepModel:
    """In a number format, and maybe packed for the kernels."""
    return model_in(request.param)


def mix(model: NextStepModel, number: int, expected: dict[int, Tensor]) -> int:
    """A random mix with arrivals, cancellations and preemptions; gives how many were compared."""
    dice = random.Random(number)
    limits = EngineLimits(running=dice.choice([1, 3, 9]), cache_bytes=dice.choice([2**14, 2**20]))
    scheduler, asked, aside = Scheduler(model, limits), dict[int, int](), set[int]()
    arrivals = [dice.randrange(len(expected)) for _ in range(dice.randrange(2, 6))]
    events: list[Event] = []
    while arrivals or aside or not scheduler.idle:
        while arrivals and dice.random() < 0.6:
            name = arrivals.pop()
            asked[scheduler.submit(job(name, priority=dice.randrange(2)))] = name
        live = [t for t in asked if t not in {e.ticket for e in events if e.kind in ENDS}]
        if live and dice.random() < 0.25:
            ticket = dice.choice(live)
            scheduler.preempt(ticket)
            aside.add(ticket)
        if live and dice.random() < 0.03:
            ticket = dice.choice(live)
            scheduler.cancel(ticket)
            aside.discard(ticket)
        if aside and dice.random() < 0.5:
            ticket = aside.pop()
            scheduler.resume(ticket)
        events += scheduler.step()
    ends = [event for event in events if event.kind in ENDS]
    assert sorted(event.ticket for event in ends) == sorted(asked)
    for ticket, tokens in pictures(events).items():
        assert torch.equal(tokens, expected[asked[ticket]])
    return len(pictures(events))


def test_pictures_are_byte_equal_in_any_mix(
    model: NextStepModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_once(monkeypatch, model)
    expected = {number: alone(model, job(number)) for number in range(35)}
    assert sum(mix(model, number, expected) for number in range(100)) > 250


def test_without_blocks_the_batch_changes_the_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The equality above is not an accident of small shapes."""
    monkeypatch.setattr(TorchBackend, "check", lambda _: None)
    for module in ("torch", "sampling_head"):
        monkeypatch.setattr(f"nextstep.engine.backends.{module}.filled", lambda rows, size=8: rows)
    model = random_model(replace(TINY, hidden_size=64, fm_head_dim=64))
    expected = {number: alone(model, job(number)) for number in range(35)}
    with pytest.raises(AssertionError):
        for number in range(30):
            mix(model, number, expected)


def test_the_engine_draws_what_whole_passes_draw() -> None:
    """Up to rounding: the fixed shapes are another order of the same sums."""
    model = random_model(TINY)
    for number in range(15):
        asked = job(number)
        assert torch.allclose(alone(model, asked), reference_tokens(model, asked), atol=1e-4)


def test_known_tokens_are_taken_up_byte_for_byte(model: NextStepModel) -> None:
    """A cache rebuilt from tokens, R at a time, is the cache that grew one by one."""
    asked = job(1)
    asked = replace(asked, decode=replace(asked.decode, grid=(3, 5)))
    whole = alone(model, asked)
    for known in (0, 1, 7, 8, 9, 14, 15):
        assert torch.equal(alone(model, replace(asked, initial_tokens=whole[:known])), whole)


def test_learned_positions() -> None:
    model = random_model(replace(TINY, image_position_side=4))
    asked = [job(number) for number in (1, 2, 4)]
    scheduler = Scheduler(model)
    tickets = [scheduler.submit(one) for one in asked]
    together = pictures(scheduler.run_until_idle())
    for ticket, one in zip(tickets, asked, strict=True):
        assert torch.equal(together[ticket], alone(model, one))


def need(model: NextStepModel, asked: ImageSequence) -> int:
    return asked.check(model, 2**40)


def test_admission_keeps_within_the_memory() -> None:
    model = random_model(TINY)
    asked = [job(number) for number in range(12)]
    budget = max(need(model, one) for one in asked) + 1000
    scheduler = Scheduler(model, EngineLimits(cache_bytes=budget))
    for one in asked:
        scheduler.submit(one)
    done: list[Event] = []
    while not scheduler.idle:
        done += scheduler.step()
        assert scheduler.used_bytes <= budget
    assert len(pictures(done)) == 12
    assert scheduler._sequences == {}
    assert scheduler._served == {}


def test_what_can_never_run_is_refused_at_once() -> None:
    model, asked = random_model(TINY), job(2)
    with pytest.raises(NextStepError, match="bytes of key/value cache"):
        Scheduler(model, EngineLimits(cache_bytes=need(model, asked) - 1)).submit(asked)
    scheduler = Scheduler(model, EngineLimits(cache_bytes=need(model, asked), waiting=1))
    scheduler.submit(asked)
    with pytest.raises(NextStepError, match="1 pictures wait already"):
        scheduler.submit(asked)
    large = replace(asked, decode=replace(asked.decode, grid=(16, 16)))
    with pytest.raises(NextStepError, match="reads at most 256"):
        scheduler.submit(large)
    with pytest.raises(NextStepError, match="must be at least 1"):
        EngineLimits(running=0)


def test_one_row_takes_what_is_reported() -> None:
    assert cache_bytes(random_model(TINY), 10) == 2 * 2 * 2 * 8 * 10 * 4


def started(scheduler: Scheduler) -> list[int]:
    return [e.ticket for e in scheduler.run_until_idle() if e.kind == "started"]


def test_order_is_by_priority_then_by_turns_of_clients() -> None:
    model = random_model(TINY)
    scheduler = Scheduler(model, EngineLimits(running=1))
    greedy = [scheduler.submit(job(2, client="greedy")) for _ in range(3)]
    modest = [scheduler.submit(job(2, client="modest")) for _ in range(2)]
    urgent = scheduler.submit(job(2, priority=1, client="greedy"))
    order = [urgent, modest[0], greedy[0], modest[1], greedy[1], greedy[2]]
    assert started(scheduler) == order


def test_being_set_aside_is_not_charged_twice() -> None:
    scheduler = Scheduler(random_model(TINY))
    ticket = scheduler.submit(job(2, client="one"))
    scheduler.submit(job(1, client="other"))
    scheduler.step()
    before = dict(scheduler._served)
    scheduler.preempt(ticket)
    scheduler.step()
    scheduler.resume(ticket)
    scheduler.step()
    assert scheduler._served["one"] == before["one"] == 4


def test_waiting_counts_as_priority() -> None:
    scheduler = Scheduler(random_model(TINY), EngineLimits(running=1, aging=4))
    first = scheduler.submit(job(2))
    patient = scheduler.submit(job(2))
    order = []
    for _ in range(8):
        scheduler.submit(job(2, priority=1))
        for _ in range(4):
            order += [e.ticket for e in scheduler.step() if e.kind == "started"]
    assert first not in order[:1]
    assert patient in order


def test_small_pictures_pass_a_large_one_only_so_often() -> None:
    model = random_model(TINY)
    small = job(2)
    large = replace(small, decode=replace(small.decode, grid=(4, 5)))
    budget = need(model, large) + need(model, small) - 1
    scheduler = Scheduler(model, EngineLimits(cache_bytes=budget, passes=3))
    runs = scheduler.submit(small)
    scheduler.step()
    waits = scheduler.submit(large)
    others = [scheduler.submit(small) for _ in range(8)]
    order = started(scheduler)
    assert order == [*others[:3], waits, *others[3:]]
    assert runs not in order


def test_deadlines_use_the_given_clock() -> None:
    now = 0.0
    scheduler = Scheduler(random_model(TINY), clock=lambda: now)
    hurried = scheduler.submit(job(2, deadline=5.0))
    easy = scheduler.submit(job(2, deadline=math.inf))
    scheduler.step()
    now = 6.0
    events = scheduler.step()
    late = [event for event in events if event.kind == "late"]
    assert [event.ticket for event in late] == [hurried]
    assert len(late[0].tokens) == 1
    assert easy in pictures(scheduler.run_until_idle())


def test_events_of_one_picture_in_order() -> None:
    scheduler = Scheduler(random_model(TINY))
    ticket = scheduler.submit(job(2))
    events = scheduler.run_until_idle()
    assert [e.kind for e in events] == ["started", "token", "row", "token", "row", "finished"]
    assert [len(e.tokens) for e in events] == [0, 1, 2, 3, 4, 4]
    assert {e.ticket for e in events} == {ticket}


def test_stop_gives_what_is_there_and_unknown_tickets_are_an_error() -> None:
    scheduler = Scheduler(random_model(TINY))
    ticket = scheduler.submit(job(2))
    scheduler.step()
    scheduler.stop(ticket)
    (event,) = scheduler.step()
    assert (event.kind, len(event.tokens)) == ("stopped", 1)
    with pytest.raises(NextStepError, match="no picture 0 in the engine"):
        scheduler.cancel(ticket)


def test_one_bad_picture_does_not_hurt_the_others() -> None:
    model = random_model(TINY)
    good = job(2)
    rows = {
        name: Prompt([*p.ids, PLACE, BOI], [torch.full((1, 64), math.nan)])
        for name, p in good.prompts.items()
    }
    mismatched = {name: Prompt([*p.ids, PLACE, BOI]) for name, p in good.prompts.items()}
    scheduler = Scheduler(model)
    tickets = [scheduler.submit(one) for one in (good, replace(good, prompts=rows))]
    tickets.append(scheduler.submit(replace(good, prompts=mismatched)))
    events = scheduler.run_until_idle()
    failed = {event.ticket: event.message for event in events if event.kind == "failed"}
    assert "token 0 is not a finite number" in failed[tickets[1]]
    assert "1 image places but 0 image tokens" in failed[tickets[2]]
    assert torch.equal(pictures(events)[tickets[0]], alone(model, good))


def test_jobs_are_checked() -> None:
    asked = job(2)
    with pytest.raises(NextStepError, match="conditional branch of the picture has no prompt"):
        replace(asked, prompts={})
    with pytest.raises(NextStepError, match="5 tokens are given for a picture of 4"):
        replace(asked, initial_tokens=torch.zeros(5, 64))


PLAIN = torch.nn.functional.linear


def all_rows_mixed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return PLAIN(x, weight, bias) + x.mean() * 1e-3


def last_rows_of_eight_apart(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As MKL held to AVX2 does it: full tiles of rows are added in another order than the rest."""
    made = PLAIN(x, weight, bias)
    if len(made) == 8:
        made[6:] += 1e-6
    return made


@pytest.mark.parametrize(
    ("product", "rows"), [(PLAIN, 8), (last_rows_of_eight_apart, 4), (all_rows_mixed, 1)]
)
def test_blocks_have_as_many_rows_as_the_machine_keeps_apart(
    product: Callable, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(TINY)
    unchanged = Scheduler(model).backend.block_rows  # 8, and 4 where MKL is held to AVX2
    monkeypatch.setattr(torch.nn.functional, "linear", product)
    scheduler = Scheduler(model)
    assert scheduler.backend.block_rows == min(rows, unchanged) > 0
    jobs = [job(number) for number in range(3)]
    tickets = [scheduler.submit(one) for one in jobs]
    together = pictures(scheduler.run_until_idle())
    for ticket, one in zip(tickets, jobs, strict=True):
        assert torch.equal(together[ticket], alone(model, one))


def test_products_that_do_not_repeat_themselves_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, calls = TorchBackend(random_model(TINY)), itertools.count(1)

    def unsteady(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return PLAIN(x, weight, bias) + next(calls) * 1e-6

    monkeypatch.setattr(torch.nn.functional, "linear", unsteady)
    with pytest.raises(NextStepError, match="do not repeat themselves"):
        backend.check()


SIMULATED = """
import torch
from nextstep.engine.scheduler import Scheduler
from tests.conftest import TINY, random_model
from tests.engine.test_scheduler import alone, job, pictures

model = random_model(TINY)
scheduler = Scheduler(model)
jobs = [job(number) for number in range(5)]
tickets = [scheduler.submit(one) for one in jobs]
together = pictures(scheduler.run_until_idle())
assert all(torch.equal(together[t], alone(model, j)) for t, j in zip(tickets, jobs))
print(scheduler.backend.block_rows)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 libraries")
def test_pictures_keep_their_bytes_where_libraries_are_held_to_avx2() -> None:
    held = {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2", "NEXTSTEP_KERNELS": "off",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SIMULATED], cwd=Path(__file__).parents[2], check=False,
        env={**os.environ, **held}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) in (1, 2, 4, 8)
