"""Text and pictures in any order, in and out: stories, next states, questions about pictures."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from nextstep.engine import metadata as provenance
from nextstep.engine.backends.cpu_kernels import computed_by
from nextstep.engine.chat.reasoning import LONGEST, room_left, with_line
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.results import GeneratedPicture, Progress
from nextstep.engine.session import NucleusChoice, ReadPicture, Session, greedy
from nextstep.engine.settings import GenerationSettings, ModelDefaults
from nextstep.engine.text_sequence import Choose
from nextstep.errors import NextStepError
from nextstep.flow.noise import KeyedNoise
from nextstep.image import pictures
from nextstep.image.pictures import PictureLike
from nextstep.text.sequence import thought

if TYPE_CHECKING:
    from nextstep.engine.chat.conversations import Conversations
    from nextstep.model.nextstep import NextStepModel
    from nextstep.text.tokenizer import TextTokenizer
    from nextstep.vae.tokenizer import ImageTokenizer

Grid = tuple[int, int]
Part = str | PictureLike
"""Text is a `str`; anything else is a picture, its path as a `Path`."""


class Conversation:
    """One sequence of text and pictures that a person and a model write together.

    Earlier turns stay in the cache, so every turn costs only itself. Picture n of a conversation
    depends on what stands before it, the settings, the seed and n alone.

    Args:
        pipeline: model and tokenizers.
        seed: of the pictures and of drawn text.
        **settings: fields of `GenerationSettings` that differ from the model's.

    Raises:
        ValueError: for a setting that is unknown or out of range.
    """

    def __init__(self, pipeline: Turns, seed: int = 0, **settings: Any) -> None:
        self.pipeline, self.seed, self.changes = pipeline, seed, settings
        # Wrong settings are refused here, not after the first picture has been read.
        pipeline.defaults.generate.with_values(**settings)
        self.session = Session(pipeline.model, pipeline.text_tokenizer)
        self.said: list[str] = []
        self.drawn = 0

    def fork(self, seed: int | None = None) -> Conversation:
        """A conversation of its own that goes on from here, with another seed if given."""
        other = Conversation(self.pipeline, self.seed if seed is None else seed, **self.changes)
        other.session, other.said, other.drawn = self.session.fork(), [*self.said], self.drawn
        return other

    def read(self, *parts: Part) -> None:
        """Take up text and pictures in order.

        Raises:
            NextStepError: when a picture cannot be opened or the model's length is exceeded.
        """
        for part in parts:
            if isinstance(part, str):
                self.session.read_text(part)
                self.said.append(part)
            else:
                tokens, grid = self.pipeline.encode_picture(pictures.open_picture(part))
                self.session.read_picture(ReadPicture(tokens, grid))
                self.said.append("<image>")

    def write(self, max_tokens: int = 64, temperature: float = 0.0, top_p: float = 0.9) -> str:
        """Let the model write text to its end; it draws nothing.

        Args:
            max_tokens: most ids written.
            temperature: 0 takes the likeliest id; above it ids are drawn with the seed.
            top_p: share of the probability that ids are drawn from.
        """
        choose = self._choice(temperature, top_p)
        return self._keep(self.session.write_text(max_tokens, choose, pictures=False).ids)

    def draw(
        self,
        height: int | None = None,
        width: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> GeneratedPicture:
        """Let the model draw the next picture.

        Args:
            height, width: pixels; default those of the last picture, else the model's own.
            on_progress: told after every image token.
        """
        grid = self._grid(height, width)
        settings = self._settings()
        decode = settings.decoding(grid, bool(self.session.pictures))
        size = self.pipeline.model.config.token_size
        noise = KeyedNoise([(self.seed, self.drawn)], decode.solver.draws, size)

        def told(count: int, tokens: Tensor) -> None:
            if on_progress is not None:
                preview = lambda: self.pipeline.preview(tokens, decode)  # noqa: E731
                on_progress(Progress(count, decode.tokens, 1, self.drawn, preview))

        record = self._record(settings.with_values(think=False), grid)
        picture = self.session.draw(decode, noise, settings.negative_prompt, told)
        self.said.append("<image>")
        self.drawn += 1
        pixels = self.pipeline.image_tokenizer.decode_tokens(picture.tokens[None], grid)
        return GeneratedPicture(pictures.to_pictures(pixels)[0], record)

    def edit(
        self,
        instruction: str,
        height: int | None = None,
        width: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> GeneratedPicture:
        """Take up an instruction and draw the changed picture.

        With the setting `think` the model first writes what the picture will show, on a line behind
        the instruction where it has room, see `thinking`; `draw` alone never does that.

        Args:
            instruction: how to change what was read or drawn before.
            height, width, on_progress: see `draw`.

        Raises:
            NextStepError: when there is no picture yet.
        """
        if not self.session.pictures:
            raise NextStepError("there is no picture yet to be changed: read or draw one first")
        length, said = len(self.session), len(self.said)
        grid, think = self._grid(height, width), self._settings().think
        try:
            self.read(self._thought(instruction, grid) if think else instruction)
            return self.draw(height, width, on_progress)
        except BaseException:
            # Asked again, the instruction must not stand there twice.
            self.session.rewind(length)
            del self.said[said:]
            raise

    def _thought(self, instruction: str, grid: Grid) -> str:
        """An instruction with what the picture will show, where that has room beside it."""
        aside = self.session.fork()
        aside.read_text(thought(instruction, ""))
        room = room_left(self.pipeline.model, len(aside), grid)
        written = aside.write_text(min(LONGEST, room)).ids if room > 0 else []
        return with_line(self.pipeline.text_tokenizer, instruction, written, room)

    def go_on(
        self,
        max_pictures: int = 1,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 0.9,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[str | GeneratedPicture]:
        """Let the model write and draw in turns as it sees fit.

        Yields:
            Texts and pictures; ends with the model's own end of text, after `max_pictures`, or
            when one stretch of text has `max_tokens` ids.
        """
        choose = self._choice(temperature, top_p)
        for _ in range(max_pictures):
            end = self.session.write_text(max_tokens, choose)
            if end.ids:
                yield self._keep(end.ids)
            if end.reason != "picture":
                return
            yield self.draw(on_progress=on_progress)

    def _settings(self) -> GenerationSettings:
        defaults = self.pipeline.defaults
        base = defaults.edit if self.session.pictures else defaults.generate
        return base.with_values(**self.changes)

    def _grid(self, height: int | None, width: int | None) -> tuple[int, int]:
        defaults = self.pipeline.defaults
        usual = defaults.height, defaults.width
        if self.session.pictures:
            side = self.pipeline.image_tokenizer.config.token_pixels
            rows, columns = self.session.pictures[-1].grid
            usual = rows * side, columns * side
        return self.pipeline.grid(height, width, usual)

    def _choice(self, temperature: float, top_p: float) -> Choose:
        return text_choice(self.seed, len(self.session), temperature, top_p)

    def _keep(self, ids: list[int]) -> str:
        text = self.pipeline.text_tokenizer.decode(ids)
        self.said.append(text)
        return text

    def _record(self, settings: GenerationSettings, grid: tuple[int, int]) -> dict[str, Any]:
        side = self.pipeline.image_tokenizer.config.token_pixels
        return provenance.record(
            prompt="".join(self.said),
            seed=self.seed,
            index=self.drawn,
            size=(grid[0] * side, grid[1] * side),
            task="story",
            settings=settings,
            model_hash=self.pipeline.model_hash,
            dtype=str(self.pipeline.model.embed_tokens.weight.dtype).removeprefix("torch."),
            computed_by=computed_by(self.pipeline.model),
            sources=[provenance.tensor_hash(p.tokens) for p in self.session.pictures],
            adapter=self.pipeline.adapter,
        )


def _as_picture(source: PictureLike) -> PictureLike:
    """A picture where text cannot be meant: a name is its path."""
    return Path(source) if isinstance(source, str) else source


def text_choice(seed: int, position: int, temperature: float, top_p: float) -> Choose:
    """How ids of a text are chosen that begins at a position of its sequence.

    Raises:
        NextStepError: for a temperature or share out of range.
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise NextStepError(
            f"temperature must be at least 0 and top-p in (0, 1], not {temperature} and {top_p}"
        )
    if temperature == 0:
        return greedy
    place = hashlib.sha256(f"text {seed} {position}".encode()).digest()
    return NucleusChoice(temperature, top_p, int.from_bytes(place[:8], "little") >> 1)


