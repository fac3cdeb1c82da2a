"""Live sources by name: what `data.sources[n].world` may say.

A live source is a class whose first argument is the text tokenizer and whose others are the options
a recipe gives; for the tokenizer stage, a function that makes crops.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from nextstep.recipe.load import RecipeError

if TYPE_CHECKING:
    from nextstep.data.steps import MakeCrop
    from nextstep.recipe.data_schema import SourceSettings
    from nextstep.text.tokenizer import TextTokenizer

SOURCES: dict[str, str] = {
    "singles": "nextstep.world.singles_source:Singles",
    "single-edits": "nextstep.world.singles_source:SingleEdits",
    "world": "nextstep.world.live:WorldSource",
}
"""Name -> class of documents."""
CROPS: dict[str, str] = {
    "drawings": "nextstep.world.crop_source:drawn_crops",
    "scenes": "nextstep.world.crop_source:scene_crops",
}
"""Name -> maker of crops for the tokenizer stage: called with `size` and the options."""


def live_class(settings: SourceSettings, where: str) -> Any:
    """The class of a live source, its options checked against what it takes.

    Raises:
        RecipeError: for an unknown name or option.
    """
    return _found(settings, SOURCES, where, given=1)


def open_live(settings: SourceSettings, tokenizer: TextTokenizer, where: str) -> Any:
    """A live source of documents.

    Raises:
        RecipeError: for an unknown name, option or value.
    """
    assert settings.world is not None
    kind = live_class(settings, where)
    return _called(kind, where, tokenizer, name=settings.title, **settings.world.options)


def open_live_crops(settings: SourceSettings, size: int, where: str) -> MakeCrop:
    """A live maker of crops.

    Raises:
        RecipeError: for an unknown name, option or value.
    """
    assert settings.world is not None
    crops = _found(settings, CROPS, where, given=1)
    return _called(crops, where, size, **settings.world.options)


def _found(settings: SourceSettings, table: dict[str, str], where: str, given: int) -> Any:
    world = settings.world
    assert world is not None
    if world.name not in table:
        raise RecipeError(
            f"{where}.world: there is no live source '{world.name}' for this stage; choose from "
            f"{', '.join(table)}"
        )
    module, _, name = table[world.name].partition(":")
    found = getattr(importlib.import_module(module), name)
    known = [p for p in list(inspect.signature(found).parameters)[given:] if p != "name"]
    for option in world.options:
        if option not in known:
            raise RecipeError(
                f"{where}.world.options.{option}: '{world.name}' takes {', '.join(known)}"
            )
    return found


def _called(crops: Any, where: str, *given: Any, **options: Any) -> Any:
    try:
        return crops(*given, **options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}.world: {error}") from None
