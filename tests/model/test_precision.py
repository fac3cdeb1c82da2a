"""What a processor computes fast is tried, and "auto" follows it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from nextstep.cli.info import _processor
from nextstep.engine import pretrained
from nextstep.engine.pretrained import load_parts, save_parts
from nextstep.errors import NextStepError
from nextstep.model import precision, quantization
from nextstep.pipeline import NextStepPipeline
from nextstep.train.muon import Muon, orthogonalised
from nextstep.train.optimizer import build_optimizers
from nextstep.train.trainer import TrainConfig, Trainer
from tests.conftest import TINY, random_model
from tests.train.test_trainer import TextSource, TextStage
from tests.train.toy import events_of

EMULATED, FAST = 80.0, 0.25


def computes(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let bf16 products take so many times as long as fp32 ones."""
    monkeypatch.setattr(
        precision, "slowdown", lambda kind, dtype: 1.0 if dtype == torch.float32 else factor
    )


@pytest.mark.parametrize(("factor", "chosen"), [(EMULATED, "fp32"), (FAST, "bf16")])
def test_auto_is_what_the_processor_computes_faster(
    monkeypatch: pytest.MonkeyPatch, factor: float, chosen: str
) -> None:
    computes(monkeypatch, factor)
    assert precision.resolved("auto", "cpu") == chosen
    assert precision.resolved("bf16", "cpu") == "bf16"
    assert precision.resolved("fp32", torch.device("cpu")) == "fp32"
    with pytest.raises(NextStepError, match="'fp8' is unknown; choose from auto, fp32, bf16"):
        precision.resolved("fp8", "cpu")


def test_the_choice_agrees_with_the_rates_measured_here() -> None:
    factor = precision.slowdown("cpu", torch.bfloat16)
    assert factor > 0
    assert precision.slowdown("cpu", torch.float32) == 1
    assert (precision.fastest("cpu") == "bf16") == (factor <= 1)
    assert precision.matmul_rate("cpu", torch.float32, seconds=0.01, side=64) > 0


@pytest.mark.parametrize(("factor", "dtype"), [(EMULATED, torch.float32), (FAST, torch.bfloat16)])
def test_training_by_default_computes_in_the_fast_format_and_logs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, factor: float, dtype: torch.dtype
) -> None:
    computes(monkeypatch, factor)
    seen = []

    class Looking(TextStage):
        def losses(self, model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else 0)
            return super().losses(model, batch)

    config = TrainConfig(
        steps=1, learning_rate=1e-2, optimizer="muon", save_minutes=0, measure_peak=False
    )
    trainer = Trainer(
        random_model(TINY).requires_grad_(True), Looking(), TextSource(), config, tmp_path
    )
    trainer.run()
    assert set(seen) == {torch.bfloat16 if dtype == torch.bfloat16 else 0}
    assert [o.dtype for o in trainer.stepper.optimizers if isinstance(o, Muon)] == [dtype]
    told = next(row["detail"] for row in events_of(tmp_path) if row["event"] == "precision")
    assert (
        told
        == {
            torch.float32: "fp32: a bf16 product takes 80 times as long as an fp32 one here",
            torch.bfloat16: "bf16: a bf16 product is 4.0 times as fast as an fp32 one here",
        }[dtype]
    )


def test_an_emulated_format_that_was_asked_for_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computes(monkeypatch, EMULATED)
    precision.warn_if_slow.cache_clear()
    with pytest.warns(UserWarning, match="bf16 is emulated .* takes 80 times as long as in fp32"):
        precision.warn_if_slow("cpu", torch.bfloat16)
    with warnings.catch_warnings(action="error"):
        precision.warn_if_slow("cpu", torch.bfloat16)
        precision.warn_if_slow("cpu", torch.float32)


def test_matrices_are_orthogonalised_in_the_format_that_is_given() -> None:
    torch.manual_seed(0)
    for shape in ((12, 40), (40, 12)):
        matrix = torch.randn(shape)
        kept = matrix.clone()
        settings = ((3.4445, -4.7750, 2.0315), 5, 1e-7)
        half, full = (orthogonalised(matrix, *settings, d) for d in (torch.bfloat16, torch.float32))
        assert torch.equal(matrix, kept)
        assert (half.dtype, full.dtype) == (torch.bfloat16, torch.float32)
        assert half.shape == full.shape == shape
        assert torch.allclose(half.float(), full, atol=0.05)
        # The iteration brings singular values into this band; U V^T has them all at 1.
        values = torch.linalg.svdvals(full)
        assert values.min() > 0.6 and values.max() < 1.3
        U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.linalg.matrix_norm(full - U @ Vh, 2) < 0.4


def test_muon_moves_by_the_same_formula_in_both_formats() -> None:
    moved = {}
    gradient = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        model = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False))
        torch.nn.init.eye_(model[0].weight)
        (optimizer,) = build_optimizers(model, 0.1, 0.1, "muon", orthogonalised_in=dtype)
        model[0].weight.grad = gradient.clone()
        optimizer.step()
        moved[dtype] = model[0].weight.detach().clone()
    assert torch.allclose(moved[torch.float32], moved[torch.bfloat16], atol=5e-3)
    assert not torch.equal(moved[torch.float32], moved[torch.bfloat16])


def bf16_folder(tiny_folder: Path, folder: Path) -> Path:
    """The tiny model with its weights stored in bf16."""
    parts = load_parts(tiny_folder)
    parts.model.to(torch.bfloat16)
    save_parts(parts, folder)
    return folder


@pytest.mark.parametrize(
    ("large", "factor", "chosen"),
    [
        (True, FAST, torch.bfloat16),
        (True, EMULATED, torch.float32),
        (False, FAST, torch.float32),
    ],
)
def test_a_model_is_sampled_in_what_the_processor_computes_fast(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path,
    large: bool, factor: float, chosen: torch.dtype,
) -> None:  # fmt: skip
    folder = bf16_folder(tiny_folder, tmp_path / "half")
    computes(monkeypatch, factor)
    monkeypatch.setattr(pretrained, "LARGE", 1000 if large else 2**26)
    assert load_parts(folder).model.lm_head.weight.dtype == chosen
    assert load_parts(tiny_folder).model.lm_head.weight.dtype == torch.float32
    assert _processor(str(folder), 1)["sampling (--dtype auto)"] == {
        torch.bfloat16: "bf16", torch.float32: "fp32",
    }[chosen]  # fmt: skip


def test_the_image_tokenizer_does_not_walk_into_an_emulated_format(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    precision.warn_if_slow.cache_clear()
    computes(monkeypatch, EMULATED)
    monkeypatch.setattr(pretrained, "slowdown", precision.slowdown)
    with pytest.warns(UserWarning, match="80 times as long as in fp32"):
        parts = load_parts(tiny_folder, torch.bfloat16)
    assert parts.model.lm_head.weight.dtype == torch.bfloat16
    assert parts.image_tokenizer.dtype == torch.float32


def test_rounded_weights_without_kernels_are_warned_of_with_the_factor(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    monkeypatch.setattr(quantization, "unpacking_slowdown", lambda format_: 3.5)
    quantization._warn_of_unpacking.cache_clear()
    with pytest.warns(UserWarning, match=r"int8 weights save memory .* takes 3.5 times as long"):
        NextStepPipeline.from_pretrained(tiny_folder, quantize="int8")
    with warnings.catch_warnings(action="error"):
        NextStepPipeline.from_pretrained(tiny_folder, quantize="int8")


def test_unpacking_is_timed() -> None:
    assert quantization.unpacking_slowdown("int8", width=64) > 0
