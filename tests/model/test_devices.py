"""Devices that are not there are refused in one sentence, in Python and on the command line."""

from __future__ import annotations

import pytest
import torch

from nextstep.errors import NextStepError
from nextstep.model.devices import check_device
from nextstep.pipeline import NextStepPipeline


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_processor_is_always_there(name: str) -> None:
    assert check_device(name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mps", "device 'mps' cannot be used here: PyTorch finds no mps .*; it can use cpu$"),
        ("xpu:3", "finds no xpu on this machine; it can use cpu$"),
        ("cuda:1", "finds no cuda on this machine"),
        ("cpu:1", "finds 1 of kind cpu"),
        ("meta", "unknown device 'meta'; choose from cpu, cuda, mps, xpu"),
        ("gpu", "unknown device 'gpu'"),
        ("cuda:x", "'cuda:x' names no device; give cuda or cuda:0"),
        ("", "unknown device ''"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    for ask in (check_device, lambda device: NextStepPipeline.from_pretrained(device=device)):
        with pytest.raises(NextStepError, match=said) as refused:
            ask(name)
        assert len(str(refused.value)) < 160
