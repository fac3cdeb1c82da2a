"""The sequence grammar: layouts, labels, prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextstep.text import sequence as grammar
from nextstep.text.sequence import IGNORE, Picture, Text, build_sequence
from nextstep.text.tokenizer import TextTokenizer


def shown(sequence: grammar.Sequence, tokenizer: TextTokenizer) -> list[str]:
    return [tokenizer.backend.id_to_token(i) for i in sequence.ids]


def test_text_to_image_layout(text_tokenizer: TextTokenizer) -> None:
    s = build_sequence(grammar.text_to_image("a red apple", (2, 3)), text_tokenizer)
    caption = text_tokenizer.encode("a red apple")
    block = [
        "<|image_area|>", "2", "*", "3", "<|begin_of_image|>",
        *["<|image_placeholder|>"] * 6, "<|end_of_image|>",
    ]  # fmt: skip
    assert s.ids[: len(caption)] == caption
    assert shown(s, text_tokenizer)[len(caption) :] == [*block, "<|endoftext|>"]
    # Trained: caption, area tag, size, end of image. Not: begin, places, end of text after it.
    start = len(caption)
    assert s.labels[: start + 4] == s.ids[: start + 4]
    assert s.labels[start + 4 : start + 11] == [IGNORE] * 7
    assert s.labels[start + 11] == s.ids[start + 11]
    assert s.labels[start + 12] == IGNORE
    assert [(i.start, i.grid, i.trained) for i in s.images] == [(start + 5, (2, 3), True)]


def test_end_of_text_is_trained_after_text(text_tokenizer: TextTokenizer) -> None:
    for parts in (grammar.caption_after_image("two cats", (1, 1)), grammar.text_only("two cats")):
        s = build_sequence(parts, text_tokenizer)
        assert s.labels[-1] == s.ids[-1] == text_tokenizer.ids.eos


def test_sizes_split_into_digits(text_tokenizer: TextTokenizer) -> None:
    s = build_sequence([Picture((16, 12))], text_tokenizer, end=False)
    assert shown(s, text_tokenizer)[1:6] == ["1", "6", "*", "1", "2"]


def test_editing_places_sources_and_trains_only_the_target() -> None:
    parts = grammar.editing("put <image_1> into <image_0> now", [(1, 1), (2, 2)], (3, 3))
    assert parts == [
        Text("put "),
        Picture((2, 2), trained=False),
        Text(" into "),
        Picture((1, 1), trained=False),
        Text(" now"),
        Picture((3, 3)),
    ]
    assert grammar.picture_order("put <image_1> into <image_0>", 2) == [1, 0]


def test_untagged_sources_come_first() -> None:
    parts = grammar.editing("make it red", [(1, 1), (2, 2)], (1, 1))
    assert parts[:3] == [Picture((1, 1), False), Picture((2, 2), False), Text("make it red")]
    assert grammar.picture_order("make it red", 2) == [0, 1]


@pytest.mark.parametrize(
    ("text", "count"),
    [("<image> and <image>", 1), ("<image_1>", 1), ("<image_0><image_0>", 2), ("<image_9>", 2)],
)
def test_tags_must_match_pictures(text: str, count: int) -> None:
    with pytest.raises(ValueError, match="every picture needs one"):
        grammar.editing(text, [(1, 1)] * count, (1, 1))


def test_interleaved_trains_every_picture() -> None:
    parts = grammar.interleaved("one <image_0> two <image_1> end", [(1, 1), (2, 2)])
    assert [p.trained for p in parts if isinstance(p, Picture)] == [True, True]
    assert [p.text for p in parts if isinstance(p, Text)] == ["one ", " two ", " end"]


def test_branches() -> None:
    parts = grammar.editing("<image> red", [(1, 1)], (2, 2))
    assert grammar.without_text(parts, "bad") == [parts[0], Text("bad"), parts[-1]]
    assert grammar.without_text(parts, "") == [parts[0], parts[-1]]
    assert grammar.without_text_and_pictures(parts, "bad") == [Text("bad"), parts[-1]]


part = st.one_of(
    st.builds(Text, st.text(max_size=12), st.booleans()),
    st.builds(Picture, st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans()),
)


@given(st.lists(part, max_size=6))
def test_any_sequence_is_consistent(text_tokenizer: TextTokenizer, parts: list) -> None:
    special = text_tokenizer.ids
    s = build_sequence(parts, text_tokenizer)
    assert len(s.ids) == len(s.labels)
    assert all(label in (IGNORE, i) for i, label in zip(s.ids, s.labels, strict=True))
    places = [i for i, token in enumerate(s.ids) if token == special.image_placeholder]
    spans = [p for span in s.images for p in range(span.start, span.start + span.count)]
    assert places == spans
    for span in s.images:
        assert s.ids[span.start - 1] == special.begin_of_image
        assert s.ids[span.start + span.count] == special.end_of_image


@given(st.lists(part, max_size=4), st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_prompt_is_a_prefix_of_the_trained_sequence(
    text_tokenizer: TextTokenizer, parts: list, grid: tuple[int, int]
) -> None:
    whole = build_sequence([*parts, Picture(grid)], text_tokenizer)
    prompt = whole.prompt()
    assert whole.ids[: len(prompt)] == prompt.ids
    assert prompt.ids[-1] == text_tokenizer.ids.begin_of_image
    assert whole.ids[len(prompt)] == text_tokenizer.ids.image_placeholder
    assert prompt.images == whole.images[:-1]


def test_nothing_to_generate(text_tokenizer: TextTokenizer) -> None:
    with pytest.raises(ValueError, match="no picture to generate"):
        build_sequence([Text("words")], text_tokenizer).prompt()
