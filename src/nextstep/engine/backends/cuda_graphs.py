"""The backend on CUDA: a step's thousands of small calls are recorded once and replayed as graphs.

A graph reads and writes the same memory every time, so its shapes are fixed: a step is recorded for
a number of rows and reads the whole pool of caches under a mask, and what changes from token to
token (inputs, positions, guidance, draws) is copied into buffers first. Numbers of rows between the
recorded ones are filled up. The functions are the same on every device; only `record_graph` knows
CUDA.

Legend: n rows of the pool, B pictures of a group, b branches, T positions of the pool, D values per
token, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.engine.backends.base import SampleRequest
from nextstep.engine.backends.sampling_head import Key, SolverGroup, stacked
from nextstep.engine.backends.torch import TorchBackend
from nextstep.model.nextstep import NextStepModel

WARM_UP = 2
"""Calls before recording, in which libraries choose their algorithms and take their memory."""
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256)
"""Numbers of rows, and of pictures, for which graphs are recorded."""
REMEMBERED = 64
"""Recorded samplers; each holds memory of the device."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]
"""Runs a function without arguments; returns what runs it again, and where its result lies."""


def record_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Record a function as a CUDA graph; see `Record`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result


class Recorded:
    """A function of tensors of fixed shapes whose calls are replayed.

    Args:
        function: reads its arguments and other memory that stays where it is.
        record: how.
    """

    def __init__(self, function: Callable[..., Tensor], record: Record) -> None:
        self.function, self.record = function, record
        self.inputs: list[Tensor] = []
        self.replay: Callable[[], object] | None = None
        self.result = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, the caller's own."""
        if self.replay is None:
            self.inputs = [value.clone() for value in inputs]
            self.replay, self.result = self.record(lambda: self.function(*self.inputs))
        for own, value in zip(self.inputs, inputs, strict=True):
            own.copy_(value)
        self.replay()
        return self.result.clone()


class CudaGraphs(TorchBackend):
    """See `Backend`.

    Args:
        model: on a CUDA device, in eval mode, with plain weights.
        record: how calls are recorded; see `Record`.
    """

    name = "cuda_graphs"

    def __init__(self, model: NextStepModel, record: Record = record_graph) -> None:
        super().__init__(model, block_rows=0)
        self.record = record
        self._steps: dict[int, Recorded] = {}
        self._samplers: dict[tuple[Key, int], Recorded | None] = {}
        self._growths = -1

    @torch.inference_mode()
    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """See `Backend.sample`."""
        order: dict[Key, list[int]] = {}
        for place, one in enumerate(requests):
            order.setdefault((one.solver, one.branches, one.normalise), []).append(place)
        made = [
            self._tokens(key, *stacked([requests[i] for i in members]))
            for key, members in order.items()
        ]
        tokens: list[Tensor] = [torch.empty(0)] * len(requests)
        places = (place for members in order.values() for place in members)
        for place, token in zip(places, torch.cat(made).cpu(), strict=True):
            tokens[place] = token
        return tokens

    def _tokens(self, key: Key, hidden: Tensor, draws: Tensor, weights: Tensor) -> Tensor:
        """The tokens [B, D] of a group; its arguments are those of `SolverGroup`."""
        b, B = weights.shape
        size = _size(B)
        if size > B:
            hidden = F.pad(hidden.view(b, B, -1), (0, 0, 0, size - B)).flatten(0, 1)
            draws, weights = F.pad(draws, (0, 0, 0, size - B)), F.pad(weights, (0, size - B))
        run = partial(self._integrated, key)
        if (key, size) not in self._samplers:
            # The first call is not recorded: a solver's times come from the host.
            if len(self._samplers) >= REMEMBERED:
                self._samplers.clear()
            self._samplers[key, size] = None
            return run(hidden, draws, weights)[:B]
        recorded = self._samplers[key, size] or Recorded(run, self.record)
        self._samplers[key, size] = recorded
        return recorded(hidden, draws, weights)[:B]

    def _integrated(self, key: Key, hidden: Tensor, draws: Tensor, weights: Tensor) -> Tensor:
        group = SolverGroup(key, hidden, draws, weights, 0)
        self.head.integrate([group])
        assert group.tokens is not None
        return group.tokens

    def _pooled_step(self, x: Tensor, positions: list[int], rows: list[int]) -> Tensor:
        """See `TorchBackend`; rows that are not simply the first ones are not recorded."""
        assert self.pool is not None
        n = len(rows)
        size = _size(n)
        if rows != list(range(n)) or n != len(self.pool.slots):
            return super()._pooled_step(x, positions, rows)
        # Rows behind those in use may be written to: what is stored there is read by nobody.
        self.pool.reserve(size, max(positions) + 1)
        if self._growths != self.pool.growths:
            self._steps.clear()
            self._growths = self.pool.growths
        at = torch.tensor(positions + [0] * (size - n), device=self.device)
        if size not in self._steps:
            self._steps[size] = Recorded(partial(self._whole_pool, size), self.record)
        return self._steps[size](F.pad(x, (0, 0, 0, size - n)), at)[:n]

    def _whole_pool(self, size: int, x: Tensor, positions: Tensor) -> Tensor:
        """A step of the pool's first rows that reads all of its positions under a mask."""
        assert self.pool is not None
        length = self.pool.cache.capacity
        mask = (torch.arange(length, device=self.device) <= positions[:, None])[:, None, None]
        where = torch.arange(size, device=self.device)
        return self._attend_pool(x, positions, [], where, slice(0, size), length, mask)


def _size(count: int) -> int:
    """The number of rows that so many are filled up to."""
    return next((size for size in SIZES if size >= count), -(-count // SIZES[-1]) * SIZES[-1])
