"""Every backend over one list of different requests, against whole passes without a cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nextstep.engine.backends.base import Backend, Place, Prompt, distinct
from nextstep.engine.backends.cpu_kernels import CpuKernels
from nextstep.engine.backends.cuda_graphs import CudaGraphs
from nextstep.engine.backends.torch import TorchBackend
from nextstep.engine.decode import DecodeSettings, FixedTokens
from nextstep.engine.jacobi import JacobiDecoding
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.sequence import ImageSequence, TextSequence
from nextstep.engine.text_sampling import greedy
from nextstep.flow.guidance import CONDITIONAL, IMAGE_ONLY, GuidanceSettings
from nextstep.flow.solvers import SOLVERS, SolverSettings
from nextstep.kernels import build
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import pack_model
from tests.conftest import PACKABLE, random_model
from tests.engine.reference import reference_tokens

CONFIG = replace(PACKABLE, image_position_side=4)
BOI, PLACE = CONFIG.begin_of_image_id, CONFIG.image_placeholder_id


def tape(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Records as a graph does: later calls see the buffers and no arguments of the time."""
    result = run().clone()
    return lambda: result.copy_(run()), result


def kernels(model: NextStepModel) -> Backend:
    if not build.is_available():
        pytest.skip(build.why_not())
    packed = copy.deepcopy(model)
    pack_model(packed, "fp32")
    return CpuKernels(packed)


BACKENDS: dict[str, Callable[[NextStepModel], Backend]] = {
    "torch, invariant": TorchBackend,
    "torch": lambda model: TorchBackend(model, block_rows=0),
    "cpu_kernels": kernels,
    "cuda_graphs": lambda model: CudaGraphs(model, tape),
}


@pytest.fixture(scope="module")
def model() -> NextStepModel:
    return random_model(CONFIG)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, model: NextStepModel) -> Backend:
    return BACKENDS[request.param](model)


ODE, TWO, THREE = SolverSettings("ode", 3), GuidanceSettings(2.0), GuidanceSettings(2.0, 1.5)


def source(seed: int) -> Tensor:
    return torch.randn(2, CONFIG.token_size, generator=torch.Generator().manual_seed(seed))


def job(
    key: int,
    sources: int = 0,
    text: int = 4,
    solver: SolverSettings = ODE,
    guidance: GuidanceSettings = TWO,
    grid: tuple[int, int] = (2, 3),
    **more: object,
) -> ImageSequence:
    """A picture with so many sources and ids of text."""
    ahead = more.pop("jacobi", JacobiDecoding())
    how = DecodeSettings(grid, solver, guidance, True, sources > 0, ahead)  # type: ignore[arg-type]
    prompts = {}
    for name in how.branches:
        shown = sources if name in (CONDITIONAL, IMAGE_ONLY) else 0
        words = range(7, 7 + text) if name == CONDITIONAL else ()
        ids = [*([PLACE] * 2 * shown), *words, BOI]
        prompts[name] = Prompt(ids, [source(n) for n in range(shown)], [(1, 2)] * shown)
    return ImageSequence(prompts, how, (key, 0), **more)  # type: ignore[arg-type]


def some_given() -> FixedTokens:
    generator = torch.Generator().manual_seed(5)
    sampled = torch.tensor([False, True, True, False, True, False])
    return FixedTokens(torch.randn(6, CONFIG.token_size, generator=generator), sampled)


JOBS = {
    "text to image": job(1),
    "no guidance": job(2, guidance=GuidanceSettings(1.0)),
    "rising guidance": job(3, guidance=GuidanceSettings(3.0, schedule="linear-rising")),
    "edit of one": job(4, 1, guidance=THREE),
    "edit of two": job(5, 2, 7, guidance=THREE),
    "mask": job(6, 1, guidance=THREE, given=some_given()),
    "fewer steps later": job(7, solver=SolverSettings("v1", 4, final_token_steps=2)),
    "look-ahead": job(8, jacobi=JacobiDecoding(4, 0.0)),
    "tall": job(9, grid=(4, 1)),
} | {
    f"solver {name}": job(20, solver=SolverSettings(name, 3))
    for name in SOLVERS
    if name != "flow_map"  # of heads that jump, see tests/train/stages/test_distill.py
}


@pytest.fixture(scope="module")
def expected(model: NextStepModel) -> dict[str, Tensor]:
    return {name: reference_tokens(model, asked) for name, asked in JOBS.items()}


def drawn(backend: Backend, asked: list[ImageSequence], model: NextStepModel) -> list[Tensor]:
    scheduler = Scheduler(model, backend=backend)
    tickets = [scheduler.submit(one) for one in asked]
    ends = {e.ticket: e.tokens for e in scheduler.run_until_idle() if e.kind == "finished"}
    return [ends[ticket] for ticket in tickets]


@pytest.mark.parametrize("name", JOBS)
def test_every_backend_draws_what_whole_passes_draw(
    name: str, backend: Backend, model: NextStepModel, expected: dict[str, Tensor]
) -> None:
    (tokens,) = drawn(backend, [JOBS[name]], model)
    assert torch.allclose(tokens, expected[name], atol=1e-3)


