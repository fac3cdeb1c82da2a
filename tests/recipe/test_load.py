"""Recipe files: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nextstep.recipe.load import (
    RECIPES,
    RecipeError,
    apply_override,
    check_recipe,
    load_recipe,
    merged,
    parse_yaml,
)

MINIMAL = """
stage: pretrain
steps: 10
model: {size: nano}
image_tokenizer: nano
text_tokenizer: nano
optimizer: {learning_rate: 1e-3}
data:
  sources:
    - {world: singles}
    - {shards: data/pairs, kind: image_text}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    return path


def test_a_minimal_recipe_is_read(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.data.sources[0].world is not None
    assert recipe.data.shares == {"singles": 0.5, "pairs": 0.5}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("data.sources[1].weigth=1", "data.sources[1].weigth: unknown key; did you mean weight?"),
        ("data.colour=1", "data.colour: unknown key; known are sources, mix"),
        ("steps=many", "steps: must be an integer, not 'many'"),
        ("steps=1.5", "steps: must be an integer, not 1.5"),
        ("steps=0", "steps: must be greater than or equal to 1, not 0"),
        ("compile=1", "compile: must be true or false, not 1"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate: must be a number, not 'fast'"),
        ("optimizer=null", "optimizer: must be a mapping, not None"),
        ("optimizer={}", "optimizer.learning_rate: is missing"),
        (
            "stage=dream",
            "stage: must be 'tokenizer', 'pretrain', 'anneal', 'sft', 'dpo', 'rl' or 'distill', "
            "not 'dream'",
        ),
        ("model.size=huge", "model.size: there is no size 'huge'; choose from nano"),
        ("model.overrides={depth: 3}", "model.overrides.depth: there is no such field of a model"),
        ("model.overrides={vocab_size: x}", "model.overrides.vocab_size: must be int, not 'x'"),
        ("model={}", "model: it needs a 'size', a 'folder' or a 'language_model'"),
        ("model={folder: a, language_model: b}", "model: 'folder' and 'language_model' are two"),
        ("model=null", "the pretrain stage needs a 'model' section"),
        ("image_tokenizer=null", "'image_tokenizer' is missing"),
        ("text_tokenizer=null", "'text_tokenizer' or 'train_text_tokenizer' is missing"),
        ("train_text_tokenizer={}", "'text_tokenizer' and 'train_text_tokenizer' exclude"),
        ("tokenizer={}", "'tokenizer' is for the tokenizer stage, not for pretrain"),
        ("stage=tokenizer", "the tokenizer stage has no 'model'; leave it out"),
        ("data.sources=[]", "data.sources: needs at least 1 item(s)"),
        ("data.sources[0].shards=x", "data.sources[0]: a source is one of 'shards', 'world'"),
        ("data.sources=[{pictures: x}]", "data.sources[0].pictures: are for the tokenizer stage"),
        ("data.sources[1].templates=[hello]", "data.sources[1]: the template 'hello' lacks"),
        ("data.sources=[{world: a}, {world: a}]", "data: two sources are called 'a'"),
        ("data.areas=[100]", "data: a picture of 100x100 pixels is not a whole number"),
        ("data.row_length=200", "data: a picture of 256x256 pixels is not a whole number"),
        ("data.micro_batch_rows=3", "data: 1 rows cannot be dealt out in micro-batches of 3"),
        ("schedule.decay=3", "schedule: 'decay' is for warmup-stable-decay"),
        ("schedule.warmup=11", "schedule: warm-up (11) and decay (0) are longer than 10 steps"),
        ("saving.milestones=[11]", "saving.milestones: 11 lies behind the last step 10"),
        ("ema=1.0", "ema: must be less than 1, not 1.0"),
        ("parallel={ranks: 6, replicas: 4}", "parallel: 6 ranks cannot hold 4 equal replicas"),
        ("published.tokens=lots", "published.tokens: must be a number with K, M, B or T"),
        (
            "samples={prompts: [a], every: 1, height: 60, width: 64}",
            "samples.height: must be a multiple of 16, not 60",
        ),
        (
            "samples={prompts: [a], every: 1, height: 64, width: 64, settings: {speed: 1}}",
            "samples.settings: unknown setting 'speed'",
        ),
    ],
)
def test_complaints_are_one_sentence_with_a_path(
    recipe_file: Path, change: str, sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [change])
    message = str(caught.value)
    assert message.startswith(f"{recipe_file}: {sentence}"), message
    assert "\n" not in message


