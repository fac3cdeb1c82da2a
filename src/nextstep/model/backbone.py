"""The causal transformer, in the Qwen2 layout.

Legend: B rows, S positions of this call, T positions in the cache and this call together,
E hidden size, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nextstep.config import NextStepConfig
from nextstep.model.attention import attend
from nextstep.model.cache import KVCache
from nextstep.model.fused import Fused, compute_dtype, is_plain
from nextstep.model.packed_attention import Documents, attend_documents, attend_joint


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the division in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E] in the dtype of x."""
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        # Cast before the weight, as in Qwen2: in bf16 the order decides the last bits.
        return self.weight * (wide * scale).to(x.dtype)


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions.

    Args:
        positions: [B, S] integers.
        head_dim: d.
        theta: base of the frequencies.

    Returns:
        Two fp32 tensors [B, 1, S, d]; the second half of d repeats the first.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    # fp32: bf16 has no whole numbers above 256 without gaps.
    angles = positions.float()[..., None] * theta**-exponent
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to x [B, heads, S, d] (halves convention of Qwen2)."""
    cos, sin = (a.to(x.dtype) for a in angles)
    # Value i turns with value i + d/2, not with its neighbour: released weights are laid out so.
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def embedding(rows: int, size: int) -> nn.Embedding:
    """A table without first values: drawing them on the meta device would import half of torch."""
    return nn.Embedding(rows, size, _weight=torch.empty(rows, size))


class Attention(nn.Module):
    """Grouped-query attention with biases on q, k and v."""

    def __init__(self, config: NextStepConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.H, self.G, self.d = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        E, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(E, self.H * self.d, bias=bias)
        self.k_proj = nn.Linear(E, self.G * self.d, bias=bias)
        self.v_proj = nn.Linear(E, self.G * self.d, bias=bias)
        self.o_proj = nn.Linear(self.H * self.d, E, bias=config.o_attention_bias)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        documents: Documents | None = None,
    ) -> Tensor:
        """[B, S, E] -> [B, S, E]; without mask and documents attention is plainly causal."""
        B, S, _ = x.shape
        q = rotate(self.q_proj(x).view(B, S, self.H, self.d).transpose(1, 2), angles)
        k = rotate(self.k_proj(x).view(B, S, self.G, self.d).transpose(1, 2), angles)
        v = self.v_proj(x).view(B, S, self.G, self.d).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        if documents is None:
            out = attend(q, k, v, mask).transpose(1, 2)
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = attend_documents(q, k, v, documents)
        return self.o_proj(out.reshape(B, S, self.H * self.d))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__()
        E, M, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(E, M, bias=bias)
        self.up_proj = nn.Linear(E, M, bias=bias)
        self.down_proj = nn.Linear(M, E, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., E]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each after a norm and around a residual."""

    def __init__(self, config: NextStepConfig, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, index)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.fused: Fused | None = None

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        documents: Documents | None = None,
    ) -> Tensor:
        """[B, S, E] -> [B, S, E]."""
        if documents is not None and self.fused and torch.is_grad_enabled() and is_plain(self):
            return self._packed(x, angles, documents, self.fused)
        x = x + self.self_attn(self.input_layernorm(x), angles, mask, cache, documents)
        return x + self.mlp(self.post_attention_layernorm(x))

    def _packed(
        self, x: Tensor, angles: tuple[Tensor, Tensor], documents: Documents, fused: Fused
    ) -> Tensor:
        """The same as `forward` for packed rows."""
        attn, mlp = self.self_attn, self.mlp
        flat, dtype = x.flatten(0, 1), compute_dtype(attn.q_proj.weight)
        q, k, v, o = attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj
        before, behind = self.input_layernorm, self.post_attention_layernorm
        joint = fused.project(
            flat,
            (angles[0].flatten(0, 2), angles[1].flatten(0, 2)),
            before.weight,
            (q.weight, k.weight, v.weight),
            (q.bias, k.bias, v.bias) if q.bias is not None else None,
            before.eps,
            attn.d,
            dtype,
        )
        attended = attend_joint(joint, attn.H, documents)
        weights = o.weight, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
        return fused.finish(flat, attended, behind.weight, weights, behind.eps, dtype).view_as(x)


class Backbone(nn.Module):
    """Embedding, layers and final norm; parameter names are the released ones."""

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def hidden(
        self,
        embeddings: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Run the transformer.

        Args:
            embeddings: [B, S, E].
            positions: [B, S] rotary positions; default 0..S-1, or on from the cache's length.
            mask: bool [B, 1, S, T], True where a query may look; default plainly causal.
            cache: keys and values of earlier positions, extended in place.
            documents: of packed rows; a position looks at its own document alone. In place of
                mask and cache, and with positions that begin anew in every document.

        Returns:
            [B, S, E] after the final norm.
        """
        if positions is None:
            start = cache.length if cache is not None else 0
            steps = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
            positions = steps.expand(embeddings.shape[0], -1)
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        x = embeddings
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                # Reentrant checkpoints would lose the gradient of inputs inside containers.
                x = checkpoint(layer, x, angles, mask, cache, documents, use_reentrant=False)
            else:
                x = layer(x, angles, mask, cache, documents)
        if cache is not None:
            cache.advance(embeddings.shape[1])
        return self.norm(x)
