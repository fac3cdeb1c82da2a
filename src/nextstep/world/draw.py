"""All choices of a sample: objects, styles, colours and words, within one split of the world."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from nextstep.world import editions
from nextstep.world.colours import TINTS
from nextstep.world.drawings import colour_of, visible_on
from nextstep.world.layout import FreeLayout, GridLayout
from nextstep.world.lexicon import WorldObject, world_objects
from nextstep.world.scenes import Background, SceneItem
from nextstep.world.signs import sign_text
from nextstep.world.splits import SPLITS, Phrasings, is_held_out, is_held_out_pair
from nextstep.world.vocabulary import TONES

T = TypeVar("T")
Test = Callable[[WorldObject], bool]

CHARACTERS = ("animal", "bird", "sea animal", "insect", "creature", "person", "small animal")
"""Kinds of objects that can be somebody in a story."""


class Draw:
    """A source of choices that keeps to a split.

    Args:
        seed: all choices come from it.
        split: one of `SPLITS`.
        edition: of the world, see `editions`.
        longest_word: letters of a sign at most; fewer where the edition has shorter ones.

    Raises:
        ValueError: for an unknown split.
        NextStepError: for an unknown edition.
    """

    def __init__(
        self, seed: int, split: str = "train", edition: str = "full", longest_word: int = 8
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"there is no split '{split}'; choose from {', '.join(SPLITS)}")
        self.rng = random.Random(seed)
        self.split, self.edition = split, editions.edition(edition)
        self.longest_word = min(longest_word, self.edition.longest_word)
        self.objects = [world_objects()[label] for label in self.edition.objects]
        self.layout = (GridLayout if self.edition.on_grid else FreeLayout)(self.rng)

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self.rng.random() < share

    def one_of(self, options: Sequence[T]) -> T:
        """One of several, all alike."""
        return self.rng.choice(options)

    def say(self, phrasings: Phrasings, **words: object) -> str:
        """One phrasing with its fields filled in; in its split, the held-out one."""
        held_out = self.split == "held_out_phrasings"
        form = phrasings.held_out if held_out else self.rng.choice(phrasings.trained)
        return form.format(**words)

    def cast(
        self,
        count: int,
        test: Test | Sequence[Test] | None = None,
        styles: Sequence[str] | None = None,
    ) -> tuple[list[WorldObject], str]:
        """Different objects that may stand in one picture, and their style.

        The split decides: normally none is held out in this style and no two are a held-out pair;
        in the splits of styles and pairs exactly the first, or the first two, are.

        Args:
            count: how many.
            test: what must hold for each, or one test for each in turn.
            styles: to choose from; default the edition's.
        """
        found, chosen = self.cast_in_styles(count, 1, test, styles)
        return found, chosen[0]

    def cast_in_styles(
        self,
        count: int,
        number: int,
        test: Test | Sequence[Test] | None = None,
        styles: Sequence[str] | None = None,
    ) -> tuple[list[WorldObject], list[str]]:
        """The same in `number` different styles; the first is the one a split is about."""
        tests = [test] * count if test is None or callable(test) else list(test)
        pools = [self._pool(one) for one in tests]
        while True:
            chosen = self.rng.sample(list(styles or self.edition.styles), number)
            found = self._first(pools, chosen)
            if found is None:
                continue
            tries = 0
            while len(found) < count and tries < 200:
                # Few of them clash, so trying again is quick.
                obj, tries = self.rng.choice(pools[len(found)]), tries + 1
                if self.fits(obj, found, chosen):
                    found.append(obj)
            if len(found) == count:
                return found, chosen

    def _pool(self, test: Test | None) -> list[WorldObject]:
        return [obj for obj in self.objects if test is None or test(obj)]

    def _first(self, pools: list[list[WorldObject]], styles: list[str]) -> list[WorldObject] | None:
        """The objects that a split is about; empty in other splits, None where there are none."""
        if self.split == "held_out_styles":
            held = [
                t for t in pools[0]
                if is_held_out(t.label, styles[0])
                and not any(is_held_out(t.label, s) for s in styles[1:])
            ]  # fmt: skip
            return [self.rng.choice(held)] if held else None
        if self.split != "held_out_pairs" or len(pools) < 2:
            return []
        first = self.rng.choice(pools[0])
        mates = [t for t in pools[1] if is_held_out_pair(first.label, t.label)]
        mates = [t for t in mates if not self._held_out(t, styles)]
        if not mates or self._held_out(first, styles):
            return None
        return [first, self.rng.choice(mates)]

    def fits(self, obj: WorldObject, found: Sequence[WorldObject], styles: Sequence[str]) -> bool:
        """Whether training may show `obj` beside `found` in these styles."""
        return obj not in found and not (
            self._held_out(obj, styles)
            or any(is_held_out_pair(obj.label, other.label) for other in found)
        )

    def _held_out(self, obj: WorldObject, styles: Sequence[str]) -> bool:
        """Whether training may not show an object in one of these styles."""
        return self.edition.holds_out_styles and any(is_held_out(obj.label, s) for s in styles)

    def background(self, items: Sequence[SceneItem], gradients: float | None = None) -> Background:
        """A background from which every item can be told; if there is none, white.

        Args:
            items: that stand on it.
            gradients: share of those that fade into another colour; default the edition's.
        """
        if gradients is None:
            gradients = self.edition.gradients

        def good(colour: str) -> bool:
            return all(visible_on(i.name, i.style, i.tint, colour) for i in items)

        names = [colour for colour in self.edition.backgrounds if good(colour)] or ["white"]
        first = self.rng.choice(names)
        second = self.rng.choice(names)
        if second != first and self.chance(gradients):
            return Background(first, second)
        return Background(first)

    def tint(self, obj: WorldObject, style: str, avoid: Sequence[str] = ()) -> str | None:
        """A colour to paint an object in, other than its own; None when its name has a colour."""
        if obj.names_a_colour:
            return None
        own = colour_of(obj.label, style, share=0.35)
        return self.rng.choice([c for c in TINTS if c != own and c not in avoid])

    def tones(self, count: int) -> list[str]:
        """Different skin tones."""
        return self.rng.sample(TONES, count)

    def sign_text(self) -> str:
        """A word for a sign."""
        return sign_text(self.rng, self.longest_word, self.split == "held_out_words")
