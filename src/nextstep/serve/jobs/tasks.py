"""One job on the engine: from its request to engine tickets, from engine events to its own.

Legend: k tokens that are known, D values per token.
"""

from __future__ import annotations

import io
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from nextstep.engine.events import OUTCOMES, Event, Part, Usage
from nextstep.engine.state import PictureState
from nextstep.errors import NextStepError
from nextstep.image import masks, pictures
from nextstep.serve.jobs import backend as b
from nextstep.vae.preview import GrowingPicture

if TYPE_CHECKING:
    from PIL import Image

    from nextstep.engine.engine import Engine
    from nextstep.engine.request import Request
    from nextstep.engine.sequence import SequenceState

log = logging.getLogger("nextstep.serve")

LIGHT = 2000
"""Characters whose ids are made in less time than a step takes."""
INTERNAL = "the picture could not be made because of an internal failure; the log says more"


class TaskRunner(Protocol):
    """What a task needs of the thread that runs it."""

    engine: Engine

    def submit_state(self, task: ServiceTask, state: PictureState) -> int:
        """Queue a picture for a task; gives its ticket."""

    def submit_sequence(self, task: ServiceTask, sequence: SequenceState) -> int:
        """Queue a text, or a picture of a story, for a task; gives its ticket."""

    def running(self) -> int:
        """Pictures and texts being made."""

    def decode(
        self, task: ServiceTask, make: Callable[[], Part], then: Callable[[Part], None]
    ) -> None:
        """Make a part beside the steps; `then` gets it on the worker's thread."""

    def show(
        self, picture: GrowingPicture, tokens: torch.Tensor, want: b.PreviewDemand
    ) -> Image.Image:
        """A preview; rough where there is no time for more and none is surely wanted."""

    def ended(self, task: ServiceTask) -> None:
        """A task told its end."""

    def post(self, command: Callable[[], None]) -> None:
        """Do something on the worker's thread."""


class ServiceTask(ABC):
    """A submitted job: the handle of who asked, and the worker's view of it.

    `cancel`, `stop` and `snapshot` may be called from any thread; all else is the worker's.
    """

    def __init__(self, host: TaskRunner, job: b.Job) -> None:
        self.host, self.job, self.request = host, job, job.request
        self.over = self.started = False
        self.tickets: dict[int, int] = {}
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        """Pass an event on, but nothing after a final one."""
        with self._lock:
            if self.over:
                return
            self.over = event.kind in OUTCOMES
        self.job.tell(event)
        if self.over:
            self.host.ended(self)

    def cancel(self) -> None:
        """See `Handle.cancel`."""
        self.host.post(lambda: self.end(Event("cancelled")))

    def stop(self) -> None:
        """See `Handle.stop`."""
        self.host.post(self.stop_now)

    def snapshot(self, index: int) -> Future[bytes]:
        """See `Handle.snapshot`."""
        future: Future[bytes] = Future()

        def answer() -> None:
            """Put the state into the future, on the worker's thread."""
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self.state_of(index).to_bytes())
            except Exception as error:
                future.set_exception(error)

        self.host.post(answer)
        return future

    def end(self, event: Event) -> None:
        """Give up what is being made, and say why."""
        for ticket in list(self.tickets):
            self.host.engine.cancel(ticket)
        self.tickets.clear()
        self.tell(event)

    def fail(self, event: Event) -> None:
        """End because one of the tickets failed."""
        if event.error is None:
            self.end(Event("failed", message=event.message, bad_input=True))
            return
        log.error("a job failed", exc_info=event.error, extra={"job": self.job.id})
        self.end(Event("failed", message=INTERNAL))

    @property
    def is_heavy(self) -> bool:
        """Whether preparing it takes longer than a step of the engine may."""
        return bool(self.request.sources) or self.request.characters > LIGHT

    @abstractmethod
    def prepare(self) -> None:
        """Read pictures and texts: in a thread of its own when it is heavy, before `begin`.

        Raises:
            ValueError: when the request is at fault.
        """

    @abstractmethod
    def begin(self) -> None:
        """Hand the work to the engine.

        Raises:
            ValueError: when the request is at fault.
        """

    @abstractmethod
    def on(self, event: Event) -> None:
        """Something happened to one of the tickets."""

    @abstractmethod
    def stop_now(self) -> None:
        """End with what is there."""

    def state_of(self, index: int) -> PictureState:
        """A picture as it is now.

        Raises:
            NextStepError: when there is none.
        """
        raise NextStepError("pictures of a story cannot be gone on from")

    def park(self) -> None:  # noqa: B027
        """Keep what is there for the next start; tasks without a state begin anew then."""

    def tell_started(self) -> None:
        """Once."""
        if not self.started:
            self.started = True
            self.tell(Event("started", batch=self.host.running()))

    def open(self, name: str) -> Image.Image:
        """A stored source picture."""
        return pictures.open_picture(io.BytesIO(self.job.load(name)))

    def count_text(self, text: str) -> int:
        """Ids of a text."""
        return len(self.host.engine.text_tokenizer.encode(text))


