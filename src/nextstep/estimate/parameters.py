"""How many parameters a model of a shape has, in closed form: no network is built for it.

Legend: E hidden size, H heads, G key and value heads, d head width, M MLP width, V vocabulary,
W width of the flow head, D values per token, C channels.
"""

from __future__ import annotations

from itertools import pairwise

from nextstep.config import NextStepConfig
from nextstep.vae.config import AutoencoderConfig

TIME_FEATURES = 256
"""Inputs of the flow head's embedding of t."""


def model_parameters(config: NextStepConfig) -> dict[str, int]:
    """Parameters of each part of a model; together they are all of it."""
    E, W, D = config.hidden_size, config.fm_head_dim, config.token_size
    return {
        "language model": _language_model(config) + 2 * config.image_position_side * E,
        "flow head": _flow_head(W, D, config.fm_head_layers, E),
        "in-projector": _linear(D, E),
        "out-projector": _linear(E, E),
    }


def language_model_parameters(config: NextStepConfig) -> int:
    """Parameters of the backbone with its embedding and language-model head alone."""
    return _language_model(config)


def autoencoder_parameters(config: AutoencoderConfig) -> int:
    """Parameters of the image tokenizer, encoder and decoder."""
    C, sizes = config.latent_channels, config.block_channels
    last, layers = sizes[-1], config.layers_per_block
    encoder = _convolution(3, sizes[0]) + _convolution(last, 2 * C) + 2 * last
    for place, (before, channels) in enumerate(pairwise((sizes[0], *sizes))):
        encoder += _residuals(before, channels, layers)
        encoder += _convolution(channels, channels) if place < len(sizes) - 1 else 0
    decoder = _convolution(C, last) + _convolution(sizes[0], 3) + 2 * sizes[0]
    for place, (before, channels) in enumerate(pairwise((last, *reversed(sizes)))):
        decoder += _residuals(before, channels, layers + 1)
        decoder += _convolution(channels, channels) if place < len(sizes) - 1 else 0
    middle = _residuals(last, last, 2) + 2 * last + 4 * _linear(last, last)
    return encoder + decoder + 2 * middle


def _language_model(config: NextStepConfig) -> int:
    E, M, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, G, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = sum(_linear(E, heads * d, config.attention_bias) for heads in (H, G, G))
    attention += _linear(H * d, E, config.o_attention_bias)
    mlp = 2 * _linear(E, M, config.mlp_bias) + _linear(M, E, config.mlp_bias)
    words = V * E if config.tie_word_embeddings else 2 * V * E
    return words + config.num_hidden_layers * (attention + mlp + 2 * E) + E


def _flow_head(W: int, D: int, layers: int, E: int) -> int:
    time = _linear(TIME_FEATURES, W) + _linear(W, W)
    block = 2 * W + 2 * _linear(W, W) + _linear(W, 3 * W)
    last = _linear(W, D) + _linear(W, 2 * W)
    return time + _linear(E, W) + _linear(D, W) + layers * block + last


def _residuals(before: int, channels: int, count: int) -> int:
    """Residual blocks of a level: norm and 3x3 convolution, twice, and the shortcut."""
    first = _residual(before, channels)
    return first + (count - 1) * _residual(channels, channels)


def _residual(before: int, after: int) -> int:
    convolutions = _convolution(before, after) + _convolution(after, after)
    shortcut = _linear(before, after) if before != after else 0
    return 2 * before + 2 * after + convolutions + shortcut


def _convolution(before: int, after: int) -> int:
    return 9 * before * after + after


def _linear(before: int, after: int, bias: bool = True) -> int:
    return before * after + (after if bias else 0)
