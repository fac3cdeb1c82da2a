"""Muon: momentum whose matrices are orthogonalised before they move the weights.

The optimizer is torch's (`torch.optim.Muon`), whose Newton-Schulz iteration computes in bf16
whatever the model trains in. Where bf16 is emulated that costs more than the whole step, so here it
computes in a number format that is given; in bf16 the weights are bit for bit torch's.

With whole copies of a model on several ranks, every rank has the whole gradient and would make the
same update; orthogonalising is the costly part of it. So the matrices are dealt out, and the
finished updates are summed over the ranks (all but one of which add zeros). They travel in the
format of the iteration, so the weights are bit for bit those of one process. Momentum is kept up
everywhere: it is cheap, and any rank may write a checkpoint.

Legend: N rows, K columns of a weight matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim._muon import _adjust_lr


def shares(costs: list[int], ranks: int) -> list[int]:
    """The rank that makes each matrix: the dearest first, always to whoever has least to do."""
    load, owners = [0] * ranks, [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        owner = min(range(ranks), key=lambda r: (load[r], r))
        owners[place] = owner
        load[owner] += costs[place]
    return owners


def orthogonalised(
    matrix: Tensor,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """A matrix with all singular values brought near 1, by a quintic Newton-Schulz iteration.

    X <- a X + (b A + c A A) X with A = X X^T, from X of norm 1 (Jordan et al. 2024, "Muon: An
    optimizer for hidden layers in neural networks").

    Args:
        matrix: [N, K], left as it is.
        coefficients: a, b, c.
        steps: of the iteration.
        eps: smallest norm to divide by.
        dtype: what is computed in, and that of the result [N, K].
    """
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.to(dtype, copy=True)
    # The Gram matrix is that of the shorter side, which is the smaller product.
    x = x.T if tall else x
    # Norm 1 bounds all singular values by 1, where the iteration converges.
    x.div_(x.norm().clamp(min=eps))
    for _ in range(steps):
        # a x + (b G + c G G) x in two fused products.
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with AdamW's learning rates, in a given number format.

    Args:
        groups: of parameters, matrices all.
        learning_rate: scaled by 0.2 sqrt(max(rows, columns)), so that AdamW's can be used again.
        weight_decay: where a group says nothing else.
        dtype: what the orthogonalisation computes in.
        copies: whether every rank of the default group holds the same parameters and gradients,
            and calls `step` as often; the orthogonalisation is then dealt out.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        weight_decay: float,
        dtype: torch.dtype = torch.bfloat16,
        copies: bool = False,
    ) -> None:
        super().__init__(
            groups, learning_rate, weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        self.dtype, self.copies = dtype, copies

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; see `torch.optim.Muon`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            step = self._step_shared if self.copies and parameters else self._step_alone
            step(group, parameters)
        return loss

    def _step_alone(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            self._move(
                group, parameter, self._update(group, parameter, self._momentum(group, parameter))
            )

    def _step_shared(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        import torch.distributed as dist

        owners = shares([p.numel() * min(p.shape) for p in parameters], dist.get_world_size())
        made = parameters[0].new_zeros(sum(map(Tensor.numel, parameters)), dtype=self.dtype)
        parts = made.split([p.numel() for p in parameters])
        for parameter, owner, part in zip(parameters, owners, parts, strict=True):
            momentum = self._momentum(group, parameter)
            if owner == dist.get_rank():
                part.view_as(parameter).copy_(self._update(group, parameter, momentum))
        # Every part is zero on all ranks but its owner, so a sum is a gather.
        dist.all_reduce(made)
        for parameter, part in zip(parameters, parts, strict=True):
            self._move(group, parameter, part.view_as(parameter))

    def _momentum(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """The running mean of the gradient, with this step's in it."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        return state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])

    def _update(self, group: dict[str, Any], parameter: Tensor, momentum: Tensor) -> Tensor:
        """The direction of a step, orthogonalised."""
        assert parameter.grad is not None
        nesterov = parameter.grad.lerp(momentum, group["momentum"])
        return orthogonalised(
            nesterov if group["nesterov"] else momentum,
            group["ns_coefficients"], group["ns_steps"], group["eps"], self.dtype,
        )  # fmt: skip

    def _move(self, group: dict[str, Any], parameter: Tensor, update: Tensor) -> None:
        rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-rate)