class RowReporter:
    """Rows of one picture, told as they come."""

    def __init__(self, task: ServiceTask, index: int, grid: tuple[int, int]) -> None:
        self.task, self.index, self.grid = task, index, grid
        self.told = 0
        self.growing = GrowingPicture(task.host.engine.image_tokenizer, grid)

    def tell(self, tokens: torch.Tensor, finish: Callable[[Image.Image], Image.Image]) -> None:
        """Tell the rows that tokens [k, D] complete, the last one with a preview if wanted."""
        rows, columns = self.grid
        done = len(tokens) // columns
        for row in range(self.told + 1, done + 1):
            preview = None
            if row == done and row < rows:
                want = self.task.job.wants_preview(row, rows)
                if want:
                    preview = finish(self.task.host.show(self.growing, tokens, want))
            self.task.tell(Event("row", index=self.index, row=row, rows=rows, shown=preview))
        self.told = max(self.told, done)


class PictureTask(ServiceTask):
    """A generation, an edit, or a picture that goes on from a state."""

    def __init__(self, host: TaskRunner, job: b.Job) -> None:
        super().__init__(host, job)
        self.states: list[PictureState] = []
        self.rows: list[RowReporter] = []
        self.parts: dict[int, Part | None] = {}
        self.decoding = 0

    def prepare(self) -> None:
        """See `ServiceTask.prepare`."""
        for index, fresh in enumerate(self._wanted()):
            state = self._parked(index, fresh)
            request = replace(state.request, client=self.job.owner)
            self.states.append(replace(state, request=request))
            self.rows.append(RowReporter(self, index, request.grid))
            self.rows[-1].told = state.rows

    def begin(self) -> None:
        """See `ServiceTask.begin`."""
        engine = self.host.engine
        for index, state in enumerate(self.states):
            state.fingerprint.check(engine.fingerprint)
            self.tickets[self.host.submit_state(self, state)] = index

    def _wanted(self) -> list[PictureState]:
        engine, request = self.host.engine, self.request
        if request.state:
            return [PictureState.from_bytes(self.job.load(request.state))]
        mask = masks.read_mask(io.BytesIO(self.job.load(request.mask))) if request.mask else None
        first = self.job.checked or engine.request(
            request.prompt,
            [self.open(name) for name in request.sources],
            mask=mask,
            height=request.height,
            width=request.width,
            seed=request.seed,
            **request.settings,
        )
        none = torch.empty(0, engine.model.config.token_size)
        return [engine.state(replace(first, index=i), none) for i in range(request.n)]

    def _parked(self, index: int, fresh: PictureState) -> PictureState:
        """Where an earlier run left the picture, if it was begun with the very same roundings.

        Rows of one rounding above rows of another would be a picture that nobody can make again.
        """
        data = self.job.parked(index)
        if data is None:
            return fresh
        try:
            state = PictureState.from_bytes(data)
            state.fingerprint.check(self.host.engine.fingerprint, threads=True)
        except NextStepError as error:
            log.warning(
                "a parked picture is begun anew",
                extra={"job": self.job.id, "picture": index, "reason": str(error)},
            )
            return fresh
        return state

    def on(self, event: Event) -> None:
        """See `ServiceTask.on`."""
        index = self.tickets[event.ticket]
        if event.kind == "started":
            self.tell_started()
        elif event.kind in ("token", "row"):
            self.rows[index].tell(event.tokens, self.states[index].request.finish)
        elif event.kind in ("finished", "stopped"):
            del self.tickets[event.ticket]
            assert event.request is not None
            self._decode(index, event.request, event.tokens)
        elif event.kind == "failed":
            del self.tickets[event.ticket]
            self.fail(event)

    def _decode(self, index: int, request: Request, tokens: torch.Tensor) -> None:
        state = replace(self.states[index], request=request, tokens=tokens)
        self.states[index] = state
        engine = self.host.engine
        if not state.rows:
            self._keep(index, None)
            return

        def make() -> Part:
            made = engine.picture(state.request, tokens)
            if self.request.given:
                settings = {**made.settings, "prompt_given": self.request.given}
                made = replace(made, settings=settings)
            return Part("", made.png(), made.settings, state.to_bytes())

        self.decoding += 1
        self.host.decode(self, make, lambda part: self._keep(index, part))

    def _keep(self, index: int, part: Part | None) -> None:
        self.decoding -= part is not None
        self.parts[index] = part
        if len(self.parts) < len(self.states):
            return
        parts = tuple(part for i in range(len(self.states)) if (part := self.parts[i]))
        self.tell(Event("done", parts=parts, usage=self._usage()) if parts else Event("cancelled"))

    def stop_now(self) -> None:
        """See `ServiceTask.stop_now`."""
        if not self.tickets and not self.decoding:
            self.end(Event("cancelled"))
        for ticket in list(self.tickets):
            self.host.engine.stop(ticket)

    def state_of(self, index: int) -> PictureState:
        """See `ServiceTask.state_of`."""
        if not 0 <= index < len(self.states):
            raise NextStepError(f"the job has no picture {index} yet")
        ticket = next((t for t, i in self.tickets.items() if i == index), None)
        return self.states[index] if ticket is None else self.host.engine.snapshot(ticket)

    def park(self) -> None:
        """See `ServiceTask.park`."""
        for index in range(len(self.states)):
            state = self.state_of(index)
            if len(state.tokens):
                self.job.park(index, state.to_bytes())

    def _usage(self) -> Usage:
        asked = self.states[0].request
        read = sum(len(source.tokens) for source in asked.sources)
        drawn = sum(len(state.tokens) for state in self.states)
        return Usage(self.count_text(asked.prompt), read, 0, drawn)
