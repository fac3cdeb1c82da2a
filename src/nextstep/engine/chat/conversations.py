"""Many conversations whose next turns are made together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from PIL import Image

from nextstep.engine.chat.conversation import Part, Turns, text_choice
from nextstep.engine.chat.reasoning import LONGEST, room_left, with_line
from nextstep.engine.chat.transcript import Transcript
from nextstep.engine.engine import Engine, PictureEvent
from nextstep.engine.image_sequence import Job
from nextstep.engine.scheduler import Limits
from nextstep.engine.session import ReadPicture, greedy
from nextstep.engine.text_sequence import TextJob
from nextstep.errors import NextStepError
from nextstep.image import pictures
from nextstep.image.pictures import PictureLike
from nextstep.text.sequence import thought

Turn = tuple[int, int] | int
"""What is to come: a picture of (height, width) in pixels, or a text of at most so many ids."""


class Conversations:
    """Sequences of text and pictures that people and a model write, side by side.

    What one of them gets depends on what stands before in it, its seed and the settings alone, not
    on its company.

    Args:
        pipeline: model and tokenizers.
        seeds: one of every conversation.
        limits: of memory; see `engine.scheduler.Limits`.
    """

    def __init__(self, pipeline: Turns, seeds: Sequence[int], limits: Limits | None = None) -> None:
        self.pipeline, self.seeds = pipeline, list(seeds)
        self.engine = Engine(
            pipeline.model,
            pipeline.text_tokenizer,
            pipeline.image_tokenizer,
            pipeline.defaults,
            limits,
            model_hash=pipeline.model_hash,
            adapter=pipeline.adapter,
        )
        self.transcripts = [Transcript(pipeline.text_tokenizer) for _ in self.seeds]
        self.drawn = [0] * len(self.seeds)

    def read(self, which: int, *parts: Part) -> None:
        """Let a conversation take up text and pictures in order.

        Raises:
            NextStepError: when a picture cannot be opened.
        """
        for part in parts:
            if isinstance(part, str):
                self.transcripts[which].add_text(part)
            else:
                self.transcripts[which].add_picture(self._encoded(part))

    def read_edits(self, instructions: Mapping[int, str], size: tuple[int, int]) -> None:
        """Let conversations take up how their next picture, drawn in a turn, changes the last.

        With the setting `think` of edits every model first writes what its picture will show, see
        `thinking`; all of them do so side by side.

        Args:
            instructions: number of a conversation -> text.
            size: (height, width) of the pictures to come, in pixels.

        Raises:
            NextStepError: when one has no picture yet, becomes too long, or its numbers are not
                finite.
        """
        if not all(self.transcripts[which].pictures for which in instructions):
            raise NextStepError("there is no picture yet to be changed: read or draw one first")
        texts = dict(instructions)
        if self.pipeline.defaults.edit.think:
            grid = self.pipeline.grid(*size, size)
            jobs, rooms = {}, {}
            for which, text in instructions.items():
                told = self.transcripts[which].copy()
                told.add_text(thought(text, ""))
                rooms[which] = room_left(self.engine.model, len(told.ids), grid)
                if rooms[which] > 0:
                    longest = min(LONGEST, rooms[which])
                    jobs[which] = told.text_job(longest, greedy, pictures=True)
            for which, event in self._finished(jobs):
                texts[which] = with_line(
                    self.pipeline.text_tokenizer, instructions[which], event.ids, rooms[which]
                )
        for which, text in texts.items():
            self.read(which, text)

    def take_turns(self, turns: Mapping[int, Turn]) -> dict[int, str | Image.Image]:
        """Let conversations go on by a text, drawn of the likeliest ids, or a picture each.

        Args:
            turns: number of a conversation -> what is to come.

        Returns:
            Number of a conversation -> its text, or its picture.

        Raises:
            NextStepError: when one becomes too long or its numbers are not finite.
        """
        jobs = {which: self._job(which, turn) for which, turn in turns.items()}
        made = {w: self._keep(w, turns[w], event) for w, event in self._finished(jobs)}
        return {which: made[which] for which in turns}

    def _finished(self, jobs: Mapping[int, Job | TextJob]) -> Iterator[tuple[int, PictureEvent]]:
        """(number of a conversation, what came) as their jobs end."""
        tickets = dict[int, int]()
        try:
            for which, job in jobs.items():
                tickets[self.engine.submit_job(job)] = which
        except NextStepError:
            for ticket in tickets:
                self.engine.cancel(ticket)
            list(self.engine.run_until_idle())
            raise
        for event in self.engine.run_until_idle():
            if event.kind == "failed":
                raise NextStepError(event.message)
            if event.kind == "finished":
                yield tickets[event.ticket], event

    def _job(self, which: int, turn: Turn) -> Job | TextJob:
        transcript, seed = self.transcripts[which], self.seeds[which]
        if isinstance(turn, int):
            choose = text_choice(seed, len(transcript.ids), 0.0, 1.0)
            room = self.engine.model.config.max_position_embeddings - len(transcript.ids)
            return transcript.text_job(max(1, min(turn, room)), choose)
        own = self.pipeline.defaults
        settings = own.edit if transcript.pictures else own.generate
        grid = self.pipeline.grid(*turn, turn)
        return transcript.picture_job(grid, settings, (seed, self.drawn[which]))

    def _keep(self, which: int, turn: Turn, event: PictureEvent) -> str | Image.Image:
        if isinstance(turn, int):
            return self.transcripts[which].add_written(list(event.ids))
        grid = self.pipeline.grid(*turn, turn)
        self.transcripts[which].add_picture(ReadPicture(event.tokens, grid))
        self.drawn[which] += 1
        return self.engine.show(event.tokens, grid, {}).image

    @torch.inference_mode()
    def _encoded(self, part: PictureLike) -> ReadPicture:
        return ReadPicture(*self.pipeline.encode_picture(pictures.open_picture(part)))
