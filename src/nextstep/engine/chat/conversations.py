"""Many conversations whose next turns are made together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from nextstep.engine.chat.conversation import Conversation, Part, PictureTurn, TextTurn, Turn
from nextstep.engine.chat.reasoning import with_line
from nextstep.engine.engine import Engine


class Conversations:
    """Sequences of text and pictures that people and a model write, side by side.

    What one of them gets depends on what stands before in it, its seed and the settings alone, not
    on the rest of the batch, where the engine's backend is batch-invariant.

    Args:
        engine: that makes their turns.
        seeds: one of every conversation.
    """

    def __init__(self, engine: Engine, seeds: Sequence[int]) -> None:
        self.engine = engine
        self.each = [Conversation(engine, seed) for seed in seeds]

    def read(self, which: int, *parts: Part) -> None:
        """Let a conversation take up text and pictures in order; see `Conversation.read`."""
        self.each[which].read(*parts)

    def read_question(self, which: int, question: str) -> None:
        """Let a conversation take up a question; see `Conversation.read_question`."""
        self.each[which].read_question(question)

    def read_prompts(self, prompts: Mapping[int, str], size: tuple[int, int]) -> None:
        """Let conversations take up what their next picture, drawn in a turn, is to show.

        With the setting `reasoning` every model first writes what its picture will show, see
        `chat.reasoning`; all of them do so side by side.

        Args:
            prompts: number of a conversation -> text.
            size: (height, width) of the pictures to come, in pixels.

        Raises:
            NextStepError: when one becomes too long, or its numbers are not finite.
        """
        turn = PictureTurn(*size)
        planned = {w: self.each[w].reasoning_sequence(text, turn) for w, text in prompts.items()}
        jobs = {which: job for which, (job, _) in planned.items() if job}
        ends = dict(zip(jobs, self.engine.run(list(jobs.values())), strict=True))
        for which, text in prompts.items():
            ids = ends[which].ids if which in ends else ()
            self.read(which, with_line(self.engine.text_tokenizer, text, ids, planned[which][1]))

    def take_turns(self, turns: Mapping[int, Turn]) -> dict[int, str | Image.Image]:
        """Let conversations go on by a text or a picture each.

        Args:
            turns: number of a conversation -> what is to come.

        Returns:
            Number of a conversation -> its text, or its picture.

        Raises:
            NextStepError: when one becomes too long or its numbers are not finite.
        """
        jobs = [
            self.each[which].text_sequence(turn) if isinstance(turn, TextTurn)
            else self.each[which].image_sequence(turn)
            for which, turn in turns.items()
        ]  # fmt: skip
        made: dict[int, str | Image.Image] = {}
        for (which, turn), event in zip(turns.items(), self.engine.run(jobs), strict=True):
            one = self.each[which]
            if isinstance(turn, TextTurn):
                made[which] = one.keep_text(event)
                continue
            grid = one.grid(turn)
            one.keep_picture(event, grid)
            made[which] = self.engine.preview(event.tokens, grid)
        return made
