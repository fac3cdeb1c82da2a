"""From prompts to image tokens: prefill, then one token after another.

Legend: B pictures, b branches, R = b*B rows (branch-major), S prompt positions, N tokens of a
picture, D values per token, E hidden size, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextstep.engine.backends.cpu_kernels import CoreWant, RowPlace, core_of
from nextstep.engine.backends.cuda_graphs import FixedSampler, FixedStep, Record, pays, record_graph
from nextstep.engine.jacobi import ONE_AFTER_ANOTHER, Lookahead
from nextstep.errors import NextStepError
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.noise import NoiseSource
from nextstep.flow.solvers import SolverSettings
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import raster_coordinates, token_norm

OnToken = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Prompt:
    """One row of the batch before its first image token.

    Attributes:
        ids: token ids up to and including begin-of-image.
        image_tokens: one [n, D] tensor per source picture, in reading order.
        grids: (rows, columns) of each source picture.
    """

    ids: Sequence[int]
    image_tokens: Sequence[Tensor] = ()
    grids: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class DecodeSettings:
    """How tokens are sampled.

    Attributes:
        grid: (rows, columns) of every picture in the batch.
        solver, guidance: see their classes.
        token_norm: normalise each sampled token before it is fed back and decoded.
        has_images: whether the prompts hold source pictures.
        lookahead: how many tokens are sampled in one pass.
    """

    grid: tuple[int, int]
    solver: SolverSettings
    guidance: GuidanceSettings
    token_norm: bool = True
    has_images: bool = False
    lookahead: Lookahead = ONE_AFTER_ANOTHER

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def branches(self) -> list[str]:
        """Names of the branches that must run."""
        return self.guidance.branches(self.tokens, self.has_images)


@dataclass(frozen=True)
class Given:
    """Tokens of a picture that are taken as they are instead of being sampled.

    Attributes:
        tokens: [N, D]; read where `sampled` is False.
        sampled: [N] bool.
    """

    tokens: Tensor
    sampled: Tensor

    def is_given(self, index: int) -> bool:
        """Whether token `index` is taken as it is."""
        return not bool(self.sampled[index])

    def at(self, index: int) -> Tensor | None:
        """Token `index` [D], fp32 on the CPU; None when it is to be sampled."""
        return self.tokens[index].float().cpu() if self.is_given(index) else None


@torch.inference_mode()
def decode_tokens(
    model: NextStepModel,
    prompts: dict[str, list[Prompt]],
    settings: DecodeSettings,
    noise: NoiseSource,
    on_token: OnToken | None = None,
    given: Given | None = None,
    sampler: TokenSampler | None = None,
) -> Tensor:
    """Sample the pictures of one batch together.

    Args:
        model: in eval mode.
        prompts: for every branch of `settings.branches`, B prompts.
        settings: shared by the batch.
        noise: draws for the B pictures; nothing else is random.
        on_token: called with (tokens done, tokens so far [B, done, D]).
        given: tokens that every picture takes as they are.
        sampler: what samples a token; None for the usual.

    Returns:
        [B, N, D] fp32.

    Raises:
        NextStepError: when a token is not finite.
    """
    branches = settings.branches
    rows = [prompt for name in branches for prompt in prompts[name]]
    state, hidden = _prefill(model, rows, settings.grid)
    sampler = sampler or TokenSampler(model, settings, branches)
    tokens: list[Tensor] = []
    for index in range(settings.tokens):
        draws = noise.token(index)
        known = None if given is None else given.at(index)
        if known is None:
            token = sampler.sample(hidden, draws, index)
        else:
            token = known.to(hidden.device).expand(draws.shape[1], -1)
        if not bool(torch.isfinite(token).all()):
            raise NextStepError(not_finite(index))
        tokens.append(token)
        if on_token is not None:
            on_token(index + 1, torch.stack(tokens, dim=1))
        if index + 1 < settings.tokens:
            hidden = state.step(token.repeat(len(branches), 1))
    return torch.stack(tokens, dim=1)


def not_finite(index: int) -> str:
    """What to say when token `index` is no number."""
    return (
        f"image token {index} is not a finite number; lower the guidance or the shift, "
        "or use a wider number format (bf16 instead of fp16)"
    )


def recorder(model: NextStepModel) -> Record | None:
    """How the model's calls are recorded where that pays; None where they are not."""
    return record_graph if pays(model.embed_tokens.weight.device) else None