class Turns(ABC):
    """What a pipeline can do turn by turn."""

    model: NextStepModel
    image_tokenizer: ImageTokenizer
    text_tokenizer: TextTokenizer
    defaults: ModelDefaults
    model_hash: str
    adapter: dict[str, Any]

    @abstractmethod
    def encode_picture(self, picture: Image.Image) -> tuple[Tensor, Grid]:
        """Image tokens [n, D] and grid."""

    @abstractmethod
    def grid(self, height: int | None, width: int | None, default: tuple[int, int]) -> Grid:
        """Rows and columns of image tokens."""

    @abstractmethod
    def preview(self, tokens: Tensor, decode: DecodeSettings) -> list[Image.Image]:
        """Pictures of which only the first tokens are there."""

    def conversation(self, seed: int = 0, **settings: Any) -> Conversation:
        """A sequence of text and pictures to be continued turn by turn; see `Conversation`."""
        return Conversation(self, seed, **settings)

    def conversations(self, seeds: Sequence[int]) -> Conversations:
        """As many of them as there are seeds, whose turns are made together."""
        from nextstep.engine.chat.conversations import Conversations

        return Conversations(self, seeds)

    def story(
        self,
        *parts: Part,
        max_pictures: int = 4,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
        **settings: Any,
    ) -> list[str | GeneratedPicture]:
        """Go on from text (`str`) and pictures (images or paths) in any order.

        Args:
            *parts: what the story begins with.
            max_pictures: most pictures to draw.
            max_tokens: most ids of one stretch of text.
            temperature: of the text; 0 takes the likeliest ids.
            seed: of the pictures and of drawn text.
            on_progress: told after every image token.
            **settings: fields of `GenerationSettings`.

        Returns:
            The continuation: texts and pictures in order, until the model ends it.
        """
        told = self.conversation(seed, **settings)
        told.read(*parts)
        return list(told.go_on(max_pictures, max_tokens, temperature, on_progress=on_progress))

    def read(
        self,
        image: PictureLike | Sequence[PictureLike],
        question: str = "",
        max_tokens: int = 64,
    ) -> str:
        """What the model says about one or several pictures: an answer, or a caption.

        Args:
            image: one or several pictures, as `image.pictures.open_picture` takes them.
            question: asked after the pictures; without one the model describes.
            max_tokens: most ids of the answer.
        """
        told = self.conversation()
        told.read(*map(_as_picture, pictures.listed(image)))
        if question:
            told.read(question)
        return told.write(max_tokens).strip()

    def next_state(
        self,
        image: PictureLike,
        action: str,
        seed: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
        **settings: Any,
    ) -> GeneratedPicture:
        """The picture after an action; several steps are turns of one `conversation`."""
        told = self.conversation(seed, **settings)
        told.read(_as_picture(image), action)
        return told.draw(on_progress=on_progress)
