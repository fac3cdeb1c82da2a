"""Codes of image tokens: rounding and back, learning, and sampling with a cache."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextstep.data.documents import Document
from nextstep.flow.guidance import CONDITIONAL
from nextstep.lab.paradigms.discrete import (
    CodedModel,
    CodedStage,
    DiscreteModel,
    DiscreteStage,
    code_loss,
    codes_of,
)
from nextstep.lab.paradigms.fsq import (
    FSQ,
    LEVELS,
    QuantizerConfig,
    QuantizerStage,
    TokenGroups,
    TokenQuantizer,
    by_grid,
)
from nextstep.lab.paradigms.sampling import (
    DiscreteSampler,
    DrawSettings,
    draw,
    read_prompts,
    write,
)
from nextstep.model.nextstep import NextStepModel
from nextstep.text.sequence import Picture, Text, build_sequence
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.stages.pretrain import PretrainStage, states
from nextstep.vae.latents import raster_coordinates, token_norm
from tests.conftest import TINY

GRID = (2, 3)
N = 6
CONFIG = TINY.with_values(image_position_side=4)
SMALL = QuantizerConfig(CONFIG.token_size, (3, 4, 2), width=32, blocks=1)
CODES = 24


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["a red apple", "two blue cats"], vocab_size=300)


def quantizer_of(config: QuantizerConfig = SMALL) -> TokenQuantizer:
    torch.manual_seed(1)
    return TokenQuantizer(config).eval().requires_grad_(False)


def discrete_model(seed: int = 0) -> DiscreteModel:
    torch.manual_seed(seed)
    model = DiscreteModel(CONFIG, CODES)
    model.reset_parameters()
    torch.nn.init.normal_(model.image_code_head.weight, std=0.5)
    return model.eval().requires_grad_(False)


def tokens(number: int, count: int = N) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return token_norm(torch.randn(count, CONFIG.token_size, generator=generator))


def document(tokenizer: TextTokenizer, text: str, number: int) -> Document:
    sequence = build_sequence([Text(text), Picture(GRID)], tokenizer)
    return Document(f"doc {number}", sequence, (0,), number)


@settings(max_examples=30)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=5))
def test_every_code_comes_back_and_lies_on_the_levels(levels: list[int]) -> None:
    fsq = FSQ(levels)
    assert fsq.codes == math.prod(levels)
    every = torch.arange(min(fsq.codes, 3000))
    values = fsq.values(every)
    assert torch.equal(fsq.indices(values), every)
    assert float(values.abs().max()) <= 1
    assert len(values.unique(dim=0)) == len(every)


@given(st.integers(2, 9))
def test_rounding_reaches_every_level_and_nothing_else(level: int) -> None:
    fsq = FSQ([level])
    swept = fsq(torch.linspace(-9, 9, 2001)[:, None])
    assert torch.equal(fsq.indices(swept).unique(), torch.arange(level))
    assert torch.equal(fsq.values(fsq.indices(swept)), swept)


def test_rounding_passes_gradients_as_the_identity() -> None:
    z = torch.randn(50, 5, requires_grad=True)
    fsq = FSQ(LEVELS)
    fsq(z).sum().backward()
    # The derivative of the squeeze alone.
    free = z.detach().clone().requires_grad_()
    half = (fsq.levels - 1) * (1 + 1e-3) / 2
    (torch.tanh(free) * half / (fsq.levels // 2)).sum().backward()
    assert torch.allclose(z.grad, free.grad, atol=1e-6)


def test_codes_do_not_depend_on_the_batch(tokenizer: TextTokenizer) -> None:
    quantizer = quantizer_of()
    pictures = torch.stack([tokens(n) for n in range(4)])
    codes = quantizer.encode(pictures, GRID)
    assert codes.shape == (4, N) and int(codes.max()) < CODES
    for own, alone in zip(codes, pictures, strict=True):
        assert torch.equal(quantizer.encode(alone[None], GRID)[0], own)
    # What is decoded from codes is what the whole network gives.
    assert torch.allclose(quantizer.decode(codes, GRID), quantizer(pictures, GRID), atol=1e-5)
    stage = DiscreteStage(CONFIG, quantizer, row_length=96)
    rows = [[(document(tokenizer, "a", n), [tokens(n)])] for n in range(4)]
    assert torch.equal(codes_of(quantizer, stage.batch_of(rows)), codes.flatten())


def test_quantizer_learns_to_give_tokens_back() -> None:
    torch.manual_seed(0)
    quantizer = TokenQuantizer(QuantizerConfig(CONFIG.token_size, (8, 8, 8), 32, 1))
    drawn = torch.stack([tokens(n) for n in range(8)])
    stage = QuantizerStage()
    optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
    found = []
    batch = TokenGroups({GRID: drawn})
    for _ in range(30):
        loss = stage.losses(quantizer, batch)["token_error"] / stage.counts(batch)["token_error"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.7 * found[0]


def test_pictures_are_sorted_by_their_grid() -> None:
    grids = [(2, 3), (1, 4), (2, 3)]
    coordinates = torch.cat([raster_coordinates(grid) for grid in grids])
    values = torch.arange(len(coordinates))[:, None].float()
    found = by_grid(values, coordinates)
    assert found[2, 3][..., 0].tolist() == [list(range(6)), list(range(10, 16))]
    assert found[1, 4][..., 0].tolist() == [list(range(6, 10))]


def test_packed_cross_entropy_equals_that_of_each_document_alone(
    tokenizer: TextTokenizer,
) -> None:
    model, stage = discrete_model(), DiscreteStage(CONFIG, quantizer_of(), row_length=96)
    documents = [(document(tokenizer, "a red apple", n), [tokens(n)]) for n in (1, 2, 3)]
    alone = [stage.prepare(stage.batch_of([[one]]), "cpu") for one in documents]
    sums = [stage.losses(model, batch) for batch in alone]
    packed = stage.prepare(stage.batch_of([documents[:2], documents[2:]]), "cpu")
    for name, value in stage.losses(model, packed).items():
        assert float(value) == pytest.approx(sum(float(one[name]) for one in sums), rel=1e-4)
    assert stage.counts(packed)["im_loss"] == 3 * N


def test_a_code_sees_what_stands_before_it_and_no_more(tokenizer: TextTokenizer) -> None:
    model, stage = discrete_model(), DiscreteStage(CONFIG, quantizer_of(), row_length=96)
    batch = stage.prepare(
        stage.batch_of([[(document(tokenizer, "a red apple", 1), [tokens(1)])]]), "cpu"
    )
    before = model.code_logits(states(model, batch)[batch.batch.condition_places])
    changed = batch.context.clone()
    changed[3] = (changed[3] + 1) % CODES
    moved = type(batch)(**{**vars(batch), "context": changed})
    after = model.code_logits(states(model, moved)[batch.batch.condition_places])
    assert torch.equal(before[:4], after[:4]) and not torch.allclose(before[4], after[4])


def test_cached_sampling_equals_the_packed_sequence(tokenizer: TextTokenizer) -> None:
    """The likeliest codes, drawn one by one with a cache, are the likeliest of the whole."""
    model, quantizer = discrete_model(), quantizer_of()
    sampler = DiscreteSampler(model, quantizer)
    prompts = [
        (document(tokenizer, text, 1).sequence.prompt(), []) for text in ("a red apple", "a")
    ]
    settings = DrawSettings(GRID, temperature=1e-4)
    rows = {CONDITIONAL: read_prompts(sampler, prompts, N)}
    codes = sampler.draw_codes(rows, [(0, 0), (0, 1)], settings)
    assert rows[CONDITIONAL].computed == N
    for number, (prompt, _) in enumerate(prompts):
        ids = torch.tensor([[*prompt.ids, *[CONFIG.image_placeholder_id] * N]])
        embedded = model.embed(ids, codes[number], raster_coordinates(GRID))
        hidden = model.hidden(embedded)[0, len(prompt) - 1 : -1]
        assert torch.equal(model.code_logits(hidden).argmax(-1), codes[number])


def test_codes_are_drawn_from_the_distribution_of_the_softmax(tokenizer: TextTokenizer) -> None:
    """With a model that knows one distribution, frequencies approach it (chi-square)."""
    model = discrete_model()
    chances = torch.softmax(torch.linspace(0, 2, CODES), 0)

    class Fixed(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return chances.log().expand(*hidden.shape[:-1], CODES)

    model.image_code_head = Fixed()
    sampler = DiscreteSampler(model, quantizer_of())
    prompt = (document(tokenizer, "a", 1).sequence.prompt(), [])
    count = 400
    rows = {CONDITIONAL: read_prompts(sampler, [prompt] * count, N)}
    codes = sampler.draw_codes(rows, [(5, n) for n in range(count)], DrawSettings(GRID))
    seen = torch.bincount(codes.flatten(), minlength=CODES).float()
    expected = chances * codes.numel()
    statistic = float(((seen - expected) ** 2 / expected).sum())
    assert statistic < 49.7  # 0.999 quantile of chi-square with 23 degrees of freedom


def test_a_drawn_picture_does_not_depend_on_its_neighbours(tokenizer: TextTokenizer) -> None:
    sampler = DiscreteSampler(discrete_model(), quantizer_of())
    prompts = [
        (document(tokenizer, text, 1).sequence.prompt(), []) for text in ("a red apple", "a")
    ]
    empty = (build_sequence([Picture(GRID)], tokenizer).prompt(), [])
    settings = DrawSettings(GRID, guidance=1.5)
    together, _ = draw(sampler, prompts, empty, [(7, 0), (7, 1)], settings)
    alone, _ = draw(sampler, prompts[1:], empty, [(7, 1)], settings)
    assert torch.allclose(alone[0], together[1], atol=1e-5)
    assert together.shape == (2, N, CONFIG.token_size)


def test_written_text_is_the_likeliest_of_the_whole_sequence(tokenizer: TextTokenizer) -> None:
    model = discrete_model()
    sampler = DiscreteSampler(model, quantizer_of())
    shown = [Picture(GRID, False), Text("how many?")]
    prompts = [
        (build_sequence(shown, tokenizer, end=False), [tokens(1)]),
        (build_sequence([Picture(GRID, False), Text("a")], tokenizer, end=False), [tokens(2)]),
    ]
    said = write(sampler, prompts, 5)
    codes = sampler.quantizer.encode(torch.stack([tokens(1), tokens(2)]), GRID)
    for (sequence, _), own, ids in zip(prompts, codes, said, strict=True):
        whole = torch.tensor([[*sequence.ids, *ids]])
        embedded = model.embed(whole, own, raster_coordinates(GRID))
        likeliest = model.text_logits(model.hidden(embedded))[0, len(sequence) - 1 :].argmax(-1)
        assert likeliest[: len(ids)].tolist() == ids
        assert len(ids) == 5 or int(likeliest[len(ids)]) == CONFIG.eos_id


def test_cross_entropy_beside_flow_matching_changes_neither_of_the_other_losses(
    tokenizer: TextTokenizer,
) -> None:
    torch.manual_seed(0)
    plain = NextStepModel(CONFIG)
    plain.reset_parameters()
    coded = CodedModel(CONFIG, CODES)
    coded.reset_parameters()
    coded.load_state_dict(plain.state_dict(), strict=False)
    rows = [[(document(tokenizer, "a red apple", 1), [tokens(1)])]]
    options = {"row_length": 64, "head_batch_mul": 2}
    own = CodedStage(CONFIG, quantizer_of(), 0.1, **options)
    base = PretrainStage(CONFIG, **options)
    batch = own.prepare(own.batch_of(rows), "cpu")
    found = own.losses(coded, batch)
    expected = base.losses(plain, base.prepare(base.batch_of(rows), "cpu"))
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    hidden = states(coded, batch)[batch.batch.condition_places]
    assert torch.equal(found["code_loss"], code_loss(coded, hidden, batch.codes))
    assert own.loss_weights["code_loss"] == 0.1 and own.counts(batch)["code_loss"] == N
