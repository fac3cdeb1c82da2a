"""Prompts in the words of a model, and words that it was not taught."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.errors import ModelFileError
from nextstep.text.vocabulary import FILE, Vocabulary
from nextstep.utils.files import write_json
from nextstep.world.captions import CAPTIONS
from nextstep.world.lexicon import with_right_articles, world_objects
from nextstep.world.tasks import TASKS, examples
from nextstep.world.vocabulary import COLOURS, OBJECTS, STYLES
from nextstep.world.words import EMOJI, world_vocabulary

WORLD = world_vocabulary()
PROMPTS = {
    "Red Apple": "red apple",
    "RED APPLE": "red apple",
    "  a   red apple. ": "a red apple.",
    "car": "automobile",
    "Cars": "automobile",
    "puppy": "dog face",
    "puppies, 3D style": "dog face, 3d style",
    "cat": "cat face",
    "a cat in noto style on a grey background": "cat face, noto style, gray background",
    "the cats": "cat face",
    "draw me a picture of a kitten, flat style": "cat face, flat style",
    "flat fox": "fox, flat style",
    "Fox, 3-D style, Violet Background": "fox, 3d style, purple background",
    "mice": "mouse face",
    "strawberries": "strawberry",
    "christmas tree": "Christmas tree",
    "BLUE BACKGROUND, OWL": "owl, blue background",
    "police car": "police car",
}


@pytest.mark.parametrize(("given_prompt", "text"), PROMPTS.items())
def test_prompt_is_put_into_the_words_of_the_model(given_prompt: str, text: str) -> None:
    made = WORLD.prompt(given_prompt)
    assert (made.text, made.warnings) == (" ".join(text.split()), ())
    assert made.record() == ({} if made.text == given_prompt else {"prompt_given": given_prompt})


@pytest.mark.parametrize(("form", "share"), CAPTIONS)
def test_captions_of_the_training_stay_as_they_are(form: str, share: float) -> None:
    looks = itertools.cycle(itertools.product(STYLES, COLOURS))
    for name, (style, colour) in zip(OBJECTS, looks, strict=False):
        said = with_right_articles(form.format(name=name, style=style, colour=colour))
        made = WORLD.prompt(said)
        assert (made.text, made.warnings) == (said, ())


@pytest.mark.parametrize("split", ["train", "held_out_phrasings"])
def test_texts_of_every_task_stay_as_they_are(split: str) -> None:
    made = [
        one for task in TASKS if split in TASKS[task].splits or split == "train"
        for one in examples(task, split, 5, 3, "full", 8)
    ]  # fmt: skip
    own = world_vocabulary(names=tuple(world_objects()), texts=[one.text for one in made])
    for one in made:
        said = " ".join(one.text.split())
        assert own.instruction(said).text == said
        assert own.instruction(said).warnings == ()


def test_unknown_words_are_warned_about_with_the_nearest_ones() -> None:
    assert WORLD.prompt("rad aple").warnings == (
        "this model was not taught 'rad aple'; nearest: 'red apple'",
    )
    (said,) = WORLD.prompt("blue zebra").warnings
    assert said == "this model was not taught 'zebra'"
    (said,) = WORLD.prompt("fox, noto style, teal background").warnings
    assert said == "this model was not taught the background 'teal'; nearest is 'green'"
    (said,) = WORLD.prompt("fox, watercolour style").warnings
    assert said == (
        "this model was not taught the style 'watercolour'; it knows noto, twemoji, flat, 3d, mono"
    )
    assert WORLD.prompt("una manzana roja").warnings
    assert WORLD.prompt("红苹果").warnings
    assert WORLD.prompt("🦓🦓 © ").warnings == (
        "this model was not taught '🦓'", "this model was not taught '©'",
    )  # fmt: skip
    assert WORLD.instruction("make it 🦓").warnings == ("this model was not taught '🦓'",)
    assert WORLD.prompt("").warnings == ("the prompt is empty: the model draws anything",)
    assert WORLD.instruction("make it teal").warnings == (
        "this model was not taught 'teal'; the nearest colour is 'green'",
    )


def test_emoji_are_read_as_the_words_for_them() -> None:
    own = world_vocabulary(texts=["a dog, a cat, a fox and an owl, make the red heart blue, move"])
    for prompt, said in (
        ("🐶", "dog face"), ("a 🦊", "a fox"), ("🍎, noto style", "red apple, noto style"),
        ("🐶 and 🦊", "dog and fox"), ("🐶🦊🦉", "a dog, a fox and an owl"),
        ("❤️ on a blue background", "red heart on a blue background"), ("🐶, 🦊", "dog, fox"),
        ('a sign that says "🐶"', 'a sign that says "🐶"'), ("🌵 and ☃", "cactus and snowman"),
        ("🌙🍞", "a moon and a bread"),
    ):  # fmt: skip
        assert own.prompt(prompt).text == said
    assert own.instruction("Make the ❤️ blue.").text == "make the red heart blue."
    assert own.prompt("🐶🦊").record() == {"prompt_given": "🐶🦊"}
    assert own.prompt("🐶🦊").warnings == own.instruction("move the 🐶").warnings == ()


def test_every_emoji_of_the_core_means_its_own_name() -> None:
    assert [WORLD.name_of(EMOJI[name]) for name in OBJECTS] == list(OBJECTS)


def test_instructions_keep_what_is_to_be_written_on_a_sign() -> None:
    own = world_vocabulary(texts=['a sign that says "HOUSE"'])
    made = own.instruction('Make the sign say "FIRE", Background GREY')
    assert made.text == 'make the sign say "FIRE", background gray'
    assert made.warnings == ("this model was not taught 'say'",)


def test_lines_below_the_instruction_stay_as_they_are() -> None:
    made = WORLD.instruction("Make The Background GREY\n a Fox, Gray background; change ALL")
    assert made.text == "make the background gray\n a Fox, Gray background; change ALL"
    assert made.warnings == ()


@given(st.text(max_size=60) | st.lists(st.sampled_from(
    "a Red the apple apples cat puppy on in noto Style flat , . background teal grey two zebra 3d"
    ' "Sign" draw of 🐶 🍎️'.split()
), max_size=9).map(" ".join))  # fmt: skip
def test_reading_twice_changes_nothing_more(prompt: str) -> None:
    for read in (WORLD.prompt, WORLD.instruction):
        once = read(prompt)
        assert read(once.text).text == once.text
        assert read(once.text).warnings == once.warnings


def test_narrow_editions_know_their_own_words_alone() -> None:
    own = world_vocabulary(OBJECTS[:48], ("noto", "flat"), ("white", "blue"))
    assert len(own.names) == 48 and list(own.styles) == ["noto", "flat"]
    assert own.prompt("fox, 3d style").warnings == (
        "this model was not taught the style '3d'; it knows noto, flat",
    )
    assert own.prompt("pizza").warnings
    assert all(not own.prompt(example).warnings for example in own.examples)
    assert all(not own.instruction(example).warnings for example in own.edits)


def test_vocabulary_of_a_folder_is_what_was_written(tmp_path: Path) -> None:
    assert Vocabulary.of_folder(tmp_path) is None
    write_json(tmp_path / FILE, WORLD.to_dict())
    assert Vocabulary.of_folder(tmp_path) == WORLD


@pytest.mark.parametrize("change", [
    {"version": 2}, {"names": []}, {"names": {"fox": "vixen"}}, {"words": [1]},
    {"colours": {"red": {"rgb": [1, 2], "synonyms": []}}}, {"sheet": {"side": "x"}},
    {"notes": []},
])  # fmt: skip
def test_damaged_vocabulary_is_reported_in_one_sentence(
    change: dict[str, object], tmp_path: Path
) -> None:
    write_json(tmp_path / FILE, {**WORLD.to_dict(), **change})
    with pytest.raises(ModelFileError, match="is damaged"):
        Vocabulary.of_folder(tmp_path)
