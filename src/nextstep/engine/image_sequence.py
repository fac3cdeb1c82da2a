"""One picture inside the scheduler: what is asked for, how far it is, how it is taken up.

Legend: E hidden size, D values per token, N tokens of the picture, k tokens known, b branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextstep.engine import jacobi as ahead
from nextstep.engine.backends.base import Backend, CacheRow, Place, Prefilled, Prompt, SampleRequest
from nextstep.engine.backends.torch import cache_bytes
from nextstep.engine.decode import DecodeSettings, FixedTokens
from nextstep.errors import NextStepError
from nextstep.flow.noise import KeyedNoise, NoiseSource
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import raster_coordinates


@dataclass(frozen=True)
class ImageJob:
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
        noise: recorded draws in place of the key's, for comparisons.
    """

    prompts: Mapping[str, Prompt]
    decode: DecodeSettings
    key: tuple[int, int]
    tokens: Tensor | None = None
    priority: int = 0
    deadline: float = math.inf
    client: str = ""
    given: FixedTokens | None = None
    guesses: Tensor | None = None
    noise: NoiseSource | None = None

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
        return decode.jacobi.room(index, decode.tokens, is_given)

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


AT_ONCE = 64
"""Known tokens that are taken up in one call; a multiple of every backend's blocks."""


class ImageSequence:
    """A picture with its caches: taken up from its prompts and the tokens known so far.

    Args:
        backend: that computes it.
        job: what to sample.
        tokens: known so far, each [D].
        guesses: of the tokens behind them; both lists stay the caller's, who may set a picture
            aside and take it up again.
        prefilled: the job's prompts, one for each branch.
        size: D.
    """

    def __init__(
        self,
        backend: Backend,
        job: ImageJob,
        tokens: list[Tensor],
        guesses: list[Tensor],
        prefilled: Sequence[Prefilled],
        size: int,
    ) -> None:
        self.backend, self.job, self.tokens, self.guesses = backend, job, tokens, guesses
        self.branches = tuple(job.decode.branches)
        self.coordinates = raster_coordinates(job.decode.grid)
        self.size = size
        self.noise = job.noise or KeyedNoise([job.key], job.decode.solver.draws, size)
        self.draws: dict[int, Tensor] = {}
        self.drawn, self.fed = 0, len(tokens)
        self.left: list[Tensor] = []
        self.starts = [len(job.prompts[name].ids) for name in self.branches]
        self.slots = [slot for slot, _ in prefilled]
        hidden = [
            self._catch_up(slot, start, state)
            for (slot, state), start in zip(prefilled, self.starts, strict=True)
        ]
        self.hidden = torch.stack(hidden)

    def _catch_up(self, slot: CacheRow, start: int, state: Tensor) -> Tensor:
        """Rebuild one branch's cache from tokens and guesses; states [1 + g, E]."""
        fed = [*self.tokens, *self.guesses]
        if not fed:
            return state[None]
        embedded = self.backend.embed_images(torch.stack(fed), self.coordinates[: len(fed)])
        places = [Place(slot, start + index) for index in range(len(fed))]
        states = [
            self.backend.step(embedded[i : i + AT_ONCE], places[i : i + AT_ONCE])
            for i in range(0, len(fed), AT_ONCE)
        ]
        return torch.cat(states)[-1 - len(self.guesses) :]

    def sample_requests(self) -> list[SampleRequest]:
        """For the next token, and for those behind each guess."""
        first = len(self.tokens)
        end = first + 1 + len(self.guesses)
        # Tokens that were not sampled here have their draws all the same.
        for index in range(self.drawn, end):
            self.draws[index] = self.noise.token(index)[:, 0]
        self.drawn = max(self.drawn, end)
        self.draws = {index: draws for index, draws in self.draws.items() if index >= first}
        return [self._asked(index, self.hidden[:, index - first]) for index in range(first, end)]

    def _asked(self, index: int, hidden: Tensor) -> SampleRequest:
        """For token `index`, with its branches' states [b, E]."""
        decode = self.job.decode
        solver = decode.solver.at(index, decode.tokens)
        weights = decode.guidance.weights(index, decode.tokens, decode.has_images)
        draws = self.draws[index][: solver.draws]
        return SampleRequest(hidden, draws, solver, self.branches, weights, decode.token_norm)

    def settle(self, made: list[Tensor]) -> list[Tensor]:
        """What is known of the tokens that were sampled; the caller adds it to the tokens."""
        known = self.job.decode.jacobi.settle(made, self.guesses)
        self.fed += len(known) - 1
        self.left = made[len(known) :]
        return known

    def rows(self) -> tuple[Tensor, Tensor, list[Place]]:
        """What the backbone reads next: tokens [m, D], coordinates [m, 2], and places, branch by
        branch, of each.

        The m are the known tokens that it has not seen, and guesses of the next ones.
        """
        known = len(self.tokens)
        self.guesses[:] = ahead.guesses(self.left, self.job.room(known), self.size)
        new = range(self.fed, known + len(self.guesses))
        places = [
            Place(slot, start + index)
            for slot, start in zip(self.slots, self.starts, strict=True)
            for index in new
        ]
        tokens = torch.stack([*self.tokens[self.fed :], *self.guesses])
        return tokens, self.coordinates[new.start : new.stop], places

    def take(self, hidden: Tensor) -> None:
        """Take up the states [b*m, E] of `rows`."""
        states = hidden.view(len(self.branches), -1, hidden.shape[-1])
        self.hidden, self.fed = states[:, -1 - len(self.guesses) :], len(self.tokens)