def test_heterogeneous_requests_in_one_batch(
    backend: Backend, model: NextStepModel, expected: dict[str, Tensor]
) -> None:
    for (name, right), tokens in zip(
        expected.items(), drawn(backend, list(JOBS.values()), model), strict=True
    ):
        assert torch.allclose(tokens, right, atol=1e-3), name


def test_batch_invariance_is_what_the_backend_says(backend: Backend, model: NextStepModel) -> None:
    together = drawn(backend, list(JOBS.values()), model)
    alone = [drawn(backend, [one], model)[0] for one in JOBS.values()]
    equal = [torch.equal(a, b) for a, b in zip(together, alone, strict=True)]
    assert all(equal) if backend.block_rows else True
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(together, alone, strict=True))


def test_preempted_requests_go_on_where_they_were(
    backend: Backend, model: NextStepModel, expected: dict[str, Tensor]
) -> None:
    """Two of four are set aside, at different times, while the others run."""
    names = ["text to image", "edit of two", "look-ahead", "tall"]
    scheduler = Scheduler(model, backend=backend)
    tickets = [scheduler.submit(JOBS[name]) for name in names]
    events = scheduler.step() + scheduler.step()
    scheduler.preempt(tickets[0])
    events += scheduler.step()
    scheduler.preempt(tickets[1])
    events += scheduler.run_until_idle()
    for ticket in tickets[:2]:
        scheduler.resume(ticket)
    events += scheduler.run_until_idle()
    ends = {e.ticket: e.tokens for e in events if e.kind == "finished"}
    for ticket, name in zip(tickets, names, strict=True):
        assert torch.allclose(ends[ticket], expected[name], atol=1e-3), name


def test_text_is_written_beside_pictures(backend: Backend, model: NextStepModel) -> None:
    """The likeliest ids are those of whole passes."""
    prompt = Prompt([PLACE, PLACE, 9, 10], [source(0)], [(1, 2)])
    forbidden = (PLACE, BOI, CONFIG.end_of_image_id)
    scheduler = Scheduler(model, backend=backend)
    scheduler.submit(JOBS["text to image"])
    ticket = scheduler.submit(TextSequence(prompt, 5, greedy, forbidden, ()))
    ends = {e.ticket: e for e in scheduler.run_until_idle() if e.kind == "finished"}
    ids = list(prompt.ids)
    with torch.inference_mode():
        for _ in range(5):
            embedded = model.embed(torch.tensor([ids]), source(0), torch.tensor([[0, 0], [0, 1]]))
            logits = model.text_logits(model.hidden(embedded)[:, -1])[0]
            logits[list(forbidden)] = -torch.inf
            ids.append(int(logits.argmax()))
    assert list(ends[ticket].ids) == ids[4:]


@pytest.mark.parametrize("format_", ["int8", "int4"])
def test_quantised_weights_stay_near(format_: str, model: NextStepModel) -> None:
    if not build.is_available():
        pytest.skip(build.why_not())
    packed = copy.deepcopy(model)
    pack_model(packed, format_)
    rounded = TorchBackend(packed, block_rows=0)
    (plain,) = drawn(rounded, [JOBS["edit of two"]], model)
    (tokens,) = drawn(CpuKernels(packed), [JOBS["edit of two"]], model)
    assert float((tokens - plain).norm() / plain.norm()) < 0.1


def test_pool_rows_are_given_back(model: NextStepModel) -> None:
    backend = TorchBackend(model, block_rows=0)
    drawn(backend, list(JOBS.values()), model)
    assert backend.pool is not None
    assert backend.pool.slots == []


def test_equal_prompts_are_read_once_and_have_rows_of_their_own(backend: Backend) -> None:
    shown = source(1)
    one, other = Prompt([7, 8, BOI]), Prompt([PLACE, PLACE, BOI], [shown], [(1, 2)])
    asked = [one, other, one, other, one]
    assert distinct(asked, [3] * 5) == ([0, 1], [0, 1, 0, 1, 0])
    assert distinct(asked, [3, 3, 3, 3, 9]) == ([0, 1, 4], [0, 1, 0, 1, 2])
    read = backend.prefill(asked, [3] * 5)
    assert all(row.hidden.equal(read[0].hidden) for row in read[::2])
    (alone,) = backend.prefill([one], [3])
    token = backend.embed_images(source(2)[:1], torch.tensor([[0, 0]]))
    places = [Place(row.slot, 3) for row in (alone, *read[::2])]
    states = [backend.step(token, [place])[0] for place in places]
    assert all(torch.allclose(state, states[0], atol=1e-5) for state in states)
    again = backend.step(token, [Place(read[4].slot, 4)])[0]
    assert not torch.allclose(again, states[0], atol=1e-5)
    assert torch.allclose(backend.step(token, [Place(read[2].slot, 3)])[0], states[0], atol=1e-5)
