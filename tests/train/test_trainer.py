"""The one loop in one process: its step against a plain one, resuming, guards, settings."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.errors import ModelFileError, NextStepError
from nextstep.train.contracts import Step
from nextstep.train.step import Stepper
from nextstep.train.trainer import TrainConfig, Trainer, TrainingError
from tests.conftest import TINY, random_model
from tests.train.toy import (
    CONFIG,
    ToyModel,
    ToySource,
    ToyStage,
    events_of,
    figures_of,
    keys_by_step,
    run_until,
    toy_model,
    toy_run,
)


def trainer_of(
    folder: Path,
    model: nn.Module | None = None,
    source: ToySource | None = None,
    hooks: dict[str, Callable[[Trainer], None]] | None = None,
    **settings: Any,
) -> Trainer:
    return Trainer(
        model or toy_model(), ToyStage(), source or ToySource(), replace(CONFIG, **settings),
        folder, **(hooks or {}),
    )  # fmt: skip


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], within: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=0, atol=within), name


def test_a_step_is_the_plain_step_on_the_mean_over_all_tokens(tmp_path: Path) -> None:
    """Micro-batches of unequal rows against one plain loss over all rows, in fp64."""
    plain = toy_model(torch.float64)
    decayed = [p for p in plain.parameters() if p.ndim > 1]
    others = [p for p in plain.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    source, stage = ToySource(rows=5, micro=5), ToyStage()
    norms = []
    for number in range(6):
        rows = source.next_step().batches[0]
        losses, counts = stage.losses(plain, rows), stage.counts(rows)
        loss = losses["main"] / counts["main"]
        if counts["extra"]:
            loss = loss + 0.5 * losses["extra"] / counts["extra"]
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(plain.parameters(), 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (number + 1) / 2)
        optimizer.step()
        optimizer.zero_grad()
    ours = trainer_of(tmp_path, toy_model(torch.float64), decay=0)
    reports = [ours.train_step(ours.stream.take()) for _ in range(6)]
    assert_same(weights(plain), weights(ours.model), within=1e-14)
    assert norms == pytest.approx([report.grad_norm for report in reports], rel=1e-12)


@pytest.mark.parametrize(("clip", "times"), [(0.0, 0), (1e-3, 1), (1e6, 0)])
def test_only_a_gradient_above_the_clip_is_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float, times: int
) -> None:
    scaled = []
    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", lambda *given: scaled.append(given))
    trainer = trainer_of(tmp_path, clip=clip)
    assert 1e-3 < trainer.train_step(trainer.stream.take()).grad_norm < 1e6
    assert len(scaled) == times


@pytest.mark.parametrize("micro", [1, 3])
def test_many_small_micro_batches_are_one_big_one(tmp_path: Path, micro: int) -> None:
    for name, size in (("big", 5), ("small", micro)):
        toy_run(tmp_path / name, dtype=torch.float64, source={"micro": size}, decay=0)
    big, small = (torch.load(tmp_path / name / "result.pt") for name in ("big", "small"))
    assert_same(big["weights"], small["weights"], within=1e-13)
    assert_same(big["average"], small["average"], within=1e-13)
    losses = [[row["loss"] for row in figures_of(tmp_path / name)] for name in ("big", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "muon", "prefetch": False},
        {"optimizer": "sgd", "save_in_background": False},
    ],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, settings: dict[str, Any]) -> None:
    """With dropout, so that the random state must come again too."""
    for name, stops in (("whole", (12,)), ("pieces", (3, 7, 12))):
        for stop in stops:
            toy_run(tmp_path / name, stop, model={"dropout": 0.3}, **settings)
    whole, pieces = (torch.load(tmp_path / name / "result.pt") for name in ("whole", "pieces"))
    assert_same(whole["weights"], pieces["weights"])
    assert_same(whole["average"], pieces["average"])
    assert keys_by_step(tmp_path / "whole") == keys_by_step(tmp_path / "pieces")
    timeless = ("step", "loss", "main", "extra", "grad_norm", "learning_rate", "skipped")
    logs = [
        [{n: row.get(n) for n in timeless} for row in figures_of(tmp_path / name)]
        for name in ("whole", "pieces")
    ]
    assert logs[0] == logs[1]
    assert [row["event"] for row in events_of(tmp_path / "pieces")] == ["stopped", "resumed"] * 2


def test_a_checkpoint_keeps_the_state_of_the_steps_taken_not_of_those_made_ahead(
    tmp_path: Path,
) -> None:
    source = ToySource()
    trainer = trainer_of(tmp_path, source=source)
    trainer.train_step(trainer.stream.take())
    trainer.save()
    trainer.writer.close()
    assert trainer.stream.pending is not None and trainer.stream.pending.result()
    assert source.next_row == 10
    other = trainer_of(tmp_path)
    assert other.resume()
    assert other.stream.batches.state_dict() == {"next_row": 5}


def test_dropout_is_drawn_anew_each_step(tmp_path: Path) -> None:
    frozen = trainer_of(tmp_path, toy_model(dropout=0.5), learning_rate=0.0, weight_decay=0.0)
    step = frozen.stream.take()
    first, again = (frozen.stepper.take(step, 4).sums for _ in range(2))
    assert first == again
    assert frozen.stepper.take(step, 5).sums != first


def test_a_step_without_numbers_is_skipped_named_and_counted(tmp_path: Path) -> None:
    source = ToySource()
    source.poisoned = {7, 16}
    trainer = trainer_of(tmp_path, source=source, steps=5, decay=0)
    before: list[dict[str, Tensor]] = []
    take = trainer.train_step

    def watched(step: Step) -> Any:
        before.append(weights(trainer.model))
        return take(step)

    trainer.train_step = watched  # type: ignore[method-assign]
    trainer.run()
    before.append(weights(trainer.model))
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(before)]
    assert same == [False, True, False, True, False]
    assert trainer.skipped == 2
    events = events_of(tmp_path)
    assert [row["step"] for row in events] == [2, 4]
    assert events[0]["samples"] == [f"toy/{n}" for n in range(5, 10)]
    assert "main of the loss was no number" in events[0]["detail"]
    assert [row["skipped"] for row in figures_of(tmp_path)] == [0, 1, 1, 2, 2]
    other = trainer_of(tmp_path, steps=5, decay=0)
    other.resume()
    assert other.skipped == 2


def test_too_many_bad_steps_end_the_run(tmp_path: Path) -> None:
    source = ToySource()
    source.poisoned = {3, *range(10, 40)}
    trainer = trainer_of(tmp_path, source=source, max_bad_steps=3)
    with pytest.raises(TrainingError, match="in 3 steps in a row, up to step 5; lower the learn"):
        trainer.run()
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["event"] == "skipped"


def test_an_infinite_gradient_is_caught_where_the_loss_is_fine(tmp_path: Path) -> None:
    class Steep(ToyStage):
        def losses(self, model: ToyModel, batch: list[dict]) -> dict[str, Tensor]:
            out = super().losses(model, batch)
            return out | {"main": out["main"] + (model.out.bias * 0.0).abs().sqrt().sum()}

    trainer = Trainer(toy_model(), Steep(), ToySource(), CONFIG, tmp_path)
    report = trainer.train_step(trainer.stream.take())
    assert report.skipped and all(map(math.isfinite, report.sums.values()))
    assert report.suspects == tuple(f"toy/{n}" for n in range(5))


def test_frozen_parts_stay_and_are_left_out_of_average_and_checkpoint(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"freeze": ("layers.0.*", "out.bias"), "save_frozen": False}
    trainer = trainer_of(tmp_path, **settings)
    before = weights(trainer.model)
    run_until(trainer, 6)
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    fixed = {n for n in before if n.startswith("layers.0.")} | {"out.bias"}
    assert moved == before.keys() - fixed
    assert trainer.stepper.ema is not None
    assert trainer.stepper.ema.shadow.keys() == moved
    assert trainer.weights().keys() == before.keys() | {"offset"}
    other = trainer_of(tmp_path, **settings)
    other.resume()
    other.run()
    whole = trainer_of(tmp_path / "whole", **settings)
    whole.run()
    assert_same(weights(whole.model), weights(other.model))


def test_rates_are_scaled_by_name(tmp_path: Path) -> None:
    """Adam's first step moves every weight by its rate, whatever the gradient's size."""
    scales = {"out.*": 0.25, "layers.1.*": 3.0, "layers.*": 0.5}
    trainer = trainer_of(
        tmp_path, toy_model(torch.float64), rate_scales=scales, warmup=0, weight_decay=0.0
    )
    before = weights(trainer.model)
    trainer.train_step(trainer.stream.take())
    for name, value in trainer.model.named_parameters():
        wanted = 0.25 if name.startswith("out") else 3.0 if name.startswith("layers.1") else 0.5
        wanted = 1.0 if name.startswith("extra") else wanted
        moved = (value.detach() - before[name]).abs()
        assert float(moved.median()) == pytest.approx(1e-2 * wanted, rel=1e-4), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ("layer.0",)}, "'layer.0' in freeze fits no parameter"),
        ({"rate_scales": {"head.*": 1.0}}, "'head.*' in rate_scales fits no"),
        ({"freeze": ("*",)}, "nothing to train"),
        ({"gradient_checkpointing": True}, "no gradient checkpointing"),
        ({"optimizer": "lion"}, "choose from adamw, muon, sgd"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"clip": -1.0}, "clip must not be negative"),
        ({"ema": 1.0}, "ema must be"),
        ({"decay": 20}, "do not fit into 12 steps"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NextStepError, match=message.replace("*", r"\*")):
        trainer_of(tmp_path, **settings)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    run_until(trainer_of(tmp_path), 2)
    deeper = trainer_of(tmp_path, toy_model(layers=3))
    with pytest.raises(
        ModelFileError, match=r"another model: it lacks 4 .*model/layers\.2\.linear"
    ):
        deeper.resume()
    wider = toy_model()
    wider.out = nn.Linear(7, 4)
    wider.offset = torch.zeros(4)
    with pytest.raises(ModelFileError, match=r"model/out\.weight is \[3, 7\], not \[4, 7\]"):
        trainer_of(tmp_path, wider).resume()
    with pytest.raises(ModelFileError, match="it has 4 tensor"):
        trainer_of(tmp_path, toy_model(layers=1)).resume()
    with pytest.raises(NextStepError, match="made with the optimizer adamw, not muon"):
        trainer_of(tmp_path, optimizer="muon").resume()


def test_changed_settings_are_reported_and_an_average_can_begin_late(tmp_path: Path) -> None:
    run_until(trainer_of(tmp_path, ema=0.0), 2)
    other = trainer_of(tmp_path, learning_rate=2e-2)
    other.resume()
    assert_same(dict(other.stepper.ema.shadow), weights(other.model))  # type: ignore[union-attr]
    other.run()
    told = events_of(tmp_path)[-1]
    assert (told["event"], told["step"]) == ("resumed", 2)
    assert told["detail"] == "learning_rate 0.01 -> 0.02; ema 0.0 -> 0.9"


def test_a_run_is_never_mixed_with_another(tmp_path: Path) -> None:
    run_until(trainer_of(tmp_path), 4)
    with pytest.raises(NextStepError, match="already holds a run that stands at step 4; resume it"):
        trainer_of(tmp_path).run()
    other = trainer_of(tmp_path)
    other.resume()
    other.run()
    back = trainer_of(tmp_path)
    back.resume(tmp_path / "checkpoints" / "step-00000004")
    assert back.step == 4
    with pytest.raises(NextStepError, match=r"stands at step 12; .* remove its later checkpoints"):
        back.run()


def test_hooks_and_the_averaged_model(tmp_path: Path) -> None:
    called: list[tuple[str, int]] = []

    def sample(trainer: Trainer) -> None:
        called.append(("sample", trainer.step))
        own = weights(trainer.model)
        with trainer.averaged() as model:
            assert not model.training
            average = trainer.weights()
            assert all(torch.equal(p, average[n]) for n, p in model.named_parameters())
        assert_same(own, weights(trainer.model))

    hooks = {"on_save": lambda t: called.append(("save", t.step)), "on_sample": sample}
    trainer = trainer_of(tmp_path, hooks=hooks, save_every=5, sample_every=5, keep=9)
    assert trainer.run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000005", "step-00000010", "step-00000012"]
    assert called == [
        ("save", 5), ("sample", 5), ("save", 10), ("sample", 10), ("save", 12), ("sample", 12),
    ]  # fmt: skip


class TextStage:
    """Next ids of TINY, as a sum over ids."""

    loss_weights: ClassVar = {"text": 1.0}

    def prepare(self, batch: Tensor, device: Any) -> Tensor:
        return batch.to(device)

    def counts(self, batch: Tensor) -> dict[str, float]:
        return {"text": float(batch[:, 1:].numel())}

    def flops(self, batch: Tensor) -> float:
        return 1e6 * batch.numel()

    def losses(self, model: Any, batch: Tensor) -> dict[str, Tensor]:
        logits = model.text_logits(model.hidden(model.embed(batch))[:, :-1]).float()
        return {
            "text": F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        }


class TextSource(ToySource):
    """Counting sequences."""

    def next_step(self) -> Step:
        self.next_row += 1
        starts = torch.arange(8)[:, None] + 10 + self.next_row
        return Step([starts + torch.arange(12)] * 2, [], 192, self.state_dict())


def test_the_real_model_learns_and_checkpointing_changes_nothing(tmp_path: Path) -> None:
    ended = []
    for on in (False, True):
        model = random_model(TINY).requires_grad_(True)
        config = TrainConfig(
            steps=12, learning_rate=1e-2, warmup=2, log_every=4, gradient_checkpointing=on,
            save_minutes=0, ema=0.0,
        )  # fmt: skip
        folder = tmp_path / str(on)
        Trainer(model, TextStage(), TextSource(), config, folder).run()
        assert model.gradient_checkpointing is on
        ended.append(weights(model))
        rows = figures_of(folder)
        assert [row["step"] for row in rows] == [1, 2, 4, 5, 8, 10, 12]
        assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
        assert rows[-1]["flops_per_s"] > 0 and rows[-1]["share_of_peak"] > 0
    assert_same(*ended)


def test_bf16_computes_in_half_and_keeps_fp32_weights(tmp_path: Path) -> None:
    seen = []

    class Looking(TextStage):
        def losses(self, model: Any, batch: Tensor) -> dict[str, Tensor]:
            seen.append(model.text_logits(model.hidden(model.embed(batch))).dtype)
            return super().losses(model, batch)

    model = random_model(TINY).requires_grad_(True)
    config = TrainConfig(steps=1, learning_rate=1e-2, precision="bf16", measure_peak=False)
    Trainer(model, Looking(), TextSource(), config, tmp_path).run()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_stage_that_gives_no_loss_is_named(tmp_path: Path) -> None:
    class Silent(ToyStage):
        def losses(self, model: ToyModel, batch: list[dict]) -> dict[str, Tensor]:
            return {}

    trainer = Trainer(toy_model(), Silent(), ToySource(), CONFIG, tmp_path)
    assert isinstance(trainer.stepper, Stepper)
    with pytest.raises(NextStepError, match="none of its losses main, extra"):
        trainer.run()
