"""OpenAI's image endpoints: generations and edits, whole or as a stream of partial pictures."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.responses import Response

from nextstep.engine.events import LAST, Event, Usage
from nextstep.serve.api import schema as s
from nextstep.serve.api.service import Service, new_seed, parse_size, service_of
from nextstep.serve.api.streams import STREAMED, EventStream, event
from nextstep.serve.api.uploads import has_hole, in_form
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.records import PreviewDemands, Record
from nextstep.serve.jobs.state_folder import StorageError
from nextstep.serve.problems import ApiError, bad, from_validation, raise_for

router = APIRouter(prefix="/v1/images", tags=["OpenAI"])
QUALITY = 90
FIELDS = 64
_EDIT_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image", "prompt"],
                    "properties": {
                        "image": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "description": "Sources, such as PNG, JPEG or WebP; also as image[].",
                        },
                        "mask": {
                            "type": "string",
                            "format": "binary",
                            "description": "Picture of the first source's size; where it is "
                            "transparent the source may change, all else stays as it is.",
                        },
                        "prompt": {"type": "string", "maxLength": s.PROMPT},
                        "n": {"type": "integer", "minimum": 1, "maximum": 10},
                        "size": {"type": "string", "example": "128x128"},
                        "seed": {"type": "integer", "minimum": 0},
                        "steps": {"type": "integer", "minimum": 1},
                        "guidance": {"type": "number", "minimum": 0},
                        "output_format": {"type": "string", "enum": ["png", "jpeg", "webp"]},
                        "stream": {"type": "boolean"},
                        "partial_images": {"type": "integer", "minimum": 0, "maximum": 3},
                    },
                }
            }
        },
    }
}


OWN_MASK = (
    "the picture is transparent in places and no mask was sent, so only those places change; send "
    "it without transparency to change all of it"
)
"""As dall-e-2 has it: a picture with a hole is its own mask."""


@router.post("/generations", response_model=s.ImagesAnswer, responses=STREAMED)
async def generations(body: s.GenerationRequest, request: Request) -> Any:
    """Pictures from text; with `stream`, events of partial and finished pictures."""
    return await _answer(request, body, b.GENERATE, [], b"")


@router.post("/edits", response_model=s.ImagesAnswer, responses=STREAMED, openapi_extra=_EDIT_FORM)
async def edits(request: Request) -> Any:
    """Pictures from one or several pictures and an instruction (multipart form)."""
    body, files, given = await _edit_form(request)
    service = service_of(request)
    sources = await service.uploads(files, "image")
    warnings: tuple[str, ...] = ()
    if not given and len(files) == 1 and await run_in_threadpool(has_hole, files[0]):
        given, warnings = files[0], (OWN_MASK,)
    mask = await service.mask(given, sources) if given else b""
    return await _answer(request, body, b.EDIT, sources, mask, warnings)


async def _edit_form(request: Request) -> tuple[s.EditRequest, list[bytes], bytes]:
    """The text fields, the source pictures and the mask of an edit."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise bad("edits are sent as multipart/form-data, with the pictures in 'image'")
    try:
        values, files, mask = await _form_fields(request)
    except (ApiError, StorageError):
        raise
    except OSError as error:  # large uploads are spooled to the disk
        raise StorageError.of(error) from None
    except (MultiPartException, ValueError, KeyError, AssertionError) as error:
        raise bad(f"the form cannot be read: {error}") from None
    except Exception as error:  # Starlette turns the parser's complaints into HTTP errors
        raise bad(f"the form cannot be read: {getattr(error, 'detail', 'damaged')}") from None
    if not files:
        raise bad("an edit needs at least one picture in 'image'", "image")
    try:
        return s.EditRequest.model_validate(values), files, mask
    except ValidationError as error:
        raise from_validation(error.errors()) from None


async def _form_fields(request: Request) -> tuple[dict[str, Any], list[bytes], bytes]:
    """The parts of a form as they were sent: texts, pictures, mask."""
    values: dict[str, Any] = {}
    files: list[bytes] = []
    mask = b""
    limit = service_of(request).limits.source_pictures + 2
    async with request.form(max_files=limit, max_fields=FIELDS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) and name in ("image", "image[]"):
                files.append(await value.read())
            elif isinstance(value, UploadFile) and name == "mask" and not mask:
                mask = await value.read()
                if not mask:
                    raise bad("the mask is empty", "mask")
            elif isinstance(value, str) and name not in values:
                values[name] = value
            else:
                raise bad(f"'{name[:64]}' is given twice or is a file", name[:64])
    return values, files, mask


