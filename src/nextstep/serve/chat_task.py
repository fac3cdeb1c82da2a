"""Reading pictures, answering, telling stories: one sequence of text and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nextstep.pipeline import NextStepPipeline
from nextstep.results import GeneratedPicture
from nextstep.serve import backend as b
from nextstep.serve.tasks import Task

if TYPE_CHECKING:
    from nextstep.conversation import Conversation
    from nextstep.drawing import PictureEvent


class ChatTask(Task):
    """A chat."""

    def begin(self) -> None:
        """See `Task.begin`."""
        self.tell_started()
        request, engine = self.request, self.host.engine
        pipeline = NextStepPipeline(
            engine.model, engine.image_tokenizer, engine.text_tokenizer, engine.defaults,
            engine.maker.model,
        )  # fmt: skip
        pipeline.adapter = engine.maker.adapter
        told = pipeline.conversation(request.seed, **request.settings)
        sources = [self.open(name) for name in request.sources]
        told.read(*(p if isinstance(p, str) else sources[p] for p in request.parts))
        read = sum(len(picture.tokens) for picture in told.session.pictures)
        made = []
        for part in self._answer(told):
            if isinstance(part, GeneratedPicture):
                made.append(b.Part("", part.png(), part.settings))
            else:
                made.append(b.Part(part))
            self.tell(b.PartDone(len(made) - 1, made[-1]))
        words = sum(self.count_text(part.text) for part in made)
        drawn = sum(len(picture.tokens) for picture in told.session.pictures) - read
        text_in = sum(self.count_text(part) for part in request.parts if isinstance(part, str))
        self.tell(b.Done(tuple(made), b.Usage(text_in, read, words, drawn)))

    def _answer(self, told: Conversation) -> Iterator[str | GeneratedPicture]:
        request = self.request
        if not request.draws:
            yield told.write(request.max_tokens, request.temperature, request.top_p).strip()
            return
        left = request.draws
        if request.draw:
            yield told.draw(request.height, request.width)
            left -= 1
        if left:
            yield from told.go_on(left, request.max_tokens, request.temperature, request.top_p)

    def on(self, event: PictureEvent) -> None:
        """See `Task.on`."""

    def stop_now(self) -> None:
        """See `Task.stop_now`."""
