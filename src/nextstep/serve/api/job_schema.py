"""Requests and answers of the service's own job endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nextstep.serve.api.schema import PROMPT, ImageContent, Sampling, Seed, Size, TextContent

Place = Annotated[int, Field(ge=0, le=1000)]


class JobBody(Sampling):
    """POST /jobs: pictures from `prompt`, or a story that goes on from `parts`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "fox, flat style, white background", "n": 2, "seed": 7},
                {"parts": [{"type": "text", "text": "A cat finds an apple."}], "max_images": 2},
            ]
        }
    )

    prompt: Annotated[str, Field(max_length=PROMPT)] | None = None
    images: Annotated[
        list[str],
        Field(
            max_length=16,
            description="Data URIs of sources: the job is an edit.",
            default_factory=list,
        ),
    ]
    mask: (
        Annotated[
            str,
            Field(description="Data URI of a picture of the first source's size; where it is "
                  "transparent the source may change, all else stays as it is."),
        ]
        | None
    ) = None  # fmt: skip
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Size | None = None
    seed: Seed | None = None
    parts: (
        Annotated[
            list[TextContent | ImageContent],
            Field(min_length=1, max_length=64, description="Text and pictures of a story in order, "
                  "instead of `prompt`."),
        ]
        | None
    ) = None  # fmt: skip
    draw: Annotated[
        bool, Field(description="A story begins with a picture, without text before it.")
    ] = False
    max_images: Annotated[
        int, Field(ge=0, le=8, description="Most pictures of a story; 0 is text alone.")
    ] = 1
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.9

    @model_validator(mode="after")
    def _one_kind(self) -> JobBody:
        if (self.prompt is None) == (self.parts is None):
            raise ValueError("give either 'prompt' or 'parts'")
        if self.parts is not None and (self.images or self.mask or self.n != 1):
            raise ValueError("'images', 'mask' and 'n' belong to 'prompt', not to 'parts'")
        if self.mask is not None and not self.images:
            raise ValueError("a mask needs the picture that it belongs to, in 'images'")
        return self


class Change(Sampling):
    """What a picture that goes on from another one changes; all else stays as it was."""

    picture: Annotated[Place, Field(description="Which of the job's pictures.")] = 0
    prompt: Annotated[str, Field(max_length=PROMPT)] | None = None
    seed: Seed | None = None


class ForkBody(Change):
    """POST /jobs/ID/fork."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"row": 4, "seed": 8}]})

    row: Annotated[Place, Field(description="Rows of image tokens that are kept.")]


class ResampleBody(Change):
    """POST /jobs/ID/resample: exactly one of `rows`, `tokens` and `mask`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"rows": [2, 4]}, {"tokens": [10, 11, 18, 19], "seed": 8}]}
    )

    rows: (
        Annotated[
            list[Place],
            Field(min_length=2, max_length=2, description="First row, and the row after the last."),
        ]
        | None
    ) = None
    tokens: (
        Annotated[
            list[Annotated[int, Field(ge=0, le=1_000_000)]],
            Field(min_length=1, max_length=65_536, description="Image tokens in raster order."),
        ]
        | None
    ) = None
    mask: (
        Annotated[
            str,
            Field(description="Data URI of a picture of this one's size; its transparent pixels "
                  "are drawn anew."),
        ]
        | None
    ) = None  # fmt: skip

    @model_validator(mode="after")
    def _one_region(self) -> ResampleBody:
        if [self.rows, self.tokens, self.mask].count(None) != 2:
            raise ValueError("give exactly one of 'rows', 'tokens' and 'mask'")
        return self


class PictureAnswer(BaseModel):
    """Where a job's picture is, and what made it."""

    url: str
    settings: dict[str, Any]


class PartAnswer(BaseModel):
    """One part of a story: a text, or a picture."""

    type: Literal["text", "picture"]
    text: str | None = None
    url: str | None = None
    settings: dict[str, Any] | None = None


class StoryAnswer(BaseModel):
    """What a story was asked to go on from, and how."""

    given: list[PartAnswer]
    draw: bool
    max_images: int
    max_tokens: int
    temperature: float
    top_p: float


class Parent(BaseModel):
    """What a job goes on from."""

    kind: Literal["fork", "resample"]
    job: str
    picture: int
    row: int | None = None


class JobAnswer(BaseModel):
    """A job as it stands."""

    id: str
    object: Literal["job"]
    task: Literal["generate", "edit", "chat"]
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    position: int | None
    created: float
    started: float | None
    finished: float | None
    prompt: str
    prompt_given: str | None
    warnings: list[str]
    endpoint: Annotated[
        str, Field(description="Where it was asked for: studio, jobs, images, chat or responses.")
    ]
    seed: int
    n: int
    size: str | None
    settings: dict[str, Any]
    parent: Parent | None
    sources: list[str]
    mask: str | None
    error: str | None
    text: str
    story: StoryAnswer | None
    pictures: list[PictureAnswer]
    parts: list[PartAnswer]


class JobList(BaseModel):
    """An owner's jobs, the newest first."""

    object: Literal["list"]
    data: list[JobAnswer]


class TokensAnswer(BaseModel):
    """What each image token of a picture tells about itself; lists are in raster order."""

    rows: int
    columns: int
    tokens: int
    noise_samples: int
    token_std: list[float]
    guidance_delta: list[float]
    guidance: list[float]
    head_calls: list[int]
    fixed: list[bool]
