"""The plain backend: any device, any number format, the reference for the other two.

With `block_rows` a row gets the same bytes in any batch. Matrix products on a CPU choose their way
of adding by the number of rows, so every product has R rows then, filled up with zeros, attention
is one call a row over that row's own keys, and prompts are read one by one. R is `ROWS` where the
machine's products treat all rows of such a block alike, and less where they do not (MKL held to
AVX2 adds the last rows of a block of 8 in another order); with 1 no row ever meets another.
With 0 a step is one product of all rows and one call of attention over a pool of caches.

The same pass takes up many known tokens of one picture at once: their keys are stored before any of
them looks, and each looks at those before itself. With blocks that rebuilds a cache byte for byte.

Legend: R rows of a block, n rows of a call, S prompt positions, T positions of the keys, E hidden
size, H query heads, G key/value heads, d head size, D values per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nextstep.engine.backends.base import (
    ROWS,
    CacheRow,
    Place,
    Prefilled,
    Prompt,
    SampleRequest,
    blockwise,
    distinct,
    filled,
    shared,
)
from nextstep.engine.backends.cache_pool import CachePool
from nextstep.engine.backends.sampling_head import SamplingHead
from nextstep.errors import NextStepError
from nextstep.flow.guidance import CONDITIONAL
from nextstep.flow.solvers import SolverSettings
from nextstep.model.attention import attend
from nextstep.model.backbone import Attention, Layer, rotary_angles, rotate
from nextstep.model.cache import KVCache
from nextstep.model.nextstep import NextStepModel
from nextstep.vae.latents import raster_coordinates

SMALLER = (4, 2, 1)
"""Rows of a block where `ROWS` do not fit the machine."""
MIXED = (
    "matrix products on this machine do not repeat themselves; try one thread (OMP_NUM_THREADS=1), "
    "or another number format"
)
STRIPES = 8
"""Most groups of rows that are stored one by one; of more, one call for all rows is faster."""
Stripe = tuple[slice, int]
"""Rows, of a step and of the pool, and the position that all of them are at."""
Attend = Callable[[Attention, Tensor, Tensor, Tensor], Tensor]
"""(attention, q [n, H, 1, d], k [n, G, 1, d], v [n, G, 1, d]) -> [n, H, 1, d]."""


def cache_bytes(model: NextStepModel, positions: int) -> int:
    """Memory of one row's keys and values."""
    config = model.config
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return values * positions * model.embed_tokens.weight.element_size()


