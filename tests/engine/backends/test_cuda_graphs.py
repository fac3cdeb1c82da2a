"""Calls of fixed shape: the same tokens, and recording that misses nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nextstep.engine.backends import backend_of
from nextstep.engine.backends import cuda_graphs as graphs
from nextstep.engine.backends.base import Prompt
from nextstep.engine.backends.cuda_graphs import CudaGraphs, _size
from nextstep.engine.backends.torch import TorchBackend
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.sequence import ImageSequence
from nextstep.flow.guidance import CONDITIONAL, GuidanceSettings
from nextstep.flow.solvers import SolverSettings
from tests.conftest import TINY, random_model

BOI, PLACE = TINY.begin_of_image_id, TINY.image_placeholder_id


class Tape:
    """Records as a graph does: later calls see the buffers and no arguments of the time."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        result = run().clone()

        def replay() -> None:
            self.replayed += 1
            result.copy_(run())

        return replay, result


def made(backend: TorchBackend, how: DecodeSettings) -> Tensor:
    """Two pictures whose prompts are unequally long, made together."""
    dice, scheduler = torch.Generator().manual_seed(0), Scheduler(backend.model, backend=backend)
    for number, n in enumerate((3, 9)):
        prompts = {
            name: Prompt(
                [*range(7, 7 + (n if name == CONDITIONAL else 2)), PLACE, PLACE, BOI],
                [torch.randn(2, 64, generator=dice)],
            )
            for name in how.branches
        }
        scheduler.submit(ImageSequence(prompts, how, (1, number)))
    return torch.stack([e.tokens for e in scheduler.run_until_idle() if e.kind == "finished"])


@pytest.mark.parametrize("solver", ["ode", "v1", "cps", "midpoint", "multistep"])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_fixed_shapes_change_nothing(solver: str, schedule: str) -> None:
    """Unequal rows, three branches, guidance that changes from token to token."""
    how = DecodeSettings(
        (2, 3), SolverSettings(solver, 3), GuidanceSettings(3.0, 1.5, schedule), True, True
    )
    model, tape = random_model(TINY), Tape()
    plain = made(TorchBackend(model, block_rows=0), how)
    assert float((made(CudaGraphs(model, tape.record), how) - plain).abs().max()) < 1e-5
    # The first token is sampled plainly, to learn the solver's times, and the last one not fed.
    assert (tape.recorded, tape.replayed) == (2, 2 * (how.tokens - 1))


def test_each_number_of_steps_is_recorded() -> None:
    solver = SolverSettings("v1", 4, final_token_steps=2)
    how = DecodeSettings((2, 3), solver, GuidanceSettings(3.0), True, True)
    model, tape = random_model(TINY), Tape()
    plain = made(TorchBackend(model, block_rows=0), how)
    assert float((made(CudaGraphs(model, tape.record), how) - plain).abs().max()) < 1e-5
    # Tokens take 4, 4, 3, 3, 2 and 2 steps; each number is learned once and recorded at the next.
    assert (tape.recorded, tape.replayed) == (1 + 3, how.tokens - 1 + 3)


def test_what_is_recorded_serves_the_next_pictures_too() -> None:
    how = DecodeSettings((2, 3), SolverSettings("ode", 3), GuidanceSettings(3.0), True, True)
    model, tape = random_model(TINY), Tape()
    backend = CudaGraphs(model, tape.record)
    first, recorded = made(backend, how), tape.recorded
    assert torch.equal(made(backend, how), first)
    assert tape.recorded == recorded


def test_numbers_between_the_recorded_ones_are_filled_up() -> None:
    assert [_size(count) for count in (1, 5, 8, 13, 256, 257)] == [1, 6, 8, 16, 256, 512]


def test_results_are_the_callers_own() -> None:
    double = graphs.Recorded(lambda x: x * 2, Tape().record)
    first, x = double(torch.ones(3)), torch.full((3,), 5.0)
    second = double(x)
    x.zero_()
    assert torch.equal(first, torch.full((3,), 2.0))
    assert torch.equal(second, torch.full((3,), 10.0))


def test_shapes_that_change_are_refused() -> None:
    double = graphs.Recorded(lambda x: x * 2, Tape().record)
    double(torch.ones(3))
    with pytest.raises(RuntimeError):
        double(torch.ones(4))


def test_a_model_on_the_cpu_is_not_recorded() -> None:
    assert isinstance(backend_of(random_model(TINY)), TorchBackend)
    assert not isinstance(backend_of(random_model(TINY), block_rows=0), CudaGraphs)


def test_a_graph_is_recorded_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch is asked, in order, with a stand-in for its CUDA parts."""
    told: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Named) -> None:
            told.append(f"{self.name} waits for {other.name}")

        def replay(self) -> None:
            told.append("replay")

    class Within:
        def __init__(self, what: Any) -> None:
            self.name = getattr(what, "name", "graph")

        def __enter__(self) -> None:
            told.append(f"in {self.name}")

        def __exit__(self, *error: object) -> None:
            told.append(f"out of {self.name}")

    main = Named("main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: Named("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", Within)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Named("graph"))
    monkeypatch.setattr(torch.cuda, "graph", Within)

    def run() -> Tensor:
        told.append("run")
        return torch.ones(1)

    replay, result = graphs.record_graph(run)
    replay()
    assert torch.equal(result, torch.ones(1))
    warm = ["run"] * graphs.WARM_UP
    assert told == [
        "side waits for main", "in side", *warm, "out of side", "main waits for side",
        "in graph", "run", "out of graph", "replay",
    ]  # fmt: skip
