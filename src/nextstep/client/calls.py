"""What a client asks of a service and how it reads the answers, written once for both clients.

`AsyncClient` and `Client` differ in the connections below: `_send`, `_lines` and `close`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nextstep.client.protocol import (
    EventReader,
    JobState,
    ServiceError,
    Source,
    StoryPart,
    checked_event,
    events_path,
    given,
    json_object,
    request_body,
    story_body,
)
from nextstep.engine.events import Event, Part

if TYPE_CHECKING:
    import httpx2


class Calls(ABC):
    """The calls of a service, to be awaited."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    async def _send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer to one request, unless it is an error."""

    @abstractmethod
    def _lines(self, path: str) -> AsyncGenerator[str, None]:
        """The lines of an answer as they come."""

    async def submit(
        self, /, prompt: str, *, images: Sequence[Source] = (), **fields: Any
    ) -> JobState:
        """Ask for pictures without waiting.

        Args:
            prompt: of the picture, or what to change.
            images: sources; with them the job is an edit.
            **fields: n, size ("128x128"), seed, mask (a picture that is transparent where the
                first source may change), guidance, steps and the other settings.
        """
        body = request_body(prompt, images, fields)
        return JobState.of(await self._ask("POST", "/jobs", json=body))

    async def stream(
        self,
        /,
        prompt: str,
        *,
        images: Sequence[Source] = (),
        previews: bool = True,
        **fields: Any,
    ) -> AsyncGenerator[Event, None]:
        """Ask for pictures and see them grow; leaving the loop early stops the job.

        Yields:
            What happens; the last event is `done` and holds the pictures.
        """
        job = await self.submit(prompt, images=images, **fields)
        done = False
        try:
            if job.warnings:
                yield Event("queued", job=job.id, warnings=job.warnings)
            async with aclosing(self.events(job.id, previews)) as events:
                async for event in events:
                    done = event.kind == "done"
                    yield event
        finally:
            if not done:
                await self.cancel(job.id)

    async def generate(
        self, /, prompt: str, *, images: Sequence[Source] = (), **fields: Any
    ) -> list[Part]:
        """Pictures, all at once; `submit` names the arguments."""
        made: tuple[Part, ...] = ()
        async with aclosing(self.stream(prompt, images=images, previews=False, **fields)) as events:
            async for event in events:
                made = event.pictures
        return list(made)

    async def story(
        self,
        /,
        parts: Sequence[StoryPart],
        on_update: Callable[[Event], None] = lambda event: None,
        **fields: Any,
    ) -> list[str | Part]:
        """Go on with text and pictures in order; all at once.

        Args:
            parts: texts, and pictures as bytes or paths.
            on_update: told of everything that happens on the way.
            **fields: max_images (0 is text alone), max_tokens, draw, temperature, seed, settings.

        Returns:
            What was written and drawn, in order.
        """
        body = story_body(parts, fields)
        job = JobState.of(await self._ask("POST", "/jobs", json=body)).id
        async with aclosing(self.events(job, previews=False)) as events:
            async for event in events:
                on_update(event)
        return [
            part["text"]
            if part["type"] == "text"
            else await self._picture(part["url"], part["settings"])
            for part in (await self.job(job)).parts
        ]

    async def events(self, job: str, previews: bool = True) -> AsyncGenerator[Event, None]:
        """What happens to a job, until it ends."""
        reader = EventReader()
        async with aclosing(self._lines(events_path(job, previews))) as lines:
            async for line in lines:
                told = reader.line(line)
                if told is None:
                    continue
                event = checked_event(Event.from_json(*told, job))
                if event.kind == "done":
                    yield replace(event, parts=tuple(await self.pictures(job)))
                    return
                yield event
        raise ServiceError("the service ended the events before the job")

    async def pictures(self, job: str) -> list[Part]:
        """The pictures of a job that is done."""
        return [await self._picture(*link) for link in (await self.job(job)).links]

    async def job(self, job: str) -> JobState:
        """A job as it stands."""
        return JobState.of(await self._ask("GET", f"/jobs/{job}"))

    async def jobs(self, limit: int = 20) -> list[JobState]:
        """Your jobs, the newest first."""
        raw = await self._ask("GET", "/jobs", params={"limit": limit})
        return [JobState.of(one) for one in raw["data"]]

    async def cancel(self, job: str) -> JobState:
        """Stop a job at its next token."""
        return JobState.of(await self._ask("POST", f"/jobs/{job}/cancel"))

    async def stop(self, job: str) -> JobState:
        """End a job at its next token and keep the pictures and rows that are there."""
        return JobState.of(await self._ask("POST", f"/jobs/{job}/stop"))

    async def fork(self, /, job: str, row: int, *, picture: int = 0, **changes: Any) -> JobState:
        """A new job that keeps the first `row` rows of a picture and goes on in its own way.

        Args:
            job: running, done or stopped.
            row: rows of image tokens that are kept.
            picture: which of the job's.
            **changes: prompt, seed, guidance and the other settings; what is left out stays.
        """
        body = {"row": row, "picture": picture, **given(changes)}
        return JobState.of(await self._ask("POST", f"/jobs/{job}/fork", json=body))

    async def resample(self, /, job: str, *, picture: int = 0, **region: Any) -> JobState:
        """A new job that draws a region of a finished picture anew and keeps all else.

        Args:
            job: done or stopped.
            picture: which of the job's.
            **region: one of rows ([first, after the last]), tokens (numbers in raster order) and
                mask (a picture, transparent where it is drawn anew); prompt, seed and settings.
        """
        body = {"picture": picture, **given(region)}
        return JobState.of(await self._ask("POST", f"/jobs/{job}/resample", json=body))

    async def tokens(self, job: str, picture: int = 0, noise_samples: int = 4) -> dict[str, Any]:
        """What each image token of a picture tells; see the service's reference."""
        path = f"/jobs/{job}/pictures/{picture}/tokens"
        return await self._ask("GET", path, params={"noise_samples": noise_samples})

    async def _picture(self, url: str, settings: dict[str, Any]) -> Part:
        return Part("", (await self._send("GET", url)).content, settings)

    async def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        return json_object(await self._send(method, path, **options))
