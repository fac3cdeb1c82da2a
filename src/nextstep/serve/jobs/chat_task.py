"""Reading pictures, answering, telling stories: one sequence of text and pictures.

Each stretch of text and each picture is a job of its own on the engine, beside everybody
else's; what stands before it is read anew, which costs little beside writing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nextstep.engine.chat.conversation import Conversation, PictureTurn
from nextstep.engine.chat.reasoning import LONGEST
from nextstep.engine.events import Event, Part, Usage
from nextstep.engine.text_sampling import Choose, text_choice
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.tasks import RowReporter, ServiceTask, TaskRunner

if TYPE_CHECKING:
    from nextstep.engine.engine import Engine


class ChatTask(ServiceTask):
    """An answer, a description or a story."""

    def __init__(self, host: TaskRunner, job: b.Job) -> None:
        super().__init__(host, job)
        self.talk = Conversation(host.engine, self.request.seed, **self.request.settings)
        self.read = self.talk.transcript
        self.parts: list[Part] = []
        self.left = self.request.draws
        self.usage = [0, 0, 0, 0]
        self.rows: RowReporter | None = None
        self.decoding = 0
        self.stopped = self.ended = False
        self._choose: Choose | None = None

    @property
    def engine(self) -> Engine:
        """That makes it."""
        return self.host.engine

    def prepare(self) -> None:
        """See `ServiceTask.prepare`."""
        sources = [self.engine.encode(self.open(name)) for name in self.request.sources]
        parts = self.request.parts
        for place, part in enumerate(parts, 1):
            if not isinstance(part, str):
                self.usage[1] += len(sources[part].tokens)
                self.talk.read(sources[part])
                continue
            self.usage[0] += self.count_text(part)
            if place == len(parts) and not self.request.draws:
                self.talk.read_question(part)
            else:
                self.talk.read(part)
        self._choose = text_choice(
            self.request.seed, len(self.read.ids), self.request.temperature, self.request.top_p
        )

    def begin(self) -> None:
        """See `ServiceTask.begin`."""
        if self.left and self.request.draw:
            self._draw()
        else:
            self._write()

    def on(self, event: Event) -> None:
        """See `ServiceTask.on`."""
        if event.kind == "started":
            self.tell_started()
        elif event.kind in ("token", "row"):
            if self.rows is not None:
                self.rows.tell(event.tokens, lambda made: made)
            else:
                self._tell_text(list(event.ids))
        elif event.kind == "failed":
            del self.tickets[event.ticket]
            self.fail(event)
        elif event.kind in ("finished", "stopped"):
            del self.tickets[event.ticket]
            self.stopped = event.kind == "stopped"
            try:
                self._go_on(event)
            except ValueError as error:
                self.end(Event("failed", message=str(error), bad_input=True))

    def stop_now(self) -> None:
        """See `ServiceTask.stop_now`."""
        if not self.tickets and not self.decoding:
            self.end(Event("cancelled"))
        for ticket in list(self.tickets):
            self.engine.stop(ticket)

    def _go_on(self, event: Event) -> None:
        special = self.engine.text_tokenizer.ids
        if self.rows is not None:
            self._keep_picture(event, self.rows.grid)
            self.rows, self.left = None, self.left - 1
            if self.left and not self.stopped:
                self._write()
                return
        else:
            self._keep_text(event)
            if event.end == special.image_area and not self.stopped:
                self._draw()
                return
        self.ended = True
        self._tell_if_over()

    def _tell_if_over(self) -> None:
        if not self.ended or self.decoding:
            return
        done = Event("done", parts=tuple(self.parts), usage=Usage(*self.usage))
        self.tell(done if self.parts or not self.stopped else Event("cancelled"))

    def _write(self) -> None:
        """Queue a stretch of text; it may end at a picture where one may be drawn."""
        assert self._choose is not None
        room = self.engine.model.config.max_position_embeddings - len(self.read.ids)
        longest = self.request.max_tokens + (LONGEST if self.talk.reasons else 0)
        limit = max(1, min(longest, room))
        job = self.read.text_sequence(limit, self._choose, bool(self.left), self.job.owner)
        self.tickets[self.host.submit_sequence(self, job)] = len(self.parts)

    def _draw(self) -> None:
        """Queue a picture."""
        request = self.request
        turn = PictureTurn(request.height, request.width)
        self.rows = RowReporter(self, self.talk.drawn, self.talk.grid(turn))
        job = self.talk.image_sequence(turn, self.job.owner)
        self.tickets[self.host.submit_sequence(self, job)] = len(self.parts)

    def _keep_picture(self, event: Event, grid: tuple[int, int]) -> None:
        """Take a picture up and tell it; a stopped one only if it has a row."""
        tokens = event.tokens
        self.usage[3] += len(tokens)
        if len(tokens) < grid[1]:
            return
        record = self.talk.keep_picture(event, grid)
        engine, place = self.engine, len(self.parts)
        self.parts.append(Part())

        def make() -> Part:
            made = engine.show(tokens, grid, record)
            return Part("", made.png(), made.settings)

        def keep(part: Part) -> None:
            self.decoding -= 1
            self.parts[place] = part
            self.tell(Event("part", index=place, parts=(part,)))
            self._tell_if_over()

        self.decoding += 1
        self.host.decode(self, make, keep)

    def _keep_text(self, event: Event) -> None:
        ids, text = event.ids, self.talk.keep_text(event)
        self.usage[2] += len(ids)
        if not self.request.draws:
            self._tell_part(Part(text.strip()))
        elif ids:
            self._tell_part(Part(text))

    def _tell_text(self, ids: list[int]) -> None:
        """Tell what is written so far, without the half of a letter at its end.

        A line about the pictures, before an answer, is not told.
        """
        text = self.engine.text_tokenizer.decode(ids).rstrip("\ufffd")
        if self.talk.reasons:
            text = text.lstrip().partition("\n")[2]
        if not self.request.draws:
            text = text.strip()
        if text:
            self.tell(Event("text", index=len(self.parts), text=text))

    def _tell_part(self, part: Part) -> None:
        self.parts.append(part)
        self.tell(Event("part", index=len(self.parts) - 1, parts=(part,)))
