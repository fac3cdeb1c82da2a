"""What computes a step of the engine: `torch`, `cpu_kernels` or `cuda_graphs`."""

from __future__ import annotations

from nextstep.engine.backends.base import Backend
from nextstep.engine.backends.cpu_kernels import CpuKernels, core_of
from nextstep.engine.backends.cuda_graphs import CudaGraphs
from nextstep.engine.backends.torch import TorchBackend
from nextstep.model.nextstep import NextStepModel


def backend_of(model: NextStepModel, batch_invariant: bool | None = None) -> Backend:
    """The backend for a model on its device.

    Args:
        model: in eval mode.
        batch_invariant: whether a request's bytes must not depend on what else is in the batch. The
            kernels always keep that. Elsewhere it costs time; default: it is kept on a CPU and not
            on CUDA.
    """
    if core_of(model):
        return CpuKernels(model)
    cuda = model.embed_tokens.weight.device.type == "cuda"
    if batch_invariant is None:
        batch_invariant = not cuda
    if cuda and not batch_invariant:
        return CudaGraphs(model)
    return TorchBackend(model, batch_invariant)
