"""How the next text id is chosen from its logits.

Legend: V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from nextstep.errors import NextStepError

Choose = Callable[[Tensor], int]
"""Logits [V] -> an id."""
TINY = 1e-30
"""Temperatures below are this one: in fp32 they would be 0."""
HUGE = 1e30
"""Temperatures above are this one: in fp32 they would be infinite."""


def greedy(logits: Tensor) -> int:
    """The likeliest id."""
    return int(logits.argmax())


class NucleusChoice:
    """Draws ids from a stream of its own.

    Args:
        temperature: divides the logits; above 0.
        top_p: the smallest set of ids with this probability is drawn from.
        seed: of the stream.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> int:
        """logits [V] -> an id."""
        logits = logits.float().cpu()
        # The largest becomes 0, so that dividing by a tiny temperature overflows to minus infinity.
        scaled = (logits - logits.max()) / min(max(self.temperature, TINY), HUGE)
        shares, ids = scaled.softmax(-1).sort(descending=True)
        # An id stays when those before it have not yet filled top_p; the first always stays.
        gone = (shares.cumsum(-1) - shares) >= self.top_p
        gone[0] = False
        shares[gone] = 0
        return int(ids[torch.multinomial(shares, 1, generator=self.generator)])


def text_choice(seed: int, position: int, temperature: float, top_p: float) -> Choose:
    """How ids of a text are chosen that begins at a position of its sequence.

    Raises:
        NextStepError: for a temperature or share out of range.
    """
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise NextStepError(
            "temperature must be a number from 0 on and top-p in (0, 1], not "
            f"{temperature} and {top_p}"
        )
    if temperature == 0:
        return greedy
    place = hashlib.sha256(f"text {seed} {position}".encode()).digest()
    return NucleusChoice(temperature, top_p, int.from_bytes(place[:8], "little") >> 1)
