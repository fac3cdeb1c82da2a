"""Thinking before an edit: the line that is written becomes the prompt, everywhere the same one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nextstep.engine.chat.reasoning import LONGEST, Edit, think
from nextstep.engine.engine import Engine
from nextstep.engine.reproduce import replay
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.session import ReadPicture, Session
from nextstep.errors import NextStepError
from nextstep.model.pretrained import Parts
from nextstep.pipeline import NextStepPipeline

RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 16), "blue")


def test_the_line_becomes_part_of_the_prompt(tiny_pipeline: NextStepPipeline) -> None:
    made = tiny_pipeline.edit(RED, ["make it blue", "two cats"], seed=4, think=True)
    for picture, asked in zip(made, ["make it blue", "two cats"], strict=True):
        first, second = picture.settings["prompt"].split("\n")
        assert first == asked and second
        assert picture.settings["think"] is False
        plain = tiny_pipeline.edit(RED, picture.settings["prompt"], seed=4)[0]
        apart = np.asarray(plain.image).astype(int) - np.asarray(picture.image)
        assert np.abs(apart).max() <= 1
        assert replay(tiny_pipeline, picture.settings, [RED]).png() == plain.png()


def test_it_is_what_a_session_writes(tiny_pipeline: NextStepPipeline) -> None:
    parts = tiny_pipeline
    sources = [parts.encode_picture(RED), parts.encode_picture(BLUE)]
    settings = parts.defaults.edit.with_values(think=True)
    edit = Edit(sources, "<image_1> like <image_0>")
    (text,), after = think(parts.model, parts.text_tokenizer, [edit], settings, (2, 2))
    assert after == settings.with_values(think=False)
    session = Session(parts.model, parts.text_tokenizer)
    session.read_picture(ReadPicture(*sources[1]))
    session.read_text(" like ")
    session.read_picture(ReadPicture(*sources[0]))
    session.read_text("\n")
    written = parts.text_tokenizer.decode(session.write_text(LONGEST).ids)
    assert text == "<image_1> like <image_0>\n" + " ".join(written.split())


def test_engine_and_pipeline_think_the_same(
    tiny_parts: Parts, tiny_pipeline: NextStepPipeline
) -> None:
    engine = Engine.of_parts(tiny_parts)
    request = engine.request("make it blue", [RED], seed=4, think=True)
    assert request.settings.think is False
    made = tiny_pipeline.edit(RED, "make it blue", seed=4, think=True)[0]
    assert request.prompt == made.settings["prompt"]
    each = tiny_pipeline.edit_each(
        [[RED], [BLUE]], ["make it blue", "two cats"], height=32, width=32, think=True
    )
    assert each[0].settings["prompt"] == request.prompt


def test_turns_of_edits_think_too(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a conversation, alone and side by side, the first turn is the pipeline's edit."""
    # so that there is room for two
    for module in ("chat.reasoning", "chat.conversation", "chat.conversations"):
        monkeypatch.setattr(f"nextstep.engine.{module}.LONGEST", 12)
    edited = tiny_pipeline.edit(RED, "make it blue", seed=3, think=True)[0]
    told = tiny_pipeline.conversation(seed=3, think=True)
    told.read(RED)
    first, second = told.edit("make it blue"), told.edit("two cats")
    apart = np.asarray(first.image).astype(int) - np.asarray(edited.image)
    assert np.abs(apart).max() <= 1
    assert first.settings["prompt"] == f"<image>{edited.settings['prompt']}"
    lines = second.settings["prompt"].split("<image>")
    assert lines[:2] == ["", edited.settings["prompt"]]
    assert lines[2].startswith("two cats\n") and len(lines[2]) > 9
    told = tiny_pipeline.conversation(seed=3, think=False)
    told.read(RED)
    assert told.edit("make it blue").settings["prompt"] == "<image>make it blue"
    assert first.settings["think"] is False
    with pytest.raises(NextStepError, match="no picture yet"):
        tiny_pipeline.conversation().edit("make it blue")
    with pytest.raises(NextStepError, match="no picture yet"):
        tiny_pipeline.conversations([1]).read_edits({0: "make it blue"}, (32, 32))

    own = tiny_pipeline.defaults
    thinking = replace(own, edit=own.edit.with_values(think=True))
    monkeypatch.setattr(tiny_pipeline, "defaults", thinking)
    together = tiny_pipeline.conversations([3, 4])
    together.read(0, RED)
    together.read(1, BLUE)
    size = first.image.height, first.image.width
    together.read_edits({0: "make it blue", 1: "a dog"}, size)
    made = together.take_turns({0: size, 1: size})
    assert np.abs(np.asarray(made[0]).astype(int) - np.asarray(first.image)).max() <= 1
    together.read_edits({0: "two cats"}, size)
    assert "".join(together.transcripts[0].said) == second.settings["prompt"]


