"""The pretrain stage: packed equals unpacked, sums with their counts, pixels become tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nextstep.data.batch import collate, pack_rows
from nextstep.data.documents import Document
from nextstep.data.planning import pack_window
from nextstep.model.nextstep import NextStepModel
from nextstep.text.sequence import (
    Part,
    Picture,
    Text,
    build_sequence,
    caption_after_image,
    editing,
    interleaved,
    text_to_image,
)
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.stages.pretrain import PreparedBatch, PretrainStage
from nextstep.vae.latents import token_norm
from nextstep.vae.tokenizer import ImageTokenizer
from tests.conftest import TINY, TINY_VAE, random_model

ROW = 96
POSITIONED = TINY.with_values(image_position_side=4)
SAMPLES: list[list[Part]] = [
    text_to_image("a red apple", (2, 2)),
    [Text("two cats make it blue")],
    editing("<image> make it blue", [(2, 2)], (2, 2)),
    interleaved("one <image> two <image> three <image>", [(1, 2), (2, 1), (4, 4)]),
    caption_after_image("two cats", (3, 2)),
    [Text("a")],
    [Picture((2, 3))],
    editing("<image_1> and <image_0> as one", [(1, 1), (2, 2)], (1, 3)),
]
Row = list[tuple[Document, list[Tensor]]]


def documents(tokenizer: TextTokenizer) -> Row:
    made: Row = []
    for number, parts in enumerate(SAMPLES):
        sequence = build_sequence(parts, tokenizer)
        generator = torch.Generator().manual_seed(number)
        pictures = [
            token_norm(torch.randn(span.count, 64, generator=generator)) for span in sequence.images
        ]
        images = tuple(range(len(pictures)))
        made.append((Document(f"mixed/0/{number}", sequence, images, 900 + number), pictures))
    return made


def stage(**settings) -> PretrainStage:
    options = {"row_length": ROW, "head_batch_mul": 3, "context_noise": 0.5} | settings
    return PretrainStage(POSITIONED, **options)


def prepared(rows: list[Row], **settings) -> PreparedBatch:
    made = stage(**settings)
    return made.prepare(made.batch_of(rows), "cpu")


def packed(samples: Row) -> list[Row]:
    plan = pack_window([len(document) for document, _ in samples], ROW)
    return [[samples[index] for index in row] for row in plan]


def gradients(model: NextStepModel, batches: list[PreparedBatch]) -> dict[str, Tensor]:
    """Of the weighted mean over all batches, as the loop forms it."""
    made = stage()
    counts = [made.counts(batch) for batch in batches]
    model.zero_grad()
    for batch in batches:
        losses = made.losses(model, batch)
        sum(
            made.loss_weights[name] * loss / sum(count[name] for count in counts)
            for name, loss in losses.items()
        ).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def means(model: NextStepModel, batches: list[PreparedBatch]) -> dict[str, float]:
    made = stage()
    with torch.no_grad():
        found = [made.losses(model, batch) for batch in batches]
    counts = [made.counts(batch) for batch in batches]
    return {
        name: sum(float(losses.get(name, 0.0)) for losses in found) / sum(c[name] for c in counts)
        for name in made.loss_weights
    }


def test_packed_equals_unpacked(text_tokenizer: TextTokenizer) -> None:
    model = random_model(POSITIONED).requires_grad_(True)
    samples = documents(text_tokenizer)
    together = [prepared(packed(samples))]
    assert together[0].batch.ids.shape[0] < len(samples) / 2
    alone = [
        prepared([[sample]], row_length=len(sample[0]), attention="mask" if n % 2 else None)
        for n, sample in enumerate(samples)
    ]
    one, other = means(model, together), means(model, alone)
    assert all(abs(one[name] - other[name]) < 1e-6 for name in one)
    found, expected = gradients(model, together), gradients(model, alone)
    for name, gradient in found.items():
        assert float((gradient - expected[name]).norm() / expected[name].norm()) < 1e-5, name


@pytest.mark.parametrize("changed", range(len(SAMPLES)))
def test_another_document_changes_not_one_bit(text_tokenizer: TextTokenizer, changed: int) -> None:
    model = random_model(POSITIONED).requires_grad_(True)
    samples = documents(text_tokenizer)
    plan = packed(samples)
    row, number = next(
        (r, n) for r, own in enumerate(plan) for n, s in enumerate(own) if s is samples[changed]
    )
    before, batch = hidden_states(model, plan)
    plan[row][number] = another(samples[changed])
    after, _ = hidden_states(model, plan)
    others = batch.batch.documents >= 0
    others[row] &= batch.batch.documents[row] != number
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def hidden_states(model: NextStepModel, rows: list[Row]) -> tuple[Tensor, PreparedBatch]:
    batch = prepared(rows)
    embeddings = model.embed(batch.batch.ids, batch.context, batch.batch.coordinates)
    return model.hidden(embeddings, batch.batch.positions, documents=batch.documents), batch


def another(sample: tuple[Document, list[Tensor]]) -> tuple[Document, list[Tensor]]:
    """A document of the same form with other words, pictures and draws."""
    document, pictures = sample
    ids = [
        i if i <= TINY.image_placeholder_id else 6 + (i - 5) % 200 for i in document.sequence.ids
    ]
    sequence = replace(document.sequence, ids=ids)
    return replace(document, sequence=sequence, seed=1), [p.flip(-1) for p in pictures]


def test_sums_of_packed_rows_are_the_mean_of_padded_ones(text_tokenizer: TextTokenizer) -> None:
    model = random_model(POSITIONED)
    sequences = [document.sequence for document, _ in documents(text_tokenizer)]
    pictures = [p for _, own in documents(text_tokenizer) for p in own]
    padded = collate(sequences, pictures, TINY.pad_id)
    hidden = model.hidden(model.embed(padded.ids, padded.image_tokens, padded.coordinates))
    expected = model.text_loss(hidden, padded.ids, padded.labels)
    batch = prepared(packed(documents(text_tokenizer)), context_noise=0.0)
    found = stage().losses(model, batch)["lm_loss"] / stage().counts(batch)["lm_loss"]
    assert torch.isclose(found, expected, atol=1e-6)


def test_image_loss_is_over_the_trained_tokens_and_their_own_draws(
    text_tokenizer: TextTokenizer,
) -> None:
    model = random_model(POSITIONED)
    sample = documents(text_tokenizer)[2]
    batch = prepared([[sample]], context_noise=0.0)
    assert stage().counts(batch)["im_loss"] == 4
    assert torch.equal(batch.targets, sample[1][1])
    embeddings = model.embed(batch.batch.ids[:, : len(sample[0])], *sample_inputs(batch))
    condition = model.image_condition(model.hidden(embeddings)[0][batch.batch.condition_places])
    expected = 0.0
    for u, noise in zip(batch.batch.u, batch.batch.noise, strict=True):
        expected += 4 * float(model.image_loss(condition, batch.targets, u, noise)) / 3
    assert float(stage().losses(model, batch)["im_loss"]) == pytest.approx(expected, rel=1e-5)


def sample_inputs(batch: PreparedBatch) -> tuple[Tensor, Tensor]:
    return batch.context, batch.batch.coordinates


def test_context_noise_moves_trained_tokens_alone(text_tokenizer: TextTokenizer) -> None:
    batch = prepared(packed(documents(text_tokenizer)))
    rows = batch.batch.target_rows
    given = torch.ones(len(batch.context), dtype=torch.bool)
    given[rows] = False
    tokens = batch.batch.image_tokens
    assert bool(given.any())
    assert torch.equal(batch.context[given], tokens[given])
    assert torch.equal(batch.targets, tokens[rows])
    assert not bool((batch.context[rows] == tokens[rows]).all(-1).any())
    assert torch.allclose(batch.context, token_norm(batch.context), atol=1e-5)


def test_rows_of_text_alone_train(text_tokenizer: TextTokenizer) -> None:
    model = random_model(POSITIONED).requires_grad_(True)
    texts = [sample for sample in documents(text_tokenizer) if not sample[1]]
    batch = prepared([texts])
    assert stage().counts(batch) == {
        "lm_loss": sum(len(document) - 1 for document, _ in texts),
        "im_loss": 0,
    }
    losses = stage().losses(model, batch)
    assert list(losses) == ["lm_loss"]
    losses["lm_loss"].backward()
    assert float(model.layers[0].self_attn.q_proj.weight.grad.norm()) > 0


def test_rows_of_nothing_train_nothing() -> None:
    model = random_model(POSITIONED).requires_grad_(True)
    batch = prepared([[], []])
    losses = stage().losses(model, batch)
    assert stage().counts(batch) == {"lm_loss": 0, "im_loss": 0}
    losses["lm_loss"].backward()
    assert losses["lm_loss"].item() == 0.0
    assert stage().flops(batch) == 0.0


def test_weights_come_from_the_config_or_are_given() -> None:
    assert stage().loss_weights == {"lm_loss": 0.01, "im_loss": 1.0}
    given = stage(text_weight=0.0, image_weight=2.0)
    assert given.loss_weights == {"lm_loss": 0.0, "im_loss": 2.0}
    assert PretrainStage(POSITIONED).head_batch_mul == POSITIONED.fm_head_batch_mul


def test_pixels_become_the_tokens_that_the_image_tokenizer_gives(
    text_tokenizer: TextTokenizer,
) -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(TINY_VAE)
    rng = np.random.default_rng(0)
    parts = interleaved("<image> two <image> cats <image>", [(1, 2), (2, 1), (1, 2)])
    sequence = build_sequence(parts, text_tokenizer)
    pixels = [
        rng.integers(0, 256, (16 * span.grid[0], 16 * span.grid[1], 3), np.uint8)
        for span in sequence.images
    ]
    document = Document("a", sequence, (0, 1, 2), 4)
    made = stage(image_tokenizer=tokenizer)
    found = made.prepare(made.batch_of([[(document, pixels)]]), "cpu")
    scaled = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in pixels]
    expected = torch.cat([tokenizer.encode_tokens(p)[0] for p in scaled])
    assert torch.allclose(found.batch.image_tokens, expected, atol=1e-5)
    assert torch.allclose(found.targets, expected, atol=1e-5)
    losses = made.losses(random_model(POSITIONED).requires_grad_(True), found)
    losses["im_loss"].backward()
    with pytest.raises(ValueError, match="needs an image tokenizer"):
        stage().prepare(made.batch_of([[(document, pixels)]]), "cpu")


def test_text_alone_trains(text_tokenizer: TextTokenizer) -> None:
    sequence = build_sequence([Text("two cats")], text_tokenizer)
    batch = prepared([[(Document("a", sequence, (), 4), [])]])
    losses = stage().losses(random_model(POSITIONED), batch)
    assert stage().counts(batch)["im_loss"] == 0
    assert losses.keys() == {"lm_loss"}
    assert float(losses["lm_loss"]) > 0


def test_a_batch_without_draws_is_refused(text_tokenizer: TextTokenizer) -> None:
    batch = collate([build_sequence([Text("two cats")], text_tokenizer)], [], 1)
    with pytest.raises(ValueError, match="make it with pack_rows"):
        stage().prepare(batch, "cpu")


def test_logits_of_a_large_vocabulary_are_made_in_parts(
    text_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(POSITIONED).requires_grad_(True)
    batches = [prepared(packed(documents(text_tokenizer)))]
    whole = gradients(model, batches)
    monkeypatch.setattr("nextstep.model.nextstep.LARGEST_LOGITS", 7 * POSITIONED.vocab_size)
    for name, gradient in gradients(model, batches).items():
        assert torch.allclose(gradient, whole[name], atol=1e-7), name


def test_packing_needs_head_batch_mul_draws(text_tokenizer: TextTokenizer) -> None:
    batch = pack_rows([documents(text_tokenizer)[:1]], ROW, TINY.pad_id, head_batch_mul=5)
    assert batch.u is not None
    assert batch.u.shape == (5, 4)
