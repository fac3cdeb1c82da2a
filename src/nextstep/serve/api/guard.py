"""The door: who may ask, how much they may send, what every answer carries, one line of log.

Plain ASGI, around everything else, so that nothing is read or parsed before it is allowed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nextstep.serve.api.keys import Keys
from nextstep.serve.jobs.limits import Limits, is_loopback
from nextstep.serve.jobs.metrics import Metrics
from nextstep.serve.problems import ApiError, failed

log = logging.getLogger("nextstep.serve.access")

OPEN = frozenset({"/health", "/ready", "/"})
"""Paths that need no key."""
STUDIO = "/studio/"
"""The studio's own files need none either: it asks for the key itself."""
LOCAL_NAMES = frozenset({"localhost", "testserver"})
EVERYBODY = "everybody"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
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
    """

    app: ASGIApp
    limits: Limits
    metrics: Metrics
    keys: Keys | None = None
    hosts: frozenset[str] = LOCAL_NAMES

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

        async def hardened(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                for name, value in {**HEADERS, "X-Request-ID": request_id}.items():
                    out.setdefault(name, value)
            await send(message)

        try:
            try:
                self._check_origin(headers)
                state["owner"] = self._owner(scope["path"], headers)
                receive = await self._whole_body(headers, receive)
            except ApiError as error:
                answer = _answer(error)
                await answer(scope, receive, hardened)
                return
            except ConnectionError:
                return
            await self.app(scope, receive, hardened)
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
        if origin is not None and origin.split("://")[-1] != host:
            raise ApiError(403, "requests from pages of other sites are refused",
                           "permission_error")  # fmt: skip

    def _owner(self, path: str, headers: Headers) -> str:
        if self.keys is None or path in OPEN or path.startswith(STUDIO):
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

    async def _whole_body(self, headers: Headers, receive: Receive) -> Receive:
        """Read a body up to the limit, then hand it on in one piece."""
        declared = headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared) > self.limits.body_bytes:
            raise self._too_large()
        try:
            body = await asyncio.wait_for(self._read(receive), self.limits.body_seconds)
        except TimeoutError:
            raise ApiError(408, "the body took too long to arrive",
                           headers={"x-should-retry": "false"}) from None  # fmt: skip
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    async def _read(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.limits.body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request is too large: at most {self.limits.body_bytes:,} bytes are taken",
            code="request_too_large",
        )  # fmt: skip

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


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)
