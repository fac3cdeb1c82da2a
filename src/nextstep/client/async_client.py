"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Self

from nextstep.client.protocol import (
    EventReader,
    JobState,
    RemotePicture,
    ServiceError,
    Source,
    StoryPart,
    Update,
    checked,
    checked_json,
    events_path,
    given,
    options,
    request_body,
    story_body,
    told_plainly,
    update_of,
)


class AsyncClient:
    """`Client` for asyncio; see there."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        import httpx2

        self._http = httpx2.AsyncClient(**options(url, key, timeout))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self, prompt: str, *, images: Sequence[Source] = (), **fields: Any
    ) -> JobState:
        """See `Client.submit`."""
        return JobState.of(
            await self._ask("POST", "/jobs", json=request_body(prompt, images, fields))
        )

    async def stream(
        self,
        prompt: str,
        *,
        images: Sequence[Source] = (),
        previews: bool = True,
        **fields: Any,
    ) -> AsyncIterator[Update]:
        """See `Client.stream`."""
        job = await self.submit(prompt, images=images, **fields)
        done = False
        if job.warnings:
            yield Update(job.id, "queued", warnings=job.warnings)
        try:
            async for update in self.events(job.id, previews):
                done = update.state == "done"
                yield update
        finally:
            if not done:
                await self.cancel(job.id)

    async def generate(
        self, prompt: str, *, images: Sequence[Source] = (), **fields: Any
    ) -> list[RemotePicture]:
        """See `Client.generate`."""
        made: tuple[RemotePicture, ...] = ()
        async for update in self.stream(prompt, images=images, previews=False, **fields):
            made = update.pictures
        return list(made)

    async def story(
        self,
        parts: Sequence[StoryPart],
        on_update: Callable[[Update], None] = lambda update: None,
        **fields: Any,
    ) -> list[str | RemotePicture]:
        """See `Client.story`."""
        body = story_body(parts, fields)
        job = JobState.of(await self._ask("POST", "/jobs", json=body)).id
        async for update in self.events(job, previews=False):
            on_update(update)
        made: list[str | RemotePicture] = []
        for part in (await self.job(job)).parts:
            if part["type"] == "text":
                made.append(part["text"])
                continue
            with told_plainly():
                png = checked(await self._http.get(part["url"])).content
            made.append(RemotePicture(png, part["settings"]))
        return made

    async def events(self, job: str, previews: bool = True) -> AsyncIterator[Update]:
        """See `Client.events`."""
        with told_plainly():
            async with self._http.stream("GET", events_path(job, previews)) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    checked(answer)
                reader = EventReader()
                async for line in answer.aiter_lines():
                    told = reader.line(line)
                    if told is None:
                        continue
                    update = update_of(job, *told)
                    if update is None:
                        made = tuple(await self.pictures(job))
                        yield Update(job, "done", pictures=made)
                        return
                    yield update
        raise ServiceError("the service ended the events before the job")

    async def pictures(self, job: str) -> list[RemotePicture]:
        """See `Client.pictures`."""
        with told_plainly():
            return [
                RemotePicture(checked(await self._http.get(url)).content, settings)
                for url, settings in (await self.job(job)).links
            ]

    async def job(self, job: str) -> JobState:
        """See `Client.job`."""
        return JobState.of(await self._ask("GET", f"/jobs/{job}"))

    async def jobs(self, limit: int = 20) -> list[JobState]:
        """See `Client.jobs`."""
        raw = await self._ask("GET", "/jobs", params={"limit": limit})
        return [JobState.of(one) for one in raw["data"]]

    async def cancel(self, job: str) -> JobState:
        """See `Client.cancel`."""
        return JobState.of(await self._ask("POST", f"/jobs/{job}/cancel"))

    async def stop(self, job: str) -> JobState:
        """See `Client.stop`."""
        return JobState.of(await self._ask("POST", f"/jobs/{job}/stop"))

    async def fork(self, job: str, row: int, *, picture: int = 0, **changes: Any) -> JobState:
        """See `Client.fork`."""
        body = {"row": row, "picture": picture, **given(changes)}
        return JobState.of(await self._ask("POST", f"/jobs/{job}/fork", json=body))

    async def resample(self, job: str, *, picture: int = 0, **region: Any) -> JobState:
        """See `Client.resample`."""
        body = {"picture": picture, **given(region)}
        return JobState.of(await self._ask("POST", f"/jobs/{job}/resample", json=body))

    async def tokens(self, job: str, picture: int = 0, draws: int = 4) -> dict[str, Any]:
        """See `Client.tokens`."""
        path = f"/jobs/{job}/pictures/{picture}/tokens"
        return await self._ask("GET", path, params={"draws": draws})

    async def _ask(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        with told_plainly():
            return checked_json(await self._http.request(method, path, **given))
