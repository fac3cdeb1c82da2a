"""Passes through the backbone that give a row the same bytes in any company.

Matrix products on a CPU choose their way of adding by the number of rows. Here every product of a
running picture has R = `ROWS` rows, filled up with zeros, and attention is one call a row over that
row's own keys; so a row's result depends on the row alone, wherever it stands and whatever stands
beside it. Prompts are read one by one in their own shape.

The same pass takes up R known tokens of one picture at once: their keys are stored before any of
them looks, and each looks at those before itself. That rebuilds a cache from tokens byte for byte.

Legend: R rows of a block, n rows of a call, E hidden size, H query heads, G key/value heads,
d head size, D values per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nextstep.engine.backends.cpu_kernels import RowPlace, core_of
from nextstep.engine.decode import Prompt
from nextstep.errors import NextStepError
from nextstep.model.attention import attend
from nextstep.model.backbone import Layer, rotary_angles, rotate
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import raster_coordinates

ROWS = 8
"""R. Pictures are byte-equal for one R; another one gives other roundings."""


MIXED = (
    f"matrix products on this machine change a row with its place in a block of {ROWS}; "
    "try one thread (OMP_NUM_THREADS=1), or another number format"
)


class Place(NamedTuple):
    """Where a row stands: its cache, and the position its keys are stored at."""

    cache: KVCache
    position: int


def filled(rows: Tensor, size: int = ROWS) -> Tensor:
    """Rows [n, ...] with zeros behind, up to a multiple of `size`."""
    missing = -len(rows) % size
    if not missing:
        return rows.contiguous()
    return torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))


def blockwise(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A function of [R, ...] applied to [n, ...] in blocks."""
    blocks = filled(rows).split(ROWS)
    return torch.cat([function(block) for block in blocks])[: len(rows)]


def cache_bytes(model: NextStepModel, positions: int) -> int:
    """Memory of one row's keys and values."""
    config = model.config
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return values * positions * model.embed_tokens.weight.element_size()


@torch.inference_mode()
def read_prompt(model: NextStepModel, prompt: Prompt, room: int) -> tuple[KVCache, Tensor]:
    """Read one row's prompt.

    Args:
        model: in eval mode.
        prompt: ids and source pictures.
        room: positions kept free behind it.

    Returns:
        The cache, and the last position's hidden state [E].
    """
    weight = model.embed_tokens.weight
    device = weight.device
    pictures = [tokens.to(device) for tokens in prompt.image_tokens]
    places = [raster_coordinates(grid).to(device) for grid in prompt.grids]
    embeddings = model.embed(
        torch.tensor([list(prompt.ids)], device=device),
        torch.cat(pictures) if pictures else None,
        torch.cat(places) if places else None,
    )
    cache = KVCache(model.config, 1, len(prompt.ids) + room, weight.dtype, device)
    return cache, model.hidden(embeddings, cache=cache)[0, -1]


@torch.inference_mode()
def feed(
    model: NextStepModel, tokens: Tensor, coordinates: Tensor, places: Sequence[Place]
) -> Tensor:
    """Take up one image token a row.

    Args:
        model: in eval mode.
        tokens: [n, D].
        coordinates: [n, 2] of the tokens in their pictures.
        places: n of them; rows of one cache stand in order.

    Returns:
        Hidden states [n, E].
    """
    where = filled(coordinates.to(model.embed_tokens.weight.device))
    blocks = zip(filled(tokens).split(ROWS), where.split(ROWS), strict=True)
    embedded = torch.cat([model.embed_image(*block) for block in blocks])
    return feed_embedded(model, embedded[: len(places)], places)


@torch.inference_mode()
def feed_embedded(model: NextStepModel, embedded: Tensor, places: Sequence[Place]) -> Tensor:
    """Take up one position a row, of any kind.

    Args:
        model: in eval mode.
        embedded: [n, E], input embeddings.
        places: n of them; rows of one cache stand in order.

    Returns:
        Hidden states [n, E].
    """
    core = core_of(model)
    if core is not None:
        rows = [RowPlace(place.cache, 0, 0, place.position) for place in places]
        return core.feed(embedded, rows)
    blocks = zip(range(0, len(places), ROWS), filled(embedded).split(ROWS), strict=True)
    made = [_through_layers(model, x, places[first : first + ROWS]) for first, x in blocks]
    return torch.cat(made)


def _through_layers(model: NextStepModel, x: Tensor, places: Sequence[Place]) -> Tensor:
    """[R, E] -> hidden states of as many rows as there are places."""
    device = model.embed_tokens.weight.device
    positions = filled(torch.tensor([[place.position] for place in places], device=device))
    config = model.config
    angles = rotary_angles(positions, config.head_dim, config.rope_theta)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        x = x + _attention(layer, layer.input_layernorm(x), angles, places)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    for place in places:
        place.cache.length = max(place.cache.length, place.position + 1)
    hidden: Tensor = model.norm(x)
    return hidden[: len(places)]


def _attention(
    layer: Layer, x: Tensor, angles: tuple[Tensor, Tensor], places: Sequence[Place]
) -> Tensor:
    """[R, E] -> [R, E]."""
    own = layer.self_attn
    R = len(x)
    q = rotate(own.q_proj(x).view(R, own.H, 1, own.d), angles)
    k = rotate(own.k_proj(x).view(R, own.G, 1, own.d), angles)
    v = own.v_proj(x).view(R, own.G, 1, own.d)
    for row, (cache, position) in enumerate(places):
        cache.keys[own.layer][0, :, position] = k[row, :, 0]
        cache.values[own.layer][0, :, position] = v[row, :, 0]
    out = torch.zeros_like(q)
    for row, (cache, position) in enumerate(places):
        keys, values = cache.keys[own.layer], cache.values[own.layer]
        end = position + 1
        out[row] = attend(q[row : row + 1], keys[:, :, :end], values[:, :, :end], None)[0]
    return own.o_proj(out.view(R, own.H * own.d))


@torch.inference_mode()
def check_rows(model: NextStepModel) -> None:
    """Make sure that a row of the backbone gets the same bytes at every place of a block.

    Raises:
        NextStepError: when they do not.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    weight = model.embed_tokens.weight
    draws = torch.randn(ROWS, config.token_size, generator=generator).to(weight.device)

    def states(tokens: Tensor) -> Tensor:
        caches = [KVCache(config, 1, 1, weight.dtype, weight.device) for _ in tokens]
        origin = torch.zeros(len(tokens), 2, dtype=torch.long)
        return feed(model, tokens, origin, [Place(cache, 0) for cache in caches])

    together = states(draws)
    for row in range(ROWS):
        moved = states(draws.roll(row + 1, 0))[(2 * row + 1) % ROWS]
        alone = states(draws[row : row + 1])[0]
        if not (torch.equal(together[row], moved) and torch.equal(together[row], alone)):
            raise NextStepError(MIXED)
