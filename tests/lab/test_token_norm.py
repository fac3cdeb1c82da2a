"""`nextstep lab token-norm`: tokens before the norm, drift, and what decides the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nextstep.engine.backends import backend_of
from nextstep.engine.engine import Engine
from nextstep.lab.study import Arm, MeasuredUnit, Scale, StudyResults
from nextstep.lab.token_norm import NORMED, SCALED, SCALES, Looked, TokenNorm, TokenRecorder, look
from nextstep.pipeline import NextStepPipeline
from nextstep.vae.latents import token_norm


def test_recording_tokens_before_the_norm_changes_no_picture(tiny_folder: Path) -> None:
    pipeline = NextStepPipeline.from_pretrained(tiny_folder)
    plain = Engine(
        pipeline.model, pipeline.text_tokenizer, pipeline.image_tokenizer, pipeline.defaults
    )
    request = replace(
        plain.request("a red apple", height=32, width=32, seed=5, steps=3, guidance=3.0)
    )
    (event,) = plain.wait([plain.submit(request)])
    recorder = TokenRecorder(
        backend_of(pipeline.model), [(5, 0)], 4, 64, request.settings.solver_settings.draws
    )
    watched = Engine(
        pipeline.model, pipeline.text_tokenizer, pipeline.image_tokenizer, pipeline.defaults,
        backend=recorder, check=False,
    )  # fmt: skip
    (again,) = watched.wait([watched.submit(request)])
    assert torch.allclose(event.tokens, again.tokens, atol=1e-5)
    raw = torch.stack([recorder.found[0, n] for n in range(4)])
    assert torch.allclose(token_norm(raw), again.tokens, atol=1e-5)
    assert not torch.allclose(raw, again.tokens, atol=1e-2)


def test_looking_at_a_model_gives_statistics_of_every_token(tiny_folder: Path) -> None:
    pipeline = NextStepPipeline.from_pretrained(tiny_folder)
    defaults = pipeline.defaults
    pipeline.defaults = replace(
        defaults, height=32, width=32, generate=defaults.generate.with_values(steps=3)
    )
    true = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    seen = look(pipeline, [("an apple", 1), ("a cat", 2), ("a dog", 3)], true, 3.0)
    assert seen.std.shape == seen.mean.shape == seen.off.shape == (3, 4)
    assert (seen.off > 0).all() and len(seen.images) == 3


def test_drift_is_what_lies_between_first_and_last_quarter() -> None:
    still = Looked(np.zeros((2, 8)), np.ones((2, 8)), np.zeros((2, 8)))
    assert still.drift() == [0.0, 0.0]
    grown = Looked(np.zeros((1, 8)), np.linspace(1, 8, 8)[None], np.zeros((1, 8)))
    assert grown.drift() == [pytest.approx(6.0)]


def results(normed: float, scaled: float, drift: float) -> StudyResults:
    """Two arms with these scores at every scale, the second drifting by so much more."""
    arms = [Arm(NORMED, "norm"), Arm(SCALED, "scale")]
    found = {}
    for arm, score, own in zip(arms, (normed, scaled), (0.0, drift), strict=True):
        items: dict[str, dict[str, float]] = {}
        for guidance in SCALES:
            mark = f"@{guidance:g}"
            items[f"score{mark}"] = {f"{n:03}": float(n < 100 * score) for n in range(100)}
            items[f"drift{mark}"] = {f"{n}": n / 100 + own for n in range(64)}
            items[f"off{mark}"] = {f"{n}": 0.5 for n in range(64)}
        items["score@15, more steps"] = items["score@15"]
        found |= {(arm.name, seed): MeasuredUnit(items=items) for seed in (0, 1)}
    return StudyResults(arms, found, Scale())


@pytest.mark.parametrize(
    ("normed", "scaled", "drift", "verdict"),
    [
        (0.9, 0.5, 1.0, "reproduced"), (0.9, 0.5, 0.0, "not reproduced"),
        (0.5, 0.5, 1.0, "not reproduced"), (0.4, 0.9, 1.0, "contradicted"),
    ],
)  # fmt: skip
def test_verdict_needs_drift_and_score(
    normed: float, scaled: float, drift: float, verdict: str
) -> None:
    assert TokenNorm().conclude(results(normed, scaled, drift)).verdict == verdict
