"""Layers as compiled training on packed rows computes them: the same numbers in fewer passes.

A training step of a small model is bound by what lies between its matrix products. So projections
of one input are one product here; the weights of a norm are folded into the matrix behind it, which
makes the sum over positions in their gradient one over the rows of that matrix; and what lies
between two products is written forward and backward as a compiler can turn it into one loop.
Parameters keep their released names, and `backbone` says the same more plainly. Without a compiler
these functions are right, but slower than it.

Legend: N positions, E hidden size, H query heads, G key/value heads, d head size, M MLP width.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.config import NextStepConfig
from nextstep.kernels.build import keep_compiled_code_private

Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Fused:
    """`project` and `finish`, compiled or not; see there."""

    project: Callable[..., Tensor]
    finish: Callable[..., Tensor]


def can_fuse(config: NextStepConfig) -> bool:
    """Whether the functions here know every number of such a layer."""
    return not (config.o_attention_bias or config.mlp_bias)


@functools.cache
def can_compile(device: str) -> bool:
    """Whether torch.compile works here; it needs a C++ compiler and more that may be missing.

    Args:
        device: kind of device, e.g. "cpu".
    """
    keep_compiled_code_private()
    try:
        torch.compile(torch.sin, dynamic=False)(torch.ones(16, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        warnings.warn(
            f"torch.compile does not work here, so training runs without it ({_reason(error)})",
            stacklevel=2,
        )
        return False
    return True


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: of a compiler's output the line that names the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if _COMPILER_ERROR.search(line)]
    return (told or lines or [type(error).__name__])[0][:300]


_COMPILER_ERROR = re.compile(r"\b(fatal error|error|cannot find|No such file)\b:? ")
"""In a line of a compiler or linker that says what is wrong, and in none of its command line."""


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its weights say: with no adapter and no hook inside it."""
    return not any(
        hasattr(part, "base_layer") or part._forward_hooks or part._forward_pre_hooks
        for part in module.modules()
    )


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What products are computed in: autocast's dtype inside autocast, else the weight's."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight^T + bias; compiled, the bias is left to the loop behind."""
    if bias is None:
        return torch.mm(x, weight.t())
    if not torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    # Subtracted in fp32: a sum the compiler would put back into the product, as a pass of its own.
    return (torch.mm(x, weight.t()).float() - (-bias.float())).to(x.dtype)


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """g^T x, [N, O] and [N, I] -> [O, I].

    In half precision the narrower one is turned, which costs by its width. In fp32 either way is
    equally fast, and a gradient that does not lie as its parameter does is copied slowly.
    """
    turn_inputs = g.dtype != torch.float32 and x.shape[1] < g.shape[1]
    return torch.mm(x.t(), g).t() if turn_inputs else torch.mm(g.t(), x)


def bias_gradient(g: Tensor) -> Tensor:
    """Sum over rows, [N, O] -> [O]; as a product with ones it is many times faster."""
    return torch.mm(g.new_ones(1, len(g)), g)[0]


