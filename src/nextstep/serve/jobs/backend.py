"""What the service asks of whatever makes the pictures: jobs in, events out.

The engine in a worker thread is one backend; several such workers on other machines are another.
Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

from nextstep.engine.events import Event
from nextstep.image.sizes import SizeLimits
from nextstep.text.vocabulary import Vocabulary
from nextstep.utils import old_names

if TYPE_CHECKING:
    from nextstep.engine.request import Request

GENERATE, EDIT, CHAT = "generate", "edit", "chat"
STORAGE_FULL, STORAGE_FAILED = "storage_full", "storage_failed"
"""Why a job failed, where its client may try again later."""


@dataclass(frozen=True)
class JobRequest:
    """Everything a job's outcome depends on beside the weights, as plain values.

    Attributes:
        task: generate, edit or chat.
        prompt: of a picture or an edit; empty for a chat.
        height, width: pixels; None is the model's own, or the first source's for edits, or
            the last picture's in a chat.
        n: pictures of a generation or an edit.
        seed: picture i depends on (seed, i).
        settings: changed fields of `GenerationSettings`.
        sources: names of the stored source pictures, in order.
        parts: of a chat in order: text, or the place of a picture in `sources`.
        draws: most pictures that a chat may draw; 0 is text alone.
        max_tokens, temperature, top_p: of a chat's text.
        draw: whether a chat draws at once, without writing first.
        mask: name of the stored mask of an edit; empty without one.
        state: name of the stored picture state that the one picture goes on from; it says all
            that the fields above would say.
        partials: rows, evenly apart, after which the client surely wants to see a picture.
        parent: where that state comes from, for people: job, picture, and rows kept if any.
        given: the prompt as it was asked for, where it is drawn in other words.
        warnings: what the prompt holds that the model was not taught, one sentence each.
        endpoint: where it was asked for: studio, jobs, images, chat or responses; empty where
            an earlier version did not keep it.
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
    draw: bool = False
    mask: str = ""
    state: str = ""
    parent: dict[str, Any] | None = None
    partials: int = 0
    given: str = ""
    warnings: tuple[str, ...] = ()
    endpoint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def characters(self) -> int:
        """Of all its texts together."""
        given = [self.settings.get(name) for name in ("positive_prompt", "negative_prompt")]
        texts = [self.prompt, *self.parts, *given]
        return sum(len(text) for text in texts if isinstance(text, str))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> JobRequest:
        """The request that `to_dict` wrote."""
        lists = {name: tuple(raw[name]) for name in ("sources", "parts")}
        lists["warnings"] = tuple(raw.get("warnings", ()))
        return cls(**{**raw, **lists})


STOPPING = Event("stopping", message="the service is stopping; ask again later")
"""What watchers hear last when the service stops; the job goes on at the next start."""


class PreviewDemand(IntEnum):
    """How much somebody wants to see a row."""

    NO = 0
    IF_CHEAP = 1
    SURELY = 2


def partial_rows(count: int, rows: int) -> set[int]:
    """That many rows of a picture, evenly apart, without the last."""
    return {round(rows * i / (count + 1)) for i in range(1, count + 1)} - {0, rows}


def wanted_row(partials: int, row: int, rows: int) -> PreviewDemand:
    """For a backend that cannot ask who watches: all rows if cheap, the partial ones surely."""
    if row in partial_rows(partials, rows):
        return PreviewDemand.SURELY
    return PreviewDemand.IF_CHEAP if row < rows else PreviewDemand.NO


@dataclass(frozen=True)
class Job:
    """A request with the ways back to whoever asked.

    Attributes:
        id: unique.
        request: what to make.
        load: reads a stored source picture, mask or state by its name.
        tell: takes events, from any thread; after a final one nothing more is told.
        wants_preview: whether anybody looks at (row, rows); previews cost a decode.
        owner: whose job it is; owners take turns.
        park: keeps the state of picture `index` when the service stops before it is done.
        parked: the state that an earlier run parked, or None.
        checked: what `ServiceBackend.check` made of the request, so that nothing is built twice.
    """

    id: str
    request: JobRequest
    load: Callable[[str], bytes]
    tell: Callable[[Event], None]
    wants_preview: Callable[[int, int], PreviewDemand] = lambda row, rows: PreviewDemand.NO
    owner: str = ""
    park: Callable[[int, bytes], None] = lambda index, state: None
    parked: Callable[[int], bytes | None] = lambda index: None
    checked: Request | None = None


class Handle(Protocol):
    """A job that was submitted."""

    def cancel(self) -> None:
        """Stop it: at once while it waits, else at its next token. `Cancelled` is told."""

    def stop(self) -> None:
        """End it at its next token with what it has: finished pictures and rows are kept."""

    def snapshot(self, index: int) -> Future[bytes]:
        """The state of picture `index` as it is now.

        The future raises NextStepError when there is none.
        """


@dataclass(frozen=True)
class ModelFacts:
    """What a client may know about the model.

    Attributes:
        name: that requests use.
        hash: fingerprint of the weights.
        height, width: pixels of a picture by default.
        sizes: which other sizes it draws.
        defaults: settings where a request says nothing, for `generate` and `edit`.
        vocabulary: what the model draws by name; None where it takes any prompt.
        adapter: what pictures record about a merged adapter.
        runtime: what rounding depends on; see `engine.runtime_info.RuntimeInfo`.
    """

    name: str
    hash: str
    height: int
    width: int
    sizes: SizeLimits
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    adapter: dict[str, Any] = field(default_factory=dict)


def other_roundings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of what differs between two `runtime` values and changes the last bits of pictures."""
    before = old_names.renamed(before, old_names.RUNTIME)
    names = ("backend", "number_format", "threads", "torch", "instructions")
    return [name for name in names if before.get(name) != now.get(name)]


class ServiceBackend(Protocol):
    """Makes pictures and text."""

    facts: ModelFacts

    def check(self, request: JobRequest) -> Request | None:
        """Refuse what could never work, before it waits.

        Returns:
            The first picture's request where nothing but the job's plain values was needed for it.

        Raises:
            ValueError: one sentence that says the mend.
        """

    def submit(self, job: Job) -> Handle:
        """Take a job; events follow."""

    def measure(self, state: bytes, noise_samples: int) -> Future[dict[str, Any]]:
        """Uncertainty of each token of a picture state; see `token_uncertainty.measure`."""

    def close(self, grace: float) -> None:
        """Stop taking jobs from the queue; give the running ones `grace` seconds, then interrupt.

        Interrupted jobs are parked. They and waiting ones are told nothing: who keeps records
        submits them again.
        """
