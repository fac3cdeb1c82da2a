"""The head as sampling uses it gives the velocities of the head as it is trained."""

from __future__ import annotations

import subprocess
import sys

import torch

from nextstep.engine.backends.flow_head import SamplingHead
from tests.conftest import TINY, random_model


@torch.inference_mode()
def test_prepared_velocities_equal_the_plain_ones() -> None:
    head = random_model(TINY).image_head
    sampling = SamplingHead(head)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # the first token asks for unknown times, the next ones for known ones
        condition = torch.randn(4, TINY.hidden_size, generator=generator)
        sampling.begin(condition)
        for t in (0.0, 0.25, 0.7):
            x = torch.randn(4, TINY.token_size, generator=generator)
            plain = head(x, torch.tensor([t]), condition)
            assert torch.allclose(sampling.velocity(x, t), plain, atol=1e-5)


@torch.inference_mode()
def test_known_times_are_modulated_together() -> None:
    head = random_model(TINY).image_head
    sampling, seen = SamplingHead(head), []
    layer = next(head.net.blocks()).adaLN_modulation[1].weight
    linear = torch.nn.functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
        seen.append(weight is layer)
        return linear(x, weight, bias)

    for token in range(2):
        seen.clear()
        torch.nn.functional.linear = counted
        try:
            sampling.begin(torch.zeros(2, TINY.hidden_size))
            for t in (0.0, 0.5):
                sampling.velocity(torch.zeros(2, TINY.token_size), t)
        finally:
            torch.nn.functional.linear = linear
        assert sum(seen) == (2 if token == 0 else 1)


def test_building_a_model_does_not_import_the_compiler() -> None:
    """It is half of torch, and a second of every cold start."""
    program = (
        "import sys, nextstep; nextstep.NextStepPipeline.from_pretrained('nano'); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
