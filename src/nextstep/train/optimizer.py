"""Optimizers: AdamW for everything, or Muon for hidden matrices with AdamW for the rest."""

from __future__ import annotations

import torch
from torch import nn

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


def build_optimizers(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    muon: bool,
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[torch.optim.Optimizer]:
    """The optimizers that together cover every trainable parameter once.

    Norms and biases never decay. With `muon`, hidden matrices use Muon with the scale that lets
    AdamW's learning rate be reused (0.2 * sqrt(max(rows, columns))).
    """
    hidden, decayed, plain = split_parameters(model)
    groups = [
        {"params": decayed if muon else hidden + decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True
    )
    if not (muon and hidden):
        return [adam]
    return [
        torch.optim.Muon(
            hidden,
            lr=learning_rate,
            weight_decay=weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        adam,
    ]
