"""Several image tokens of one picture in one pass: guesses take the places of those not yet known.

With its noise given, a picture is a function of its prompt: token i follows from the tokens before
it and its own draws. So tokens that are not known yet can be sampled behind guesses of those before
them, and sampled again behind better ones, until they settle (Jacobi iteration; for language models
arXiv 2305.10427, for discrete image tokens arXiv 2410.01699). A pass then reads all weights once
for several tokens. Of continuous tokens none repeats to the last bit; one counts as settled when it
lies within a tolerance of the guess that stood in its place, and the guess, which everything behind
it was sampled from, stays. So keys and values always belong to the very tokens of the picture.

Legend: N tokens of the picture, D values per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MOST_AT_ONCE = 64
DEFAULT_TOLERANCE = 0.01


@dataclass(frozen=True)
class JacobiDecoding:
    """How many image tokens one pass samples, and when a guess counts as sampled.

    Attributes:
        window: tokens sampled in one pass; 1 is one after another, without guesses.
        tolerance: root mean square of the distance at which a token, whose values have about unit
            variance, counts as its guess.

    Raises:
        ValueError: for a value out of range.
    """

    window: int = 1
    tolerance: float = DEFAULT_TOLERANCE

    def __post_init__(self) -> None:
        if not 1 <= self.window <= MOST_AT_ONCE:
            raise ValueError(f"jacobi_window must be 1 to {MOST_AT_ONCE} tokens, not {self.window}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"jacobi_tolerance must lie between 0 and 1, not {self.tolerance}")

    def room(self, index: int, count: int, is_given: Callable[[int], bool]) -> int:
        """How many tokens from `index` on are guessed.

        The last of a picture, and one whose successor is given, have none sampled behind them.

        Args:
            index: of the first token that is not known.
            count: N.
            is_given: whether a token is given instead of sampled.
        """
        most = min(self.window, count - index) - 1
        for ahead in range(most):
            if is_given(index + ahead + 1):
                return ahead
        return max(0, most)

    def settle(self, made: Sequence[Tensor], guesses: Sequence[Tensor]) -> list[Tensor]:
        """The tokens that are known now, in order; at least the first.

        Args:
            made: sampled together, each [D]; number j was sampled behind the first j guesses.
            guesses: one fewer, in order.
        """
        known = [made[0]]
        for guess, behind in zip(guesses, made[1:], strict=True):
            if not bool((guess - known[-1]).square().mean().sqrt() <= self.tolerance):
                break
            known[-1] = guess
            known.append(behind)
        return known


ONE_AFTER_ANOTHER = JacobiDecoding()


def guesses(left: Sequence[Tensor], room: int, size: int) -> list[Tensor]:
    """The next guesses: tokens sampled for these places last, zeros where there were none.

    Args:
        left: what was made and is not known, in order.
        room: how many are wanted.
        size: D.
    """
    import torch

    return [*left[:room], *(torch.zeros(size) for _ in range(room - len(left)))]
