"""What the engine holds of a picture or a text: what is asked for, and how far it is.

A sequence waits, runs while it has rows in a backend's caches, and may be set aside between. A
picture is taken up again from its tokens, a text from its ids.

Legend: E hidden size, D values per token, N tokens of a picture, k tokens known, b branches, V
vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nextstep.engine import jacobi as ahead
from nextstep.engine.backends.base import Backend, CacheRow, Place, Prefilled, Prompt, SampleRequest
from nextstep.engine.backends.torch import cache_bytes
from nextstep.engine.decode import DecodeSettings, FixedTokens
from nextstep.engine.text_sampling import Choose
from nextstep.errors import NextStepError
from nextstep.flow.noise import KeyedNoise, NoiseSource
from nextstep.model.flow_head import check_solver
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import raster_coordinates

AT_ONCE = 64
"""Known tokens that are taken up in one call; a multiple of every backend's blocks."""


@dataclass(eq=False, kw_only=True)
class SequenceState(ABC):
    """A picture or a text in the scheduler.

    Attributes:
        priority: higher goes first.
        deadline: on the scheduler's clock; later than this it is given up.
        client: whose it is; clients of one priority take turns.
        ticket: the scheduler's number for it.
        bytes: that its caches take.
        arrived: step at which it began to wait.
        passed: how often smaller ones went before it.
        held: whether it is set aside.
        charged: whether its client has been charged for it.
        ids: of a text, written so far.
        slots: its rows in the backend's caches while it runs.
        hidden: states that the next token or id is sampled from.
    """

    priority: int = 0
    deadline: float = math.inf
    client: str = ""
    ticket: int = field(default=-1, init=False)
    bytes: int = field(default=0, init=False)
    arrived: int = field(default=0, init=False)
    passed: int = field(default=0, init=False)
    held: bool = field(default=False, init=False)
    charged: bool = field(default=False, init=False)
    ids: list[int] = field(default_factory=list, init=False)
    slots: list[CacheRow] = field(default_factory=list, init=False)
    hidden: Tensor = field(default_factory=lambda: torch.empty(0), init=False)

    @property
    def is_running(self) -> bool:
        """Whether it has rows in the caches."""
        return bool(self.slots)

    @property
    @abstractmethod
    def steps_left(self) -> int:
        """Steps it may still take."""

    @abstractmethod
    def check(self, model: NextStepModel, budget: int) -> int:
        """Bytes its caches take.

        Raises:
            NextStepError: when it can never run, whatever else does.
        """

    @abstractmethod
    def prompts_to_read(self) -> list[tuple[Prompt, int]]:
        """What must be read before it can go on, with the positions needed behind it."""

    @abstractmethod
    def start(self, backend: Backend, prefilled: Sequence[Prefilled], size: int) -> None:
        """Begin to run.

        Args:
            backend: that computes it.
            prefilled: what `prompts_to_read` named, in its order.
            size: values of an image token.
        """

    def leave(self, backend: Backend) -> None:
        """Free the memory that running takes."""
        for slot in self.slots:
            backend.release(slot)
        self.slots, self.hidden = [], torch.empty(0)

    def known_tokens(self, size: int) -> Tensor:
        """Image tokens [k, D] so far, which are never written to again; none of a text."""
        return torch.empty(0, size)


