"""Text and pictures in any order, in and out: stories, next states, questions about pictures.

Legend: n tokens of a picture, D values per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from nextstep.engine.chat.reasoning import LONGEST, room_left, with_line
from nextstep.engine.chat.transcript import Transcript
from nextstep.engine.request import EncodedImage, Grid
from nextstep.engine.results import GeneratedPicture, Progress
from nextstep.engine.sequence import ImageSequence, TextSequence
from nextstep.engine.settings import GenerationSettings, check_seed
from nextstep.engine.text_sampling import greedy, text_choice
from nextstep.errors import NextStepError
from nextstep.image import pictures
from nextstep.image.pictures import PictureLike
from nextstep.text.reasoning import answer_in
from nextstep.text.sequence import with_reasoning
from nextstep.utils import old_names

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from nextstep.engine.engine import Engine
    from nextstep.engine.events import Event

Part: TypeAlias = "str | PictureLike"
"""Text is a `str`; anything else is a picture, its path as a `Path`."""


@dataclass(frozen=True)
class TextTurn:
    """A stretch of text that the model is to write.

    Attributes:
        max_tokens: most ids.
        temperature: 0 takes the likeliest id; above it ids are drawn with the seed.
        top_p: share of the probability that ids are drawn from.
        pictures: whether it may end for a picture; else it goes on to its end.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    pictures: bool = False


@dataclass(frozen=True)
class PictureTurn:
    """A picture that the model is to draw; without a size it has that of the last one."""

    height: int | None = None
    width: int | None = None


Turn = TextTurn | PictureTurn


