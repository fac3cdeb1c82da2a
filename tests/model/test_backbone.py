"""The backbone against transformers' Qwen2Model, cached against uncached, and its exact sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from nextstep.config import HEADS, NextStepConfig
from nextstep.model.backbone import attend
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from tests.conftest import TINY, random_model


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_qwen2(kv_heads: int) -> None:
    config = TINY.with_values(num_key_value_heads=kv_heads)
    reference = Qwen2Model(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=kv_heads,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    ).eval()
    model = random_model(config)
    weights = {k: v for k, v in model.state_dict().items() if k in reference.state_dict()}
    reference.load_state_dict(weights)
    ids = torch.randint(6, 320, (3, 17))
    with torch.no_grad():
        theirs = reference(input_ids=ids).last_hidden_state
    ours = model.hidden(model.embed(ids))
    assert float((ours - theirs).abs().max()) <= 2e-5


def test_cached_equals_uncached() -> None:
    model = random_model(TINY)
    embeddings = model.embed(torch.randint(6, 320, (2, 12)))
    whole = model.hidden(embeddings)
    cache = KVCache(TINY, 2, 12)
    # Several positions at once, first and later, and single ones.
    cuts = [0, 5, 9, 10, 11, 12]
    pieces = [model.hidden(embeddings[:, start:end], cache=cache) for start, end in pairwise(cuts)]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-6)


def test_the_cache_says_when_it_is_full() -> None:
    model = random_model(TINY)
    with pytest.raises(ValueError, match="holds 3 positions, 4 were"):
        model.hidden(model.embed(torch.zeros(1, 4, dtype=torch.long)), cache=KVCache(TINY, 1, 3))


def test_later_positions_change_nothing() -> None:
    model = random_model(TINY)
    ids = torch.randint(6, 320, (1, 10))
    changed = ids.clone()
    changed[0, 6:] = 7
    before, after = model.hidden(model.embed(ids)), model.hidden(model.embed(changed))
    assert torch.equal(before[:, :6], after[:, :6])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_training_attention_equals_fused(groups: int) -> None:
    q = torch.randn(2, 4, 9, 8, requires_grad=True)
    k, v = (torch.randn(2, groups, 9, 8) for _ in range(2))
    assert torch.allclose(attend(q, k, v, None), attend(q.detach(), k, v, None), atol=1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = random_model(TINY).train()
    model.requires_grad_(True)
    ids = torch.randint(6, 320, (2, 8))
    gradients = []
    for kept in (False, True):
        model.gradient_checkpointing = kept
        model.zero_grad()
        model.hidden(model.embed(ids)).square().mean().backward()
        gradients.append(model.layers[0].mlp.up_proj.weight.grad.clone())
    assert torch.equal(*gradients)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_exact_sizes_of_the_14b() -> None:
    with torch.device("meta"):
        model = NextStepModel(NextStepConfig.named("14b"))
    assert count(model.image_head) == 157_228_096
    assert count(model.image_in_projector) == 332_800
    assert count(model.image_out_projector) == 26_219_520
    assert round(count(model) / 1e9, 3) == 14.954


@pytest.mark.parametrize(("head", "millions"), [("small", 40), ("base", 157), ("large", 528)])
def test_sizes_of_the_heads(head: str, millions: int) -> None:
    assert head in HEADS
    with torch.device("meta"):
        model = NextStepModel(NextStepConfig.named("14b", head))
    assert round(count(model.image_head) / 1e6) == millions


def test_tied_sizes_share_one_matrix() -> None:
    with torch.device("meta"):
        model = NextStepModel(NextStepConfig.named("0.5b"))
    assert model.lm_head.weight is model.embed_tokens.weight


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="choose from nano"):
        NextStepConfig.named("7b")
    with pytest.raises(ValueError, match="choose from small"):
        NextStepConfig.named("14b", "huge")
