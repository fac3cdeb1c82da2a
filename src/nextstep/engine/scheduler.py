"""Many unlike pictures at once, one image token of each a step (more of those that look ahead).

A picture joins when its caches fit beside those that run and leaves when it is done, so short and
long ones, edits and plain ones, any solver and guidance share the passes. A picture's bytes do not
depend on its company (`blocks`), nor on being set aside and taken up again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Backend, Place, Prefilled, Prompt
from nextstep.engine.image_sequence import ImageJob, ImageSequence
from nextstep.engine.text_sequence import TextJob, TextSequence, choose_ids
from nextstep.errors import NextStepError
from nextstep.model.nextstep import NextStepModel

if TYPE_CHECKING:
    from nextstep.engine.request import Request
    from nextstep.engine.results import GeneratedPicture

Kind = Literal["admitted", "token", "row", "finished", "stopped", "failed", "cancelled", "late"]
ENDS = ("finished", "stopped", "failed", "cancelled", "late")


@dataclass(frozen=True)
class EngineLimits:
    """What the engine may use, and how it keeps order.

    Attributes:
        cache_bytes: of all running pictures' keys and values.
        running, waiting: most pictures that run, and that wait.
        passes: how often smaller pictures may go before one that does not fit yet.
        aging: steps of waiting that count as much as one level of priority.
    """

    cache_bytes: int = 2**30
    running: int = 64
    waiting: int = 10_000
    passes: int = 8
    aging: int = 256

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "running", "waiting", "aging"):
            if getattr(self, name) < 1:
                raise NextStepError(f"the limit '{name}' must be at least 1")


@dataclass(frozen=True)
class Event:
    """Something that happened to a picture.

    Attributes:
        kind: `token` and `row` come after every token, `row` when it closes a row; the last event
            of a picture is one of `ENDS`.
        ticket: which.
        tokens: [k, D] so far, fp32; none of a text.
        message: why it failed or is late, one sentence.
        ids: of a text, so far; also of one that is written before its picture.
        end: the id that ended a text; None at its limit.
        request: with the last event of a `Request`, as it was drawn.
        picture: with `finished`, and with `stopped` the rows that are done; only of a `Request`.
    """

    kind: Kind
    ticket: int
    tokens: Tensor
    message: str = ""
    ids: tuple[int, ...] = ()
    end: int | None = None
    request: Request | None = None
    picture: GeneratedPicture | None = None


@dataclass
class SchedulerEntry:
    """A picture or a text in the scheduler's books."""

    ticket: int
    job: ImageJob | TextJob
    bytes: int
    arrived: int
    tokens: list[Tensor] = field(default_factory=list)
    guesses: list[Tensor] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    running: ImageSequence | TextSequence | None = None
    held: bool = False
    passed: int = 0
    charged: bool = False
    _known: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    _kept: int = 0

    def prompts(self) -> list[tuple[Prompt, int]]:
        """What must be read before it can go on, with the positions needed behind it."""
        if isinstance(self.job, TextJob):
            return [(self.job.with_written(self.ids), self.job.limit - len(self.ids))]
        decode = self.job.decode
        return [(self.job.prompts[name], decode.tokens) for name in decode.branches]

    def take_given(self) -> None:
        """Take the tokens that follow and need not be sampled."""
        assert isinstance(self.job, ImageJob)
        given = self.job.given
        while given is not None and len(self.tokens) < self.job.decode.tokens:
            token = given.at(len(self.tokens))
            if token is None:
                return
            self.tokens.append(token)

    def known(self, size: int) -> Tensor:
        """Tokens so far, [k, D]; what was given out is never written to again."""
        count = len(self.tokens)
        if not count:
            return torch.empty(0, size)
        if len(self._known) < count:
            self._known = torch.empty(max(count, self.job.size), size)
            self._kept = 0
        if self._kept < count:
            self._known[self._kept : count] = torch.stack(self.tokens[self._kept :])
            self._kept = count
        return self._known[:count]


