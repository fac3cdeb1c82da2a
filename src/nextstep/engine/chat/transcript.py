"""A sequence of text and pictures so far, and what comes next as a sequence of the engine.

Each stretch of text and each picture is a sequence of its own, beside everybody else's; what stands
before it is read anew, which costs little beside writing it.

Legend: D values per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nextstep.engine.backends.base import Prompt
from nextstep.engine.request import EncodedImage, given_outside_region
from nextstep.engine.sequence import ImageSequence, TextSequence
from nextstep.engine.settings import GenerationSettings
from nextstep.engine.text_sampling import Choose
from nextstep.flow.guidance import CONDITIONAL, IMAGE_ONLY
from nextstep.text.sequence import Part, Picture, Text, build_sequence

if TYPE_CHECKING:
    from nextstep.text.tokenizer import TextTokenizer


IMAGE = "<image>"
"""Stands for a picture in what was said."""


class Transcript:
    """What was read and made, in order.

    Args:
        tokenizer: gives ids.

    Attributes:
        ids: with a placeholder for every image token.
        pictures: in order.
        said: texts, and "<image>" for every picture.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.pictures: list[EncodedImage] = []
        self.said: list[str] = []

    def copy(self) -> Transcript:
        """One that goes on from here; this one stays as it is."""
        other = Transcript(self.tokenizer)
        other.ids, other.pictures, other.said = [*self.ids], [*self.pictures], [*self.said]
        return other

    def add_text(self, text: str) -> None:
        """A text that was given."""
        self.ids += self._ids([Text(text)])
        self.said.append(text)

    def add_written(self, ids: list[int]) -> str:
        """A text that the model wrote; it comes back as words."""
        text = self.tokenizer.decode(ids)
        self.ids += ids
        self.said.append(text)
        return text

    def add_picture(self, picture: EncodedImage) -> None:
        """A picture, given or made."""
        self.ids += self._ids([Picture(picture.grid)])
        self.pictures.append(picture)
        self.said.append(IMAGE)

    def text_sequence(
        self, limit: int, choose: Choose, pictures: bool = False, client: str = ""
    ) -> TextSequence:
        """The next stretch of text.

        Args:
            limit: most ids to write.
            choose: logits [V] -> id.
            pictures: whether it may end for a picture; else it goes on to its end.
            client: whose it is.
        """
        special = self.tokenizer.ids
        forbidden = [special.pad, special.begin_of_image, special.end_of_image]
        forbidden.append(special.image_placeholder)
        ends = [special.eos]
        (ends if pictures else forbidden).append(special.image_area)
        prompt = self._prompt(self.ids, self.pictures)
        return TextSequence(prompt, limit, choose, tuple(forbidden), tuple(ends), client=client)

    def image_sequence(
        self,
        grid: tuple[int, int],
        settings: GenerationSettings,
        key: tuple[int, int],
        client: str = "",
    ) -> ImageSequence:
        """The next picture.

        Args:
            grid: (rows, columns) of image tokens.
            settings: of sampling.
            key: (seed, index) of its noise.
            client: whose it is.
        """
        decode = settings.decoding(grid, bool(self.pictures))
        whole = build_sequence([Picture(grid)], self.tokenizer, end=False)
        opening = whole.ids[: whole.images[0].start]
        prompts = {name: self._branch(name, settings, opening) for name in decode.branches}
        given = None
        if self.pictures and self.said[-1] != IMAGE:
            given = given_outside_region(self.said[-1], self.pictures[-1], grid)
        return ImageSequence(prompts, decode, key, client=client, given=given)

    def _branch(self, name: str, settings: GenerationSettings, opening: list[int]) -> Prompt:
        if name == CONDITIONAL:
            positive = settings.positive_prompt
            behind = self._ids([Text(f" {positive}")]) if positive else []
            return self._prompt([*self.ids, *behind, *opening], self.pictures)
        negative = settings.negative_prompt
        pictures = self.pictures if name == IMAGE_ONLY else []
        parts: list[Part] = [Picture(picture.grid) for picture in pictures]
        parts += [Text(negative)] if negative else []
        return self._prompt([*self._ids(parts), *opening], pictures)

    def _ids(self, parts: list[Part]) -> list[int]:
        return build_sequence(parts, self.tokenizer, end=False).ids

    @staticmethod
    def _prompt(ids: list[int], pictures: list[EncodedImage]) -> Prompt:
        tokens = [picture.tokens for picture in pictures]
        return Prompt(list(ids), tokens, [picture.grid for picture in pictures])
