"""Jobs that are not over, and who watches them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from nextstep.engine.events import Event
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.records import Record

PreviewDemands = Callable[[int, int], b.PreviewDemand]
"""How much a watcher wants to see the picture after row k of n."""


def no_previews(row: int, rows: int) -> b.PreviewDemand:
    """Rows are told without pictures."""
    return b.PreviewDemand.NO


def every_row(row: int, rows: int) -> b.PreviewDemand:
    """Every row but the last, which is the finished picture, as far as there is time."""
    return b.PreviewDemand.IF_CHEAP if row < rows else b.PreviewDemand.NO


@dataclass(eq=False)
class Watcher:
    """Who follows a job: what it wants to see, and what it has not read yet."""

    wants: PreviewDemands
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)


@dataclass(eq=False)
class LiveJob:
    """A job that is not over."""

    record: Record
    handle: b.Handle | None = None
    watchers: set[Watcher] = field(default_factory=set)
    last: dict[int, Event] = field(default_factory=dict)
    parts: list[Event] = field(default_factory=list)
    late: asyncio.TimerHandle | None = None
    expired: bool = False

    def wants_preview(self, row: int, rows: int) -> b.PreviewDemand:
        """What the keenest watcher wants; asked by the backend's thread."""
        wanted = [watcher.wants(row, rows) for watcher in tuple(self.watchers)]
        return max(wanted, default=b.PreviewDemand.NO)

    def forward(self, event: Event) -> None:
        """Tell everybody who watches."""
        for watcher in self.watchers:
            watcher.events.put_nowait(event)
