"""The flow head as sampling uses it: what does not see x is computed once for all rounds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from nextstep.engine.backends.base import SampleRequest
from nextstep.engine.backends.sampling_head import SamplingHead
from nextstep.flow.guidance import CONDITIONAL
from nextstep.flow.solvers import SolverSettings
from tests.conftest import TINY, random_model


@torch.inference_mode()
@pytest.mark.parametrize(("block", "calls"), [(None, 1), (8, 4)])
def test_modulations_of_all_rounds_are_made_together(
    block: int | None, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one product without blocks; with them one product a block, layer by layer."""
    model = random_model(TINY)
    layers = [layer.adaLN_modulation[1].weight for layer in model.image_head.net.blocks()]
    used, linear = list[int](), torch.nn.functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
        used.extend(place for place, own in enumerate(layers) if weight is own)
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    asked = SampleRequest(
        torch.zeros(1, TINY.hidden_size), torch.zeros(1, 64), SolverSettings("ode", 4),
        (CONDITIONAL,), {CONDITIONAL: 1.0}, False,
    )  # fmt: skip
    SamplingHead(model, block).sample([asked])
    assert used == [0] * calls + [1] * calls


def test_building_a_model_does_not_import_the_compiler() -> None:
    """It is half of torch, and a second of every cold start."""
    program = (
        "import sys, nextstep; nextstep.NextStepPipeline.from_pretrained('nano'); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
