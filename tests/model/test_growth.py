"""A grown model says what the smaller one says, and its new parts learn."""

from dataclasses import replace

import pytest
import torch

from nextstep.config import NextStepConfig
from nextstep.errors import ModelFileError
from nextstep.model.growth import carried_vocabulary, grown
from nextstep.model.nextstep import NextStepModel
from nextstep.text.tokenizer import TextTokenizer

SMALL = NextStepConfig.named("nano").with_values(
    vocab_size=300, hidden_size=128, intermediate_size=160, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, image_position_side=4, fm_head_dim=64,
    fm_head_layers=2, rms_norm_eps=1e-12,
)  # fmt: skip
LARGE = SMALL.with_values(
    hidden_size=192, intermediate_size=256, num_hidden_layers=4, num_attention_heads=3,
    num_key_value_heads=3, fm_head_layers=3,
)  # fmt: skip


def fresh(config: NextStepConfig, seed: int) -> NextStepModel:
    torch.manual_seed(seed)
    model = NextStepModel(config)
    model.reset_parameters()
    return model


def grow(small: NextStepModel, config: NextStepConfig) -> NextStepModel:
    large = fresh(config, seed=9)
    tensors = grown(small.named_parameters(), large.named_parameters(), small.config, config)
    for name, tensor in list(tensors):
        large.get_parameter(name).data.copy_(tensor)
    return large


def outputs(model: NextStepModel) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(6, 300, (2, 12), generator=generator)
    ids[:, 4:8] = model.config.image_placeholder_id
    tokens = torch.randn(8, 64, generator=generator)
    places = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(2, 1)
    hidden = model.hidden(model.embed(ids, tokens, places))
    condition = model.image_condition(hidden.flatten(0, 1))
    x = torch.randn(len(condition), 64, generator=generator)
    t = torch.rand(len(condition), generator=generator)
    return model.text_logits(hidden), model.image_head(x, t, condition)


@pytest.fixture
def small() -> NextStepModel:
    model = fresh(SMALL, seed=1)
    for name, parameter in model.named_parameters():
        if "adaLN" in name or "final_layer" in name or "norm" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "config",
    [LARGE, SMALL, SMALL.with_values(hidden_size=256), SMALL.with_values(num_hidden_layers=5)],
    ids=["all", "nothing", "width", "depth"],
)
def test_a_grown_model_is_equal_to_what_it_grew_from(small, config) -> None:
    for before, after in zip(outputs(small), outputs(grow(small, config)), strict=True):
        torch.testing.assert_close(after, before, atol=2e-5, rtol=2e-5)


def test_every_new_part_gets_a_gradient_within_two_steps(small) -> None:
    large = grow(small, LARGE)
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum(out.square().mean() for out in outputs(large)).backward()
        optimizer.step()
    still = [name for name, p in large.named_parameters() if not p.grad.abs().sum() > 0]
    assert not still
    assert large.layers[0].self_attn.o_proj.weight[128:].abs().sum() > 0
    assert large.layers[3].mlp.up_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fm_head_dim": 96}, "fm_head_dim"),
        ({"hidden_size": 64}, "shrink from hidden_size"),
        ({"num_attention_heads": 4}, "query heads per key head"),
    ],
)
def test_what_cannot_grow_is_named(small, changes, named) -> None:
    with pytest.raises(ModelFileError, match=named):
        grow(small, replace(SMALL, **changes))


def test_a_vocabulary_is_carried_over() -> None:
    old = TextTokenizer.train(["a red apple"] * 3, vocab_size=290)
    new = TextTokenizer.train(["two bananas left of a red apple"] * 9, vocab_size=310)
    table = torch.randn(len(old), 8)
    carried = carried_vocabulary(table, old, new)
    assert carried.shape == (len(new), 8)
    for token in (" red", "<|endoftext|>"):
        (at,) = new.encode(token) if token == " red" else [new.ids.eos]
        was = old.encode(token) if token == " red" else [old.ids.eos]
        torch.testing.assert_close(carried[at], table[was].mean(0))
    (left,) = new.encode(" left")
    torch.testing.assert_close(carried[left], table[old.encode(" left")].mean(0))
