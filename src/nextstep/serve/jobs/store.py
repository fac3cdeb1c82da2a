"""What outlives a process: job records in SQLite, pictures in files beside it.

A picture's file is written whole before the record that names it is committed, so a record never
names a picture that is not there, whenever the process dies.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nextstep.errors import NextStepError
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.state_folder import BASE, FolderFiles, claim, is_own_name

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL,
    started REAL, finished REAL, request TEXT NOT NULL, parts TEXT NOT NULL DEFAULT '[]',
    usage TEXT NOT NULL DEFAULT '{}', error TEXT, bad_input INTEGER NOT NULL DEFAULT 0
)
"""
_NOTES = "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)"


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
    usage: b.Usage = field(default_factory=b.Usage)
    error: str | None = None
    bad_input: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (DONE, FAILED, CANCELLED)


class Files(Protocol):
    """Pictures by names that the service made itself."""

    def write(self, name: str, data: bytes) -> None:
        """Keep a picture."""

    def read(self, name: str) -> bytes:
        """Its bytes."""

    def remove(self, name: str) -> None:
        """Forget it."""

    def names(self) -> list[str]:
        """Of all that are kept."""

    def sweep(self, known: set[str]) -> None:
        """Put aside what no record names."""


class MemoryFiles:
    """In memory; gone with the process."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> None:
        """Keep."""
        self._files[name] = data

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError when it is not there."""
        try:
            return self._files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def remove(self, name: str) -> None:
        """Nothing happens when it is gone."""
        self._files.pop(name, None)

    def names(self) -> list[str]:
        """Of all files."""
        return list(self._files)

    def sweep(self, known: set[str]) -> None:
        """Nothing outlives the process, so nothing is left over."""


