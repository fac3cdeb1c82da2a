"""Many different pictures at once, one image token of each a step (more with Jacobi decoding).

A picture joins when its caches fit beside those that run and leaves when it is done, so short and
long ones, edits and plain ones, any solver and guidance share the passes. A picture's bytes do not
depend on the rest of the batch (`blocks`), nor on being set aside and taken up again.

Legend: N tokens of a picture, k of them known, g guessed, D values per token.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Backend, Place
from nextstep.engine.events import ENDS, Event, Kind
from nextstep.engine.sequence import ImageSequence, SequenceState, TextSequence
from nextstep.errors import NextStepError
from nextstep.model.nextstep import NextStepModel

S = TypeVar("S", bound=SequenceState)


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
        self._sequences: dict[int, SequenceState] = {}
        self._served: defaultdict[str, int] = defaultdict(int)
        self._pending: list[Event] = []
        self._next = 0

    def submit(self, sequence: SequenceState) -> int:
        """Queue a picture or a text, as it is now; gives its ticket.

        Raises:
            NextStepError: when it could never run, or too many wait already.
        """
        sequence = replace(sequence)
        sequence.bytes = sequence.check(self.model, self.limits.cache_bytes)
        waiting = sum(not other.is_running for other in self._sequences.values())
        if waiting >= self.limits.waiting:
            raise NextStepError(f"{waiting} pictures wait already; try again later")
        sequence.ticket, sequence.arrived = self._next, self.steps
        self._next += 1
        self._catch_client_up(sequence.client)
        self._sequences[sequence.ticket] = sequence
        return sequence.ticket

    def cancel(self, ticket: int) -> None:
        """Give a picture up; the next step says so."""
        self._end(self._sequence(ticket), "cancelled")

    def stop(self, ticket: int) -> None:
        """End a picture with the tokens it has; the next step gives them."""
        self._end(self._sequence(ticket), "stopped")

    def preempt(self, ticket: int) -> None:
        """Set a picture aside and free its memory, until `resume`."""
        sequence = self._sequence(ticket)
        sequence.leave(self.backend)
        sequence.held = True

    def resume(self, ticket: int) -> None:
        """Let a picture that was set aside wait for its turn again."""
        sequence = self._sequence(ticket)
        if sequence.held:
            sequence.held, sequence.arrived, sequence.passed = False, self.steps, 0

    def knows(self, ticket: int) -> bool:
        """Whether it has not ended."""
        return ticket in self._sequences

    def tokens(self, ticket: int) -> Tensor:
        """Tokens [k, D] a picture has."""
        return self._sequence(ticket).known_tokens(self.model.config.token_size)

    def guesses(self, ticket: int) -> Tensor:
        """Guesses [g, D] of the tokens behind those, of a picture with Jacobi decoding."""
        sequence = self._sequence(ticket)
        guesses = sequence.guesses if isinstance(sequence, ImageSequence) else []
        return torch.stack(guesses) if guesses else torch.empty(0, self.model.config.token_size)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing; pictures set aside do not count."""
        return not self._pending and all(one.held for one in self._sequences.values())

    @property
    def running(self) -> int:
        """How many are being made."""
        return len(self._running())

    @property
    def used_bytes(self) -> int:
        """Of the running pictures' caches."""
        return sum(one.bytes for one in self._running())

    def step(self) -> list[Event]:
        """Admit what fits and advance every running picture by an image token, or more ahead.

        One that fails ends alone; the others go on.
        """
        now = self.clock()
        for sequence in list(self._sequences.values()):
            if now > sequence.deadline:
                self._end(sequence, "late", "the picture was not done before its deadline")
        self._admit()
        running = self._running()
        pictures = [one for one in running if isinstance(one, ImageSequence)]
        texts = [one for one in running if isinstance(one, TextSequence)]
        self._apart(self._sample, pictures)
        self._apart(self._write, texts)
        self._apart(self._feed, [one for one in (*pictures, *texts) if one.is_running])
        self.steps += 1
        events, self._pending = self._pending, []
        return events

    def run_until_idle(self) -> list[Event]:
        """Step until nothing is left to do."""
        events: list[Event] = []
        while not self.idle:
            events += self.step()
        return events

    def _sequence(self, ticket: int) -> SequenceState:
        if ticket not in self._sequences:
            raise NextStepError(f"there is no picture {ticket} in the engine")
        return self._sequences[ticket]

    def _running(self) -> list[SequenceState]:
        return [one for one in self._sequences.values() if one.is_running]

    def _tell(
        self, sequence: SequenceState, kind: Kind, message: str = "", end: int | None = None
    ) -> None:
        known = sequence.known_tokens(self.model.config.token_size)
        self._pending.append(Event(kind, sequence.ticket, known, message, tuple(sequence.ids), end))

    def _end(
        self, sequence: SequenceState, kind: Kind, message: str = "", end: int | None = None
    ) -> None:
        sequence.leave(self.backend)
        del self._sequences[sequence.ticket]
        self._tell(sequence, kind, message, end)
        active = {other.client for other in self._sequences.values()}
        for client in [name for name in self._served if name not in active]:
            del self._served[client]

    def _apart(self, work: Callable[[Sequence[S]], None], sequences: Sequence[S]) -> None:
        """Do work for all together, or for each alone when that fails.

        What fails for all must have changed none of them.
        """
        if not sequences:
            return
        try:
            work(sequences)
        except Exception as error:
            if len(sequences) == 1:
                self._fail(sequences[0], error)
                return
            for sequence in sequences:
                self._apart(work, [sequence])

    def _fail(self, sequence: SequenceState, error: Exception) -> None:
        """End one that cannot go on."""
        self._end(sequence, "failed", str(error))
        if not isinstance(error, ValueError):
            self._pending[-1] = replace(self._pending[-1], error=error)

    def _catch_client_up(self, client: str) -> None:
        """A client that comes anew has no claim on the past."""
        if client not in self._served:
            self._served[client] = min(self._served.values(), default=0)

    def _turn(self, sequence: SequenceState) -> tuple[int, int, int]:
        waited = (self.steps - sequence.arrived) // self.limits.aging
        return -(sequence.priority + waited), self._served[sequence.client], sequence.ticket

    def _admit(self) -> None:
        """Take up waiting pictures in fair order, as long as they fit."""
        limits = self.limits
        waiting = [one for one in self._sequences.values() if not (one.is_running or one.held)]
        held_up: list[SequenceState] = []
        admitted: list[SequenceState] = []
        used, count = self.used_bytes, self.running
        while waiting and count < limits.running:
            sequence = min(waiting, key=self._turn)
            waiting.remove(sequence)
            if used + sequence.bytes > limits.cache_bytes:
                if sequence.passed >= limits.passes:
                    break
                held_up.append(sequence)
                continue
            for before in held_up:
                before.passed += 1
            if self._charge(sequence):
                admitted.append(sequence)
                used, count = used + sequence.bytes, count + 1
            if any(before.passed >= limits.passes for before in held_up):
                break
        self._apart(self._start, admitted)

    def _charge(self, sequence: SequenceState) -> bool:
        """Count what an admitted one takes; whether anything is left to sample."""
        # The whole picture is charged when it starts, so that clients take turns at once.
        if not sequence.charged:
            self._served[sequence.client] += sequence.steps_left
            sequence.charged = True
        if isinstance(sequence, ImageSequence):
            sequence.take_given()
        if not sequence.steps_left:
            self._tell(sequence, "started")
            self._end(sequence, "finished")
            return False
        return True

    def _start(self, sequences: Sequence[SequenceState]) -> None:
        """Read the prompts of admitted ones, all together, and tell them."""
        asked = [sequence.prompts_to_read() for sequence in sequences]
        prompts, rooms = zip(*(one for own in asked for one in own), strict=True)
        read = iter(self.backend.prefill(prompts, rooms))
        for sequence, own in zip(sequences, asked, strict=True):
            prefilled = [next(read) for _ in own]
            try:
                sequence.start(self.backend, prefilled, self.model.config.token_size)
            except Exception as error:
                self._fail(sequence, error)
            else:
                self._tell(sequence, "started")

    def _sample(self, pictures: Sequence[ImageSequence]) -> None:
        asked = [picture.sample_requests() for picture in pictures]
        sampled = self.backend.sample([one for own in asked for one in own])
        sound = bool(torch.isfinite(torch.stack(sampled)).all())
        made = iter(sampled)
        for picture, own in zip(pictures, asked, strict=True):
            for token in picture.settle([next(made) for _ in own]):
                if not self._take(picture, token, sound):
                    break

    def _take(self, picture: ImageSequence, token: Tensor, sound: bool) -> bool:
        """Add one token, known to be finite if `sound`, to a picture; whether it goes on."""
        if not sound and not bool(torch.isfinite(token).all()):
            self._end(picture, "failed", not_finite(len(picture.tokens)))
            return False
        self._tell(picture, "row" if picture.add(token) else "token")
        if not picture.steps_left:
            self._end(picture, "finished")
            return False
        return True

    def _write(self, texts: Sequence[TextSequence]) -> None:
        """One id of every text."""
        logits = self.backend.logits(torch.stack([text.hidden for text in texts]))
        for text, own in zip(texts, logits, strict=True):
            try:
                chosen = text.next_id(own)
            except Exception as error:
                self._fail(text, error)
                continue
            if chosen in text.ends:
                self._finish_text(text, chosen)
                continue
            text.ids.append(chosen)
            self._tell(text, "token")
            if not text.steps_left:
                self._finish_text(text, None)

    def _finish_text(self, text: TextSequence, end: int | None) -> None:
        """End a text, or let what it was written for wait for its turn under the same ticket."""
        if text.then is None:
            self._end(text, "finished", end=end)
            return
        text.leave(self.backend)
        try:
            following = text.then(text.ids)
            following.bytes = following.check(self.model, self.limits.cache_bytes)
        except Exception as error:
            self._fail(text, error)
            return
        following.ticket, following.arrived = text.ticket, text.arrived
        following.passed = text.passed
        self._sequences[text.ticket] = following

    def _feed(self, sequences: Sequence[SequenceState]) -> None:
        """Let the backbone read what pictures and then texts have new, in one step."""
        pictures = [one for one in sequences if isinstance(one, ImageSequence)]
        texts = [one for one in sequences if isinstance(one, TextSequence)]
        embedded, places, sizes = list[Tensor](), list[Place](), list[int]()
        if pictures:
            tokens, coordinates, own = zip(*(one.rows() for one in pictures), strict=True)
            together = torch.stack([token for own_tokens in tokens for token in own_tokens])
            made = self.backend.embed_images(together, torch.cat(coordinates))
            parts = zip(made.split([len(part) for part in tokens]), pictures, strict=True)
            # All branches of a picture read the same tokens.
            embedded += [part for part, one in parts for _ in one.branches]
            places += [place for places_ in own for place in places_]
            sizes += map(len, own)
        if texts:
            embedded.append(self.backend.embed_ids([text.ids[-1] for text in texts]))
            places += [text.place() for text in texts]
        hidden = self.backend.step(torch.cat(embedded), places)
        states = iter(hidden.split([*sizes, *(1 for _ in texts)]))
        for picture in pictures:
            picture.take(next(states))
        for text in texts:
            text.hidden = next(states)[0]


def draw(
    model: NextStepModel, asked: Sequence[ImageSequence], backend: Backend | None = None
) -> list[Tensor]:
    """Tokens [N, D] of pictures that are made together, whatever memory they take.

    Raises:
        NextStepError: when one fails.
    """
    limits = EngineLimits(2**62, max(1, len(asked)))
    scheduler = Scheduler(model, limits, backend=backend, check=False)
    tickets = [scheduler.submit(one) for one in asked]
    ends = {event.ticket: event for event in scheduler.run_until_idle() if event.kind in ENDS}
    for event in ends.values():
        if event.kind == "failed":
            raise event.error or NextStepError(event.message)
    return [ends[ticket].tokens for ticket in tickets]


def not_finite(index: int) -> str:
    """What to say when token `index` is no number."""
    return (
        f"image token {index} is not a finite number; lower the guidance or the shift, "
        "or use a wider number format (bf16 instead of fp16)"
    )