class TorchBackend:
    """See `Backend`.

    Args:
        model: in eval mode, with plain weights.
        block_rows: R, see above; `check` may lower it.
    """

    name = "torch"

    def __init__(self, model: NextStepModel, block_rows: int = ROWS) -> None:
        self.model, self.block_rows = model, block_rows
        weight = model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.head = SamplingHead(model, block_rows or None)
        self.pool = None if block_rows else CachePool(model.config, self.dtype, self.device)

    @torch.inference_mode()
    def check(self) -> None:
        """See `Backend.check`; takes the most rows of a block that this machine keeps apart."""
        if not self.block_rows:
            return
        smaller = (rows for rows in SMALLER if rows < self.block_rows)
        while not (self._keeps_states_apart() and self._keeps_tokens_apart()):
            self.block_rows = next(smaller, 0)
            if not self.block_rows:
                raise NextStepError(MIXED)
            self.head = SamplingHead(self.model, self.block_rows)

    def _keeps_states_apart(self) -> bool:
        """Whether a row of a step has the same bytes in any place, among others and alone."""
        config, generator = self.model.config, torch.Generator().manual_seed(0)
        draws = torch.randn(ROWS, config.token_size, generator=generator)

        def states(tokens: Tensor) -> Tensor:
            caches = [KVCache(config, 1, 1, self.dtype, self.device) for _ in tokens]
            embedded = self.embed_images(tokens, torch.zeros(len(tokens), 2, dtype=torch.long))
            return self.step(embedded, [Place(CacheRow(cache), 0) for cache in caches])

        together = states(draws)
        for row in range(ROWS):
            moved = states(draws.roll(row + 1, 0))[(2 * row + 1) % ROWS]
            alone = states(draws[row : row + 1])[0]
            if not (torch.equal(together[row], moved) and torch.equal(together[row], alone)):
                return False
        return True

    def _keeps_tokens_apart(self) -> bool:
        """The same of what is sampled."""
        config, generator = self.model.config, torch.Generator().manual_seed(0)
        hidden = torch.randn(ROWS, config.hidden_size, generator=generator)
        draws = torch.randn(ROWS, 1, config.token_size, generator=generator)
        solver, one = SolverSettings("ode", 1), {CONDITIONAL: 1.0}
        states = hidden.to(self.device, self.dtype)
        requests = [
            SampleRequest(states[row : row + 1], draws[row], solver, (CONDITIONAL,), one, False)
            for row in range(ROWS)
        ]
        together = self.sample(requests)
        for row, request in enumerate(requests):
            moved = self.sample([*requests[row:], *requests[:row]])
            if not torch.equal(together[row], self.sample([request])[0]) or not all(
                torch.equal(together[(row + place) % ROWS], moved[place]) for place in range(ROWS)
            ):
                return False
        return True

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Prompt], room: Sequence[int]) -> list[Prefilled]:
        """See `Backend.prefill`."""
        firsts, which = distinct(prompts, room)
        unlike = [prompts[place] for place in firsts]
        if self.pool is None:
            read = [self._read(prompts[place], room[place]) for place in firsts]
            return shared([Prefilled(CacheRow(cache), state) for cache, state in read], which)
        if len(unlike) > 1:
            stores, states = self._read_together(unlike)
        else:
            cache, state = self._read(unlike[0], 0)
            stores, states = [cache.store[:, :, 0]], [state]
        longest = max(len(one.ids) + free for one, free in zip(prompts, room, strict=True))
        self.pool.reserve(len(self.pool.slots) + len(prompts), longest)
        return [
            Prefilled(self.pool.add(stores[kind], free), states[kind])
            for kind, free in zip(which, room, strict=True)
        ]

    @torch.inference_mode()
    def embed_images(self, tokens: Tensor, coordinates: Tensor) -> Tensor:
        """See `Backend.embed_images`."""
        tokens, coordinates = tokens.to(self.device), coordinates.to(self.device)
        if not self.block_rows:
            return self.model.embed_image(tokens, coordinates)
        blocks = zip(self._blocks(tokens), self._blocks(coordinates), strict=True)
        return torch.cat([self.model.embed_image(*block) for block in blocks])[: len(tokens)]

    def _blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return filled(rows, self.block_rows).split(self.block_rows)

    @torch.inference_mode()
    def embed_ids(self, ids: Sequence[int]) -> Tensor:
        """See `Backend.embed_ids`."""
        return self.model.embed_tokens(torch.tensor(ids, device=self.device))

    @torch.inference_mode()
    def step(self, embedded: Tensor, places: Sequence[Place]) -> Tensor:
        """See `Backend.step`."""
        if self.pool is not None:
            return self._together(embedded, places)
        R = self.block_rows
        blocks = zip(self._blocks(embedded), range(0, len(places), R), strict=True)
        return torch.cat([self._block(x, places[i : i + R]) for x, i in blocks])

    @torch.inference_mode()
    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """See `Backend.sample`."""
        return self.head.sample(requests)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """See `Backend.logits`."""
        if not self.block_rows:
            return self.model.text_logits(hidden)
        return blockwise(self.model.text_logits, hidden, self.block_rows)

    @torch.inference_mode()
    def release(self, slot: CacheRow) -> None:
        """See `Backend.release`."""
        if self.pool is not None:
            self.pool.release(slot)

    def _read(self, prompt: Prompt, room: int) -> tuple[KVCache, Tensor]:
        """One prompt in its own shape: its cache and the last position's state [E]."""
        cache = KVCache(self.model.config, 1, len(prompt.ids) + room, self.dtype, self.device)
        embeddings = self._embed([prompt], torch.tensor([list(prompt.ids)]))
        return cache, self.model.hidden(embeddings, cache=cache)[0, -1]

    def _read_together(self, prompts: Sequence[Prompt]) -> tuple[list[Tensor], Sequence[Tensor]]:
        """All prompts in one pass, padded on the left: keys and values [L, 2, G, S, d], states."""
        ids, valid = left_pad([list(prompt.ids) for prompt in prompts], self.model.config.pad_id)
        cache = KVCache(self.model.config, len(ids), ids.shape[1], self.dtype, self.device)
        positions, mask = padded_positions(valid.to(self.device))
        hidden = self.model.hidden(self._embed(prompts, ids), positions, mask, cache)[:, -1]
        stores = [
            store[:, :, :, ids.shape[1] - len(prompt.ids) :]
            for store, prompt in zip(cache.store.unbind(2), prompts, strict=True)
        ]
        return stores, hidden.unbind()

    def _embed(self, prompts: Sequence[Prompt], ids: Tensor) -> Tensor:
        """Input embeddings of prompts with their pictures, [n, S] -> [n, S, E]."""
        pictures = [t.to(self.device) for prompt in prompts for t in prompt.image_tokens]
        grids = [grid for prompt in prompts for grid in prompt.grids]
        places = [raster_coordinates(grid).to(self.device) for grid in grids]
        return self.model.embed(
            ids.to(self.device),
            torch.cat(pictures) if pictures else None,
            torch.cat(places) if places else None,
        )

    def _block(self, x: Tensor, places: Sequence[Place]) -> Tensor:
        """[R, E] -> states of as many rows as there are places."""
        positions = torch.tensor([place.position for place in places], device=self.device)

        def attention(own: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """One call a row; keys of all rows are stored before any of them looks."""
            for row, (slot, position) in enumerate(places):
                slot.cache.keys[own.layer][0, :, position] = k[row, :, 0]
                slot.cache.values[own.layer][0, :, position] = v[row, :, 0]
            out = torch.zeros_like(q)
            for row, (slot, position) in enumerate(places):
                keys, values = slot.cache.keys[own.layer], slot.cache.values[own.layer]
                end = position + 1
                out[row] = attend(q[row : row + 1], keys[:, :, :end], values[:, :, :end], None)[0]
            return out

        return self._layers(x, filled(positions, self.block_rows), attention)[: len(places)]

    def _together(self, x: Tensor, places: Sequence[Place]) -> Tensor:
        """[n, E] -> states [n, E], with one call of attention for all rows."""
        assert self.pool is not None
        rows = [place.slot.row for place in places]
        order = sorted(range(len(rows)), key=rows.__getitem__)
        positions = [places[i].position for i in order]
        if order == list(range(len(order))):
            return self._pooled_step(x, positions, rows)
        back = torch.tensor(order, device=self.device)
        made = self._pooled_step(x[back], positions, [rows[i] for i in order])
        return torch.empty_like(made).index_copy_(0, back, made)

    def _pooled_step(self, x: Tensor, positions: list[int], rows: list[int]) -> Tensor:
        """[n, E] at positions of the pool's rows, which ascend -> [n, E]."""
        length, mask = max(positions) + 1, None
        where, at = (torch.tensor(list_, device=self.device) for list_ in (rows, positions))
        if len(set(positions)) > 1:
            later = torch.arange(length, device=self.device) > at[:, None]
            # In numbers: a mask of truths would be turned into these anew by every layer.
            mask = torch.zeros_like(later, dtype=x.dtype).masked_fill_(later, -torch.inf)
            mask = mask[:, None, None]
        # The first rows are read where they lie; others, and repeated ones, are copied.
        if rows != list(range(len(rows))):
            return self._attend_pool(x, at, [], where, where, length, mask)
        read = slice(0, len(rows))
        return self._attend_pool(x, at, stripes(positions), where, read, length, mask)

    def _attend_pool(
        self, x: Tensor, positions: Tensor, stored: Sequence[Stripe], rows: Tensor,
        read: slice | Tensor, length: int, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """A step whose keys are stored as `stored` says and read from rows `read`.

        Args:
            x: [n, E].
            positions: [n].
            stored: together all rows, which are the pool's first; where empty, rows are stored by
                their numbers.
            rows: [n] of the pool.
            read: the same, as a slice where they are its first.
            length: T, positions that are looked at.
            mask: [n, 1, 1, T], as `attend` takes it, or None where all are.
        """
        assert self.pool is not None
        cache = self.pool.cache
        # Views of all layers at once: layer by layer they take half as long as attention itself.
        written = [
            (own, [part.unbind() for part in cache.store[:, :, own, :, at : at + 1].unbind(1)])
            for own, at in stored
        ]
        first = slice(None) if isinstance(read, Tensor) else read
        seen = [part.unbind() for part in cache.store[:, :, first, :, :length].unbind(1)]

        def attention(own: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for stripe, (keys, values) in written:
                keys[own.layer].copy_(k[stripe])
                values[own.layer].copy_(v[stripe])
            if not written:
                cache.keys[own.layer][rows, :, positions] = k[:, :, 0]
                cache.values[own.layer][rows, :, positions] = v[:, :, 0]
            k, v = (part[own.layer] for part in seen)
            if isinstance(read, Tensor):
                k, v = k[read], v[read]
            return attend(q, k, v, mask)

        return self._layers(x, positions, attention)

    def _layers(self, x: Tensor, positions: Tensor, attention: Attend) -> Tensor:
        """All layers and the final norm, [n, E] -> [n, E]."""
        config = self.model.config
        angles = rotary_angles(positions[:, None], config.head_dim, config.rope_theta)
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            own, h = layer.self_attn, layer.input_layernorm(x)
            turned = torch.cat((own.q_proj(h), own.k_proj(h)), dim=-1)
            turned = rotate(turned.view(len(x), own.H + own.G, 1, own.d), angles)
            q, k = turned.split((own.H, own.G), dim=1)
            v = own.v_proj(h).view(len(x), own.G, 1, own.d)
            x = x + own.o_proj(attention(own, q, k, v).reshape(len(x), own.H * own.d))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        hidden: Tensor = self.model.norm(x)
        return hidden


def stripes(positions: list[int]) -> list[Stripe]:
    """How the pool's first rows are stored in few evenly spaced groups; empty where they are not.

    The rows of one branch of equally long prompts are such a group. Storing one at once is several
    times as fast as storing rows by their numbers.
    """
    alike: dict[int, list[int]] = {}
    for row, position in enumerate(positions):
        alike.setdefault(position, []).append(row)
    found: list[Stripe] = []
    for position, rows in alike.items():
        even = range(rows[0], rows[-1] + 1, rows[1] - rows[0] if len(rows) > 1 else 1)
        if len(alike) > STRIPES or rows != list(even):
            return []
        found.append((slice(even.start, even.stop, even.step), position))
    return found


def left_pad(rows: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids [n, S], valid [n, S]) with padding in front."""
    S = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (S - len(row)) + row for row in rows])
    valid = torch.tensor([[False] * (S - len(row)) + [True] * len(row) for row in rows])
    return ids, valid


def padded_positions(valid: Tensor) -> tuple[Tensor, Tensor | None]:
    """Rotary positions [n, S] that count from each row's first real id, and the mask.

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
