"""The flow head as sampling uses it: one image token of many different pictures together.

More than half of the head's weights (the AdaLN modulation) do not see x, and a solver's times are
known beforehand. So the modulation of many rounds is made at once, layer by layer, with the layer
norms' own weights folded in: the same mathematics in another order of rounding.

Pictures with the same solver and branches form a group, whose solver asks for a velocity in every
round until it is done. All groups' questions of a round go through the head together, in blocks of
R rows where rows must not depend on the rest of the batch.

Legend: R rows of a block, n rows of all pictures, B pictures of a group, b branches, E hidden size,
W head width, D values per token, K questions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.engine.backends.base import ROWS, SampleRequest, blockwise, filled
from nextstep.errors import NextStepError
from nextstep.flow.guidance import combine
from nextstep.flow.solvers import SolverSettings, VelocityRequests, request_rows, velocity_requests
from nextstep.model.flow_head import NORM_EPS
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import token_norm

MODULATION_BYTES = 2**26
"""Modulations kept at once; bounds the memory of solvers with many steps."""
REMEMBERED = 64
"""Solvers whose embedded times are kept."""
VECTOR = 64
"""Values that vector instructions take at a time, with room to spare."""

Modulation = tuple[Tensor, ...]
Key = tuple[SolverSettings, tuple[str, ...], bool]
"""What requests of one group share: solver, branches, whether tokens are normalised."""


class SolverGroup:
    """Tokens whose solver steps are the same arithmetic.

    Args:
        key: see `Key`.
        hidden: [b*B, E], branch by branch.
        draws: [draws, B, D].
        weights: [b, B] of the branches.
        first: place of its rows among all rows.
    """

    def __init__(
        self, key: Key, hidden: Tensor, draws: Tensor, weights: Tensor, first: int
    ) -> None:
        self.solver, self.branches, self.normalise = key[0], list(key[1]), key[2]
        self.hidden, self.rows = hidden, slice(first, first + len(hidden))
        self.weights = dict(zip(self.branches, weights[..., None].unbind(), strict=True))
        stream = iter(draws)
        self.questions: VelocityRequests = velocity_requests(lambda: next(stream), self.solver)
        self.x, _ = next(self.questions)
        self.tokens: Tensor | None = None

    def answer(self, velocities: Tensor) -> None:
        """Velocities [b*B, D] of the last question, fp32."""
        parts = velocities.view(len(self.branches), -1, velocities.shape[-1])
        mixed = combine(parts, self.branches, self.weights)
        try:
            self.x, _ = self.questions.send(mixed)
        except StopIteration as end:
            token: Tensor = end.value
            self.tokens = token_norm(token) if self.normalise else token


class SamplingHead:
    """Samples tokens through the flow head of a model.

    Args:
        model: in eval mode.
        block: R; None puts all rows of a call into one product.

    Raises:
        NextStepError: when an adapter is in the head and not merged.
    """

    def __init__(self, model: NextStepModel, block: int | None = ROWS) -> None:
        if not model.image_head.is_plain:
            raise NextStepError("sampling reads plain weights: merge the adapter into them first")
        self.model, self.head, self.net = model, model.image_head, model.image_head.net
        self.block = block
        self._times: OrderedDict[SolverSettings, Tensor] = OrderedDict()

    @torch.inference_mode()
    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """The token [D] of every request, fp32 on the CPU, in order."""
        order: dict[tuple[Key, int], list[int]] = {}
        for place, one in enumerate(requests):
            # Values are grouped only where no vector instruction spans two pictures.
            apart = place if self.block and one.draws.shape[-1] % VECTOR else -1
            order.setdefault(((one.solver, one.branches, one.normalise), apart), []).append(place)
        groups, first = [], 0
        for (key, _), members in order.items():
            groups.append(SolverGroup(key, *stacked([requests[i] for i in members]), first))
            first += len(groups[-1].hidden)
        self.integrate(groups)
        made = torch.cat([group.tokens for group in groups if group.tokens is not None]).cpu()
        tokens: list[Tensor] = [torch.empty(0)] * len(requests)
        for place, token in zip((i for own in order.values() for i in own), made, strict=True):
            tokens[place] = token
        return tokens

    def integrate(self, groups: list[SolverGroup]) -> None:
        """Let every group's solver run to its tokens."""
        hidden = torch.cat([group.hidden for group in groups])
        condition = self._blockwise(
            lambda h: self.head.embed_condition(self.model.image_condition(h)), hidden
        )
        times = [self.times(group.solver) for group in groups]
        for active, blocks in self._rounds(groups, times, condition):
            x = torch.cat([group.x.repeat(len(group.branches), 1) for group in active])
            split = self._blocks(x.to(condition.dtype))
            answers = torch.cat(
                [self._velocity(part, block) for part, block in zip(split, blocks, strict=True)]
            ).float()
            first = 0
            for group in active:
                last = first + len(group.hidden)
                group.answer(answers[first:last])
                first = last

    def times(self, solver: SolverSettings) -> Tensor:
        """Embedded times of a solver's questions, [K, W]."""
        if solver in self._times:
            self._times.move_to_end(solver)
            return self._times[solver]
        asked = request_rows(solver).to(self.model.embed_tokens.weight.device)
        self._times[solver] = self._blockwise(self.head.embed_question, asked)
        if len(self._times) > REMEMBERED:
            self._times.popitem(last=False)
        return self._times[solver]

    def _blocks(self, rows: Tensor) -> Sequence[Tensor]:
        return [rows] if self.block is None else filled(rows, self.block).split(self.block)

    def _blockwise(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        return function(rows) if self.block is None else blockwise(function, rows, self.block)

    def _rounds(
        self, groups: list[SolverGroup], times: list[Tensor], condition: Tensor
    ) -> Iterator[tuple[list[SolverGroup], list[list[Modulation]]]]:
        """Every round's groups, and the modulations of its blocks."""
        waiting: list[tuple[list[SolverGroup], Sequence[Tensor]]] = []
        numbers = condition.shape[1] * (3 * len(self.net.res_blocks) + 2)
        count, held = max(map(len, times)), 0
        for round_ in range(count):
            active = [g for g, own in zip(groups, times, strict=True) if round_ < len(own)]
            y = torch.cat(
                [
                    condition[group.rows] + own[round_]
                    for group, own in zip(groups, times, strict=True)
                    if round_ < len(own)
                ]
            )
            waiting.append((active, [F.silu(part) for part in self._blocks(y)]))
            held += sum(map(len, waiting[-1][1])) * numbers * condition.element_size()
            if held >= MODULATION_BYTES or round_ + 1 == count:
                made = iter(self._modulations([block for _, own in waiting for block in own]))
                for groups_of, own in waiting:
                    yield groups_of, [next(made) for _ in own]
                waiting, held = [], 0

    def _modulations(self, blocks: list[Tensor]) -> list[list[Modulation]]:
        """Of blocks [R, W]: (scale, shift, gate) of each layer, (scale, shift) of the last."""
        if self.block is None and len(blocks) > 1:
            sizes = [len(block) for block in blocks]
            (whole,) = self._modulations([torch.cat(blocks)])
            split = [[m.split_with_sizes(sizes) for m in layer] for layer in whole]
            parts = [zip(*layer, strict=True) for layer in split]
            return [list(one) for one in zip(*parts, strict=True)]
        made: list[list[Modulation]] = [[] for _ in blocks]
        for layer in self.net.blocks():
            norm, project = layer.in_ln, layer.adaLN_modulation[1]
            for y, out in zip(blocks, made, strict=True):
                shift, scale, gate = project(y).chunk(3, dim=-1)
                scale = scale + 1
                shift = shift.addcmul(scale, norm.bias)
                out.append((scale * norm.weight, shift, gate))
        project = self.net.final_layer.adaLN_modulation[1]
        for y, out in zip(blocks, made, strict=True):
            shift, scale = project(y).chunk(2, dim=-1)
            out.append((scale + 1, shift))
        return made

    def _velocity(self, x: Tensor, modulations: list[Modulation]) -> Tensor:
        """x [R, D] -> [R, D]."""
        *layers, final = modulations
        x = self.net.input_proj(x)
        for block, (scale, shift, gate) in zip(self.net.blocks(), layers, strict=True):
            inner, _, outer = block.mlp
            h = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS).mul_(scale).add_(shift)
            x = x.addcmul(outer(F.silu(inner(h), inplace=True)), gate)
        scale, shift = final
        h = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS).mul_(scale).add_(shift)
        velocity: Tensor = self.net.final_layer.linear(h)
        return velocity


def stacked(requests: Sequence[SampleRequest]) -> tuple[Tensor, Tensor, Tensor]:
    """Requests of one group as (hidden [b*B, E], draws [draws, B, D], weights [b, B])."""
    hidden = torch.stack([one.hidden for one in requests], dim=1).flatten(0, 1)
    draws = torch.stack([one.draws for one in requests], dim=1).to(hidden.device)
    weights = [[one.weights[name] for one in requests] for name in requests[0].branches]
    return hidden, draws, draws.new_tensor(weights)
