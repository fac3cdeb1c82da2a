"""The loader: planned rows become the micro-batches of one rank, prepared ahead of the training.

Order never depends on threads: a plan is made in one thread, pictures are decoded by many, and a
step is put together from their results in the order of the plan.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from nextstep.data.augment import check_share
from nextstep.data.documents import Document, SampleError, Source
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
    ahead: int = 2
    max_broken_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("row_length", "rows_per_step", "micro_batch_rows", "window_rows", "workers"):
            if getattr(self, name) < 1:
                raise NextStepError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.ahead < 0:
            raise NextStepError(f"ahead must be at least 0, not {self.ahead}")
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
        self.planner = Planner(
            self.sources,
            mixture,
            pack,
            config.row_length,
            config.window_rows,
            config.max_broken_share,
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
        """Stop the threads; the loader gives no more steps."""
        self._forget()
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

    def _plan(self) -> tuple[StepPlan, list[list[tuple[Planned, Future[Any]]]]]:
        plan = self.planner.next_step(self.config.rows_per_step)
        own = plan.rows[self.rank :: self.world]
        return plan, [
            [(planned, self._decoders.submit(self._pictures, planned)) for planned in row]
            for row in own
        ]

    def _pictures(self, planned: Planned) -> Seq[Any] | SampleError:
        if not planned.document.images:
            return []
        try:
            return self.sources[planned.source].pictures(planned.document)
        except SampleError as error:
            return error

    def _ready(self, planned: Future[Any]) -> _Ready:
        """Put a step together from its plan and the pictures, both as they come."""
        plan, own = planned.result()
        rows: list[Row] = []
        broken: list[Skipped] = []
        for decoding in own:
            row: Row = []
            for item, future in decoding:
                found = future.result()
                if isinstance(found, SampleError):
                    name = self.sources[item.source].name
                    broken.append(Skipped(name, found.key, found.reason, True))
                else:
                    row.append((item.document, found))
            rows.append(row)
        documents = [document for row in rows for document, _ in row]
        step = Step(
            self._micro_batches(rows),
            [document.key for document in documents],
            sum(len(document) for document in documents),
            plan.state,
        )
        return _Ready(step, plan, broken, len(documents) + len(broken))

    def _micro_batches(self, rows: list[Row]) -> list[Any]:
        """As many of one size on every rank, the last filled up with empty rows."""
        share = -(-self.config.rows_per_step // self.world)
        size = min(self.config.micro_batch_rows, share)
        count = -(-share // size)
        rows = [*rows, *([] for _ in range(count * size - len(rows)))]
        return [self.batch_of(rows[n * size : (n + 1) * size]) for n in range(count)]
