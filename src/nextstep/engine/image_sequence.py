"""One picture inside the scheduler: what is asked for, how far it is, how it is taken up.

Legend: E hidden size, D values per token, N tokens of the picture, k tokens known, b branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nextstep.engine import jacobi as ahead
from nextstep.engine.backends.torch import Place, cache_bytes, feed, read_prompt
from nextstep.engine.decode import DecodeSettings, Given, Prompt
from nextstep.engine.sampler import Want
from nextstep.engine.text_sequence import TextJob, Writing
from nextstep.errors import NextStepError
from nextstep.flow.noise import KeyedNoise, NoiseSource
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import raster_coordinates


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
        guesses: [g, D] of the tokens behind the known ones, when it was set aside looking ahead.
    """

    prompts: Mapping[str, Prompt]
    decode: DecodeSettings
    key: tuple[int, int]
    tokens: Tensor | None = None
    priority: int = 0
    deadline: float = math.inf
    client: str = ""
    given: Given | None = None
    guesses: Tensor | None = None

    def __post_init__(self) -> None:
        missing = [name for name in self.decode.branches if name not in self.prompts]
        if missing:
            raise NextStepError(f"the {missing[0]} branch of the picture has no prompt")
        known = 0 if self.tokens is None else len(self.tokens)
        if known > self.decode.tokens:
            raise NextStepError(f"{known} tokens are given for a picture of {self.decode.tokens}")
        if self.guesses is not None and len(self.guesses) > (self.room(known) if known else 0):
            raise NextStepError("the picture has more guesses than it looks ahead")

    @property
    def size(self) -> int:
        """Steps it takes."""
        return self.decode.tokens

    def room(self, index: int) -> int:
        """How many tokens are guessed when those before `index` are known."""
        given, decode = self.given, self.decode
        is_given = (lambda _: False) if given is None else given.is_given
        return decode.lookahead.room(index, decode.tokens, is_given)

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


class Begun(NamedTuple):
    """A branch whose prompt is read: its cache, the positions there, the last one's state [E]."""

    cache: KVCache
    length: int
    state: Tensor


class Running:
    """A job with its caches: taken up from its prompts and the tokens known so far.

    Args:
        model: in eval mode.
        job: what to sample.
        tokens: known so far, each [D].
        guesses: of the tokens behind them; both lists stay the caller's, who may set a picture
            aside and take it up again.
        begun: branches that are read already, with room for the picture; else the job's prompts
            are read.
        noise: in place of the job's own.
    """

    def __init__(
        self,
        model: NextStepModel,
        job: Job,
        tokens: list[Tensor],
        guesses: list[Tensor],
        begun: Mapping[str, Begun] | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        self.model, self.job, self.tokens, self.guesses = model, job, tokens, guesses
        self.branches = tuple(job.decode.branches)
        self.places = raster_coordinates(job.decode.grid)
        size = model.config.token_size
        self.noise = noise or KeyedNoise([job.key], job.decode.solver.draws, size)
        self.draws: dict[int, Tensor] = {}
        self.drawn, self.fed = 0, len(tokens)
        self.left: list[Tensor] = []
        self.caches: list[KVCache] = []
        self.starts: list[int] = []
        hidden = []
        for name in self.branches:
            prompt = job.prompts[name]
            if begun is None:
                cache, state = read_prompt(model, prompt, job.decode.tokens)
                start = len(prompt.ids)
            else:
                cache, start, state = begun[name]
            self.caches.append(cache)
            self.starts.append(start)
            hidden.append(self._catch_up(cache, start, state))
        self.hidden = torch.stack(hidden)

    def _catch_up(self, cache: KVCache, start: int, state: Tensor) -> Tensor:
        """Rebuild one branch's cache from tokens and guesses; states [1 + g, E]."""
        fed = [*self.tokens, *self.guesses]
        if not fed:
            return state[None]
        places = [Place(cache, start + index) for index in range(len(fed))]
        hidden = feed(self.model, torch.stack(fed), self.places[: len(fed)], places)
        return hidden[-1 - len(self.guesses) :]

    def wants(self) -> list[Want]:
        """The questions for the next token, and for those behind each guess."""
        first = len(self.tokens)
        end = first + 1 + len(self.guesses)
        # Tokens that were not sampled here have their draws all the same.
        for index in range(self.drawn, end):
            self.draws[index] = self.noise.token(index)[:, 0]
        self.drawn = max(self.drawn, end)
        self.draws = {index: draws for index, draws in self.draws.items() if index >= first}
        return [self._want(index, self.hidden[:, index - first]) for index in range(first, end)]

    def _want(self, index: int, hidden: Tensor) -> Want:
        """The question for token `index`, with its branches' states [b, E]."""
        decode = self.job.decode
        solver = decode.solver.at(index, decode.tokens)
        weights = decode.guidance.weights(index, decode.tokens, decode.has_images)
        draws = self.draws[index][: solver.draws]
        return Want(hidden, draws, solver, self.branches, weights, decode.token_norm)

    def settle(self, made: list[Tensor]) -> list[Tensor]:
        """What is known of the tokens that answer `wants`; the caller adds it to the tokens."""
        known = self.job.decode.lookahead.settle(made, self.guesses)
        self.fed += len(known) - 1
        self.left = made[len(known) :]
        return known

    def rows(self) -> tuple[Tensor, Tensor, list[Place]]:
        """What the backbone is fed, branch by branch: tokens [b*m, D], [b*m, 2], places.

        The m are the known tokens that it has not seen, and guesses of the next ones.
        """
        known = len(self.tokens)
        self.guesses[:] = ahead.guesses(
            self.left, self.job.room(known), self.model.config.token_size
        )
        b, new = len(self.branches), range(self.fed, known + len(self.guesses))
        places = [
            Place(cache, start + index)
            for cache, start in zip(self.caches, self.starts, strict=True)
            for index in new
        ]
        tokens = torch.stack([*self.tokens[self.fed :], *self.guesses]).repeat(b, 1)
        return tokens, self.places[new.start : new.stop].repeat(b, 1), places

    def take(self, hidden: Tensor) -> None:
        """Take up what `feed` made of `rows`, [b*m, E]."""
        states = hidden.view(len(self.branches), -1, hidden.shape[-1])
        self.hidden, self.fed = states[:, -1 - len(self.guesses) :], len(self.tokens)


@dataclass
class Entry:
    """A picture or a text in the scheduler's books."""

    ticket: int
    job: Job | TextJob
    bytes: int
    arrived: int
    tokens: list[Tensor] = field(default_factory=list)
    guesses: list[Tensor] = field(default_factory=list)
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
