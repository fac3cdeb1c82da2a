"""One image token of many unlike pictures, their flow head calls made together.

Pictures with the same solver and branches form a group, whose solver asks for a velocity in every
round until it is done. All groups' questions of a round go through the head in blocks of R rows.
A solver's times are known beforehand, so the part of the head that does not see x is applied to
many rounds at once, layer by layer, in the very same blocks.

Legend: R rows of a block, n rows of all pictures, B pictures of a group, b branches, E hidden size,
W head width, D values per token, K questions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nextstep.engine.backends.cpu_kernels import Core, CoreWant, core_of
from nextstep.engine.backends.torch import MIXED, ROWS, blockwise, filled
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL, combine
from nextstep.flow.solvers import Questions, SolverSettings, ask, question_times
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


@dataclass(frozen=True)
class Want:
    """One picture that waits for its next token.

    Attributes:
        hidden: [b, E], states of its branches.
        draws: [draws, D].
        solver, branches: how it is sampled.
        weights: of the branches for this token.
        normalise: whether the token is normalised.
    """

    hidden: Tensor
    draws: Tensor
    solver: SolverSettings
    branches: tuple[str, ...]
    weights: dict[str, float]
    normalise: bool


class _Group:
    """Pictures whose solver steps are the same arithmetic."""

    def __init__(self, wants: Sequence[Want], first: int) -> None:
        self.wants = wants
        self.branches = list(wants[0].branches)
        b, B = len(self.branches), len(wants)
        self.rows = torch.arange(first, first + b * B)
        self.hidden = torch.stack([want.hidden for want in wants], dim=1).flatten(0, 1)
        draws = torch.stack([want.draws for want in wants], dim=1).to(self.hidden.device)
        self.weights = {
            name: draws.new_tensor([[want.weights[name]] for want in wants])
            for name in self.branches
        }
        stream = iter(draws)
        self.questions: Questions = ask(lambda: next(stream), wants[0].solver)
        self.x, _ = next(self.questions)
        self.tokens: Tensor | None = None

    def answer(self, velocities: Tensor) -> None:
        """Velocities [b*B, D] of the last question, fp32."""
        parts = velocities.view(len(self.branches), len(self.wants), -1)
        mixed = combine(parts, self.branches, self.weights)
        try:
            self.x, _ = self.questions.send(mixed)
        except StopIteration as end:
            token: Tensor = end.value
            self.tokens = token_norm(token) if self.wants[0].normalise else token


class BlockSampler:
    """Samples tokens through the flow head of a model.

    Raises:
        NextStepError: when an adapter is in the head and not merged.
    """

    def __init__(self, model: NextStepModel) -> None:
        if not model.image_head.is_plain:
            raise NextStepError("sampling reads plain weights: merge the adapter into them first")
        self.model, self.head, self.net = model, model.image_head, model.image_head.net
        self._times: OrderedDict[SolverSettings, Tensor] = OrderedDict()

    @torch.inference_mode()
    def sample(self, wants: Sequence[Want]) -> list[Tensor]:
        """The next token [D] of every picture, fp32, in order."""
        core = core_of(self.model)
        if core is not None:
            return _sample_packed(core, wants)
        order: dict[tuple, list[int]] = {}
        for place, want in enumerate(wants):
            # Values are grouped only where no vector instruction spans two pictures.
            apart = place if want.draws.shape[-1] % VECTOR else -1
            key = (want.solver, want.branches, want.normalise, apart)
            order.setdefault(key, []).append(place)
        groups, first = [], 0
        for members in order.values():
            groups.append(_Group([wants[place] for place in members], first))
            first += len(groups[-1].rows)
        self._integrate(groups)
        tokens: list[Tensor] = [torch.empty(0)] * len(wants)
        for group, members in zip(groups, order.values(), strict=True):
            assert group.tokens is not None
            for place, token in zip(members, group.tokens, strict=True):
                tokens[place] = token
        return tokens

    def check(self) -> None:
        """Make sure that a row of the head gets the same bytes at every place of a block.

        Raises:
            NextStepError: when it does not on this machine.
        """
        config, generator = self.model.config, torch.Generator().manual_seed(0)
        weight = self.model.embed_tokens.weight
        hidden = torch.randn(ROWS, config.hidden_size, generator=generator).to(weight)
        draws = torch.randn(ROWS, 1, config.token_size, generator=generator)
        solver, one = SolverSettings("ode", 1), {CONDITIONAL: 1.0}
        wants = [
            Want(hidden[row : row + 1], draws[row], solver, (CONDITIONAL,), one, False)
            for row in range(ROWS)
        ]
        together = self.sample(wants)
        for row, want in enumerate(wants):
            moved = self.sample([*wants[row:], *wants[:row]])
            alone = self.sample([want])
            if not torch.equal(together[row], alone[0]) or not all(
                torch.equal(together[(row + place) % ROWS], moved[place]) for place in range(ROWS)
            ):
                raise NextStepError(MIXED)

    def _integrate(self, groups: list[_Group]) -> None:
        condition = blockwise(
            lambda h: self.head.embed_condition(self.model.image_condition(h)),
            torch.cat([group.hidden for group in groups]),
        )
        times = [self.times(group.wants[0].solver) for group in groups]
        for active, blocks in self._rounds(groups, times, condition):
            x = torch.cat([group.x.repeat(len(group.branches), 1) for group in active])
            split = filled(x.to(condition.dtype)).split(ROWS)
            answers = torch.cat(
                [self._velocity(part, block) for part, block in zip(split, blocks, strict=True)]
            ).float()
            _answer(active, answers)

    def times(self, solver: SolverSettings) -> Tensor:
        """Embedded times of a solver's questions, [K, W]."""
        if solver in self._times:
            self._times.move_to_end(solver)
            return self._times[solver]
        asked = torch.tensor(question_times(solver), device=self.model.embed_tokens.weight.device)
        self._times[solver] = blockwise(self.head.embed_time, asked)
        if len(self._times) > REMEMBERED:
            self._times.popitem(last=False)
        return self._times[solver]

    def _rounds(
        self, groups: list[_Group], times: list[Tensor], condition: Tensor
    ) -> Iterator[tuple[list[_Group], list[list[Modulation]]]]:
        """Every round's groups, and the modulations of its blocks."""
        waiting: list[tuple[list[_Group], list[Tensor]]] = []
        size = ROWS * condition.shape[1] * condition.element_size()
        limit = max(1, MODULATION_BYTES // (size * (3 * len(self.net.res_blocks) + 2)))
        count = max(map(len, times))
        for round_ in range(count):
            active = [g for g, own in zip(groups, times, strict=True) if round_ < len(own)]
            y = torch.cat(
                [
                    condition[group.rows] + own[round_]
                    for group, own in zip(groups, times, strict=True)
                    if round_ < len(own)
                ]
            )
            waiting.append((active, [F.silu(part) for part in filled(y).split(ROWS)]))
            blocks = [block for _, own in waiting for block in own]
            if len(blocks) >= limit or round_ + 1 == count:
                made = iter(self._modulations(blocks))
                for groups_of, own in waiting:
                    yield groups_of, [next(made) for _ in own]
                waiting = []

    def _modulations(self, blocks: list[Tensor]) -> list[list[Modulation]]:
        """Of blocks [R, W]: (scale, shift, gate) of each layer, (scale, shift) of the last.

        The layer norms' own weights are folded in, as in `SamplingHead`.
        """
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


def _answer(groups: list[_Group], velocities: Tensor) -> None:
    """Give every group its rows of the velocities, in order."""
    first = 0
    for group in groups:
        last = first + len(group.rows)
        group.answer(velocities[first:last])
        first = last


def _sample_packed(core: Core, wants: Sequence[Want]) -> list[Tensor]:
    """The same through the kernels, which need no blocks."""
    asked = [
        CoreWant(w.hidden, w.draws, w.solver, [w.weights[name] for name in w.branches])
        for w in wants
    ]
    tokens = core.sample(asked)
    # One by one, because vector instructions may span pictures and sums may be cut otherwise.
    return [
        token_norm(token) if want.normalise else token
        for token, want in zip(tokens, wants, strict=True)
    ]
