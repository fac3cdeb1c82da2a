"""Keys and values of the positions already read, kept in buffers of fixed size.

Legend: B rows, G key-value heads, S new positions, capacity: positions a buffer holds, d values per
head.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from nextstep.config import NextStepConfig


class KVCache:
    """Static key/value cache.

    Args:
        config: gives layers, key/value heads and head size.
        rows: B.
        capacity: largest number of positions.
        dtype, device: of the stored tensors.
        by_position: let a position's heads lie side by side, so that storing it touches one page of
            memory a row and not one a head. Seen from outside, heads come first either way.
    """

    def __init__(
        self,
        config: NextStepConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        by_position: bool = False,
    ) -> None:
        rest = (config.num_key_value_heads, capacity, config.head_dim)
        if by_position:
            rest = (capacity, config.num_key_value_heads, config.head_dim)
        shape = (config.num_hidden_layers, 2, rows, *rest)
        store = torch.zeros(shape, dtype=dtype, device=device)
        self._keep(store.transpose(3, 4) if by_position else store)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, G, S, d] after what is there; returns all T positions of this layer.

        Raises:
            ValueError: when the positions do not fit.
        """
        end = self.length + k.shape[2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} were asked for")
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, positions: int) -> None:
        """Count positions as read, after every layer has stored them."""
        self.length += positions

    def rewind(self, length: int) -> None:
        """Forget all positions from `length` on.

        Raises:
            ValueError: when there are fewer.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"the cache holds {self.length} positions, not {length}")
        self.length = length

    def copy(self) -> KVCache:
        """A cache of its own with the same contents."""
        other = copy.copy(self)
        other._keep(self.store.clone())
        return other

    def _keep(self, store: Tensor) -> None:
        """Take [layers, 2, B, G, capacity, d] as what is stored; keys come before values."""
        self.store, self.capacity = store, store.shape[-2]
        self.keys, self.values = list(store[:, 0]), list(store[:, 1])
