"""Embedding, losses, the flow head."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nextstep.data.batch import collate
from nextstep.model.flow_head import time_sinusoid
from nextstep.model.nextstep import NextStepModel
from nextstep.text.sequence import IGNORE, Picture, Text, build_sequence
from nextstep.text.tokenizer import TextTokenizer
from tests.conftest import TINY, random_model

PLACE = TINY.image_placeholder_id


def test_image_tokens_take_the_places_in_reading_order() -> None:
    model = random_model(TINY)
    ids = torch.tensor([[7, PLACE, PLACE, 8], [PLACE, 9, 10, 11]])
    tokens = torch.randn(3, 64)
    embedded = model.embed(ids, tokens)
    projected = model.image_in_projector(tokens)
    assert torch.equal(embedded[0, 1:3], projected[:2])
    assert torch.equal(embedded[1, 0], projected[2])
    assert torch.equal(embedded[0, 0], model.embed_tokens.weight[7])


def test_wrong_number_of_image_tokens() -> None:
    model = random_model(TINY)
    with pytest.raises(ValueError, match="2 image places but 1 image tokens"):
        model.embed(torch.tensor([[PLACE, PLACE]]), torch.zeros(1, 64))


def test_text_loss_leaves_out_positions_before_places() -> None:
    model = random_model(TINY)
    ids = torch.tensor([[7, 8, 3, PLACE, 4, 0]])
    labels = torch.tensor([[7, 8, IGNORE, 5, 4, IGNORE]])
    hidden = torch.randn(1, 6, TINY.hidden_size)
    logits = model.text_logits(hidden)
    # Counted: 7 -> 8, and the place -> end of image. The place itself is not, whatever its label.
    expected = F.cross_entropy(logits[0, [0, 3]], torch.tensor([8, 4]))
    assert torch.allclose(model.text_loss(hidden, ids, labels), expected)
    nothing = torch.full_like(labels, IGNORE)
    assert float(model.text_loss(hidden, ids, nothing)) == 0.0


def test_a_fresh_head_predicts_zero() -> None:
    torch.manual_seed(0)
    model = NextStepModel(TINY)
    model.reset_parameters()
    velocity = model.image_head(torch.randn(5, 64), torch.rand(5), torch.randn(5, 32))
    assert bool((velocity == 0).all())


def test_time_sinusoid_begins_with_cosines() -> None:
    embedded = time_sinusoid(torch.tensor([0.0, 0.7]))
    assert embedded.shape == (2, 256)
    assert torch.equal(embedded[0], torch.cat((torch.ones(128), torch.zeros(128))))
    assert embedded[1, 0] == torch.cos(torch.tensor(0.7))


def test_image_loss_is_what_the_formula_says() -> None:
    model = random_model(TINY)
    condition, tokens = torch.randn(3, 32), torch.randn(3, 64)
    u, noise = torch.randn(6), torch.randn(6, 64)
    t, data = torch.sigmoid(u)[:, None], tokens.repeat(2, 1)
    velocity = model.image_head(t * data + (1 - t) * noise, t[:, 0], condition.repeat(2, 1))
    expected = (velocity - (data - noise)).square().mean()
    assert torch.allclose(model.image_loss(condition, tokens, u, noise), expected, atol=1e-6)


def test_batched_loss_equals_single(text_tokenizer: TextTokenizer) -> None:
    """Right padding and neighbours change nothing: the loss is the token-weighted mean."""
    model = random_model(TINY)
    rows = [
        [Text("two cats"), Picture((2, 2))],
        [Picture((1, 2), trained=False), Text("make it blue"), Picture((2, 1))],
        [Text("words alone")],
    ]
    pictures = [[torch.randn(4, 64)], [torch.randn(2, 64), torch.randn(2, 64)], []]
    sequences = [build_sequence(parts, text_tokenizer) for parts in rows]
    whole = collate(sequences, [p for row in pictures for p in row], 1)
    hidden = model.hidden(model.embed(whole.ids, whole.image_tokens))
    states = hidden.flatten(0, 1)[whole.condition_places]
    first = 0
    for sequence, tokens in zip(sequences, pictures, strict=True):
        one = collate([sequence], tokens, 1)
        alone = model.hidden(model.embed(one.ids, one.image_tokens if tokens else None))
        mine = alone.flatten(0, 1)[one.condition_places]
        assert torch.allclose(states[first : first + len(mine)], mine, atol=1e-6)
        expected = torch.cat(tokens)[one.target_rows] if tokens else torch.empty(0, 64)
        got = whole.image_tokens[whole.target_rows][first : first + len(mine)]
        assert torch.equal(got, expected)
        first += len(mine)
    assert first == len(states) == 6


def test_pictures_must_fit_their_spans(text_tokenizer: TextTokenizer) -> None:
    sequence = build_sequence([Picture((2, 2))], text_tokenizer)
    with pytest.raises(ValueError, match="do not fit"):
        collate([sequence], [torch.zeros(3, 64)], 1)