@dataclass(eq=False)
class ImageSequence(SequenceState):
    """One picture to be sampled, and its tokens so far.

    Attributes:
        prompts: one row for every branch of `decode.branches`.
        decode: grid, solver and guidance.
        key: (seed, index) of its noise.
        initial_tokens: [k, D] known already, fp32; the picture goes on after them.
        given: tokens that are taken as they are.
        initial_guesses: [g, D] of the tokens behind the known ones, when it was set aside looking
            ahead.
        noise: recorded draws in place of the key's, for comparisons.
        tokens: known so far, each [D].
        guesses: of the tokens behind them, each [D].
    """

    prompts: Mapping[str, Prompt]
    decode: DecodeSettings
    key: tuple[int, int]
    initial_tokens: Tensor | None = None
    given: FixedTokens | None = None
    initial_guesses: Tensor | None = None
    noise: NoiseSource | None = None
    tokens: list[Tensor] = field(init=False, repr=False)
    guesses: list[Tensor] = field(init=False, repr=False)
    _whole: Tensor = field(default_factory=lambda: torch.empty(0, 0), init=False, repr=False)
    _stacked: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        missing = [name for name in self.decode.branches if name not in self.prompts]
        if missing:
            raise NextStepError(f"the {missing[0]} branch of the picture has no prompt")
        self.tokens, self.guesses = _listed(self.initial_tokens), _listed(self.initial_guesses)
        known = len(self.tokens)
        if known > self.decode.tokens:
            raise NextStepError(f"{known} tokens are given for a picture of {self.decode.tokens}")
        if len(self.guesses) > (self._room(known) if known else 0):
            raise NextStepError("the picture has more guesses than its Jacobi window")

    @property
    def steps_left(self) -> int:
        """See `SequenceState.steps_left`."""
        return self.decode.tokens - len(self.tokens)

    def _room(self, index: int) -> int:
        """How many tokens are guessed when those before `index` are known."""
        given, decode = self.given, self.decode
        is_given = (lambda _: False) if given is None else given.is_given
        return decode.jacobi.room(index, decode.tokens, is_given)

    def check(self, model: NextStepModel, budget: int) -> int:
        """See `SequenceState.check`."""
        check_solver(self.decode.solver.name, model.config)
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

    def prompts_to_read(self) -> list[tuple[Prompt, int]]:
        """See `SequenceState.prompts_to_read`."""
        return [(self.prompts[name], self.decode.tokens) for name in self.decode.branches]

    def start(self, backend: Backend, prefilled: Sequence[Prefilled], size: int) -> None:
        """See `SequenceState.start`; caches are rebuilt from the tokens known so far."""
        self.backend, self.size = backend, size
        self.branches = tuple(self.decode.branches)
        self.coordinates = raster_coordinates(self.decode.grid)
        self.stream = self.noise or KeyedNoise([self.key], self.decode.solver.draws, size)
        self.draws: list[Tensor] = []  # of the next tokens, as far as `drawn`
        self.drawn, self.fed = 0, len(self.tokens)
        self.left: list[Tensor] = []
        self.starts = [len(self.prompts[name].ids) for name in self.branches]
        self.slots = [slot for slot, _ in prefilled]
        hidden = [
            self._catch_up(slot, start, state)
            for (slot, state), start in zip(prefilled, self.starts, strict=True)
        ]
        self.hidden = torch.stack(hidden)

    def take_given(self) -> None:
        """Take the tokens that follow and need not be sampled."""
        while self.given is not None and self.steps_left:
            token = self.given.at(len(self.tokens))
            if token is None:
                return
            self.tokens.append(token)

    def add(self, token: Tensor) -> bool:
        """Take a sampled token [D] and the given ones behind it; whether they close a row."""
        columns = self.decode.grid[1]
        rows = len(self.tokens) // columns
        self.tokens.append(token)
        self.take_given()
        return len(self.tokens) // columns > rows

    def known_tokens(self, size: int) -> Tensor:
        """See `SequenceState.known_tokens`."""
        count = len(self.tokens)
        if not count:
            return torch.empty(0, size)
        if not len(self._whole):
            self._whole = torch.empty(self.decode.tokens, size)
        for place in range(self._stacked, count):
            self._whole[place] = self.tokens[place]
        self._stacked = count
        return self._whole[:count]

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
        # Tokens that were not sampled here have their draws all the same.
        while self.drawn <= first + len(self.guesses):
            self.draws.append(self.stream.token(self.drawn)[:, 0])
            self.drawn += 1
        del self.draws[: len(self.draws) - (self.drawn - first)]
        return [
            self._asked(first + ahead, draws, hidden)
            for ahead, (hidden, draws) in enumerate(
                zip(self.hidden.unbind(1), self.draws, strict=False)
            )
        ]

    def _asked(self, index: int, draws: Tensor, hidden: Tensor) -> SampleRequest:
        """For token `index`, with its draws and its branches' states [b, E]."""
        decode = self.decode
        solver = decode.solver.at(index, decode.tokens)
        weights = decode.guidance.weights(index, decode.tokens, decode.has_images)
        if solver is not decode.solver or self.noise is not None:
            draws = draws[: solver.draws]
        return SampleRequest(hidden, draws, solver, self.branches, weights, decode.token_norm)

    def settle(self, made: list[Tensor]) -> list[Tensor]:
        """What is known of the tokens that were sampled; `add` takes each."""
        known = self.decode.jacobi.settle(made, self.guesses)
        self.fed += len(known) - 1
        self.left = made[len(known) :]
        return known

    def rows(self) -> tuple[list[Tensor], Tensor, list[Place]]:
        """What the backbone reads next: m tokens [D], coordinates [m, 2], and places, branch by
        branch, of each.

        The m are the known tokens that it has not seen, and guesses of the next ones.
        """
        known = len(self.tokens)
        self.guesses[:] = ahead.guesses(self.left, self._room(known), self.size)
        new = range(self.fed, known + len(self.guesses))
        places = [
            Place(slot, start + index)
            for slot, start in zip(self.slots, self.starts, strict=True)
            for index in new
        ]
        tokens = [*self.tokens[self.fed :], *self.guesses]
        return tokens, self.coordinates[new.start : new.stop], places

    def take(self, hidden: Tensor) -> None:
        """Take up the states [b*m, E] of `rows`."""
        states = hidden.view(len(self.branches), -1, hidden.shape[-1])
        self.hidden, self.fed = states[:, -1 - len(self.guesses) :], len(self.tokens)


