"""Decoding that looks ahead: pictures of the scheduler, and the next picture of a session's caches.

Legend: B pictures, N tokens of a picture, D values per token, E hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nextstep.engine.backends.torch import feed
from nextstep.engine.decode import DecodeSettings, Given, OnToken, Prompt, not_finite
from nextstep.engine.image_sequence import Begun, Job, Running
from nextstep.engine.sampler import BlockSampler
from nextstep.engine.scheduler import Limits, Scheduler
from nextstep.errors import NextStepError
from nextstep.flow.noise import NoiseSource
from nextstep.model.nextstep import NextStepModel


def decode_ahead(
    model: NextStepModel,
    prompts: dict[str, list[Prompt]],
    settings: DecodeSettings,
    keys: list[tuple[int, int]],
    on_token: OnToken | None = None,
    given: Given | None = None,
) -> Tensor:
    """As `decode.decode_tokens`, looking ahead; pictures of a batch may be unequally far.

    Args:
        model, prompts, settings, given: see there.
        keys: (seed, index) of the noise of each picture.
        on_token: called with (tokens that every picture has, those [B, done, D]).

    Returns:
        [B, N, D] fp32.

    Raises:
        NextStepError: when a token is not finite.
    """
    jobs = [
        Job({name: row[place] for name, row in prompts.items()}, settings, key, given=given)
        for place, key in enumerate(keys)
    ]
    # A batch runs together whatever it takes, as it does without looking ahead.
    scheduler = Scheduler(model, Limits(2**62, max(1, len(jobs))), check=False)
    known = {scheduler.submit(job): torch.empty(0, model.config.token_size) for job in jobs}
    done = 0
    while not scheduler.idle:
        for event in scheduler.step():
            if event.kind == "failed":
                raise NextStepError(event.message)
            known[event.ticket] = event.tokens
        least = min(map(len, known.values()))
        if on_token is not None and least > done:
            on_token(least, torch.stack([tokens[:least] for tokens in known.values()]))
        done = least
    return torch.stack(list(known.values()))


@torch.inference_mode()
def grow_ahead(
    model: NextStepModel,
    branches: Mapping[str, Begun],
    settings: DecodeSettings,
    noise: NoiseSource,
    on_token: OnToken | None = None,
) -> Tensor:
    """One picture behind what caches hold already, looking ahead.

    Args:
        model: in eval mode.
        branches: for every branch of the settings, with room for the picture; their caches hold
            all tokens but the last afterwards, and guesses behind them.
        settings: of the picture.
        noise: draws of one picture.
        on_token: called with (tokens done, tokens so far [1, done, D]).

    Returns:
        [N, D] fp32.

    Raises:
        NextStepError: when a token is not finite.
    """
    nothing = dict.fromkeys(branches, Prompt([]))
    tokens: list[Tensor] = []
    picture = Running(model, Job(nothing, settings, (0, 0)), tokens, [], branches, noise)
    sampler = BlockSampler(model)
    while True:
        for token in picture.settle(sampler.sample(picture.wants())):
            if not bool(torch.isfinite(token).all()):
                raise NextStepError(not_finite(len(tokens)))
            tokens.append(token)
            if on_token is not None:
                on_token(len(tokens), torch.stack(tokens)[None])
        if len(tokens) == settings.tokens:
            return torch.stack(tokens)
        picture.take(feed(model, *picture.rows()))
