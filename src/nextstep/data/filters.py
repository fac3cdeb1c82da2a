"""Which samples of a source are left out, from sizes and numbers in its index alone."""

from __future__ import annotations

import random
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from math import inf
from typing import Any

from nextstep.data.augment import check_share, happens
from nextstep.errors import NextStepError


@dataclass(frozen=True)
class Filters:
    """Bounds that a sample must keep; pictures of one sample are judged together.

    Attributes:
        height: least height in pixels, of the smallest.
        width: least width.
        area: least area in squared pixels, or (least, most): smallest height times smallest width.
        aspect_ratio: most that the longer side of any picture may be times its shorter one.
        keywords: word -> how often a sample whose caption holds it is left out, 0 to 1.
        numbers: name -> bound on that number of the sample: from 0 up it is the least value, below
            0 the most that the absolute value may be (-0.3 lets -0.3 .. 0.3 pass). A sample without
            the number is left out.
    """

    height: float = 0.0
    width: float = 0.0
    area: tuple[float, float] = (0.0, inf)
    aspect_ratio: float = inf
    keywords: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.aspect_ratio < 1:
            raise NextStepError(f"aspect_ratio is at least 1, not {self.aspect_ratio}")
        if self.area[0] > self.area[1]:
            raise NextStepError(f"no picture has an area from {self.area[0]} to {self.area[1]}")
        for word, share in self.keywords.items():
            check_share(f"keyword {word!r}", share)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Filters:
        """Read the released form, in which every key that is not named above is a number's name.

        Raises:
            NextStepError: naming the key whose value cannot be used.
        """
        named: dict[str, Any] = {}
        numbers: dict[str, float] = {}
        for key, value in values.items():
            if key == "keywords":
                if not isinstance(value, Mapping):
                    raise NextStepError("filter keywords must give every word its share")
                named[key] = {str(word): _number(word, share) for word, share in value.items()}
            elif key == "area":
                bounds = value if isinstance(value, list | tuple) else (value, inf)
                if len(bounds) != 2:
                    raise NextStepError("filter area is a least value, or a least and a most one")
                named[key] = (_number(key, bounds[0]), _number(key, bounds[1]))
            elif key in ("height", "width", "aspect_ratio"):
                named[key] = _number(key, value)
            else:
                numbers[key] = _number(key, value)
        return cls(**named, numbers=numbers)

    def keep(self, sizes: Seq[tuple[int, int]], numbers: Mapping[str, float]) -> bool:
        """Whether a sample passes every bound on its pictures and numbers.

        Args:
            sizes: (width, height) of every picture; none for plain text.
            numbers: of the sample.
        """
        if sizes:
            width, height = min(w for w, _ in sizes), min(h for _, h in sizes)
            aspect = max(max(w, h) / min(w, h) for w, h in sizes)
            fits = height >= self.height and width >= self.width and aspect <= self.aspect_ratio
            if not fits or not self.area[0] <= height * width <= self.area[1]:
                return False
        return all(
            name in numbers
            and (numbers[name] >= bound if bound >= 0 else abs(numbers[name]) <= -bound)
            for name, bound in self.numbers.items()
        )

    def drops(self, caption: str, rng: random.Random) -> bool:
        """Whether a keyword leaves this caption's sample out; one draw for each keyword in it."""
        low = caption.lower()
        return any(
            [happens(rng, share) for word, share in self.keywords.items() if word.lower() in low]
        )


def _number(name: object, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NextStepError(f"filter {name} must be a number, not {value!r}")
    return float(value)
