"""Answers of the Responses endpoint as clients see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from nextstep.engine.events import Part, Usage
from nextstep.serve.api import response_schema as s
from nextstep.serve.api.images import QUALITY, base64_of, png_of, size_of
from nextstep.serve.api.response_input import ANSWER, CALL, MESSAGE
from nextstep.serve.api.service import Service
from nextstep.serve.jobs import backend as b
from nextstep.serve.jobs.records import Record

_PLAIN = s.ImageTool(type="image_generation")


@dataclass(frozen=True)
class ResponseAnswer:
    """An answer and what it answers.

    Attributes:
        service: that gives it.
        record: its job.
        body: the request; None where it is fetched later.
    """

    service: Service
    record: Record
    body: s.ResponseRequest | None = None

    @property
    def tool(self) -> s.ImageTool:
        """How a picture is wanted."""
        return self.body.tools[0] if self.body and self.body.tools else _PLAIN

    @property
    def picture(self) -> bool:
        """Whether it is a picture."""
        return self.record.request.task != b.CHAT


async def partial(answer: ResponseAnswer, picture: Any) -> dict[str, Any]:
    """A picture that is being drawn, as its event tells it."""
    png = await run_in_threadpool(png_of, picture)
    form, quality = _form(answer.tool)
    return {
        "partial_image_b64": await run_in_threadpool(base64_of, png, form, quality),
        "size": f"{picture.width}x{picture.height}",
        "background": "opaque",
        "output_format": form,
        "quality": answer.tool.quality or "auto",
    }


def item_id(answer: ResponseAnswer) -> str:
    """Of its one item."""
    return f"{CALL if answer.picture else MESSAGE}{answer.record.id}"


def begun(answer: ResponseAnswer) -> dict[str, Any]:
    """The item of an answer before there is anything of it."""
    if answer.picture:
        return {"type": "image_generation_call", "id": item_id(answer), "status": "in_progress",
                "result": None}  # fmt: skip
    return {**_message(answer, "in_progress"), "content": []}


def _message(answer: ResponseAnswer, status: str) -> dict[str, Any]:
    return {"type": "message", "id": item_id(answer), "role": "assistant", "status": status}


def text_part(text: str) -> dict[str, Any]:
    """Text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def item(answer: ResponseAnswer, parts: tuple[Part, ...]) -> dict[str, Any]:
    """The finished item of an answer."""
    if not answer.picture:
        text = "".join(part.text for part in parts)
        return {**_message(answer, "completed"), "content": [text_part(text)]}
    form, quality = _form(answer.tool)
    request = answer.record.request
    return {
        "type": "image_generation_call",
        "id": item_id(answer),
        "status": "completed",
        "result": await run_in_threadpool(base64_of, parts[0].png, form, quality),
        "action": "edit" if request.task == b.EDIT else "generate",
        "background": "opaque",
        "output_format": form,
        "quality": answer.tool.quality or "auto",
        "size": size_of(parts[0].settings),
        "revised_prompt": request.prompt,
        "settings": parts[0].settings,
    }


def _form(tool: s.ImageTool) -> tuple[str, int]:
    return tool.output_format, QUALITY if tool.output_compression is None else (
        tool.output_compression
    )


def response(
    answer: ResponseAnswer,
    status: str,
    output: list[dict[str, Any]],
    used: Usage | None = None,
    error: str | None = None,
) -> dict[str, Any]:
    """An answer as clients see it."""
    record, body = answer.record, answer.body
    asked = body.model_dump(mode="json", exclude_none=True) if body else {}
    return {
        "id": f"{ANSWER}{record.id}",
        "object": "response",
        "created_at": int(record.created),
        "status": status,
        "background": False,
        "error": {"code": "server_error", "message": error} if error else None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": {},
        "model": answer.service.facts.name,
        "output": output,
        "parallel_tool_calls": False,
        "previous_response_id": asked.get("previous_response_id"),
        "seed": record.request.seed,
        "store": asked.get("store", True),
        "temperature": record.request.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_p": record.request.top_p,
        "truncation": "disabled",
        "usage": _usage(used) if used else None,
        "warnings": list(record.request.warnings),
    }


def _usage(used: Usage) -> dict[str, Any]:
    read, written = used.text_in + used.image_in, used.text_out + used.image_out
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def forget_unkept(answer: ResponseAnswer) -> None:
    """Remove an answer that is not to be stored, once it is sent."""
    if answer.body is not None and answer.body.store is False:
        answer.service.jobs.forget(answer.record)
