"""The page of the reference is the schema's."""

from __future__ import annotations

from pathlib import Path

from nextstep.recipe.reference import page, sections
from nextstep.recipe.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "recipes.md"


def test_page_is_up_to_date() -> None:
    told = "run `python -m nextstep.recipe.reference > docs/reference/recipes.md`"
    assert PAGE.read_text(encoding="utf-8") == page(), told


def test_every_key_is_described() -> None:
    for path, section in sections(Recipe):
        for name, field in section.model_fields.items():
            assert field.description, f"{path}.{name}"
