"""Sampling through the kernels: whole passes of backbone and flow head, each one call.

A row's result depends on that row alone: not on its neighbours, nor on their number, nor on the
number of threads. So rows need no blocks of a fixed size here, unlike in `torch`.

Legend: n rows, E hidden size, H query heads, G key/value heads, d head size, W head width, D values
per token, K times.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nextstep.engine.backends.base import CacheRow, Place, Prefilled, Prompt, SampleRequest
from nextstep.engine.backends.torch import TorchBackend
from nextstep.flow.solvers import SolverSettings, ask, question_times
from nextstep.kernels import build
from nextstep.kernels.linear import Matrix, PackedLinear
from nextstep.kernels.quantization import kernels_fit, quantised
from nextstep.model.attention import attend
from nextstep.model.backbone import Attention, Layer, rotary_angles
from nextstep.model.cache import KVCache
from nextstep.model.flow_head import NORM_EPS
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import TOKEN_NORM_EPS

MODULATION_BYTES = 2**28
"""Modulations made at once; more times are made in parts."""
ANGLES = 256
"""Rotary positions worked out at a time."""
REMEMBERED = 64
"""Solvers whose embedded times are kept."""


KERNELS = "kernels 1"
"""Pictures are byte-equal for kernels of one number; others give other roundings."""


class Plan(NamedTuple):
    """A solver: see `coefficients`; and its embedded times [calls, W]."""

    draws: int
    calls: int
    coefficients: Tensor
    times: Tensor


class _Layer(ctypes.Structure):
    """`Layer` of backbone.h."""

    _fields_ = (
        *((n, Matrix) for n in ("query", "key", "value", "output", "gate", "up", "down")),
        ("before", ctypes.c_void_p),
        ("behind", ctypes.c_void_p),
    )


class _Backbone(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("layers", "E", "H", "G", "d", "M", "half")),
        ("eps", ctypes.c_double),
        ("own", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
    )


class _Block(ctypes.Structure):
    """`Block` of head.h."""

    _fields_ = (
        *((n, Matrix) for n in ("modulation", "inner", "outer")),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class _Head(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_int64) for n in ("hidden", "width", "token", "count")),
        *((n, ctypes.c_double) for n in ("eps", "token_eps")),
        ("blocks", ctypes.POINTER(_Block)),
        *((n, Matrix) for n in ("output", "condition", "input", "modulation", "last")),
    )


class CpuKernels(TorchBackend):
    """See `Backend`.

    Args:
        model: whose `core_of` is not None.
    """

    name = KERNELS

    def __init__(self, model: NextStepModel) -> None:
        super().__init__(model, batch_invariant=True)
        core = core_of(model)
        assert core is not None
        self.core = core

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], room: Sequence[int]) -> list[Prefilled]:
        """See `Backend.prefill`; all prompts share the products, attention is each one's own."""
        sizes = [len(prompt.ids) for prompt in prompts]
        slots = [
            CacheRow(KVCache(self.model.config, 1, size + free, self.dtype))
            for size, free in zip(sizes, room, strict=True)
        ]
        embedded = [self.embed_prompt(prompt)[0] for prompt in prompts]
        positions = torch.cat([torch.arange(size) for size in sizes])

        def attention(own: Attention, *joint: Tensor) -> Tensor:
            """q, k and v as [n, heads, 1, d] of all prompts."""
            parts = zip(*(part[:, :, 0].split(sizes) for part in joint), slots, strict=True)
            out = []
            for q, k, v, slot in parts:
                keys, values = slot.cache.keys[own.layer], slot.cache.values[own.layer]
                keys[0, :, : len(k)], values[0, :, : len(v)] = k.transpose(0, 1), v.transpose(0, 1)
                looks = q.transpose(0, 1)[None]
                made = attend(looks, keys[:, :, : len(k)], values[:, :, : len(v)], None)
                out.append(made[0].transpose(0, 1))
            return torch.cat(out)

        hidden = self.layers(torch.cat(embedded), positions, attention, sizes)
        states = [states[-1] for states in hidden.split(sizes)]
        return [Prefilled(*one) for one in zip(slots, states, strict=True)]

    def step(self, embedded: Tensor, places: Sequence[Place]) -> Tensor:
        """See `Backend.step`."""
        return self.core.feed(embedded, places)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """See `Backend.sample`."""
        tokens = self.core.sample(requests)
        # One by one, because vector instructions may span pictures and sums may be cut otherwise.
        return [
            token_norm(token) if one.normalise else token
            for token, one in zip(tokens, requests, strict=True)
        ]


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
        self._backbone = self._describe_backbone(model)
        self._head = self._describe_head(model)
        self._angles = torch.empty(0)
        self._plans: dict[SolverSettings, Plan] = {}

    def stands_for(self, model: NextStepModel) -> bool:
        """Whether this is still that model's own."""
        return self.model is model and self._first is model.layers[0]

    @torch.inference_mode()
    def feed(self, embedded: Tensor, places: Sequence[Place]) -> Tensor:
        """One new position a row; rows of one cache stand in order.

        Args:
            embedded: [n, E].
            places: n of them.

        Returns:
            [n, E] behind the final norm, in the dtype of the embeddings.
        """
        x = embedded.float().contiguous().clone()
        self._reach(max(place.position for place in places) + 1)
        step, start = self._angles.stride(0) * 4, self._angles.data_ptr()
        lines = []
        for slot, position in places:
            store = slot.cache.store
            lines.append(
                (
                    store[0, 0, slot.row].data_ptr(),
                    *(store.stride(dim) for dim in (3, 1, 0)),
                    0,  # the first position that it looks at
                    position,
                    start + position * step,
                )
            )
        build.call("advance", self._backbone, len(x), torch.tensor(lines), x)
        return x.to(embedded.dtype)

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

    def plan(self, solver: SolverSettings) -> Plan:
        """What a solver does, made once."""
        if solver not in self._plans:
            if len(self._plans) >= REMEMBERED:
                self._plans.clear()
            asked = torch.tensor(question_times(solver))
            times = self.model.image_head.embed_time(asked).float()
            self._plans[solver] = Plan(*coefficients(solver), times)
        return self._plans[solver]

    def _reach(self, positions: int) -> None:
        """Rotary angles of so many positions, [P, 2, d]."""
        if len(self._angles) >= positions:
            return
        config, count = self.config, math.ceil(positions / ANGLES) * ANGLES
        angles = rotary_angles(torch.arange(count)[None], config.head_dim, config.rope_theta)
        self._angles = torch.stack([part[0, 0] for part in angles], dim=1).contiguous()

    def _float(self, tensor: Tensor) -> int:
        """Address of a norm's weights in fp32."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()

    def _describe_backbone(self, model: NextStepModel) -> _Backbone:
        config = model.config
        made = (_Layer * config.num_hidden_layers)()
        for out, layer in zip(made, model.layers, strict=True):
            assert isinstance(layer, Layer)
            attention, mlp = layer.self_attn, layer.mlp
            for name, part in (
                ("query", attention.q_proj), ("key", attention.k_proj), ("value", attention.v_proj),
                ("output", attention.o_proj), ("gate", mlp.gate_proj), ("up", mlp.up_proj),
                ("down", mlp.down_proj),
            ):  # fmt: skip
                setattr(out, name, _matrix(part))
            out.before = self._float(layer.input_layernorm.weight)
            out.behind = self._float(layer.post_attention_layernorm.weight)
        return _Backbone(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads,
            config.num_key_value_heads, config.head_dim, config.intermediate_size,
            int(model.embed_tokens.weight.dtype == torch.bfloat16), config.rms_norm_eps, made,
            self._float(model.norm.weight),
        )  # fmt: skip

    def _describe_head(self, model: NextStepModel) -> _Head:
        net, config = model.image_head.net, model.config
        made = (_Block * config.fm_head_layers)()
        for out, block in zip(made, net.blocks(), strict=True):
            out.modulation = _matrix(block.adaLN_modulation[1])
            out.inner, out.outer = _matrix(block.mlp[0]), _matrix(block.mlp[2])
            out.weight, out.bias = self._float(block.in_ln.weight), self._float(block.in_ln.bias)
        last = net.final_layer
        return _Head(
            config.hidden_size, config.fm_head_dim, config.token_size, config.fm_head_layers,
            NORM_EPS, TOKEN_NORM_EPS, made, _matrix(model.image_out_projector),
            _matrix(net.cond_embed), _matrix(net.input_proj), _matrix(last.adaLN_modulation[1]),
            _matrix(last.linear),
        )  # fmt: skip


def _matrix(part: nn.Module) -> Matrix:
    assert isinstance(part, PackedLinear)
    return part.matrix


def coefficients(solver: SolverSettings) -> tuple[int, int, Tensor]:
    """A solver as sums of what it knows: (draws, calls, coefficients [calls + 1, draws + calls]).

    All solvers are linear in draws and velocities. So one that is given unit vectors asks at, and
    ends with, the vectors of its own coefficients.
    """
    draws, calls = solver.draws, len(question_times(solver))
    units = iter(torch.eye(draws + calls, dtype=torch.float64))
    answers = torch.eye(draws + calls, dtype=torch.float64)[draws:]
    questions, rows = ask(lambda: next(units), solver), []
    try:
        rows.append(next(questions)[0])
        for answer in answers:
            rows.append(questions.send(answer)[0])
    except StopIteration as end:
        rows.append(end.value)
    return draws, calls, torch.stack(rows).float().contiguous()
