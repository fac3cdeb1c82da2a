"""Batches: where everything lies, and draws that belong to their document alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nextstep.data.batch import SequenceBatch, collate, pack_rows
from nextstep.data.documents import Document
from nextstep.text.sequence import (
    IGNORE,
    Part,
    Picture,
    Text,
    build_sequence,
    editing,
    interleaved,
    text_to_image,
)
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.latents import raster_coordinates

PAD = 1
SAMPLES: list[list[Part]] = [
    text_to_image("a red apple", (2, 2)),
    editing("make it blue", [(1, 2)], (2, 1)),
    [Text("words alone")],
    interleaved("one <image> two <image> three", [(1, 1), (2, 3)]),
]


def documents(tokenizer: TextTokenizer) -> list[tuple[Document, list[torch.Tensor]]]:
    made = []
    for number, parts in enumerate(SAMPLES):
        sequence = build_sequence(parts, tokenizer)
        generator = torch.Generator().manual_seed(number)
        pictures = [torch.randn(s.count, 64, generator=generator) for s in sequence.images]
        images = tuple(range(len(pictures)))
        made.append((Document(f"set/0/{number}", sequence, images, 100 + number), pictures))
    return made


def pack(rows: list, length: int = 80, noise: float = 0.0) -> SequenceBatch:
    return pack_rows(rows, length, PAD, head_batch_mul=3, context_noise=noise)


def test_documents_lie_one_after_another(text_tokenizer: TextTokenizer) -> None:
    first, second, third, fourth = documents(text_tokenizer)
    batch = pack([[first, second], [], [third, fourth]])
    assert batch.ids.shape == (3, 80)
    assert batch.tokens == sum(len(d) for d, _ in (first, second, third, fourth))
    assert batch.keys == ("set/0/0", "set/0/1", "set/0/2", "set/0/3")
    for row, number, start, (document, _) in (
        (0, 0, 0, first),
        (0, 1, len(first[0]), second),
        (2, 0, 0, third),
        (2, 1, len(third[0]), fourth),
    ):
        here = slice(start, start + len(document))
        assert batch.ids[row, here].tolist() == document.sequence.ids
        assert batch.labels[row, here].tolist() == document.sequence.labels
        assert batch.positions[row, here].tolist() == list(range(len(document)))
        assert bool((batch.documents[row, here] == number).all())
    padding = batch.documents < 0
    assert bool((batch.ids[padding] == PAD).all() and (batch.labels[padding] == IGNORE).all())
    assert batch.tokens == int((~padding).sum())


def test_image_tokens_and_their_places(text_tokenizer: TextTokenizer) -> None:
    rows = documents(text_tokenizer)
    batch = pack([rows])
    given = torch.cat([picture for _, pictures in rows for picture in pictures])
    assert torch.equal(batch.image_tokens, given)
    place = text_tokenizer.ids.image_placeholder
    assert torch.equal(batch.image_places, (batch.ids.flatten() == place).nonzero().flatten())
    grids = [span.grid for document, _ in rows for span in document.sequence.images]
    assert torch.equal(batch.coordinates, torch.cat([raster_coordinates(g) for g in grids]))
    # The source of the edit is read, but not trained; a state predicts the place behind it.
    trained = [i for i in range(len(given)) if i not in (4, 5)]
    assert batch.target_rows.tolist() == trained
    assert torch.equal(batch.condition_places + 1, batch.image_places[trained])


def test_text_targets_stay_inside_their_document(text_tokenizer: TextTokenizer) -> None:
    rows = documents(text_tokenizer)
    batch = pack([rows[:2], rows[2:]])
    expected = []
    for row in range(2):
        for s in range(79):
            same = batch.documents[row, s] == batch.documents[row, s + 1] >= 0
            following = int(batch.labels[row, s + 1])
            is_place = int(batch.ids[row, s + 1]) == text_tokenizer.ids.image_placeholder
            if bool(same) and following != IGNORE and not is_place:
                expected.append((row * 80 + s, following))
    assert list(zip(batch.text_places.tolist(), batch.text_targets.tolist(), strict=True)) == (
        expected
    )


def test_a_document_draws_the_same_wherever_it_lies(text_tokenizer: TextTokenizer) -> None:
    rows = documents(text_tokenizer)
    together = pack([rows], noise=0.5)
    turned = pack([rows[2:], rows[:2]], noise=0.5)
    alone = [pack([[row]], noise=0.5) for row in rows]
    for name in ("u", "noise", "context_shift"):
        dim = 0 if name == "context_shift" else 1
        parts = [getattr(one, name) for one in alone]
        assert torch.equal(getattr(together, name), torch.cat(parts, dim))
        assert torch.equal(getattr(turned, name), torch.cat([*parts[2:], *parts[:2]], dim))
    assert torch.equal(pack([rows]).noise, together.noise)  # context noise is a stream of its own
    assert pack([rows]).context_shift is None
    assert together.u.shape == (3, 13)
    assert together.noise.shape == (3, 13, 64)


def test_context_noise_has_a_level_per_token(text_tokenizer: TextTokenizer) -> None:
    sequence = build_sequence([Picture((20, 20))], text_tokenizer)
    batch = pack([[(Document("a", sequence, (0,), 5), [torch.zeros(400, 64)])]], 512, noise=0.5)
    deviation = batch.context_shift.std(dim=1)
    assert 0.0 < float(deviation.min()) < 0.02
    assert 0.4 < float(deviation.max()) < 0.65
    assert abs(float(deviation.mean()) - 0.25) < 0.03


def test_pixels_are_grouped_by_size(text_tokenizer: TextTokenizer) -> None:
    parts = interleaved("a <image> b <image> c <image>", [(1, 2), (2, 1), (1, 2)])
    sequence = build_sequence(parts, text_tokenizer)
    wide = [np.full((16, 32, 3), value, np.uint8) for value in (1, 2)]
    tall = torch.randn(2, 64)
    pixels = np.full((32, 16, 3), 3, np.uint8)
    document = Document("a", sequence, (0, 1, 2), 1)
    batch = pack([[(document, [wide[0], pixels, wide[1]])]])
    first, second = batch.pictures
    assert first.pixels.shape == (2, 16, 32, 3)
    assert first.pixels[:, 0, 0, 0].tolist() == [1, 2]
    assert first.rows.tolist() == [[0, 1], [4, 5]]
    assert second.rows.tolist() == [[2, 3]]
    mixed = pack([[(document, [wide[0], tall, wide[1]])]])
    assert torch.equal(mixed.image_tokens[2:4], tall)
    assert [group.rows.tolist() for group in mixed.pictures] == [[[0, 1], [4, 5]]]


def test_what_does_not_fit_is_named(text_tokenizer: TextTokenizer) -> None:
    (document, pictures), *_ = documents(text_tokenizer)
    with pytest.raises(ValueError, match="set/0/0 does not fit: row 0 would have"):
        pack([[(document, pictures)]], length=8)
    with pytest.raises(ValueError, match="set/0/0 has 0 pictures, its sequence 1 spans"):
        pack([[(document, [])]])
    for wrong in (torch.zeros(3, 64), np.zeros((32, 16, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"set/0/0: a picture of shape .* does not fit 2x2"):
            pack([[(document, [wrong])]])


def test_collated_rows_are_packed_rows_of_one(text_tokenizer: TextTokenizer) -> None:
    rows = documents(text_tokenizer)
    sequences = [document.sequence for document, _ in rows]
    pictures = [picture for _, pictures in rows for picture in pictures]
    padded = collate(sequences, pictures, PAD, multiple=8)
    packed = pack([[row] for row in rows], padded.ids.shape[1])
    assert padded.ids.shape[1] % 8 == 0
    for name in ("ids", "labels", "image_tokens", "condition_places", "target_rows", "documents"):
        assert torch.equal(getattr(padded, name), getattr(packed, name))
    assert padded.u is None
