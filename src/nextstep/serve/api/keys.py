"""API keys: shown once, kept as hashes.

A key is 256 random bits, so one round of SHA-256 is as good as a slow hash: there is nothing to
guess. The file has one line a key: name, space, 64 hex digits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from nextstep.errors import NextStepError
from nextstep.utils.files import FULL_DISK, append_line

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
    def of_file(cls, path: Path, empty: bool = False) -> Keys:
        """Read a file of keys; `empty` says that it may hold none.

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
        if not hashes and not empty:
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
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        if path.exists() and path.stat().st_size and name in Keys.of_file(path, empty=True)._hashes:
            raise NextStepError(f"{path} has a key named '{name}' already; choose another name")
        append_line(path, f"{name} {_hash(key)}", 0o600)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise NextStepError(f"{path} cannot be written: {error.strerror}") from None
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
