"""What computes a step of the engine: `torch`, `cpu_kernels` or `cuda_graphs`."""

from __future__ import annotations

from nextstep.engine.backends.base import ROWS, Backend
from nextstep.engine.backends.cpu_kernels import CpuKernels, core_of
from nextstep.engine.backends.cuda_graphs import CudaGraphs
from nextstep.engine.backends.torch import TorchBackend
from nextstep.model.nextstep import NextStepModel


def backend_of(model: NextStepModel, block_rows: int | None = None) -> Backend:
    """The backend for a model on its device.

    Args:
        model: in eval mode.
        block_rows: of every product, so that a request's bytes do not depend on what else is in
            the batch; 0 lets them. The kernels always keep them apart. Elsewhere it costs time;
            default: `ROWS` on a CPU and 0 on CUDA.
    """
    if core_of(model):
        return CpuKernels(model)
    cuda = model.embed_tokens.weight.device.type == "cuda"
    if block_rows is None:
        block_rows = 0 if cuda else ROWS
    if cuda and not block_rows:
        return CudaGraphs(model)
    return TorchBackend(model, block_rows)
