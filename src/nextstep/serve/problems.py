"""Errors as OpenAI's clients expect them: a status and {"error": {...}}."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nextstep.engine.events import Event
from nextstep.serve.jobs.backend import STOPPING, STORAGE_FULL


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of the answer.
        message: one sentence that says the mend.
        kind: OpenAI's `type`.
        code: OpenAI's `code`.
        param: the field at fault.
        headers: more headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, _sayable(message), kind
        self.code, self.param, self.headers = code, _sayable(param), headers or {}

    def body(self) -> dict[str, Any]:
        """The answer's body."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def _sayable(text: Any) -> Any:
    """A text without halves of surrogate pairs, which no answer can hold."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is at fault."""
    return ApiError(400, message, code=code, param=param)


def not_found(message: str, code: str | None = None) -> ApiError:
    """404."""
    return ApiError(404, message, code=code)


def too_busy(message: str, seconds: int) -> ApiError:
    """429 with the time after which to try again."""
    return ApiError(
        429, message, "rate_limit_error", "queue_full", headers={"Retry-After": str(seconds)}
    )


def stopping() -> ApiError:
    """503 while the service stops."""
    return ApiError(
        503, STOPPING.message, "server_error", "stopping",
        headers={"Retry-After": "10"},
    )  # fmt: skip


def unavailable(message: str, code: str) -> ApiError:
    """507 when the disk is full, else 503: what trying again later may mend."""
    status = 507 if code == STORAGE_FULL else 503
    return ApiError(status, message, "server_error", code, headers={"Retry-After": "30"})


def failed(message: str, status: int = 500, code: str | None = None) -> ApiError:
    """A failure of ours, which trying again would not mend."""
    return ApiError(status, message, "server_error", code, headers={"x-should-retry": "false"})


JOB_ID = "^[0-9a-f]{32}$"
RESPONSE_ID = "^resp_[0-9a-f]{32}$"
SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
IN_WORDS: dict[str | None, str] = {
    JOB_ID: "the id of a job has 32 digits and letters from a to f, as POST /jobs gave it",
    RESPONSE_ID: "the id of an answer is resp_ and 32 digits and letters from a to f, as "
    "POST /v1/responses gave it",
    SIZE: "a size is WIDTHxHEIGHT in pixels, such as 128x128, or auto",
}
"""What regular expressions of the schemas ask for."""


def not_json(kind: str) -> ApiError:
    """415 for a body of another kind than JSON."""
    given = f"'{kind[:64]}'" if kind else "no content type"
    return ApiError(
        415, f"the body is read as JSON: send it with 'Content-Type: application/json', not {given}"
    )


PLACES = ("body", "path", "query")
"""Where a parameter came from, as FastAPI's errors say before its name."""


def from_validation(errors: Sequence[Any]) -> ApiError:
    """400 for the first thing that a schema does not allow."""
    first = _nearest(errors)
    parts = tuple(part for part in first["loc"] if not _is_branch(part))
    if parts and parts[0] in PLACES:
        parts = parts[1:]
    place = ".".join(map(str, parts))[:200]
    if first["type"] == "extra_forbidden":
        return bad(f"unknown parameter '{place}'", place, "unknown_parameter")
    pattern = first.get("ctx", {}).get("pattern")
    said = IN_WORDS.get(pattern) or first["msg"].removeprefix("Value error, ")
    return bad(f"{place or 'the body'}: {said}", place or None)


def _is_branch(part: Any) -> bool:
    """Whether a part of a place names a branch of a union, such as list[str], and no field."""
    return isinstance(part, str) and re.fullmatch(r"\w+", part) is None


def _nearest(errors: Sequence[Any]) -> Any:
    """The first error; of a union's the one of the branch that the value was nearest to."""
    first = errors[0]
    *place, last = first["loc"] or ("",)
    if not _is_branch(last):
        return first
    union = [error for error in errors if list(error["loc"][: len(place)]) == place]
    return next((error for error in union if not error["type"].endswith("_type")), first)


def raise_for(event: Event) -> Event:
    """The outcome of a job that was to be finished.

    Raises:
        ApiError: when it failed or was cancelled.
    """
    if event.kind == "done":
        return event
    if event.kind == "stopping":
        raise stopping()
    if event.kind == "failed":
        if event.bad_input:
            raise bad(event.message)
        if event.code:
            raise unavailable(event.message, event.code)
        raise failed(event.message)
    raise ApiError(409, "the job was cancelled", code="job_cancelled")