class Scheduler:
    """The engine core; one thread, no clock of its own but `clock`.

    Args:
        model: in eval mode, with plain weights.
        limits: see there.
        clock: seconds that deadlines are measured on.
        backend: that computes the steps; default that of the model, see `backend_of`.
        check: whether to make sure that this machine keeps pictures apart.

    Raises:
        NextStepError: when the backend promises batch invariance and this machine cannot keep it.
    """

    def __init__(
        self,
        model: NextStepModel,
        limits: EngineLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        backend: Backend | None = None,
        check: bool = True,
    ) -> None:
        self.model, self.limits, self.clock = model, limits or EngineLimits(), clock
        self.backend = backend or backend_of(model)
        if check:
            self.backend.check()
        self.steps = 0
        self._entries: dict[int, SchedulerEntry] = {}
        self._served: defaultdict[str, int] = defaultdict(int)
        self._pending: list[Event] = []
        self._next = 0

    def submit(self, job: ImageJob | TextJob) -> int:
        """Queue a picture or a text; gives its ticket.

        Raises:
            NextStepError: when it could never run, or too many wait already.
        """
        needed = job.check(self.model, self.limits.cache_bytes)
        waiting = sum(not entry.running for entry in self._entries.values())
        if waiting >= self.limits.waiting:
            raise NextStepError(f"{waiting} pictures wait already; try again later")
        ticket = self._next
        self._next += 1
        entry = SchedulerEntry(ticket, job, needed, self.steps)
        if isinstance(job, ImageJob):
            entry.tokens = _listed(job.tokens)
            entry.guesses = _listed(job.guesses)
        self._catch_client_up(job.client)
        self._entries[ticket] = entry
        return ticket

    def cancel(self, ticket: int) -> None:
        """Give a picture up; the next step says so."""
        self._end(self._entry(ticket), "cancelled")

    def stop(self, ticket: int) -> None:
        """End a picture with the tokens it has; the next step gives them."""
        self._end(self._entry(ticket), "stopped")

    def preempt(self, ticket: int) -> None:
        """Set a picture aside and free its memory, until `resume`."""
        entry = self._entry(ticket)
        self._leave(entry)
        entry.held = True

    def resume(self, ticket: int) -> None:
        """Let a picture that was set aside wait for its turn again."""
        entry = self._entry(ticket)
        if entry.held:
            entry.held, entry.arrived, entry.passed = False, self.steps, 0

    def knows(self, ticket: int) -> bool:
        """Whether it has not ended."""
        return ticket in self._entries

    def job(self, ticket: int) -> ImageJob | TextJob:
        """What was asked for."""
        return self._entry(ticket).job

    def tokens(self, ticket: int) -> Tensor:
        """Tokens [k, D] a picture has."""
        return self._entry(ticket).known(self.model.config.token_size)

    def guesses(self, ticket: int) -> Tensor:
        """Guesses [g, D] of the tokens behind those, of a picture that looks ahead."""
        guesses = self._entry(ticket).guesses
        return torch.stack(guesses) if guesses else torch.empty(0, self.model.config.token_size)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing; pictures set aside do not count."""
        return not self._pending and all(entry.held for entry in self._entries.values())

    @property
    def running(self) -> int:
        """How many are being made."""
        return len(self._running())

    @property
    def used_bytes(self) -> int:
        """Of the running pictures' caches."""
        return sum(entry.bytes for entry in self._running())

    def step(self) -> list[Event]:
        """Admit what fits and advance every running picture by an image token, or more ahead."""
        now = self.clock()
        for entry in list(self._entries.values()):
            if now > entry.job.deadline:
                self._end(entry, "late", "the picture was not done before its deadline")
        self._admit()
        running = self._running()
        pictures = [entry for entry in running if isinstance(entry.running, ImageSequence)]
        texts = [entry for entry in running if isinstance(entry.running, TextSequence)]
        if pictures:
            self._sample(pictures)
        if texts:
            self._write(texts)
        self._feed([entry for entry in running if entry.running])
        self.steps += 1
        events, self._pending = self._pending, []
        return events

    def run_until_idle(self) -> list[Event]:
        """Step until nothing is left to do."""
        events: list[Event] = []
        while not self.idle:
            events += self.step()
        return events

    def _entry(self, ticket: int) -> SchedulerEntry:
        if ticket not in self._entries:
            raise NextStepError(f"there is no picture {ticket} in the engine")
        return self._entries[ticket]

    def _running(self) -> list[SchedulerEntry]:
        return [entry for entry in self._entries.values() if entry.running]

    def _tell(
        self, entry: SchedulerEntry, kind: Kind, message: str = "", end: int | None = None
    ) -> None:
        known = entry.known(self.model.config.token_size)
        self._pending.append(Event(kind, entry.ticket, known, message, tuple(entry.ids), end))

    def _end(
        self, entry: SchedulerEntry, kind: Kind, message: str = "", end: int | None = None
    ) -> None:
        self._leave(entry)
        del self._entries[entry.ticket]
        self._tell(entry, kind, message, end)
        active = {other.job.client for other in self._entries.values()}
        for client in [name for name in self._served if name not in active]:
            del self._served[client]

    def _leave(self, entry: SchedulerEntry) -> None:
        """Free the memory of one that runs."""
        if entry.running is not None:
            for slot in entry.running.slots:
                self.backend.release(slot)
        entry.running = None

    def _catch_client_up(self, client: str) -> None:
        """A client that comes anew has no claim on the past."""
        if client not in self._served:
            self._served[client] = min(self._served.values(), default=0)

    def _turn(self, entry: SchedulerEntry) -> tuple[int, int, int]:
        waited = (self.steps - entry.arrived) // self.limits.aging
        client = entry.job.client
        return -(entry.job.priority + waited), self._served[client], entry.ticket

    def _admit(self) -> None:
        """Take up waiting pictures in fair order, as long as they fit."""
        limits, waiting = self.limits, [e for e in self._entries.values() if not e.running]
        waiting = [entry for entry in waiting if not entry.held]
        held_up: list[SchedulerEntry] = []
        admitted: list[SchedulerEntry] = []
        used, count = self.used_bytes, self.running
        while waiting and count < limits.running:
            entry = min(waiting, key=self._turn)
            waiting.remove(entry)
            if used + entry.bytes > limits.cache_bytes:
                if entry.passed >= limits.passes:
                    break
                held_up.append(entry)
                continue
            for before in held_up:
                before.passed += 1
            if self._charge(entry):
                admitted.append(entry)
                used, count = used + entry.bytes, count + 1
            if any(before.passed >= limits.passes for before in held_up):
                break
        if admitted:
            self._start(admitted)

    def _charge(self, entry: SchedulerEntry) -> bool:
        """Count what an admitted one takes; whether anything is left to sample."""
        # The whole picture is charged when it starts, so that clients take turns at once.
        if not entry.charged:
            self._served[entry.job.client] += entry.job.size - len(entry.tokens)
            entry.charged = True
        if isinstance(entry.job, ImageJob):
            entry.take_given()
            if len(entry.tokens) == entry.job.size:
                self._tell(entry, "admitted")
                self._end(entry, "finished")
                return False
        return True

    def _start(self, entries: Sequence[SchedulerEntry]) -> None:
        """Read the prompts of admitted ones, all together, and tell them."""
        asked = [entry.prompts() for entry in entries]
        try:
            read = iter(self._prefill([one for own in asked for one in own]))
        except ValueError as error:
            if len(entries) == 1:
                self._end(entries[0], "failed", str(error))
                return
            for entry in entries:
                self._start([entry])
            return
        for entry, own in zip(entries, asked, strict=True):
            prefilled = [next(read) for _ in own]
            if isinstance(entry.job, TextJob):
                entry.running = TextSequence(entry.job, entry.ids, prefilled[0])
            else:
                entry.running = ImageSequence(
                    self.backend, entry.job, entry.tokens, entry.guesses, prefilled,
                    self.model.config.token_size,
                )  # fmt: skip
            self._tell(entry, "admitted")

    def _prefill(self, asked: Sequence[tuple[Prompt, int]]) -> list[Prefilled]:
        """Read prompts; equal ones, such as those without the text, are read once."""
        keys = [(tuple(p.ids), tuple(map(id, p.image_tokens)), room) for p, room in asked]
        unlike = dict(zip(keys, asked, strict=True))
        prompts, rooms = zip(*unlike.values(), strict=True)
        read = dict(zip(unlike, self.backend.prefill(prompts, rooms), strict=True))
        taken: set[tuple] = set()
        made = []
        for key in keys:
            slot, hidden = read[key]
            made.append(Prefilled(self.backend.copy(slot) if key in taken else slot, hidden))
            taken.add(key)
        return made

    def _sample(self, running: list[SchedulerEntry]) -> None:
        pictures = [entry.running for entry in running if isinstance(entry.running, ImageSequence)]
        asked = [picture.sample_requests() for picture in pictures]
        sampled = self.backend.sample([one for own in asked for one in own])
        sound = bool(torch.isfinite(torch.stack(sampled)).all())
        made = iter(sampled)
        for entry, picture, own in zip(running, pictures, asked, strict=True):
            for token in picture.settle([next(made) for _ in own]):
                if not self._take(entry, token, sound):
                    break

    def _take(self, entry: SchedulerEntry, token: Tensor, sound: bool) -> bool:
        """Add one token, known to be finite if `sound`, to a picture; whether it goes on."""
        if not sound and not bool(torch.isfinite(token).all()):
            self._end(entry, "failed", not_finite(len(entry.tokens)))
            return False
        assert isinstance(entry.job, ImageJob)
        columns = entry.job.decode.grid[1]
        rows = len(entry.tokens) // columns
        entry.tokens.append(token)
        entry.take_given()
        self._tell(entry, "row" if len(entry.tokens) // columns > rows else "token")
        if len(entry.tokens) == entry.job.size:
            self._end(entry, "finished")
            return False
        return True

    def _write(self, entries: list[SchedulerEntry]) -> None:
        """One id of every text."""
        texts = [entry.running for entry in entries if isinstance(entry.running, TextSequence)]
        for entry, text, chosen in zip(
            entries, texts, choose_ids(self.backend, texts), strict=True
        ):
            if chosen in text.job.ends:
                self._finish_text(entry, text.job, chosen)
                continue
            entry.ids.append(chosen)
            self._tell(entry, "token")
            if len(entry.ids) == text.job.limit:
                self._finish_text(entry, text.job, None)

    def _finish_text(self, entry: SchedulerEntry, job: TextJob, end: int | None) -> None:
        """End a text, or let the picture it was written for wait for its turn."""
        if job.then is None:
            self._end(entry, "finished", end=end)
            return
        self._leave(entry)
        try:
            entry.job = job.then(entry.ids)
            entry.bytes = entry.job.check(self.model, self.limits.cache_bytes)
        except ValueError as error:
            self._end(entry, "failed", str(error))
            return
        entry.ids, entry.charged = [], False

    def _feed(self, going: list[SchedulerEntry]) -> None:
        """Let the backbone read what pictures and texts have new, in one step."""
        pictures = [entry.running for entry in going if isinstance(entry.running, ImageSequence)]
        texts = [entry.running for entry in going if isinstance(entry.running, TextSequence)]
        embedded, places, sizes = list[Tensor](), list[Place](), list[int]()
        if pictures:
            tokens, coordinates, own = zip(*(one.rows() for one in pictures), strict=True)
            made = self.backend.embed_images(torch.cat(tokens), torch.cat(coordinates))
            parts = zip(made.split([len(part) for part in tokens]), pictures, strict=True)
            # All branches of a picture read the same tokens.
            embedded += [part for part, one in parts for _ in one.branches]
            places += [place for places_ in own for place in places_]
            sizes += map(len, own)
        if texts:
            embedded.append(self.backend.embed_ids([text.ids[-1] for text in texts]))
            places += [text.place() for text in texts]
        if not places:
            return
        hidden = self.backend.step(torch.cat(embedded), places)
        states = iter(hidden.split([*sizes, *(1 for _ in texts)]))
        for picture in pictures:
            picture.take(next(states))
        for text in texts:
            text.take(next(states)[0])


def draw(
    model: NextStepModel, jobs: Sequence[ImageJob], backend: Backend | None = None
) -> list[Tensor]:
    """Tokens [N, D] of pictures that are made together, whatever memory they take.

    Raises:
        NextStepError: when one fails.
    """
    limits = EngineLimits(2**62, max(1, len(jobs)))
    scheduler = Scheduler(model, limits, backend=backend, check=False)
    tickets = [scheduler.submit(job) for job in jobs]
    ends = {event.ticket: event for event in scheduler.run_until_idle() if event.kind in ENDS}
    for event in ends.values():
        if event.kind == "failed":
            raise NextStepError(event.message)
    return [ends[ticket].tokens for ticket in tickets]


def not_finite(index: int) -> str:
    """What to say when token `index` is no number."""
    return (
        f"image token {index} is not a finite number; lower the guidance or the shift, "
        "or use a wider number format (bf16 instead of fp16)"
    )


def _listed(tokens: Tensor | None) -> list[Tensor]:
    return [] if tokens is None else list(tokens.float().cpu().unbind())
