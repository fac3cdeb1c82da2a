"""One sample of the world: texts and scenes in reading order, with what must hold of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nextstep.text.reasoning import Region
from nextstep.text.sequence import Grid, Part, Picture, Text
from nextstep.world.scenes import Scene
from nextstep.world.spec import Spec


@dataclass(frozen=True)
class TextPart:
    """Text of a sample.

    Attributes:
        text: as the model reads it.
        trained: whether the language-model loss counts it.
        answers: what may be answered here, without spaces around it; empty where the text is
            no answer.
        about: labels of the objects that a question is about, in the order in which the answer
            needs them; None where it names no object.
        calls: the name that the text calls back, and which of the pictures before shows who that
            is; None where it calls nobody.
    """

    text: str
    trained: bool = True
    answers: tuple[str, ...] = ()
    about: tuple[str, ...] | None = None
    calls: tuple[str, int] | None = None


@dataclass(frozen=True)
class ImagePart:
    """A picture of a sample.

    Attributes:
        scene: what it shows.
        trained: whether flow matching learns it.
        spec: what must hold when a model draws it from all that stands before; None where that
            does not tell enough.
        kept: place in the sample's parts of the picture that this one keeps the rest of.
        region: image tokens that differ from that picture; None where all of them may.
    """

    scene: Scene
    trained: bool = True
    spec: Spec | None = None
    kept: int | None = None
    region: Region | None = None


@dataclass(frozen=True)
class Example:
    """One sample.

    Attributes:
        task: its name in `tasks.TASKS`.
        parts: in reading order.
    """

    task: str
    parts: tuple[TextPart | ImagePart, ...]

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """Scenes of its pictures in reading order."""
        return tuple(part.scene for part in self.parts if isinstance(part, ImagePart))

    @property
    def text(self) -> str:
        """All of its text, pictures as `<image>`."""
        return "".join(p.text if isinstance(p, TextPart) else "<image>" for p in self.parts)

    @property
    def targets(self) -> tuple[int, ...]:
        """Places of the parts that can be asked of a model: the parts before are its prompt."""
        return tuple(
            place
            for place, part in enumerate(self.parts)
            if (part.answers if isinstance(part, TextPart) else part.spec is not None)
        )

    def prompt(self, target: int) -> str:
        """The text before a part, pictures as `<image>`."""
        return Example(self.task, self.parts[:target]).text

    def metadata(self, target: int) -> dict[str, Any]:
        """What must hold of a part, JSON-like: GenEval's form, or the answers."""
        part, prompt = self.parts[target], self.prompt(target)
        if isinstance(part, TextPart):
            return {"tag": self.task, "prompt": prompt, "answers": list(part.answers)}
        return (part.spec or Spec()).metadata(self.task, prompt)

    def sequence_parts(self, grid: Grid) -> list[Part]:
        """The parts of the sequence grammar, with pictures of one grid."""
        return [
            Text(part.text, part.trained)
            if isinstance(part, TextPart)
            else Picture(grid, part.trained, part.region)
            for part in self.parts
        ]
