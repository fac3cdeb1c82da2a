"""Sampling of the lab's paradigms: prompts of many lengths side by side, caches, guidance.

    prompts -> Rows (a key/value cache each) -> draw: image tokens | write: text

Prompts are padded on the right; a mask keeps padding out of sight, so a picture does not depend on
the prompts beside it. What a paradigm keeps in the cache:

    picture diffusion   the prompt; the picture's own keys change with every step and are dropped
    token diffusion     the prompt and every finished token
    codes               the same

Legend: B prompts, P positions of the longest, S positions of a call, N image tokens of a picture,
D values per token, E hidden size, C codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from nextstep.data.batch import SequenceBatch, collate
from nextstep.flow.guidance import CONDITIONAL, UNCONDITIONAL, combine
from nextstep.flow.noise import KeyedNoise, picture_key
from nextstep.flow.solvers import SolverSettings, solve
from nextstep.lab.paradigms.diffusion import CLEAN, DiffusionModel, Level, picture_numbers
from nextstep.lab.paradigms.discrete import DiscreteModel, codes_of
from nextstep.lab.paradigms.fsq import TokenQuantizer
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.text.sequence import Grid
from nextstep.text.sequence import Sequence as TokenSequence
from nextstep.vae.latents import raster_coordinates, token_norm

Prompt = tuple[TokenSequence, Sequence[Tensor]]
"""A sequence and the image tokens [N, D] of its pictures in reading order."""
Keys = Sequence[tuple[int, int]]
"""(seed, index) of every picture, from which its noise is drawn."""


@dataclass(frozen=True)
class DrawSettings:
    """How pictures are drawn.

    Attributes:
        grid: (rows, columns) of image tokens.
        solver: of noised tokens; codes need none.
        guidance: scale; 1 is none. Of codes it scales logits.
        temperature: of codes.
    """

    grid: Grid
    solver: SolverSettings = field(default_factory=SolverSettings)
    guidance: float = 1.0
    temperature: float = 1.0

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]


class CacheRows:
    """Prompts that a model has read, and what it reads behind them.

    Args:
        model: of the paradigm, in eval mode.
        embeddings: [B, P, E] of the prompts, padded on the right.
        mask: bool [B, P, P], True where a position of a prompt may look.
        lengths: [B] of the prompts.
        room: positions that may follow.

    Attributes:
        hidden: [B, E] states at the last position of each.
        computed: positions that went through the backbone behind the prompts, of one row.
    """

    def __init__(
        self, model: NextStepModel, embeddings: Tensor, mask: Tensor, lengths: Tensor, room: int
    ) -> None:
        B, self.width, _ = embeddings.shape
        self.model, self.lengths, self.computed = model, lengths, 0
        self.cache = KVCache(model.config, B, self.width + room, embeddings.dtype)
        hidden = model.hidden(embeddings, mask=mask[:, None], cache=self.cache)
        self.hidden = hidden[torch.arange(B), lengths - 1]

    def read(self, embeddings: Tensor, keep: bool, both_directions: bool = False) -> Tensor:
        """Read S further positions of every row.

        Args:
            embeddings: [B, S, E].
            keep: leave their keys in the cache.
            both_directions: they see each other in both directions, else causally.

        Returns:
            States [B, S, E].
        """
        S, behind = embeddings.shape[1], self.cache.length - self.width
        steps = torch.arange(S)
        places = torch.arange(self.cache.length + S)
        seen = (places < self.lengths[:, None, None]) | (places >= self.width)  # [B, 1, T]
        seen = seen.expand(-1, S, -1)
        if not both_directions:
            seen = seen & (places <= self.cache.length + steps[:, None])
        positions = self.lengths[:, None] + behind + steps
        hidden = self.model.hidden(embeddings, positions, seen[:, None], self.cache)
        self.computed += S
        if not keep:
            self.cache.rewind(self.width + behind)
        return hidden


class Paradigm(Protocol):
    """A trained arm that can draw and write."""

    both_directions: bool

    @property
    def model(self) -> NextStepModel:
        """In eval mode."""

    def embed(self, batch: SequenceBatch) -> Tensor:
        """Input embeddings [B, S, E] of a batch whose pictures are all clean."""

    def draw(self, branches: Mapping[str, CacheRows], keys: Keys, settings: DrawSettings) -> Tensor:
        """Image tokens [B, N, D] behind the prompts of every branch, kept in their caches."""


@torch.no_grad()
def read_prompts(paradigm: Paradigm, prompts: Sequence[Prompt], room: int) -> CacheRows:
    """Read prompts side by side.

    Args:
        paradigm: whose model reads.
        prompts: B of them.
        room: positions that may follow.
    """
    batch = collate(
        [sequence for sequence, _ in prompts],
        [tokens for _, pictures in prompts for tokens in pictures],
        paradigm.model.config.pad_id,
    )
    lengths = torch.tensor([len(sequence) for sequence, _ in prompts])
    S = batch.ids.shape[1]
    mask = torch.ones(S, S, dtype=torch.bool).tril().expand(len(prompts), S, S)
    if paradigm.both_directions:
        numbers = picture_numbers(batch)
        same = numbers[:, :, None] == numbers[:, None, :]
        mask = mask | (same & (numbers >= 0)[:, None, :])
    return CacheRows(paradigm.model, paradigm.embed(batch), mask, lengths, room)


@torch.no_grad()
def draw(
    paradigm: Paradigm,
    prompts: Sequence[Prompt],
    empty: Prompt,
    keys: Keys,
    settings: DrawSettings,
) -> tuple[Tensor, CacheRows]:
    """Draw a picture behind every prompt, with guidance.

    Args:
        paradigm: that draws.
        prompts: B of them, each up to the begin token of the picture.
        empty: the prompt without text, for guidance.
        keys: of the noise.
        settings: of the pictures, which have one grid.

    Returns:
        Image tokens [B, N, D], and the conditional rows behind the pictures.
    """
    room = settings.tokens
    branches = {CONDITIONAL: read_prompts(paradigm, prompts, room)}
    if settings.guidance != 1:
        branches[UNCONDITIONAL] = read_prompts(paradigm, [empty] * len(prompts), room)
    return paradigm.draw(branches, keys, settings), branches[CONDITIONAL]


@torch.no_grad()
def write(paradigm: Paradigm, prompts: Sequence[Prompt], most: int) -> list[list[int]]:
    """The likeliest ids behind every prompt, up to the end-of-text token, which is left out.

    Args:
        paradigm: that writes.
        prompts: B of them.
        most: ids of an answer at most.
    """
    rows, model = read_prompts(paradigm, prompts, most), paradigm.model
    hidden, said = rows.hidden, torch.zeros(len(prompts), 0, dtype=torch.long)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    while said.shape[1] < most and not bool(ended.all()):
        ids = model.text_logits(hidden).argmax(-1)
        said = torch.cat((said, ids[:, None]), dim=1)
        ended |= ids == model.config.eos_id
        hidden = rows.read(model.embed_tokens(ids[:, None]), keep=True)[:, 0]
    eos = model.config.eos_id
    return [ids[: ids.index(eos)] if eos in ids else ids for ids in said.tolist()]


class DiffusionSampler:
    """Draws with a `DiffusionModel`.

    Args:
        model: in eval mode.
        level: what had a noise level of its own in training.
        both_directions: whether tokens of a picture saw each other in both directions.
    """

    def __init__(self, model: DiffusionModel, level: Level, both_directions: bool) -> None:
        self.model, self.level, self.both_directions = model, level, both_directions

    def embed(self, batch: SequenceBatch) -> Tensor:
        """Input embeddings [B, S, E] of a batch whose pictures are all clean."""
        if not len(batch.image_tokens):
            return self.model.embed(batch.ids)
        times = torch.full((len(batch.image_tokens),), CLEAN)
        projected = self.model.embed_noised(batch.image_tokens, times, batch.coordinates)
        return self.model.embed_with(batch.ids, projected, batch.image_places)

    def draw(self, branches: Mapping[str, CacheRows], keys: Keys, settings: DrawSettings) -> Tensor:
        """Image tokens [B, N, D], kept in the caches: all at once, or one after another."""
        N, D = settings.tokens, self.model.config.token_size
        noise = KeyedNoise(list(keys), settings.solver.draws, D)
        draws = torch.stack([noise.token(index) for index in range(N)], dim=2)  # [k, B, N, D]
        coordinates = raster_coordinates(settings.grid)
        size = N if self.level == "picture" else 1
        made = []
        for own, places in zip(draws.split(size, 2), coordinates.split(size), strict=True):
            made.append(self._solved(branches, own, places, settings))
            embedded = self._embedded(made[-1], CLEAN, places)
            for rows in branches.values():
                rows.read(embedded, keep=True, both_directions=self.both_directions)
        return torch.cat(made, dim=1)

    def _solved(
        self,
        branches: Mapping[str, CacheRows],
        draws: Tensor,
        coordinates: Tensor,
        settings: DrawSettings,
    ) -> Tensor:
        """Tokens [B, S, D] from their draws [k, B, S, D]."""
        stream = iter(draws)

        def velocity(x: Tensor, t: float) -> Tensor:
            return self._guided(branches, x, t, coordinates, settings.guidance)

        return token_norm(solve(velocity, lambda: next(stream), settings.solver))

    def _embedded(self, x: Tensor, t: float, coordinates: Tensor) -> Tensor:
        """Tokens [B, S, D] at one time -> [B, S, E]."""
        B, S, _ = x.shape
        times = torch.full((B * S,), t)
        flat = self.model.embed_noised(x.flatten(0, 1), times, coordinates.repeat(B, 1))
        return flat.view(B, S, -1)

    def _guided(
        self,
        branches: Mapping[str, CacheRows],
        x: Tensor,
        t: float,
        coordinates: Tensor,
        guidance: float,
    ) -> Tensor:
        """Velocity [B, S, D] of tokens at one time."""
        B, S, D = x.shape
        embedded, times, found = self._embedded(x, t, coordinates), torch.full((B * S,), t), []
        for rows in branches.values():
            hidden = rows.read(embedded, keep=False, both_directions=self.both_directions)
            velocity = self.model.velocity(x.flatten(0, 1), times, hidden.flatten(0, 1))
            found.append(velocity.view(B, S, D))
        return mixed(torch.stack(found), branches, guidance)


class DiscreteSampler:
    """Draws with a `DiscreteModel`.

    Args:
        model: in eval mode.
        quantizer: makes tokens of its codes.
    """

    both_directions = False

    def __init__(self, model: DiscreteModel, quantizer: TokenQuantizer) -> None:
        self.model, self.quantizer = model, quantizer

    def embed(self, batch: SequenceBatch) -> Tensor:
        """Input embeddings [B, S, E]; image tokens become codes."""
        codes = codes_of(self.quantizer, batch)
        return self.model.embed(batch.ids, codes, batch.coordinates, batch.image_places)

    def draw(self, branches: Mapping[str, CacheRows], keys: Keys, settings: DrawSettings) -> Tensor:
        """Image tokens [B, N, D] of sampled codes, which are kept in the caches."""
        return self.quantizer.decode(self.draw_codes(branches, keys, settings), settings.grid)

    def draw_codes(
        self, branches: Mapping[str, CacheRows], keys: Keys, settings: DrawSettings
    ) -> Tensor:
        """Codes [B, N]."""
        generators = [torch.Generator().manual_seed(picture_key(*key)) for key in keys]
        hidden = {name: rows.hidden for name, rows in branches.items()}
        codes: list[Tensor] = []
        for place in raster_coordinates(settings.grid):
            logits = torch.stack([self.model.code_logits(h).float() for h in hidden.values()])
            chances = (mixed(logits, branches, settings.guidance) / settings.temperature).softmax(
                -1
            )
            drawn = [
                torch.multinomial(own, 1, generator=generator)
                for own, generator in zip(chances, generators, strict=True)
            ]
            codes.append(torch.cat(drawn))
            embedded = self.model.embed_image(codes[-1], place.repeat(len(keys), 1))
            for name, rows in branches.items():
                hidden[name] = rows.read(embedded[:, None], keep=True)[:, 0]
        return torch.stack(codes, dim=1)


def mixed(parts: Tensor, branches: Mapping[str, CacheRows], guidance: float) -> Tensor:
    """Velocities or logits of the branches [b, ...], mixed by the guidance scale, [...]."""
    weights = {CONDITIONAL: guidance, UNCONDITIONAL: 1 - guidance}
    return combine(parts, list(branches), weights)
