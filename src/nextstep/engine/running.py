"""One picture inside the scheduler: what is asked for, how far it is, how it is taken up.

Legend: E hidden size, D values per token, N tokens of the picture, k tokens known, b branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nextstep.engine.blocks import Place, cache_bytes, feed, read_prompt
from nextstep.engine.decode import DecodeSettings, Given, Prompt
from nextstep.engine.sampler import Want
from nextstep.engine.writing import TextJob, Writing
from nextstep.errors import NextStepError
from nextstep.flow.noise import KeyedNoise
from nextstep.image.latents import raster_coordinates
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel


@dataclass(frozen=True)
class Job:
    """One picture to be sampled.

    Attributes:
        prompts: one row for every branch of `decode.branches`.
        decode: grid, solver and guidance.
        key: (seed, index) of its noise.
        tokens: [k, D] known already, fp32; the picture goes on after them.
        priority: higher goes first.
        deadline: on the scheduler's clock; later than this it is given up.
        client: whose picture it is; clients of one priority take turns.
        given: tokens that are taken as they are.
    """

    prompts: Mapping[str, Prompt]
    decode: DecodeSettings
    key: tuple[int, int]
    tokens: Tensor | None = None
    priority: int = 0
    deadline: float = math.inf
    client: str = ""
    given: Given | None = None

    def __post_init__(self) -> None:
        missing = [name for name in self.decode.branches if name not in self.prompts]
        if missing:
            raise NextStepError(f"the {missing[0]} branch of the picture has no prompt")
        known = 0 if self.tokens is None else len(self.tokens)
        if known > self.decode.tokens:
            raise NextStepError(f"{known} tokens are given for a picture of {self.decode.tokens}")

    @property
    def size(self) -> int:
        """Steps it takes."""
        return self.decode.tokens

    def check(self, model: NextStepModel, budget: int) -> int:
        """Bytes its caches take.

        Raises:
            NextStepError: when it can never run, whatever else does.
        """
        longest = max(len(self.prompts[name].ids) for name in self.decode.branches)
        length, limit = longest + self.decode.tokens, model.config.max_position_embeddings
        if length > limit:
            raise NextStepError(
                f"prompt and picture together take {length} tokens; this model reads at most "
                f"{limit}, so shorten the prompt or ask for a smaller picture"
            )
        needed = sum(
            cache_bytes(model, len(self.prompts[name].ids) + self.decode.tokens)
            for name in self.decode.branches
        )
        if needed > budget:
            raise NextStepError(
                f"this picture needs {needed:,} bytes of key/value cache and the engine may use "
                f"{budget:,}; ask for a smaller picture or give the engine more"
            )
        return needed


class Running:
    """A job with its caches: taken up from its prompts and the tokens known so far.

    Args:
        model: in eval mode.
        job: what to sample.
        tokens: known so far, each [D].
    """

    def __init__(self, model: NextStepModel, job: Job, tokens: list[Tensor]) -> None:
        self.model, self.job, self.tokens = model, job, tokens
        self.branches = tuple(job.decode.branches)
        self.places = raster_coordinates(job.decode.grid)
        self.noise = KeyedNoise([job.key], job.decode.solver.draws, model.config.token_size)
        self.drawn, self.fed = 0, len(tokens)
        self.caches: list[KVCache] = []
        self.starts: list[int] = []
        hidden = []
        for name in self.branches:
            prompt = job.prompts[name]
            cache, state = read_prompt(model, prompt, job.decode.tokens)
            self.caches.append(cache)
            self.starts.append(len(prompt.ids))
            hidden.append(self._catch_up(cache, len(prompt.ids), state))
        self.hidden = torch.stack(hidden)

    def _catch_up(self, cache: KVCache, start: int, state: Tensor) -> Tensor:
        """Rebuild one branch's cache from the known tokens; the last state [E]."""
        known = len(self.tokens)
        if not known:
            return state
        places = [Place(cache, start + index) for index in range(known)]
        return feed(self.model, torch.stack(self.tokens), self.places[:known], places)[-1]

    def want(self) -> Want:
        """The question for the next token."""
        decode, index = self.job.decode, len(self.tokens)
        # Tokens that were not sampled here have their draws all the same.
        for past in range(self.drawn, index):
            self.noise.token(past)
        self.drawn = index + 1
        weights = decode.guidance.weights(index, decode.tokens, decode.has_images)
        return Want(
            self.hidden,
            self.noise.token(index)[:, 0],
            decode.solver,
            self.branches,
            weights,
            decode.token_norm,
        )

    def rows(self) -> tuple[Tensor, Tensor, list[Place]]:
        """What the backbone is fed, branch by branch: m new tokens [b*m, D], [b*m, 2], places."""
        b, new = len(self.branches), range(self.fed, len(self.tokens))
        places = [
            Place(cache, start + index)
            for cache, start in zip(self.caches, self.starts, strict=True)
            for index in new
        ]
        tokens = torch.stack(self.tokens[self.fed :]).repeat(b, 1)
        return tokens, self.places[self.fed : len(self.tokens)].repeat(b, 1), places

    def take(self, hidden: Tensor) -> None:
        """Take up what `feed` made of `rows`, [b*m, E]."""
        new = len(self.tokens) - self.fed
        self.hidden, self.fed = hidden[new - 1 :: new], len(self.tokens)


@dataclass
class Entry:
    """A picture or a text in the scheduler's books."""

    ticket: int
    job: Job | TextJob
    bytes: int
    arrived: int
    tokens: list[Tensor] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    running: Running | Writing | None = None
    held: bool = False
    passed: int = 0
    charged: bool = False

    def take_given(self) -> None:
        """Take the tokens that follow and need not be sampled."""
        assert isinstance(self.job, Job)
        given = self.job.given
        while given is not None and len(self.tokens) < self.job.decode.tokens:
            token = given.at(len(self.tokens))
            if token is None:
                return
            self.tokens.append(token)

    def known(self, size: int) -> Tensor:
        """Tokens so far, [k, D]."""
        return torch.stack(self.tokens) if self.tokens else torch.empty(0, size)
