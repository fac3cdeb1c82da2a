"""Single-object pictures as live sources: drawn when they are asked for, no files in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nextstep.data.documents import Document, derived_seed
from nextstep.text.sequence import (
    Part,
    Picture,
    Text,
    build_sequence,
    editing,
    text_to_image,
    thought,
)
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world import captions
from nextstep.world.lexicon import things
from nextstep.world.scenes import single
from nextstep.world.vocabulary import COLOURS, OBJECTS, STYLES, background_allowed, is_held_out

Scene = tuple[str, str, str]
"""(object, style, background colour)."""


WORD_SHARE = 0.35
"""How many captions of the larger vocabulary say "dog" where the label is "dog face"."""


def trained_scenes(core: bool = True) -> list[Scene]:
    """Every scene that training may see: held-out pairs of object and style are left out.

    Args:
        core: of `vocabulary.OBJECTS` alone; else of all things that scenes can hold.
    """
    return [
        (name, style, colour)
        for name in (OBJECTS if core else things())
        for style in STYLES
        if not is_held_out(name, style)
        for colour in COLOURS
        if background_allowed(style, colour)
    ]


@dataclass(frozen=True)
class _Drawn:
    """What `pictures` needs: the scenes in reading order."""

    scenes: tuple[Scene, ...]


class Singles:
    """Text to image: a caption and its picture, one sample a scene.

    Args:
        tokenizer: of the text.
        pixels: side of a picture, a multiple of 16.
        no_caption: share of pictures without their caption, for guidance.
        name: in mixes and reports.
        core: show the things of `vocabulary.OBJECTS` alone, by their labels; else all of the
            lexicon, of which `WORD_SHARE` is called by its everyday word.

    Raises:
        ValueError: when a side is no multiple of 16.
    """

    kind = "image_text"

    def __init__(
        self,
        tokenizer: TextTokenizer,
        pixels: int = 128,
        no_caption: float = 0.1,
        name: str = "singles",
        core: bool = True,
    ) -> None:
        if pixels < 16 or pixels % 16:
            raise ValueError(f"pixels must be a positive multiple of 16, not {pixels}")
        self.tokenizer, self.pixels, self.no_caption, self.name = (
            tokenizer,
            pixels,
            no_caption,
            name,
        )
        self.grid = pixels // 16, pixels // 16
        self.core, self.scenes = core, trained_scenes(core)

    def __len__(self) -> int:
        return len(self.scenes)

    def document(self, index: int, seed: int) -> Document:
        """Scene `index` in a phrasing drawn from `seed`."""
        rng = random.Random(derived_seed(seed, "choices"))
        parts, scenes = self.parts(self.scenes[index], rng)
        return Document(
            key=f"{self.name}/{'/'.join(self.scenes[index])}",
            sequence=build_sequence(parts, self.tokenizer),
            images=tuple(range(len(scenes))),
            seed=seed,
            payload=_Drawn(tuple(scenes)),
        )

    def pictures(self, document: Document) -> list[np.ndarray]:
        """The document's pictures, uint8 [pixels, pixels, 3]."""
        return [
            np.asarray(single(name, style, colour, self.pixels))
            for name, style, colour in document.payload.scenes
        ]

    def parts(self, scene: Scene, rng: random.Random) -> tuple[list[Part], list[Scene]]:
        """The sequence's parts and the scenes of its pictures."""
        name, style, colour = scene
        thing, one = things()[name], None
        if not self.core:
            name = thing.word if rng.random() < WORD_SHARE else name
            one = thing.one if name == thing.word else None
        parts = text_to_image(captions.caption(rng, name, style, colour, one), self.grid)
        return (parts[1:] if rng.random() < self.no_caption else parts), [scene]

    def texts(self) -> Iterator[str]:
        """What a text tokenizer for this source should know."""
        rng = random.Random(0)
        for scene in self.scenes:
            parts, _ = self.parts(scene, rng)
            yield from (part.text for part in parts if isinstance(part, Text))


class SingleEdits(Singles):
    """Edits: a picture, an instruction, the picture in another style or on another background.

    Of the edits that lose their text (share `no_caption`) half lose their source too.

    Args:
        tokenizer, pixels, no_caption, name, core: see `Singles`.
        style_share: how many of the edits ask for a style.
        thought_share: how many of the edits say behind the instruction what the result shows, see
            `text.sequence.thought`.

    Raises:
        ValueError: when a side is no multiple of 16 or a share no number from 0 to 1.
    """

    kind = "image_to_image"

    def __init__(
        self,
        tokenizer: TextTokenizer,
        pixels: int = 128,
        no_caption: float = 0.1,
        name: str = "single-edits",
        style_share: float = 0.5,
        thought_share: float = 0.0,
        core: bool = True,
    ) -> None:
        super().__init__(tokenizer, pixels, no_caption, name, core)
        for share, value in (("style_share", style_share), ("thought_share", thought_share)):
            if not 0 <= value <= 1:
                raise ValueError(f"{share} must be a number from 0 to 1, not {value}")
        self.style_share, self.thought_share = style_share, thought_share
        self.styles: dict[tuple[str, str], list[str]] = {}
        for object_name, style, colour in self.scenes:
            self.styles.setdefault((object_name, colour), []).append(style)

    def parts(self, scene: Scene, rng: random.Random) -> tuple[list[Part], list[Scene]]:
        """The sequence's parts and the scenes of its pictures."""
        target, text = self._changed(scene, rng)
        said: list[Part] = []
        if rng.random() < self.thought_share:
            text, said = thought(text, ""), [Text(captions.default_caption(*target))]
        *asked, last = editing("<image>" + text, [self.grid], self.grid)
        parts = [*asked, *said, last]
        if rng.random() >= self.no_caption:
            return parts, [scene, target]
        if rng.random() < 0.5:
            return [Picture(self.grid)], [target]
        return [part for part in parts if isinstance(part, Picture)], [scene, target]

    def _changed(self, scene: Scene, rng: random.Random) -> tuple[Scene, str]:
        name, style, colour = scene
        if rng.random() < self.style_share:
            styles = self.styles[name, colour]
            new = rng.choice([other for other in styles if other != style] or styles)
            return (name, new, colour), captions.style_edit(rng, new)
        new = rng.choice([c for c in COLOURS if background_allowed(style, c)])
        return (name, style, new), captions.background_edit(rng, new)
