"""API keys: shown once, kept as hashes.

A key is 256 random bits, so one round of SHA-256 is as good as a slow hash: there is nothing to
guess. The file has one line a key: name, space, 64 hex digits.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from nextstep.errors import NextStepError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
PREFIX = "ns-"


class Keys:
    """Names by the hashes of their keys.

    Args:
        hashes: {name: hex digits of SHA-256}.
    """

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes

    def __len__(self) -> int:
        return len(self._hashes)

    @classmethod
    def of_file(cls, path: Path) -> Keys:
        """Read a file of keys.

        Raises:
            NextStepError: when it is missing, empty, or a line is not a key.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise NextStepError(
                f"the file of keys {path} cannot be read; make one with "
                f"`nextstep serve --new-key NAME --keys {path}`"
            ) from None
        hashes = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, digits = line.strip().partition(" ")
            if not _NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-f]{64}", digits):
                raise NextStepError(f"{path}, line {number} is not 'NAME 64-HEX-DIGITS'")
            hashes[name] = digits
        if not hashes:
            raise NextStepError(f"the file of keys {path} holds no key")
        return cls(hashes)

    def owner(self, key: str) -> str | None:
        """The name that a key belongs to; None when to nobody."""
        given = _hash(key)
        found = None
        # All are compared, so that the time tells nothing.
        for name, known in self._hashes.items():
            if hmac.compare_digest(given, known):
                found = name
        return found


def add_key(path: Path, name: str) -> str:
    """Make a key for a name and write its hash; returns the key, which is kept nowhere.

    Raises:
        NextStepError: for a bad or taken name, or a file that cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise NextStepError("a key's name has 1 to 64 letters, digits, dots, dashes or underscores")
    filled = path.exists() and path.read_text(encoding="utf-8").strip()
    if filled and name in Keys.of_file(path)._hashes:
        raise NextStepError(f"{path} has a key named '{name}' already; choose another name")
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        # Only the owner may read it, from its first byte on.
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            file.write(f"{name} {_hash(key)}\n")
    except OSError as error:
        raise NextStepError(f"{path} cannot be written: {error.strerror}") from None
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
