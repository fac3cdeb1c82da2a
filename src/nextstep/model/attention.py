"""Attention over keys that lie in order: fused for reading, two matrix products for training.

Legend: B rows, S positions of this call, T positions in the cache and this call together, H query
heads, G key/value heads, d head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 1024
"""Up to this many positions two matrix products train faster on a CPU than torch's fused kernel,
whose backward pass is made for long rows; longer rows would take too much memory for scores."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of q [B, H, S, d] over k, v [B, G, T, d]; without a mask plainly causal.

    Returns:
        [B, H, S, d].
    """
    S, T = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    causal = mask is None and S > 1
    if causal and T > S:
        # Queries stand at the end of the cache; torch's own causal mask begins at its start.
        mask = torch.ones(S, T, dtype=torch.bool, device=q.device).tril(T - S)
        causal = False
    if not (causal and q.requires_grad and q.device.type == "cpu" and T <= SHORT):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return CausalAttention.apply(q, k, v)


class CausalAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v under a causal mask, with every product one batched call.

    Args of `apply`:
        q, k, v: [B, H, S, d] of one dtype; scores are kept in it, softmax sums in fp32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, S, d]."""
        B, H, S, d = q.shape
        q, k, v = (x.reshape(B * H, S, d) for x in (q, k, v))
        later = torch.full((S, S), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        with torch.autocast(q.device.type, enabled=False):
            scores = torch.baddbmm(later, q, k.transpose(1, 2), alpha=d**-0.5)
            weights = torch.softmax(scores, dim=-1)
            out = torch.bmm(weights, v)
        ctx.save_for_backward(q, k, v, weights)
        return out.view(B, H, S, d)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v."""
        q, k, v, weights = ctx.saved_tensors
        shape, scale = gradients[0].shape, q.shape[-1] ** -0.5
        g = gradients[0].reshape(q.shape)
        to_weights = torch.bmm(g, v.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, q.dtype)
        to_q = torch.bmm(to_scores, k).mul_(scale)
        to_k = torch.bmm(to_scores.transpose(1, 2), q).mul_(scale)
        to_v = torch.bmm(weights.transpose(1, 2), g)
        return to_q.view(shape), to_k.view(shape), to_v.view(shape)
