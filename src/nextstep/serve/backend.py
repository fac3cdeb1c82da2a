"""What the service asks of whatever makes the pictures: jobs in, events out.

The pipeline in a worker thread is one backend; a scheduler that batches over requests is another.
Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

GENERATE, EDIT, CHAT = "generate", "edit", "chat"


@dataclass(frozen=True)
class JobRequest:
    """Everything a job's outcome depends on beside the weights, as plain values.

    Attributes:
        task: generate, edit or chat.
        prompt: of a picture or an edit; empty for a chat.
        height, width: pixels; None is the model's own, or the first source's for edits.
        n: pictures of a generation or an edit.
        seed: picture i depends on (seed, i).
        settings: changed fields of `GenerationSettings`.
        sources: names of the stored source pictures, in order.
        parts: of a chat in order: text, or the place of a picture in `sources`.
        draws: most pictures that a chat may draw; 0 is text alone.
        max_tokens, temperature, top_p: of a chat's text.
    """

    task: str
    prompt: str = ""
    height: int | None = None
    width: int | None = None
    n: int = 1
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    parts: tuple[str | int, ...] = ()
    draws: int = 0
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 0.9

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> JobRequest:
        """The request that `to_dict` wrote."""
        lists = {name: tuple(raw[name]) for name in ("sources", "parts")}
        return cls(**{**raw, **lists})


@dataclass(frozen=True)
class Usage:
    """Tokens that a job read and wrote."""

    text_in: int = 0
    image_in: int = 0
    text_out: int = 0
    image_out: int = 0


@dataclass(frozen=True)
class Queued:
    """Waiting; `position` 1 is next."""

    position: int


@dataclass(frozen=True)
class Started:
    """Being made, together with `batch` pictures in all."""

    batch: int = 1


@dataclass(frozen=True)
class RowDone:
    """A row of image tokens of picture `index` is there: `row` of `rows`.

    `preview` is the picture so far, where somebody wanted it (undrawn places are grey).
    """

    index: int
    row: int
    rows: int
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Part:
    """One finished part of an outcome: text, or a PNG with its settings."""

    text: str = ""
    png: bytes = b""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartDone:
    """Part `index` of a chat is there."""

    index: int
    part: Part


@dataclass(frozen=True)
class Done:
    """Finished: all parts in order, and what they took."""

    parts: tuple[Part, ...]
    usage: Usage = Usage()


@dataclass(frozen=True)
class Failed:
    """It did not work: one sentence; `bad_input` when the request was at fault."""

    message: str
    bad_input: bool = False


@dataclass(frozen=True)
class Cancelled:
    """Stopped because somebody asked."""


Event = Queued | Started | RowDone | PartDone | Done | Failed | Cancelled
FINAL = (Done, Failed, Cancelled)


@dataclass(frozen=True)
class Job:
    """A request with the ways back to whoever asked.

    Attributes:
        id: unique.
        request: what to make.
        load: reads a stored source picture by its name.
        tell: takes events, from any thread; after a final one nothing more is told.
        wants_preview: whether anybody looks at (row, rows); previews cost a decode.
    """

    id: str
    request: JobRequest
    load: Callable[[str], bytes]
    tell: Callable[[Event], None]
    wants_preview: Callable[[int, int], bool] = lambda row, rows: False


class Handle(Protocol):
    """A job that was submitted."""

    def cancel(self) -> None:
        """Stop it: at once while it waits, else at its next token. `Cancelled` is told."""

    def fork(self, row: int, job: Job) -> Handle:
        """Make `job` go on from the first `row` rows of this one.

        Raises:
            NextStepError: when this backend keeps no rows.
        """


@dataclass(frozen=True)
class ModelFacts:
    """What a client may know about the model.

    Attributes:
        name: that requests use.
        hash: fingerprint of the weights.
        height, width: pixels of a picture by default.
        token_pixels: side of an image token; sizes are its multiples.
    """

    name: str
    hash: str
    height: int
    width: int
    token_pixels: int


class Backend(Protocol):
    """Makes pictures and text."""

    facts: ModelFacts

    def check(self, request: JobRequest) -> None:
        """Refuse what could never work, before it waits.

        Raises:
            ValueError: one sentence that says the mend.
        """

    def submit(self, job: Job) -> Handle:
        """Take a job; events follow."""

    def close(self, grace: float) -> None:
        """Stop taking jobs from the queue; give the running ones `grace` seconds, then interrupt.

        Interrupted and waiting jobs are told nothing: who keeps records submits them again.
        """
