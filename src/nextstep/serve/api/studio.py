"""The studio: one page in the browser, made of the files in `web/`, served from memory.

Files are looked up by name in a fixed table, so no path can lead anywhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from nextstep.serve.problems import not_found

FOLDER = Path(__file__).parents[1] / "web"
POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip
"""What the page may do: its own files, pictures it holds itself, requests to this service."""
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _File:
    data: bytes
    kind: str
    tag: str


@lru_cache(maxsize=1)
def _files() -> dict[str, _File]:
    """All files of the page by their path below `web/`."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in _KINDS:
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            name = path.relative_to(FOLDER).as_posix()
            found[name] = _File(data, _KINDS[path.suffix], tag)
    return found


@router.get("/")
async def page(request: Request) -> Response:
    """The studio's page."""
    return _answer(request, "index.html")


@router.get("/docs")
async def reference(request: Request) -> Response:
    """The OpenAPI document as a page."""
    return _answer(request, "docs.html")


@router.get("/studio/{name:path}")
async def part(name: str, request: Request) -> Response:
    """One of the files that the page loads."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise not_found("the studio has no such file", "file_not_found")
    headers = {
        "Content-Security-Policy": POLICY,
        # Kept by browsers, but asked for anew each time: a new release is seen at once.
        "Cache-Control": "no-cache",
        "ETag": file.tag,
    }
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.kind, headers=headers)