class Conversation:
    """One sequence of text and pictures that a person and a model write together.

    Picture n of a conversation depends on what stands before it, the settings, the seed and n
    alone.

    Args:
        engine: that makes its turns.
        seed: of the pictures and of drawn text.
        **settings: fields of `GenerationSettings` that differ from the model's.

    Attributes:
        transcript: what was read and made.
        drawn: pictures that were made.
        reasons: whether the text that comes next begins with a line about the pictures.

    Raises:
        ValueError: for a seed or setting that is unknown or out of range.
    """

    def __init__(self, engine: Engine, seed: int = 0, **settings: Any) -> None:
        check_seed(seed)
        self.engine, self.seed = engine, seed
        self.changes = old_names.renamed(settings, old_names.SETTINGS)
        # Wrong settings are refused here, not after the first picture has been read.
        engine.defaults.generate.with_values(**settings)
        self.transcript = Transcript(engine.text_tokenizer)
        self.drawn = 0
        self.reasons = False

    def fork(self, seed: int | None = None) -> Conversation:
        """A conversation of its own that goes on from here, with another seed if given."""
        other = Conversation(self.engine, self.seed if seed is None else seed, **self.changes)
        other.transcript, other.drawn = self.transcript.copy(), self.drawn
        other.reasons = self.reasons
        return other

    def read(self, *parts: Part | EncodedImage) -> None:
        """Take up text and pictures in order.

        Raises:
            NextStepError: when a picture cannot be opened.
        """
        self.reasons = False
        for part in parts:
            if isinstance(part, str):
                self.transcript.add_text(part)
            elif isinstance(part, EncodedImage):
                self.transcript.add_picture(part)
            else:
                self.transcript.add_picture(self.engine.encode(pictures.open_picture(part)))

    def read_question(self, question: str) -> None:
        """Take up a question that the next text answers.

        With the setting `reasoning`, or where the model was trained so, one that has seen pictures
        first writes what they show, see `text.reasoning`; that line stays in the transcript, and
        `write` gives the answer alone.
        """
        asked = self.changes.get("reasoning", self.engine.defaults.reasoning_before_answers)
        reasons = bool(asked and self.transcript.pictures)
        self.read(with_reasoning(question, "") if reasons else question)
        self.reasons = reasons

    def check_pictures(self, texts: Sequence[str]) -> None:
        """Whether a picture behind each of the texts, all in turn, has room in the model.

        Raises:
            NextStepError: what drawing the first one without room would raise.
        """
        ahead, turn = self.fork(), PictureTurn()
        for text in texts:
            ahead.read(text)
            ahead.image_sequence(turn).check(
                self.engine.model, self.engine.scheduler.limits.cache_bytes
            )
            rows, columns = grid = ahead.grid(turn)
            unknown = torch.zeros(rows * columns, self.engine.model.config.token_size)
            ahead.transcript.add_picture(EncodedImage(unknown, grid))

    def write(self, max_tokens: int = 64, temperature: float = 0.0, top_p: float = 0.9) -> str:
        """Let the model write text to its end; it draws nothing; see `TextTurn`."""
        turn = TextTurn(max_tokens, temperature, top_p)
        (event,) = self.engine.run([self.text_sequence(turn)])
        return self.keep_text(event)

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
        turn = PictureTurn(height, width)
        rows, columns = grid = self.grid(turn)

        def told(events: Sequence[Event]) -> None:
            for event in events:
                if on_progress is not None and event.kind in ("token", "row"):
                    done, show = len(event.tokens), partial(self._previews, event.tokens, grid)
                    on_progress(Progress(done, rows * columns, 1, self.drawn, show))

        (event,) = self.engine.run([self.image_sequence(turn)], told)
        return self.engine.show(event.tokens, grid, self.keep_picture(event, grid))

    def _previews(self, tokens: Tensor, grid: Grid) -> list[Image.Image]:
        return [self.engine.preview(tokens, grid)]

    def edit(
        self,
        instruction: str,
        height: int | None = None,
        width: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> GeneratedPicture:
        """Take up an instruction and draw the changed picture; see `draw_from`.

        Args:
            instruction: how to change what was read or drawn before.
            height, width, on_progress: see `draw`.

        Raises:
            NextStepError: when there is no picture yet.
        """
        if not self.transcript.pictures:
            raise NextStepError("there is no picture yet to be changed: read or draw one first")
        return self.draw_from(instruction, height, width, on_progress)

    def draw_from(
        self,
        prompt: str,
        height: int | None = None,
        width: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> GeneratedPicture:
        """Take up a text and draw the picture that it asks for.

        With the setting `reasoning` the model first writes what the picture will show, on a line
        behind the text where it has room, see `chat.reasoning`; `draw` alone never does that.

        Args:
            prompt: what the picture shows, or what happens next.
            height, width, on_progress: see `draw`.
        """
        before = self.transcript.copy()
        job, room = self.reasoning_sequence(prompt, PictureTurn(height, width))
        ids = self.engine.run([job])[0].ids if job else ()
        try:
            self.read(with_line(self.engine.text_tokenizer, prompt, ids, room))
            return self.draw(height, width, on_progress)
        except BaseException:
            # Asked again, the text must not stand there twice.
            self.transcript = before
            raise

    def go_on(
        self,
        max_pictures: int = 1,
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 0.9,
        on_progress: Callable[[Progress], None] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Iterator[str | GeneratedPicture]:
        """Let the model write and draw in turns as it sees fit.

        Args:
            max_pictures: after which it ends.
            max_tokens, temperature, top_p: of every stretch of text, see `write`.
            on_progress, height, width: of every picture, see `draw`.

        Yields:
            Texts and pictures; ends with the model's own end of text, after `max_pictures`, or
            when one stretch of text has `max_tokens` ids.
        """
        choose = text_choice(self.seed, len(self.transcript.ids), temperature, top_p)
        for _ in range(max_pictures):
            (event,) = self.engine.run(
                [self.transcript.text_sequence(max_tokens, choose, pictures=True)]
            )
            if event.ids:
                yield self.keep_text(event)
            if event.end != self.engine.text_tokenizer.ids.image_area:
                return
            yield self.draw(height, width, on_progress)

    def text_sequence(self, turn: TextTurn, client: str = "") -> TextSequence:
        """A turn as a sequence of the engine; `keep_text` takes its outcome up."""
        ids = self.transcript.ids
        choose = text_choice(self.seed, len(ids), turn.temperature, turn.top_p)
        room = self.engine.model.config.max_position_embeddings - len(ids)
        longest = turn.max_tokens + (LONGEST if self.reasons else 0)
        limit = max(1, min(longest, room))
        return self.transcript.text_sequence(limit, choose, turn.pictures, client)

    def image_sequence(self, turn: PictureTurn, client: str = "") -> ImageSequence:
        """A turn as a sequence of the engine; `keep_picture` takes its outcome up."""
        key = self.seed, self.drawn
        return self.transcript.image_sequence(self.grid(turn), self.settings(), key, client)

    def reasoning_sequence(self, prompt: str, turn: PictureTurn) -> tuple[TextSequence | None, int]:
        """What writes the line of a picture that comes next, and the ids that it has room for."""
        if not self.settings().reasoning:
            return None, 0
        told = self.transcript.copy()
        told.add_text(with_reasoning(prompt, ""))
        most = self.engine.model.config.max_position_embeddings
        room = room_left(most, len(told.ids), self.grid(turn))
        if room <= 0:
            return None, room
        return told.text_sequence(min(LONGEST, room), greedy, pictures=True), room

    def keep_text(self, event: Event) -> str:
        """Take a written text up; without the line about the pictures, if it has one."""
        text = self.transcript.add_written(list(event.ids))
        reasons, self.reasons = self.reasons, False
        return answer_in(text) if reasons else text

    def keep_picture(self, event: Event, grid: Grid) -> dict[str, Any]:
        """Take a drawn picture up; gives what is recorded in it."""
        transcript = self.transcript
        record = self.engine.record(
            "".join(transcript.said), (self.seed, self.drawn), grid, "story",
            self.settings().with_values(reasoning=False), transcript.pictures,
        )  # fmt: skip
        count = grid[0] * grid[1]
        if len(event.tokens) == count:
            transcript.add_picture(EncodedImage(event.tokens, grid))
        else:
            record["rows_done"] = len(event.tokens) // grid[1]
        self.drawn += 1
        return record

    def settings(self) -> GenerationSettings:
        """Of the next picture."""
        defaults = self.engine.defaults
        base = defaults.edit if self.transcript.pictures else defaults.generate
        return base.with_values(**self.changes)

    def grid(self, turn: PictureTurn) -> Grid:
        """Of the next picture."""
        usual = None
        if self.transcript.pictures:
            side = self.engine.image_tokenizer.config.token_pixels
            rows, columns = self.transcript.pictures[-1].grid
            usual = rows * side, columns * side
        return self.engine.grid(turn.height, turn.width, usual)
