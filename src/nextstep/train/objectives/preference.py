"""Direct preference optimisation, for image tokens by velocity errors and for text by likelihood.

Diffusion-DPO (arXiv 2311.12908) on the velocity of a flow: with e the mean squared velocity error
of a picture over its tokens and values, at the same times and noise in all four terms,

    L = -log sigmoid( -(b/2) * ((e_w - ref_w) - (e_l - ref_l)) ).

Text is ordinary DPO (arXiv 2305.18290) on summed log-probabilities:

    L = -log sigmoid( b * ((p_w - ref_w) - (p_l - ref_l)) ).

Legend: Q pairs, T tokens of all pictures, D values per token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def velocity_margin(
    winner: Tensor, loser: Tensor, winner_reference: Tensor, loser_reference: Tensor
) -> Tensor:
    """How much more the winner's error fell than the loser's; positive is what DPO wants.

    Args:
        winner, loser: [Q] mean squared velocity errors under the model.
        winner_reference, loser_reference: [Q] the same under the reference.

    Returns:
        [Q].
    """
    return (loser - loser_reference) - (winner - winner_reference)


def velocity_dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """Loss of every pair, [Q], from `velocity_margin`.

    Args:
        margin: [Q].
        beta: b for errors that are means over tokens and values.
    """
    return -F.logsigmoid(beta / 2 * margin)


def text_dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """Loss of every pair, [Q].

    Args:
        margin: [Q] (p_w - ref_w) - (p_l - ref_l) of summed log-probabilities.
        beta: of the text.
    """
    return -F.logsigmoid(beta * margin)


def safe_loser_scale(winner_square: Tensor, along: Tensor, safety: float) -> Tensor:
    """How much of the loser's gradient may count, so that the winner's error does not rise.

    A step along -(g_w - s g_l) changes the winner's error by -(|g_w|^2 - s g_w.g_l) to first
    order, which is not positive for s <= |g_w|^2 / (g_w.g_l); where g_w.g_l <= 0 every s is safe.
    Gradients are those with respect to the predicted velocities (Diffusion-SDPO, arXiv 2511.03317).

    Args:
        winner_square: [Q] |g_w|^2.
        along: [Q] g_w.g_l.
        safety: factor on the bound, at most 1; smaller holds the loser back further.

    Returns:
        [Q] from 0 to 1.
    """
    bound = safety * winner_square / along.clamp(min=torch.finfo(along.dtype).tiny)
    return torch.where(along > 0, bound.clamp(max=1.0), torch.ones_like(bound))


def scaled_gradient(value: Tensor, scale: Tensor) -> Tensor:
    """The same value, with `scale` times its gradient."""
    return scale * value + (1 - scale) * value.detach()
