"""OpenAI's Responses endpoint: text, and pictures through the tool `image_generation`.

An answer is a job of the service, so `previous_response_id`, fetching and removing find it by the
id of that job. One answer holds one picture or one text.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.concurrency import run_in_threadpool

from nextstep.serve.api import response_schema as s
from nextstep.serve.api.response_answer import ResponseAnswer, forget_unkept, item
from nextstep.serve.api.response_answer import response as shape
from nextstep.serve.api.response_input import Input, draws, read_input, response_job
from nextstep.serve.api.response_stream import ResponseStream
from nextstep.serve.api.service import Service, new_seed, parse_size, service_of
from nextstep.serve.api.streams import STREAMED, EventStream
from nextstep.serve.api.uploads import bytes_of_uri
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.records import CANCELLED, DONE, FAILED, QUEUED, Record
from nextstep.serve.problems import RESPONSE_ID, bad, raise_for

router = APIRouter(prefix="/v1/responses", tags=["OpenAI"])
ResponseId = Annotated[str, Path(pattern=RESPONSE_ID, description="As `POST /v1/responses` gave.")]
UNREAD = "a picture is drawn from the last message alone: instructions and earlier texts are unread"
STATUS = {QUEUED: "queued", DONE: "completed", FAILED: "failed", CANCELLED: "cancelled"}


@router.post("", responses=STREAMED)
async def create(body: s.ResponseRequest, request: Request) -> Any:
    """Answer with text; with the tool `image_generation`, draw a picture or edit pictures."""
    service = service_of(request)
    service.check_model(body.model)
    for tool in body.tools:
        service.check_model(tool.model)
    service.check_steps(body.changes())
    given = await read_input(service, request, body)
    if draws(service, body, given):
        record = await _picture_job(service, request, body, given)
    else:
        record = await _text_job(service, request, body, given)
    answer = ResponseAnswer(service, record, body)
    if body.stream:
        stream = ResponseStream(answer)
        return EventStream(stream.events(service.jobs.watch(record, stream.wants)))
    done = raise_for(await service.finished(request, record))
    told = shape(answer, "completed", [await item(answer, done.parts)], done.usage)
    forget_unkept(answer)
    return told


@router.get("/{response}")
async def fetch(response: ResponseId, request: Request) -> Any:
    """An answer as it stands; its picture comes as PNG."""
    service = service_of(request)
    answer = ResponseAnswer(service, response_job(service, request, response))
    end = await run_in_threadpool(service.jobs.outcome, answer.record)
    if end.kind == "done":
        return shape(answer, "completed", [await item(answer, end.parts)], end.usage)
    status = STATUS.get(answer.record.state, "in_progress")
    return shape(answer, status, [], error=answer.record.error)


@router.post("/{response}/cancel")
async def cancel(response: ResponseId, request: Request) -> Any:
    """Stop an answer at its next token; one that is over stays as it is."""
    service = service_of(request)
    service.jobs.cancel(response_job(service, request, response))
    return await fetch(response, request)


@router.delete("/{response}")
async def forget(response: ResponseId, request: Request) -> Any:
    """Remove an answer that is over."""
    service = service_of(request)
    service.jobs.forget(response_job(service, request, response))
    return {"id": response, "object": "response", "deleted": True}


async def _picture_job(
    service: Service, request: Request, body: s.ResponseRequest, given: Input
) -> Record:
    tool = body.tools[0]
    if tool.action == "edit" and not given.pictures:
        raise bad("there is no picture to edit in the input", "input")
    if not given.text:
        raise bad("a picture needs a text that says what to draw", "input")
    files = [] if tool.action == "generate" else given.pictures
    sources = await service.uploads(files, "input")
    mask = b""
    if tool.input_image_mask is not None:
        uri = tool.input_image_mask.image_url
        data = await run_in_threadpool(bytes_of_uri, uri, service.limits, "input_image_mask")
        mask = await service.mask(data, sources)
    worded = await service.worded(given.text, bool(sources))
    height, width = parse_size(tool.size)
    job = b.JobRequest(
        task=b.EDIT if sources else b.GENERATE,
        prompt=worded.text,
        given=worded.record().get("prompt_given", ""),
        warnings=(*worded.warnings, *((UNREAD,) if given.unread else ())),
        height=height,
        width=width,
        seed=new_seed() if body.seed is None else body.seed,
        settings=body.changes(),
        partials=tool.partial_images if body.stream else 0,
    )
    return await service.submit(request, job, sources, mask)


async def _text_job(
    service: Service, request: Request, body: s.ResponseRequest, given: Input
) -> Record:
    files = [part for part in given.said if isinstance(part, bytes)]
    sources = await service.uploads(files, "input")
    places = itertools.count()
    parts = [next(places) if isinstance(part, bytes) else part for part in given.said]
    job = b.JobRequest(
        task=b.CHAT,
        parts=tuple(parts),
        warnings=await service.warnings("read", parts),
        seed=new_seed() if body.seed is None else body.seed,
        # With the tool they are meant for its pictures.
        settings={} if body.tools else body.changes(),
        max_tokens=body.max_output_tokens or 64,
        temperature=0.0 if body.temperature is None else body.temperature,
        top_p=0.9 if body.top_p is None else body.top_p,
    )
    return await service.submit(request, job, sources)
