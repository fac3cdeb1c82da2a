"""Turns: earlier ones cost nothing again, and pictures depend on what stands before them alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nextstep.engine.chat.conversation import PictureTurn, TextTurn
from nextstep.engine.results import GeneratedPicture
from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline
from tests.test_pipeline import difference, picture


def test_a_turn_is_the_edit_of_the_pipeline(tiny_pipeline: NextStepPipeline) -> None:
    source = picture()
    edited = tiny_pipeline.edit(source, "make it blue", seed=3)[0]
    turned = tiny_pipeline.next_state(source, "make it blue", seed=3)
    assert difference(edited.image, turned.image) <= 1
    assert turned.settings["sources"] == edited.settings["sources"]


def test_turns_add_up(tiny_pipeline: NextStepPipeline) -> None:
    """Two turns in one conversation: the second reads the first one's picture and the action."""
    told = tiny_pipeline.conversation(seed=1)
    told.read(picture(), "the cat moves right")
    first = told.draw()
    told.read("and back")
    second = told.draw()
    assert (first.settings["index"], second.settings["index"]) == (0, 1)
    assert second.settings["prompt"] == "<image>the cat moves right<image>and back"
    assert len(second.settings["sources"]) == 2
    reread = tiny_pipeline.conversation(seed=1)
    reread.read(picture(), "the cat moves right")
    reread.read(told.transcript.pictures[1])
    reread.read("and back")
    reread.drawn = 1
    assert difference(reread.draw().image, second.image) <= 1


def test_a_fork_continues_alone(tiny_pipeline: NextStepPipeline) -> None:
    told = tiny_pipeline.conversation(seed=1)
    told.read("a red apple")
    other = told.fork(seed=2)
    same = told.fork()
    one = told.draw().image
    assert difference(one, same.draw().image) == 0
    assert difference(one, other.draw().image) > 0


def test_a_story_goes_on_until_its_pictures_are_drawn(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = tiny_pipeline.text_tokenizer.ids
    words = tiny_pipeline.text_tokenizer.encode("two cats")
    script = iter([*words, special.image_area] * 2 + [*words, special.eos])
    monkeypatch.setattr("nextstep.engine.text_sampling.greedy", lambda logits: next(script))
    parts = tiny_pipeline.story("once", picture(), max_pictures=5)
    assert [type(part) for part in parts] == [str, GeneratedPicture] * 2 + [str]
    assert parts[0] == "two cats"


def test_reading_answers_in_text(tiny_pipeline: NextStepPipeline) -> None:
    one = tiny_pipeline.read(picture(), "what is it?", max_tokens=5)
    assert one == tiny_pipeline.read([picture()], "what is it?", max_tokens=5)
    assert isinstance(tiny_pipeline.read([picture(0), picture(1)], max_tokens=3), str)


def test_drawn_text_is_the_seeds(tiny_pipeline: NextStepPipeline) -> None:
    def text(seed: int) -> str:
        told = tiny_pipeline.conversation(seed)
        told.read("a")
        return told.write(20, temperature=5.0, top_p=1.0)

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(5)}) > 1


def test_wrong_values_are_refused_before_anything_is_read(tiny_pipeline: NextStepPipeline) -> None:
    with pytest.raises(ValueError, match="unknown setting 'guidence'"):
        tiny_pipeline.conversation(guidence=3)
    with pytest.raises(ValueError, match="unknown solver"):
        tiny_pipeline.conversation(solver="magic")
    told = tiny_pipeline.conversation()
    with pytest.raises(NextStepError, match="read a text or a picture first"):
        told.write()
    told.read("a")
    with pytest.raises(NextStepError, match="temperature"):
        told.write(temperature=-1)


def test_preview_grows(tiny_pipeline: NextStepPipeline) -> None:
    seen: list[Image.Image] = []
    told = tiny_pipeline.conversation()
    told.read("a")
    told.draw(on_progress=lambda progress: seen.extend(progress.preview()))
    assert len(seen) == 4
    assert not np.array_equal(np.asarray(seen[0]), np.asarray(seen[-1]))


def test_conversations_side_by_side_are_those_alone(tiny_pipeline: NextStepPipeline) -> None:
    """Equal to one conversation after another, and byte by byte in any batch."""
    together = tiny_pipeline.conversations([1, 2, 3])
    together.read(0, picture(), "the cat moves right")
    together.read(1, "a red apple")
    together.read(2, picture(), "how many?")
    first = together.take_turns({0: PictureTurn(32, 32), 2: TextTurn(4)})
    together.read(0, "and back")
    second = together.take_turns({1: PictureTurn(32, 32), 0: PictureTurn(32, 32)})
    assert list(second) == [1, 0]

    one = tiny_pipeline.conversation(seed=1)
    one.read(picture(), "the cat moves right")
    assert difference(one.draw(32, 32).image, first[0]) <= 1
    one.read("and back")
    assert difference(one.draw(32, 32).image, second[0]) <= 1
    reader = tiny_pipeline.conversation(seed=3)
    reader.read(picture(), "how many?")
    assert reader.write(4) == first[2]

    alone = tiny_pipeline.conversations([1])
    alone.read(0, picture(), "the cat moves right")
    alone.take_turns({0: PictureTurn(32, 32)})
    alone.read(0, "and back")
    assert difference(alone.take_turns({0: PictureTurn(32, 32)})[0], second[0]) == 0


def test_a_conversation_that_becomes_too_long_is_refused(tiny_pipeline: NextStepPipeline) -> None:
    together = tiny_pipeline.conversations([1])
    together.read(0, "word " * tiny_pipeline.model.config.max_position_embeddings)
    with pytest.raises(NextStepError, match="reads at most"):
        together.take_turns({0: PictureTurn(32, 32)})


def test_text_never_holds_parts_of_a_picture(tiny_pipeline: NextStepPipeline) -> None:
    special = tiny_pipeline.text_tokenizer.ids
    told = tiny_pipeline.conversation(seed=3)
    told.read("two")
    (event,) = told.engine.run([told.text_sequence(TextTurn(200, temperature=50.0, top_p=1.0))])
    parts = {special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder}
    assert event.ids
    assert not (parts | {special.image_area, special.eos}) & set(event.ids)


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(
    tiny_pipeline: NextStepPipeline,
) -> None:
    told = tiny_pipeline.conversation()
    told.read("a red apple")
    ids = [*told.transcript.ids]
    with pytest.raises(ValueError, match="too large"):
        told.draw(1024, 1024)
    assert (told.transcript.ids, told.transcript.pictures, told.drawn) == (ids, [], 0)


def test_the_positive_prompt_stands_before_pictures_of_stories(
    tiny_pipeline: NextStepPipeline,
) -> None:
    """As behind a prompt, and not behind the next part of the story."""
    told = tiny_pipeline.conversation(seed=1, positive_prompt="two cats")
    told.read("a red apple")
    plain = tiny_pipeline.conversation(seed=1)
    plain.read("a red apple", " two cats")
    assert difference(told.draw().image, plain.draw().image) == 0
    assert told.transcript.said == ["a red apple", "<image>"]
