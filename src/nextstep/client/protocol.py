"""What goes over the wire to a service and back: requests, lines of events, errors."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.engine.events import Event
from nextstep.errors import NextStepError

if TYPE_CHECKING:
    import httpx2

Source = bytes | str | Path
"""A source picture: the bytes of a file, or its path."""
StoryPart = str | bytes | Path
"""A part of a story: a text, or the bytes or path of a picture."""
_KINDS = (
    (0, b"\x89PNG", "png"), (0, b"\xff\xd8\xff", "jpeg"), (0, b"RIFF", "webp"), (0, b"BM", "bmp"),
    (0, b"GIF8", "gif"), (4, b"ftypavif", "avif"), (4, b"ftyphei", "heic"),
    (4, b"ftypmif1", "heif"),
)  # fmt: skip
"""Formats that a service takes: where a file says its own, what it says there, and the name."""


class ServiceError(Exception):
    """The service failed or cannot be reached.

    Attributes:
        status: of the answer; 0 without one.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BusyError(ServiceError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, status: int, retry_after: float) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


@dataclass(frozen=True)
class JobState:
    """A job as it stands; see `GET /jobs/ID`."""

    id: str
    state: str
    task: str
    prompt: str
    seed: int
    n: int
    position: int | None = None
    error: str | None = None
    text: str = ""
    warnings: tuple[str, ...] = ()
    links: tuple[tuple[str, dict[str, Any]], ...] = field(default=(), repr=False)
    parts: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, raw: dict[str, Any]) -> JobState:
        """From the service's answer."""
        links = tuple((one["url"], one["settings"]) for one in raw["pictures"])
        names = ("id", "state", "task", "prompt", "seed", "n", "position", "error", "text")
        return cls(
            **{name: raw[name] for name in names},
            warnings=tuple(raw.get("warnings", ())),
            links=links,
            parts=tuple(raw["parts"]),
        )


@contextmanager
def wrap_errors() -> Iterator[None]:
    """Turn the HTTP library's errors into ours."""
    import httpx2

    try:
        yield
    except httpx2.HTTPError as error:
        reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        asked = getattr(error, "_request", None)  # the property raises where there is none
        place = "" if asked is None else f" at {asked.url.scheme}://{asked.url.netloc.decode()}"
        raise ServiceError(f"the service{place} cannot be reached: {reason}") from None


class EventReader:
    """Server-sent events out of lines."""

    def __init__(self) -> None:
        self._name, self._data = "", ""

    def line(self, line: str) -> tuple[str, dict[str, Any]] | None:
        """Take a line; an event when it ends one."""
        if line.startswith("event: "):
            self._name = line[7:]
        elif line.startswith("data: "):
            self._data += line[6:]
        elif not line and self._data:
            told = self._name, json.loads(self._data)
            self._name = self._data = ""
            return told
        return None


def connection_options(url: str, key: str | None, timeout: float) -> dict[str, Any]:
    """What the HTTP library is told."""
    if not url.startswith(("http://", "https://")):
        raise NextStepError(f"'{url}' is no address of a service; give http://HOST:PORT")
    return {
        "base_url": url.rstrip("/"),
        "timeout": timeout,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
    }


def request_body(prompt: str, images: Sequence[Source], fields: dict[str, Any]) -> dict[str, Any]:
    """The body of `POST /jobs`."""
    return {"prompt": prompt, "images": [_data_uri(image) for image in images], **given(fields)}


def story_body(parts: Sequence[StoryPart], fields: dict[str, Any]) -> dict[str, Any]:
    """The body of `POST /jobs` for a story."""
    told: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            told.append({"type": "text", "text": part})
        else:
            told.append({"type": "image_url", "image_url": {"url": _data_uri(part)}})
    return {"parts": told, **given(fields)}


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without those that are None; a mask becomes a data URI."""
    kept = {name: value for name, value in fields.items() if value is not None}
    if isinstance(kept.get("mask"), bytes | str | Path):
        kept["mask"] = _data_uri(kept["mask"])
    return kept


def _data_uri(source: Source) -> str:
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    kind = next((kind for at, start, kind in _KINDS if data.startswith(start, at)), None)
    if kind is None:
        data, kind = _as_png(data), "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _as_png(data: bytes) -> bytes:
    """A picture in a format that a service does not take, as it is read here."""
    from nextstep.image.encode import encode
    from nextstep.image.pictures import open_picture

    try:
        return encode(open_picture(data), "PNG", {})
    except ValueError as error:
        raise NextStepError(f"this cannot be sent to a service: {error}") from None


def events_path(job: str, previews: bool) -> str:
    """Where a job's events are."""
    return f"/jobs/{job}/events?previews={'true' if previews else 'false'}"


def checked_event(event: Event) -> Event:
    """The event, unless it says that the job will not be done.

    Raises:
        NextStepError, ServiceError: when it failed, was cancelled or the service stops.
    """
    if event.kind == "failed":
        raise (NextStepError if event.bad_input else ServiceError)(event.message)
    if event.kind == "cancelled":
        raise ServiceError("the job was cancelled")
    if event.kind == "stopping":
        raise ServiceError(event.message, 503)
    return event


def json_object(answer: httpx2.Response) -> dict[str, Any]:
    """The object that an answer holds.

    Raises:
        ServiceError: when it holds none.
    """
    try:
        value = answer.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ServiceError("what answers there is no service of ours")
    return value


def checked(answer: httpx2.Response) -> httpx2.Response:
    """The answer, unless it is an error."""
    status = answer.status_code
    if status < 300:
        return answer
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = f"the service answered with status {status}"
    if status == 429:
        raise BusyError(message, status, float(answer.headers.get("retry-after", "1")))
    if 400 <= status < 500:
        raise NextStepError(message)
    raise ServiceError(message, status)
