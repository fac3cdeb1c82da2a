"""Many engines behind one service: a Ray Serve deployment whose replicas each have a model.

The service in front keeps jobs, pictures and watchers; a replica makes them. A job's events come
back as a stream, and commands to it (stop, show me its state) go over a board that every replica
listens at. When a replica dies its jobs are made anew by another one, to the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextstep.engine.events import OUTCOMES, Event
from nextstep.engine.settings import GenerationSettings
from nextstep.errors import NextStepError
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.engine_backend import EngineBackend
from nextstep.serve.jobs.state_folder import StorageError, StoredFileError
from nextstep.serve.jobs.tasks import INTERNAL

if TYPE_CHECKING:
    from nextstep.engine.request import Request

log = logging.getLogger("nextstep.serve")

TRIES = 3
"""Replicas that a job is given to, one after the other, when they die."""
STOP, STATE = "stop", "state"
APP = "nextstep"
"""Name of the application on the cluster."""


@dataclass(frozen=True)
class ReplicaState:
    """A replica's answer to the command STATE: picture `index` as it is now, or why not."""

    index: int
    state: bytes = b""
    error: str = ""


class CommandQueue:
    """Commands to running jobs; an actor."""

    def __init__(self) -> None:
        self._commands: defaultdict[str, asyncio.Queue[tuple[str, int]]]
        self._commands = defaultdict(asyncio.Queue)

    async def post(self, key: str, command: str, index: int) -> None:
        """Leave a command for a job."""
        self._commands[key].put_nowait((command, index))

    async def next(self, key: str) -> tuple[str, int]:
        """A job's next command, once there is one."""
        return await self._commands[key].get()

    async def forget(self, key: str) -> None:
        """A job is over."""
        self._commands.pop(key, None)


class Replica:
    """One model on one worker.

    Args:
        make: loads the model and gives the engine behind a backend.
        queue: handle of the `CommandQueue`.
    """

    def __init__(self, make: Callable[[], EngineBackend], queue: Any) -> None:
        self.backend, self.queue = make(), queue

    def facts(self) -> b.ModelFacts:
        """What is served."""
        return self.backend.facts

    async def measure(self, state: bytes, noise_samples: int) -> dict[str, Any]:
        """See `Backend.measure`."""
        return await asyncio.wrap_future(self.backend.measure(state, noise_samples))

    async def run(
        self,
        key: str,
        owner: str,
        request: b.JobRequest,
        files: dict[str, bytes],
        parked: dict[int, bytes],
    ) -> AsyncIterator[Event | ReplicaState]:
        """Make a job; its events, the last one final."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | ReplicaState]()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = b.Job(
            key,
            request,
            files.__getitem__,
            tell,
            lambda row, rows: b.wanted_row(request.partials, row, rows),
            owner,
            parked=parked.get,
        )
        handle = self.backend.submit(job)
        obeying = asyncio.ensure_future(self._obey(key, handle, events))
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Event) and event.kind in OUTCOMES:
                    return
        finally:
            # Also when the one who listens is gone.
            handle.cancel()
            obeying.cancel()

    async def _obey(
        self, key: str, handle: b.Handle, events: asyncio.Queue[Event | ReplicaState]
    ) -> None:
        while True:
            command, index = await self.queue.next.remote(key)
            if command == STOP:
                handle.stop()
                continue
            try:
                state = await asyncio.wrap_future(handle.snapshot(index))
                events.put_nowait(ReplicaState(index, state))
            except NextStepError as error:
                events.put_nowait(ReplicaState(index, error=str(error)))


class RayHandle:
    """A job that a replica makes."""

    def __init__(self, host: RayBackend, job: b.Job) -> None:
        self.host, self.job = host, job
        self.over = False
        self.states: dict[int, list[Future[bytes]]] = defaultdict(list)
        self.running: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """See `Handle.cancel`."""
        self.host.do(self._cancel())

    async def _cancel(self) -> None:
        self.tell(Event("cancelled"))
        if self.running is not None:
            self.running.cancel()

    def stop(self) -> None:
        """See `Handle.stop`."""
        self.host.do(self.host.command(self.job.id, STOP, 0))

    def snapshot(self, index: int) -> Future[bytes]:
        """See `Handle.snapshot`."""
        future: Future[bytes] = Future()

        async def ask() -> None:
            """Ask the replica, which answers with a `ReplicaState`."""
            if self.over:
                future.set_exception(NextStepError("the job is over"))
                return
            self.states[index].append(future)
            await self.host.command(self.job.id, STATE, index)

        self.host.do(ask())
        return future

    def tell(self, event: Event | ReplicaState) -> None:
        """Pass an event on, nothing after a final one; on the backend's loop."""
        if self.over:
            return
        if isinstance(event, ReplicaState):
            for future in self.states.pop(event.index, []):
                if event.error:
                    future.set_exception(NextStepError(event.error))
                else:
                    future.set_result(event.state)
            return
        self.over = event.kind in OUTCOMES
        if self.over:
            for index in list(self.states):
                self.states[index], waiting = [], self.states[index]
                for future in waiting:
                    future.set_exception(NextStepError("the job is over"))
        self.job.tell(event)


