"""The recordings on a CUDA device, recorded as graphs as `generate --device cuda` draws.

Both recordings are drawn where `--golden` names a second one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nextstep.pipeline import NextStepPipeline
from tests.parity.test_golden import LOOSE, RECORDING, case, distance, recorded_tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NEAR = {torch.float32: LOOSE, torch.bfloat16: 0.05}
"""Largest distance of values that are normally distributed; on a CPU bf16 was within 0.015."""


@pytest.fixture(autouse=True)
def whole_precision() -> Iterator[None]:
    """fp32 without TF32, which convolutions take by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_recorded_pictures_on_cuda(dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    for folder in {RECORDING, request.config.getoption("--golden") or RECORDING}:
        described = json.loads((Path(folder) / "cases" / "index.json").read_text())
        pipeline = NextStepPipeline.from_pretrained(folder / "model", dtype=dtype, device="cuda")
        for name, said in described.items():
            if isinstance(said, dict):
                recorded = case(folder, name)
                tokens = recorded_tokens(pipeline, folder, said, recorded)
                assert distance(tokens.cpu().float(), recorded["tokens"]) <= NEAR[dtype], name