class Product(torch.autograd.Function):
    """x @ weight^T + bias.

    Args of `apply`:
        x: [N, I].
        weight: [O, I] of the dtype of x.
        bias: [O] or None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[N, O]."""
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Of x, weight and bias."""
        x, weight = ctx.saved_tensors
        (g,) = gradients
        return torch.mm(g, weight), weight_gradient(g, x), bias_gradient(g) if ctx.biased else None


class Normalised(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps): RMSNorm without weights.

    Args of `apply`:
        x: [N, E].
        eps: under the root.
        dtype: of the result.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """[N, E]."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        out = (wide * scale).to(dtype)
        ctx.save_for_backward(out, scale)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Of x."""
        out, scale = ctx.saved_tensors
        g, wide = gradients[0].float(), out.float()
        along = (g * wide).mean(-1, keepdim=True)
        return ((g - wide * along) * scale).to(ctx.dtype), None, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up.

    Args of `apply`:
        both: [N, 2M], gate and up beside each other.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """[N, M]."""
        gate, up = both.chunk(2, dim=1)
        rate = torch.sigmoid(gate)
        ctx.save_for_backward(both, rate)
        return gate * rate * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """[N, 2M]."""
        both, rate = ctx.saved_tensors
        (g,) = gradients
        gate, up = both.chunk(2, dim=1)
        silu = gate * rate
        return torch.cat((g * up * (rate + silu - silu * rate), g * silu), dim=1)


class Rotated(torch.autograd.Function):
    """Positions applied to queries and keys.

    Args of `apply`:
        joint: [N, H + 2G, d] queries, keys, values.
        cos, sin: [N, d], fp32, the second half as the first.
        turned: H + G.
    """

    @staticmethod
    def forward(ctx: Any, joint: Tensor, cos: Tensor, sin: Tensor, turned: int) -> Tensor:
        """[N, H + 2G, d]."""
        ctx.save_for_backward(cos, sin)
        ctx.turned = turned
        return _turn(joint, cos, sin, turned)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Gradients:
        """Of `joint`."""
        cos, sin = ctx.saved_tensors
        return _turn(gradients[0], cos, -sin, ctx.turned), None, None, None


def _turn(joint: Tensor, cos: Tensor, sin: Tensor, turned: int) -> Tensor:
    """Turn pairs of the first heads by their angles (halves convention of Qwen2)."""
    N, heads, d = joint.shape
    pairs = joint.view(N, heads, 2, d // 2)
    sign = torch.tensor((-1.0, 1.0), device=joint.device).view(2, 1)
    # Values go through with an angle of 0: one loop over all heads, where slices would be three.
    is_turned = (torch.arange(heads, device=joint.device) < turned).view(heads, 1, 1)
    cos = torch.where(is_turned, cos.view(N, 1, 2, d // 2), 1.0)
    sin = torch.where(is_turned, sin.view(N, 1, 2, d // 2) * sign, 0.0)
    return (pairs * cos + pairs.flip(2) * sin).to(joint.dtype).view(N, heads, d)


def project(
    x: Tensor,
    angles: tuple[Tensor, Tensor],
    norm: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    biases: tuple[Tensor, Tensor, Tensor] | None,
    eps: float,
    d: int,
    dtype: torch.dtype,
) -> Tensor:
    """From the residual stream to queries, keys and values.

    Args:
        x: [N, E].
        angles: cosines and sines, [N, d].
        norm: [E] weight of the norm before attention.
        weights: of q [H*d, E], k and v [G*d, E].
        biases: of the same, or None.
        eps: of the norm.
        d: head size.
        dtype: of the products.

    Returns:
        [N, H + 2G, d], queries divided by sqrt(d).
    """
    q, k, v = weights
    folded = (torch.cat((q * d**-0.5, k, v)) * norm).to(dtype)
    bias = None
    if biases is not None:
        q_bias, k_bias, v_bias = biases
        bias = torch.cat((q_bias * d**-0.5, k_bias, v_bias)).to(dtype)
    joint = Product.apply(Normalised.apply(x, eps, dtype), folded, bias)
    return Rotated.apply(joint.view(len(x), -1, d), *angles, (len(q) + len(k)) // d)


def finish(
    x: Tensor,
    attended: Tensor,
    norm: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """From attention to the next layer: output projection, norm, MLP, both residuals.

    Args:
        x: [N, E] the residual stream before the layer.
        attended: [N, H*d].
        norm: [E] weight of the norm before the MLP.
        weights: of o [E, H*d], gate and up [M, E], down [E, M].
        eps: of the norm.
        dtype: of the products.

    Returns:
        [N, E] in the dtype of x.
    """
    o, gate, up, down = weights
    x = x + Product.apply(attended, o.to(dtype), None)
    folded = (torch.cat((gate, up)) * norm).to(dtype)
    inner = SwiGLU.apply(Product.apply(Normalised.apply(x, eps, dtype), folded, None))
    return x + Product.apply(inner, down.to(dtype), None)
