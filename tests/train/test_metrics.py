"""What a run tells: rows, the log, event files, the line on the terminal, operations counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nextstep.config import NextStepConfig
from nextstep.train.flops import Work, head_numbers, train_flops
from nextstep.train.metrics import JsonLines, Meter, ProgressLine, StepReport, figures
from tests.conftest import TINY, random_model
from tests.train.toy import figures_of, toy_run


def report(a: float, count: float, b_count: float = 0.0, **more: Any) -> StepReport:
    return StepReport({"a": a, "b": 4.0}, {"a": count, "b": b_count}, 1.5, 0.1, **more)


def test_a_row_is_the_mean_over_everything_counted_since_the_last() -> None:
    meter = Meter({"a": 1.0, "b": 0.5}, peak=1e9)
    meter.add(report(6.0, 3.0, 2.0, tokens=10.0, flops=1e6))
    meter.add(report(2.0, 1.0, tokens=30.0, flops=1e6))
    meter.since -= 2.0
    row = meter.row(2, 12)
    assert row["a"] == 8.0 / 4.0
    assert row["b"] == 8.0 / 2.0
    assert row["loss"] == row["a"] + 0.5 * row["b"]
    assert row["tokens_per_s"] == pytest.approx(20.0, rel=0.05)
    assert row["flops_per_s"] == pytest.approx(1e6, rel=0.05)
    assert row["share_of_peak"] == pytest.approx(1e-3, rel=0.05)
    assert row["hours_left"] == pytest.approx(10 / 3600, rel=0.05)
    nan = float("nan")
    meter.add(StepReport({"a": nan, "b": nan}, {"a": 1.0, "b": 0.0}, nan, 0.1, skipped=True))
    row = meter.row(3, 12)
    assert "loss" not in row and row["skipped"] == 1
    assert "1 skipped" in figures(row)


def test_the_line_says_what_matters() -> None:
    row = {
        "step": 7, "loss": 1.23456, "text": 0.5, "grad_norm": 1.0, "learning_rate": 1e-3,
        "tokens_per_s": 12345.6, "steps_per_s": 1.0, "hours_left": 1.5, "skipped": 0,
        "flops_per_s": 2.5e12, "share_of_peak": 0.61,
    }  # fmt: skip
    told = "loss 1.235 · text 0.5 · 12,346 tokens/s · 2.5 TFLOP/s (61% of peak) · 1:30 h left"
    assert figures(row) == told
    assert figures({"step": 7, "event": "skipped", "detail": "text"}) == "skipped text"
    assert figures(row | {"hours_left": 72.0}).endswith("3.0 days left")
    assert " · 1.25 steps/s · " in figures(row | {"tokens_per_s": 0.0, "steps_per_s": 1.25})


def test_the_log_is_strict_json_and_forgets_what_comes_again(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "deep" / "log.jsonl")
    log.forget_after(3)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1 / 3 if step < 5 else float("nan")})
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')  # what a kill can leave
    lines = log.path.read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "loss": 0.3333333}
    assert json.loads(lines[4])["loss"] is None
    log.forget_after(3)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 2, 3]


def test_tensorboard_holds_the_same_curve(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    toy_run(tmp_path, 3, tensorboard=True)
    toy_run(tmp_path, steps=5, decay=2, tensorboard=True)
    board = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in board.Scalars("loss")]
    logged = [(row["step"], row["loss"]) for row in figures_of(tmp_path)]
    assert [step for step, _ in points] == [1, 2, 3, 4, 5]
    assert [v for _, v in points] == pytest.approx([v for _, v in logged], rel=1e-6)


def test_progress_is_printed_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_run(tmp_path, steps=2, decay=0, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("step 1: loss ")
    assert "tokens/s" in lines[1] and lines[1].endswith("0 min left")


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    line = ProgressLine(10, 4, "run")
    row = {"step": 5, "tokens_per_s": 1.0, "hours_left": 0.0, "skipped": 0, "loss": 2.0}
    line.write(row)
    task = line.bar.tasks[0]
    assert (task.completed, task.total) == (5, 10)
    assert task.fields["figures"] == "loss 2 · 1 tokens/s · 0 min left"
    line.close()


def test_wandb_gets_figures_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in module: the real one needs an account."""
    logged: list[Any] = []

    class Run:
        def log(self, row: dict[str, Any], step: int) -> None:
            logged.append((step, row["loss"]))

        def finish(self) -> None:
            logged.append("finished")

    class Module:
        @staticmethod
        def init(**settings: Any) -> Run:
            logged.append((settings["project"], settings["id"], settings["config"]["steps"]))
            return Run()

    monkeypatch.setitem(__import__("sys").modules, "wandb", Module)
    toy_run(tmp_path / "first", steps=2, decay=0, wandb="world")
    rows = [(row["step"], pytest.approx(row["loss"])) for row in figures_of(tmp_path / "first")]
    assert logged == [("world", "first", 2), *rows, "finished"]


def counted(config: NextStepConfig, B: int, S: int, images: int, levels: int) -> float:
    """Operations that torch counts in a training step of B rows with `images` tokens each.

    Its counter takes attention as S*S, because the matrix products are that large.
    """
    model = random_model(config).requires_grad_(True)
    ids = torch.full((B, S), 7)
    ids[:, 3 : 3 + images] = config.image_placeholder_id
    tokens = torch.randn(B * images, config.token_size)
    with FlopCounterMode(display=False) as counter:
        hidden = model.hidden(model.embed(ids, tokens))
        condition = model.image_condition(hidden[:, 2 : 2 + images].flatten(0, 1))
        many = levels * B * images
        loss = model.image_loss(condition, tokens, torch.randn(many), torch.randn(many, 64))
        (loss + model.text_logits(hidden[:, :5]).sum()).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("levels", [1, 3])
def test_the_formula_counts_what_torch_counts(levels: int) -> None:
    config = replace(TINY, hidden_size=64, intermediate_size=96, head_dim=16, fm_head_dim=48)
    B, S, images = 2, 20, 9
    work = Work(B * S, B * S * S, B * 5, B * images, B * images, levels)
    ours = train_flops(config, work)
    theirs = counted(config, B, S, images, levels)
    # Gradients to the first inputs (tokens, times, noisy tokens) are not computed.
    unused = 2 * B * images * (64 * 64 + levels * (256 * 48 + 64 * 48))
    assert ours - unused == theirs


def test_the_released_model_costs_what_is_known_of_it() -> None:
    """14.8 B of backbone and embeddings, 157 M of head: 6 operations a parameter and token."""
    config = NextStepConfig()
    per_token = train_flops(config, Work(1, 0, text_targets=1))
    assert per_token == pytest.approx(6 * (14.77e9 - 152064 * 5120), rel=1e-3)
    assert sum(head_numbers(config)) == pytest.approx(157.2e6, rel=1e-3)
