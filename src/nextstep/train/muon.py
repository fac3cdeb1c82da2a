"""Muon for whole copies of a model on several ranks: each orthogonalises its share of the matrices.

With copies, every rank has the whole gradient and would make the same update; orthogonalising is
the costly part of it. So the matrices are dealt out, and the finished updates are summed over the
ranks (all but one of which add zeros). They travel in bf16, which is what the iteration gives, so
the weights are bit for bit those of one process. Momentum is kept up everywhere: it is cheap, and
any rank may write a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def shares(costs: list[int], ranks: int) -> list[int]:
    """The rank that makes each matrix: the dearest first, always to whoever has least to do."""
    load, owners = [0] * ranks, [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        owner = min(range(ranks), key=lambda r: (load[r], r))
        owners[place] = owner
        load[owner] += costs[place]
    return owners


class SharedMuon(torch.optim.Muon):
    """`torch.optim.Muon` whose orthogonalisation is dealt out over the ranks of the default group.

    Every rank must hold the same parameters and gradients and call `step` as often. State and
    settings are those of `torch.optim.Muon`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; see `torch.optim.Muon`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        import torch.distributed as dist
        from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        owners = shares([p.numel() * min(p.shape) for p in parameters], dist.get_world_size())
        mine = dist.get_rank()
        made = parameters[0].new_zeros(sum(map(Tensor.numel, parameters)), dtype=torch.bfloat16)
        parts = made.split([p.numel() for p in parameters])
        for parameter, owner, part in zip(parameters, owners, parts, strict=True):
            momentum = self._momentum(parameter).lerp_(parameter.grad, 1 - group["momentum"])
            if owner == mine:
                update = momentum
                if group["nesterov"]:
                    update = parameter.grad.lerp(momentum, group["momentum"])
                how = group["ns_coefficients"], group["ns_steps"], group["eps"]
                part.view_as(parameter).copy_(_zeropower_via_newtonschulz(update, *how))
        dist.all_reduce(made)
        for parameter, part in zip(parameters, parts, strict=True):
            rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(part.view_as(parameter), alpha=-rate)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)  # type: ignore[arg-type]
        return state["momentum_buffer"]
