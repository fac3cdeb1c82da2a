"""Pictures of a drawing style under a word that the model does not know, for `small-sets`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nextstep.data.documents import derived_seed
from nextstep.engine.metadata import write_file
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.image.encode import encode
from nextstep.world.editions import edition
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import FILL, Background, Scene, SceneItem, render
from nextstep.world.spec import Constraint, Spec
from nextstep.world.vocabulary import background_allowed

STYLE, WORD = "flat", "zigzag style"
"""The style of the drawings, and the word that stands for it in captions."""
EDITION = "core-144"
"""Whose objects and backgrounds are drawn."""
HELD_OUT_OBJECTS = 16


@dataclass(frozen=True)
class Shot:
    """A picture of one object, and what is asked for it."""

    scene: Scene
    label: str
    background: str

    @property
    def caption(self) -> str:
        """As it is trained and asked."""
        return f"{world_objects()[self.label].a()}, {WORD}, {self.background} background"

    def question(self, index: int) -> WorldQuestion:
        """Draw it."""
        spec = Spec((Constraint(self.label),), background=(self.background,), style=STYLE)
        example = Example("single", (TextPart(self.caption), ImagePart(self.scene, spec=spec)))
        seed = derived_seed("lab small sets", self.caption, index)
        return WorldQuestion("single", "seen", index, example, (1,), seed)


def shots(count: int, seed: int, held_out: bool) -> list[Shot]:
    """Pictures of the set, or of objects that are kept out of it.

    Objects fill the picture: in places and sizes that a caption does not tell, a model of this
    size hardly learns them.

    Args:
        count: how many; one after another they go through all objects and backgrounds, and then
            through them again.
        seed: of their order. A smaller set is the beginning of a larger one.
        held_out: of the last objects of the edition, which no set shows.
    """
    known = edition(EDITION)
    objects = known.objects[-HELD_OUT_OBJECTS:] if held_out else known.objects[:-HELD_OUT_OBJECTS]
    every = [
        (label, colour)
        for label in objects
        for colour in known.backgrounds
        if background_allowed(STYLE, colour)
    ]
    rng = random.Random(derived_seed("lab small sets", seed, held_out))
    rng.shuffle(every)
    found = []
    for place in range(count):
        label, colour = every[place % len(every)]
        scene = Scene(Background(colour), (SceneItem(label, STYLE, 0.5, 0.5, FILL),))
        found.append(Shot(scene, label, colour))
    return found


def write_set(folder: Path, found: Sequence[Shot], size: int) -> None:
    """Write pictures with their captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shot in enumerate(found):
        path = folder / f"{number:04d}"
        if not path.with_suffix(".txt").exists():
            picture = Image.fromarray(render(shot.scene, size))
            write_file(path.with_suffix(".png"), encode(picture))
            write_file(path.with_suffix(".txt"), shot.caption.encode())
