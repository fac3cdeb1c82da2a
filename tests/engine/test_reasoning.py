"""Reasoning before an edit: the line becomes the prompt, everywhere the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextstep.engine.chat.conversation import PictureTurn, TextTurn
from nextstep.engine.engine import Engine
from nextstep.engine.pretrained import Parts
from nextstep.engine.reproduce import replay
from nextstep.engine.request import Request
from nextstep.engine.results import GeneratedPicture
from nextstep.errors import NextStepError
from nextstep.pipeline import NextStepPipeline

LONGEST = 48
RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 16), "blue")


@pytest.fixture(autouse=True)
def short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never ends its line, and its bytes may take three times the room once read."""
    for module in ("reasoning", "conversation"):
        monkeypatch.setattr(f"nextstep.engine.chat.{module}.LONGEST", LONGEST)


def test_the_line_becomes_part_of_the_prompt(tiny_pipeline: NextStepPipeline) -> None:
    made = tiny_pipeline.edit(RED, ["make it blue", "two cats"], seed=4, reasoning=True)
    for picture, asked in zip(made, ["make it blue", "two cats"], strict=True):
        first, second = picture.settings["prompt"].split("\n")
        assert first == asked and second
        assert picture.settings["reasoning"] is False
        plain = tiny_pipeline.edit(RED, picture.settings["prompt"], seed=4)[0]
        apart = np.asarray(plain.image).astype(int) - np.asarray(picture.image)
        assert np.abs(apart).max() <= 1
        assert replay(tiny_pipeline, picture.settings, [RED]).png() == plain.png()


def test_it_is_what_the_model_writes_at_that_place(tiny_pipeline: NextStepPipeline) -> None:
    wish = "<image_1> like <image_0>"
    made = tiny_pipeline.edit([RED, BLUE], wish, height=32, width=32, reasoning=True)[0]
    told = tiny_pipeline.conversation()
    told.read(BLUE, " like ", RED, "\n")
    (event,) = told.engine.run([told.text_sequence(TextTurn(LONGEST, pictures=True))])
    written = tiny_pipeline.text_tokenizer.decode(list(event.ids))
    assert made.settings["prompt"] == f"{wish}\n" + " ".join(written.split())


def test_engine_and_pipeline_reason_alike(
    tiny_parts: Parts, tiny_pipeline: NextStepPipeline
) -> None:
    engine = Engine.of_parts(tiny_parts)
    request = engine.request("make it blue", [RED], seed=4, reasoning=True)
    (event,) = engine.wait([engine.submit(request)])
    assert event.request is not None
    assert event.request.settings.reasoning is False
    made = tiny_pipeline.edit(RED, "make it blue", seed=4, reasoning=True)[0]
    assert event.request.prompt == made.settings["prompt"]
    requests = [
        tiny_pipeline.request(text, [image], height=32, width=32, reasoning=True)
        for text, image in (("make it blue", RED), ("two cats", BLUE))
    ]
    assert tiny_pipeline.run(requests)[0].settings["prompt"] == event.request.prompt


def test_others_are_drawn_while_a_request_reasons(tiny_parts: Parts) -> None:
    engine = Engine.of_parts(tiny_parts)
    thinking = engine.submit(engine.request("make it blue", [RED], reasoning=True))
    plain = engine.submit(engine.request("two cats"))
    events = engine.run_until_idle()
    kinds = [(e.ticket, e.kind) for e in events]
    assert kinds.index((plain, "finished")) < kinds.index((thinking, "finished"))
    written = [e for e in events if e.ticket == thinking and e.ids]
    assert written and not any(len(event.tokens) for event in written)


def test_what_can_never_be_drawn_is_refused_before_anything_is_written(tiny_parts: Parts) -> None:
    engine = Engine.of_parts(tiny_parts)
    request = engine.request("word " * 300, [RED], reasoning=True)
    with pytest.raises(NextStepError, match="shorten the prompt"):
        engine.submit(request)
    assert engine.idle


