"""What each token of a finished picture tells about itself: how sure the model was of it.

The picture's own tokens are read once more, as when they were sampled, so the states that
each was sampled from are the very same. From each state the token is sampled again with other
noise: where the samples agree the text and the tokens before have decided, where they differ
chance has.

Legend: N tokens, D values per token, E hidden size, b branches.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextstep.engine.backends.base import Place, SampleRequest
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL
from nextstep.flow.noise import KeyedNoise
from nextstep.flow.solvers import request_times
from nextstep.vae.latents import raster_coordinates

if TYPE_CHECKING:
    from nextstep.engine.engine import Engine
    from nextstep.engine.sequence import ImageSequence
    from nextstep.engine.state import PictureState

MOST_SAMPLES = 16
AT_ONCE = 8
"""Tokens that are measured between two yields."""


def measure(
    engine: Engine, state: PictureState, noise_samples: int = 4
) -> Generator[None, None, dict[str, Any]]:
    """Measure every token that a state holds, some at a time.

    Args:
        engine: that made the picture.
        state: of the picture.
        noise_samples: noise samples per token, 2 to 16.

    Yields:
        None, often, so that other work can go on between.

    Returns:
        Plain values: `rows` and `columns` of the grid, `tokens` (how many there are),
        `noise_samples`, and for each token in raster order:
        `token_std`: standard deviation over the samples, root mean square over the values of the
        token, which have about unit variance; 0 is certain.
        `guidance_delta`: root mean square distance between the token with guidance and without it
        from the same noise; 0 where guidance changes nothing.
        `guidance`: its scale at the token.
        `head_calls`: evaluations of the flow head, per branch.
        `fixed`: whether the token was taken from another picture instead of sampled.

    Raises:
        NextStepError: for a number of samples out of range, a state of another model, or an empty
            one.
    """
    if not 2 <= noise_samples <= MOST_SAMPLES:
        raise NextStepError(f"noise_samples must be 2 to {MOST_SAMPLES}, not {noise_samples}")
    state.fingerprint.check(engine.fingerprint)
    count = len(state.tokens)
    if not count:
        raise NextStepError("the picture has no tokens yet")
    request = state.request
    limit = engine.model.config.max_position_embeddings
    sequence = request.sequence(engine.text_tokenizer, limit)
    how = sequence.decode
    hidden = yield from _hidden(engine, sequence, state.tokens)
    noise = [
        KeyedNoise([(request.seed, 2**40 + draw)], how.solver.draws, state.tokens.shape[-1])
        for draw in range(noise_samples)
    ]
    plain = {name: float(name == CONDITIONAL) for name in how.branches}
    token_std: list[float] = []
    guidance_delta: list[float] = []
    for first in range(0, count, AT_ONCE):
        asked = []
        for index in range(first, min(count, first + AT_ONCE)):
            own = [source.token(index)[:, 0] for source in noise]
            weights = how.guidance.weights(index, how.tokens, how.has_images)
            solver = how.solver.at(index, how.tokens)
            for stream, mixed in [*((one, weights) for one in own), (own[0], plain)]:
                asked.append(
                    SampleRequest(
                        hidden[:, index], stream[: solver.draws], solver, tuple(how.branches),
                        mixed, how.token_norm,
                    )
                )  # fmt: skip
        made = torch.stack(engine.backend.sample(asked)).view(
            -1, noise_samples + 1, state.tokens.shape[-1]
        )
        token_std += made[:, :noise_samples].std(dim=1).square().mean(-1).sqrt().tolist()
        guidance_delta += (made[:, 0] - made[:, noise_samples]).square().mean(-1).sqrt().tolist()
        yield
    kept = sequence.given
    fixed = [kept is not None and kept.is_given(i) for i in range(count)]
    return {
        "rows": request.grid[0],
        "columns": request.grid[1],
        "tokens": count,
        "noise_samples": noise_samples,
        "token_std": [round(value, 4) for value in token_std],
        "guidance_delta": [round(value, 4) for value in guidance_delta],
        "guidance": [round(how.guidance.at(i, how.tokens)[0], 4) for i in range(count)],
        "head_calls": [len(request_times(how.solver.at(i, how.tokens))) for i in range(count)],
        "fixed": fixed,
    }


@torch.inference_mode()
def _hidden(
    engine: Engine, sequence: ImageSequence, tokens: Tensor
) -> Generator[None, None, Tensor]:
    """States that each of the tokens [N, D] was sampled from, [b, N, E]."""
    count, places = len(tokens), raster_coordinates(sequence.decode.grid)
    branches: list[Tensor] = []
    for name in sequence.decode.branches:
        prompt = sequence.prompts[name]
        ((slot, first),) = engine.backend.prefill([prompt], [count])
        try:
            states = [first[None]]
            for begun in range(0, count - 1, AT_ONCE):
                own = slice(begun, min(count - 1, begun + AT_ONCE))
                where = [Place(slot, len(prompt.ids) + i) for i in range(own.start, own.stop)]
                embedded = engine.backend.embed_images(tokens[own], places[own])
                states.append(engine.backend.step(embedded, where))
                yield
        finally:
            engine.backend.release(slot)
        branches.append(torch.cat(states))
    return torch.stack(branches)
