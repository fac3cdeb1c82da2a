"""What happens to a request: one event type, from the scheduler to server-sent events and clients.

The scheduler tells of sequences, a service of the jobs that they belong to, and a client reads the
JSON of a service back into the same class. Importing this costs nothing: clients need no torch.

Legend: k tokens that are known, D values per token.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from nextstep.errors import NextStepError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from nextstep.engine.request import Request
    from nextstep.engine.results import GeneratedPicture

Kind = Literal[
    "queued", "started", "token", "row", "text", "part", "finished", "stopped", "done", "failed",
    "cancelled", "late", "stopping",
]  # fmt: skip
ENDS = ("finished", "stopped", "failed", "cancelled", "late")
"""Last events of a sequence in the engine."""
OUTCOMES = ("done", "failed", "cancelled")
"""Ends of a job, which may be several sequences."""
LAST = (*OUTCOMES, "stopping")
"""What is told last to who watches a job: when the service stops, the job goes on later."""
_NUMBERS = {
    "queued": ("position",),
    "started": ("batch",),
    "row": ("index", "row", "rows"),
    "text": ("index", "text"),
    "part": ("index",),
    "failed": ("bad_input",),
}
"""Fields that go into the JSON of an event as they are, by its kind."""


@dataclass(frozen=True)
class Part:
    """One finished part of an outcome: text, or a PNG with its settings.

    Attributes:
        state: what `PictureState.to_bytes` gives; empty when the picture cannot be gone on from.
    """

    text: str = ""
    png: bytes = b""
    settings: dict[str, Any] = field(default_factory=dict)
    state: bytes = b""

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
class Usage:
    """Tokens that a job read and wrote."""

    text_in: int = 0
    image_in: int = 0
    text_out: int = 0
    image_out: int = 0


@dataclass(frozen=True)
class Event:
    """Something that happened to a sequence of the engine, or to a job of a service.

    Attributes:
        kind: of a sequence `started`, `token` or `row` after every token, and one of `ENDS`; of a
            job `queued`, `started`, `row`, `text` (which grows), `part` (which is there) and one
            of `LAST`.
        ticket: which sequence; -1 of a job.
        tokens: [k, D] of a picture so far, fp32; none of a text. Sequences alone have them.
        ids: of a text so far; also of one that is written before its picture.
        end: the id that ended a text; None at its limit.
        request: with the last event of a `Request`, as it was drawn.
        picture: with `finished`, and with `stopped` the rows that are done; only of a `Request`.
        message: why it failed, is late or stops, one sentence.
        error: of a sequence that failed, what went wrong when the request was not at fault.
        bad_input: whether the request was at fault.
        code: why it failed, where its client may try again later; see `serve.jobs.backend`.
        job: its id, for clients.
        position: in the queue, 1 is next; 0 when it does not wait.
        batch: pictures and texts that are made together.
        index, row, rows: row `row` of `rows` of picture `index` is there; `index` also names the
            part of a chat that `text` and `part` tell of.
        text: of a chat's part so far.
        shown: the picture so far, where somebody wanted it; undrawn places are grey.
        preview: the same as PNG, where it was sent.
        parts: the one of `part`, or all of `done` in order; clients get the pictures alone.
        usage: what a job that is done took, in the service.
        warnings: what the prompt holds that the model was not taught; clients get them first.
    """

    kind: Kind
    ticket: int = -1
    tokens: Tensor = None  # type: ignore[assignment]  # whoever asks for them runs the sequence
    message: str = ""
    ids: tuple[int, ...] = ()
    end: int | None = None
    request: Request | None = None
    picture: GeneratedPicture | None = None
    error: Exception | None = None
    bad_input: bool = False
    code: str = ""
    job: str = ""
    position: int = 0
    batch: int = 1
    index: int = 0
    row: int = 0
    rows: int = 0
    text: str = ""
    shown: Image.Image | None = None
    preview: bytes = b""
    parts: tuple[Part, ...] = ()
    usage: Usage = Usage()
    warnings: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """Of the job: queued, running or done."""
        return self.kind if self.kind in ("queued", "done") else "running"

    @property
    def part(self) -> Part:
        """The part that a `part` tells of."""
        return self.parts[0]

    @property
    def pictures(self) -> tuple[Part, ...]:
        """Of a job that is done."""
        return tuple(part for part in self.parts if part.png) if self.kind == "done" else ()

    def to_json(self) -> dict[str, Any]:
        """What a server-sent event of this kind says; of `done` the service tells the job too."""
        told: dict[str, Any] = {}
        if self.kind in ("failed", "stopping"):
            told["error"] = self.message
        told |= {name: getattr(self, name) for name in _NUMBERS.get(self.kind, ())}
        if self.preview:
            told["preview"] = base64.b64encode(self.preview).decode()
        if self.kind == "part":
            png, settings = base64.b64encode(self.part.png).decode(), self.part.settings
            told |= {"picture": png, "settings": settings} if png else {"text": self.part.text}
        return told

    @classmethod
    def from_json(cls, kind: str, data: dict[str, Any], job: str) -> Self:
        """The event that `to_json` wrote."""
        known: dict[str, Any] = {name: data[name] for name in _NUMBERS.get(kind, ())}
        if kind == "part":
            png = base64.b64decode(data.get("picture", ""))
            known["parts"] = (Part(data.get("text", ""), png, data.get("settings", {})),)
        preview = base64.b64decode(data.get("preview", ""))
        message = data["error"] if kind in ("failed", "stopping") else ""
        return cls(cast(Kind, kind), job=job, message=message, preview=preview, **known)
