"""The engine as a backend: one worker thread, all jobs made together token by token.

Legend: k tokens that are known, D values per token.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextstep.engine.events import ENDS, Event, Part
from nextstep.engine.runtime_info import RuntimeInfo
from nextstep.engine.settings import check_used
from nextstep.engine.state import PictureState
from nextstep.engine.token_uncertainty import measure
from nextstep.errors import NextStepError
from nextstep.model.flow_head import check_solver
from nextstep.model.folder import limits_of
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.chat_task import ChatTask
from nextstep.serve.jobs.state_folder import StorageError, StoredFileError
from nextstep.serve.jobs.tasks import INTERNAL, PictureTask, ServiceTask
from nextstep.vae.preview import GrowingPicture, LinearPreview

if TYPE_CHECKING:
    from PIL import Image

    from nextstep.engine.engine import Engine
    from nextstep.engine.request import Request
    from nextstep.engine.sequence import SequenceState
    from nextstep.text.vocabulary import Vocabulary

log = logging.getLogger("nextstep.serve")

CREDIT = 0.25
"""Seconds of previews that may be saved up while nobody looks."""


class EngineBackend:
    """Runs jobs on an `Engine`, in a thread of its own that alone touches it.

    Args:
        engine: with its limits.
        name: of the model as clients say it.
        preview_share: of the time, that previews which are not needed for sure may take; beyond
            it they are rough.
        on_batch: told at every step how many pictures and texts are being made.
        vocabulary: of the model, for its facts.
    """

    def __init__(
        self,
        engine: Engine,
        name: str = "nano",
        preview_share: float = 0.03,
        on_batch: Callable[[int], None] | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.engine, self.preview_share, self.on_batch = engine, preview_share, on_batch
        own = engine.defaults
        side = engine.image_tokenizer.config.token_pixels
        defaults = {"generate": own.generate.recorded(), "edit": own.edit.recorded()}
        self.facts = b.ModelFacts(
            name, engine.fingerprint.model, own.height, own.width,
            limits_of(engine.model.config, side), defaults,
            RuntimeInfo.of(engine.model, engine.backend).to_dict(), vocabulary,
            engine.fingerprint.adapter,
        )  # fmt: skip
        self._tasks: dict[int, ServiceTask] = {}
        self._live: set[ServiceTask] = set()
        self._inbox: list[Callable[[], None]] = []
        self._measures: list[Iterator[None]] = []
        self._change = threading.Condition()
        self._credit, self._cost = CREDIT, 0.0
        self._rough = LinearPreview(engine.image_tokenizer)
        self._closing = False
        # As many threads as here, because they decide in which order some sums are made.
        threads = torch.get_num_threads()
        self._preparer = ThreadPoolExecutor(
            1, "preparing", initializer=lambda: torch.set_num_threads(threads)
        )
        self._decoder = ThreadPoolExecutor(
            1, "decoding", initializer=lambda: torch.set_num_threads(threads)
        )
        self._end = 0.0
        self._worker = threading.Thread(target=self._run, name="pictures", daemon=True)
        self._worker.start()

    def check(self, request: b.JobRequest) -> Request | None:
        """See `ServiceBackend.check`."""
        if request.state:
            return None
        engine, own = self.engine, self.engine.defaults
        base = own.edit if request.sources or request.parts else own.generate
        check_solver(base.with_values(**request.settings).solver, engine.model.config)
        if request.task == b.CHAT:
            check_used("story" if request.draws else "read", request.settings)
        if request.task == b.GENERATE:
            asked = engine.request(
                request.prompt, height=request.height, width=request.width, seed=request.seed,
                **request.settings,
            )  # fmt: skip
            most = engine.model.config.max_position_embeddings
            asked.sequence(engine.text_tokenizer, most).check(
                engine.model, engine.scheduler.limits.cache_bytes
            )
            return asked
        if request.height is not None and request.width is not None:
            self.facts.sizes.grid(request.height, request.width)
        return None

    def submit(self, job: b.Job) -> ServiceTask:
        """See `Backend.submit`."""
        task = (ChatTask if job.request.task == b.CHAT else PictureTask)(self, job)
        if self._closing:
            raise NextStepError("the service is stopping; ask again later")
        if task.is_heavy:
            self._preparer.submit(self._prepare, task)
        else:
            self.post(lambda: self._prepare(task))
        return task

    def measure(self, state: bytes, noise_samples: int) -> Future[dict[str, Any]]:
        """See `Backend.measure`."""
        future: Future[dict[str, Any]] = Future()

        def work() -> Iterator[None]:
            """Measure a little at a time, between the steps of the engine."""
            if not future.set_running_or_notify_cancel():
                return
            try:
                steps = measure(self.engine, PictureState.from_bytes(state), noise_samples)
                while True:
                    try:
                        next(steps)
                    except StopIteration as end:
                        future.set_result(end.value)
                        return
                    yield
            except Exception as error:
                future.set_exception(error)

        self.post(lambda: self._measures.append(work()))
        return future

    def close(self, grace: float) -> None:
        """See `Backend.close`."""
        with self._change:
            self._closing, self._end = True, time.monotonic() + grace
            self._change.notify()
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self._worker.join()
        self._decoder.shutdown(wait=True)

    def post(self, command: Callable[[], None]) -> None:
        """See `Host.post`."""
        with self._change:
            self._inbox.append(command)
            self._change.notify()

    def submit_state(self, task: ServiceTask, state: PictureState) -> int:
        """See `Host.submit_state`."""
        ticket = self.engine.submit(state.request, state)
        self._tasks[ticket] = task
        return ticket

    def submit_sequence(self, task: ServiceTask, sequence: SequenceState) -> int:
        """See `Host.submit_sequence`."""
        ticket = self.engine.submit_sequence(sequence)
        self._tasks[ticket] = task
        return ticket

    def running(self) -> int:
        """See `Host.running`."""
        return self.engine.scheduler.running

    def decode(
        self, task: ServiceTask, make: Callable[[], Part], then: Callable[[Part], None]
    ) -> None:
        """See `Host.decode`."""

        def made(future: Future[Part]) -> None:
            """Give the part to its task, on the worker's thread."""
            error = future.exception()
            if error is None:
                self.post(lambda: then(future.result()))
                return
            log.error("a picture could not be decoded", exc_info=error)
            self.post(lambda: task.end(Event("failed", message=INTERNAL)))

        self._decoder.submit(make).add_done_callback(made)

    def show(self, picture: GrowingPicture, tokens: Tensor, want: b.PreviewDemand) -> Image.Image:
        """See `Host.show`."""
        begun = time.monotonic()
        if want < b.PreviewDemand.SURELY and self._credit < self._cost:
            shown = picture.show_linear_preview(tokens, self._rough)
            self._credit -= time.monotonic() - begun
            return shown
        shown = picture.show(tokens)
        # What one costs is what the last one cost; a slow moment is soon forgotten.
        spent = time.monotonic() - begun
        self._cost = min(spent, 2 * self._cost) if self._cost else spent
        self._credit -= spent
        return shown

    def ended(self, task: ServiceTask) -> None:
        """See `Host.ended`."""
        self._live.discard(task)

    def _prepare(self, task: ServiceTask) -> None:
        """Read what a job gives, then let it begin; heavy ones beside the steps."""
        if not task.over and self._succeeds(task, task.prepare):
            self.post(lambda: self._begin(task))

    def _begin(self, task: ServiceTask) -> None:
        if task.over:
            return
        self._live.add(task)
        self._succeeds(task, task.begin)

    def _succeeds(self, task: ServiceTask, work: Callable[[], None]) -> bool:
        """Do a job's work; one that fails ends the job."""
        try:
            work()
        except ValueError as error:
            failed = Event("failed", message=str(error), bad_input=True)
        except (StoredFileError, StorageError) as error:
            failed = Event("failed", message=str(error))
        except Exception:
            log.exception("a job could not be begun")
            failed = Event("failed", message=INTERNAL)
        else:
            return True
        self.post(lambda: task.end(failed))
        return False

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(self._has_work)
                commands, self._inbox = self._inbox, []
                closing = self._closing
            for command in commands:
                try:
                    command()
                except Exception:
                    log.exception("a command failed")
            if closing and self._closed():
                return
            if not self.engine.idle:
                self._step()
            elif closing:
                time.sleep(0.005)  # a picture is being decoded
            if self._measures and next(self._measures[0], self) is self:
                self._measures.pop(0)

    def _has_work(self) -> bool:
        return bool(self._inbox or self._measures or self._closing or not self.engine.idle)

    def _step(self) -> None:
        begun = time.monotonic()
        try:
            events = self.engine.step(decode=False)
        except Exception:
            log.exception("a step failed")
            for task in list(self._live):
                task.end(Event("failed", message=INTERNAL))
            return
        spent = time.monotonic() - begun
        self._credit = min(CREDIT, self._credit + self.preview_share * spent)
        if self.on_batch is not None and (running := self.running()):
            self.on_batch(running)
        for event in events:
            self._pass_on(event)

    def _pass_on(self, event: Event) -> None:
        task = self._tasks.get(event.ticket)
        if event.kind in ENDS:
            self._tasks.pop(event.ticket, None)
        # A task that gave a ticket up wants to hear no more of it.
        if task is None or event.ticket not in task.tickets:
            return
        try:
            task.on(event)
        except Exception:
            log.exception("a job failed")
            task.end(Event("failed", message=INTERNAL))

    def _closed(self) -> bool:
        """Leave out what has not begun; whether all else is done or, at the end, parked."""
        for task in list(self._live):
            if not task.started:
                self._forget(task)
        if self._live and time.monotonic() < self._end:
            return False
        for task in list(self._live):
            try:
                task.park()
            except Exception:
                log.exception("a job could not be parked")
            self._forget(task)
        return True

    def _forget(self, task: ServiceTask) -> None:
        """Drop a job without a word."""
        for ticket in task.tickets:
            self.engine.cancel(ticket)
        task.tickets.clear()
        self._live.discard(task)
