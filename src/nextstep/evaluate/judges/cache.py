"""Answers of a paid judge, kept so that no question is paid for twice.

One JSON file an answer, named by a hash of everything that was asked and written whole, so that
stopping at any moment loses at most the questions that are under way.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from nextstep.engine.metadata import write_file

Entry = dict[str, Any]


class AnswerCache:
    """A folder of answers.

    Args:
        folder: made when it is missing; None keeps answers in this process alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._own: dict[str, Entry] = {}
        self._busy: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, asked: object, ask: Callable[[], Entry]) -> Entry:
        """The answer to a question, asked only when none is kept.

        Two threads with the same question ask once.

        Args:
            asked: all that the answer depends on, as plain values.
            ask: gives the answer; what it raises is not kept.
        """
        key = key_of(asked)
        with self._guard:
            lock = self._busy.setdefault(key, threading.Lock())
        with lock:
            kept = self._read(key)
            if kept is None:
                kept = ask()
                self._write(key, kept)
        return kept

    def entries(self) -> list[Entry]:
        """All answers that are kept."""
        if self.folder is None:
            return list(self._own.values())
        found = [self._load(path) for path in sorted(self.folder.glob("??/*.json"))]
        return [entry for entry in found if entry is not None]

    def usage(self) -> dict[str, int]:
        """Answers that are kept, and the tokens that the service counted for them."""
        total = {"answers": 0, "prompt_tokens": 0, "completion_tokens": 0}
        for entry in self.entries():
            total["answers"] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                total[name] += int((entry.get("usage") or {}).get(name) or 0)
        return total

    def _path(self, key: str) -> Path | None:
        return self.folder / key[:2] / f"{key}.json" if self.folder else None

    def _read(self, key: str) -> Entry | None:
        path = self._path(key)
        return self._own.get(key) if path is None else self._load(path)

    @staticmethod
    def _load(path: Path) -> Entry | None:
        # A file that cannot be read is no answer: it is asked for again and replaced.
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def _write(self, key: str, entry: Entry) -> None:
        path = self._path(key)
        if path is None:
            self._own[key] = entry
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(entry, ensure_ascii=False).encode())


def key_of(asked: object) -> str:
    """64 hex digits of plain values."""
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def picture_hash(picture: Image.Image) -> str:
    """64 hex digits of a picture's pixels and size."""
    head = f"{picture.mode} {picture.width} {picture.height}".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()
