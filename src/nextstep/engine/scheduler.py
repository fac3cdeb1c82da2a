"""Many unlike pictures at once, one image token of each a step (more of those that look ahead).

A picture joins when its caches fit beside those that run and leaves when it is done, so short and
long ones, edits and plain ones, any solver and guidance share the passes. A picture's bytes do not
depend on its company (`blocks`), nor on being set aside and taken up again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nextstep.engine.backends.torch import check_rows, feed, feed_embedded
from nextstep.engine.decode import not_finite
from nextstep.engine.image_sequence import Entry, Job, Running
from nextstep.engine.sampler import BlockSampler
from nextstep.engine.text_sequence import TextJob, Writing, choose_ids
from nextstep.errors import NextStepError
from nextstep.model.nextstep import NextStepModel

Kind = Literal["admitted", "token", "row", "finished", "stopped", "failed", "cancelled", "late"]
ENDS = ("finished", "stopped", "failed", "cancelled", "late")


@dataclass(frozen=True)
class Limits:
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
        ids: of a text, so far.
        end: the id that ended a text; None at its limit.
    """

    kind: Kind
    ticket: int
    tokens: Tensor
    message: str = ""
    ids: tuple[int, ...] = ()
    end: int | None = None


class Scheduler:
    """The engine core; one thread, no clock of its own but `clock`.

    Args:
        model: in eval mode, with plain weights.
        limits: see there.
        clock: seconds that deadlines are measured on.
        check: whether to make sure that this machine keeps pictures apart.

    Raises:
        NextStepError: when this machine's kernels cannot keep pictures apart, see `check_rows`.
    """

    def __init__(
        self,
        model: NextStepModel,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        check: bool = True,
    ) -> None:
        self.model, self.limits, self.clock = model, limits or Limits(), clock
        self.sampler = BlockSampler(model)
        if check:
            check_rows(model)
            self.sampler.check()
        self.steps = 0
        self._entries: dict[int, Entry] = {}
        self._served: defaultdict[str, int] = defaultdict(int)
        self._pending: list[Event] = []
        self._next = 0

    def submit(self, job: Job | TextJob) -> int:
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
        entry = Entry(ticket, job, needed, self.steps)
        if isinstance(job, Job):
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
        entry.running, entry.held = None, True

    def resume(self, ticket: int) -> None:
        """Let a picture that was set aside wait for its turn again."""
        entry = self._entry(ticket)
        if entry.held:
            entry.held, entry.arrived, entry.passed = False, self.steps, 0

    def job(self, ticket: int) -> Job | TextJob:
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
        pictures = [entry for entry in running if isinstance(entry.running, Running)]
        texts = [entry for entry in running if isinstance(entry.running, Writing)]
        if pictures:
            self._sample(pictures)
            self._feed([entry for entry in pictures if entry.ticket in self._entries])
        if texts:
            self._write(texts)
            self._feed_texts([entry for entry in texts if entry.ticket in self._entries])
        self.steps += 1
        events, self._pending = self._pending, []
        return events

    def run_until_idle(self) -> list[Event]:
        """Step until nothing is left to do."""
        events: list[Event] = []
        while not self.idle:
            events += self.step()
        return events

    def _entry(self, ticket: int) -> Entry:
        if ticket not in self._entries:
            raise NextStepError(f"there is no picture {ticket} in the engine")
        return self._entries[ticket]

    def _running(self) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.running]

    def _tell(self, entry: Entry, kind: Kind, message: str = "", end: int | None = None) -> None:
        known = entry.known(self.model.config.token_size)
        self._pending.append(Event(kind, entry.ticket, known, message, tuple(entry.ids), end))

    def _end(self, entry: Entry, kind: Kind, message: str = "", end: int | None = None) -> None:
        entry.running = None
        del self._entries[entry.ticket]
        self._tell(entry, kind, message, end)
        active = {other.job.client for other in self._entries.values()}
        for client in [name for name in self._served if name not in active]:
            del self._served[client]

    def _catch_client_up(self, client: str) -> None:
        """A client that comes anew has no claim on the past."""
        if client not in self._served:
            self._served[client] = min(self._served.values(), default=0)

    def _turn(self, entry: Entry) -> tuple[int, int, int]:
        waited = (self.steps - entry.arrived) // self.limits.aging
        client = entry.job.client
        return -(entry.job.priority + waited), self._served[client], entry.ticket

    def _admit(self) -> None:
        """Take up waiting pictures in fair order, as long as they fit."""
        limits, waiting = self.limits, [e for e in self._entries.values() if not e.running]
        waiting = [entry for entry in waiting if not entry.held]
        held_up: list[Entry] = []
        while waiting and len(self._running()) < limits.running:
            entry = min(waiting, key=self._turn)
            waiting.remove(entry)
            if self.used_bytes + entry.bytes > limits.cache_bytes:
                if entry.passed >= limits.passes:
                    return
                held_up.append(entry)
                continue
            for before in held_up:
                before.passed += 1
            self._start(entry)
            if any(before.passed >= limits.passes for before in held_up):
                return

    def _start(self, entry: Entry) -> None:
        # The whole picture is charged when it starts, so that clients take turns at once.
        if not entry.charged:
            self._served[entry.job.client] += entry.job.size - len(entry.tokens)
            entry.charged = True
        try:
            if isinstance(entry.job, TextJob):
                entry.running = Writing(self.model, entry.job, entry.ids)
            else:
                entry.take_given()
                if len(entry.tokens) == entry.job.size:
                    self._tell(entry, "admitted")
                    self._end(entry, "finished")
                    return
                entry.running = Running(self.model, entry.job, entry.tokens, entry.guesses)
        except ValueError as error:
            self._end(entry, "failed", str(error))
            return
        self._tell(entry, "admitted")

    def _sample(self, running: list[Entry]) -> None:
        pictures = [entry.running for entry in running if isinstance(entry.running, Running)]
        wants = [picture.wants() for picture in pictures]
        made = iter(self.sampler.sample([want for own in wants for want in own]))
        for entry, picture, own in zip(running, pictures, wants, strict=True):
            for token in picture.settle([next(made) for _ in own]):
                if not self._take(entry, token):
                    break

    def _take(self, entry: Entry, token: Tensor) -> bool:
        """Add one token to a picture; whether it goes on."""
        if not bool(torch.isfinite(token).all()):
            self._end(entry, "failed", not_finite(len(entry.tokens)))
            return False
        assert isinstance(entry.job, Job)
        columns = entry.job.decode.grid[1]
        rows = len(entry.tokens) // columns
        entry.tokens.append(token)
        entry.take_given()
        self._tell(entry, "row" if len(entry.tokens) // columns > rows else "token")
        if len(entry.tokens) == entry.job.size:
            self._end(entry, "finished")
            return False
        return True

    def _write(self, entries: list[Entry]) -> None:
        """One id of every text."""
        texts = [entry.running for entry in entries if isinstance(entry.running, Writing)]
        for entry, text, chosen in zip(entries, texts, choose_ids(self.model, texts), strict=True):
            if chosen in text.job.ends:
                self._end(entry, "finished", end=chosen)
                continue
            entry.ids.append(chosen)
            self._tell(entry, "token")
            if len(entry.ids) == text.job.limit:
                self._end(entry, "finished")

    def _feed_texts(self, going: list[Entry]) -> None:
        texts = [entry.running for entry in going if isinstance(entry.running, Writing)]
        if not texts:
            return
        rows = [text.rows() for text in texts]
        places = [place for _, own in rows for place in own]
        hidden = feed_embedded(self.model, torch.cat([x for x, _ in rows]), places)
        for text, state in zip(texts, hidden.split(1), strict=True):
            text.take(state)

    def _feed(self, going: list[Entry]) -> None:
        pictures = [entry.running for entry in going if isinstance(entry.running, Running)]
        if not pictures:
            return
        parts = [picture.rows() for picture in pictures]
        tokens, coordinates, places = zip(*parts, strict=True)
        rows = [place for own in places for place in own]
        hidden = feed(self.model, torch.cat(tokens), torch.cat(coordinates), rows)
        first = 0
        for picture, own in zip(pictures, places, strict=True):
            last = first + len(own)
            picture.take(hidden[first:last])
            first = last


def _listed(tokens: Tensor | None) -> list[Tensor]:
    return [] if tokens is None else list(tokens.float().cpu().unbind())
