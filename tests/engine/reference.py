"""Tokens of a picture from whole passes without a cache: what every backend must give."""

from __future__ import annotations

import torch
from torch import Tensor

from nextstep.engine.sequence import ImageSequence
from nextstep.flow.guidance import combine
from nextstep.flow.noise import KeyedNoise
from nextstep.flow.solvers import solve
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import raster_coordinates, token_norm


@torch.inference_mode()
def reference_tokens(model: NextStepModel, job: ImageSequence) -> Tensor:
    """[N, D] of a job, every token from a fresh pass over all that stands before it."""
    how, config = job.decode, model.config
    noise = job.noise or KeyedNoise([job.key], how.solver.draws, config.token_size)
    tokens = torch.empty(0, config.token_size)
    for index in range(how.tokens):
        draws = noise.token(index)[:, 0]
        known = job.given.at(index) if job.given else None
        token = known if known is not None else _sampled(model, job, tokens, draws)
        tokens = torch.cat((tokens, token[None]))
    return tokens


def _sampled(model: NextStepModel, job: ImageSequence, tokens: Tensor, draws: Tensor) -> Tensor:
    how, index = job.decode, len(tokens)
    states = torch.cat([_state(model, job, name, tokens) for name in how.branches])
    condition = model.image_condition(states)
    shares = how.guidance.weights(index, how.tokens, how.has_images)

    def velocity(x: Tensor, t: float) -> Tensor:
        rows = x.expand(len(states), -1)
        made = model.image_head(rows, torch.full((len(states),), t), condition)
        return combine(made[:, None], how.branches, shares)[0]

    token = solve(velocity, iter(draws).__next__, how.solver.at(index, how.tokens))
    return token_norm(token) if how.token_norm else token


def _state(model: NextStepModel, job: ImageSequence, branch: str, tokens: Tensor) -> Tensor:
    """[1, E] behind a branch's prompt and the tokens so far."""
    prompt = job.prompts[branch]
    ids = [*prompt.ids, *[model.config.image_placeholder_id] * len(tokens)]
    places = [*map(raster_coordinates, prompt.grids), raster_coordinates(job.decode.grid)]
    known = torch.cat([*prompt.image_tokens, tokens])
    coordinates = torch.cat(places)[: len(known)] if model.config.image_position_side else None
    embedded = model.embed(torch.tensor([ids]), known if len(known) else None, coordinates)
    return model.hidden(embedded)[:, -1]
