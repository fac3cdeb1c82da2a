"""Mixing sources by a ratio of samples or of tokens, exact over a window.

Nothing is drawn by chance: the source that is most behind its share comes next. Shares are whole
numbers (0.2 : 0.6 : 0.2 is 1 : 3 : 1), so nothing drifts, and a mix by samples holds exactly over
every window of their sum; a mix by tokens stays within about one document of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, isfinite, lcm
from typing import Any, Literal, Protocol

from nextstep.data.documents import derived_seed
from nextstep.data.order import epoch_index
from nextstep.errors import NextStepError


class Named(Protocol):
    """What mixing needs to know of a source."""

    name: str

    def __len__(self) -> int:
        """Samples of one epoch."""


@dataclass(frozen=True)
class SampleUse:
    """One use of one sample.

    Attributes:
        source: which source, by its place in the mixture.
        position: how many draws of this source came before, over all epochs.
        epoch: position // samples of the source.
        index: the sample, shuffled anew every epoch.
        seed: key of every random choice in this use.
    """

    source: int
    position: int
    epoch: int
    index: int
    seed: int


class Mixture:
    """Deals out samples of several sources, each in its own shuffled order.

    Args:
        sources: with names that differ, none empty.
        weights: share of each, on any scale; 0 leaves a source out.
        by: whether the shares are of samples or of tokens.
        seed: of the run.

    Raises:
        NextStepError: when names, lengths or weights cannot be used.
    """

    def __init__(
        self,
        sources: Seq[Named],
        weights: Seq[float],
        by: Literal["samples", "tokens"] = "samples",
        seed: int = 0,
    ) -> None:
        self.names = [source.name for source in sources]
        self.lengths = [len(source) for source in sources]
        if len(set(self.names)) < len(self.names):
            raise NextStepError(f"two sources share a name ({self.names}); give each its own")
        if by not in ("samples", "tokens"):
            raise NextStepError(f"sources are mixed by samples or by tokens, not by {by!r}")
        if len(weights) != len(self.names):
            raise NextStepError(f"{len(self.names)} sources need as many weights")
        self.by, self.seed = by, seed
        self.shares = whole_shares(weights)
        for name, length, share in zip(self.names, self.lengths, self.shares, strict=True):
            if share and not length:
                raise NextStepError(f"source {name} has no samples; leave it out of the mix")
        zeros = [0] * len(self.names)
        self._positions, self._credits = list(zeros), list(zeros)
        self.samples, self.tokens = list(zeros), list(zeros)

    def draw(self) -> SampleUse:
        """The next sample of the source that is most behind; the first of equals.

        A draw that is not `count`ed (because a filter left it out) does not move the shares, so
        the next one comes from the same source.
        """
        owed = [credit + share for credit, share in zip(self._credits, self.shares, strict=True)]
        source = owed.index(max(owed))
        self._positions[source] += 1
        return self.at(source, self._positions[source] - 1)

    def at(self, source: int, position: int) -> SampleUse:
        """What draw number `position` of a source is, whenever it is asked."""
        name, length = self.names[source], self.lengths[source]
        epoch, place = divmod(position, length)
        index = epoch_index(self.seed, name, epoch, place, length)
        return SampleUse(
            source, position, epoch, index, derived_seed("draw", self.seed, name, epoch, index)
        )

    def count(self, source: int, tokens: int) -> None:
        """A sample of `source` with so many tokens is used."""
        amount = 1 if self.by == "samples" else tokens
        for place, share in enumerate(self.shares):
            self._credits[place] += share * amount
        self._credits[source] -= sum(self.shares) * amount
        self.samples[source] += 1
        self.tokens[source] += tokens

    def used(self) -> dict[str, dict[str, int]]:
        """Samples and tokens used so far of each source."""
        return {
            name: {"samples": samples, "tokens": tokens}
            for name, samples, tokens in zip(self.names, self.samples, self.tokens, strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Where every source stands, as plain values; about six numbers a source."""
        return {
            **self._identity(),
            "positions": list(self._positions),
            "credits": list(self._credits),
            "samples": list(self.samples),
            "tokens": list(self.tokens),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            NextStepError: when it is the state of another mixture.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise NextStepError(
                    f"the run was saved with {name} = {state.get(name)} of its data, and now it is "
                    f"{value}; set it back, or start a new run from the saved weights"
                )
        self._positions, self._credits = list(state["positions"]), list(state["credits"])
        self.samples, self.tokens = list(state["samples"]), list(state["tokens"])

    def _identity(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "lengths": list(self.lengths),
            "shares": list(self.shares),
            "by": self.by,
            "seed": self.seed,
        }


def whole_shares(weights: Seq[float]) -> list[int]:
    """The smallest whole numbers in the ratio of the weights as they are written.

    Raises:
        NextStepError: when one is negative or not a number, or all are 0.
    """
    if any(not isfinite(w) or w < 0 for w in weights) or not any(weights):
        raise NextStepError(
            f"weights of sources are numbers from 0 up, one of them above 0, not {list(weights)}"
        )
    # Through the decimal spelling: 0.1 means one tenth, not its nearest binary fraction.
    exact = [Fraction(str(float(weight))) for weight in weights]
    scale = lcm(*(value.denominator for value in exact))
    whole = [int(value * scale) for value in exact]
    return [value // gcd(*whole) for value in whole]
