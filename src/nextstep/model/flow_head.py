"""The flow head: an MLP with adaptive layer norm that predicts velocity.

Legend: M tokens (any leading shape), D values per token, W head width, E hidden size.
Structure and parameter names follow the release (arXiv 2508.10711 section 2.2, table 6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.config import NextStepConfig
from nextstep.errors import NextStepError

TIME_SIZE = 256
MAX_PERIOD = 10_000
NORM_EPS = 1e-6
NO_JUMPS = (
    "this model's flow head does not jump: solver 'flow_map' is for models of the distill stage; "
    "choose another one"
)


def check_solver(solver: str, config: NextStepConfig) -> None:
    """Whether a model's flow head can answer a solver.

    Raises:
        NextStepError: when it jumps and the head was not taught to.
    """
    if solver == "flow_map" and not config.flow_map:
        raise NextStepError(NO_JUMPS)


def time_sinusoid(t: Tensor, size: int = TIME_SIZE) -> Tensor:
    """[M] times in [0, 1], not scaled -> [M, size]: cosines, then sines."""
    half = size // 2
    steps = torch.arange(half, device=t.device, dtype=torch.float32)
    # fp32: times differ by 1/steps, which bf16 can hardly tell apart near 1.
    angles = t.float()[..., None] * torch.exp(-math.log(MAX_PERIOD) * steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoid, Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_SIZE, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """[M] -> [M, W]."""
        return self.mlp(time_sinusoid(t).to(next(self.parameters()).dtype))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift."""
    return x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """Modulated norm, two Linears, gated residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y [M, W] -> [M, W]."""
        # The order of the three parts is that of the released weights.
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(modulate(self.in_ln(x), shift, scale))


class FinalLayer(nn.Module):
    """Modulated norm without affine, Linear to the velocity."""

    def __init__(self, width: int, token_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, token_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y [M, W] -> [M, D]."""
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        normed = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
        return self.linear(modulate(normed, shift, scale))


class FlowNet(nn.Module):
    """The network inside the head."""

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__()
        width = config.fm_head_dim
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(config.hidden_size, width)
        self.input_proj = nn.Linear(config.token_size, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(config.fm_head_layers))
        self.final_layer = FinalLayer(width, config.token_size)
        self.span_embed = TimeEmbedding(width) if config.flow_map else None
        self.guidance_embed = TimeEmbedding(width) if config.flow_map else None

    def blocks(self) -> Iterator[ResidualBlock]:
        """The residual blocks in order."""
        for block in self.res_blocks:
            assert isinstance(block, ResidualBlock)
            yield block

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [M, D], y [M, W] (time plus condition) -> velocity [M, D]."""
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)


class FlowHead(nn.Module):
    """velocity = head(x_t, t, condition).

    With `config.flow_map` the head predicts the mean velocity over a span, and is told the guidance
    that is folded into it; without a span it is the velocity (train.objectives.flow_map).

    `condition` is the hidden state after the out-projector. Sampling asks many times with one
    condition, so its embedding can be made once with `embed_condition`.
    """

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__()
        self.net = FlowNet(config)

    def embed_condition(self, condition: Tensor) -> Tensor:
        """[M, E] -> [M, W]."""
        return self.net.cond_embed(condition)

    def embed_time(self, t: Tensor) -> Tensor:
        """[M] -> [M, W]."""
        return self.net.time_embed(t)

    def embeddings(self, rows: Tensor) -> list[tuple[TimeEmbedding, Tensor]]:
        """What embeds which column of a solver's questions, [K, 3] of `flow.solvers.question_rows`.

        Raises:
            NextStepError: when jumps are asked of a head that was not taught to.
        """
        t, span, guidance = rows.unbind(-1)
        net = self.net
        if net.span_embed is None or net.guidance_embed is None:
            if bool(span.any()):
                raise NextStepError(NO_JUMPS)
            return [(net.time_embed, t)]
        return [(net.time_embed, t), (net.span_embed, span), (net.guidance_embed, guidance)]

    def embed_question(self, rows: Tensor) -> Tensor:
        """What a solver's questions are about, [K, 3] -> [K, W].

        Raises:
            NextStepError: see `embeddings`.
        """
        (embed, t), *others = self.embeddings(rows)
        embedded: Tensor = embed(t)
        for further, values in others:
            embedded = embedded + further(values)
        return embedded

    def velocity(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Velocity from embedded time and condition, both [M, W]; x [M, D] -> [M, D]."""
        return self.net(x, time + condition)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x [M, D], t [M], condition [M, E] -> velocity [M, D]."""
        return self.velocity(x, self.embed_time(t), self.embed_condition(condition))

    @property
    def is_plain(self) -> bool:
        """Whether every projection is an ordinary Linear, so not one with an adapter in it."""
        return not any(hasattr(module, "base_layer") for module in self.modules())

    def reset_parameters(self) -> None:
        """Xavier Linears, zero biases, N(0, 0.02) time MLP, zero AdaLN and output layers."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        net = self.net
        jumps = [part for part in (net.span_embed, net.guidance_embed) if part is not None]
        for embedding in (net.time_embed, *jumps):
            for module in embedding.mlp:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        # Zero modulation makes every block the identity; a zero output layer predicts velocity 0.
        zeroed = [block.adaLN_modulation for block in self.net.blocks()]
        final = self.net.final_layer
        # A head that learns to jump begins as the one that it was.
        spans = [embedding.mlp[2] for embedding in jumps]
        for part in (*zeroed, final.adaLN_modulation, final.linear, *spans):
            for parameter in part.parameters():
                nn.init.zeros_(parameter)
