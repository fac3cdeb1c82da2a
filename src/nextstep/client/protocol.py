"""What goes over the wire to a service and back: requests, events, pictures, errors."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.errors import NextStepError

if TYPE_CHECKING:
    import httpx2
    from PIL import Image

Source = bytes | str | Path
"""A source picture: the bytes of a PNG, JPEG or WebP, or its path."""
StoryPart = str | bytes | Path
"""A part of a story: a text, or the bytes or path of a picture."""
_KINDS = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"RIFF", "webp"))


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
class RemotePicture:
    """A finished picture: PNG contents that carry their settings, and these settings."""

    png: bytes
    settings: dict[str, Any]

    @property
    def image(self) -> Image.Image:
        """The picture, decoded."""
        from PIL import Image

        with Image.open(io.BytesIO(self.png)) as opened:
            return opened.convert("RGB")

    def save(self, path: str | Path) -> None:
        """Write the PNG beside its name, then put it in its place.

        Raises:
            NextStepError: for the ending of another format; `image` can be saved in any.
        """
        target = Path(path)
        if target.suffix.lower() not in ("", ".png"):
            raise NextStepError(f"a finished picture is a PNG; '{target}' does not end in .png")
        scratch = target.with_name(f".{target.name}.part")
        scratch.write_bytes(self.png)
        scratch.replace(target)


@dataclass(frozen=True)
class Update:
    """What happened to a job.

    Attributes:
        job: its id.
        state: queued, running or done.
        position: in the queue, 1 is next; 0 when it does not wait.
        index, row, rows: row `row` of `rows` of picture `index` is there; rows is 0 otherwise.
        preview: PNG of the picture so far, after a row and when asked for.
        pictures: of a job that is done.
        warnings: what the prompt holds that the model was not taught; told first.
    """

    job: str
    state: str
    position: int = 0
    index: int = 0
    row: int = 0
    rows: int = 0
    preview: bytes = b""
    pictures: tuple[RemotePicture, ...] = ()
    warnings: tuple[str, ...] = ()


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
        reason = str(error) or type(error).__name__
        raise ServiceError(f"the service cannot be reached: {reason}") from None


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
    kind = next((kind for start, kind in _KINDS if data.startswith(start)), None)
    if kind is None:
        raise NextStepError("only PNG, JPEG and WebP pictures are sent to a service")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def events_path(job: str, previews: bool) -> str:
    """Where a job's events are."""
    return f"/jobs/{job}/events?previews={'true' if previews else 'false'}"


def update_of(job: str, name: str, data: dict[str, Any]) -> Update | None:
    """One event as an update; None when the job is done.

    Raises:
        NextStepError, ServiceError: when it failed or was cancelled.
    """
    if name == "queued":
        return Update(job, "queued", position=data["position"])
    if name == "row":
        preview = base64.b64decode(data.get("preview", ""))
        return Update(
            job, "running", 0, data["index"], data["row"], data["rows"], preview
        )  # fmt: skip
    if name == "done":
        return None
    if name == "failed":
        raise NextStepError(data["error"]) if data["bad_input"] else ServiceError(data["error"])
    if name == "cancelled":
        raise ServiceError("the job was cancelled")
    if name == "stopping":
        raise ServiceError(data["error"], 503)
    return Update(job, "running")


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