class TokenSampler:
    """Samples one image token of every picture from the rows' hidden states."""

    def __init__(self, model: NextStepModel, settings: DecodeSettings, branches: list[str]) -> None:
        self.settings, self.branches = settings, branches
        self.core = core_of(model)
        self.fixed = FixedSampler(model, branches, settings.token_norm, recorder(model))

    def sample(self, hidden: Tensor, draws: Tensor, index: int) -> Tensor:
        """hidden [R, E], draws [draws, B, D] -> tokens [B, D], fp32."""
        settings = self.settings
        weights = settings.guidance.weights(index, settings.tokens, settings.has_images)
        solver = settings.solver.at(index, settings.tokens)
        draws = draws[: solver.draws]
        if self.core is None:
            return self.fixed(hidden, draws, solver, weights)
        shares, b = [weights[name] for name in self.branches], len(self.branches)
        rows = zip(hidden.view(b, -1, hidden.shape[-1]).unbind(1), draws.unbind(1), strict=True)
        token = self.core.sample([CoreWant(*row, solver, shares) for row in rows])
        return token_norm(token) if settings.token_norm else token


class DecodeState:
    """Cache and positions of the rows while a picture grows."""

    def __init__(
        self, model: NextStepModel, cache: KVCache, valid: Tensor, coordinates: Tensor
    ) -> None:
        self.model, self.cache, self.coordinates = model, cache, coordinates
        self.index = 0
        self.lengths = valid.sum(dim=1)
        self.padding = (valid.shape[1] - self.lengths).tolist()
        padded = bool((self.lengths < valid.shape[1]).any())
        self.valid: Tensor | None = valid if padded else None
        record = recorder(model)
        self.fixed = FixedStep(model, cache, valid, record) if record else None

    def step(self, tokens: Tensor) -> Tensor:
        """Feed one image token a row, [R, D] -> hidden [R, E]."""
        model = self.model
        embedded = model.embed_image(tokens, self.coordinates[self.index : self.index + 1])
        self.index += 1
        core = core_of(model)
        if core is not None:
            position = self.cache.length
            places = [
                RowPlace(self.cache, row, self.padding[row], position) for row in range(len(tokens))
            ]
            return core.feed(embedded, places)
        if self.fixed is not None:
            return self.fixed(embedded)
        mask = None
        if self.valid is not None:
            self.valid = torch.cat((self.valid, self.valid.new_ones(len(tokens), 1)), dim=1)
            mask = self.valid[:, None, None]
        hidden = model.hidden(embedded[:, None], self.lengths[:, None], mask, self.cache)
        self.lengths = self.lengths + 1
        return hidden[:, 0]


def _prefill(
    model: NextStepModel, rows: list[Prompt], grid: tuple[int, int]
) -> tuple[DecodeState, Tensor]:
    """Read all prompts, padded on the left; hidden states [R, E] of their last positions.

    Equal prompts, such as those without the text, are read once.
    """
    device = model.embed_tokens.weight.device
    keys = [(tuple(row.ids), tuple(map(id, row.image_tokens))) for row in rows]
    first = dict(zip(keys, rows, strict=True))
    unlike = list(first)
    places = [unlike.index(key) for key in keys]
    rows = list(first.values())
    ids, valid = left_pad([list(row.ids) for row in rows], model.config.pad_id)
    ids, valid = ids.to(device), valid.to(device)
    pictures = [tokens.to(device) for row in rows for tokens in row.image_tokens]
    given = [raster_coordinates(grid).to(device) for row in rows for grid in row.grids]
    embeddings = model.embed(
        ids,
        torch.cat(pictures) if pictures else None,
        torch.cat(given) if given else None,
    )
    cache = KVCache(model.config, len(rows), ids.shape[1], embeddings.dtype, device)
    positions, mask = padded_positions(valid)
    hidden = model.hidden(embeddings, positions, mask, cache)
    cache.spread(places, ids.shape[1] + grid[0] * grid[1])
    coordinates = raster_coordinates(grid).to(device)
    return DecodeState(model, cache, valid[places], coordinates), hidden[places, -1]


def left_pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids [R, S], valid [R, S]) with padding in front."""
    S = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (S - len(row)) + row for row in rows])
    valid = torch.tensor([[False] * (S - len(row)) + [True] * len(row) for row in rows])
    return ids, valid


def padded_positions(valid: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rotary positions [R, S] that count from each row's first real id, and the mask.

    A row's positions do not depend on its neighbours' lengths. Padding looks at itself, because
    a softmax over nothing is not a number.
    """
    positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
    if bool(valid.all()):
        return positions, None
    S = valid.shape[1]
    causal = torch.ones(S, S, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(S, dtype=torch.bool, device=valid.device)
    return positions, (causal & valid[:, None, :] | itself)[:, None]
