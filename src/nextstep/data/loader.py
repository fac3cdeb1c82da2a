"""The loader: planned rows become the micro-batches of one rank, prepared ahead of the training.

Order never depends on threads: a plan is made in one thread, pictures are decoded by many, and a
step is put together from their results in the order of the plan. With `processes` the documents and
micro-batches are made by worker processes instead, see `worker_processes`.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from nextstep.data.augment import check_share
from nextstep.data.documents import Document, DocumentHandle, SampleError, Source
from nextstep.data.mixing import Mixture
from nextstep.data.planning import (
    ENOUGH_TO_JUDGE,
    Pack,
    Planned,
    Planner,
    Skipped,
    StepPlan,
    pack_window,
    too_many_broken,
)
from nextstep.data.steps import Step
from nextstep.data.worker_processes import WorkerProcesses
from nextstep.errors import NextStepError

Row = list[tuple[Document, Seq[Any]]]
"""Documents of one row, each with its pictures: pixels or image tokens."""

FIRST_NAMES = 10


@dataclass(frozen=True)
class LoaderConfig:
    """How steps are made from sources.

    Attributes:
        row_length: positions of a row.
        rows_per_step: rows of one optimizer step over all ranks.
        micro_batch_rows: rows of one micro-batch at most; a rank whose share of a step is smaller
            computes no more than that.
        by: whether weights are shares of samples or of tokens.
        seed: of order and of every random choice.
        window_rows: rows that are packed together; more leave less padding and take up longer.
        workers: threads that decode pictures.
        processes: worker processes that make documents and batches in place of threads; 0 for none.
        ahead: steps prepared before they are asked for.
        max_broken_share: of the samples, above which the data are refused (after 100 of them).
    """

    row_length: int
    rows_per_step: int
    micro_batch_rows: int = 1
    by: Literal["samples", "tokens"] = "samples"
    seed: int = 0
    window_rows: int = 64
    workers: int = 2
    processes: int = 0
    ahead: int = 2
    max_broken_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("row_length", "rows_per_step", "micro_batch_rows", "window_rows", "workers"):
            if getattr(self, name) < 1:
                raise NextStepError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("ahead", "processes"):
            if getattr(self, name) < 0:
                raise NextStepError(f"{name} must be at least 0, not {getattr(self, name)}")
        check_share("max_broken_share", self.max_broken_share)


@dataclass
class Account:
    """What was used and what was left out since the loader was made, in the order of steps."""

    rows: int = 0
    tokens: int = 0
    decoded: int = 0
    broken_here: int = 0
    broken_in_plan: float = 0.0
    sources: dict[str, dict[str, int]] = field(default_factory=dict)
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, plan: StepPlan, names: Seq[str], ready: _Ready) -> None:
        """Add one step."""
        self.rows += len(plan.rows)
        self.decoded += ready.decoded
        self.broken_in_plan = plan.broken_share
        for planned in (planned for row in plan.rows for planned in row):
            used = self.sources.setdefault(names[planned.source], {"samples": 0, "tokens": 0})
            used["samples"] += 1
            used["tokens"] += len(planned.document)
            self.tokens += len(planned.document)
        for skipped in [*plan.skipped, *ready.broken]:
            entry = self.skipped.setdefault(skipped.reason, {"samples": 0, "first": []})
            entry["samples"] += 1
            if len(entry["first"]) < FIRST_NAMES and skipped.key not in entry["first"]:
                entry["first"].append(skipped.key)
        self.broken_here += len(ready.broken)

    @property
    def broken_share(self) -> float:
        """Of all samples: those found broken in planning, and in decoding on this rank."""
        found = self.broken_here / max(self.decoded, 1)
        return self.broken_in_plan + (1 - self.broken_in_plan) * found


@dataclass(frozen=True)
class _Ready:
    step: Step
    plan: StepPlan
    broken: list[Skipped]
    decoded: int


class Loader:
    """Steps of one rank; satisfies `nextstep.data.steps.BatchSource`.

    Row r of a step belongs to rank r % world. A rank with fewer rows than another gets empty ones,
    so that all have as many micro-batches of as many rows. A sample that turns out broken when it
    is decoded leaves a hole in its row, and nothing else moves.

    Args:
        sources: with names that differ.
        weights: share of each, on any scale.
        batch_of: makes a micro-batch of rows; a row may be empty.
        config: see `LoaderConfig`.
        rank, world: which of how many ranks this is.
        pack: how documents share rows; `planning.one_per_row` trains without packing.

    Raises:
        NextStepError: when the sources cannot be mixed.
    """

    def __init__(
        self,
        sources: Seq[Source],
        weights: Seq[float],
        batch_of: Callable[[list[Row]], Any],
        config: LoaderConfig,
        *,
        rank: int = 0,
        world: int = 1,
        pack: Pack = pack_window,
    ) -> None:
        if not 0 <= rank < world:
            raise NextStepError(f"rank {rank} is not one of {world}")
        self.sources, self.batch_of, self.config = list(sources), batch_of, config
        self.rank, self.world = rank, world
        mixture = Mixture(self.sources, weights, config.by, config.seed)
        self._processes = (
            WorkerProcesses(self.sources, batch_of, mixture, config.processes)
            if config.processes
            else None
        )
        self.planner = Planner(
            self.sources,
            mixture,
            pack,
            config.row_length,
            config.window_rows,
            config.max_broken_share,
            self._processes.document if self._processes else None,
        )
        self.account = Account()
        self._state = self.planner.state_dict()
        self._pending: deque[Future[_Ready]] = deque()
        # One thread plans and one assembles, each in order; the others decode.
        self._plans = ThreadPoolExecutor(1, "plan")
        self._assembly = ThreadPoolExecutor(1, "assemble")
        self._decoders = ThreadPoolExecutor(config.workers, "decode")

    def next_step(self) -> Step:
        """The next step of this rank.

        Raises:
            NextStepError: when more samples are broken than the config allows, or a source gives
                nothing.
        """
        self._prepare(1)
        ready = self._pending.popleft().result()
        self._prepare(self.config.ahead)
        self.account.take(ready.plan, self.planner.mixture.names, ready)
        share, limit = self.account.broken_share, self.config.max_broken_share
        if ready.broken and share > limit and self.account.decoded >= ENOUGH_TO_JUDGE:
            last = ready.broken[-1]
            raise NextStepError(too_many_broken(share, limit, last.key, last.reason))
        self._state = ready.plan.state
        return ready.step

    def state_dict(self) -> dict[str, Any]:
        """After the last step that was given out: plain values, equal on all ranks."""
        return copy.deepcopy(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, on any number of ranks and with any number of rows a step.

        Raises:
            NextStepError: when it is the state of other data.
        """
        self._forget()
        self.planner.load_state_dict(state)
        self._state = self.planner.state_dict()

    def report(self) -> dict[str, Any]:
        """What was used and left out since the loader was made, as plain values.

        Returns:
            `sources`: samples and tokens of each over all ranks; `padding`: share of all rows'
            positions that held nothing; `skipped`: reason -> samples and the first names (those
            found while decoding are of this rank alone); `broken_share`.
        """
        positions = self.account.rows * self.config.row_length
        return {
            "sources": copy.deepcopy(self.account.sources),
            "padding": 1 - self.account.tokens / positions if positions else 0.0,
            "skipped": copy.deepcopy(self.account.skipped),
            "broken_share": self.account.broken_share,
        }

    def close(self) -> None:
        """Stop threads and processes; the loader gives no more steps."""
        self._forget()
        if self._processes:
            self._processes.close()
        for pool in (self._plans, self._assembly, self._decoders):
            pool.shutdown()

    def _forget(self) -> None:
        """Wait for what is being prepared and throw it away."""
        while self._pending:
            self._pending.popleft().exception()

    def _prepare(self, count: int) -> None:
        while len(self._pending) < count:
            plan = self._plans.submit(self._plan)
            self._pending.append(self._assembly.submit(self._ready, plan))

    def _plan(self) -> tuple[StepPlan, _Coming]:
        plan = self.planner.next_step(self.config.rows_per_step)
        own = plan.rows[self.rank :: self.world]
        if self._processes:
            return plan, _InProcesses(self._processes, self._split(own))
        decoding = [
            [(planned, self._decoders.submit(self._pictures, planned)) for planned in row]
            for row in own
        ]
        return plan, _InThreads(decoding, lambda rows: map(self.batch_of, self._split(rows)))

    def _pictures(self, planned: Planned) -> Seq[Any] | SampleError:
        document = planned.document
        assert isinstance(document, Document)
        if not document.images:
            return []
        try:
            return self.sources[planned.source].pictures(document)
        except SampleError as error:
            return error

    def _ready(self, planned: Future[tuple[StepPlan, _Coming]]) -> _Ready:
        """Put a step together from its plan and what was made of it, both as they come."""
        plan, coming = planned.result()
        batches, used, wrong = coming.made()
        broken = [
            Skipped(self.sources[item.source].name, error.key, error.reason, True)
            for item, error in wrong
        ]
        step = Step(
            batches,
            [item.document.key for item in used],
            sum(len(item.document) for item in used),
            plan.state,
        )
        return _Ready(step, plan, broken, len(used) + len(broken))

    def _split(self, rows: list[list[Item]]) -> list[list[list[Item]]]:
        """Micro-batches: as many of one size on every rank, the last filled up with empty rows."""
        share = -(-self.config.rows_per_step // self.world)
        size = min(self.config.micro_batch_rows, share)
        count = -(-share // size)
        rows = [*rows, *([] for _ in range(count * size - len(rows)))]
        return [rows[n * size : (n + 1) * size] for n in range(count)]


Item = TypeVar("Item")
Made = tuple[list[Any], list[Planned], list[tuple[Planned, SampleError]]]
"""Micro-batches, what is in them, and what turned out broken."""


class _Coming(Protocol):
    """The micro-batches of a step, on their way."""

    def made(self) -> Made:
        """Wait for them."""


@dataclass(frozen=True)
class _InThreads:
    decoding: list[list[tuple[Planned, Future[Any]]]]
    batches_of: Callable[[list[Row]], Iterable[Any]]

    def made(self) -> Made:
        rows: list[Row] = []
        used, wrong = list[Planned](), []
        for decoding in self.decoding:
            rows.append([])
            for item, future in decoding:
                found = future.result()
                if isinstance(found, SampleError):
                    wrong.append((item, found))
                else:
                    assert isinstance(item.document, Document)
                    rows[-1].append((item.document, found))
                    used.append(item)
        return list(self.batches_of(rows)), used, wrong


class _InProcesses:
    def __init__(self, workers: WorkerProcesses, batches: list[list[list[Planned]]]) -> None:
        self.workers, self.batches = workers, batches
        self.coming = [
            workers.micro_batch([[(item.source, _handle(item)) for item in row] for row in rows])
            for rows in batches
        ]

    def made(self) -> Made:
        batches, used, wrong = list[Any](), list[Planned](), []
        for rows, future in zip(self.batches, self.coming, strict=True):
            made = self.workers.made(future)
            errors = {(row, place): error for row, place, error in made.broken}
            batches.append(made.batch)
            for number, row in enumerate(rows):
                for place, item in enumerate(row):
                    if error := errors.get((number, place)):
                        wrong.append((item, error))
                    else:
                        used.append(item)
        return batches, used, wrong


def _handle(item: Planned) -> DocumentHandle:
    assert isinstance(item.document, DocumentHandle)
    return item.document
