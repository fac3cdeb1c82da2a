"""Requests and answers as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nextstep.serve.problems import SIZE
from nextstep.utils import old_names

PROMPT = 32_000
SEEDS = 2**53 - 1
"""The largest whole number that every reader of JSON keeps exactly."""
Finite = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Size = Annotated[
    str,
    Field(
        pattern=SIZE,
        description="WIDTHxHEIGHT in pixels, multiples of an image token's 16; or auto.",
    ),
]
Seed = Annotated[
    int, Field(ge=0, le=SEEDS, description="Picture i depends on (seed, i); drawn if not given.")
]
Form = Literal["png", "jpeg", "webp"]


class Strict(BaseModel):
    """Unknown fields and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


SYNONYMS = {"num_inference_steps": "steps", "guidance_scale": "guidance", **old_names.SETTINGS}
"""Names that other programs and earlier versions use for settings."""
WITHOUT_EFFECT = frozenset(
    "metadata prompt_cache_key prompt_cache_retention safety_identifier service_tier store".split()
)
"""OpenAI's fields that change no answer, here as there: they are ignored."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, 0.0, None), "presence_penalty": (0, 0.0, None),
    "logit_bias": ({}, None), "logprobs": (False, None), "top_logprobs": (0, None),
    "response_format": ({"type": "text"}, None), "tools": ([], None),
    "tool_choice": ("none", "auto", None), "parallel_tool_calls": (True, False, None),
}  # fmt: skip
"""OpenAI's fields of a chat that are taken with the value that changes nothing, and refused with
any other."""


class Sampling(Strict):
    """How tokens are sampled; the model's own values where nothing is said. Not OpenAI's."""

    ignored: ClassVar[frozenset[str]] = WITHOUT_EFFECT

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, raw: Any) -> Any:
        """Synonyms under our names, and fields without an effect left out."""
        if not isinstance(raw, dict):
            return raw
        kept = {name: value for name, value in raw.items() if name not in cls.ignored}
        return old_names.renamed(kept, SYNONYMS)

    guidance: Finite | None = None
    image_guidance: Finite | None = None
    schedule: Literal["constant", "linear", "linear-rising"] | None = None
    solver: (
        Literal[
            "v1", "v1.1", "sde", "cps", "ode", "midpoint", "heun", "ab2", "multistep", "flow_map"
        ]
        | None
    ) = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    final_token_steps: Annotated[int, Field(ge=0, le=1000)] | None = None
    shift: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    noise_level: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    noise_scale: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    token_norm: bool | None = None
    jacobi_window: Annotated[int, Field(ge=1, le=64)] | None = None
    jacobi_tolerance: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    reasoning: bool | None = None
    positive_prompt: Annotated[str, Field(max_length=PROMPT)] | None = None
    negative_prompt: Annotated[str, Field(max_length=PROMPT)] | None = None
    mask_feather: (
        Annotated[
            int,
            Field(ge=0, le=256, description="Pixels over which an edit inside a mask grows from "
                  "the mask's border inwards."),
        ]
        | None
    ) = None  # fmt: skip

    def changes(self) -> dict[str, Any]:
        """The settings that were given."""
        values = {name: getattr(self, name) for name in Sampling.model_fields}
        return {name: value for name, value in values.items() if value is not None}


class ImageOptions(Sampling):
    """What generations and edits share."""

    prompt: Annotated[str, Field(max_length=PROMPT)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Size | None = None
    seed: Seed | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Form | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    background: Literal["opaque", "auto"] | None = None
    quality: (
        Annotated[
            Literal["low", "medium", "high", "standard", "hd", "auto"],
            Field(description="Taken for compatibility; `steps` decides."),
        ]
        | None
    ) = None
    user: str | None = None


class GenerationRequest(ImageOptions):
    """POST /v1/images/generations."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "red apple, noto style, white background", "size": "128x128", "seed": 1}
            ]
        }
    )

    moderation: Literal["low", "auto"] | None = None
    style: Literal["vivid", "natural"] | None = None


class EditRequest(ImageOptions):
    """The text fields of POST /v1/images/edits."""

    # A form has strings only.
    model_config = ConfigDict(extra="forbid", strict=False)

    input_fidelity: Literal["high", "low"] | None = None

    @field_validator("stream", "token_norm", "reasoning", mode="before")
    @classmethod
    def _plain_truth(cls, value: Any) -> Any:
        """Only the words that OpenAI's forms use."""
        if value not in ("true", "false"):
            raise ValueError("give true or false")
        return value


Stop = Annotated[str, Field(min_length=1, max_length=200)]
"""A text before which an answer ends."""


class TextContent(Strict):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=PROMPT)]


class ImageUrl(Strict):
    """A picture as a data URI."""

    url: str
    detail: Literal["low", "high", "auto"] | None = None


class ImageContent(Strict):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Strict):
    """One message; the model reads all of them in order as one sequence."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[str, Field(max_length=PROMPT)]
        | Annotated[list[TextContent | ImageContent], Field(max_length=64)]
    )
    name: str | None = None


class StreamOptions(Strict):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions.

    Fields of OpenAI's that would change the answer and are not known here are refused; those that
    change nothing, and others with the value that changes nothing, are ignored.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "A cat finds an apple."}]}]
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    modalities: (
        Annotated[
            list[Literal["text", "image"]],
            Field(min_length=1, max_length=2, description="With image, the model may draw. "
                  "Default: text when there are pictures to read, else both."),
        ]
        | None
    ) = None  # fmt: skip
    max_images: Annotated[int, Field(ge=1, le=8, description="Most pictures drawn.")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, raw: Any) -> Any:
        """Without the fields whose value changes nothing."""
        if not isinstance(raw, dict):
            return raw
        return {n: v for n, v in raw.items() if n not in NEUTRAL or v not in NEUTRAL[n]}

    @property
    def stops(self) -> list[str]:
        """All stop texts."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error's body."""

    error: ErrorDetail


class InputDetails(BaseModel):
    """Tokens read, by kind."""

    text_tokens: int
    image_tokens: int


class ImageUsage(BaseModel):
    """Tokens of a picture request."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails


class ImageData(BaseModel):
    """One picture; `settings` makes it again."""

    b64_json: str | None = None
    url: Annotated[
        str | None, Field(description="With response_format=url; fetched with the same API key.")
    ] = None
    settings: dict[str, Any]


class ImagesAnswer(BaseModel):
    """Pictures."""

    created: int
    data: list[ImageData]
    background: str
    output_format: str
    quality: str
    size: str
    usage: ImageUsage
    warnings: Annotated[
        list[str], Field(description="What the prompt holds that the model was not taught.")
    ]


class ModelCard(BaseModel):
    """A model that is served: usual size in pixels, settings, limits, and what computes."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    height: int
    width: int
    sizes: str
    token_pixels: int
    hash: str
    defaults: dict[str, dict[str, Any]]
    most_side: int | None
    most_pixels: int
    most_steps: int
    runtime: dict[str, Any]
    adapter: dict[str, Any]
    vocabulary: Annotated[
        dict[str, Any] | None,
        Field(
            description="What it draws by name: names with other words for them, styles, "
            "backgrounds, examples, notes on tasks, and the address of a sheet of pictures."
        ),
    ]


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Alive."""

    status: str
    version: str
