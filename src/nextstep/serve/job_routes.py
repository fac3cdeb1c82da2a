"""The service's own endpoints: submit a job, watch its rows, stop it, fetch what it made."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from nextstep.serve import backend as b
from nextstep.serve import schema as s
from nextstep.serve.images import png_of, usage
from nextstep.serve.jobs import every_row, no_previews
from nextstep.serve.problems import not_found
from nextstep.serve.service import Service, new_seed, parse_size, service_of
from nextstep.serve.store import Record
from nextstep.serve.streams import STREAMED, EventStream, event
from nextstep.serve.uploads import encode

router = APIRouter(prefix="/jobs", tags=["Jobs"])
NAMES: dict[type, str] = {
    b.Queued: "queued",
    b.Started: "started",
    b.RowDone: "row",
    b.PartDone: "part",
    b.Done: "done",
    b.Failed: "failed",
    b.Cancelled: "cancelled",
}
JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="As `POST /jobs` gave it.")]


@router.post("", status_code=202, response_model=s.JobAnswer)
async def submit(body: s.JobBody, request: Request) -> Any:
    """Ask for pictures without waiting: a generation, or with `images` an edit."""
    service = service_of(request)
    settings = body.changes()
    service.check_steps(settings)
    height, width = parse_size(body.size)
    sources = await service.pictures(body.images, "images")
    job = b.JobRequest(
        task=b.EDIT if sources else b.GENERATE,
        prompt=body.prompt,
        height=height,
        width=width,
        n=body.n,
        seed=new_seed() if body.seed is None else body.seed,
        settings=settings,
    )
    return answer(service, service.submit(request, job, sources))


@router.get("", response_model=s.JobList)
async def listed(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    state: Annotated[
        Literal["queued", "running", "done", "failed", "cancelled"] | None, Query()
    ] = None,
) -> Any:
    """Your jobs, the newest first."""
    service = service_of(request)
    records = service.jobs.store.of_owner(request.state.owner, limit, state)
    return {"object": "list", "data": [answer(service, record) for record in records]}


@router.get("/{job}", response_model=s.JobAnswer)
async def one(job: JobId, request: Request) -> Any:
    """One job as it stands: its state, and its pictures once it is done."""
    service = service_of(request)
    return answer(service, service.jobs.get(request.state.owner, job))


@router.post("/{job}/cancel", response_model=s.JobAnswer)
async def cancel(job: JobId, request: Request) -> Any:
    """Stop a job at its next token; a job that is over stays as it is."""
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    service.jobs.cancel(record)
    return answer(service, record)


@router.get(
    "/{job}/events",
    response_class=Response,
    responses=STREAMED,
)
async def events(
    job: JobId,
    request: Request,
    previews: Annotated[bool, Query(description="Send the picture after every row.")] = True,
) -> Any:
    """Server-sent events until the job ends: queued, started, row, part, done, failed, cancelled.

    Leaving does not cancel the job; come back for the rest.
    """
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    return EventStream(_events(service, record, previews))


@router.get(
    "/{job}/pictures/{index}",
    response_class=Response,
    responses={
        200: {
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}}
                for kind in ("image/png", "image/jpeg", "image/webp")
            }
        }
    },
)
async def picture(
    job: JobId,
    index: Annotated[int, Path(ge=0, le=1000)],
    request: Request,
    form: Annotated[s.Form, Query(alias="format")] = "png",
) -> Any:
    """One finished picture; a PNG carries its settings."""
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    names = [part["file"] for part in record.parts if "file" in part]
    if index >= len(names):
        raise not_found(f"the job has {len(names)} finished pictures", "picture_not_found")
    try:
        png = await run_in_threadpool(service.jobs.store.files.read, names[index])
    except FileNotFoundError:
        raise not_found("the picture was removed", "picture_not_found") from None
    data = await run_in_threadpool(encode, png, form, 90)
    return Response(data, media_type=f"image/{form}")


async def _events(service: Service, record: Record, previews: bool) -> AsyncIterator[bytes]:
    watched = service.jobs.watch(record, every_row if previews else no_previews)
    try:
        async for happened in watched:
            yield event(await _told(service, record, happened), NAMES[type(happened)])
    finally:
        await watched.aclose()  # type: ignore[attr-defined]


async def _told(service: Service, record: Record, happened: b.Event) -> dict[str, Any]:
    """An event's data."""
    if isinstance(happened, b.RowDone):
        told: dict[str, Any] = {"index": happened.index, "row": happened.row, "rows": happened.rows}
        if happened.preview is not None:
            png = await run_in_threadpool(png_of, happened.preview)
            told["preview"] = base64.b64encode(png).decode()
        return told
    if isinstance(happened, b.PartDone):
        return {"index": happened.index, "text": happened.part.text}
    if isinstance(happened, b.Failed):
        return {"error": happened.message, "bad_input": happened.bad_input}
    if isinstance(happened, b.Done):
        return {**answer(service, record), "usage": usage(happened.usage)}
    # What is left are plain numbers: a position, the size of a batch, or nothing.
    return dict(vars(happened))


def answer(service: Service, record: Record) -> dict[str, Any]:
    """A job as clients see it."""
    request = record.request
    made = [part for part in record.parts if "file" in part]
    return {
        "id": record.id,
        "object": "job",
        "task": request.task,
        "state": record.state,
        "position": service.jobs.position(record),
        "created": record.created,
        "started": record.started,
        "finished": record.finished,
        "prompt": request.prompt,
        "seed": request.seed,
        "n": request.n,
        "error": record.error,
        "text": "".join(part.get("text", "") for part in record.parts),
        "pictures": [
            {"url": f"/jobs/{record.id}/pictures/{place}", "settings": part["settings"]}
            for place, part in enumerate(made)
        ],
    }
