"""Attention inside documents: every way gives the same, and nothing crosses over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextstep.model.packed_attention import Documents, attend_documents
from tests.conftest import TINY, random_model

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
WAYS = ("groups", "flex", "mask")
LENGTHS = [[5, 1, 40, 18], [33, 2, 2], [64], [17, 17, 16]]
ROW = 64


def numbers(lengths: list[list[int]] = LENGTHS) -> Tensor:
    rows = torch.full((len(lengths), ROW), -1)
    for row, own in zip(rows, lengths, strict=True):
        row[: sum(own)] = torch.repeat_interleave(torch.arange(len(own)), torch.tensor(own))
    return rows


def positions(rows: Tensor) -> Tensor:
    place = torch.zeros_like(rows)
    for s in range(1, rows.shape[1]):
        place[:, s] = torch.where(rows[:, s] == rows[:, s - 1], place[:, s - 1] + 1, 0)
    return place


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_three_attention_kinds_agree(key_heads: int) -> None:
    torch.manual_seed(0)
    rows = numbers()
    real = rows >= 0
    q = torch.randn(4, ROW, 4, 8)
    k, v = (torch.randn(4, ROW, key_heads, 8) for _ in range(2))
    weight = torch.randn(4, ROW, 4, 8) * real[..., None, None]
    outputs, gradients = [], []
    for attention in WAYS:
        # On a CPU torch's flex attention has no backward pass.
        inputs = [x.clone().requires_grad_(attention != "flex") for x in (q, k, v)]
        out = attend_documents(*inputs, Documents(rows, attention=attention))
        assert bool(torch.isfinite(out).all())
        outputs.append(out[real])
        if attention != "flex":
            gradients.append(torch.autograd.grad((out * weight).sum(), inputs))
    assert all(torch.allclose(outputs[0], other, atol=1e-6) for other in outputs[1:])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, atol=2e-6)


@pytest.mark.parametrize("attention", WAYS)
def test_packed_hidden_equals_each_document_alone(attention: str) -> None:
    model = random_model(TINY)
    rows = numbers()
    embeddings = torch.randn(4, ROW, TINY.hidden_size)
    packed = model.hidden(
        embeddings, positions(rows), documents=Documents(rows, attention=attention)
    )
    for row, own in enumerate(LENGTHS):
        first = 0
        for length in own:
            here = slice(first, first + length)
            alone = model.hidden(embeddings[row : row + 1, here])[0]
            assert torch.allclose(packed[row, here], alone, atol=1e-6)
            first += length


@pytest.mark.parametrize(
    ("attention", "training"),
    [*((attention, False) for attention in WAYS), ("groups", True), ("mask", True)],
)
def test_another_document_changes_not_one_bit(attention: str, training: bool) -> None:
    model = random_model(TINY).requires_grad_(training)
    rows = numbers()
    documents, place = Documents(rows, attention=attention), positions(rows)
    embeddings = torch.randn(4, ROW, TINY.hidden_size)
    before = model.hidden(embeddings, place, documents=documents)
    changed = embeddings.clone()
    changed[0, 6:46] = torch.randn(40, TINY.hidden_size)
    after = model.hidden(changed, place, documents=documents)
    others = rows >= 0
    others[0, 6:46] = False
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[0, 6:46], after[0, 6:46])


def test_not_even_what_is_no_number_crosses_over() -> None:
    model = random_model(TINY).requires_grad_(True)
    rows = numbers()
    embeddings = torch.randn(4, ROW, TINY.hidden_size)
    embeddings[0, 6:46] = float("nan")
    hidden = model.hidden(embeddings, positions(rows), documents=Documents(rows))
    others = rows >= 0
    others[0, 6:46] = False
    assert bool(torch.isfinite(hidden[others]).all())


def test_gradient_checkpointing_changes_nothing() -> None:
    model = random_model(TINY).train().requires_grad_(True)
    rows = numbers()
    embeddings = torch.randn(4, ROW, TINY.hidden_size)
    gradients = []
    for kept in (False, True):
        model.gradient_checkpointing = kept
        model.zero_grad()
        hidden = model.hidden(embeddings, positions(rows), documents=Documents(rows))
        hidden[rows >= 0].square().mean().backward()
        gradients.append(model.layers[0].self_attn.q_proj.weight.grad.clone())
    assert torch.equal(*gradients)


def test_groups_hold_every_position_once_and_little_else() -> None:
    documents = Documents(numbers())
    targets = torch.cat([group.targets for group in documents.groups])
    held = targets[targets < documents.numbers.numel()]
    assert torch.equal(held.sort().values, (documents.numbers.flatten() >= 0).nonzero().flatten())
    assert documents.looked_at == sum(n * (n + 1) / 2 for own in LENGTHS for n in own)
    shapes = [group.shape for group in documents.groups]
    assert shapes == [(3, 64), (3, 32), (5, 16)]


def test_rows_without_a_document() -> None:
    model = random_model(TINY)
    rows = torch.full((2, 8), -1)
    hidden = model.hidden(
        torch.randn(2, 8, TINY.hidden_size), rows.clamp(min=0), documents=Documents(rows)
    )
    assert bool(torch.isfinite(hidden).all())


def test_the_attention_kind_follows_the_device() -> None:
    assert Documents(numbers()).attention == "groups"
    assert Documents(numbers(), "meta").attention == "flex"


PICTURES = [(0, 8, 20), (0, 24, 30), (1, 4, 14), (3, 17, 30)]
"""(row, first, end) of stretches that are pictures, each inside one document of `LENGTHS`."""


def picture_numbers() -> Tensor:
    found = torch.full((4, ROW), -1)
    for number, (row, first, end) in enumerate(PICTURES):
        found[row, first:end] = number
    return found


def test_three_attention_kinds_see_pictures_in_both_directions() -> None:
    torch.manual_seed(0)
    rows = numbers()
    real = rows >= 0
    q, weight = (torch.randn(4, ROW, 4, 8) for _ in range(2))
    k, v = (torch.randn(4, ROW, 2, 8) for _ in range(2))
    outputs, gradients = [], []
    for attention in WAYS:
        inputs = [x.clone().requires_grad_(attention != "flex") for x in (q, k, v)]
        documents = Documents(rows, attention=attention, pictures=picture_numbers())
        out = attend_documents(*inputs, documents)
        assert bool(torch.isfinite(out).all())
        outputs.append(out[real])
        if attention != "flex":
            loss = (out * weight * real[..., None, None]).sum()
            gradients.append(torch.autograd.grad(loss, inputs))
    assert all(torch.allclose(outputs[0], other, atol=1e-6) for other in outputs[1:])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, atol=2e-6)


@pytest.mark.parametrize("attention", WAYS)
def test_a_picture_token_sees_its_whole_picture_and_nothing_later(attention: str) -> None:
    rows, pictures = numbers(), picture_numbers()
    documents = Documents(rows, attention=attention, pictures=pictures)
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, ROW, 2, 8) for _ in range(3))
    before = attend_documents(q, k, v, documents)
    row, first, end = PICTURES[0]
    changed = v.clone()
    changed[row, end - 1] += 1  # the picture's last token
    moved = (attend_documents(q, k, changed, documents) - before).abs().amax((2, 3))[row] > 0
    assert bool(moved[first:end].all()) and not bool(moved[:first].any())
    changed = v.clone()
    changed[row, end] += 1  # the position behind the picture
    moved = (attend_documents(q, k, changed, documents) - before).abs().amax((2, 3))[row] > 0
    assert not bool(moved[:end].any())


def test_pairs_inside_pictures_are_counted() -> None:
    documents = Documents(numbers(), pictures=picture_numbers())
    assert documents.looked_at == int(documents.mask[numbers()[:, None] >= 0].sum())
