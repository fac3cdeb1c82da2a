"""The page docs/reference/recipes.md, written from the schema so that it cannot fall behind.

python -m nextstep.recipe.reference > docs/reference/recipes.md
"""

from __future__ import annotations

import json
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from nextstep.recipe.schema import Recipe
from nextstep.recipe.section import Section

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

INTRODUCTION = """# Recipes

<!-- Written by `python -m nextstep.recipe.reference`; a test holds it equal to the schema. -->

A recipe is a YAML file that fully describes a training run. Every key is checked before anything
loads: an unknown key, a wrong type or an impossible combination is refused with its path.
`nextstep train RECIPE` and `nextstep plan RECIPE` take single values changed on the command line as
`key.path=value`, e.g. `data.sources[1].weight=2`.

`extends: other.yaml` lays a file over another one, beside it or shipped: mappings key by key,
everything else replaced; `null` takes a value away. Scalars are read as in YAML 1.2, so `1e-4` is a
number and `no` is text. Folders are looked for from where the command runs.
"""


def page() -> str:
    """The whole page."""
    out = [INTRODUCTION]
    for path, section in sections(Recipe):
        title = f"`{path}`" if path else "The recipe"
        text = " ".join((section.__doc__ or "").split())
        out += [f"## {title}", text, "", "| key | value | default | meaning |", "|---|---|---|---|"]
        out += [
            f"| `{name}` | {_kind(field.annotation)} | {_default(field)} | {_text(field)} |"
            for name, field in section.model_fields.items()
        ]
        out.append("")
    return "\n".join(out)


def sections(root: type[Section], path: str = "") -> list[tuple[str, type[Section]]]:
    """A section and all that lie in it, each with the path to it."""
    found = [(path, root)]
    for name, field in root.model_fields.items():
        inner, many = _section_in(field.annotation)
        if inner is not None:
            found += sections(inner, f"{path}{'.' if path else ''}{name}{'[]' if many else ''}")
    return found


def _section_in(annotation: Any) -> tuple[type[Section] | None, bool]:
    """(the section class in an annotation, whether it is in a list)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, False
    for part in get_args(annotation):
        inner, _ = _section_in(part)
        if inner is not None:
            return inner, get_origin(annotation) is list
    return None, False


WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any value"}


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        said = _kind(inside[0])
    elif origin is Literal:
        said = ", ".join(f"`{choice}`" for choice in inside)
    elif origin is list:
        said = f"list of {_plural(_kind(inside[0]))}"
    elif origin is dict:
        said = f"mapping to {_plural(_kind(inside[1]))}"
    elif origin in (typing.Union, types.UnionType):
        said = " or ".join(_kind(part) for part in inside if part is not type(None))
    else:
        said = WORDS.get(annotation, "section")
    return said


def _plural(word: str) -> str:
    return {"text": "texts", "any value": "any values"}.get(word, f"{word}s")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, Section):
        return "see below"
    return f"`{json.dumps(value)}`"


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