def test_turns_of_edits_reason_too(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a conversation, alone and side by side, the first turn is the pipeline's edit."""
    # so that there is room for two
    for module in ("chat.reasoning", "chat.conversation"):
        monkeypatch.setattr(f"nextstep.engine.{module}.LONGEST", 12)
    edited = tiny_pipeline.edit(RED, "make it blue", seed=3, reasoning=True)[0]
    told = tiny_pipeline.conversation(seed=3, reasoning=True)
    told.read(RED)
    first, second = told.edit("make it blue"), told.edit("two cats")
    apart = np.asarray(first.image).astype(int) - np.asarray(edited.image)
    assert np.abs(apart).max() <= 1
    assert first.settings["prompt"] == f"<image>{edited.settings['prompt']}"
    lines = second.settings["prompt"].split("<image>")
    assert lines[:2] == ["", edited.settings["prompt"]]
    assert lines[2].startswith("two cats\n") and len(lines[2]) > 9
    told = tiny_pipeline.conversation(seed=3, reasoning=False)
    told.read(RED)
    assert told.edit("make it blue").settings["prompt"] == "<image>make it blue"
    assert first.settings["reasoning"] is False
    with pytest.raises(NextStepError, match="no picture yet"):
        tiny_pipeline.conversation().edit("make it blue")

    own = tiny_pipeline.defaults
    thinking = replace(own, edit=own.edit.with_values(reasoning=True))
    monkeypatch.setattr(tiny_pipeline, "defaults", thinking)
    together = tiny_pipeline.conversations([3, 4])
    together.read(0, RED)
    together.read(1, BLUE)
    size = first.image.height, first.image.width
    together.read_prompts({0: "make it blue", 1: "a dog"}, size)
    made = together.take_turns({0: PictureTurn(*size), 1: PictureTurn(*size)})
    assert np.abs(np.asarray(made[0]).astype(int) - np.asarray(first.image)).max() <= 1
    together.read_prompts({0: "two cats"}, size)
    assert "".join(together.each[0].transcript.said) == second.settings["prompt"]


def test_an_answer_comes_without_the_line_about_the_picture(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, own = tiny_pipeline.text_tokenizer, tiny_pipeline.defaults
    written = [*tokenizer.encode("dog left, blue background\nyes"), tokenizer.ids.eos]

    def script(*_: object) -> Callable[[Tensor], int]:
        ids = list(written)
        return lambda logits: ids.pop(0)

    monkeypatch.setattr("nextstep.engine.chat.conversation.text_choice", script)
    question = "Is there a dog?"
    plain = tiny_pipeline.read(RED, question)
    assert plain == "dog left, blue background\nyes"
    monkeypatch.setattr(tiny_pipeline, "defaults", replace(own, reasoning_before_answers=True))
    # The line does not use up what the answer may take.
    assert tiny_pipeline.read(RED, question, max_tokens=2) == "yes"
    told = tiny_pipeline.conversation()
    told.read(RED)
    told.read_question(question)
    assert told.fork().write() == told.write() == "yes"
    assert told.transcript.said == ["<image>", f"{question}\n", "dog left, blue background\nyes"]
    for without in (tiny_pipeline.conversation(), tiny_pipeline.conversation(think=False)):
        if "think" in without.changes:
            without.read(RED)
        without.read_question(question)
        assert without.transcript.said[-1] == question
    together = tiny_pipeline.conversations([1])
    together.read(0, RED)
    together.read_question(0, question)
    assert together.take_turns({0: TextTurn(8)}) == {0: "yes"}


def test_no_thought_where_there_is_no_room(tiny_pipeline: NextStepPipeline) -> None:
    most, text = tiny_pipeline.model.config.max_position_embeddings, "a"
    while len(tiny_pipeline.text_tokenizer.encode(text)) < most - 28:
        text += " a"
    made = tiny_pipeline.edit(RED, text, reasoning=True)[0]
    assert made.settings["prompt"] == text
    told = tiny_pipeline.conversation(reasoning=True)
    told.read(RED)
    assert told.edit(text).settings["prompt"] == f"<image>{text}"


def test_a_positive_prompt_has_its_room(tiny_pipeline: NextStepPipeline) -> None:
    most, text = tiny_pipeline.model.config.max_position_embeddings, "a"
    while len(tiny_pipeline.text_tokenizer.encode(text)) < most - 90:
        text += " a"
    behind = "b " * 20
    made = tiny_pipeline.edit(RED, text, reasoning=True, positive_prompt=behind)[0]
    assert made.settings["prompt"].startswith(text)


def test_an_edit_that_failed_leaves_nothing_behind(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tiny_pipeline.conversation(seed=2, reasoning=True)
    told.read(RED)
    ids, said = [*told.transcript.ids], [*told.transcript.said]
    with monkeypatch.context() as patch:
        patch.setattr(told, "draw", lambda *_: (_ for _ in ()).throw(NextStepError("no")))
        with pytest.raises(NextStepError, match="no"):
            told.edit("make it blue")
    assert (told.transcript.ids, told.transcript.said) == (ids, said)
    edited = tiny_pipeline.edit(RED, "make it blue", seed=2, reasoning=True)[0]
    assert told.edit("make it blue").settings["prompt"] == f"<image>{edited.settings['prompt']}"


def test_what_is_written_names_no_picture(
    tiny_pipeline: NextStepPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(tiny_pipeline.text_tokenizer), "decode", lambda *_: "<image> a\nred <image_1>  thing"
    )
    made = tiny_pipeline.edit(RED, "make it blue", reasoning=True)[0]
    assert made.settings["prompt"] == "make it blue\na red thing"


def test_drawings_reason_too(tiny_parts: Parts, tiny_pipeline: NextStepPipeline) -> None:
    asked = ["a red apple", "two cats <image>"]
    made = tiny_pipeline.generate(asked, seed=4, reasoning=True)
    for picture, prompt in zip(made, asked, strict=True):
        first, second = picture.settings["prompt"].split("\n")
        assert first == prompt and second
        assert picture.settings["reasoning"] is False
        plain = tiny_pipeline.generate(picture.settings["prompt"], seed=4)[0]
        apart = np.asarray(plain.image).astype(int) - np.asarray(picture.image)
        assert np.abs(apart).max() <= 1
    engine = Engine.of_parts(tiny_parts)
    (event,) = engine.wait([engine.submit(engine.request(asked[0], seed=4, reasoning=True))])
    assert event.request is not None
    assert event.request.prompt == made[0].settings["prompt"]
    assert tiny_pipeline.generate(asked[0], seed=4)[0].settings["prompt"] == asked[0]


def test_pictures_of_earlier_versions_are_made_again(tiny_pipeline: NextStepPipeline) -> None:
    made = tiny_pipeline.generate("two cats", seed=8)[0]
    old = {
        k: v
        for k, v in made.settings.items()
        if k not in ("jacobi_window", "jacobi_tolerance", "reasoning")
    }
    assert replay(tiny_pipeline, old).png() == made.png()


def test_a_picture_that_looked_ahead_is_made_again(tiny_pipeline: NextStepPipeline) -> None:
    made: GeneratedPicture = tiny_pipeline.generate(
        "two cats", seed=8, jacobi_window=3, jacobi_tolerance=0.5
    )[0]
    again = replay(tiny_pipeline, made.settings)
    assert np.array_equal(np.asarray(again.image), np.asarray(made.image))


def sampled_tokens(pipeline: NextStepPipeline, request: Request) -> tuple[Tensor, int]:
    """Tokens of a picture, and how many of them were sampled."""
    engine = pipeline.engine()
    (event,) = engine.wait([engine.submit(request)])
    job = request.sequence(pipeline.text_tokenizer, 2**20)
    tokens = event.tokens
    return tokens, len(tokens) if job.given is None else int(job.given.sampled.sum())


def test_an_edit_keeps_all_tokens_outside_of_the_region_that_its_line_names(
    tiny_pipeline: NextStepPipeline,
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    source = Image.fromarray(noise)
    kept = tiny_pipeline.request("x\na; change rows 1-2 columns 2-2; b", [source], seed=2)
    everything = tiny_pipeline.request("x\na; change all; b", [source], seed=2)
    rows, columns = kept.grid
    assert (rows, columns) == (2, 2)
    tokens, sampled = sampled_tokens(tiny_pipeline, kept)
    assert sampled == 2
    inside = [1, 3]
    outside = [place for place in range(rows * columns) if place not in inside]
    assert torch.equal(tokens[outside], kept.sources[0].tokens[outside])
    assert not torch.equal(tokens[inside], kept.sources[0].tokens[inside])
    assert sampled_tokens(tiny_pipeline, everything)[1] == rows * columns
    instruction = tiny_pipeline.request("change rows 1-2 columns 2-2", [source], seed=2)
    assert instruction.given is None, "a person's own words are no line"


def test_turns_keep_what_their_lines_leave(tiny_pipeline: NextStepPipeline) -> None:
    told = tiny_pipeline.conversation(seed=3)
    told.read(RED)
    told.edit("x\na; change rows 1-1 columns 1-2; b", 32, 32)
    first, second = told.transcript.pictures
    assert torch.equal(first.tokens[2:], second.tokens[2:])
    assert not torch.equal(first.tokens[:2], second.tokens[:2])
    told.edit("y", 32, 32)
    assert not torch.equal(told.transcript.pictures[2].tokens[2:], second.tokens[2:])


def test_the_next_state_is_reasoned_about(tiny_pipeline: NextStepPipeline) -> None:
    made = tiny_pipeline.next_state(RED, "it grows", seed=3, reasoning=True)
    edited = tiny_pipeline.edit(RED, "it grows", seed=3, reasoning=True)[0]
    assert made.settings["prompt"] == f"<image>{edited.settings['prompt']}"
    told = tiny_pipeline.conversation(seed=3, reasoning=True)
    drawn = told.draw_from("a dog", 32, 32)
    assert drawn.settings["prompt"].startswith("a dog\n"), "without a picture before it too"
