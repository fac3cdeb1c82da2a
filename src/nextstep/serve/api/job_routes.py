"""The service's own endpoints: submit a job, watch its rows, stop it, fetch what it made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from nextstep.engine.events import Event
from nextstep.serve.api import job_schema as s
from nextstep.serve.api.chat import story_parts
from nextstep.serve.api.images import png_of, usage
from nextstep.serve.api.schema import Form
from nextstep.serve.api.service import Service, new_seed, parse_size, service_of
from nextstep.serve.api.streams import STREAMED, EventStream, event
from nextstep.serve.api.uploads import bytes_of_uri, in_form
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.records import Record, every_row, no_previews
from nextstep.serve.problems import JOB_ID, not_found
from nextstep.text.vocabulary import CheckedPrompt

router = APIRouter(prefix="/jobs", tags=["Jobs"])
PNG = {"type": "string", "format": "binary"}
JobId = Annotated[str, Path(pattern=JOB_ID, description="As `POST /jobs` gave it.")]


@router.post("", status_code=202, response_model=s.JobAnswer)
async def submit(body: s.JobBody, request: Request) -> Any:
    """Ask for pictures without waiting: drawn, with `images` edited, with `parts` of a story."""
    service = service_of(request)
    settings = body.changes()
    service.check_steps(settings)
    height, width = parse_size(body.size)
    parts, uris = story_parts(body.parts or [])
    sources = await service.pictures(body.images or uris, "images" if body.images else "parts")
    mask = b""
    if body.mask is not None:
        mask = await service.mask(bytes_of_uri(body.mask, service.limits, "mask"), sources)
    if body.parts is None:
        worded = await service.worded(body.prompt or "", bool(sources))
    else:
        kind = "world" if body.draw else "story" if body.max_images else "read"
        worded = CheckedPrompt("", "", await service.warnings(kind, parts))
    job = b.JobRequest(
        task=b.CHAT if body.parts else b.EDIT if sources else b.GENERATE,
        prompt=worded.text,
        given=worded.record().get("prompt_given", ""),
        warnings=worded.warnings,
        height=height,
        width=width,
        n=body.n,
        seed=new_seed() if body.seed is None else body.seed,
        settings=settings,
        parts=tuple(parts),
        draws=body.max_images if body.parts else 0,
        draw=body.draw,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
    )
    return answer(service, await service.submit(request, job, sources, mask))


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


@router.post("/{job}/stop", response_model=s.JobAnswer)
async def stop(job: JobId, request: Request) -> Any:
    """End a job at its next token and keep what is there: finished pictures, rows and texts.

    A stopped picture is grey where it was not drawn, and its settings say `rows_done`. What has not
    a single row is left out; a job without any is cancelled.
    """
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    service.jobs.stop(record)
    return answer(service, record)


@router.delete("/{job}", status_code=204, response_class=Response)
async def forget(job: JobId, request: Request) -> Response:
    """Remove a job that is over, with its pictures."""
    service = service_of(request)
    service.jobs.forget(service.jobs.get(request.state.owner, job))
    return Response(status_code=204)


@router.get(
    "/{job}/sources/{index}",
    response_class=Response,
    responses={200: {"content": {"image/png": {"schema": PNG}}}},
)
async def source(
    job: JobId, index: Annotated[int, Path(ge=0, le=1000)], request: Request
) -> Response:
    """A source picture of a job, as it was taken."""
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    names = record.request.sources
    if index >= len(names):
        raise not_found(f"the job has {len(names)} source pictures", "picture_not_found")
    return await _png(service, names[index])


@router.get(
    "/{job}/mask",
    response_class=Response,
    responses={200: {"content": {"image/png": {"schema": PNG}}}},
)
async def mask(job: JobId, request: Request) -> Response:
    """The mask of an edit, white where its first source might change."""
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    if not record.request.mask:
        raise not_found("the job has no mask", "picture_not_found")
    return await _png(service, record.request.mask)


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

    Leaving does not cancel the job; come back for the rest, also after the event `stopping`, which
    says that the service stops and goes on with the job at its next start.
    """
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    return EventStream(_events(service, record, previews))


@router.get(
    "/{job}/pictures/{index}",
    response_class=Response,
    responses={
        200: {
            "content": {kind: {"schema": PNG} for kind in ("image/png", "image/jpeg", "image/webp")}
        }
    },
)
async def picture(
    job: JobId,
    index: Annotated[int, Path(ge=0, le=1000)],
    request: Request,
    form: Annotated[Form, Query(alias="format")] = "png",
) -> Any:
    """One finished picture; a PNG carries its settings."""
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    names = [part["file"] for part in record.parts if "file" in part]
    if index >= len(names):
        raise not_found(f"the job has {len(names)} finished pictures", "picture_not_found")
    png = (await _png(service, names[index])).body
    data = await run_in_threadpool(in_form, bytes(png), form, 90)
    return Response(data, media_type=f"image/{form}")


async def _png(service: Service, name: str) -> Response:
    png = await run_in_threadpool(service.jobs.store.load, name)
    return Response(png, media_type="image/png")


async def _events(service: Service, record: Record, previews: bool) -> AsyncIterator[bytes]:
    watched = service.jobs.watch(record, every_row if previews else no_previews)
    try:
        async for happened in watched:
            yield event(await _told(service, record, happened), happened.kind)
    finally:
        await watched.aclose()  # type: ignore[attr-defined]


async def _told(service: Service, record: Record, happened: Event) -> dict[str, Any]:
    """An event's data."""
    if happened.kind == "done":
        return {**answer(service, record), "usage": usage(happened.usage)}
    if happened.shown is not None:
        png = await run_in_threadpool(png_of, happened.shown)
        happened = replace(happened, preview=png)
    return happened.to_json()


def answer(service: Service, record: Record) -> dict[str, Any]:
    """A job as clients see it."""
    request = record.request
    parts: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for part in record.parts:
        if "file" in part:
            url = f"/jobs/{record.id}/pictures/{len(pictures)}"
            pictures.append({"url": url, "settings": part["settings"]})
            parts.append({"type": "picture", **pictures[-1]})
        else:
            parts.append({"type": "text", "text": part["text"]})
    size = f"{request.width}x{request.height}" if request.width and request.height else None
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
        "prompt_given": request.given or None,
        "warnings": list(request.warnings),
        "endpoint": request.endpoint,
        "seed": request.seed,
        "n": request.n,
        "size": size,
        "settings": request.settings,
        "parent": request.parent,
        "sources": [f"/jobs/{record.id}/sources/{i}" for i in range(len(request.sources))],
        "mask": f"/jobs/{record.id}/mask" if request.mask else None,
        "error": record.error,
        "text": "".join(part.get("text", "") for part in record.parts),
        "story": _story(record) if request.task == b.CHAT else None,
        "pictures": pictures,
        "parts": parts,
    }


def _story(record: Record) -> dict[str, Any]:
    """What a story goes on from; its pictures lie among the sources."""
    request = record.request
    given: list[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "picture", "url": f"/jobs/{record.id}/sources/{part}"}
        for part in request.parts
    ]
    return {
        "given": given,
        "draw": request.draw,
        "max_images": request.draws,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
    }
