"""Sampling through the kernels: whole passes of backbone and flow head, each one call.

A row's result depends on that row alone: not on its neighbours, nor on their number, nor on the
number of threads. So rows need no blocks of a fixed size here, unlike in `torch`.

Rotary angles and embedded times are rounded from fp64, so that every processor computes them alike:
torch's own exponentials, sines and powers in fp32 differ in the last bit from one instruction set
to another. Those of fp64 differ too, but 29 bits lower, where rounding hides it. They are computed
once a process, so they may be slow.

Legend: n rows, E hidden size, H query heads, G key/value heads, d head size, W head width, D values
per token, K times, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nextstep.engine.backends.base import (
    CacheRow,
    Place,
    Prefilled,
    Prompt,
    SampleRequest,
    distinct,
    shared,
)
from nextstep.engine.backends.kernel_structs import describe_backbone, describe_head
from nextstep.engine.backends.torch import TorchBackend
from nextstep.flow.solvers import SolverSettings, request_rows, request_times, velocity_requests
from nextstep.kernels import build
from nextstep.kernels.linear import PackedLinear, WeightBuffer
from nextstep.model.cache import KVCache
from nextstep.model.flow_head import MAX_PERIOD, TIME_SIZE
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import OWN, kernels_fit, quantised
from nextstep.vae.latents import raster_coordinates

MODULATION_BYTES = 2**28
"""Modulations made at once; more times are made in parts."""
ANGLES = 256
"""Rotary positions worked out at a time."""
REMEMBERED = 64
"""Solvers whose embedded times are kept."""


POSITIONS = 256
"""Positions of a prompt that are read at once; more take memory and save nothing."""
SMALL = 2**24
"""Numbers of a tied text head that is packed beside the embeddings."""
KERNELS = "kernels 3"
"""Pictures are byte-equal for kernels of one number; others give other roundings."""


class SolverPlan(NamedTuple):
    """A solver: see `coefficients`; and its embedded times [calls, W]."""

    draws: int
    calls: int
    coefficients: Tensor
    times: Tensor


class CpuKernels(TorchBackend):
    """See `Backend`.

    Args:
        model: whose `core_of` is not None.
    """

    name = KERNELS

    def __init__(self, model: NextStepModel) -> None:
        super().__init__(model)
        core = core_of(model)
        assert core is not None
        self.core = core

    def check(self) -> None:
        """See `Backend.check`: every sum has one order here, for any number of rows."""

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], room: Sequence[int]) -> list[Prefilled]:
        """See `Backend.prefill`; positions of all prompts are fed together, each as if alone."""
        firsts, which = distinct(prompts, room)
        unlike = [prompts[place] for place in firsts]
        lengths = [len(prompt.ids) for prompt in unlike]
        slots = [
            CacheRow(KVCache(self.model.config, 1, length + room[place], self.dtype))
            for length, place in zip(lengths, firsts, strict=True)
        ]
        embedded = torch.cat([self.core.embed(prompt) for prompt in unlike])
        places = [
            Place(slot, position)
            for slot, length in zip(slots, lengths, strict=True)
            for position in range(length)
        ]
        parts = range(0, len(places), POSITIONS)
        hidden = torch.cat(
            [self.core.feed(embedded[i : i + POSITIONS], places[i : i + POSITIONS]) for i in parts]
        )
        states = [own[-1] for own in hidden.split(lengths)]
        return shared([Prefilled(*one) for one in zip(slots, states, strict=True)], which)

    @torch.inference_mode()
    def embed_images(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """See `Backend.embed_images`."""
        return self.core.embed_images(tokens, coordinates)

    def step(self, embedded: Tensor, places: Sequence[Place]) -> Tensor:
        """See `Backend.step`."""
        return self.core.feed(embedded, places)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """See `Backend.sample`."""
        return list(self.core.sample(requests))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Backend.logits`."""
        text = self.core.text_head
        return super().logits(hidden) if text is None else text(hidden)


def core_of(model: NextStepModel) -> Core | None:
    """The model's core, made at its first use; none where its weights are not packed."""
    if isinstance(model.core, Core) and model.core.stands_for(model):
        return model.core
    model.core = Core(model) if can_run(model) else None
    return model.core


def number_format(model: NextStepModel) -> str:
    """What roundings depend on beside the request: dtype, rounded weights, kernels or none."""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    parts = dtype, quantised(model), KERNELS if core_of(model) else ""
    return ", ".join(part for part in parts if part)


