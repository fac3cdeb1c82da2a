"""What the routes share: a job from request to outcome, cancelled when its client goes."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from nextstep.engine.events import Event
from nextstep.serve.api.streams import while_connected
from nextstep.serve.api.uploads import bytes_of_uri, check_pictures, safe_mask, safe_picture
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.limits import ServiceLimits
from nextstep.serve.jobs.manager import Jobs
from nextstep.serve.jobs.records import Record
from nextstep.serve.problems import ApiError, bad, not_found
from nextstep.text.introduction import introduction, objects_in
from nextstep.text.vocabulary import CheckedPrompt

DECODERS = 2
"""Pictures decoded at once, for all clients."""
CLIENT = "X-Client"
"""Header by which the studio says that it asks."""
NOT_THE_MODEL = "the service answered: the model was taught nothing of what was said"


@dataclass(frozen=True)
class Service:
    """One running service, as routes find it in `request.app.state.service`."""

    jobs: Jobs
    limits: ServiceLimits
    begun: int
    aliases: frozenset[str] = frozenset()
    decoders: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(DECODERS))

    @property
    def facts(self) -> b.ModelFacts:
        """The served model."""
        return self.jobs.backend.facts

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served.

        Raises:
            ApiError: 404 with the code that OpenAI uses.
        """
        if name is not None and name != self.facts.name and name not in self.aliases:
            raise not_found(
                f"there is no model '{name[:64]}' here; use '{self.facts.name}'", "model_not_found"
            )

    async def worded(self, prompt: str, edit: bool) -> CheckedPrompt:
        """A prompt in the words of the model; as it is where the model has no list of them."""
        own = self.facts.vocabulary
        if own is None:
            return CheckedPrompt(prompt, prompt)
        return await run_in_threadpool(own.instruction if edit else own.prompt, prompt)

    async def warnings(self, task: str, parts: Sequence[str | int]) -> tuple[str, ...]:
        """What is to be known about a conversation: the model's note, and words unknown to it."""
        own = self.facts.vocabulary
        if own is None:
            return ()
        note = (own.notes[task],) if task in own.notes else ()
        text = " ".join(part for part in parts if isinstance(part, str))
        read = await run_in_threadpool(own.instruction, text) if text.strip() else None
        return (*note, *(read.warnings if read else ()))

    def check_steps(self, settings: dict[str, Any]) -> None:
        """Refuse more solver steps than the service allows."""
        if settings.get("steps", 0) > self.limits.steps:
            raise bad(f"steps must be at most {self.limits.steps} here", "steps")

    async def pictures(self, uris: list[str], param: str) -> list[bytes]:
        """Data URIs -> clean PNGs, decoded off the event loop."""
        self.check_count(len(uris), param)
        files = [await run_in_threadpool(bytes_of_uri, uri, self.limits, param) for uri in uris]
        return await self.uploads(files, param)

    async def uploads(self, files: list[bytes], param: str) -> list[bytes]:
        """Uploaded files -> clean PNGs."""
        self.check_count(len(files), param)
        await run_in_threadpool(check_pictures, files, self.limits, param)
        return [await self._decode(safe_picture, data, self.limits, param) for data in files]

    def check_count(self, count: int, param: str) -> None:
        """Refuse too many source pictures."""
        if count > self.limits.source_pictures:
            raise bad(f"at most {self.limits.source_pictures} pictures are taken", param)

    async def mask(self, data: bytes, sources: list[bytes]) -> bytes:
        """An uploaded mask of the first source -> a clean grey PNG, white where it may change."""
        if not sources:
            raise bad("a mask needs the picture that it belongs to", "mask")
        return await self._decode(safe_mask, data, sources[0], self.limits, "mask")

    async def _decode(self, decode: Callable[..., bytes], *given: Any) -> bytes:
        """In a thread, few at once: a large picture takes much memory while it is decoded."""
        return await to_thread.run_sync(partial(decode, *given), limiter=self.decoders)

    async def submit(
        self,
        request: Request,
        job: b.JobRequest,
        sources: list[bytes],
        mask: bytes = b"",
        state: bytes = b"",
    ) -> Record:
        """Accept a job for whoever asks.

        Raises:
            ApiError: when it is refused.
        """
        if job.characters > self.limits.characters:
            raise ApiError(
                413, f"the texts are too long: at most {self.limits.characters:,} characters "
                "are taken together", code="request_too_large",
            )  # fmt: skip
        job = replace(job, endpoint=_endpoint(request))
        if said := await self._introduction(job, sources):
            job = replace(job, warnings=(NOT_THE_MODEL,))
            return await self.jobs.answered(request.state.owner, job, said)
        try:
            return await self.jobs.submit(request.state.owner, job, sources, mask, state)
        except (ValueError, TypeError) as error:
            raise bad(str(error)) from None

    async def _introduction(self, job: b.JobRequest, sources: list[bytes]) -> str:
        """What the model can do, where a conversation holds nothing that it was taught."""
        own, parts = self.facts.vocabulary, [part for part in job.parts if isinstance(part, str)]
        if own is None or sources or job.draw or not parts:
            return ""
        if await run_in_threadpool(objects_in, own, " ".join(parts)):
            return ""
        return introduction(own, self.facts.name)

    async def finished(
        self, request: Request, record: Record, events: AsyncIterator[Event] | None = None
    ) -> Event:
        """A job's end; the job is cancelled when the client goes first."""
        async with self.bound(record, events or self.jobs.watch(record)) as bound:
            return await while_connected(request, _last(bound))

    @contextlib.asynccontextmanager
    async def bound(
        self, record: Record, events: AsyncIterator[Event]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """A job's events; leaving before its end cancels it, except while the service stops."""
        try:
            yield events
        finally:
            await events.aclose()  # type: ignore[attr-defined]
            if not record.over and not self.jobs.draining:
                self.jobs.cancel(record)


async def _last(events: AsyncIterator[Event]) -> Event:
    last: Event = Event("cancelled")
    async for event in events:
        last = event
    return last


def _endpoint(request: Request) -> str:
    """Where a job is asked for; see `JobRequest.endpoint`."""
    if request.headers.get(CLIENT) == "studio":
        return "studio"
    return str(request.scope["route"].path).removeprefix("/v1").split("/")[1]


def new_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(2**31)


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """WIDTHxHEIGHT -> (height, width); auto -> (None, None)."""
    if size is None or size == "auto":
        return None, None
    width, height = size.split("x")
    return int(height), int(width)


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    found: Service = request.app.state.service
    return found
