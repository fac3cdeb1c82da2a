"""How much the service takes on, and from whom."""

from __future__ import annotations

import ipaddress
import math
import re
import socket
from dataclasses import dataclass, fields
from pathlib import Path

from nextstep.errors import NextStepError


@dataclass(frozen=True)
class ServiceLimits:
    """What one service allows.

    Attributes:
        queue: jobs accepted and not yet finished, over all keys.
        per_key: of them by one key (or by everybody, where there are no keys).
        deadline: seconds from accepted to finished.
        body_bytes: of a request.
        body_seconds: that a request's body may take to arrive.
        head_seconds: that a request's headers may take to arrive.
        heads: connections that may wait for a request's headers at once.
        json_values: of a request, as its commas, colons and brackets count them.
        characters: of all texts of a request together.
        picture_bytes: of one uploaded picture.
        picture_pixels: of one uploaded picture, checked before it is decoded; by default as many as
            phones make.
        decoded_pixels: of all pictures of one request, in memory while they are decoded; JPEG files
            are shrunk on the way and count less than they have.
        source_pictures: of one request.
        steps: solver steps per image token.
        keep: finished jobs whose records and pictures are kept.
        grace: seconds that running jobs get when the service stops.
    """

    queue: int = 64
    per_key: int = 16
    deadline: float = 600.0
    body_bytes: int = 32 * 2**20
    body_seconds: float = 60.0
    head_seconds: float = 10.0
    heads: int = 200
    json_values: int = 150_000
    characters: int = 200_000
    picture_bytes: int = 32 * 2**20
    picture_pixels: int = 250_000_000
    decoded_pixels: int = 64_000_000
    source_pictures: int = 8
    steps: int = 200
    keep: int = 1000
    grace: float = 20.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if not 0 < getattr(self, one.name) < math.inf:
                raise NextStepError(
                    f"the limit '{one.name}' must be a finite number above 0, not "
                    f"{getattr(self, one.name)}"
                )


def check_binding(host: str, keys: Path | None) -> None:
    """Refuse to listen beyond this machine when anybody could ask.

    Raises:
        NextStepError: for an address that is not loopback, without keys.
    """
    if keys is None and not is_loopback(host):
        raise NextStepError(
            f"--host {host} can be reached from other machines: give --keys FILE (made with "
            "`nextstep serve --new-key NAME --keys FILE`), or listen on 127.0.0.1"
        )


def bind(host: str, port: int) -> socket.socket:
    """A socket that has an address to itself, and on which nobody is listened to yet.

    Raises:
        NextStepError: when the address is taken, unknown or not allowed.
    """
    bare = host.strip("[]")
    made = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((bare, port))
    except OSError as error:
        made.close()
        raise NextStepError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; choose another "
            "--port or --host"
        ) from None
    return made


def checked_origin(origin: str) -> str:
    """An origin of pages elsewhere that may ask.

    Raises:
        NextStepError: for anything but scheme and host, such as https://example.org.
    """
    if re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", origin) is None:
        raise NextStepError(f"--cors-origin is like https://example.org, not '{origin}'")
    return origin


def checked_root(path: str) -> str:
    """A path under which a proxy shows the service.

    Raises:
        NextStepError: unless it is empty, or begins with a slash and does not end with one.
    """
    if re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path) is None:
        raise NextStepError(
            f"--root-path is like /pictures, without a slash at its end, not '{path}'"
        )
    return path


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
