"""A job as it is kept, and how a stored row becomes one again.

A row may come from a newer version, from a damaged disk, or from somebody who changed the file:
nothing in it is taken without a look. While a job is not over it has watchers (`LiveJob`).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nextstep.engine.events import Event, Usage
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.state_folder import is_own_name
from nextstep.utils.old_names import RECORD, SETTINGS, renamed

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
_ID = re.compile(r"[0-9a-f]{32}")
_MOST_PICTURES = 1000
_ADAPTERS: dict[type[Any], Any] = {}


@dataclass
class Record:
    """A job as it is kept.

    Attributes:
        id, owner, state, created, started, finished: times in seconds since 1970.
        request: what was asked for.
        parts: of the outcome: {"text": ...} or {"file": ..., "settings": ...}.
        usage: tokens read and written.
        error, bad_input: of a failed job.
    """

    id: str
    owner: str
    request: b.JobRequest
    state: str = QUEUED
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    bad_input: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (DONE, FAILED, CANCELLED)

    def file_names(self) -> list[str]:
        """Names of its files: sources, mask, states and pictures."""
        request = self.request
        made = [part[name] for part in self.parts for name in ("file", "state") if name in part]
        given = [*request.sources, *(name for name in (request.mask, request.state) if name)]
        parked = [] if self.over else [parked_name(self.id, i) for i in range(request.n)]
        return [name for name in (*given, *made, *parked) if self.owns(name)]

    def owns(self, name: object) -> bool:
        """Whether a file of that name is one of this job's."""
        return isinstance(name, str) and is_own_name(name) and name.startswith(f"{self.id}-")


def parked_name(key: str, index: int) -> str:
    """Name of the state of an unfinished picture."""
    return f"{key}-parked-{index}.state"


def record_of(row: sqlite3.Row) -> Record:
    """The record in a row of the table of jobs.

    Raises:
        ValueError: saying what is wrong with it.
    """
    for name, kind in (("id", str), ("owner", str), ("state", str), ("error", str | None)):
        if not isinstance(row[name], kind):
            raise ValueError(f"{name} is {row[name]!r:.50}")
    if row["state"] not in STATES:
        raise ValueError(f"its state is {row['state']!r:.50}")
    if not _ID.fullmatch(row["id"]):
        raise ValueError("its id is no id")
    record = Record(
        row["id"],
        row["owner"],
        _request(row["request"]),
        row["state"],
        _time(row["created"]) or 0.0,
        _time(row["started"]),
        _time(row["finished"]),
        _parts(row["parts"]),
        _json_dataclass(Usage, row["usage"]),
        row["error"],
        bool(row["bad_input"]),
    )
    request = record.request
    named = [part[name] for part in record.parts for name in ("file", "state") if name in part]
    named += [*request.sources, *filter(None, (request.mask, request.state))]
    if not all(record.owns(name) for name in named):
        raise ValueError("it names files that are not its own")
    return record


def _request(text: Any) -> b.JobRequest:
    request = _json_dataclass(b.JobRequest, text)
    if request.task not in (b.GENERATE, b.EDIT, b.CHAT):
        raise ValueError(f"its task is {request.task!r:.50}")
    request = replace(request, settings=renamed(request.settings, SETTINGS))
    if not 1 <= request.n <= _MOST_PICTURES:
        raise ValueError(f"it asks for {request.n} pictures")
    places = [part for part in request.parts if isinstance(part, int)]
    if not all(0 <= place < len(request.sources) for place in places):
        raise ValueError("it reads pictures that it does not have")
    return request


def _json_dataclass(kind: type[Any], text: Any) -> Any:
    """A dataclass from its JSON, with exact types and no unknown field."""
    raw = _loaded(text)
    if not isinstance(raw, dict):
        raise ValueError(f"a {kind.__name__} is no object")
    unknown = set(raw) - {one.name for one in fields(kind)}
    if unknown:
        raise ValueError(f"a {kind.__name__} has the unknown field {min(unknown)!r:.50}")
    return _adapter(kind).validate_json(text, strict=True)


def _adapter(kind: type[Any]) -> Any:
    """What validates a dataclass; made once."""
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _parts(text: Any) -> list[dict[str, Any]]:
    parts = _loaded(text)
    if not isinstance(parts, list):
        raise ValueError("its parts are no list")
    for part in parts:
        if not isinstance(part, dict):
            raise ValueError("a part is no object")
        is_text = isinstance(part.get("text"), str)
        is_picture = isinstance(part.get("file"), str) and isinstance(part.get("settings"), dict)
        if is_text == is_picture:
            raise ValueError("a part is neither a text nor a picture")
        if is_picture:
            part["settings"] = renamed(part["settings"], RECORD)
    return parts


def _loaded(text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError("a column holds no text")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("a column is nested too deep") from None


def _time(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a time is {value!r:.50}")
    return float(value)


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
