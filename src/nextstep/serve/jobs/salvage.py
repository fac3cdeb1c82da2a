"""A damaged database: what can still be read of it is carried over, the file is kept aside."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextstep.serve.jobs.state_folder import BASE, BASE_FILES, quarantine

log = logging.getLogger("nextstep.serve")
_MOST_TRIED = 1_000_000
"""Rows between the readable ones of both ends that are tried one by one."""


def is_whole(path: Path) -> bool:
    """Whether SQLite finds a database undamaged; one that is not there is."""
    if not path.exists():
        return True
    try:
        with contextlib.closing(sqlite3.connect(path)) as base:
            found = base.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        # A full disk or missing rights are no damage.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return found is not None and found[0] == "ok"


def rebuild(folder: Path, tables: dict[str, str]) -> None:
    """Replace a damaged database by a new one with every row that can be read.

    Args:
        folder: of the service.
        tables: commands that make the tables, by their names.
    """
    path = folder / BASE
    # A newer version's table may have more columns, which are kept too.
    tables = {name: _command(path, name) or command for name, command in tables.items()}
    rows = {name: list(_readable(path, name)) for name in tables}
    place = quarantine(folder)
    for name in sorted(BASE_FILES):
        if (folder / name).exists():
            (folder / name).rename(place / name)
    with contextlib.closing(sqlite3.connect(path)) as base:
        for name, command in tables.items():
            base.execute(command)
            known = {row[1] for row in base.execute(f"PRAGMA table_info({name})")}
            for row in rows[name]:
                kept = {column: row[column] for column in row if column in known}
                marks = ", ".join("?" * len(kept))
                with contextlib.suppress(sqlite3.IntegrityError):
                    base.execute(
                        f"INSERT INTO {name} ({', '.join(kept)}) VALUES ({marks})",
                        tuple(kept.values()),
                    )
        base.commit()
    log.error(
        "the database was damaged; what could be read of it goes on, the file is in quarantine",
        extra={"rows": {name: len(found) for name, found in rows.items()},
               "quarantine": str(place)},
    )  # fmt: skip


def _command(path: Path, table: str) -> str | None:
    """How a table was made, if the file still says it."""
    question = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
    try:
        with contextlib.closing(sqlite3.connect(path)) as base:
            found = base.execute(question, (table,)).fetchone()
    except sqlite3.Error:
        return None
    return found[0] if found is not None and isinstance(found[0], str) else None


def _readable(path: Path, table: str) -> Iterator[dict[str, Any]]:
    """Rows of a damaged table: from its start, from its end, and one by one between."""
    found: dict[int, dict[str, Any]] = {}
    try:
        base = sqlite3.connect(path)
    except sqlite3.Error:
        return
    base.row_factory = sqlite3.Row
    ends = []
    for order in ("ASC", "DESC"):
        last = None
        # Reading ends with an error at the first damaged page.
        with contextlib.suppress(sqlite3.DatabaseError):
            for row in base.execute(
                f"SELECT rowid AS place, * FROM {table} ORDER BY rowid {order}"
            ):
                last = row["place"]
                found[last] = {name: row[name] for name in row.keys() if name != "place"}  # noqa: SIM118
        ends.append(last)
    first, last = (0 if ends[0] is None else ends[0]), ends[1]
    if last is not None:
        for place in range(first + 1, min(last, first + _MOST_TRIED)):
            with contextlib.suppress(sqlite3.DatabaseError):
                row = base.execute(f"SELECT * FROM {table} WHERE rowid = ?", (place,)).fetchone()
                if row is not None:
                    found[place] = dict(row)
    base.close()
    for place in sorted(found):
        yield found[place]