def can_run(model: NextStepModel) -> bool:
    """Whether the kernels know everything in this model."""
    config, net = model.config, model.image_head.net
    layers = [part for layer in model.layers for part in layer.modules()]
    head: list[nn.Module] = [model.image_out_projector, net.cond_embed]
    head += [net.input_proj, net.final_layer.linear, net.final_layer.adaLN_modulation[1]]
    for block in net.blocks():
        head += [block.mlp[0], block.mlp[2], block.adaLN_modulation[1]]
    packed = [part for part in (*layers, *head) if isinstance(part, PackedLinear)]
    expected = 7 * config.num_hidden_layers + len(head)
    return (
        len(packed) == expected
        and kernels_fit(config)
        and model.embed_tokens.weight.dtype in (torch.float32, torch.bfloat16)
    )


class Core:
    """A packed model as the kernels see it; see `core_of`.

    Args:
        model: that `can_run`.
    """

    def __init__(self, model: NextStepModel) -> None:
        self.model, self.config = model, model.config
        self._kept: list[Tensor] = []
        self._first = model.layers[0]
        self._backbone = describe_backbone(model, self._address)
        self._head = describe_head(model, self._address)
        self._angles = torch.empty(0)
        self._plans: dict[SolverSettings, SolverPlan] = {}
        # Layers that the model keeps as they are, because training code reads them.
        self._embeddings: dict[nn.Module, tuple[PackedLinear, PackedLinear]] = {}
        self._project = self._packed(model.image_in_projector)
        text = model.lm_head
        is_small = text.weight.numel() <= SMALL if not isinstance(text, PackedLinear) else False
        self.text_head = self._packed(text) if is_small else None

    def _embedded(self, rows: Tensor) -> Tensor:
        """What a solver's questions are about, [K, 3] -> [K, W], fp32."""
        embedded: list[Tensor] = []
        for part, values in self.model.image_head.embeddings(rows):
            if part not in self._embeddings:
                inner, _, outer = part.mlp
                self._embeddings[part] = self._packed(inner), self._packed(outer)
            embedded.append(embed_times(values, *self._embeddings[part]))
        return sum(embedded[1:], embedded[0])

    def _packed(self, part: nn.Module) -> PackedLinear:
        """A layer in its own number format, through the kernels."""
        assert isinstance(part, nn.Linear)
        return PackedLinear(part.weight, part.bias, OWN[part.weight.dtype], WeightBuffer())

    def _address(self, tensor: Tensor) -> int:
        """Of the tensor in fp32, which stays as long as this."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()

    def stands_for(self, model: NextStepModel) -> bool:
        """Whether this is still that model's own."""
        return self.model is model and self._first is model.layers[0]

    def embed_images(self, tokens: Tensor, coordinates: Tensor | None) -> Tensor:
        """Input embeddings of image tokens, [n, D], [n, 2] in their pictures -> [n, E]."""
        embedded = self.model.add_positions(self._project(tokens.float()), coordinates)
        return embedded.to(self.model.embed_tokens.weight.dtype)

    def embed(self, prompt: Prompt) -> Tensor:
        """Input embeddings of a prompt, [S, E]."""
        projected = None
        if prompt.image_tokens:
            places = [raster_coordinates(grid) for grid in prompt.grids]
            where = torch.cat(places) if places else None
            projected = self.embed_images(torch.cat(list(prompt.image_tokens)), where)
        return self.model.embed_with(torch.tensor([list(prompt.ids)]), projected)[0]

    @torch.inference_mode()
    def feed(self, embedded: Tensor, places: Sequence[Place]) -> Tensor:
        """One new position a row; rows of one cache stand in order.

        Args:
            embedded: [n, E].
            places: n of them.

        Returns:
            [n, E] behind the final norm, in the model's dtype.
        """
        x = embedded.float().contiguous().clone()
        self._reach(max(place.position for place in places) + 1)
        step, start = self._angles.stride(0) * 4, self._angles.data_ptr()
        lines = []
        for slot, position in places:
            store = slot.cache.store
            layer, value, row, head = store.stride()[:4]
            own = store.data_ptr() + slot.row * row * store.element_size()
            lines.append((own, head, value, layer, 0, position, start + position * step))
        build.call("backbone_step", self._backbone, len(x), torch.tensor(lines), x)
        return x.to(self.model.embed_tokens.weight.dtype)

    @property
    def rows_at_once(self) -> int:
        """Rows whose modulations are kept at once; of more they would take too much memory."""
        W, count = self.config.fm_head_dim, self.config.fm_head_layers
        return max(1, MODULATION_BYTES // (4 * W * (3 * count + 2)))

    @torch.inference_mode()
    def sample(self, wants: Sequence[SampleRequest]) -> Tensor:
        """The next token of every picture, [B, D], fp32.

        All pictures' calls go together as long as they have some.
        """
        plans = [self.plan(want.solver) for want in wants]
        D = self.config.token_size
        # What a solver knows: its draws, and the velocities as they come.
        known = torch.empty(sum(plan.draws + plan.calls for plan in plans), D)
        hidden = torch.cat([want.hidden for want in wants]).float().contiguous()
        weights = torch.tensor([want.weights[name] for want in wants for name in want.branches])
        lines, first, branch = [], 0, 0
        for want, plan in zip(wants, plans, strict=True):
            known[first : first + plan.draws] = want.draws[: plan.draws]
            lines.append(
                (plan.coefficients.data_ptr(), plan.draws, plan.calls, len(want.branches),
                 weights.data_ptr() + 4 * branch, known.data_ptr() + 4 * D * first,
                 hidden.data_ptr() + 4 * hidden.shape[1] * branch, plan.times.data_ptr(),
                 int(want.normalise))
            )  # fmt: skip
            first, branch = first + plan.draws + plan.calls, branch + len(want.branches)
        tokens = torch.empty(len(wants), D)
        build.call("sample", self._head, len(wants), torch.tensor(lines), self.rows_at_once, tokens)
        return tokens

    def plan(self, solver: SolverSettings) -> SolverPlan:
        """What a solver does, made once."""
        if solver not in self._plans:
            if len(self._plans) >= REMEMBERED:
                self._plans.clear()
            times = self._embedded(request_rows(solver))
            self._plans[solver] = SolverPlan(*coefficients(solver), times)
        return self._plans[solver]

    def _reach(self, positions: int) -> None:
        """Rotary angles of so many positions, [P, 2, d]."""
        if len(self._angles) >= positions:
            return
        config, count = self.config, math.ceil(positions / ANGLES) * ANGLES
        self._angles = rotary_angles(count, config.head_dim, config.rope_theta)


def coefficients(solver: SolverSettings) -> tuple[int, int, Tensor]:
    """A solver as sums of what it knows: (draws, calls, coefficients [calls + 1, draws + calls]).

    All solvers are linear in draws and velocities. So one that is given unit vectors asks at, and
    ends with, the vectors of its own coefficients.
    """
    draws, calls = solver.draws, len(request_times(solver))
    units = iter(torch.eye(draws + calls, dtype=torch.float64))
    answers = torch.eye(draws + calls, dtype=torch.float64)[draws:]
    questions, rows = velocity_requests(lambda: next(units), solver), []
    try:
        rows.append(next(questions)[0])
        for answer in answers:
            rows.append(questions.send(answer)[0])
    except StopIteration as end:
        rows.append(end.value)
    return draws, calls, torch.stack(rows).float().contiguous()


def rotary_angles(positions: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of positions from 0 on, [P, 2, d]; see `model.backbone.rotary_angles`."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = (theta**-exponent).float()
    return _waves(torch.arange(positions).float()[:, None] * frequencies).repeat(1, 1, 2)


def time_sinusoid(t: Tensor) -> Tensor:
    """[M] -> [M, 256]; see `model.flow_head.time_sinusoid`."""
    steps = torch.arange(TIME_SIZE // 2, dtype=torch.float64)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / (TIME_SIZE // 2)).float()
    return _waves(t.float()[:, None] * frequencies).flatten(1)


def embed_times(t: Tensor, first: PackedLinear, second: PackedLinear) -> Tensor:
    """[M] -> [M, W]: sinusoid, Linear, SiLU, Linear."""
    inner = first(time_sinusoid(t)).double()
    return second((inner / (1 + torch.exp(-inner))).float())


def _waves(angles: Tensor) -> Tensor:
    """[n, k] -> [n, 2, k]: cosines and sines."""
    return torch.stack((angles.double().cos(), angles.double().sin()), dim=1).float()
