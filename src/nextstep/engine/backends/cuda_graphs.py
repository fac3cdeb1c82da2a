"""Sampling on CUDA: a token's thousands of small calls recorded once and replayed as two graphs.

A graph reads and writes the same memory every time, so everything here has a fixed shape: the
cache is as long as it will ever be, with a mask over what is not there yet, and what changes from
token to token (inputs, position, guidance, draws) is copied into buffers first. The functions are
the same on every device; only `record_graph` knows CUDA, and elsewhere they are just called.

Legend: R rows (branches x pictures), b branches, B pictures, S prompt positions, T positions in
all, D values per token, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nextstep.engine.backends.flow_head import SamplingHead
from nextstep.flow.guidance import combine
from nextstep.flow.solvers import SolverSettings, solve
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import token_norm

WARM_UP = 2
"""Calls before recording, in which libraries choose their ways and take their memory."""

Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Runs a function without arguments; returns what runs it again, and where its result lies."""


def pays(device: torch.device) -> bool:
    """Whether this device is waiting for small calls that a graph would spare it."""
    return device.type == "cuda"


def record_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
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
        record: how; None calls the function each time.
    """

    def __init__(self, function: Callable[..., Tensor], record: Record | None) -> None:
        self.function, self.record = function, record
        self.inputs: list[Tensor] = []
        self.replay: Callable[[], None] | None = None
        self.result = torch.empty(0)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, the caller's own."""
        if self.record is None:
            return self.function(*inputs)
        if self.replay is None:
            self.inputs = [value.clone() for value in inputs]
            self.replay, self.result = self.record(lambda: self.function(*self.inputs))
        for own, value in zip(self.inputs, inputs, strict=True):
            own.copy_(value)
        self.replay()
        return self.result.clone()


class _SlotCache(KVCache):
    """A view of a full cache that stores one position a row wherever a tensor says.

    Args:
        whole: with room for all positions.
        slot: [1], the position to be stored.
    """

    def __init__(self, whole: KVCache, slot: Tensor) -> None:
        self.keys, self.values, self.capacity = whole.keys, whole.values, whole.capacity
        self.slot, self.length = slot, 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store [R, G, 1, d]; returns all T positions, those behind the slot without meaning."""
        self.keys[layer].index_copy_(2, self.slot, k)
        self.values[layer].index_copy_(2, self.slot, v)
        return self.keys[layer], self.values[layer]


class FixedStep:
    """One more position of every row through the backbone.

    Args:
        model: in eval mode.
        cache: prompts of S positions are read, and there is room for everything behind them.
        valid: [R, S], False where a row is padded.
        record: see `Recorded`.
    """

    def __init__(
        self, model: NextStepModel, cache: KVCache, valid: Tensor, record: Record | None
    ) -> None:
        self.model, self.cache = model, cache
        rest = valid.new_ones(len(valid), cache.capacity - valid.shape[1])
        self.valid = torch.cat((valid, rest), dim=1)
        self.padding = (valid.shape[1] - valid.sum(dim=1))[:, None]
        self.order = torch.arange(cache.capacity, device=valid.device)
        self.run = Recorded(self._run, record)

    def __call__(self, embedded: Tensor) -> Tensor:
        """[R, E] -> hidden states [R, E]."""
        slot = torch.tensor([self.cache.length], device=embedded.device)
        hidden = self.run(embedded, slot)
        self.cache.advance(1)
        return hidden

    def _run(self, embedded: Tensor, slot: Tensor) -> Tensor:
        seen = (self.valid & (self.order <= slot))[:, None, None]
        view = _SlotCache(self.cache, slot)
        return self.model.hidden(embedded[:, None], slot - self.padding, seen, view)[:, 0]


class FixedSampler:
    """One image token of every picture.

    Args:
        model: in eval mode.
        branches: whose velocities are mixed.
        normalise: whether tokens are normalised.
        record: see `Recorded`.
    """

    def __init__(
        self,
        model: NextStepModel,
        branches: list[str],
        normalise: bool,
        record: Record | None,
    ) -> None:
        self.model, self.branches = model, branches
        self.normalise, self.record = normalise, record
        self.solvers: dict[SolverSettings, Recorded] = {}

    def __call__(
        self, hidden: Tensor, draws: Tensor, solver: SolverSettings, weights: dict[str, float]
    ) -> Tensor:
        """One token of every picture.

        Args:
            hidden: [R, E].
            draws: [draws, B, D].
            solver: how; one that is new is run plainly, because its times come from the host.
            weights: of the branches.

        Returns:
            [B, D], fp32.
        """
        shares = torch.tensor([weights[name] for name in self.branches], device=hidden.device)
        inputs = hidden, draws.to(hidden.device), shares
        if solver in self.solvers:
            return self.solvers[solver](*inputs)
        run = partial(self._run, SamplingHead(self.model.image_head), solver)
        self.solvers[solver] = Recorded(run, self.record)
        return run(*inputs)

    def _run(
        self,
        head: SamplingHead,
        solver: SolverSettings,
        hidden: Tensor,
        draws: Tensor,
        shares: Tensor,
    ) -> Tensor:
        b = len(self.branches)
        weights = dict(zip(self.branches, shares.unbind(), strict=True))
        head.begin(self.model.image_condition(hidden))

        def velocity(x: Tensor, t: float) -> Tensor:
            v = head.velocity(x.to(hidden.dtype).repeat(b, 1), t)
            return combine(v.float().view(b, *x.shape), self.branches, weights)

        stream = iter(draws)
        token = solve(velocity, lambda: next(stream), solver)
        return token_norm(token) if self.normalise else token
