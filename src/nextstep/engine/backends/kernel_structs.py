"""A packed model in the structures of the kernels' sources, field by field."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nextstep.kernels.linear import Matrix, PackedLinear
from nextstep.model.backbone import Layer
from nextstep.model.flow_head import NORM_EPS
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import TOKEN_NORM_EPS

Address = Callable[[Tensor], int]
"""Of a tensor in fp32, which stays where it is."""


class LayerStruct(ctypes.Structure):
    """`Layer` of backbone.h."""

    _fields_ = (
        *((n, Matrix) for n in ("query", "key", "value", "output", "gate", "up", "down")),
        ("before", ctypes.c_void_p),
        ("behind", ctypes.c_void_p),
    )


class BackboneStruct(ctypes.Structure):
    """`Backbone` of backbone.h."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("layers", "E", "H", "G", "d", "M", "half")),
        ("eps", ctypes.c_double),
        ("own", ctypes.POINTER(LayerStruct)),
        ("norm", ctypes.c_void_p),
    )


class BlockStruct(ctypes.Structure):
    """`Block` of head.h."""

    _fields_ = (
        *((n, Matrix) for n in ("modulation", "inner", "outer")),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class HeadStruct(ctypes.Structure):
    """`Head` of head.h."""

    _fields_ = (
        *((n, ctypes.c_int64) for n in ("hidden", "width", "token", "count")),
        *((n, ctypes.c_double) for n in ("eps", "token_eps")),
        ("blocks", ctypes.POINTER(BlockStruct)),
        *((n, Matrix) for n in ("output", "condition", "input", "modulation", "last")),
    )


def describe_backbone(model: NextStepModel, address: Address) -> BackboneStruct:
    """A packed model's layers; `address` keeps fp32 copies of norms alive."""
    config = model.config
    made = (LayerStruct * config.num_hidden_layers)()
    for out, layer in zip(made, model.layers, strict=True):
        assert isinstance(layer, Layer)
        attention, mlp = layer.self_attn, layer.mlp
        for name, part in (
            ("query", attention.q_proj), ("key", attention.k_proj), ("value", attention.v_proj),
            ("output", attention.o_proj), ("gate", mlp.gate_proj), ("up", mlp.up_proj),
            ("down", mlp.down_proj),
        ):  # fmt: skip
            setattr(out, name, _matrix(part))
        out.before = address(layer.input_layernorm.weight)
        out.behind = address(layer.post_attention_layernorm.weight)
    return BackboneStruct(
        config.num_hidden_layers, config.hidden_size, config.num_attention_heads,
        config.num_key_value_heads, config.head_dim, config.intermediate_size,
        int(model.embed_tokens.weight.dtype == torch.bfloat16), config.rms_norm_eps, made,
        address(model.norm.weight),
    )  # fmt: skip


def describe_head(model: NextStepModel, address: Address) -> HeadStruct:
    """A packed model's flow head, from the backbone's state to the token."""
    net, config = model.image_head.net, model.config
    made = (BlockStruct * config.fm_head_layers)()
    for out, block in zip(made, net.blocks(), strict=True):
        out.modulation = _matrix(block.adaLN_modulation[1])
        out.inner, out.outer = _matrix(block.mlp[0]), _matrix(block.mlp[2])
        out.weight, out.bias = address(block.in_ln.weight), address(block.in_ln.bias)
    last = net.final_layer
    return HeadStruct(
        config.hidden_size, config.fm_head_dim, config.token_size, config.fm_head_layers,
        NORM_EPS, TOKEN_NORM_EPS, made, _matrix(model.image_out_projector),
        _matrix(net.cond_embed), _matrix(net.input_proj), _matrix(last.adaLN_modulation[1]),
        _matrix(last.linear),
    )  # fmt: skip


def _matrix(part: nn.Module) -> Matrix:
    assert isinstance(part, PackedLinear)
    return part.matrix
