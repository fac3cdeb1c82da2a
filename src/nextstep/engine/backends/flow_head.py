"""The flow head as sampling uses it: many evaluations for one condition.

More than half of the head's weights (the AdaLN modulation) do not see x. For one token they are
applied once, to all times and branches together, instead of once an evaluation; the layer norm's
own weights are folded into them. The same mathematics in another order of rounding.

Legend: R rows (branches x pictures), D values per token, W head width, K times.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.errors import NextStepError
from nextstep.model.flow_head import NORM_EPS, FlowHead

Modulation = tuple[Tensor, ...]


class SamplingHead:
    """velocity(x, t) of one condition after another.

    Every solver asks for the same times for every token. They are learned from the first token's
    questions; from the second token on their modulations are made together.
    """

    def __init__(self, head: FlowHead) -> None:
        if not head.is_plain:
            raise NextStepError("sampling reads plain weights: merge the adapter into them first")
        self.head, self.net = head, head.net
        self.times: dict[float, Tensor] = {}
        self.condition: Tensor | None = None
        self._made: dict[float, list[Modulation]] = {}

    def begin(self, condition: Tensor) -> None:
        """Take up the next token's condition, [R, E] after the out-projector."""
        self.condition = self.head.embed_condition(condition)
        self._made = self._modulations(list(self.times)) if self.times else {}

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """x [R, D] at time t -> [R, D]."""
        if t not in self._made:
            self.times.setdefault(t, self.head.embed_time(torch.tensor([t], device=x.device)))
            self._made |= self._modulations([t])
        *blocks, final = self._made[t]
        x = self.net.input_proj(x)
        for block, (scale, shift, gate) in zip(self.net.blocks(), blocks, strict=True):
            inner, _, outer = block.mlp
            h = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS).mul_(scale).add_(shift)
            h = F.silu(inner(h), inplace=True)
            x = x.addcmul(outer(h), gate)
        scale, shift = final
        h = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS).mul_(scale).add_(shift)
        velocity: Tensor = self.net.final_layer.linear(h)
        return velocity

    def _modulations(self, times: list[float]) -> dict[float, list[Modulation]]:
        """For every time: (scale, shift, gate) [R, W] of each block, (scale, shift) of the end."""
        assert self.condition is not None
        y = F.silu(self.condition + self._stack(times))  # [K, R, W]
        made: list[list[Modulation]] = [[] for _ in times]
        for block in self.net.blocks():
            norm = block.in_ln
            shift, scale, gate = block.adaLN_modulation[1](y).chunk(3, dim=-1)
            scale = scale + 1
            shift = shift.addcmul(scale, norm.bias)
            scale = scale * norm.weight
            for k, out in enumerate(made):
                out.append((scale[k], shift[k], gate[k]))
        shift, scale = self.net.final_layer.adaLN_modulation[1](y).chunk(2, dim=-1)
        scale = scale + 1
        for k, out in enumerate(made):
            out.append((scale[k], shift[k]))
        return dict(zip(times, made, strict=True))

    def _stack(self, times: list[float]) -> Tensor:
        """Embedded times [K, 1, W]."""
        return torch.stack([self.times[t] for t in times])
