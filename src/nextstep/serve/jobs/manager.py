"""The jobs of a service: accepted within limits, watched, cancelled, finished after a restart.

Everything but `_tell` runs on the event loop's thread; `_tell` is called by the backend.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any

from nextstep.engine.events import LAST, OUTCOMES, Event, Part
from nextstep.errors import NextStepError
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.limits import ServiceLimits
from nextstep.serve.jobs.metrics import Metrics
from nextstep.serve.jobs.records import (
    DONE,
    FAILED,
    QUEUED,
    LiveJob,
    PreviewDemands,
    Record,
    Watcher,
    no_previews,
)
from nextstep.serve.jobs.state_folder import MissingFileError, StorageError, StoredFileError
from nextstep.serve.jobs.store import Store
from nextstep.serve.problems import ApiError, not_found, stopping, too_busy
from nextstep.utils import old_names

if TYPE_CHECKING:
    from nextstep.engine.request import Request

log = logging.getLogger("nextstep.serve")

RUNTIME = "runtime"
"""Name of what computes, among a store's notes and in the log."""
NOT_KEPT = "the outcome could not be kept; the log says more"
RETRY = 2.0
"""Seconds between tries to write what a full disk did not take."""


class Jobs:
    """Jobs between the HTTP side and a backend.

    Args:
        backend: makes them.
        store: keeps them.
        limits: how many, how long.
        metrics: told what happens.
    """

    def __init__(
        self, backend: b.ServiceBackend, store: Store, limits: ServiceLimits, metrics: Metrics
    ) -> None:
        self.backend, self.store, self.limits, self.metrics = backend, store, limits, metrics
        self.draining, self._drained = False, 0.0
        self._live: dict[str, LiveJob] = {}
        # Owners of the jobs that are being accepted.
        self._coming: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._mending: asyncio.Future[None] | None = None
        metrics.queued.set_function(lambda: len(self._waiting()))
        metrics.running.set_function(lambda: len(self._live) - len(self._waiting()))

    @property
    def ready(self) -> bool:
        """Whether jobs are taken, as far as the disk lets them be kept."""
        return self._loop is not None and not self.draining

    def open(self) -> None:
        """Begin, with the jobs that an earlier process accepted and did not finish."""
        self._loop = asyncio.get_running_loop()
        left = self.store.unfinished()
        self._tell_runtime(len(left))
        self._mending = asyncio.ensure_future(self._mend_storage())
        for record in left:
            record.state = QUEUED
            self._begin(record)
        if left:
            log.info("jobs taken up again", extra={"jobs": len(left)})

    def _tell_runtime(self, left: int) -> None:
        """Say once what computes, and whether it is what computed before the last stop."""
        facts = self.backend.facts
        now = facts.runtime
        before = self.store.noted(RUNTIME) or self.store.noted(old_names.RUNTIME_NOTE)
        told = {"model": facts.name, "hash": facts.hash, RUNTIME: now}
        log.log(logging.WARNING if now.get("hindered") else logging.INFO, "begins", extra=told)
        known = isinstance(before, dict) and before
        if known and (others := b.other_roundings(before, now)):
            log.warning(
                "pictures get other last bits than before the last stop",
                extra={"differs": others, "before": before, "now": now, "unfinished": left},
            )
        try:
            self.store.note(RUNTIME, now)
        except StorageError:
            log.exception("the runtime could not be recorded")

    async def _mend_storage(self) -> None:
        """Try again what the disk did not take, as long as there is something."""
        while True:
            await asyncio.sleep(RETRY)
            if self.store.troubled:
                await asyncio.to_thread(self.store.retry)
                if not self.store.troubled:
                    log.info("the disk takes records again")

    def drain(self) -> None:
        """Take no more jobs; tell watchers in good time that the service stops. From any thread."""
        if self.draining:
            return
        self.draining, self._drained = True, time.monotonic()
        if self._loop is not None:
            # Answers need a moment to leave before connections are cut.
            left = max(0.0, self.limits.grace - min(1.0, self.limits.grace / 4))
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.call_later, left, self._tell_stopping)

    def _tell_stopping(self) -> None:
        for live in self._live.values():
            live.forward(b.STOPPING)

    async def close(self) -> None:
        """Let running jobs finish; the rest stays in the store for the next start."""
        self.drain()
        if self._mending is not None:
            self._mending.cancel()
        left = max(0.0, self._drained + self.limits.grace - time.monotonic())
        await asyncio.to_thread(self.backend.close, left)
        for live in self._live.values():
            if live.late is not None:
                live.late.cancel()
        self.store.close()

    async def submit(
        self,
        owner: str,
        request: b.JobRequest,
        sources: list[bytes],
        mask: bytes = b"",
        state: bytes = b"",
    ) -> Record:
        """Accept a job.

        Args:
            owner: whose it is.
            request: what is asked for.
            sources: its source pictures.
            mask: of an edit inside one.
            state: that its picture goes on from.

        Raises:
            ApiError: 429 when too many wait, 503 while stopping.
            ValueError: for a request that could never work.
        """
        if not self.ready:
            raise stopping()
        mine = sum(live.record.owner == owner for live in self._live.values())
        mine += self._coming.count(owner)
        count = len(self._live) + len(self._coming)
        if count >= self.limits.queue or mine >= self.limits.per_key:
            self.metrics.refused.inc()
            raise too_busy(f"{count} jobs wait already; try again in a moment", self._retry_after())
        # Reading the text and writing the files take their time, beside everybody else's requests.
        self._coming.append(owner)
        try:
            checked = await asyncio.to_thread(self.backend.check, request)
            add = asyncio.to_thread(self.store.add, owner, request, sources, mask, state)
            record = await asyncio.shield(asyncio.ensure_future(self._begun(add, checked)))
        finally:
            self._coming.remove(owner)
        return record

    async def answered(self, owner: str, request: b.JobRequest, text: str) -> Record:
        """Keep a request whose answer is known without the model; gives its finished job.

        Raises:
            ApiError: 503 while stopping.
        """
        if not self.ready:
            raise stopping()

        def keep() -> Record:
            record = self.store.add(owner, request, [])
            self.store.finish(record, Event("done", parts=(Part(text),)))
            return record

        return await asyncio.to_thread(keep)

    async def _begun(self, added: Coroutine[Any, Any, Record], checked: Request | None) -> Record:
        """Begin a job once it is kept; a job that is kept is begun, whoever still waits for it."""
        record = await added
        if self.draining:
            await asyncio.to_thread(self.store.remove, record)
            raise stopping()
        self._begin(record, checked)
        return record

    def get(self, owner: str, key: str) -> Record:
        """An owner's job.

        Raises:
            ApiError: 404 when there is none of that id, or it is somebody else's.
        """
        live = self._live.get(key)
        record = live.record if live else self.store.get(key)
        if record is None or record.owner != owner:
            raise not_found(f"there is no job '{key[:64]}'", "job_not_found")
        return record

    def position(self, record: Record) -> int | None:
        """Place in the queue, 1 is next; None when it does not wait."""
        waiting = [live.record.id for live in self._waiting()]
        return waiting.index(record.id) + 1 if record.id in waiting else None

    def cancel(self, record: Record) -> None:
        """Stop a job; nothing happens when it is over."""
        live = self._live.get(record.id)
        if live is not None and live.handle is not None:
            live.handle.cancel()

    def stop(self, record: Record) -> None:
        """End a job with what it has; nothing happens when it is over."""
        live = self._live.get(record.id)
        if live is not None and live.handle is not None:
            live.handle.stop()

    def forget(self, record: Record) -> None:
        """Remove a job that is over, with its pictures.

        Raises:
            ApiError: 409 when it is not over.
        """
        if record.id in self._live:
            raise ApiError(409, "the job is not over; cancel it first", code="job_not_over")
        self.store.remove(record)

    async def state(self, record: Record, index: int) -> bytes:
        """A picture of a job as it is now, or as it was finished.

        Raises:
            ApiError: 404 when there is no such picture, 409 when it cannot be gone on from.
        """
        live = self._live.get(record.id)
        if live is not None and live.handle is not None:
            try:
                return await asyncio.wrap_future(live.handle.snapshot(index))
            except NextStepError as error:
                raise ApiError(409, str(error), code="no_state") from None
        made = [part for part in record.parts if "file" in part]
        if index >= len(made):
            raise not_found(f"the job has {len(made)} finished pictures", "picture_not_found")
        if "state" not in made[index]:
            raise ApiError(409, "pictures of a story cannot be gone on from", code="no_state")
        try:
            return await asyncio.to_thread(self.store.load, made[index]["state"])
        except MissingFileError:
            raise ApiError(410, "what the picture was made of is gone", code="no_state") from None

    def watch(self, record: Record, wants: PreviewDemands = no_previews) -> AsyncIterator[Event]:
        """What happens to a job from now on, beginning with how it stands; ends with its end.

        Watching begins with this call, not with the first step of the loop over it.
        """
        live = self._live.get(record.id)
        if live is None:
            return self._past(record)
        watcher = Watcher(wants)
        position = self.position(live.record)
        watcher.events.put_nowait(
            Event("queued", position=position) if position else Event("started")
        )
        past: list[Event] = [*live.parts, *live.last.values()]
        for event in past:
            watcher.events.put_nowait(event)
        live.watchers.add(watcher)
        return self._follow(live, watcher)

    async def _past(self, record: Record) -> AsyncIterator[Event]:
        kept = self.store.get(record.id) or record
        try:
            yield await asyncio.to_thread(self.outcome, kept)
        except StoredFileError as error:
            yield Event("failed", message=str(error))
        except StorageError as error:
            yield Event("failed", message=str(error), code=b.STORAGE_FAILED)

    async def _follow(self, live: LiveJob, watcher: Watcher) -> AsyncIterator[Event]:
        try:
            while True:
                event = await watcher.events.get()
                yield event
                if event.kind in LAST:
                    return
        finally:
            live.watchers.discard(watcher)

    def outcome(self, record: Record) -> Event:
        """The end of a finished job, its pictures read from the store."""
        if record.error is not None:
            return Event("failed", message=record.error, bad_input=record.bad_input)
        if not record.over:
            return b.STOPPING
        if record.state != DONE:
            return Event("cancelled")
        parts = []
        for part in record.parts:
            if "file" in part:
                parts.append(Part("", self.store.load(part["file"]), part["settings"]))
            else:
                parts.append(Part(part["text"]))
        return Event("done", parts=tuple(parts), usage=record.usage)

    def _begin(self, record: Record, checked: Request | None = None) -> None:
        live = self._live[record.id] = LiveJob(record)
        assert self._loop is not None
        live.late = self._loop.call_later(self.limits.deadline, self._expire, live)
        job = b.Job(
            record.id,
            record.request,
            self.store.load,
            lambda event: self._tell(live, event),
            live.wants_preview,
            record.owner,
            lambda index, state: self.store.park(record, index, state),
            lambda index: self.store.parked(record, index),
            checked,
        )
        try:
            live.handle = self.backend.submit(job)
        except ValueError as error:
            self._tell(live, Event("failed", message=str(error)))

    def _expire(self, live: LiveJob) -> None:
        live.expired = True
        if live.handle is not None:
            live.handle.cancel()

    def _tell(self, live: LiveJob, event: Event) -> None:
        """Keep an end before anybody hears of it; pass everything on to the loop's thread."""
        if event.kind == "cancelled" and live.expired:
            event = Event(
                "failed", message=f"the job took longer than {self.limits.deadline:.0f} s"
            )
        try:
            if event.kind in OUTCOMES:
                event = self.store.finish(live.record, event)
            elif event.kind == "started":
                self.store.start(live.record)
        except Exception:
            # Nobody is left waiting, whatever happens here.
            log.exception("a job could not be kept")
            live.record.state, live.record.error = FAILED, NOT_KEPT
            event = Event("failed", message=NOT_KEPT)
        assert self._loop is not None
        # The loop may be gone when a job ends while the service stops: its record is kept.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._publish, live, event)

    def _publish(self, live: LiveJob, event: Event) -> None:
        if event.kind == "row":
            self.metrics.rows.inc()
            live.last[event.index] = event
        if event.kind == "part":
            live.parts.append(event)
        live.forward(event)
        if event.kind == "started" and live.record.started is not None:
            self.metrics.waited.observe(live.record.started - live.record.created)
        if event.kind in OUTCOMES:
            self._live.pop(live.record.id, None)
            if live.late is not None:
                live.late.cancel()
            self._count(live.record)
        if event.kind in ("started", *OUTCOMES):
            self._tell_positions()

    def _tell_positions(self) -> None:
        for place, other in enumerate(self._waiting(), 1):
            other.forward(Event("queued", position=place))

    def _count(self, record: Record) -> None:
        self.metrics.jobs.labels(record.request.task, record.state).inc()
        pictures = sum("file" in part for part in record.parts)
        if pictures and record.started is not None and record.finished is not None:
            self.metrics.made.observe((record.finished - record.started) / pictures)

    def _waiting(self) -> list[LiveJob]:
        return [live for live in self._live.values() if live.record.state == QUEUED]

    def _retry_after(self) -> int:
        """Seconds until some of the queue may be gone."""
        return max(1, min(30, len(self._live) // 4))
