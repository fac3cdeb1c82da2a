"""The application: routes, errors, the OpenAPI document, start and stop."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from nextstep.serve.api import (
    chat,
    fork_routes,
    images,
    job_routes,
    responses,
    studio,
    system,
)
from nextstep.serve.api import schema as s
from nextstep.serve.api.guard import LOCAL_NAMES, Guard, own_path
from nextstep.serve.api.keys import Keys
from nextstep.serve.api.service import Service
from nextstep.serve.api.streams import ClientGone
from nextstep.serve.jobs.backend import STORAGE_FAILED, STORAGE_FULL, ServiceBackend
from nextstep.serve.jobs.limits import ServiceLimits
from nextstep.serve.jobs.manager import Jobs
from nextstep.serve.jobs.metrics import Metrics
from nextstep.serve.jobs.state_folder import MissingFileError, StorageError, StoredFileError
from nextstep.serve.jobs.store import Store
from nextstep.serve.problems import ApiError, bad, from_validation, not_json, unavailable
from nextstep.version import __version__

_GONE = 499
_ERRORS = {
    400: "The request is at fault; the message says what.",
    401: "The API key is missing or wrong.",
    403: "The request came from a page of another site.",
    404: "There is no such thing.",
    405: "The route takes other methods.",
    408: "The body took too long to arrive.",
    409: "The job was cancelled.",
    410: "What was kept is damaged or gone.",
    413: "The request or a picture is too large.",
    415: "The body is not JSON.",
    421: "The service was called by a name that is not this machine's.",
    429: "Too many jobs wait; Retry-After says when to come back.",
    500: "A failure of the service.",
    503: "The service is stopping, or its disk cannot be used; Retry-After says when to come back.",
    507: "The service's disk is full; Retry-After says when to come back.",
}


def create_app(
    backend: ServiceBackend,
    store: Store,
    limits: ServiceLimits,
    metrics: Metrics,
    keys: Keys | None = None,
    hosts: frozenset[str] = LOCAL_NAMES,
    aliases: frozenset[str] = frozenset(),
    origins: frozenset[str] = frozenset(),
) -> FastAPI:
    """The ASGI application around a backend.

    Args:
        backend: makes the pictures; closed when the application stops.
        store: keeps the jobs; closed too.
        limits: see `ServiceLimits`.
        metrics: read at /metrics.
        keys: who may ask; None is everybody on this machine.
        hosts: names for this machine that are taken without keys.
        aliases: more names that the model may be asked for by.
        origins: of pages elsewhere that may ask, such as https://example.org.
    """
    jobs = Jobs(backend, store, limits, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs.open()
        try:
            yield
        finally:
            await jobs.close()

    app = FastAPI(
        title="OpenNextStep",
        version=__version__,
        description="Pictures and text from one causal transformer; OpenAI's image and chat "
        "endpoints, and jobs with live rows.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses={
            status: {"model": s.ErrorBody, "description": text} for status, text in _ERRORS.items()
        },
    )
    app.state.service = Service(jobs, limits, int(time.time()), aliases)
    app.router.redirect_slashes = False
    for part in (images, chat, responses, job_routes, fork_routes, system, studio):
        app.include_router(part.router)
    _add_error_handlers(app)
    app.add_middleware(
        Guard, limits=limits, metrics=metrics, keys=keys, hosts=hosts, origins=origins
    )
    app.openapi = lambda: _document(app, keys is not None)  # type: ignore[method-assign]
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Every error has OpenAI's form."""

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(StorageError)
    async def not_kept(request: Request, error: StorageError) -> Response:
        code = STORAGE_FULL if error.full else STORAGE_FAILED
        return await told(request, unavailable(str(error), code))

    @app.exception_handler(StoredFileError)
    async def not_whole(request: Request, error: StoredFileError) -> Response:
        gone = isinstance(error, MissingFileError)
        code = "picture_not_found" if gone else "picture_damaged"
        return await told(request, ApiError(404 if gone else 410, str(error), code=code))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        first = error.errors()[0]
        if first["type"] == "json_invalid":  # its place is a number, which is no field's name
            reason = f"{first['ctx']['error']}, at character {first['loc'][-1]}"
            return await told(request, bad(f"the body cannot be read as JSON: {reason}"))
        at_body = first["loc"] == ("body",)
        if at_body and not (kind == "application/json" or kind.endswith("+json")):
            return await told(request, not_json(kind))
        return await told(request, from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            return await told(request, _not_so(app, own_path(request.scope)))
        told_error = ApiError(
            error.status_code, str(error.detail), headers=dict(error.headers or {})
        )
        if error.status_code == 400:
            told_error = bad("the body cannot be read as JSON")
        return await told(request, told_error)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=_GONE)


def _not_so(app: FastAPI, path: str) -> ApiError:
    """405 that names what the path takes."""
    methods: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        # A parameter stands for anything but a slash.
        if re.fullmatch(re.sub(r"{[^}]*}", "[^/]+", template), path):
            methods |= {method.upper() for method in operations}
    # The studio's own files are not in the document.
    allowed = ", ".join(sorted(methods or {"GET"}))
    return ApiError(405, f"this address takes {allowed} only", headers={"Allow": allowed})


def _document(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document: invalid requests are 400 here, as OpenAI answers them."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                for status, text in _ERRORS.items():
                    answer = operation["responses"].setdefault(str(status), {"description": text})
                    answer["content"] = {
                        "application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
                    }
        schemas = made["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        if with_keys:
            made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            made["security"] = [{"key": []}]
        app.openapi_schema = made
    return app.openapi_schema
