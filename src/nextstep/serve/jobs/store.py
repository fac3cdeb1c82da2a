"""What outlives a process: job records in SQLite, pictures in files beside it.

A picture's file is written whole before the record that names it is committed, so a record never
names a picture that was not there, whenever the process dies. Where the disk is full, what could
not be written is kept in memory and tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextstep.engine.events import Event, Usage
from nextstep.image.formats import is_whole_png
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs import salvage
from nextstep.serve.jobs.records import (
    CANCELLED,
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    Record,
    parked_name,
    record_of,
)
from nextstep.serve.jobs.state_folder import (
    BASE,
    DamagedFileError,
    Files,
    FolderFiles,
    MemoryFiles,
    MissingFileError,
    StorageError,
    cannot_keep,
    claim,
)

log = logging.getLogger("nextstep.serve")

_TABLES = {
    "jobs": """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL,
    started REAL, finished REAL, request TEXT NOT NULL, parts TEXT NOT NULL DEFAULT '[]',
    usage TEXT NOT NULL DEFAULT '{}', error TEXT, bad_input INTEGER NOT NULL DEFAULT 0
)
""",
    "notes": "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
}
_NOT_KEPT = "it was made, but could not be kept: "


class Store:
    """Records and pictures; may be used from several threads.

    Args:
        folder: that holds jobs.sqlite3 and pictures/, see `state_folder`; None keeps all in memory.
        keep: finished jobs that are kept; older ones go, with their pictures.

    Raises:
        NextStepError: when the folder cannot be used.
        OSError: when its disk is full.
    """

    def __init__(self, folder: Path | None, keep: int) -> None:
        self.keep = keep
        self._lock = threading.Lock()
        # What the database does not say yet: a record's new state, or None for a removed one.
        self._unsaved: dict[str, Record | None] = {}
        self._bad_rows: set[str] = set()
        self._failing = False
        self._claim = None
        try:
            self._claim = claim(folder) if folder is not None else None
            self.files: Files = FolderFiles(folder) if folder else MemoryFiles()
            self.files.check_room()
            if folder is not None and not salvage.is_whole(folder / BASE):
                salvage.rebuild(folder, _TABLES)
            where = str(folder / BASE) if folder else ":memory:"
            self._base = sqlite3.connect(where, check_same_thread=False)
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            for command in _TABLES.values():
                self._base.execute(command)
            self._base.execute("CREATE INDEX IF NOT EXISTS by_time ON jobs (owner, created)")
            self._base.commit()
            self.files.probe()
            self._sweep()
        except (OSError, sqlite3.Error, StorageError) as error:
            if self._claim is not None:
                self._claim.close()
            raise cannot_keep(folder, error) from None
        except BaseException:
            if self._claim is not None:
                self._claim.close()
            raise

    def add(
        self,
        owner: str,
        request: b.JobRequest,
        sources: list[bytes],
        mask: bytes = b"",
        state: bytes = b"",
    ) -> Record:
        """Accept a job; its source pictures, mask and state are kept with it.

        Raises:
            StorageError: when it cannot be kept; nothing of it is left then.
        """
        key = uuid.uuid4().hex
        raw = request.to_dict()
        given = {f"{key}-source-{place}.png": data for place, data in enumerate(sources)}
        raw["sources"] = tuple(given)
        for field_, name, data in (
            ("mask", f"{key}-mask.png", mask), ("state", f"{key}-start.state", state)
        ):  # fmt: skip
            if data:
                given[name], raw[field_] = data, name
        record = Record(key, owner, b.JobRequest.from_dict(raw), created=time.time())
        try:
            self.files.check_room()
            for name, data in given.items():
                self.files.write(name, data)
            self._write(
                "INSERT INTO jobs (id, owner, state, created, request) VALUES (?, ?, ?, ?, ?)",
                (key, owner, QUEUED, record.created, json.dumps(raw)),
            )
        except StorageError:
            self._failing = True
            self._remove_files(list(given))
            raise
        return record

    def start(self, record: Record) -> None:
        """It is being made."""
        record.state, record.started = RUNNING, time.time()
        self._save(record)

    def finish(self, record: Record, event: Event) -> Event:
        """Keep the end of a job: its pictures first, then its record.

        Returns:
            The end that was kept: `Failed` in place of an outcome that there was no room for.
        """
        parts: list[dict[str, Any]] = []
        try:
            self._keep_parts(record, event, parts)
        except StorageError as error:
            self._failing = True
            self._remove_files([part[kind] for part in parts for kind in part if kind in _FILES])
            parts, event = [], not_kept(error)
        usage, reason, bad_input, now = Usage(), None, False, CANCELLED
        if event.kind == "done":
            usage, now = event.usage, DONE
        elif event.kind == "failed":
            now, reason, bad_input = FAILED, event.message, event.bad_input
        record.finished = time.time()
        record.parts, record.usage, record.error = parts, usage, reason
        record.bad_input, record.state = bad_input, now
        self._save(record)
        self._remove_files([parked_name(record.id, index) for index in range(record.request.n)])
        self._prune()
        return event

    def _keep_parts(self, record: Record, event: Event, parts: list[dict[str, Any]]) -> None:
        """Write the pictures of an outcome; `parts` grows by what is told of each."""
        for place, part in enumerate(event.parts if event.kind == "done" else ()):
            if not part.png:
                parts.append({"text": part.text})
                continue
            parts.append({"file": f"{record.id}-{place}.png", "settings": part.settings})
            self.files.write(parts[-1]["file"], part.png)
            if part.state:
                parts[-1]["state"] = f"{record.id}-{place}.state"
                self.files.write(parts[-1]["state"], part.state)

    def load(self, name: str) -> bytes:
        """A kept file, as it was written.

        Raises:
            MissingFileError: when it is gone.
            DamagedFileError: when it is a picture that has changed on the disk.
            StorageError: when the disk cannot be read.
        """
        data = self.files.read(name)
        if name.endswith(".png") and not is_whole_png(data):
            log.error("a kept picture is damaged", extra={"file": name})
            raise DamagedFileError
        return data

    def park(self, record: Record, index: int, state: bytes) -> None:
        """Keep how far picture `index` of an unfinished job is."""
        self.files.write(parked_name(record.id, index), state)

    def parked(self, record: Record, index: int) -> bytes | None:
        """What was parked last."""
        try:
            return self.files.read(parked_name(record.id, index))
        except (MissingFileError, StorageError):
            return None

    def remove(self, record: Record) -> None:
        """Forget a job that is over, its pictures first, so that this makes room on a full disk.

        Raises:
            StorageError: when its files cannot be removed.
        """
        for name in record.file_names():
            self.files.remove(name)
        try:
            self._write("DELETE FROM jobs WHERE id = ?", (record.id,))
        except StorageError:
            self._put_off(record.id, None)

    def get(self, key: str) -> Record | None:
        """One job by its id."""
        if key in self._unsaved:
            return self._unsaved[key]
        if not key.isascii():
            return None  # no id of ours, and perhaps nothing that the database could be asked
        return next(self._read("SELECT * FROM jobs WHERE id = ?", (key,)), None)

    def of_owner(self, owner: str, limit: int, state: str | None = None) -> list[Record]:
        """An owner's newest jobs first."""
        # The database does not know the state of a job that could not be written yet.
        wanted = None if self._unsaved else state
        question = (
            "SELECT * FROM jobs WHERE owner = ? AND (? IS NULL OR state = ?) "
            "ORDER BY created DESC, rowid DESC LIMIT ? OFFSET ?"
        )
        found: list[Record] = []
        for offset in itertools.count(0, limit):
            rows = self._rows(question, (owner, wanted, wanted, limit, offset))
            for stored in self._records(rows):
                record = self._unsaved.get(stored.id, stored)
                if record is not None and state in (None, record.state):
                    found.append(record)
            if len(found) >= limit or len(rows) < limit:
                break
        return found[:limit]

    def unfinished(self) -> list[Record]:
        """Accepted jobs that have no end yet, the oldest first."""
        question = "SELECT * FROM jobs WHERE state IN (?, ?) ORDER BY created, rowid"
        return list(self._read(question, (QUEUED, RUNNING)))

    def note(self, name: str, value: Any) -> None:
        """Keep something for the next start, as JSON."""
        self._write("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """What was noted last under that name; None when nothing was, or it is damaged."""
        with self._lock, _storage_errors():
            row = self._base.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        try:
            return None if row is None else json.loads(row["value"])
        except (ValueError, TypeError, RecursionError):
            return None

    @property
    def troubled(self) -> bool:
        """Whether something could not be written and has not been since."""
        return self._failing or bool(self._unsaved)

    def check_usable(self) -> None:
        """Make sure that a job could be accepted now.

        Raises:
            StorageError: when the disk is full, or the last write failed.
        """
        self.files.check_room()
        if self.troubled:
            raise StorageError(full=False)

    def retry(self) -> None:
        """Write what could not be written before; nothing happens while that still fails."""
        with contextlib.suppress(StorageError):
            self.files.probe()
            for key, record in list(self._unsaved.items()):
                if record is None:
                    self._write("DELETE FROM jobs WHERE id = ?", (key,))
                else:
                    self._update(record)
                if self._unsaved.get(key) is record:
                    del self._unsaved[key]
            self._failing = False

    def close(self) -> None:
        """No more reading and writing."""
        if self.troubled:
            self.retry()
        with self._lock:
            with contextlib.suppress(sqlite3.Error):
                self._base.close()
            if self._claim is not None:
                self._claim.close()

    def _save(self, record: Record) -> None:
        """Update a row, now or as soon as the disk takes it."""
        try:
            self._update(record)
        except StorageError:
            self._put_off(record.id, replace(record))

    def _put_off(self, key: str, record: Record | None) -> None:
        log.exception("a job's record could not be written; it will be tried again")
        self._failing, self._unsaved[key] = True, record

    def _update(self, record: Record) -> None:
        self._write(
            "UPDATE jobs SET state = ?, started = ?, finished = ?, parts = ?, usage = ?, "
            "error = ?, bad_input = ? WHERE id = ?",
            (record.state, record.started, record.finished, json.dumps(record.parts),
             json.dumps(vars(record.usage)), record.error, record.bad_input, record.id),
        )  # fmt: skip
        self._unsaved.pop(record.id, None)

    def _remove_files(self, names: list[str]) -> None:
        """Remove files that nothing names any more; what cannot be removed now is swept later."""
        for name in names:
            with contextlib.suppress(StorageError):
                self.files.remove(name)

    def _write(self, command: str, values: tuple[Any, ...]) -> None:
        # The connection as a context commits as a whole, or takes all back.
        with self._lock, _storage_errors(), self._base:
            self._base.execute(command, values)

    def _read(self, question: str, values: tuple[Any, ...] = ()) -> Iterator[Record]:
        yield from self._records(self._rows(question, values))

    def _rows(self, question: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        with self._lock, _storage_errors():
            return self._base.execute(question, values).fetchall()

    def _records(self, rows: list[sqlite3.Row]) -> Iterator[Record]:
        """Records that can be read; other rows are named once and stay as they are."""
        for row in rows:
            try:
                yield record_of(row)
            except ValueError as error:
                key = str(row["id"])
                if key not in self._bad_rows:
                    self._bad_rows.add(key)
                    log.error(
                        "a stored job cannot be read and is left out",
                        extra={"job": key[:64], "reason": str(error)[:300]},
                    )

    def _prune(self) -> None:
        """Let the oldest finished jobs go."""
        try:
            for record in self._read(
                "SELECT * FROM jobs WHERE finished IS NOT NULL "
                "ORDER BY finished DESC, rowid DESC LIMIT -1 OFFSET ?",
                (self.keep,),
            ):
                self.remove(record)
        except StorageError:
            log.exception("old jobs could not be removed")

    def _sweep(self) -> None:
        """Put files aside that no record names: a process died between the two."""
        records = list(self._read("SELECT * FROM jobs"))
        # A row that cannot be read may be a newer version's: all its files stay.
        self.files.sweep(
            {name for record in records for name in record.file_names()}, set(self._bad_rows)
        )


_FILES = ("file", "state")
"""Keys of a part that name files."""


def not_kept(error: StorageError) -> Event:
    """The end of a job whose outcome could not be kept."""
    code = b.STORAGE_FULL if error.full else b.STORAGE_FAILED
    return Event("failed", message=_NOT_KEPT + str(error), code=code)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    """Errors of the database are errors of the storage."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError.of(error) from error
