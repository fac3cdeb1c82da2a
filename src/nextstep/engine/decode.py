"""How the image tokens of one picture are sampled.

Legend: N tokens of a picture, D values per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from nextstep.engine.jacobi import ONE_AFTER_ANOTHER, JacobiDecoding
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SolverSettings


@dataclass(frozen=True)
class DecodeSettings:
    """How tokens are sampled.

    Attributes:
        grid: (rows, columns) of the picture.
        solver, guidance: see their classes.
        token_norm: normalise each sampled token before it is fed back and decoded.
        has_images: whether source pictures stand before it.
        jacobi: how many tokens one pass samples.
    """

    grid: tuple[int, int]
    solver: SolverSettings
    guidance: GuidanceSettings
    token_norm: bool = True
    has_images: bool = False
    jacobi: JacobiDecoding = ONE_AFTER_ANOTHER

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def branches(self) -> list[str]:
        """Names of the branches that must run."""
        return self.guidance.branches(self.tokens, self.has_images)


@dataclass(frozen=True)
class FixedTokens:
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
