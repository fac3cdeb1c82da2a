"""Optimizers: AdamW or SGD for everything, or Muon for hidden matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from nextstep.errors import NextStepError
from nextstep.train.muon import Muon

INPUT_OUTPUT_WORDS = ("embed", "lm_head", "projector", "input_proj", "final_layer", "conv_in")
"""Parts of a parameter's name that mark input and output layers, which stay with AdamW."""


def split_parameters(model: nn.Module) -> tuple[list, list, list]:
    """(hidden matrices, other decayed tensors, norms and biases) of the trainable parameters."""
    hidden, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            plain.append(parameter)
        elif parameter.ndim == 2 and not any(word in name for word in INPUT_OUTPUT_WORDS):
            hidden.append(parameter)
        else:
            decayed.append(parameter)
    return hidden, decayed, plain


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Leave parameters whose name fits a pattern untrained.

    Raises:
        NextStepError: when a pattern fits no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        _must_fit(pattern, names, "freeze")
        for name, parameter in model.named_parameters():
            if fnmatchcase(name, pattern):
                parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NextStepError("every parameter is frozen, so there is nothing to train")


def rate_scales(model: nn.Module, patterns: Mapping[str, float]) -> dict[str, float]:
    """Factor on the learning rate of every parameter: of the first pattern that fits, else 1.

    Raises:
        NextStepError: when a pattern fits no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        _must_fit(pattern, names, "rate_scales")
    return {
        name: next((s for p, s in patterns.items() if fnmatchcase(name, p)), 1.0) for name in names
    }


def _must_fit(pattern: str, names: Iterable[str], setting: str) -> None:
    if not any(fnmatchcase(name, pattern) for name in names):
        raise NextStepError(
            f"the pattern '{pattern}' in {setting} fits no parameter of this model; "
            "patterns meet whole names, as in 'layers.0.*'"
        )


def build_optimizers(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    name: str,
    betas: tuple[float, float] = (0.9, 0.95),
    scales: Mapping[str, float] | None = None,
    eps: float = 1e-8,
    copies: bool = False,
    orthogonalised_in: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """The optimizers that together cover every trainable parameter once.

    Norms and biases never decay. With "muon", hidden matrices use Muon with the scale that lets
    AdamW's learning rate be reused (0.2 * sqrt(max(rows, columns))).

    Args:
        model: whole or sharded.
        learning_rate: base rate.
        weight_decay: of all but norms and biases.
        name: one of `config.OPTIMIZERS`.
        betas: AdamW's; the first is the momentum of SGD.
        scales: patterns and factors as in `rate_scales`; every group keeps its factor as "scale",
            for `set_rate`.
        eps: AdamW's.
        copies: whether every rank holds the whole model; Muon's work is then dealt out.
        orthogonalised_in: what Muon's Newton-Schulz iteration computes in.
    """
    factors = rate_scales(model, scales or {})
    scale_of = {id(p): factors[name] for name, p in model.named_parameters()}
    hidden, decayed, plain = split_parameters(model)

    def groups(parameters: list, decay: float) -> list[dict]:
        """One group a factor, in order of first appearance."""
        by_scale: dict[float, list] = {}
        for parameter in parameters:
            by_scale.setdefault(scale_of[id(parameter)], []).append(parameter)
        return [
            {"params": members, "weight_decay": decay, "scale": scale, "lr": learning_rate * scale}
            for scale, members in by_scale.items()
        ]

    muon = name == "muon"
    rest = groups(decayed if muon else hidden + decayed, weight_decay) + groups(plain, 0.0)
    if name == "sgd":
        return [torch.optim.SGD(rest, lr=learning_rate, momentum=betas[0], fused=True)]
    optimizers: list[torch.optim.Optimizer] = []
    if muon and hidden:
        matrices = groups(hidden, weight_decay)
        optimizers.append(Muon(matrices, learning_rate, weight_decay, orthogonalised_in, copies))
    if rest:
        optimizers.append(
            torch.optim.AdamW(rest, lr=learning_rate, betas=betas, eps=eps, fused=True)
        )
    return optimizers


def set_rate(optimizers: Iterable[torch.optim.Optimizer], learning_rate: float) -> None:
    """Give every group the rate times its own factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["scale"]