def test_of_several_mistakes_one_is_reported_and_the_rest_counted(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"\(and 1 more\)$"):
        load_recipe(recipe_file, ["steps=0", "seed=x"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("steps", "'steps' changes nothing; write key.path=value"),
        ("=3", "'=3' changes nothing"),
        ("data.sources[7].weight=2", "'7' is none of the 2 items there"),
        ("steps.more=2", "'steps' is a value, no section"),
        ("model.size={", "model.size={ line 1"),
    ],
)
def test_bad_overrides(recipe_file: Path, change: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [change])
    assert sentence in str(caught.value)


def test_overrides_reach_lists_and_sections_that_were_not_there(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file, ["data.sources[1].weight=3", "data.sources.0.name=a", "schedule.warmup=2"]
    )
    assert recipe.data.shares == {"a": 0.25, "pairs": 0.75}
    assert recipe.schedule.warmup == 2


def test_extends_lays_one_file_over_another(recipe_file: Path) -> None:
    other = recipe_file.with_name("y.yaml")
    other.write_text("extends: x.yaml\nsteps: 20\ndata: {rows: 4}\ntext_tokenizer: null\n"
                     "train_text_tokenizer: {}\n")  # fmt: skip
    recipe = load_recipe(other)
    assert (recipe.steps, recipe.data.rows, recipe.text_tokenizer) == (20, 4, None)
    assert len(recipe.data.sources) == 2


def test_a_shipped_recipe_is_extended_from_any_folder(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: pretrain-nano.yaml\nseed: 7\n")
    ground = load_recipe(RECIPES / "pretrain-nano.yaml")
    assert load_recipe(mine) == ground.model_copy(update={"seed": 7})
    (tmp_path / "pretrain-nano.yaml").write_text("steps: 5\n")  # one beside it goes first
    with pytest.raises(RecipeError, match="stage"):
        load_recipe(mine)


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {base}.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read: No such file"),
        ("- 1", "a recipe is a mapping of keys to values"),
        ("steps: 1\nsteps: 2", "line 2: the key 'steps' is given twice"),
        ("a: [1", "line 1"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("extends: 3", "extends: must be the name of a .yaml file, not 3"),
        (b"\xff\xfe\xfd", "is not UTF-8 text"),
    ],
)
def test_bad_files(tmp_path: Path, text: str | bytes | None, sentence: str) -> None:
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.5E3", 1500.0), ("200_000", 200000), ("-3", -3), (".5", 0.5),
        ("1.", 1.0), ("no", "no"), ("on", "on"), ("true", True), ("null", None), ("~", None),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"), ("0o17", "0o17"), ("e5", "e5"), ("+", "+"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_in_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(plain)
def test_what_is_written_as_yaml_is_read_again(value: object) -> None:
    # Quoted by PyYAML's own (1.1) rules, which quote more than 1.2 needs; floats as JSON has them.
    assert parse_yaml(yaml.safe_dump(value), "here") == value


@given(plain, plain)
def test_laying_over(base: object, over: object) -> None:
    base, over = {"a": base, "b": 1}, {"a": over}
    result = merged(base, over)
    assert result["b"] == 1
    assert merged(result, over) == result
    if not isinstance(over["a"], dict):
        assert result["a"] == over["a"]


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=4), st.integers())
def test_an_override_sets_just_its_value(path: list[str], value: int) -> None:
    raw: dict = {"zzzz": {"kept": 1}}
    apply_override(raw, f"{'.'.join(path)}={value}")
    here: object = raw
    for step in path:
        here = here[step]  # type: ignore[index]
    assert here == value
    assert raw["zzzz"] == {"kept": 1}


def test_a_checked_recipe_survives_being_written_down(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert check_recipe(recipe.model_dump(mode="json"), "again") == recipe
