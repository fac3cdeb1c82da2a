"""Many conversations whose next turns are made together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from nextstep.conversation import Part, Turns, text_choice
from nextstep.drawing import Engine, PictureEvent
from nextstep.engine.scheduler import Limits
from nextstep.engine.session import ReadPicture
from nextstep.errors import NextStepError
from nextstep.image import pictures
from nextstep.transcript import Transcript

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

    def take_turns(self, turns: Mapping[int, Turn]) -> dict[int, str | Image.Image]:
        """Let conversations go on by a text, drawn of the likeliest ids, or a picture each.

        Args:
            turns: number of a conversation -> what is to come.

        Returns:
            Number of a conversation -> its text, or its picture.

        Raises:
            NextStepError: when one becomes too long or its numbers are not finite.
        """
        tickets = {self._submit(which, turn): which for which, turn in turns.items()}
        made = {}
        for event in self.engine.run_until_idle():
            if event.kind == "failed":
                raise NextStepError(event.message)
            if event.kind == "finished":
                which = tickets[event.ticket]
                made[which] = self._keep(which, turns[which], event)
        return {which: made[which] for which in turns}

    def _submit(self, which: int, turn: Turn) -> int:
        transcript, seed = self.transcripts[which], self.seeds[which]
        if isinstance(turn, int):
            choose = text_choice(seed, len(transcript.ids), 0.0, 1.0)
            room = self.engine.model.config.max_position_embeddings - len(transcript.ids)
            return self.engine.submit_job(transcript.text_job(max(1, min(turn, room)), choose))
        own = self.pipeline.defaults
        settings = own.edit if transcript.pictures else own.generate
        grid = self.pipeline.grid(*turn, turn)
        return self.engine.submit_job(
            transcript.picture_job(grid, settings, (seed, self.drawn[which]))
        )

    def _keep(self, which: int, turn: Turn, event: PictureEvent) -> str | Image.Image:
        if isinstance(turn, int):
            return self.transcripts[which].add_written(list(event.ids))
        grid = self.pipeline.grid(*turn, turn)
        self.transcripts[which].add_picture(ReadPicture(event.tokens, grid))
        self.drawn[which] += 1
        return self.engine.show(event.tokens, grid, {}).image

    @torch.inference_mode()
    def _encoded(self, part: Path | Image.Image) -> ReadPicture:
        return ReadPicture(*self.pipeline.encode_picture(pictures.open_picture(part)))
