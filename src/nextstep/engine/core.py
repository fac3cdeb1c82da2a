"""Sampling through the kernels: whole passes of backbone and flow head, each one call.

A row's result depends on that row alone: not on its neighbours, nor on their number, nor on the
number of threads. So rows need no blocks of a fixed size here, unlike in `blocks`.

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

from nextstep.flow.solvers import SolverSettings, question_times
from nextstep.model.backbone import Layer, rotary_angles
from nextstep.model.cache import KVCache
from nextstep.model.flow_head import NORM_EPS
from nextstep.model.native import build
from nextstep.model.native.linear import Matrix, PackedLinear
from nextstep.model.native.quantising import kernels_fit, quantised
from nextstep.model.nextstep import NextStepModel

MODULATION_BYTES = 2**28
"""Modulations made at once; more times are made in parts."""
ANGLES = 256
"""Rotary positions worked out at a time."""
REMEMBERED = 64
"""Solvers whose embedded times are kept."""


KERNELS = "kernels 1"
"""Pictures are byte-equal for kernels of one number; others give other roundings."""


class RowPlace(NamedTuple):
    """Where a row stands in its cache.

    Attributes:
        cache, row: its keys and values.
        first: the first position it looks at; rotary positions count from there.
        position: where its keys are stored.
    """

    cache: KVCache
    row: int
    first: int
    position: int


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
        *((n, ctypes.c_int64) for n in ("width", "token", "count")),
        ("eps", ctypes.c_double),
        ("blocks", ctypes.POINTER(_Block)),
        *((n, Matrix) for n in ("input", "modulation", "last")),
    )


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
    head = [net.input_proj, net.final_layer.linear, net.final_layer.adaLN_modulation[1]]
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
        self._times: dict[SolverSettings, Tensor] = {}

    def stands_for(self, model: NextStepModel) -> bool:
        """Whether this is still that model's own."""
        return self.model is model and self._first is model.layers[0]

    @torch.inference_mode()
    def feed(self, embedded: Tensor, places: Sequence[RowPlace]) -> Tensor:
        """One new position a row; rows of one cache stand in order.

        Args:
            embedded: [n, E].
            places: n of them.

        Returns:
            [n, E], fp32, behind the final norm.
        """
        x = embedded.float().contiguous().clone()
        self._reach(max(place.position - place.first for place in places) + 1)
        step, start = self._angles.stride(0) * 4, self._angles.data_ptr()
        lines = []
        for cache, row, first, position in places:
            store = cache.store
            lines.append(
                (
                    store[0, 0, row].data_ptr(),
                    *(store.stride(dim) for dim in (3, 1, 0)),
                    first,
                    position,
                    start + (position - first) * step,
                )
            )
        build.call("advance", self._backbone, len(x), torch.tensor(lines), x)
        for cache, _, _, position in places:
            cache.length = max(cache.length, position + 1)
        return x

    def times(self, solver: SolverSettings) -> Tensor:
        """Embedded times of a solver's questions, [K, W], fp32."""
        if solver not in self._times:
            if len(self._times) >= REMEMBERED:
                self._times.clear()
            asked = torch.tensor(question_times(solver))
            self._times[solver] = self.model.image_head.embed_time(asked).float()
        return self._times[solver]

    def condition(self, hidden: Tensor) -> Tensor:
        """Embedded condition of hidden states, [n, E] -> [n, W], fp32."""
        own = self.model.image_condition(hidden.float())
        return self.model.image_head.embed_condition(own).float()

    def modulate(self, y: Tensor) -> Tensor:
        """Modulations of times plus conditions [rows, W], SiLU not yet applied.

        Returns:
            Flat, as `velocity` reads them.
        """
        W, count = self.config.fm_head_dim, self.config.fm_head_layers
        out = torch.empty(len(y) * W * (3 * count + 2))
        build.call("modulate", self._head, len(y), y.contiguous(), out)
        return out

    def rows_at_once(self) -> int:
        """Rows that `modulate` should be given at most."""
        W, count = self.config.fm_head_dim, self.config.fm_head_layers
        return max(1, MODULATION_BYTES // (4 * W * (3 * count + 2)))

    def velocity(self, x: Tensor, which: Tensor, modulations: Tensor, rows: int) -> Tensor:
        """Velocities.

        Args:
            x: [n, D], fp32, contiguous.
            which: [n] row of the modulations for each.
            modulations: of `rows` rows, from `modulate`.
            rows: how many those are.

        Returns:
            [n, D], fp32.
        """
        v = torch.empty_like(x)
        build.call("velocity", self._head, len(x), x, which, rows, modulations, v)
        return v

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
            config.fm_head_dim, config.token_size, config.fm_head_layers, NORM_EPS, made,
            _matrix(net.input_proj), _matrix(last.adaLN_modulation[1]), _matrix(last.linear),
        )  # fmt: skip


def _matrix(part: nn.Module) -> Matrix:
    assert isinstance(part, PackedLinear)
    return part.matrix


class CoreHead:
    """velocity(x, t) of one condition after another, as `head.SamplingHead` gives it.

    Args:
        core: of the model.
        solver: whose questions are answered.
    """

    def __init__(self, core: Core, solver: SolverSettings) -> None:
        self.core = core
        asked = question_times(solver)
        self.places = {t: place for place, t in enumerate(asked)}
        self.times = core.times(solver)[:, None]
        self._made: tuple[int, Tensor] = (-1, self.times)
        self._condition = self.times

    def begin(self, hidden: Tensor) -> None:
        """Take up the next token's hidden states, [n, E]."""
        self._condition = self.core.condition(hidden)
        self._made = (-1, self.times)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """x [n, D] at time t -> [n, D], fp32."""
        n = len(self._condition)
        part = max(1, self.core.rows_at_once() // n)
        number, place = divmod(self.places[t], part)
        if self._made[0] != number:
            times = self.times[number * part : (number + 1) * part]
            y = (self._condition + times).flatten(0, 1)
            self._made = (number, self.core.modulate(y))
        rows = min(part, len(self.times) - number * part) * n
        which = torch.arange(place * n, (place + 1) * n)
        return self.core.velocity(x.float().contiguous(), which, self._made[1], rows)
