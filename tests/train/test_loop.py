"""The training loop: resumed equals uninterrupted, schedules, EMA, optimizers, NaN guard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nextstep.train.ema import EMA, load_average
from nextstep.train.loop import Loop, LoopConfig
from nextstep.train.optimizer import build_optimizers, split_parameters
from nextstep.train.schedule import WarmupStableDecay
from tests.conftest import TINY, random_model


def make_batch(step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step))


def loss(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    noise = torch.randn(batch.shape)  # belongs to the step, so a resumed run draws it again
    return {"loss": (model(batch + 0.1 * noise) - batch.sum(1, keepdim=True)).square().mean()}


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 1))


def run(folder: Path, stops: tuple[int, ...] = (), muon: bool = False, **settings) -> Loop:
    """Train 12 steps, with a new process's worth of state after each of `stops`."""
    for last in (*stops, 12):
        config = LoopConfig(
            steps=12, learning_rate=1e-2, warmup=3, decay=4, log_every=1, muon=muon, **settings
        )
        loop = Loop(net(), make_batch, loss, config, folder)
        loop.resume()
        if last < 12:
            while loop.step < last:
                loop._train_step(loop._batches(loop.step))
            loop.save()
        else:
            loop.run()
    return loop


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_uninterrupted(tmp_path: Path, muon: bool, accumulate: int) -> None:
    whole = run(tmp_path / "whole", muon=muon, accumulate=accumulate)
    pieces = run(tmp_path / "pieces", stops=(5, 9), muon=muon, accumulate=accumulate)
    for one, other in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        assert torch.equal(one, other)
    for name, value in whole.ema.shadow.items():
        assert torch.equal(value, pieces.ema.shadow[name])


def test_it_learns_and_logs(tmp_path: Path) -> None:
    run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not list(tmp_path.glob("*.part"))


def test_a_nan_is_skipped_and_counted(tmp_path: Path) -> None:
    def poisoned(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        out = loss(model, batch)
        return {"loss": out["loss"] * (float("nan") if float(batch[0, 0]) > 0 else 1.0)}

    config = LoopConfig(steps=10, learning_rate=1e-2, bf16=False)
    loop = Loop(net(), make_batch, poisoned, config, tmp_path)
    loop.run()
    bad = sum(float(make_batch(step)[0, 0]) > 0 for step in range(10))
    assert loop.skipped == bad > 0
    assert all(bool(torch.isfinite(p).all()) for p in loop.model.parameters())


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


def test_an_average_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="another model"):
        load_average(net(), {"0.weight": torch.zeros(16, 6)})


def test_every_parameter_has_one_optimizer_and_norms_never_decay() -> None:
    model = random_model(TINY).requires_grad_(True)
    for muon in (False, True):
        optimizers = build_optimizers(model, 1e-3, 0.1, muon)
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
