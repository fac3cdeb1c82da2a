"""Floating-point operations of training, and what the machine can do at most.

A multiply-add counts as two. A matrix of P numbers costs 2P forward and 4P backward for every
token that passes it (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Attention costs 4*H*d
forward for every position looked at (scores and values), three times that in training (PaLM, arXiv
2204.02311, appendix B). Work done twice to save memory is not counted, so the share of the peak is
the share that serves the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from nextstep.config import NextStepConfig
from nextstep.model.flow_head import TIME_SIZE

TRAINING = 3
"""Forward once, backward twice."""


@dataclass(frozen=True)
class Work:
    """What passes the model in one step.

    Attributes:
        positions: positions of the backbone, padding included if it is computed.
        looked_at: sum over positions of how many positions each one attends to; for one causal
            document of S positions S*(S+1)/2.
        text_targets: positions whose next id is predicted.
        image_inputs: image tokens that are read.
        image_targets: image tokens that are predicted.
        levels: noise levels each of them is trained at.
    """

    positions: float
    looked_at: float
    text_targets: float = 0.0
    image_inputs: float = 0.0
    image_targets: float = 0.0
    levels: float = 1.0


def layer_numbers(config: NextStepConfig) -> int:
    """Numbers in the matrices of one layer of the backbone."""
    E, d = config.hidden_size, config.head_dim
    H, G = config.num_attention_heads, config.num_key_value_heads
    return E * d * (2 * H + 2 * G) + 3 * E * config.intermediate_size


def head_numbers(config: NextStepConfig) -> tuple[int, int]:
    """Numbers in the matrices of the flow head: (used once a token, used once a noise level)."""
    W = config.fm_head_dim
    blocks = config.fm_head_layers * (2 * W * W + 3 * W * W)
    times = TIME_SIZE * W + W * W
    ends = config.token_size * W + 2 * W * W + W * config.token_size
    return config.hidden_size * W, blocks + times + ends


def train_flops(config: NextStepConfig, work: Work) -> float:
    """Operations of one training step, forward and backward, without the optimizer."""
    E = config.hidden_size
    once, each_level = head_numbers(config)
    attention = 2 * config.num_attention_heads * config.head_dim
    multiplied = (
        config.num_hidden_layers
        * (work.positions * layer_numbers(config) + work.looked_at * attention)
        + work.text_targets * E * config.vocab_size
        + work.image_inputs * config.token_size * E
        + work.image_targets * (E * E + once + work.levels * each_level)
    )
    return float(TRAINING * 2 * multiplied)
