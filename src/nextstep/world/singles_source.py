"""Single-object pictures as live sources: drawn when they are asked for, no files in between.

Legend: pixels: of a picture's side, RGB, uint8.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nextstep.data.documents import Document, derived_seed
from nextstep.text.reasoning import SEPARATOR, Region, change_words
from nextstep.text.sequence import (
    Part,
    Picture,
    Text,
    build_sequence,
    with_reasoning,
)
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world import captions, scenes
from nextstep.world.descriptions import describe
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import single
from nextstep.world.vocabulary import COLOURS, OBJECTS, STYLES, background_allowed, is_held_out

Scene = tuple[str, str, str]
"""(object, style, background colour)."""


WORD_SHARE = 0.35
"""How many captions of the larger vocabulary say "dog" where the label is "dog face"."""


def trained_scenes(core: bool = True) -> list[Scene]:
    """Every scene that training may see: held-out pairs of object and style are left out.

    Args:
        core: of `vocabulary.OBJECTS` alone; else of all objects that scenes can hold.
    """
    return [
        (name, style, colour)
        for name in (OBJECTS if core else world_objects())
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
        core: show the objects of `vocabulary.OBJECTS` alone, by their labels; else all of the
            lexicon, of which `WORD_SHARE` is called by its everyday word.
        reasoning_prob: share of samples with a line before the picture that is drawn, see
            `text.reasoning`.
        train_prompts: whether captions and instructions are learned too, as released.

    Raises:
        ValueError: when a side is no multiple of 16 or a share no number from 0 to 1.
    """

    kind = "image_text"

    def __init__(
        self,
        tokenizer: TextTokenizer,
        pixels: int = 128,
        no_caption: float = 0.1,
        name: str = "singles",
        core: bool = True,
        reasoning_prob: float = 0.0,
        train_prompts: bool = True,
    ) -> None:
        if not 0 <= reasoning_prob <= 1:
            raise ValueError(f"reasoning_prob must be a number from 0 to 1, not {reasoning_prob}")
        scenes.check_side(pixels)
        self.tokenizer, self.pixels, self.no_caption, self.name = (
            tokenizer,
            pixels,
            no_caption,
            name,
        )
        self.grid = pixels // 16, pixels // 16
        self.core, self.scenes = core, trained_scenes(core)
        self.reasoning_prob, self.train_prompts = reasoning_prob, train_prompts

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
        obj, one = world_objects()[name], None
        if not self.core:
            name = obj.word if rng.random() < WORD_SHARE else name
            one = obj.one if name == obj.word else None
        said = captions.caption(rng, name, style, colour, one)
        if rng.random() < self.no_caption:
            return [Picture(self.grid)], [scene]
        return [*self.prompt(said, _line(scene), rng), Picture(self.grid)], [scene]

    def prompt(self, asked: str, line: str, rng: random.Random) -> list[Text]:
        """A caption or instruction, mostly with its line."""
        if rng.random() >= self.reasoning_prob:
            return [Text(asked, self.train_prompts)]
        return [Text(with_reasoning(asked, ""), self.train_prompts), Text(line)]

    def texts(self) -> Iterator[str]:
        """What a text tokenizer for this source should know."""
        rng = random.Random(0)
        for scene in self.scenes:
            parts, _ = self.parts(scene, rng)
            yield from (part.text for part in parts if isinstance(part, Text))


def _line(scene: Scene) -> str:
    """What a model writes before it draws such a scene."""
    name, style, colour = scene
    return describe(scenes.Scene(scenes.Background(colour), (scenes.SceneItem(name, style),)))


class SingleEdits(Singles):
    """Edits: a picture, an instruction, the picture in another style or on another background.

    Of the edits that lose their text (share `no_caption`) half lose their source too.

    Args:
        tokenizer, pixels, no_caption, name, core, reasoning_prob, train_prompts: see `Singles`.
        style_share: how many of the edits ask for a style.

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
        core: bool = True,
        reasoning_prob: float = 0.0,
        train_prompts: bool = True,
    ) -> None:
        super().__init__(tokenizer, pixels, no_caption, name, core, reasoning_prob, train_prompts)
        if not 0 <= style_share <= 1:
            raise ValueError(f"style_share must be a number from 0 to 1, not {style_share}")
        self.style_share = style_share
        self.styles: dict[tuple[str, str], list[str]] = {}
        for object_name, style, colour in self.scenes:
            self.styles.setdefault((object_name, colour), []).append(style)

    def parts(self, scene: Scene, rng: random.Random) -> tuple[list[Part], list[Scene]]:
        """The sequence's parts and the scenes of its pictures."""
        target, text = self._changed(scene, rng)
        change = change_words(Region(0, 0, *self.grid), self.grid)
        line = SEPARATOR.join((_line(scene), change, _line(target)))
        picture = Picture(self.grid)
        parts: list[Part] = [
            Picture(self.grid, trained=False),
            *self.prompt(text, line, rng),
            picture,
        ]
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
