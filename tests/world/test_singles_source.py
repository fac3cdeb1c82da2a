"""Single-object pictures as live sources."""

from __future__ import annotations

import numpy as np
import pytest

from nextstep.text.sequence import build_sequence, editing, with_reasoning
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world.descriptions import describe
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Background, Scene, SceneItem
from nextstep.world.singles_source import SingleEdits, Singles, trained_scenes
from nextstep.world.vocabulary import OBJECTS, is_held_out

TOKENIZER = TextTokenizer.train(["a red apple", "make it blue"], 300)


@pytest.mark.parametrize("kind", [Singles, SingleEdits])
def test_documents_are_pure_functions_of_index_and_seed(kind: type[Singles]) -> None:
    one, two = kind(TOKENIZER, 64), kind(TOKENIZER, 64)
    for index in (0, 7, len(one) - 1):
        a, b = one.document(index, 5), two.document(index, 5)
        assert a == b
        for left, right in zip(one.pictures(a), two.pictures(b), strict=True):
            assert np.array_equal(left, right)
    different = {tuple(one.document(3, seed).sequence.ids) for seed in range(20)}
    assert len(different) > 3


def test_a_caption_leads_to_its_picture() -> None:
    source = Singles(TOKENIZER, 64, no_caption=0)
    document = source.document(0, 0)
    (span,) = document.sequence.images
    assert (span.grid, span.trained, document.images) == ((4, 4), True, (0,))
    assert source.scenes[0][0] in TOKENIZER.decode(document.sequence.ids)
    (picture,) = source.pictures(document)
    assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)


def test_an_edit_trains_its_target_alone() -> None:
    source = SingleEdits(TOKENIZER, 64, no_caption=0)
    for index in range(10):
        document = source.document(index, 1)
        assert [span.trained for span in document.sequence.images] == [False, True]
        first, second = document.payload.scenes
        assert first == source.scenes[index]
        assert sum(a != b for a, b in zip(first, second, strict=True)) <= 1


def test_edits_ask_for_a_style_as_often_as_said() -> None:
    def styled(share: float) -> float:
        source = SingleEdits(TOKENIZER, 64, no_caption=0, style_share=share)
        scenes = [source.document(i, i).payload.scenes for i in range(300)]
        return sum(before[1] != after[1] for before, after in scenes) / 300

    assert styled(0) == 0
    assert 0.65 < styled(0.75) < 0.85
    assert styled(1) > 0.98, "another style than the one it has, where there is one"
    with pytest.raises(ValueError, match="style_share must be"):
        SingleEdits(TOKENIZER, 64, style_share=1.5)


def test_conditions_are_left_out_as_often_as_asked() -> None:
    source = SingleEdits(TOKENIZER, 64, no_caption=0.5)
    counts = [len(source.document(i, i).images) for i in range(400)]
    assert 0.15 < counts.count(1) / 400 < 0.35
    bare = Singles(TOKENIZER, 64, no_caption=1.0)
    assert TOKENIZER.decode(bare.document(0, 0).sequence.ids) == "4*4"


def test_held_out_pairs_are_never_shown() -> None:
    scenes = trained_scenes()
    assert len(set(scenes)) == len(scenes)
    assert not any(is_held_out(name, style) for name, style, _ in scenes)
    edits = SingleEdits(TOKENIZER, 64)
    for index in range(300):
        for name, style, _ in edits.document(index, 9).payload.scenes:
            assert not is_held_out(name, style)


def test_all_objects_by_label_and_by_everyday_word() -> None:
    source = Singles(TOKENIZER, 64, no_caption=0, core=False)
    assert {name for name, _, _ in source.scenes} == set(world_objects())
    assert {name for name, _, _ in Singles(TOKENIZER, 64).scenes} == set(OBJECTS)
    assert not any(is_held_out(name, style) for name, style, _ in source.scenes)
    dogs = [i for i, scene in enumerate(source.scenes) if scene[0] == "dog face"]
    said = [TOKENIZER.decode(source.document(i, s).sequence.ids) for i in dogs for s in range(10)]
    assert all("dog" in text for text in said)
    assert 0.5 < sum("dog face" in text for text in said) / len(said) < 0.8
    pairs = [i for i, scene in enumerate(source.scenes) if scene[0] == "scissors"]
    told = [TOKENIZER.decode(source.document(i, s).sequence.ids) for i in pairs for s in range(10)]
    assert any("a pair of scissors in" in text for text in told)
    assert not any("a scissors" in text for text in told)
    edits = SingleEdits(TOKENIZER, 64, core=False)
    assert edits.document(len(edits) - 1, 0).payload.scenes[0][0] not in OBJECTS


def test_texts_are_what_documents_say() -> None:
    texts = list(Singles(TOKENIZER, 64).texts())
    assert len(texts) > 1000
    assert any("background" in text for text in texts)


def test_a_side_that_is_no_whole_number_of_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16, not 60"):
        Singles(TOKENIZER, 60)


def test_lines_name_the_result_as_often_as_asked() -> None:
    source = SingleEdits(TOKENIZER, 64, no_caption=0, style_share=1, reasoning_prob=0.7)
    said = 0
    for index in range(300):
        document = source.document(index, index)
        told = TOKENIZER.decode(document.sequence.ids)
        before, after = (
            describe(Scene(Background(colour), (SceneItem(name, style),)))
            for name, style, colour in document.payload.scenes
        )
        said += f"\n{before}; change all; {after}" in told
    assert 0.6 < said / 300 < 0.8
    with pytest.raises(ValueError, match="reasoning_prob must be"):
        Singles(TOKENIZER, 64, reasoning_prob=-1)


def test_a_thought_is_the_prompt_that_drawing_is_given() -> None:
    """Trained ids of instruction and thought are those of the one text that sampling reads."""
    source = SingleEdits(TOKENIZER, 64, no_caption=0, reasoning_prob=1)
    for index in range(20):
        document = source.document(index, index)
        first, second = (span.start for span in document.sequence.images)
        behind = first + source.grid[0] * source.grid[1]
        whole = TOKENIZER.decode(document.sequence.ids[behind:second]).removesuffix("4*4")
        assert whole.count("\n") == 1
        parts = editing("<image>" + with_reasoning(*whole.split("\n")), [source.grid], source.grid)
        assert build_sequence(parts, TOKENIZER).ids == document.sequence.ids
