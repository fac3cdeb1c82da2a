"""OpenAI's chat endpoint: the model reads text and pictures, and answers with text and pictures.

The model has no turns of its own: messages are read in order as one sequence. Pictures that it
draws come in `message.images`, as data URIs.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from nextstep.engine.events import LAST, Event, Part, Usage
from nextstep.serve.api import schema as s
from nextstep.serve.api.service import Service, new_seed, service_of
from nextstep.serve.api.streams import STREAMED, EventStream, event
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.records import Record
from nextstep.serve.problems import ApiError, bad, raise_for

router = APIRouter(prefix="/v1/chat", tags=["OpenAI"])


@router.post("/completions", responses=STREAMED)
async def completions(body: s.ChatRequest, request: Request) -> Any:
    """Read pictures and text; go on with text and, where `modalities` has image, pictures."""
    service = service_of(request)
    service.check_model(body.model)
    settings = body.changes()
    service.check_steps(settings)
    given: list[str | s.TextContent | s.ImageContent] = []
    for said in body.messages:
        given += [said.content] if isinstance(said.content, str) else said.content
    parts, uris = story_parts(given)
    if not parts:
        raise bad("the messages hold neither text nor a picture", "messages")
    sources = await service.pictures(uris, "messages")
    modalities = body.modalities or (["text"] if uris else ["text", "image"])
    job = b.JobRequest(
        task=b.CHAT,
        parts=tuple(parts),
        seed=new_seed() if body.seed is None else body.seed,
        settings=settings,
        draws=(body.max_images or 1) if "image" in modalities else 0,
        max_tokens=body.max_completion_tokens or body.max_tokens or 64,
        temperature=0.0 if body.temperature is None else body.temperature,
        top_p=0.9 if body.top_p is None else body.top_p,
    )
    job = replace(job, warnings=await service.warnings("story" if job.draws else "read", parts))
    record = await service.submit(request, job, sources)
    warned = list(record.request.warnings)
    if body.stream:
        events = _until_stop(service, record, body.stops)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(_events(service, record, events, with_usage))
    events = _until_stop(service, record, body.stops)
    done = raise_for(await service.finished(request, record, events))
    text = "".join(part.text for part in done.parts)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if images := [_image(part.png, i) for i, part in enumerate(done.parts) if part.png]:
        message["images"] = images
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    told = {"choices": [choice], "usage": _usage(done.usage), "warnings": warned}
    return {**_head(service, record, ""), **told}


async def _until_stop(service: Service, record: Record, stops: list[str]) -> AsyncGenerator[Event]:
    """A job's events with its texts cut before the first stop text, where the job ends.

    What might be the beginning of a stop text is kept back until more is known.
    """
    held = max(map(len, stops), default=1) - 1
    ended: int | None = None
    events = service.jobs.watch(record)
    try:
        async for happened in events:
            if happened.kind in ("text", "part") and ended is not None:
                continue
            if happened.kind == "text":
                text, found = _cut(happened.text, stops)
                ended = happened.index if found else None
                shown = text if found or not held else text[:-held]
                if found:
                    service.jobs.stop(record)
                yield Event("text", index=happened.index, text=shown)
            elif happened.kind == "part" and not happened.part.png:
                text, found = _cut(happened.part.text, stops)
                ended = happened.index if found else None
                yield Event("part", index=happened.index, parts=(Part(text),))
            elif happened.kind == "done" and stops:
                yield replace(happened, parts=_cut_parts(happened.parts, stops))
            else:
                yield happened
    finally:
        await events.aclose()  # type: ignore[attr-defined]


def _cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """A text up to the first of the stop texts in it, and whether there is one."""
    places = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(places)], True) if places else (text, False)


def _cut_parts(parts: Sequence[Part], stops: list[str]) -> tuple[Part, ...]:
    """Parts up to the first stop text."""
    kept: list[Part] = []
    for part in parts:
        text, found = _cut(part.text, stops)
        kept.append(part if part.png else Part(text))
        if found:
            break
    return tuple(kept)


def story_parts(
    given: Sequence[str | s.TextContent | s.ImageContent],
) -> tuple[list[str | int], list[str]]:
    """Text and places of pictures in order, and the pictures' addresses."""
    parts: list[str | int] = []
    uris: list[str] = []
    for part in given:
        if isinstance(part, s.ImageContent):
            parts.append(len(uris))
            uris.append(part.image_url.url)
        else:
            parts.append(part if isinstance(part, str) else part.text)
    return [part for part in parts if part != ""], uris


async def _events(
    service: Service, record: Record, events: AsyncIterator[Event], with_usage: bool
) -> AsyncIterator[bytes]:
    """Chunks: text as it is written, and every picture as it comes."""
    head = _head(service, record, ".chunk")

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**head, "choices": [choice]})

    sent: dict[int, str] = {}

    def words(index: int, text: str) -> list[bytes]:
        """What is new in a text."""
        before = sent.get(index, "")
        if text == before or not text.startswith(before):
            return []
        sent[index] = text
        return [chunk({"content": text[len(before) :]})]

    async with service.bound(record, events) as bound:
        yield chunk({"role": "assistant", "content": ""})
        async for happened in bound:
            if happened.kind in ("text", "part"):
                part = happened.part if happened.kind == "part" else Part(happened.text)
                if part.png:
                    yield chunk({"images": [_image(part.png, happened.index)]})
                for new in words(happened.index, part.text):
                    yield new
            elif happened.kind in LAST:
                try:
                    done = raise_for(happened)
                except ApiError as error:
                    yield event(error.body())
                    return
                # An answer that was there at once has not grown.
                texts = [(i, part.text) for i, part in enumerate(done.parts) if part.text]
                for new in [new for index, text in texts for new in words(index, text)]:
                    yield new
                yield chunk({}, "stop")
                if with_usage:
                    yield event({**head, "choices": [], "usage": _usage(done.usage)})
                yield event("[DONE]")


def _head(service: Service, record: Record, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{record.id}",
        "object": f"chat.completion{kind}",
        "created": int(record.created),
        "model": service.facts.name,
    }


def _image(png: bytes, index: int) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"type": "image_url", "index": index, "image_url": {"url": url}}


def _usage(used: Usage) -> dict[str, Any]:
    read, written = used.text_in + used.image_in, used.text_out + used.image_out
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }
