"""The flow head as training computes it when it is compiled; see `fused`.

`flow_head` says the same more plainly.

Legend: T tokens, K noise levels of each, R = K*T rows, D values per token, E hidden size, W width
of the head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.flow.path import interpolate, logit_normal_time, target_velocity
from nextstep.model.flow_head import NORM_EPS, FlowNet, time_sinusoid
from nextstep.model.fused import Gradients, Product, bias_gradient, product, weight_gradient


def _standardise(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps), fp32, with mean and 1 / sqrt(variance + eps) [R, 1]."""
    wide = x.float()
    mean = wide.mean(1, keepdim=True)
    centred = wide - mean
    rate = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    return centred * rate, mean, rate


def _standardise_gradient(g: Tensor, normed: Tensor, rate: Tensor) -> Tensor:
    """Of x; all fp32."""
    centre, along = g.mean(1, keepdim=True), (g * normed).mean(1, keepdim=True)
    return (g - centre - normed * along) * rate


class HeadBlock(torch.autograd.Function):
    """x + gate * outer(silu(inner(norm(x) * scale + shift))), a residual block of the flow head.

    Args of `apply`:
        x: [R, W].
        s: [R, W], silu of time plus condition.
        modulation, inner, outer: weights [3W, W], [W, W], [W, W], each followed by its bias; the
            modulation gives shift, scale and gate, with the norm's own weights folded in.
        eps: of the norm.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        s: Tensor,
        modulation: Tensor,
        modulation_bias: Tensor,
        inner: Tensor,
        inner_bias: Tensor,
        outer: Tensor,
        outer_bias: Tensor,
        eps: float,
    ) -> Tensor:
        """[R, W]."""
        made = product(s, modulation, modulation_bias)
        shift, scale, gate = made.chunk(3, dim=1)
        normed, mean, rate = _standardise(x, eps)
        h = (normed * scale + shift).to(x.dtype)
        middle = product(h, inner, inner_bias)
        open = torch.sigmoid(middle)
        a = middle * open
        out = product(a, outer, outer_bias)
        ctx.save_for_backward(x, s, modulation, inner, outer, made, mean, rate, h, open, a, out)
        return x + gate * out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Of every tensor."""
        x, s, modulation, inner, outer, made, mean, rate, h, open, a, out = ctx.saved_tensors
        (g,) = gradients
        _, scale, gate = made.chunk(3, dim=1)
        to_out = g * gate
        to_middle = torch.mm(to_out, outer) * (open + a - a * open)
        to_h = torch.mm(to_middle, inner)
        normed = (x.float() - mean) * rate
        to_x = g + _standardise_gradient(to_h.float() * scale, normed, rate).to(x.dtype)
        to_made = torch.cat((to_h, (to_h * normed).to(x.dtype), g * out), dim=1)
        return (
            to_x,
            torch.mm(to_made, modulation),
            weight_gradient(to_made, s),
            bias_gradient(to_made),
            weight_gradient(to_middle, h),
            bias_gradient(to_middle),
            weight_gradient(to_out, a),
            bias_gradient(to_out),
            None,
        )


class HeadEnd(torch.autograd.Function):
    """linear(norm(x) * scale + shift), the last layer of the flow head.

    Args of `apply`: as of `HeadBlock`, with a modulation of shift and scale and one product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        s: Tensor,
        modulation: Tensor,
        modulation_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        """[R, D]."""
        made = product(s, modulation, modulation_bias)
        shift, scale = made.chunk(2, dim=1)
        normed, mean, rate = _standardise(x, eps)
        h = (normed * scale + shift).to(x.dtype)
        ctx.save_for_backward(x, s, modulation, weight, made, mean, rate, h)
        return product(h, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Of every tensor."""
        x, s, modulation, weight, made, mean, rate, h = ctx.saved_tensors
        (g,) = gradients
        scale = made.chunk(2, dim=1)[1]
        to_h = torch.mm(g, weight)
        normed = (x.float() - mean) * rate
        to_x = _standardise_gradient(to_h.float() * scale, normed, rate).to(x.dtype)
        to_made = torch.cat((to_h, (to_h * normed).to(x.dtype)), dim=1)
        return (
            to_x,
            torch.mm(to_made, modulation),
            weight_gradient(to_made, s),
            bias_gradient(to_made),
            weight_gradient(g, h),
            bias_gradient(g),
            None,
        )


def head_weights(net: FlowNet, dtype: torch.dtype) -> list[Tensor]:
    """Weights and biases of the flow head in the order that `flow_error` reads them."""
    first, _, second = net.time_embed.mlp
    weights = [*_cast(first, dtype), *_cast(second, dtype)]
    weights += [*_cast(net.cond_embed, dtype), *_cast(net.input_proj, dtype)]
    for block in net.blocks():
        norm, (inner, _, outer) = block.in_ln, block.mlp
        weights += _folded(block.adaLN_modulation[1], norm.weight, norm.bias, dtype)
        weights += [*_cast(inner, dtype), *_cast(outer, dtype)]
    weights += _folded(net.final_layer.adaLN_modulation[1], None, None, dtype)
    return [*weights, *_cast(net.final_layer.linear, dtype)]


def flow_error(
    valid: Tensor, condition: Tensor, tokens: Tensor, u: Tensor, noise: Tensor, *weights: Tensor
) -> Tensor:
    """Squared error of the head's velocity.

    Args:
        valid: [T] 1 for tokens that count, else 0.
        condition: [T, E] after the out-projector.
        tokens: [T, D], fp32.
        u: [K, T] standard normal; t = sigmoid(u).
        noise: [K, T, D].
        weights: see `head_weights`.

    Returns:
        Scalar, fp32: sum over tokens of the mean over levels and values.
    """
    K, T, D = noise.shape
    dtype = weights[0].dtype
    t = logit_normal_time(u)
    x = interpolate(tokens, noise, t[..., None]).view(-1, D).to(dtype)
    time = F.silu(Product.apply(time_sinusoid(t.view(-1)).to(dtype), *weights[:2]))
    y = Product.apply(time, *weights[2:4]).view(K, T, -1)
    s = F.silu(y + Product.apply(condition.to(dtype), *weights[4:6])).view(K * T, -1)
    x = Product.apply(x, *weights[6:8])
    for first in range(8, len(weights) - 4, 6):
        x = HeadBlock.apply(x, s, *weights[first : first + 6], NORM_EPS)
    velocity = HeadEnd.apply(x, s, *weights[-4:], NORM_EPS)
    error = velocity.float().view(K, T, D) - target_velocity(tokens, noise)
    return (error.square().sum(2).sum(0) * valid).sum() / (K * D)


def _cast(linear: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert isinstance(linear, nn.Linear)
    return linear.weight.to(dtype), linear.bias.to(dtype)


def _folded(
    linear: nn.Module, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A modulation whose scale is whole (not 1 less) and that holds the norm's own weights.

    (norm * weight + bias) * (1 + scale) + shift = norm * [weight * (1 + scale)]
    + [bias * (1 + scale) + shift], and both brackets are linear in what scale and shift are.
    """
    assert isinstance(linear, nn.Linear)
    W = linear.weight.shape[1]
    shift, scale, rest = linear.weight.split((W, W, len(linear.weight) - 2 * W))
    shift_bias, scale_bias, rest_bias = linear.bias.split((W, W, len(linear.bias) - 2 * W))
    scale_bias = scale_bias + 1
    if weight is not None and bias is not None:
        shift, shift_bias = shift + bias[:, None] * scale, shift_bias + bias * scale_bias
        scale, scale_bias = weight[:, None] * scale, weight * scale_bias
    return (
        torch.cat((shift, scale, rest)).to(dtype),
        torch.cat((shift_bias, scale_bias, rest_bias)).to(dtype),
    )
