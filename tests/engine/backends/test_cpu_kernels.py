"""Whole passes through the kernels against the same model in torch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nextstep.engine.backends.base import CacheRow, Place, Prompt, SampleRequest
from nextstep.engine.backends.cpu_kernels import Core, core_of
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.sequence import ImageSequence
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SOLVERS, SolverSettings, Velocity, solve
from nextstep.kernels import build
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import pack_for_sampling, pack_model
from tests.conftest import PACKABLE, TINY, random_model

pytestmark = pytest.mark.skipif(not build.is_available(), reason=build.why_not())


@pytest.fixture(scope="module")
def plain() -> NextStepModel:
    return random_model(PACKABLE)


@pytest.fixture(scope="module")
def packed(plain: NextStepModel) -> NextStepModel:
    model = copy.deepcopy(plain)
    pack_for_sampling(model)
    return model


def core(model: NextStepModel) -> Core:
    found = core_of(model)
    assert found is not None
    return found


@torch.inference_mode()
def test_states_are_those_of_the_backbone(plain: NextStepModel, packed: NextStepModel) -> None:
    x = torch.randn(3, 20, PACKABLE.hidden_size)
    right = plain.hidden(x)
    cache = KVCache(PACKABLE, 3, 20)
    made = [
        core(packed).feed(x[:, place], [Place(CacheRow(cache, row), place) for row in range(3)])
        for place in range(20)
    ]
    assert float((torch.stack(made, 1) - right).abs().max()) < 2e-5


@torch.inference_mode()
def test_known_positions_may_come_together(packed: NextStepModel) -> None:
    x = torch.randn(9, PACKABLE.hidden_size)
    first, second = CacheRow(KVCache(PACKABLE, 1, 9)), CacheRow(KVCache(PACKABLE, 2, 12), 1)
    one_by_one = [core(packed).feed(x[i : i + 1], [Place(first, i)]) for i in range(9)]
    places = [Place(second, i) for i in range(9)]
    assert torch.equal(core(packed).feed(x, places), torch.cat(one_by_one))


@torch.inference_mode()
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "flow_map"])
def test_tokens_are_those_of_the_solvers(
    plain: NextStepModel, packed: NextStepModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that calls come in parts.
    monkeypatch.setattr(Core, "rows_at_once", property(lambda _: 5))
    asked, right = [], []
    for number, (solver, b) in enumerate(
        [(SolverSettings(name, 4), 2), (SolverSettings("ode"), 1)]
    ):
        generator = torch.Generator().manual_seed(number)
        hidden = torch.randn(b, PACKABLE.hidden_size, generator=generator)
        draws = torch.randn(solver.draws, PACKABLE.token_size, generator=generator)
        shares = [1.5, -0.5][:b]
        asked.append(request(hidden, draws, solver, shares))
        right.append(solve(answers(plain, hidden, shares), iter(draws).__next__, solver))
    made = core(packed).sample(asked)
    assert float((made - torch.stack(right)).abs().max()) < 1e-4
    assert torch.equal(core(packed).sample(asked[1:])[0], made[1])


def request(
    hidden: Tensor, draws: Tensor, solver: SolverSettings, shares: list[float]
) -> SampleRequest:
    weights = {f"branch {place}": share for place, share in enumerate(shares)}
    return SampleRequest(hidden, draws, solver, tuple(weights), weights, False)


def answers(model: NextStepModel, hidden: Tensor, shares: list[float]) -> Velocity:
    """Guided velocities of one picture, plainly."""

    def velocity(x: Tensor, t: float) -> Tensor:
        times, rows = torch.full((len(hidden),), t), x.expand(len(hidden), -1)
        made = model.image_head(rows, times, model.image_condition(hidden))
        return torch.tensor(shares) @ made

    return velocity


@torch.inference_mode()
@pytest.mark.parametrize("format_", ["fp32", "bf16", "int8"])
def test_few_and_many_pictures_share_the_work_alike(format_: str) -> None:
    """A head whose width is half a block more; few rows are shared out by outputs, many by rows."""
    plain = random_model(replace(PACKABLE, fm_head_dim=48))
    model = copy.deepcopy(plain).to(torch.float32 if format_ == "fp32" else torch.bfloat16)
    pack_model(model, format_)
    solver, shares = SolverSettings("ode", 3), [1.5, -0.5]
    hidden = torch.randn(80, 2, PACKABLE.hidden_size)
    draws = torch.randn(80, solver.draws, PACKABLE.token_size)
    wants = [request(h, d, solver, shares) for h, d in zip(hidden, draws, strict=True)]
    many = core(model).sample(wants)
    few = [core(model).sample(wants[place : place + 1])[0] for place in (0, 41, 79)]
    assert torch.equal(many[[0, 41, 79]], torch.stack(few))
    right = solve(answers(plain, hidden[41], shares), iter(draws[41]).__next__, solver)
    near = {"fp32": 1e-4, "bf16": 0.02, "int8": 0.02}[format_]
    assert float((many[41] - right).norm() / right.norm()) < near


def made(model: NextStepModel, asked: ImageSequence) -> Tensor:
    scheduler = Scheduler(model)
    scheduler.submit(asked)
    return scheduler.run_until_idle()[-1].tokens


@pytest.mark.parametrize("image", [1.0, 1.5])
def test_pictures_are_those_of_torch(
    plain: NextStepModel, packed: NextStepModel, image: float
) -> None:
    edit = image > 1
    how = DecodeSettings((2, 3), SolverSettings("ab2", 3), GuidanceSettings(2.0, image), True, edit)
    place = [PACKABLE.image_placeholder_id] * 2 if edit else []
    source = [torch.randn(2, PACKABLE.token_size)] if edit else []
    prompts = {
        name: Prompt([*range(7, 12), *place, PACKABLE.begin_of_image_id], source)
        for name in how.branches
    }
    asked = ImageSequence(prompts, how, (1, 0))
    assert float((made(plain, asked) - made(packed, asked)).abs().max()) < 1e-3


def test_steps_fall_through_the_kernels_too(plain: NextStepModel, packed: NextStepModel) -> None:
    falling = SolverSettings("v1", 5, final_token_steps=2)
    how = DecodeSettings((2, 3), falling, GuidanceSettings(2.0))
    prompts = {name: Prompt([7, 8, PACKABLE.begin_of_image_id]) for name in how.branches}
    asked = ImageSequence(prompts, how, (1, 0))
    tokens = made(packed, asked)
    assert float((made(plain, asked) - tokens).abs().max()) < 1e-3
    even = made(
        packed, replace(asked, decode=replace(how, solver=replace(falling, final_token_steps=0)))
    )
    assert torch.equal(tokens[0], even[0])
    assert not torch.equal(tokens[2], even[2])


@torch.inference_mode()
def test_int8_states_stay_near(plain: NextStepModel) -> None:
    model = copy.deepcopy(plain).to(torch.bfloat16)
    pack_model(model, "int8")
    x = torch.randn(4, PACKABLE.hidden_size)
    cache = KVCache(PACKABLE, 4, 3, torch.bfloat16)
    made = core(model).feed(x, [Place(CacheRow(cache, row), 0) for row in range(4)])
    right = plain.hidden(x[:, None])[:, 0]
    assert float((made - right).norm() / right.norm()) < 0.02


def test_other_models_run_through_torch() -> None:
    model = random_model(TINY)
    pack_for_sampling(model)  # its widths are unknown to the kernels
    assert core_of(model) is None
