"""Going on from a picture: from a row, in a region; and what its tokens tell.

Legend: H W pixels of a mask, bool.
"""

from __future__ import annotations

import asyncio
import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool

from nextstep.engine.state import PictureState
from nextstep.errors import NextStepError
from nextstep.image.masks import read_mask
from nextstep.serve.api import job_schema as s
from nextstep.serve.api.job_routes import JobId, answer
from nextstep.serve.api.service import Service, service_of
from nextstep.serve.api.streams import while_connected
from nextstep.serve.api.uploads import bytes_of_uri, safe_mask
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.records import Record
from nextstep.serve.problems import ApiError, bad
from nextstep.text.vocabulary import CheckedPrompt

router = APIRouter(prefix="/jobs", tags=["Jobs"])


@router.post("/{job}/fork", status_code=202, response_model=s.JobAnswer)
async def fork(job: JobId, body: s.ForkBody, request: Request) -> Any:
    """A new job whose picture has the first `row` rows of this one's and goes on in its own way.

    The job may be running, done or stopped. Without a change the picture becomes what it was.
    """
    service = service_of(request)
    record, state = await _state(service, request, job, body)
    worded = await _worded(service, body, record)
    try:
        new = state.fork(body.row, worded.text if worded else None, body.seed, **body.changes())
    except (ValueError, TypeError) as error:
        raise bad(str(error)) from None
    parent = {"kind": "fork", "job": record.id, "picture": body.picture, "row": body.row}
    return await _submitted(service, request, new, parent, worded)


@router.post("/{job}/resample", status_code=202, response_model=s.JobAnswer)
async def resample(job: JobId, body: s.ResampleBody, request: Request) -> Any:
    """A new job that draws a region of a finished or stopped picture anew and keeps all else.

    Image tokens outside the region keep their values, and pixels outside it stay the same. Without
    a change of prompt, seed or settings the region becomes what it was, as far as it follows from
    the tokens before it.
    """
    service = service_of(request)
    record, state = await _state(service, request, job, body)
    if not record.over:
        raise ApiError(409, "the job is not over; stop it or wait", code="job_not_over")
    png = await run_in_threadpool(
        service.jobs.store.load,
        [part["file"] for part in record.parts if "file" in part][body.picture],
    )
    worded = await _worded(service, body, record)
    body = body.model_copy(update={"prompt": worded.text if worded else None})
    try:
        new = await run_in_threadpool(_resampled, service, body, state, png)
    except (ValueError, TypeError) as error:
        raise bad(str(error)) from None
    parent = {"kind": "resample", "job": record.id, "picture": body.picture, "row": None}
    return await _submitted(service, request, new, parent, worded)


@router.get("/{job}/pictures/{index}/tokens", response_model=s.TokensAnswer)
async def tokens(
    job: JobId,
    index: Annotated[int, Path(ge=0, le=1000)],
    request: Request,
    noise_samples: Annotated[int, Query(ge=2, le=16, description="Noise samples per token.")] = 4,
    draws: Annotated[int | None, Query(ge=2, le=16, include_in_schema=False)] = None,
) -> Any:
    """What each image token of a picture tells about itself: a picture may still be growing.

    `token_std`: standard deviation of the token over samples with other noise (its values have
    about variance 1; 0 is certain). `guidance_delta`: how far guidance moved the token. `guidance`:
    its scale there. `head_calls`: evaluations of the flow head. `fixed`: not sampled. `draws` is
    the earlier name of `noise_samples`.
    """
    service = service_of(request)
    record = service.jobs.get(request.state.owner, job)
    state = await service.jobs.state(record, index)
    measured = asyncio.wrap_future(service.jobs.backend.measure(state, draws or noise_samples))

    async def waited() -> dict[str, Any]:
        return await measured

    try:
        return await while_connected(request, waited())
    except NextStepError as error:
        raise ApiError(409, str(error), code="no_state") from None


async def _state(
    service: Service, request: Request, job: str, body: s.Change
) -> tuple[Record, PictureState]:
    """A job and the state of one of its pictures."""
    service.check_steps(body.changes())
    record = service.jobs.get(request.state.owner, job)
    data = await service.jobs.state(record, body.picture)
    try:
        return record, await run_in_threadpool(PictureState.from_bytes, data)
    except NextStepError as error:
        raise ApiError(409, str(error), code="no_state") from None


def _resampled(
    service: Service, body: s.ResampleBody, state: PictureState, png: bytes
) -> PictureState:
    """The state whose picture is drawn anew in a region."""
    region = _region(service, body, state, png)
    with Image.open(io.BytesIO(png)) as picture:
        return state.resample(picture, region, body.prompt, body.seed, **body.changes())


def _region(service: Service, body: s.ResampleBody, state: PictureState, png: bytes) -> np.ndarray:
    """[H, W] bool, True where the picture is drawn anew.

    Raises:
        ApiError: when it lies outside the picture, or its mask is refused.
    """
    rows, columns = state.request.grid
    side = service.facts.sizes.token_pixels
    if body.mask is not None:
        data = bytes_of_uri(body.mask, service.limits, "mask")
        clean = safe_mask(data, png, service.limits, "mask")
        return np.asarray(read_mask(io.BytesIO(clean))) > 0
    chosen = np.zeros(rows * columns, dtype=bool)
    if body.rows is not None:
        first, last = body.rows
        if not first < last <= rows:
            raise bad(f"rows must be [first, after the last] of {rows} rows", "rows")
        chosen[first * columns : last * columns] = True
    elif body.tokens is not None:
        if max(body.tokens) >= rows * columns:
            raise bad(f"the picture has {rows * columns} image tokens, the first is 0", "tokens")
        chosen[body.tokens] = True
    grid: np.ndarray = chosen.reshape(rows, columns)
    return grid.repeat(side, axis=0).repeat(side, axis=1)


async def _worded(service: Service, body: s.Change, record: Record) -> CheckedPrompt | None:
    """Another prompt in the words of the model; None where it stays what it was."""
    if body.prompt is None:
        return None
    return await service.worded(body.prompt, record.request.task == b.EDIT)


async def _submitted(
    service: Service,
    request: Request,
    state: PictureState,
    parent: dict[str, Any],
    worded: CheckedPrompt | None,
) -> dict[str, Any]:
    asked, side = state.request, service.facts.sizes.token_pixels
    job = b.JobRequest(
        task=asked.task,
        prompt=asked.prompt,
        height=asked.grid[0] * side,
        width=asked.grid[1] * side,
        seed=asked.seed,
        settings=asked.settings.recorded(),
        parent=parent,
        given=worded.record().get("prompt_given", "") if worded else "",
        warnings=worded.warnings if worded else (),
    )
    data = await run_in_threadpool(state.to_bytes)
    return answer(service, await service.submit(request, job, [], b"", data))
