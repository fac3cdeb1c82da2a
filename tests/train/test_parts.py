"""The parts of a step: schedules, the average of the weights, which optimizer has which weight."""

from __future__ import annotations

import torch
from torch import nn

from nextstep.train.config import OPTIMIZERS
from nextstep.train.ema import EMA
from nextstep.train.optimizer import build_optimizers, split_parameters
from nextstep.train.schedule import WarmupStableDecay
from tests.conftest import TINY, random_model


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 1))


def test_schedule() -> None:
    factor = WarmupStableDecay(steps=10, warmup=4, decay=5)
    assert [factor(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [factor(s) for s in range(5, 10)] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert WarmupStableDecay(3)(2) == 1.0


def test_ema_follows_and_is_put_back() -> None:
    model = net()
    ema = EMA(model, decay=0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight += 1
    ema.update(model)  # first decay is min(0.5, 1/10)
    assert torch.allclose(ema.shadow["0.weight"], start + 0.9)
    with ema.applied(model):
        assert torch.allclose(model[0].weight, start + 0.9)
    assert torch.allclose(model[0].weight, start + 1)


def test_sgd_steps_along_the_gradient_with_momentum() -> None:
    model = nn.Linear(3, 2, bias=False)
    start, gradient = model.weight.detach().clone(), torch.randn(2, 3)
    (optimizer,) = build_optimizers(model, 0.1, 0.0, "sgd", betas=(0.5, 0.9))
    for _ in range(2):
        model.weight.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(model.weight, start - 0.1 * (1 + 1.5) * gradient)


def test_every_parameter_has_one_optimizer_and_norms_never_decay() -> None:
    model = random_model(TINY).requires_grad_(True)
    for name in OPTIMIZERS:
        optimizers = build_optimizers(model, 1e-3, 0.1, name)
        groups = [group for o in optimizers for group in o.param_groups]
        seen = [id(p) for group in groups for p in group["params"]]
        assert len(seen) == len(set(seen))
        assert set(seen) == {id(p) for p in model.parameters()}
        for group in groups:
            for parameter in group["params"]:
                assert (group["weight_decay"] == 0) == (parameter.ndim < 2)
    hidden, other, _ = split_parameters(model)
    names = {id(p): n for n, p in model.named_parameters()}
    assert "layers.0.mlp.up_proj.weight" in {names[id(p)] for p in hidden}
    kept = {names[id(p)] for p in other}
    assert {"embed_tokens.weight", "lm_head.weight", "image_in_projector.weight"} <= kept
