"""What an input of the Responses endpoint asks for: a conversation to go on with, or a picture."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from nextstep.serve.api import response_schema as s
from nextstep.serve.api.service import Service
from nextstep.serve.api.uploads import bytes_of_uri
from nextstep.serve.jobs.records import Record
from nextstep.serve.problems import ApiError, bad, not_found
from nextstep.text.introduction import objects_in

if TYPE_CHECKING:
    from starlette.requests import Request

Told = str | bytes
"""Text, or the file of a picture."""
ANSWER, CALL, MESSAGE = "resp_", "ig_", "msg_"
"""What ids of answers, pictures and texts begin with, before the id of their job."""


@dataclass
class Input:
    """An input in order.

    Attributes:
        said: texts and pictures of all messages.
        text: of the user's last message.
        pictures: of that message, or else the latest one before it.
        unread: whether there is text that a picture's prompt leaves out.
    """

    said: list[Told] = field(default_factory=list)
    text: str = ""
    pictures: list[bytes] = field(default_factory=list)
    unread: bool = False


async def read_input(service: Service, request: Request, body: s.ResponseRequest) -> Input:
    """The conversation so far, with the answer that it goes on from.

    Raises:
        ApiError: for an unknown earlier answer, or a picture that cannot be taken.
    """
    found = Input(said=[body.instructions] if body.instructions else [])
    found.unread = bool(body.instructions)
    if body.previous_response_id:
        record = response_job(service, request, body.previous_response_id)
        found.said += await _transcript(service, record)
        found.unread = True
    for item in body.input:
        if isinstance(item, s.ImageCallItem):
            found.said.append(await _called(service, request, item))
            continue
        told = [await _content(service, part) for part in item.content]
        told = [part for part in told if part != ""]
        found.said += told
        if item.role != "user":
            found.unread = True
            continue
        found.unread = found.unread or bool(found.text)
        found.text = " ".join(part for part in told if isinstance(part, str))
        found.pictures = [part for part in told if isinstance(part, bytes)]
    if not found.pictures:
        found.pictures = [part for part in found.said if isinstance(part, bytes)][-1:]
    if not found.said:
        raise bad("the input holds neither text nor a picture", "input")
    return found


def draws(service: Service, body: s.ResponseRequest, given: Input) -> bool:
    """Whether an input is answered with a picture.

    Where the choice is free, a question about a picture and a text of nothing that the model knows
    are answered in words.
    """
    if not body.tools or body.tool_choice == "none":
        return False
    if body.tool_choice not in (None, "auto") or body.tools[0].action != "auto":
        return True
    if given.pictures:
        return bool(given.text) and not given.text.rstrip().endswith("?")
    own = service.facts.vocabulary
    return own is None or bool(objects_in(own, given.text))


def response_job(service: Service, request: Request, response: str) -> Record:
    """The job of an answer.

    Raises:
        ApiError: 404 when there is none.
    """
    try:
        return service.jobs.get(request.state.owner, response.removeprefix(ANSWER))
    except ApiError:
        raise not_found(f"there is no answer '{response[:64]}'", "response_not_found") from None


async def _transcript(service: Service, record: Record) -> list[Told]:
    """What an earlier job was told and answered."""
    request = record.request
    given = request.parts or (*range(len(request.sources)), request.prompt)
    told: list[Told] = [
        part if isinstance(part, str) else await _load(service, request.sources[part])
        for part in given
    ]
    for made in record.parts:
        told.append(await _load(service, made["file"]) if "file" in made else made["text"])
    return [part for part in told if part]


async def _load(service: Service, name: str) -> bytes:
    return await run_in_threadpool(service.jobs.store.load, name)


async def _called(service: Service, request: Request, item: s.ImageCallItem) -> bytes:
    """A picture of an earlier answer."""
    if item.result:
        try:
            return await run_in_threadpool(base64.b64decode, item.result, None, True)
        except (binascii.Error, ValueError):
            raise bad("'result' does not hold valid base64", "input") from None
    record = response_job(service, request, item.id.removeprefix(CALL))
    made = [part["file"] for part in record.parts if "file" in part]
    if not made:
        raise not_found(f"'{item.id[:64]}' has no picture", "picture_not_found")
    return await _load(service, made[-1])


async def _content(service: Service, part: s.InputText | s.InputImage | s.OutputText) -> Told:
    if isinstance(part, s.InputImage):
        return await run_in_threadpool(bytes_of_uri, part.image_url, service.limits, "input")
    return part.text
