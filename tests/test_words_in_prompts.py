"""Every door puts prompts into the model's words, warns about others, and records the change."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from PIL import Image

from nextstep.engine.metadata import read_record
from nextstep.engine.pretrained import Parts, load_parts, save_parts
from nextstep.engine.reproduce import replay
from nextstep.model.adapter_config import AdapterConfig
from nextstep.model.lora import add_adapter, save_adapter, taken_adapter
from nextstep.pipeline import NextStepPipeline
from nextstep.text.introduction import check_conversation, objects_in
from nextstep.text.vocabulary import PromptWarning, Vocabulary
from nextstep.world.words import pictured, world_vocabulary
from tests.cli.test_commands import nextstep

TEAL = "this model was not taught the background 'teal'; nearest is 'green'"


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return pictured(world_vocabulary())


@pytest.fixture(scope="module")
def worded_folder(
    tiny_parts: Parts, words: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "worded"
    save_parts(tiny_parts._replace(vocabulary=words), folder)
    return folder


@pytest.fixture(scope="module")
def worded(worded_folder: Path) -> NextStepPipeline:
    return NextStepPipeline.from_pretrained(worded_folder)


def test_folder_keeps_its_words_and_pictures(
    worded_folder: Path, worded: NextStepPipeline, words: Vocabulary, tmp_path: Path
) -> None:
    assert load_parts(worded_folder).vocabulary == words
    worded.save_pretrained(tmp_path / "again")
    assert load_parts(tmp_path / "again").vocabulary == words


def test_prompt_is_drawn_in_the_models_words_and_the_change_is_recorded(
    worded: NextStepPipeline, tiny_pipeline: NextStepPipeline
) -> None:
    made = worded.generate(["Cat, NOTO style", "cat face, noto style"], num_images=2, seed=3)
    plain = tiny_pipeline.generate("cat face, noto style", num_images=2, seed=3)
    for place, picture in enumerate(made):
        assert picture.settings["prompt"] == "cat face, noto style"
        assert picture.image.tobytes() == plain[place % 2].image.tobytes()
    given = [picture.settings.get("prompt_given") for picture in made]
    assert given == ["Cat, NOTO style"] * 2 + [None] * 2


def test_instruction_is_read_in_the_models_words(worded: NextStepPipeline) -> None:
    source = Image.new("RGB", (32, 32), "red")
    (made,) = worded.edit(source, "Make The Background GREY", reasoning=False)
    assert made.settings["prompt"] == "make the background gray"
    assert made.settings["prompt_given"] == "Make The Background GREY"


def test_unknown_words_warn_in_python(worded: NextStepPipeline) -> None:
    with pytest.warns(PromptWarning, match="not taught the background 'teal'"):
        worded.generate("fox, flat style, teal background")
    with pytest.warns(PromptWarning, match="prompt is empty"):
        worded.generate("")


def test_models_without_a_list_take_any_prompt(tiny_pipeline: NextStepPipeline) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (made,) = tiny_pipeline.generate("Una Manzana, TEAL background")
    assert made.settings["prompt"] == "Una Manzana, TEAL background"
    assert "prompt_given" not in made.settings


def test_command_line_says_and_records_it(
    worded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "a.png"
    with pytest.warns(PromptWarning) as said:
        status, _, _ = nextstep(
            capsys, "generate", "Fox, teal background", "-m", worded_folder, "-o", path
        )
    told = [str(one.message) for one in said if one.category is PromptWarning]
    assert (status, told) == (0, [TEAL])
    record = read_record(path)
    assert record["prompt"] == "fox, teal background"
    assert record["prompt_given"] == "Fox, teal background"
    status, said, _ = nextstep(capsys, "info", worded_folder, "--words")
    assert status == 0
    for told in (
        "144 names",
        "cat face  (cat, cats",
        "styles: noto, twemoji",
        "backgrounds: white",
    ):
        assert told in said
    status, said, _ = nextstep(capsys, "info", worded_folder, "--words", "--json")
    assert next(iter(json.loads(said)["names"])) == "grinning face"


def test_pictures_are_made_again_from_the_prompt_that_was_drawn(
    worded: NextStepPipeline, tiny_pipeline: NextStepPipeline
) -> None:
    (before,) = tiny_pipeline.generate("Red Apple", seed=2)  # made before there was a list
    again = replay(worded, before.settings)
    assert again.image.tobytes() == before.image.tobytes()
    (made,) = worded.generate("Red Apple", seed=2)
    assert replay(worded, made.settings).image.tobytes() == made.image.tobytes()


def test_an_adapter_turns_the_list_off(worded_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="no peft: pip install 'open-nextstep[train]'")
    parts = load_parts(worded_folder)
    add_adapter(parts.model, AdapterConfig(2))
    save_adapter(taken_adapter(parts.model), tmp_path / "own", parts.model_hash)
    pipeline = NextStepPipeline.from_pretrained(worded_folder, adapter=tmp_path / "own")
    assert pipeline.vocabulary is None


def test_conversation_of_nothing_known_says_what_the_model_can_do() -> None:
    own = Vocabulary({"red apple": ("apple",), "cat face": ("cat",)}, {"flat": ()}, {},
                     words=frozenset(["finds", "how", "many"]))  # fmt: skip
    assert objects_in(own, "A cat finds two APPLES, no red apple.") == [
        "cat face", "red apple", "red apple"
    ]  # fmt: skip
    with pytest.warns(PromptWarning, match="draws, edits and reads pictures"):
        check_conversation(own, ["Hello, who are you?"])
    with pytest.warns(PromptWarning, match="was not taught 'zebras'"):
        check_conversation(own, [object(), "how many zebras?"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_conversation(own, ["cat finds apple"])
        check_conversation(own, [object(), ""])
        check_conversation(None, ["Hello, who are you?"])
