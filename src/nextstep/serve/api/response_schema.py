"""Requests of OpenAI's Responses endpoint."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nextstep.serve.api.schema import (
    PROMPT,
    WITHOUT_EFFECT,
    Form,
    Sampling,
    Seed,
    Size,
    Strict,
)
from nextstep.serve.problems import RESPONSE_ID

MOST_PARTS = 64
"""Messages of an input, and parts of a message."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False, None), "context_management": ([], None), "conversation": (None,),
    "include": ([], None), "moderation": (None,), "prompt": (None,), "reasoning": ({}, None),
    "text": ({"format": {"type": "text"}}, {}, None), "top_logprobs": (0, None),
    "truncation": ("auto", "disabled", None),
}  # fmt: skip
"""OpenAI's fields that are taken with a value that changes nothing, and refused with any other."""


class Echo(BaseModel):
    """What an earlier answer held: fields that do not matter here are left out."""

    model_config = ConfigDict(extra="ignore", strict=True)


class InputText(Strict):
    """Text of a message."""

    type: Literal["input_text"]
    text: Annotated[str, Field(max_length=PROMPT)]


class InputImage(Strict):
    """A picture of a message, as a data URI."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["low", "high", "auto", "original"] | None = None


class OutputText(Echo):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: Annotated[str, Field(max_length=PROMPT)]


Content = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]


class MessageItem(Echo):
    """One message; a text stands for a list with that text."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[Content], Field(max_length=MOST_PARTS)]

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("content"), str):
            text = {"type": "input_text", "text": raw["content"]}
            return {**raw, "content": [text]}
        return raw


class ImageCallItem(Echo):
    """A picture of an earlier answer: base64 in `result`, or an answer's `id` alone."""

    type: Literal["image_generation_call"]
    id: str = ""
    result: str | None = None


class Mask(Strict):
    """Where a picture may change: transparent, as a data URI."""

    image_url: str


class ImageTool(Strict):
    """Draws a picture, or edits the pictures of the input."""

    type: Literal["image_generation"]
    action: Literal["generate", "edit", "auto"] = "auto"
    background: Literal["opaque", "auto"] | None = None
    complexity: Literal["low", "medium", "high"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    input_image_mask: Mask | None = None
    model: str | None = None
    moderation: Literal["auto", "low"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    output_format: Form = "png"
    partial_images: Annotated[int, Field(ge=0, le=3)] = 0
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto"] | None = None
    size: Size | None = None


class ToolChoice(Strict):
    """The tool by its name."""

    type: Literal["image_generation"]


class ResponseStreamOptions(Strict):
    """Taken for compatibility."""

    include_obfuscation: bool | None = None


class ResponseRequest(Sampling):
    """POST /v1/responses."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "red apple, noto style, white background",
                 "tools": [{"type": "image_generation"}]}
            ]
        }
    )  # fmt: skip

    ignored: ClassVar[frozenset[str]] = WITHOUT_EFFECT - {"store"} | {
        "parallel_tool_calls", "prompt_cache_options", "user",
    }  # fmt: skip

    input: Annotated[
        list[Annotated[MessageItem | ImageCallItem, Field(discriminator="type")]],
        Field(min_length=1, max_length=MOST_PARTS, description="Messages and pictures of earlier "
              "answers; a text stands for one message."),
    ]  # fmt: skip
    model: str | None = None
    instructions: Annotated[str, Field(max_length=PROMPT)] | None = None
    previous_response_id: Annotated[str, Field(pattern=RESPONSE_ID)] | None = None
    tools: Annotated[list[ImageTool], Field(max_length=1, default_factory=list)]
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: Annotated[
        bool | None, Field(description="False: the answer is forgotten once it is sent.")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, raw: Any) -> Any:
        """Without the fields whose value changes nothing; the input as a list of items."""
        if not isinstance(raw, dict):
            return raw
        kept = {n: v for n, v in raw.items() if n not in NEUTRAL or v not in NEUTRAL[n]}
        given = kept.get("input")
        if isinstance(given, str):
            given = [{"role": "user", "content": given}]
        if isinstance(given, list):
            kept["input"] = [
                {"type": "message", **item} if isinstance(item, dict) else item for item in given
            ]
        return kept

    @model_validator(mode="after")
    def _has_the_tool(self) -> ResponseRequest:
        wanted = self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)
        if wanted and not self.tools:
            raise ValueError("'tool_choice' names a tool that 'tools' does not hold")
        return self
