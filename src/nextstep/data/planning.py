"""Which documents stand in which rows, from lengths alone: best-fit decreasing, none split.

    mixture -> document (no picture decoded) -> window of documents -> rows -> steps

The rows of a run form one global list, the same for every number of ranks; step s takes the next
rows of it. Every rank plans all of it, which costs a caption and its ids a sample, and decodes only
its own rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from nextstep.data.documents import Document, DocumentHandle, SampleError, Source
from nextstep.data.mixing import Mixture, SampleUse
from nextstep.errors import NextStepError

FILTERED = "filtered"
TOO_LONG = "longer than a row"
ENOUGH_TO_JUDGE = 100
"""Samples before which no share of broken ones stops a run."""

Pack = Callable[[Seq[int], int], list[list[int]]]
"""(lengths of documents, row length) -> rows of indices; every index once."""
DocumentOf = Callable[[SampleUse], Document | DocumentHandle | None]
"""The document of a draw, None when a filter leaves it out; raises SampleError."""


@dataclass(frozen=True)
class Planned:
    """A document in its row, with the draw that it came from."""

    source: int
    position: int
    document: Document | DocumentHandle


@dataclass(frozen=True)
class Skipped:
    """A sample that is left out, and why."""

    source: str
    key: str
    reason: str
    broken: bool


@dataclass(frozen=True)
class StepPlan:
    """The rows of one step, of all ranks.

    Attributes:
        rows: documents of each row.
        state: of the planner once this step is taken.
        skipped: samples left out since the step before.
        broken_share: of all samples drawn so far, those that were known to be broken.
    """

    rows: list[list[Planned]]
    state: dict[str, Any]
    skipped: list[Skipped]
    broken_share: float


def one_per_row(lengths: Seq[int], row_length: int) -> list[list[int]]:
    """Every document in a row of its own: training without packing."""
    return [[index] for index in range(len(lengths))]


class Planner:
    """Deals documents into rows, window by window.

    Args:
        sources: in the order of the mixture.
        mixture: which sample comes next.
        pack: puts the documents of a window into rows.
        row_length: positions of a row.
        window_rows: rows that a window's documents fill; more leave less padding.
        max_broken_share: of the samples, above which the data are refused.
        document_of: gives the documents; default the sources themselves.
    """

    def __init__(
        self,
        sources: Seq[Source],
        mixture: Mixture,
        pack: Pack,
        row_length: int,
        window_rows: int,
        max_broken_share: float,
        document_of: DocumentOf | None = None,
    ) -> None:
        self.document_of = document_of or self._from_source
        self.sources, self.mixture, self.pack = sources, mixture, pack
        self.row_length, self.window_rows = row_length, window_rows
        self.max_broken_share = max_broken_share
        self._skipped: list[Skipped] = []
        self._drawn = self._broken = 0
        self._fruitless = [0] * len(sources)
        self._begin(mixture.state_dict(), [])

    def next_step(self, count: int) -> StepPlan:
        """The next `count` rows.

        Raises:
            NextStepError: when too many samples are broken, or a whole epoch of a source gives
                nothing.
        """
        rows: list[list[Planned]] = []
        while len(rows) < count:
            if self._taken == len(self._rows):
                self._open_window(self._carried)
            more = self._rows[self._taken : self._taken + count - len(rows)]
            self._taken += len(more)
            rows += more
        skipped, self._skipped = self._skipped, []
        return StepPlan(rows, self.state_dict(), skipped, self._broken / max(self._drawn, 1))

    def state_dict(self) -> dict[str, Any]:
        """Where the window began and how many of its rows are taken; the rest is planned again."""
        return {
            "row_length": self.row_length,
            "window_rows": self.window_rows,
            "mixture": self._start,
            "carried": self._start_carried,
            "rows_taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            NextStepError: when it is the state of other data or other rows.
        """
        for name, value in (("row_length", self.row_length), ("window_rows", self.window_rows)):
            if state.get(name) != value:
                raise NextStepError(
                    f"the run was saved with {name} = {state.get(name)}, and now it is {value}; "
                    "set it back, or start a new run from the saved weights"
                )
        self.mixture.load_state_dict(state["mixture"])
        self._begin(state["mixture"], state["carried"])
        if state["rows_taken"]:
            again = (self._document(self.mixture.at(*place)) for place in state["carried"])
            self._open_window([planned for planned in again if planned is not None])
        if state["rows_taken"] > len(self._rows):
            raise NextStepError(
                f"the saved run had taken {state['rows_taken']} rows where the data now give "
                f"{len(self._rows)}; give it the data it was saved with"
            )
        self._taken = state["rows_taken"]
        # They were told before the run was saved.
        self._skipped, self._drawn, self._broken = [], 0, 0

    def _begin(self, mixture: dict[str, Any], carried: list[list[int]]) -> None:
        self._start, self._start_carried = mixture, carried
        self._rows: list[list[Planned]] = []
        self._carried: list[Planned] = []
        self._taken = 0

    def _open_window(self, carried: list[Planned]) -> None:
        """Draw documents for the next rows and pack them."""
        self._start = self.mixture.state_dict()
        self._start_carried = [[planned.source, planned.position] for planned in carried]
        documents = list(carried)
        missing = self.window_rows * self.row_length - sum(len(d.document) for d in documents)
        while missing > 0:
            planned = self._document(draw := self.mixture.draw())
            if planned is not None:
                self.mixture.count(draw.source, len(planned.document))
                documents.append(planned)
                missing -= len(planned.document)
        rows = self.pack([len(d.document) for d in documents], self.row_length)
        held = self._emptiest(rows, documents, len(carried))
        self._carried = [] if held is None else [documents[index] for index in rows.pop(held)]
        self._rows = [[documents[index] for index in row] for row in rows]
        self._taken = 0

    @staticmethod
    def _emptiest(rows: list[list[int]], documents: list[Planned], carried: int) -> int | None:
        """The row to hold back for the next window, where more documents can fill it.

        None when waiting gains nothing (there is but one row, or no documents share one), or when
        its documents have waited before: nothing waits twice.
        """
        if len(rows) == 1 or all(len(row) == 1 for row in rows):
            return None
        filled = [sum(len(documents[index].document) for index in row) for row in rows]
        emptiest = filled.index(min(filled))
        waited = any(index < carried for index in rows[emptiest])
        return None if waited else emptiest

    def _from_source(self, draw: SampleUse) -> Document | None:
        return self.sources[draw.source].document(draw.index, draw.seed)

    def _document(self, draw: SampleUse) -> Planned | None:
        source = self.sources[draw.source]
        key, reason, broken = f"{source.name}/#{draw.index}", FILTERED, False
        self._drawn += 1
        try:
            document = self.document_of(draw)
            if document is not None and len(document) <= self.row_length:
                self._fruitless[draw.source] = 0
                return Planned(draw.source, draw.position, document)
            if document is not None:
                key, reason = document.key, TOO_LONG
        except SampleError as error:
            key, reason, broken = error.key, error.reason, True
        self._skipped.append(Skipped(source.name, key, reason, broken))
        self._broken += broken
        self._fruitless[draw.source] += 1
        self._refuse_bad_data(draw.source, reason)
        return None

    def _refuse_bad_data(self, source: int, reason: str) -> None:
        share = self._broken / self._drawn
        if self._drawn >= ENOUGH_TO_JUDGE and share > self.max_broken_share:
            raise NextStepError(
                too_many_broken(share, self.max_broken_share, self._skipped[-1].key, reason)
            )
        if self._fruitless[source] >= max(len(self.sources[source]), ENOUGH_TO_JUDGE):
            raise NextStepError(
                f"no sample in a whole epoch of source {self.sources[source].name} can be used "
                f"(the last one: {reason}); mend its filters or leave it out of the mix"
            )