def test_no_thought_where_there_is_no_room(tiny_pipeline: NextStepPipeline) -> None:
    most, text = tiny_pipeline.model.config.max_position_embeddings, "a"
    while len(tiny_pipeline.text_tokenizer.encode(text)) < most - 28:
        text += " a"
    made = tiny_pipeline.edit(RED, text, think=True)[0]
    assert made.settings["prompt"] == text
    told = tiny_pipeline.conversation(think=True)
    told.read(RED)
    assert told.edit(text).settings["prompt"] == f"<image>{text}"


def test_a_positive_prompt_has_its_room(tiny_pipeline: NextStepPipeline) -> None:
    most, text = tiny_pipeline.model.config.max_position_embeddings, "a"
    while len(tiny_pipeline.text_tokenizer.encode(text)) < most - 90:
        text += " a"
    behind = "b " * 20
    made = tiny_pipeline.edit(RED, text, think=True, positive_prompt=behind)[0]
    assert made.settings["prompt"].startswith(text)


def test_an_edit_that_failed_leaves_nothing_behind(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tiny_pipeline.conversation(seed=2, think=True)
    told.read(RED)
    length, said = len(told.session), [*told.said]
    with monkeypatch.context() as patch:
        patch.setattr(told.session, "draw", lambda *_: (_ for _ in ()).throw(NextStepError("no")))
        with pytest.raises(NextStepError, match="no"):
            told.edit("make it blue")
    assert (len(told.session), told.said) == (length, said)
    edited = tiny_pipeline.edit(RED, "make it blue", seed=2, think=True)[0]
    assert told.edit("make it blue").settings["prompt"] == f"<image>{edited.settings['prompt']}"


def test_what_is_written_names_no_picture(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(tiny_pipeline.text_tokenizer), "decode", lambda *_: "<image> a\nred <image_1>  thing"
    )
    made = tiny_pipeline.edit(RED, "make it blue", think=True)[0]
    assert made.settings["prompt"] == "make it blue\na red thing"


def test_drawings_think_too(tiny_parts: Parts, tiny_pipeline: NextStepPipeline) -> None:
    asked = ["a red apple", "two cats <image>"]
    made = tiny_pipeline.generate(asked, seed=4, think=True)
    for picture, prompt in zip(made, asked, strict=True):
        first, second = picture.settings["prompt"].split("\n")
        assert first == prompt and second
        assert picture.settings["think"] is False
        plain = tiny_pipeline.generate(picture.settings["prompt"], seed=4)[0]
        apart = np.asarray(plain.image).astype(int) - np.asarray(picture.image)
        assert np.abs(apart).max() <= 1
    request = Engine.of_parts(tiny_parts).request(asked[0], seed=4, think=True)
    assert request.prompt == made[0].settings["prompt"]
    assert tiny_pipeline.generate(asked[0], seed=4)[0].settings["prompt"] == asked[0]


def test_pictures_of_earlier_versions_are_made_again(tiny_pipeline: NextStepPipeline) -> None:
    made = tiny_pipeline.generate("two cats", seed=8)[0]
    old = {k: v for k, v in made.settings.items() if k not in ("lookahead", "tolerance", "think")}
    assert replay(tiny_pipeline, old).png() == made.png()


def test_a_picture_that_looked_ahead_is_made_again(tiny_pipeline: NextStepPipeline) -> None:
    made: GeneratedPicture = tiny_pipeline.generate("two cats", seed=8, lookahead=3, tolerance=0.5)[
        0
    ]
    again = replay(tiny_pipeline, made.settings)
    assert np.array_equal(np.asarray(again.image), np.asarray(made.image))
