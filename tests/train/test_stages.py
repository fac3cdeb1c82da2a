"""Stage losses: what they compare, and that training them works."""

from __future__ import annotations

from pathlib import Path

import torch

from nextstep.data.batch import collate
from nextstep.image.autoencoder import Autoencoder, AutoencoderConfig
from nextstep.image.latents import token_norm
from nextstep.stages.pretrain import noisy_context, sequence_loss
from nextstep.stages.tokenizer import reconstruction_loss, tokenizer_loss
from nextstep.text.sequence import Picture, Text, build_sequence
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.loop import Loop, LoopConfig
from tests.conftest import TINY, random_model


def test_reconstruction_loss() -> None:
    target = torch.zeros(1, 3, 4, 4)
    same = reconstruction_loss(target, target)
    assert float(same["loss"]) == 0.0
    # A constant offset has no gradient part: |0.5| + 0.5^2.
    assert torch.isclose(reconstruction_loss(target + 0.5, target)["loss"], torch.tensor(0.75))
    edge = target.clone()
    edge[..., 2:] = 1.0
    assert float(reconstruction_loss(edge, target)["loss"]) > 0.5 + 0.5


def test_refinement_leaves_the_encoder_alone() -> None:
    network = Autoencoder(AutoencoderConfig((8, 8), 1, 4, 4))
    pixels = torch.rand(2, 3, 16, 16)
    tokenizer_loss(network, pixels, gamma=0.3, decoder_only=True)["loss"].backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert all(p.grad is not None for p in network.decoder.parameters())


def test_tokenizer_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig((8, 8), 1, 4, 4))
    pixels = torch.rand(4, 3, 16, 16) * 2 - 1
    config = LoopConfig(steps=15, learning_rate=3e-3, warmup=1, bf16=False)
    first = tokenizer_loss(network, pixels, 0.1)["loss"].item()
    Loop(network, lambda s: pixels, lambda m, b: tokenizer_loss(m, b, 0.1), config, tmp_path).run()
    assert tokenizer_loss(network, pixels, 0.1)["loss"].item() < 0.9 * first


def test_model_learns_text_and_pictures(tmp_path: Path, text_tokenizer: TextTokenizer) -> None:
    model = random_model(TINY).requires_grad_(True)
    parts = [Text("a red apple"), Picture((2, 2))]
    batch = collate([build_sequence(parts, text_tokenizer)], [torch.randn(4, 64)], 1)
    first = sequence_loss(model, batch, head_batch_mul=64)
    config = LoopConfig(steps=60, learning_rate=1e-2, warmup=5)
    Loop(model, lambda step: batch, sequence_loss, config, tmp_path).run()
    last = sequence_loss(model, batch, head_batch_mul=64)
    assert float(last["lm_loss"]) < 0.7 * float(first["lm_loss"])
    assert float(last["im_loss"]) < 0.9 * float(first["im_loss"])


def test_noisy_context_stays_normalised_and_leaves_targets_alone(
    text_tokenizer: TextTokenizer,
) -> None:
    torch.manual_seed(0)
    tokens = token_norm(torch.randn(500, 64))
    given = torch.arange(0, 500, 5)
    rows = torch.tensor([i for i in range(500) if i % 5])
    noisy = noisy_context(tokens, 0.5, rows)
    assert torch.equal(noisy[given], tokens[given])
    noisy, tokens = noisy[rows], tokens[rows]
    assert torch.allclose(noisy.var(-1, unbiased=False), torch.ones(400), atol=1e-3)
    moved = (noisy - tokens).square().mean(-1).sqrt()
    assert 0 < float(moved.min()) < 0.05
    assert 0.3 < float(moved.max()) < 0.6
    model = random_model(TINY)
    sequence = build_sequence([Text("a"), Picture((2, 2))], text_tokenizer)
    batch = collate([sequence], [tokens[:4]], 1)
    kept = batch.image_tokens.clone()
    torch.manual_seed(1)
    clean = sequence_loss(model, batch)["im_loss"]
    torch.manual_seed(1)
    assert not torch.equal(sequence_loss(model, batch, context_noise=0.5)["im_loss"], clean)
    assert torch.equal(batch.image_tokens, kept)
