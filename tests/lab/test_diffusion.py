"""Diffusion inside the sequence: noise, masks, caches and what it samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextstep.data.documents import Document
from nextstep.flow.solvers import SolverSettings
from nextstep.lab.paradigms.diffusion import (
    CLEAN,
    DiffusionModel,
    DiffusionStage,
    Level,
    noised_states,
    picture_numbers,
)
from nextstep.lab.paradigms.sampling import DiffusionSampler, DrawSettings, draw, read_prompts
from nextstep.text.sequence import Picture, Sequence, Text, build_sequence
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.latents import token_norm
from tests.conftest import TINY

GRID = (2, 3)
N = 6
CONFIG = TINY.with_values(image_position_side=4)
KINDS: list[tuple[Level, bool]] = [("picture", True), ("picture", False), ("token", False)]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["a red apple", "two blue cats"], vocab_size=300)


def model_of(seed: int = 0) -> DiffusionModel:
    torch.manual_seed(seed)
    model = DiffusionModel(CONFIG)
    model.reset_parameters()
    for parameter in model.image_head.parameters():  # the last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def document(tokenizer: TextTokenizer, text: str, number: int, read: bool = False) -> Document:
    parts = [Picture(GRID, False), Text(text)] if read else [Text(text), Picture(GRID)]
    return Document(f"doc {number}", build_sequence(parts, tokenizer), (0,), number)


def tokens(number: int) -> Tensor:
    draws = torch.randn(N, CONFIG.token_size, generator=torch.Generator().manual_seed(number))
    return token_norm(draws)


def stage_of(kind: tuple[Level, bool], length: int = 96) -> DiffusionStage:
    return DiffusionStage(CONFIG, level=kind[0], both_directions=kind[1], row_length=length)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_losses_equal_those_of_each_document_alone(
    kind: tuple[Level, bool], tokenizer: TextTokenizer
) -> None:
    model, stage = model_of(), stage_of(kind)
    documents = [
        (document(tokenizer, "a red apple", 1), [tokens(1)]),
        (document(tokenizer, "two blue cats", 2), [tokens(2)]),
        (document(tokenizer, "a cat", 3, read=True), [tokens(3)]),
    ]
    sums = {"lm_loss": 0.0, "im_loss": 0.0}
    for one in documents:
        prepared = stage.prepare(stage.batch_of([[one]]), "cpu")
        for name, value in stage.losses(model, prepared).items():
            sums[name] += float(value)
    packed = stage.prepare(stage.batch_of([documents[:2], documents[2:]]), "cpu")
    for name, value in stage.losses(model, packed).items():
        assert float(value) == pytest.approx(sums[name], rel=1e-4)


def test_one_level_a_picture_and_none_where_it_is_only_read(tokenizer: TextTokenizer) -> None:
    stage = stage_of(("picture", True))
    rows = [
        [(document(tokenizer, "a red apple", n), [tokens(n)]) for n in (1, 2)],
        [(document(tokenizer, "a cat", 3, read=True), [tokens(3)])],
    ]
    batch = stage.prepare(stage.batch_of(rows), "cpu")
    first, second, shown = batch.times.split(N)
    assert len(first.unique()) == len(second.unique()) == 1 and first[0] != second[0]
    assert bool((shown == CLEAN).all()) and torch.equal(batch.context[2 * N :], tokens(3))
    assert len(batch.targets) == 2 * N
    expected = first[0] * tokens(1) + (1 - first[0]) * batch.noise[:N]
    assert torch.allclose(batch.context[:N], expected, atol=1e-6)


def test_levels_by_token_differ_and_shares_of_clean_tokens_are_uniform(
    tokenizer: TextTokenizer,
) -> None:
    stage = stage_of(("token", False), length=2048)
    rows = [
        [(document(tokenizer, "a cat", 100 * r + n), [tokens(n)]) for n in range(50)]
        for r in range(4)
    ]
    batch = stage.prepare(stage.batch_of(rows), "cpu")
    clean = (batch.times == CLEAN).view(-1, N).float().mean(1)
    assert float(clean.mean()) == pytest.approx(0.5, abs=0.06)
    assert float((clean == 1).float().mean()) == pytest.approx(1 / (N + 1), abs=0.07)
    noised = batch.times[batch.times != CLEAN]
    assert len(noised) == len(batch.targets) and len(noised.unique()) == len(noised)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_flows_as_the_mask_says(
    kind: tuple[Level, bool], tokenizer: TextTokenizer
) -> None:
    """What the state at one image token depends on, by the gradient of what is read."""
    model, stage = model_of(), stage_of(kind)
    batch = stage.prepare(
        stage.batch_of([[(document(tokenizer, "a red apple", 1), [tokens(1)])]]), "cpu"
    )
    context = batch.context.clone().requires_grad_()
    noised = type(batch)(**{**vars(batch), "context": context})
    states = noised_states(model, noised)
    first = int(batch.batch.image_places[0])
    text, third = states[first - 1].square().sum(), states[first + 2].square().sum()
    (from_text,) = torch.autograd.grad(text, context, retain_graph=True)
    (from_third,) = torch.autograd.grad(third, context)
    assert not bool(from_text.any())
    expected = [True] * N if kind[1] else [True] * 3 + [False] * 3
    assert (from_third.abs().sum(1) > 0).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_cached_velocity_equals_that_of_the_packed_sequence(
    kind: tuple[Level, bool], tokenizer: TextTokenizer
) -> None:
    """A step of sampling behind a cached prompt is the training's forward pass."""
    model, stage = model_of(), stage_of(kind)
    given = document(tokenizer, "two blue cats", 5)
    batch = stage.prepare(stage.batch_of([[(given, [tokens(5)])]]), "cpu")
    if kind[0] == "token":  # one noised token behind clean ones
        times = torch.tensor([CLEAN] * 3 + [0.3] + [CLEAN] * 2)
        batch = type(batch)(**{**vars(batch), "times": times, "context": tokens(5)})
    places = batch.batch.image_places
    expected = noised_states(model, batch)[places]
    sampler = DiffusionSampler(model, *kind)
    prompts = [(given.sequence.prompt(), []), (document(tokenizer, "a", 1).sequence.prompt(), [])]
    rows = read_prompts(sampler, prompts, N)
    embedded = model.embed_noised(batch.context, batch.times, batch.batch.coordinates)
    both = torch.stack([embedded, torch.randn_like(embedded)])
    if kind[0] == "picture":
        states = rows.read(both, keep=False, both_directions=kind[1])[0]
        again = rows.read(both, keep=False, both_directions=kind[1])[0]
        assert torch.equal(states, again) and rows.cache.length == rows.width
        assert torch.allclose(states, expected, atol=1e-5)
        return
    before = [rows.read(both[:, i : i + 1], keep=True)[0, 0] for i in range(3)]
    rows.read(torch.randn(2, 1, CONFIG.hidden_size), keep=False)  # a dropped step leaves no trace
    state = rows.read(both[:, 3:4], keep=False)[0, 0]
    assert torch.allclose(torch.stack([*before, state]), expected[:4], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_does_not_depend_on_the_prompts_beside_it(
    kind: tuple[Level, bool], tokenizer: TextTokenizer
) -> None:
    sampler = DiffusionSampler(model_of(), *kind)
    settings = DrawSettings(GRID, SolverSettings("ab2", 3), guidance=2.0)
    prompts = [
        (document(tokenizer, text, 1).sequence.prompt(), [])
        for text in ("a red apple", "two blue cats and a red apple", "a")
    ]
    empty = (build_sequence([Picture(GRID)], tokenizer).prompt(), [])
    together, rows = draw(sampler, prompts, empty, [(7, 0), (7, 1), (7, 2)], settings)
    for index, prompt in enumerate(prompts):
        alone, _ = draw(sampler, [prompt], empty, [(7, index)], settings)
        assert torch.allclose(alone[0], together[index], atol=1e-4)
    assert not torch.allclose(together[0], together[1])
    assert torch.allclose(together.mean(-1), torch.zeros(3, N), atol=1e-5)
    calls = 4 * N if kind[0] == "picture" else N * 4  # ab2 asks once more at its first step
    assert rows.computed == calls + N  # and the finished tokens are read once, to be kept


@pytest.mark.parametrize("kind", KINDS)
def test_text_behind_a_drawn_picture_reads_it_clean(
    kind: tuple[Level, bool], tokenizer: TextTokenizer
) -> None:
    """The cache behind a drawn picture is that of a prompt which shows it."""
    sampler = DiffusionSampler(model_of(), *kind)
    given = document(tokenizer, "a red apple", 1).sequence
    empty = (build_sequence([Picture(GRID)], tokenizer).prompt(), [])
    settings = DrawSettings(GRID, SolverSettings("ode", 2))
    made, rows = draw(sampler, [(given.prompt(), [])], empty, [(3, 0)], settings)
    end = given.images[0].start + N
    shown = Sequence(given.ids[:end], given.labels[:end], given.images)
    whole = read_prompts(sampler, [(shown, [made[0]])], 0)
    length = rows.cache.length
    assert length == whole.cache.length == end
    assert torch.allclose(
        rows.cache.store[..., :length, :], whole.cache.store[..., :length, :], atol=1e-5
    )


class Known(DiffusionModel):
    """Its velocity is that of a known picture, so a perfect solver must draw it."""

    target: Tensor

    def velocity(self, x: Tensor, times: Tensor, hidden: Tensor) -> Tensor:
        t = times[:, None]
        target = self.target.repeat(len(x) // len(self.target), 1)
        return (target - x) / (1 - t)


def test_sampling_follows_the_velocity_to_a_known_picture(tokenizer: TextTokenizer) -> None:
    model = Known(CONFIG)
    model.reset_parameters()
    model.eval().requires_grad_(False).target = tokens(9)
    prompt = (document(tokenizer, "a", 1).sequence.prompt(), [])
    for solver in ("ode", "midpoint"):
        settings = DrawSettings(GRID, SolverSettings(solver, 4))
        made, _ = draw(
            DiffusionSampler(model, "picture", True), [prompt] * 2, prompt, [(0, 0), (1, 0)],
            settings,
        )  # fmt: skip
        assert torch.allclose(made, tokens(9).expand(2, -1, -1), atol=1e-4)


def test_picture_numbers_count_over_the_batch(tokenizer: TextTokenizer) -> None:
    stage = stage_of(("picture", True))
    batch = stage.batch_of([[(document(tokenizer, "a", n), [tokens(n)]) for n in (1, 2)], []])
    numbers = picture_numbers(batch)
    assert numbers.shape == batch.ids.shape and int((numbers == 1).sum()) == N
    assert bool((numbers[1] == -1).all()) and bool(
        ((numbers >= 0) == (batch.ids == CONFIG.image_placeholder_id)).all()
    )


def test_levels_by_token_cannot_see_both_directions() -> None:
    with pytest.raises(ValueError, match="one by one"):
        DiffusionStage(CONFIG, level="token", both_directions=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_out_layers_of_training_give_the_same_losses(
    kind: tuple[Level, bool], tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compile: true` takes another way through layers and flow head."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: asked.append(f) or f)
    monkeypatch.setattr("nextstep.model.nextstep.can_compile", lambda device: True)
    rows = [[(document(tokenizer, "a red apple", n), [tokens(n)]) for n in (1, 2)]]
    found = []
    for compiled in (False, True):
        model, stage = model_of().requires_grad_(), stage_of(kind)
        stage.compile = compiled
        losses = stage.losses(model, stage.prepare(stage.batch_of(rows), "cpu"))
        sum(losses.values()).backward()
        gradient = model.layers[0].self_attn.q_proj.weight.grad
        found.append((losses, gradient))
    assert asked
    for name, value in found[0][0].items():
        assert float(value.detach()) == pytest.approx(float(found[1][0][name].detach()), rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)
