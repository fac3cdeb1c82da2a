"""OpenAI's stream of an answer: the answer, its one item as it grows, the answer again."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

from nextstep.engine.events import LAST, Event
from nextstep.serve.api.images import evenly
from nextstep.serve.api.response_answer import (
    ResponseAnswer,
    begun,
    forget_unkept,
    item,
    item_id,
    partial,
    response,
    text_part,
)
from nextstep.serve.api.streams import event
from nextstep.serve.problems import ApiError, raise_for


class ResponseStream:
    """Events of one answer, numbered.

    Args:
        answer: that is told.
    """

    def __init__(self, answer: ResponseAnswer) -> None:
        self.answer = answer
        self.wants = evenly(answer.tool.partial_images)
        self._place = {"output_index": 0, "item_id": item_id(answer)}
        self._numbers, self._partials = itertools.count(), itertools.count()
        self._sent = ""

    async def events(self, happening: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """What is sent for a job's events."""
        async with self.answer.service.bound(self.answer.record, happening) as bound:
            for piece in self._opening():
                yield piece
            async for happened in bound:
                if happened.kind not in LAST:
                    for piece in await self._growing(happened):
                        yield piece
                    continue
                try:
                    done = raise_for(happened)
                except ApiError as error:
                    whole = response(self.answer, "failed", [], error=error.message)
                    yield self._told("failed", response=whole)
                    return
                for piece in await self._closing(done):
                    yield piece
                forget_unkept(self.answer)

    def _told(self, kind: str, **data: Any) -> bytes:
        whole = {"type": f"response.{kind}", "sequence_number": next(self._numbers), **data}
        return event(whole, whole["type"])

    def _opening(self) -> list[bytes]:
        """The answer and its empty item."""
        whole = response(self.answer, "in_progress", [])
        told = [
            self._told("created", response=whole),
            self._told("in_progress", response=whole),
            self._told("output_item.added", output_index=0, item=begun(self.answer)),
        ]
        if self.answer.picture:
            return [*told, self._told("image_generation_call.in_progress", **self._place)]
        part = self._told("content_part.added", **self._place, content_index=0, part=text_part(""))
        return [*told, part]

    async def _growing(self, happened: Event) -> list[bytes]:
        """What is new of the item."""
        if happened.kind == "started" and self.answer.picture:
            return [self._told("image_generation_call.generating", **self._place)]
        if happened.kind == "text":
            return self._more(happened.text)
        if happened.kind != "row" or happened.shown is None:
            return []
        # A backend may show more rows than were asked for.
        if not self.wants(happened.row, happened.rows):
            return []
        shown = await partial(self.answer, happened.shown)
        number = next(self._partials)
        return [
            self._told("image_generation_call.partial_image", **self._place, **shown,
                       partial_image_index=number)
        ]  # fmt: skip

    def _more(self, text: str) -> list[bytes]:
        """A text's new letters."""
        if text == self._sent or not text.startswith(self._sent):
            return []
        delta, self._sent = text[len(self._sent) :], text
        return [self._told("output_text.delta", **self._place, content_index=0, delta=delta,
                           logprobs=[])]  # fmt: skip

    async def _closing(self, done: Event) -> list[bytes]:
        """The finished item and the answer with it."""
        made = await item(self.answer, done.parts)
        if self.answer.picture:
            told = [self._told("image_generation_call.completed", **self._place)]
        else:
            text = made["content"][0]["text"]
            told = self._more(text)
            here = {**self._place, "content_index": 0}
            told.append(self._told("output_text.done", **here, text=text, logprobs=[]))
            told.append(self._told("content_part.done", **here, part=text_part(text)))
        told.append(self._told("output_item.done", output_index=0, item=made))
        whole = response(self.answer, "completed", [made], done.usage)
        return [*told, self._told("completed", response=whole)]