async def _answer(
    request: Request,
    body: s.ImageOptions,
    task: str,
    sources: list[bytes],
    mask: bytes,
    warnings: tuple[str, ...] = (),
) -> s.ImagesAnswer | Response:
    service = service_of(request)
    service.check_model(body.model)
    settings = body.changes()
    service.check_steps(settings)
    height, width = parse_size(body.size)
    worded = await service.worded(body.prompt, task == b.EDIT)
    job = b.JobRequest(
        task=task,
        prompt=worded.text,
        given=worded.record().get("prompt_given", ""),
        warnings=(*worded.warnings, *warnings),
        height=height,
        width=width,
        n=body.n or 1,
        seed=new_seed() if body.seed is None else body.seed,
        settings=settings,
        partials=(body.partial_images or 0) if body.stream else 0,
    )
    record = await service.submit(request, job, sources, mask)
    if body.stream:
        events = service.jobs.watch(record, evenly(body.partial_images or 0))
        return EventStream(_events(service, record, events, body))
    done = raise_for(await service.finished(request, record))
    form, quality = _form(body)
    data: list[s.ImageData] = []
    for index, part in enumerate(done.parts):
        if body.response_format == "url":
            address = f"{request.base_url}jobs/{record.id}/pictures/{index}?format={form}"
            data.append(s.ImageData(url=address, settings=part.settings))
        else:
            text = await run_in_threadpool(base64_of, part.png, form, quality)
            data.append(s.ImageData(b64_json=text, settings=part.settings))
    return s.ImagesAnswer(
        created=int(record.created),
        data=data,
        background="opaque",
        output_format=form,
        quality=body.quality or "auto",
        size=size_of(done.parts[0].settings),
        usage=s.ImageUsage(**usage(done.usage)),
        warnings=list(job.warnings),
    )


async def _events(
    service: Service, record: Record, events: AsyncIterator[Event], body: s.ImageOptions
) -> AsyncIterator[bytes]:
    """OpenAI's image stream: partial pictures, then the finished ones."""
    name = "image_generation" if record.request.task == b.GENERATE else "image_edit"
    form, quality = _form(body)
    wants = evenly(body.partial_images or 0)
    sent: dict[int, int] = {}

    def told(kind: str, data: str, size: str, index: int, **more: Any) -> bytes:
        whole = {
            "type": f"{name}.{kind}", "b64_json": data, "created_at": int(time.time()),
            "size": size, "quality": body.quality or "auto", "background": "opaque",
            "output_format": form, "image_index": index, **more,
        }  # fmt: skip
        return event(whole, whole["type"])

    async with service.bound(record, events) as bound:
        async for happened in bound:
            # A backend may show more rows than were asked for.
            asked = happened.kind == "row" and wants(happened.row, happened.rows)
            if happened.kind == "row" and asked and happened.shown is not None:
                picture = happened.shown
                number = sent[happened.index] = sent.get(happened.index, -1) + 1
                png = await run_in_threadpool(png_of, picture)
                data = await run_in_threadpool(base64_of, png, form, quality)
                size = f"{picture.width}x{picture.height}"
                yield told("partial_image", data, size, happened.index, partial_image_index=number)
            elif happened.kind in LAST:
                try:
                    done = raise_for(happened)
                except ApiError as error:
                    yield event({"type": "error", **error.body()}, "error")
                    return
                for index, part in enumerate(done.parts):
                    data = await run_in_threadpool(base64_of, part.png, form, quality)
                    # The whole request's tokens, told once: with the last picture.
                    last = index + 1 == len(done.parts)
                    cost = usage(done.usage if last else Usage())
                    size, said = size_of(part.settings), list(record.request.warnings)
                    yield told("completed", data, size, index, usage=cost, warnings=said)


def evenly(count: int) -> PreviewDemands:
    """That many rows of a picture, and no others."""

    def wants(row: int, rows: int) -> b.PreviewDemand:
        return b.PreviewDemand.SURELY if row in b.partial_rows(count, rows) else b.PreviewDemand.NO

    return wants


def usage(used: Usage) -> dict[str, Any]:
    """Tokens as OpenAI's image answers count them."""
    read = used.text_in + used.image_in
    return {
        "input_tokens": read,
        "output_tokens": used.image_out,
        "total_tokens": read + used.image_out,
        "input_tokens_details": {"text_tokens": used.text_in, "image_tokens": used.image_in},
    }


def png_of(picture: Any) -> bytes:
    """A PIL picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _form(body: s.ImageOptions) -> tuple[str, int]:
    quality = QUALITY if body.output_compression is None else body.output_compression
    return body.output_format or "png", quality


def base64_of(png: bytes, form: str, quality: int) -> str:
    """A picture of ours in the form that was asked for, as base64."""
    return base64.b64encode(in_form(png, form, quality)).decode()


def size_of(settings: dict[str, Any]) -> str:
    """WIDTHxHEIGHT of a picture by its settings."""
    return f"{settings['width']}x{settings['height']}"
