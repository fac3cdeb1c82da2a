"""The door: who may ask, how much they may send, what every answer carries, one line of log.

Plain ASGI, around everything else, so that nothing is read or parsed before it is allowed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextstep.serve.api.keys import Keys
from nextstep.serve.jobs.limits import ServiceLimits, is_loopback
from nextstep.serve.jobs.metrics import Metrics
from nextstep.serve.problems import ApiError, failed, stopping, too_busy

log = logging.getLogger("nextstep.serve.access")

OPEN = frozenset({"/health", "/ready", "/", "/docs"})
"""Paths that need no key."""
STUDIO = "/studio/"
"""The studio's own files need none either: it asks for the key itself."""
LOCAL_NAMES = frozenset({"localhost"})
OPEN_BYTES = 1024
"""Most of a body where none is wanted."""
UPLOADS = 4
"""Bodies of the largest size that may be on their way at once, in bytes together."""
EVERYBODY = "everybody"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-ID",
    "Access-Control-Max-Age": "600",
}
"""What pages of allowed origins may send."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Guard:
    """ASGI middleware.

    Args:
        app: the application inside.
        limits: of body size and time.
        keys: who may ask; None is everybody on this machine.
        metrics: counts answers.
        hosts: more names that requests may call this machine by, where there are no keys.
        origins: of pages elsewhere that may ask.
    """

    app: ASGIApp
    limits: ServiceLimits
    metrics: Metrics
    keys: Keys | None = None
    hosts: frozenset[str] = LOCAL_NAMES
    origins: frozenset[str] = frozenset()
    arriving: list[int] = field(default_factory=lambda: [0])
    """Bytes of bodies that are on their way, in one place."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["owner"], state["request_id"] = EVERYBODY, request_id
        begun, status = time.monotonic(), 0
        origin = headers.get("origin", "")
        shared = _shared(origin) if origin in self.origins else {}

        async def hardened(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                for name, value in {**HEADERS, **shared, "X-Request-ID": request_id}.items():
                    out.setdefault(name, value)
            await send(message)

        try:
            try:
                self._check_origin(headers)
                if shared and scope["method"] == "OPTIONS":
                    await Response(status_code=204, headers=PREFLIGHT)(scope, receive, hardened)
                    return
                path = own_path(scope)
                state["owner"] = self._owner(path, headers)
                most = OPEN_BYTES if _is_open(path) else self.limits.body_bytes
                receive = await self._whole_body(headers, receive, most)
            except ApiError as error:
                answer = _answer(error)
                await answer(scope, receive, hardened)
                return
            except ConnectionError:
                return
            await self.app(scope, receive, hardened)
        except asyncio.CancelledError:
            # The time that a stopping service had is over.
            if status:
                raise
            await _answer(stopping())(scope, receive, hardened)
        except Exception:
            log.exception("failed", extra={"request_id": request_id})
            if not status:
                answer = _answer(failed("an internal failure; the log says more"))
                await answer(scope, receive, hardened)
        finally:
            self._note(scope, status, time.monotonic() - begun)

    def _check_origin(self, headers: Headers) -> None:
        """Refuse pages of other sites, and names that were bent to point here."""
        host = headers.get("host", "")
        if self.keys is None:
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if not (is_loopback(name) or name in self.hosts):
                raise ApiError(421, "this service answers to localhost only; see --keys")
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return
        if origin.split("://")[-1] != host:
            raise ApiError(403, "requests from pages of other sites are refused",
                           "permission_error")  # fmt: skip

    def _owner(self, path: str, headers: Headers) -> str:
        if self.keys is None or _is_open(path):
            return EVERYBODY
        scheme, _, key = headers.get("authorization", "").partition(" ")
        owner = self.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            raise ApiError(
                401, "the API key is missing or wrong; send 'Authorization: Bearer KEY'",
                "authentication_error", "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return owner

    async def _whole_body(self, headers: Headers, receive: Receive, most: int) -> Receive:
        """Read a body up to a limit, then hand it on in one piece."""
        declared = headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        try:
            body = await asyncio.wait_for(self._read(receive, most), self.limits.body_seconds)
        except TimeoutError:
            raise ApiError(408, "the body took too long to arrive",
                           headers={"x-should-retry": "false"}) from None  # fmt: skip
        if not headers.get("content-type", "").startswith("multipart/"):
            self._check_values(body)
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    async def _read(self, receive: Receive, most: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                self.arriving[0] += len(pieces[-1])
                if size > most:
                    raise _too_large(most)
                if self.arriving[0] > UPLOADS * self.limits.body_bytes:
                    raise too_busy("too much arrives at once; try again in a moment", 5)
                if not message.get("more_body", False):
                    return b"".join(pieces)
        finally:
            self.arriving[0] -= size

    def _check_values(self, body: bytes) -> None:
        """Refuse JSON that would take long to read: nobody else is answered meanwhile."""
        most = self.limits.json_values
        if len(body) <= most:
            return
        if len(body) - len(body.translate(None, b",:[{")) > most:
            raise ApiError(413, f"the body holds too many values: at most {most:,} are taken",
                           code="request_too_large")  # fmt: skip
        # An escape costs less than a value; encoders may escape every slash of a picture.
        if body.count(b"\\") > 8 * most:
            raise ApiError(413, "the body holds too many escapes", code="request_too_large")

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """Log and count by route, never by the path itself: paths are whatever people send."""
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"] in ("GET", "POST") else "OTHER"
        self.metrics.requests.labels(method, route, str(status)).inc()
        log.info(
            "answered",
            extra={
                "request_id": scope["state"]["request_id"],
                "owner": scope["state"]["owner"],
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
            },
        )


def own_path(scope: Scope) -> str:
    """The path without the one under which a proxy shows the service."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(STUDIO)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is too large: at most {most:,} bytes are taken",
                    code="request_too_large")  # fmt: skip


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


def _shared(origin: str) -> dict[str, str]:
    """Headers by which a browser lets a page of another origin read the answer."""
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "X-Request-ID, Retry-After",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Vary": "Origin",
    }
