"""Rows of keys and values that lie together, so that one call attends for all of them.

Legend: L layers, G key/value heads, S positions, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextstep.config import NextStepConfig
from nextstep.engine.backends.base import CacheRow
from nextstep.model.cache import KVCache

STRIDE, CPU_STRIDE = 64, 16
"""Positions by which the pool grows; each growth copies everything, and records CUDA graphs anew.
A CPU reads rows faster that lie closer together."""


class CachePool:
    """The rows in use are always the first ones: a row that is given back is filled by the last.

    Args:
        config, dtype, device: of the model.

    Attributes:
        growths: counts how often the memory moved, for who remembers its address.
    """

    def __init__(
        self, config: NextStepConfig, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.growths = 0
        self.slots: list[CacheRow] = []
        self.cache = KVCache(config, 0, 0, dtype, device, by_position=True)

    def add(self, store: Tensor, room: int) -> CacheRow:
        """A row that begins with the keys and values [L, 2, G, S, d] and has `room` more."""
        S = store.shape[3]
        self.reserve(len(self.slots) + 1, S + room)
        slot = CacheRow(self.cache, len(self.slots))
        self.cache.store[:, :, slot.row, :, :S] = store
        self.slots.append(slot)
        return slot

    def release(self, slot: CacheRow) -> None:
        """Give a row back."""
        last = self.slots.pop()
        if last is not slot:
            self.cache.store[:, :, slot.row] = self.cache.store[:, :, last.row]
            self.slots[slot.row] = last
            last.row = slot.row

    def reserve(self, rows: int, positions: int) -> None:
        """Have memory for so many rows of so many positions."""
        old, used = self.cache.store, len(self.slots)
        have, capacity = old.shape[2], self.cache.capacity
        # Unused memory of long sequences is given back, so that short ones need not look at it.
        wasteful = not used and capacity > 2 * positions + STRIDE
        if rows <= have and positions <= capacity and not wasteful:
            return
        stride = CPU_STRIDE if torch.device(self.device).type == "cpu" else STRIDE
        whole = -(-positions // stride) * stride
        if not wasteful:
            rows, whole = max(rows, have if rows <= have else 2 * have), max(capacity, whole)
        new = KVCache(self.config, rows, whole, self.dtype, self.device, by_position=True)
        if used:
            new.store[:, :, :used, :, :capacity] = old[:, :, :used]
        self.cache, self.growths = new, self.growths + 1
        for slot in self.slots:
            slot.cache = new
