"""The same tokens with and without graphs, on a real device."""

from __future__ import annotations

import pytest
import torch

from nextstep.engine.backends.cuda_graphs import CudaGraphs
from nextstep.engine.backends.torch import TorchBackend
from nextstep.engine.decode import DecodeSettings
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SOLVERS, SolverSettings
from tests.conftest import TINY, random_model
from tests.engine.backends.test_cuda_graphs import made

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_draw_what_plain_calls_do(solver: str, dtype: torch.dtype) -> None:
    how = DecodeSettings(
        (2, 3), SolverSettings(solver, 3), GuidanceSettings(3.0, 1.5, "linear"), True, True
    )
    model = random_model(TINY).to("cuda", dtype)
    plain = made(TorchBackend(model, block_rows=0), how)
    allowed = 1e-4 if dtype == torch.float32 else 0.1
    assert float((made(CudaGraphs(model), how) - plain).abs().max()) < allowed


def test_device_draws_what_the_processor_does() -> None:
    how = DecodeSettings((2, 3), SolverSettings("ab2", 3), GuidanceSettings(3.0, 1.5), True, True)
    model = random_model(TINY)
    here = made(TorchBackend(model, block_rows=0), how)
    there = made(CudaGraphs(model.to("cuda")), how)
    assert float((there.cpu() - here).abs().max()) < 1e-3
