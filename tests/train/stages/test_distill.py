"""The distill stage: jumps along the teacher's guided path, one branch, through every backend."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import SampleRequest
from nextstep.engine.backends.cpu_kernels import CpuKernels
from nextstep.engine.settings import GenerationSettings
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL
from nextstep.flow.solvers import SolverSettings, request_rows
from nextstep.kernels import build
from nextstep.model.flow_head import FlowHead
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import pack_model
from nextstep.train.config import TrainConfig
from nextstep.train.contracts import Step
from nextstep.train.objectives.flow_map import jump
from nextstep.train.parallel import Peers
from nextstep.train.stages.distill import (
    STRETCHES,
    DistillSettings,
    DistillStage,
    TokenBatch,
    frozen_names,
    guided,
    mean_velocity,
    point,
    teacher_path,
)
from nextstep.train.step import Stepper
from tests.conftest import PACKABLE, random_model

JUMPING = PACKABLE.with_values(flow_map=True)
TOKENS = 48


def student() -> NextStepModel:
    """A model whose head jumps as it did not before: its new parts are zero."""
    plain, model = random_model(PACKABLE), NextStepModel(JUMPING)
    model.image_head.reset_parameters()
    model.load_state_dict(plain.state_dict(), strict=False)
    return model


def tokens(model: NextStepModel, teacher: FlowHead, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, 2, JUMPING.hidden_size, generator=generator)
    noise = torch.randn(TOKENS, 64, generator=generator)
    guidance = torch.tensor([1.0, 2.5]).repeat(TOKENS // 2)
    weights = torch.stack((guidance, 1 - guidance), dim=1)
    with torch.no_grad():
        path = teacher_path(teacher, model.image_condition(hidden), weights, noise, 16)
    draws = torch.rand(TOKENS, 3, generator=generator)
    return TokenBatch(hidden, weights, path, guidance, draws)


def test_a_fresh_jumping_head_is_the_head_that_it_was() -> None:
    model, plain = student(), random_model(PACKABLE)
    x, condition = torch.randn(5, 64), torch.randn(5, JUMPING.hidden_size)
    t, s = torch.rand(5), torch.ones(5)
    u = mean_velocity(model.image_head, condition, torch.full((5,), 2.5))
    assert torch.allclose(u(x, t, s), plain.image_head(x, t, condition), atol=1e-6)


def test_a_path_follows_the_guided_velocity() -> None:
    model = student()
    teacher = copy.deepcopy(model.image_head)
    batch = tokens(model, teacher)
    condition = model.image_condition(batch.hidden)
    fine = teacher_path(teacher, condition, batch.weights, batch.path[:, 0], 64)
    assert batch.path.shape == (TOKENS, STRETCHES + 1, 64)
    assert torch.allclose(batch.path, fine, atol=0.05)
    t = torch.full((TOKENS,), 0.3)
    h = 1e-3
    slope = (point(fine, t + h) - point(fine, t)) / h
    expected = guided(teacher, condition, batch.weights, point(fine, t), t)
    assert float((slope - expected).norm() / expected.norm()) < 0.2
    with torch.no_grad():
        both = [teacher(point(fine, t), t, condition[:, side]) for side in (0, 1)]
    mixed = both[1] + batch.guidance[:, None] * (both[0] - both[1])
    assert torch.allclose(expected, mixed, atol=1e-5)


@pytest.mark.parametrize("method", ["regression", "shortcut", "meanflow"])
def test_jumps_come_nearer_to_the_path(method) -> None:
    model = student().train().requires_grad_(True)
    teacher = copy.deepcopy(model.image_head)
    batch = tokens(model, teacher)
    stage = DistillStage(DistillSettings(method, (1, 2), spans=0.75), teacher)
    config = TrainConfig(
        40, 3e-3, schedule="constant", precision="fp32", ema=0.0, weight_decay=0.0,
        freeze=frozen_names(model),
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("image_head."))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def distance() -> float:
        with torch.no_grad():
            u = mean_velocity(
                model.image_head, model.image_condition(batch.hidden)[:, 0], batch.guidance
            )
            zero, one = torch.zeros(TOKENS), torch.ones(TOKENS)
            made = jump(u, batch.path[:, 0], zero, one)
            return float((made - batch.path[:, -1]).square().mean())

    first = distance()
    stepper = Stepper(model, stage, config, Peers(None))
    for number in range(40):
        draws = torch.rand(TOKENS, 3, generator=torch.Generator().manual_seed(number))
        one = replace(batch, draws=draws)
        stepper.take(Step([one]), number)
    assert distance() < 0.7 * first
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(name.startswith("image_head.") for name in moved)


def by_hand(model: NextStepModel, hidden: Tensor, noise: Tensor, steps: int, w: float) -> Tensor:
    u = mean_velocity(model.image_head, model.image_condition(hidden), torch.full((len(noise),), w))
    x = noise
    for n in range(steps):
        t, s = (torch.full((len(noise),), (n + k) / steps) for k in (0, 1))
        x = jump(u, x, t, s)
    return x


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_backend_jumps_alike(steps: int) -> None:
    model = student().eval()
    with torch.no_grad():
        for part in (model.image_head.net.span_embed, model.image_head.net.guidance_embed):
            assert part is not None
            part.mlp[2].weight.normal_(std=0.2)
    model.requires_grad_(False)
    settings = GenerationSettings(guidance=3.0, solver="flow_map", steps=steps, token_norm=False)
    decode = settings.decoding((2, 2), False)
    assert decode.branches == [CONDITIONAL]
    assert decode.solver.guidance == 3.0
    hidden, noise = torch.randn(4, JUMPING.hidden_size), torch.randn(4, 64)
    expected = by_hand(model, hidden, noise, steps, 3.0)
    requests = [
        SampleRequest(hidden[n : n + 1], noise[n : n + 1], decode.solver, (CONDITIONAL,),
                      {CONDITIONAL: 1.0}, False)
        for n in range(4)
    ]  # fmt: skip
    plain = torch.stack(backend_of(model).sample(requests))
    assert torch.allclose(plain, expected, atol=1e-5)
    if build.is_available():
        pack_model(model, "fp32")
        backend = backend_of(model)
        assert isinstance(backend, CpuKernels)
        assert torch.allclose(torch.stack(backend.sample(requests)), expected, atol=1e-4)


def test_only_heads_that_learned_it_jump() -> None:
    with pytest.raises(NextStepError, match="does not jump"):
        random_model(PACKABLE).image_head.embed_question(
            request_rows(SolverSettings("flow_map", 1))
        )
    rows = request_rows(SolverSettings("flow_map", 2, guidance=2.0))
    assert rows.tolist() == [[0.0, 0.5, 2.0], [0.5, 0.5, 2.0]]
    assert request_rows(SolverSettings("ode", 2)).tolist() == [[0.0, 0.0, 1.0], [0.5, 0.0, 1.0]]