def too_many_broken(share: float, limit: float, key: str, reason: str) -> str:
    """The sentence that refuses data."""
    return (
        f"{share:.1%} of the samples are broken, more than the {limit:.1%} that max_broken_share "
        f"allows (the last one: {key}: {reason}); mend the data or raise it"
    )


def pack_window(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Put documents into as few rows as best-fit decreasing finds.

    The longest document goes first, and each one into the row that it fills best. So a plan needs
    nothing but lengths, and the same lengths always give the same plan.

    Args:
        lengths: positions of each document, at least 1.
        row_length: positions of a row.

    Returns:
        Rows of indices into `lengths`; every index once. Indices rise inside a row, and rows stand
        in the order of their first index, so that a row's place says nothing about lengths.

    Raises:
        ValueError: when a document is empty or longer than a row.
    """
    for index, length in enumerate(lengths):
        if not 0 < length <= row_length:
            raise ValueError(
                f"document {index} has {length} positions and a row {row_length}; "
                "leave it out or make the rows longer"
            )
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free positions, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = bisect_left(room, (length, -1))
        if place == len(room):
            free, row = row_length, len(rows)
            rows.append([])
        else:
            free, row = room.pop(place)
        rows[row].append(index)
        if free > length:
            insort(room, (free - length, row))
    return sorted(sorted(row) for row in rows)
