"""Decoding: batched equals single, cached equals uncached, left padding changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nextstep.engine.decode import (
    DecodeSettings,
    DecodeState,
    Prompt,
    TokenSampler,
    decode_tokens,
    left_pad,
    padded_positions,
)
from nextstep.flow.guidance import CONDITIONAL, GuidanceSettings
from nextstep.flow.noise import KeyedNoise
from nextstep.flow.solvers import SOLVERS, SolverSettings
from nextstep.vae.latents import raster_coordinates
from tests.conftest import TINY, random_model

BOI, PLACE = TINY.begin_of_image_id, TINY.image_placeholder_id


def settings(
    solver: str = "ode", guidance: float = 3.0, image: float = 1.0, has_images: bool = False
) -> DecodeSettings:
    return DecodeSettings(
        (2, 3),
        SolverSettings(solver, 3),
        GuidanceSettings(guidance, image),
        has_images=has_images,
    )


def prompts(lengths: list[int], branches: list[str]) -> dict[str, list[Prompt]]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in branches:
        rows = []
        for length in lengths:
            n = length if name == CONDITIONAL else 2
            ids = torch.randint(6, 320, (n,), generator=generator).tolist()
            source = torch.randn(2, 64, generator=generator)
            rows.append(Prompt([*ids, PLACE, PLACE, BOI], [source]))
        made[name] = rows
    return made


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_batched_equals_single(solver: str) -> None:
    model, how = random_model(TINY), settings(solver)
    rows = prompts([3, 9, 5], how.branches)
    keys = [(1, 0), (1, 1), (9, 0)]
    noise = lambda k: KeyedNoise(k, how.solver.draws, 64)  # noqa: E731
    together = decode_tokens(model, rows, how, noise(keys))
    for i, key in enumerate(keys):
        one = {name: [row[i]] for name, row in rows.items()}
        alone = decode_tokens(model, one, how, noise([key]))
        assert torch.allclose(together[i], alone[0], atol=1e-4)


@pytest.mark.parametrize(("guidance", "image"), [(1.0, 1.0), (3.0, 1.5), (1.0, 2.0), (0.5, 1.0)])
def test_cached_equals_uncached(guidance: float, image: float) -> None:
    """Every token sampled from a fresh full forward pass is the one the cache gave."""
    model, how = random_model(TINY), settings("ode", guidance, image, has_images=True)
    rows = prompts([4, 7], how.branches)
    tokens = decode_tokens(model, rows, how, KeyedNoise([(0, 0), (0, 1)], 1, 64))
    noise = KeyedNoise([(0, 0), (0, 1)], 1, 64)
    flat = [row for name in how.branches for row in rows[name]]
    sampler = TokenSampler(model, how, how.branches)
    for index in range(how.tokens):
        done = tokens[:, :index].repeat(len(how.branches), 1, 1)
        ids, valid = left_pad([[*row.ids, *[PLACE] * index] for row in flat], 1)
        pictures = [
            piece for row, own in zip(flat, done, strict=True) for piece in (*row.image_tokens, own)
        ]
        hidden = model.hidden(model.embed(ids, torch.cat(pictures)), *padded_positions(valid))
        token = sampler.sample(hidden[:, -1], noise.token(index), index)
        assert torch.allclose(token, tokens[:, index], atol=1e-4)


def test_learned_positions_cached_equals_uncached() -> None:
    model, how = random_model(replace(TINY, image_position_side=4)), settings(guidance=1.0)
    row = prompts([4], how.branches)[CONDITIONAL][0]
    row = Prompt(row.ids, row.image_tokens, [(1, 2)])
    tokens = decode_tokens(model, {CONDITIONAL: [row]}, how, KeyedNoise([(0, 0)], 1, 64))
    sampler = TokenSampler(model, how, how.branches)
    whole = torch.cat((row.image_tokens[0], tokens[0]))
    noise = KeyedNoise([(0, 0)], 1, 64)
    places = torch.cat((raster_coordinates((1, 2)), raster_coordinates(how.grid)))
    for index in range(how.tokens):
        ids = torch.tensor([[*row.ids, *[PLACE] * index]])
        read = 2 + index
        hidden = model.hidden(model.embed(ids, whole[:read], places[:read]))
        token = sampler.sample(hidden[:, -1], noise.token(index), index)
        assert torch.allclose(token[0], tokens[0, index], atol=1e-4)
    with pytest.raises(ValueError, match="coordinates"):
        model.embed(ids, whole[:read])
    with pytest.raises(ValueError, match="4 rows"):
        model.embed(ids, whole[:read], places[:read] + 3)


def test_padding_does_not_reach_the_state() -> None:
    ids, valid = left_pad([[7, 8], [9, 10, 11, 12]], 1)
    assert ids.tolist() == [[1, 1, 7, 8], [9, 10, 11, 12]]
    positions, mask = padded_positions(valid)
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert mask is not None
    assert mask[0, 0, 2].tolist() == [False, False, True, False]
    assert mask[0, 0, 0].tolist() == [True, False, False, False]
    assert padded_positions(torch.ones(2, 3, dtype=torch.bool))[1] is None


def test_token_norm_is_applied_before_feeding_back() -> None:
    model, how = random_model(TINY), settings()
    fed: list[torch.Tensor] = []
    step = DecodeState.step

    def watch(self: DecodeState, tokens: torch.Tensor) -> torch.Tensor:
        fed.append(tokens)
        return step(self, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodeState, "step", watch)
        tokens = decode_tokens(model, prompts([3], how.branches), how, KeyedNoise([(0, 0)], 1, 64))
    assert torch.allclose(tokens.mean(-1), torch.zeros(1, 6), atol=1e-5)
    assert torch.equal(fed[0][0], tokens[0, 0])
    assert len(fed) == how.tokens - 1  # the last token is never fed


def test_tokens_that_are_not_finite_are_an_error() -> None:
    model, how = random_model(TINY), settings(guidance=1.0)
    with torch.no_grad():
        model.image_head.net.final_layer.linear.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="token 0 is not a finite number"):
        decode_tokens(model, prompts([3], how.branches), how, KeyedNoise([(0, 0)], 1, 64))


def test_progress_is_told_after_every_token() -> None:
    model, how = random_model(TINY), settings(guidance=1.0)
    told: list[tuple[int, tuple[int, ...]]] = []
    decode_tokens(
        model,
        prompts([3], how.branches),
        how,
        KeyedNoise([(0, 0)], 1, 64),
        lambda done, tokens: told.append((done, tuple(tokens.shape))),
    )
    assert told == [(n, (1, n, 64)) for n in range(1, 7)]
