"""Stage `distill`: the flow head learns to jump along the guided paths of what it was.

Everything but the head stays as it is, so hidden states are computed once and kept, with the
teacher's path of one noise from each. A token then costs one call of the head, or two, and one
branch. The three ways of learning stand in `objectives.flow_map`.

Legend: M tokens, D values per token, E hidden size, P stretches of a path, b branches of guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nextstep.model.flow_head import FlowHead
from nextstep.model.nextstep import NextStepModel
from nextstep.train.objectives.flow_map import adaptive_weight, meanflow_target, shortcut_target
from nextstep.vae.latents import token_norm

Method = Literal["regression", "shortcut", "meanflow"]
STRETCHES = 8
"""P; paths are kept at this many equal stretches of time, so jumps of 1, 2, 4 and 8 calls are."""
HEAD = "image_head."
"""What is trained, by the beginning of its name."""


@dataclass(frozen=True)
class DistillSettings:
    """How the head learns.

    Attributes:
        method: see `objectives.flow_map`.
        calls: of the head per token, that regression is trained for; powers of two up to 8.
        spans: share of the spans of shortcut and meanflow that are not empty.
        power: see `adaptive_weight`.
        normalised: whether tokens are normalised, so that only what that leaves counts at the end.
    """

    method: Method = "regression"
    calls: tuple[int, ...] = (1, 2)
    spans: float = 0.25
    power: float = 0.0
    normalised: bool = True


@dataclass(frozen=True)
class TokenBatch:
    """Tokens to learn from.

    Attributes:
        hidden: [M, b, E] states of the branches, the conditional one first.
        weights: [M, b] of the branches' velocities.
        path: [M, P + 1, D] of the teacher, from noise to token.
        guidance: [M] scale of the path.
        draws: [M, 3] uniform numbers that choose a span.
    """

    hidden: Tensor
    weights: Tensor
    path: Tensor
    guidance: Tensor
    draws: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """A copy on `device`, fp32."""
        parts = (self.hidden, self.weights, self.path, self.guidance, self.draws)
        return TokenBatch(*(part.to(device).float() for part in parts))


class DistillStage:
    """Losses of jumps; satisfies `nextstep.train.contracts.Stage`.

    Args:
        settings: see `DistillSettings`.
        teacher: the head as it was; not trained.
    """

    def __init__(self, settings: DistillSettings, teacher: FlowHead) -> None:
        self.settings, self.teacher = settings, teacher.requires_grad_(False).eval()
        self.loss_weights = {"distill_loss": 1.0, "distance": 0.0}

    def prepare(self, batch: TokenBatch, device: torch.device | str) -> TokenBatch:
        """Move tokens to the device."""
        return batch.to(device)

    def counts(self, batch: TokenBatch) -> dict[str, float]:
        """Tokens."""
        return dict.fromkeys(self.loss_weights, float(len(batch.hidden)))

    def losses(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        """Sums over tokens; `distance` is the root of the mean square of each."""
        assert isinstance(model, NextStepModel)
        condition = model.image_condition(batch.hidden)
        student = mean_velocity(model.image_head, condition[:, 0], batch.guidance)
        if self.settings.method == "regression":
            error = self._regression(student, batch)
        else:
            error = self._self_taught(student, condition, batch)
        weight = adaptive_weight(error, self.settings.power)
        return {
            "distill_loss": (weight * error).sum(),
            "distance": error.detach().sqrt().sum(),
        }

    def _regression(self, student: Callable[..., Tensor], batch: TokenBatch) -> Tensor:
        """Mean squares of the differences between jumps and the path, [M]."""
        calls = torch.tensor(self.settings.calls, device=batch.path.device)
        chosen = calls[(batch.draws[:, 0] * len(calls)).long()]
        first = (batch.draws[:, 1] * chosen).long()
        stride = STRETCHES // chosen
        every = torch.arange(len(chosen), device=chosen.device)
        x, end = batch.path[every, first * stride], batch.path[every, (first + 1) * stride]
        t, s = first / chosen, (first + 1) / chosen
        made = x + (s - t)[:, None] * student(x, t, s)
        if self.settings.normalised:
            # What the token norm takes away at the end need not be learned.
            last = (s == 1)[:, None]
            made = torch.where(last, token_norm(made), made)
            end = torch.where(last, token_norm(end), end)
        # Jumps over less weigh as much as one over all.
        return (made - end).square().mean(-1) / (s - t).square()

    def _self_taught(
        self, student: Callable[..., Tensor], condition: Tensor, batch: TokenBatch
    ) -> Tensor:
        """Mean squares of the differences between velocities and their targets, [M]."""
        t, s = self._spans(batch)
        x = point(batch.path, t)
        velocity = guided(self.teacher, condition, batch.weights, x, t)
        if self.settings.method == "shortcut":
            target = torch.where((s > t)[:, None], shortcut_target(student, x, t, s), velocity)
        else:
            target = meanflow_target(student, x, t, s, velocity)
        return (student(x, t, s) - target.detach()).square().mean(-1)

    def _spans(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Where jumps begin and end, [M] each; the rest of `spans` has no length."""
        ends = batch.draws[:, 1:].sort(1).values
        long = batch.draws[:, 0] < self.settings.spans
        return ends[:, 0], torch.where(long, ends[:, 1], ends[:, 0])