class Store:
    """Records and pictures; may be used from several threads.

    Args:
        folder: that holds jobs.sqlite3 and pictures/, see `state_folder`; None keeps all in memory.
        keep: finished jobs that are kept; older ones go, with their pictures.

    Raises:
        NextStepError: when the folder cannot be used.
    """

    def __init__(self, folder: Path | None, keep: int) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        try:
            self._claim = claim(folder) if folder is not None else None
            self.files: Files = FolderFiles(folder) if folder else MemoryFiles()
            where = str(folder / BASE) if folder else ":memory:"
            self._base = sqlite3.connect(where, check_same_thread=False)
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute(_TABLE)
            self._base.execute(_NOTES)
            self._base.execute("CREATE INDEX IF NOT EXISTS by_time ON jobs (owner, created)")
            self._base.commit()
        except (OSError, sqlite3.Error) as error:
            raise NextStepError(f"the folder {folder} cannot keep jobs: {error}") from None
        self._sweep()

    def add(
        self,
        owner: str,
        request: b.JobRequest,
        sources: list[bytes],
        mask: bytes = b"",
        state: bytes = b"",
    ) -> Record:
        """Accept a job; its source pictures, mask and state are kept with it."""
        key = uuid.uuid4().hex
        raw = request.to_dict()
        given = {f"{key}-source-{place}.png": data for place, data in enumerate(sources)}
        raw["sources"] = tuple(given)
        for field_, name, data in (
            ("mask", f"{key}-mask.png", mask), ("state", f"{key}-start.state", state)
        ):  # fmt: skip
            if data:
                given[name], raw[field_] = data, name
        for name, data in given.items():
            self.files.write(name, data)
        record = Record(key, owner, b.JobRequest.from_dict(raw), created=time.time())
        self._write(
            "INSERT INTO jobs (id, owner, state, created, request) VALUES (?, ?, ?, ?, ?)",
            (key, owner, QUEUED, record.created, json.dumps(raw)),
        )
        return record

    def start(self, record: Record) -> None:
        """It is being made."""
        record.state, record.started = RUNNING, time.time()
        self._write(
            "UPDATE jobs SET state = ?, started = ? WHERE id = ?",
            (record.state, record.started, record.id),
        )

    def finish(self, record: Record, event: b.Event) -> None:
        """Keep the end of a job: its pictures first, then its record."""
        parts: list[dict[str, Any]] = []
        usage, error, bad_input = b.Usage(), None, False
        if isinstance(event, b.Done):
            usage = event.usage
            for place, part in enumerate(event.parts):
                parts.append({"text": part.text})
                if part.png:
                    name = f"{record.id}-{place}.png"
                    self.files.write(name, part.png)
                    parts[-1] = {"file": name, "settings": part.settings}
                    if part.state:
                        parts[-1]["state"] = f"{record.id}-{place}.state"
                        self.files.write(parts[-1]["state"], part.state)
            now = DONE
        elif isinstance(event, b.Failed):
            now, error, bad_input = FAILED, event.message, event.bad_input
        else:
            now = CANCELLED
        record.finished = time.time()
        record.parts, record.usage, record.error = parts, usage, error
        record.bad_input, record.state = bad_input, now
        self._write(
            "UPDATE jobs SET state = ?, finished = ?, parts = ?, usage = ?, error = ?, "
            "bad_input = ? WHERE id = ?",
            (now, record.finished, json.dumps(parts), json.dumps(vars(usage)), error,
             bad_input, record.id),
        )  # fmt: skip
        for index in range(record.request.n):
            self.files.remove(_parked(record.id, index))
        self._prune()

    def park(self, record: Record, index: int, state: bytes) -> None:
        """Keep how far picture `index` of an unfinished job is."""
        self.files.write(_parked(record.id, index), state)

    def parked(self, record: Record, index: int) -> bytes | None:
        """What was parked last."""
        try:
            return self.files.read(_parked(record.id, index))
        except FileNotFoundError:
            return None

    def remove(self, record: Record) -> None:
        """Forget a job that is over, with its pictures."""
        self._write("DELETE FROM jobs WHERE id = ?", (record.id,))
        for name in _names(record):
            self.files.remove(name)

    def get(self, key: str) -> Record | None:
        """One job by its id."""
        found = self._read("SELECT * FROM jobs WHERE id = ?", (key,))
        return found[0] if found else None

    def of_owner(self, owner: str, limit: int, state: str | None = None) -> list[Record]:
        """An owner's newest jobs first."""
        return self._read(
            "SELECT * FROM jobs WHERE owner = ? AND (? IS NULL OR state = ?) "
            "ORDER BY created DESC, rowid DESC LIMIT ?",
            (owner, state, state, limit),
        )

    def unfinished(self) -> list[Record]:
        """Accepted jobs that have no end yet, the oldest first."""
        return self._read(
            "SELECT * FROM jobs WHERE state IN (?, ?) ORDER BY created, rowid", (QUEUED, RUNNING)
        )

    def note(self, name: str, value: Any) -> None:
        """Keep something for the next start, as JSON."""
        self._write("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """What was noted last under that name; None when nothing was."""
        with self._lock:
            row = self._base.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row["value"])

    def close(self) -> None:
        """No more reading and writing."""
        with self._lock:
            self._base.close()
            if self._claim is not None:
                self._claim.close()

    def _write(self, command: str, values: tuple[Any, ...]) -> None:
        with self._lock:
            self._base.execute(command, values)
            self._base.commit()

    def _read(self, question: str, values: tuple[Any, ...] = ()) -> list[Record]:
        with self._lock:
            rows = self._base.execute(question, values).fetchall()
        return [_record(row) for row in rows]

    def _prune(self) -> None:
        """Let the oldest finished jobs go."""
        old = self._read(
            "SELECT * FROM jobs WHERE finished IS NOT NULL "
            "ORDER BY finished DESC, rowid DESC LIMIT -1 OFFSET ?",
            (self.keep,),
        )
        for record in old:
            self.remove(record)

    def _sweep(self) -> None:
        """Put files aside that no record names: a process died between the two."""
        records = self._read("SELECT * FROM jobs")
        self.files.sweep({name for record in records for name in _names(record)})


def _names(record: Record) -> list[str]:
    request = record.request
    made = [part[name] for part in record.parts for name in ("file", "state") if name in part]
    given = [*request.sources, *(name for name in (request.mask, request.state) if name)]
    parked = [] if record.over else [_parked(record.id, index) for index in range(request.n)]
    # A tampered record must not name another job's files, nor files of anybody else.
    return [
        name
        for name in (*given, *made, *parked)
        if is_own_name(name) and name.startswith(f"{record.id}-")
    ]


def _parked(key: str, index: int) -> str:
    return f"{key}-parked-{index}.state"


def _record(row: sqlite3.Row) -> Record:
    return Record(
        row["id"],
        row["owner"],
        b.JobRequest.from_dict(json.loads(row["request"])),
        row["state"],
        row["created"],
        row["started"],
        row["finished"],
        json.loads(row["parts"]),
        b.Usage(**json.loads(row["usage"])),
        row["error"],
        bool(row["bad_input"]),
    )