@dataclass(eq=False)
class TextSequence(SequenceState):
    """Text to be written, and its ids so far.

    Attributes:
        prompt: what stands before it, text and pictures.
        limit: most ids to write.
        choose: logits [V] -> id; called once an id, in order.
        forbidden: ids that are never written.
        ends: ids that end it; they are told and not written.
        then: ids written -> the sequence that the text was written for, under the same ticket;
            None is nothing.
    """

    prompt: Prompt
    limit: int
    choose: Choose
    forbidden: tuple[int, ...]
    ends: tuple[int, ...]
    then: Callable[[Sequence[int]], SequenceState] | None = None

    @property
    def steps_left(self) -> int:
        """See `SequenceState.steps_left`."""
        return self.limit - len(self.ids)

    def check(self, model: NextStepModel, budget: int) -> int:
        """See `SequenceState.check`."""
        length, most = len(self.prompt.ids) + self.limit, model.config.max_position_embeddings
        if not self.prompt.ids:
            raise NextStepError("there is nothing to go on from: read a text or a picture first")
        if length > most:
            raise NextStepError(
                f"text and pictures together take {length} tokens; this model reads at most {most}"
            )
        needed = cache_bytes(model, length)
        if needed > budget:
            raise NextStepError(
                f"this text needs {needed:,} bytes of key/value cache and the engine may use "
                f"{budget:,}; write less or give the engine more"
            )
        return needed

    def prompts_to_read(self) -> list[tuple[Prompt, int]]:
        """See `SequenceState.prompts_to_read`; ids that are written already are read too."""
        ids = [*self.prompt.ids, *self.ids]
        return [(Prompt(ids, self.prompt.image_tokens, self.prompt.grids), self.steps_left)]

    def start(self, backend: Backend, prefilled: Sequence[Prefilled], size: int) -> None:
        """See `SequenceState.start`."""
        ((slot, self.hidden),) = prefilled
        self.slots = [slot]

    def place(self) -> Place:
        """Where the last id is stored."""
        return Place(self.slots[0], len(self.prompt.ids) + len(self.ids) - 1)

    def next_id(self, logits: Tensor) -> int:
        """Chosen from logits [V], which stay as they are."""
        allowed = logits.clone()
        allowed[list(self.forbidden)] = -torch.inf
        return self.choose(allowed)


def _listed(tokens: Tensor | None) -> list[Tensor]:
    return [] if tokens is None else list(tokens.float().cpu().unbind())
