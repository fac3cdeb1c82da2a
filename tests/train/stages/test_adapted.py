"""An adapter counts wherever training computes: the losses are those of the merged weights."""

from __future__ import annotations

import pytest
import torch

from nextstep.data.documents import Document
from nextstep.model.adapter_config import PARTS, AdapterConfig
from nextstep.model.lora import add_adapter, merged
from nextstep.text.sequence import build_sequence, text_to_image
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.stages.pretrain import PretrainStage
from tests.conftest import TINY, random_model

pytest.importorskip("peft")


@pytest.mark.parametrize("part", list(PARTS))
def test_training_reads_the_adapter_in_every_part(part: str, text_tokenizer: TextTokenizer) -> None:
    model = random_model(TINY)
    add_adapter(model, AdapterConfig(rank=2, parts=(part,)))
    generator = torch.Generator().manual_seed(1)
    adapted = {name: p for name, p in model.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, parameter in adapted.items():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
    parts = text_to_image("a red apple", (2, 2))
    document = Document("a", build_sequence(parts, text_tokenizer), (0,), seed=5)
    tokens = torch.randn(4, 64, generator=generator)
    stage = PretrainStage(TINY, row_length=64)
    batch = stage.prepare(stage.batch_of([[(document, [tokens])]]), "cpu")
    losses = stage.losses(model.train(), batch)
    sum(losses.values()).backward()
    assert all(bool(p.grad.any()) for p in adapted.values())
    with merged(model), torch.no_grad():
        whole = stage.losses(model, batch)
    for name, value in whole.items():
        assert torch.isclose(losses[name], value, rtol=1e-4), name
