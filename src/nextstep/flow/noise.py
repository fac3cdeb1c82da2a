"""Noise that belongs to a picture: neighbours, batch size and order cannot change it.

Legend: B pictures, D values per token; every token has its own noise samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Gives each token's draws for all pictures of a batch."""

    def token(self, index: int) -> Tensor:
        """Draws of token `index`, [draws, B, D]; called once per token, in order."""


def picture_key(seed: int, index: int) -> int:
    """63-bit key of picture `index` of a request with `seed`."""
    digest = hashlib.sha256(f"nextstep noise {seed} {index}".encode()).digest()
    # A hash, so that no two pairs share a stream as sums of seed and index would; 63 bits, so that
    # the key fits into a signed integer.
    return int.from_bytes(digest[:8], "little") >> 1


AHEAD = 32
"""Tokens whose draws are made in one call."""
BLOCK = 16
"""Values that PyTorch makes at a time: only whole blocks are the same in one call and in many."""


class KeyedNoise:
    """One generator per picture, read in token and step order.

    Args:
        keys: (seed, index) of every picture in the batch.
        draws: standard normal vectors each token takes.
        size: D, values per vector.

    Draws are made on the CPU, so the device does not change them either, and rounded from fp64,
    because in fp32 their last bits depend on the processor's instructions.
    """

    def __init__(self, keys: list[tuple[int, int]], draws: int, size: int) -> None:
        self.draws, self.size = draws, size
        self._ahead: Iterator[Tensor] = iter(())
        self.generators = [
            torch.Generator().manual_seed(picture_key(seed, index)) for seed, index in keys
        ]

    def token(self, index: int) -> Tensor:
        """The next token's draws, [draws, B, D]."""
        made = next(self._ahead, None)
        if made is None:
            self._ahead = iter(self._draw().unbind())
            made = next(self._ahead)
        return made

    def _draw(self) -> Tensor:
        """Draws of the next tokens, [tokens, draws, B, D]."""
        tokens = AHEAD if self.draws * self.size % BLOCK == 0 else 1
        shape = (tokens, self.draws, self.size)
        draws = [
            torch.randn(shape, generator=g, dtype=torch.float64).float() for g in self.generators
        ]
        return torch.stack(draws, dim=2)


class RecordedNoise:
    """Draws given beforehand, for parity with recordings: [tokens, draws, B, D]."""

    def __init__(self, draws: Tensor) -> None:
        self.recorded = draws

    def token(self, index: int) -> Tensor:
        """Draws of token `index`, [draws, B, D]."""
        return self.recorded[index]


class OnePicture:
    """The draws of one picture of several that were recorded together.

    Args:
        noise: of all of them.
        place: which.
    """

    def __init__(self, noise: NoiseSource, place: int) -> None:
        self.noise, self.place = noise, place

    def token(self, index: int) -> Tensor:
        """Draws of token `index`, [draws, 1, D]."""
        return self.noise.token(index)[:, self.place : self.place + 1]