class RayBackend:
    """Gives jobs to the replicas of a deployment.

    Args:
        replicas: its handle.
        queue: handle of the `CommandQueue`.
    """

    def __init__(self, replicas: Any, queue: Any) -> None:
        self._replicas, self._board = replicas, queue
        self._jobs: dict[str, RayHandle] = {}
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ray", daemon=True)
        self._thread.start()
        self.facts: b.ModelFacts = self.do(self._facts()).result()

    async def _facts(self) -> b.ModelFacts:
        facts: b.ModelFacts = await self._replicas.facts.remote()
        return facts

    def do(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Do something on the backend's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def command(self, key: str, command: str, index: int) -> None:
        """Leave a command for the replica that makes a job."""
        await self._board.post.remote(key, command, index)

    def check(self, request: b.JobRequest) -> Request | None:
        """See `Backend.check`; what only the model knows is told once a replica has the job."""
        GenerationSettings().with_values(**request.settings)
        if request.height is not None and request.width is not None:
            self.facts.sizes.grid(request.height, request.width)
        return None

    def submit(self, job: b.Job) -> RayHandle:
        """See `Backend.submit`."""
        if self._closing:
            raise NextStepError("the service is stopping; ask again later")
        handle = RayHandle(self, job)
        self.do(self._start(handle))
        return handle

    async def _start(self, handle: RayHandle) -> None:
        self._jobs[handle.job.id] = handle
        handle.running = asyncio.ensure_future(self._follow(handle))

    async def _follow(self, handle: RayHandle) -> None:
        job = handle.job
        try:
            for attempt in range(TRIES):
                if await self._tried(handle, last=attempt + 1 == TRIES):
                    return
        finally:
            self._jobs.pop(job.id, None)
            await self._board.forget.remote(job.id)

    async def _tried(self, handle: RayHandle, last: bool) -> bool:
        """Give a job to a replica; whether it is over."""
        job, request = handle.job, handle.job.request
        names = [*request.sources, request.mask, request.state]
        stream = None
        try:
            files = {name: job.load(name) for name in names if name}
            parked = {i: state for i in range(request.n) if (state := job.parked(i))}
            stream = self._replicas.options(stream=True).run.remote(
                job.id, job.owner, request, files, parked
            )
            async for event in stream:
                handle.tell(event)
        except asyncio.CancelledError:
            if stream is not None:
                stream.cancel()
            raise
        except (StoredFileError, StorageError) as error:
            handle.tell(Event("failed", message=str(error), bad_input=True))
        except Exception:
            log.exception("a replica failed")
            if last:
                handle.tell(Event("failed", message=INTERNAL))
        return handle.over

    def measure(self, state: bytes, noise_samples: int) -> Future[dict[str, Any]]:
        """See `Backend.measure`."""

        async def measured() -> dict[str, Any]:
            """What a replica measures; its error is one of ours."""
            try:
                told: dict[str, Any] = await self._replicas.measure.remote(state, noise_samples)
            except Exception as error:
                cause = getattr(error, "cause", error)
                raise NextStepError(str(cause).splitlines()[-1]) from None
            return told

        return self.do(measured())

    def close(self, grace: float) -> None:
        """See `Backend.close`."""
        self._closing = True
        self.do(self._closed(grace)).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _closed(self, grace: float) -> None:
        running = [handle.running for handle in self._jobs.values() if handle.running]
        if running:
            await asyncio.wait(running, timeout=grace)
        for handle in list(self._jobs.values()):
            for index in range(handle.job.request.n):
                try:
                    state = await asyncio.wait_for(asyncio.wrap_future(handle.snapshot(index)), 5)
                    handle.job.park(index, state)
                except (NextStepError, TimeoutError):
                    continue
            handle.over = True
            if handle.running is not None:
                handle.running.cancel()
        await asyncio.sleep(0)


def deploy(
    make: Callable[[], EngineBackend],
    replicas: tuple[int, int] = (1, 1),
    ongoing: int = 16,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> RayBackend:
    """Start a deployment on the Ray cluster that is there, or on one of this machine alone.

    Args:
        make: loads the model on a worker and gives its backend; it is sent there.
        replicas: fewest and most; between them their number follows the load.
        ongoing: jobs that one replica is to have at a time; more make more replicas.
        cpus, gpus: that one replica takes.
    """
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    queue = ray.remote(CommandQueue).options(num_cpus=0, max_concurrency=10_000).remote()
    few, most = replicas
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus}}
    if few == most:
        options["num_replicas"] = few
    else:
        options["autoscaling_config"] = {
            "min_replicas": few, "max_replicas": most, "target_ongoing_requests": ongoing,
        }  # fmt: skip
    deployment = serve.deployment(name="pictures", max_ongoing_requests=4 * ongoing, **options)
    app = deployment(Replica).bind(make, queue)
    handle = serve.run(app, name=APP, route_prefix=None)
    return RayBackend(handle, queue)


def shut_down() -> None:
    """End the deployment, and the cluster if it was started here."""
    import ray
    from ray import serve

    serve.delete(APP)
    ray.shutdown()