def mean_velocity(
    head: FlowHead, condition: Tensor, guidance: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The student as a function of (x, t, s).

    Args:
        head: that jumps.
        condition: [M, E] with the prompt.
        guidance: [M].
    """
    embedded = head.embed_condition(condition)

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        asked = head.embed_question(torch.stack((t, s - t, guidance), dim=1))
        return head.velocity(x.to(embedded.dtype), asked, embedded).float()

    return u


def guided(teacher: FlowHead, condition: Tensor, weights: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The teacher's velocity under guidance, [M, D].

    Args:
        teacher: of all branches.
        condition: [M, b, E] of the branches.
        weights: [M, b] of their velocities.
        x: [M, D].
        t: [M].
    """
    with torch.no_grad():
        rows = x[:, None].expand(-1, weights.shape[1], -1)
        time = teacher.embed_time(t)[:, None]
        every = teacher.velocity(
            rows.to(condition.dtype), time, teacher.embed_condition(condition)
        ).float()
        return (weights[..., None] * every).sum(1)


def teacher_path(
    teacher: FlowHead, condition: Tensor, weights: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """The guided path from noise, kept at equal stretches, [M, P + 1, D].

    Args:
        teacher, condition, weights: see `guided`.
        noise: [M, D].
        steps: of the midpoint rule, rounded up to whole stretches.
    """
    each = -(-steps // STRETCHES)
    dt, x, kept = 1 / (each * STRETCHES), noise.float(), [noise.float()]
    for number in range(each * STRETCHES):
        t = torch.full((len(x),), number * dt, device=x.device)
        middle = x + dt / 2 * guided(teacher, condition, weights, x, t)
        x = x + dt * guided(teacher, condition, weights, middle, t + dt / 2)
        if (number + 1) % each == 0:
            kept.append(x)
    return torch.stack(kept, dim=1)


def point(path: Tensor, t: Tensor) -> Tensor:
    """Where a path is at times t [M], on straight lines between its kept points; [M, D]."""
    place = (t * STRETCHES).clamp(0, STRETCHES - 1e-4)
    first = place.long()
    share = (place - first)[:, None]
    every = torch.arange(len(path), device=path.device)
    return (1 - share) * path[every, first] + share * path[every, first + 1]


def frozen_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that this stage leaves alone."""
    return tuple(name for name, _ in model.named_parameters() if not name.startswith(HEAD))


def as_batch(tensors: dict[str, Any], places: Tensor, draws: Tensor) -> TokenBatch:
    """Chosen tokens of a cache."""
    return TokenBatch(
        **{name: tensors[name][places] for name in ("hidden", "weights", "path", "guidance")},
        draws=draws,
    )
