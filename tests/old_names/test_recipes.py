"""Recipes, changes and run folders with the keys of earlier versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nextstep.recipe.load import RecipeError, check_recipe, load_recipe
from nextstep.recipe.schema import Recipe
from nextstep.utils.old_names import RECIPE, renamed_key

OLD = """
stage: pretrain
steps: 10
model: {size: nano}
image_tokenizer: nano
text_tokenizer: nano
optimizer: {learning_rate: 1e-3}
checkpointing: true
data:
  sources: [{world: singles}]
  rows: 4
  rows_per_micro: 2
  probabilities:
    {caption_after: 0.1, drop_of_two: 0.4, drop_of_three: 0.5, first_of_three: 0.6}
"""


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def test_a_recipe_with_old_keys_says_the_same(old_file: Path) -> None:
    recipe = load_recipe(old_file)
    assert recipe.activation_checkpointing is True
    assert recipe.data.micro_batch_rows == 2
    chances = recipe.data.probabilities
    assert (chances.caption_last_prob, chances.drop_source_prob) == (0.1, 0.4)
    assert (chances.drop_one_source_prob, chances.drop_first_source_prob) == (0.5, 0.6)
    assert check_recipe(yaml.safe_load(OLD.replace("1e-3", "1.0e-3")), "again") == recipe


def test_changes_and_extending_recipes_may_mix_both_names(old_file: Path, tmp_path: Path) -> None:
    changes = ["data.rows_per_micro=1", "data.probabilities.drop_source_prob=0.0"]
    recipe = load_recipe(old_file, [*changes, "checkpointing=false"])
    assert recipe.data.micro_batch_rows == 1 and not recipe.activation_checkpointing
    assert recipe.data.probabilities.drop_source_prob == 0
    over = tmp_path / "over.yaml"
    over.write_text("extends: old.yaml\ndata: {micro_batch_rows: 4}\n")
    assert load_recipe(over, ["data.rows_per_micro=1"]).data.micro_batch_rows == 1
    assert load_recipe(over).data.micro_batch_rows == 4


@pytest.mark.parametrize("path", RECIPE)
def test_old_and_new_key_together_are_refused(path: str, tmp_path: Path) -> None:
    *places, old = path.split(".")
    raw: dict = {old: 1, RECIPE[path]: 1}
    for place in reversed(places):
        raw = {place: raw}
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError, match=f"{path}: is called '{RECIPE[path]}' now"):
        load_recipe(file)


def test_every_new_key_is_in_the_schema_and_no_old_one_is() -> None:
    for path in RECIPE:
        *places, old = path.split(".")
        section = Recipe
        for place in places:
            section = section.model_fields[place].annotation  # type: ignore[assignment]
        assert renamed_key(path).split(".")[-1] in section.model_fields
        assert old not in section.model_fields
