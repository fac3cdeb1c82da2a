"""What all sections of a recipe have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _known(value: dict[str, Any]) -> dict[str, Any]:
    """The same settings; refused where one is unknown or out of range."""
    from nextstep.engine.settings import GenerationSettings

    try:
        GenerationSettings().with_values(**value)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return value


ChangedSettings = Annotated[dict[str, Any], AfterValidator(_known)]
"""Generation settings that differ from the model's own."""


class Section(BaseModel):
    """A part of a recipe: every key is known, no value is bent into another type.

    The text below a field is its description in the reference.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )
