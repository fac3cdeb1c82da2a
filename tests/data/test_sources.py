"""Sources over a set of samples: documents of the four kinds, and their pictures."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nextstep.data.augment import Shares
from nextstep.data.documents import Document, SampleError
from nextstep.data.filters import Filters
from nextstep.data.sources import ShardSource, SourceOptions
from nextstep.errors import NextStepError
from nextstep.image.pictures import resize_and_crop
from nextstep.text import sequence as grammar
from nextstep.text.sequence import build_sequence
from nextstep.text.tokenizer import TextTokenizer
from tests.data.made_up import MadeUpEntry, MadeUpSet, captioned

SMALL = SourceOptions(areas=(64,), shares=Shares.none())
Size = tuple[int, int]


def one(caption: object, *sizes: Size, **numbers: float) -> MadeUpSet:
    captions = caption if isinstance(caption, dict) else {"caption": caption}
    return MadeUpSet("set", [MadeUpEntry("set/shard/key", captions, sizes, numbers)])


def drawn(source: ShardSource, index: int = 0, seed: int = 0) -> Document:
    document = source.document(index, seed)
    assert document is not None
    return document


def source_of(
    tokenizer: TextTokenizer, samples: MadeUpSet, kind: str, options: SourceOptions = SMALL
) -> ShardSource:
    return ShardSource(samples, kind, tokenizer, options)


def test_a_pair_is_the_released_template(text_tokenizer: TextTokenizer) -> None:
    source = source_of(text_tokenizer, one("a red apple", (300, 300)), "image_text")
    document = drawn(source, seed=5)
    expected = build_sequence(grammar.text_to_image("a red apple", (4, 4)), text_tokenizer)
    assert document.sequence == expected
    assert (document.key, document.images, document.seed) == ("set/shard/key", (0,), 5)
    assert source.samples.decoded == [], "planning decodes nothing"  # type: ignore[attr-defined]


def test_a_tag_in_a_caption_is_not_text(text_tokenizer: TextTokenizer) -> None:
    plain, tagged = (
        drawn(source_of(text_tokenizer, one(caption, (64, 64)), "image_text"))
        for caption in ("a red apple", "<image_0> a red apple")
    )
    assert tagged.sequence == plain.sequence


def test_caption_and_picture_change_places_and_conditions_are_left_out(
    text_tokenizer: TextTokenizer,
) -> None:
    options = replace(SMALL, drop_text_prob=0.3, drop_condition_prob=0.1)
    source = source_of(text_tokenizer, one("two cats", (64, 64)), "image_text", options)
    found = Counter(tuple(drawn(source, seed=seed).sequence.ids) for seed in range(4000))

    def times(parts: list[grammar.Part]) -> float:
        return found[tuple(build_sequence(parts, text_tokenizer).ids)] / 4000

    assert abs(times(grammar.text_to_image("two cats", (4, 4))) - 0.7 * 0.9) < 0.03
    assert abs(times(grammar.caption_after_image("two cats", (4, 4))) - 0.3 * 0.9) < 0.03
    assert abs(times([grammar.Picture((4, 4))]) - 0.1) < 0.02
    assert len(found) == 3


def test_templates_and_capitals(text_tokenizer: TextTokenizer) -> None:
    options = replace(SMALL, templates=("sticker of {caption}",), upper_first=1.0)
    source = source_of(text_tokenizer, one("a NASA Logo", (64, 64)), "image_text", options)
    document = drawn(source)
    start = document.sequence.images[0].start
    assert text_tokenizer.decode(document.sequence.ids[:start]).startswith("Sticker of a NASA Logo")


def test_edits_train_their_target_alone(text_tokenizer: TextTokenizer) -> None:
    samples = one("<image_0>make it blue<image_1>", (64, 64), (128, 64))
    document = drawn(source_of(text_tokenizer, samples, "image_to_image"))
    spans = document.sequence.images
    assert [span.trained for span in spans] == [False, True]
    assert [span.grid for span in spans] == [(4, 4), (3, 5)]
    assert document.images == (0, 1)


def test_an_edit_in_the_grammar_of_generation(text_tokenizer: TextTokenizer) -> None:
    for caption in ("<image_0>make it blue<image_1>", "make it blue", "<image>make it blue"):
        samples = one(caption, (64, 64), (64, 64))
        document = drawn(source_of(text_tokenizer, samples, "image_to_image"))
        parts = grammar.editing("make it blue", [(4, 4)], (4, 4))
        assert document.sequence == build_sequence(parts, text_tokenizer)


def test_dropped_pictures_are_not_shown(text_tokenizer: TextTokenizer) -> None:
    samples = one("make it blue", (64, 64), (64, 64))
    options = replace(SMALL, shares=Shares(drop_source_prob=1.0))
    source = source_of(text_tokenizer, samples, "image_to_image", options)
    whole = samples.pictures(0)
    kinds = Counter()
    for seed in range(30):
        document = drawn(source, seed=seed)
        assert document.sequence.images[-1].trained
        assert document.images[-1] == 1
        kinds[document.images] += 1
        shown = source.pictures(document)
        assert all(
            np.array_equal(np.asarray(whole[n]), picture)
            for n, picture in zip(document.images, shown, strict=True)
        )
    assert set(kinds) == {(1,), (0, 1)}


def test_edit_pairs_of_almost_one_shape_get_one(text_tokenizer: TextTokenizer) -> None:
    source = source_of(text_tokenizer, one("x", (1, 1)), "image_to_image")
    near, far = source.fits([(100, 100), (104, 98)]), source.fits([(100, 100), (104, 80)])
    # Smallest sides of the near pair: 98 high, 100 wide, and both aspects within 0.1 of 0.98.
    assert [fit.shape for fit in near] == [(98, 100), (98, 100)]
    assert near[0].grid == near[1].grid
    assert far[1].shape is not None
    assert far[0].shape is None, "1.0 against 0.8"
    pairs = source_of(text_tokenizer, one("x", (1, 1)), "interleaved")
    assert [fit.shape for fit in pairs.fits([(100, 100), (104, 98)])] == [None, None]


def test_interleaved_trains_every_picture(text_tokenizer: TextTokenizer) -> None:
    text = "one <image_0> two <image_2> three <image_1> end"
    samples = one(text, (64, 64), (128, 64), (64, 128))
    document = drawn(source_of(text_tokenizer, samples, "interleaved"))
    grids = [(4, 4), (3, 5), (5, 3)]
    assert document.sequence == build_sequence(grammar.interleaved(text, grids), text_tokenizer)
    assert document.images == (0, 2, 1)
    assert all(span.trained for span in document.sequence.images)


def test_interleaved_sometimes_keeps_its_pictures_only(text_tokenizer: TextTokenizer) -> None:
    samples = one("one <image_0> two <image_1>", (64, 64), (64, 64))
    options = replace(SMALL, shares=Shares(images_only=0.1))
    source = source_of(text_tokenizer, samples, "interleaved", options)
    bare = build_sequence([grammar.Picture((4, 4))] * 2, text_tokenizer)
    found = sum(drawn(source, seed=seed).sequence == bare for seed in range(3000))
    assert abs(found / 3000 - 0.1) < 0.02


def test_interleaved_is_cut_to_a_window_that_fits(text_tokenizer: TextTokenizer) -> None:
    text = "".join(f"step {n} <image_{n}>" for n in range(9))
    samples = one(text, *[(64, 64)] * 9)
    options = replace(SMALL, max_length=120)
    source = source_of(text_tokenizer, samples, "interleaved", options)
    seen: Counter[int] = Counter()
    for seed in range(100):
        document = drawn(source, seed=seed)
        assert 60 < len(document) <= 120
        first, last = document.images[0], document.images[-1]
        assert document.images == tuple(range(first, last + 1))
        prompt = text_tokenizer.decode(document.sequence.ids)
        assert prompt.startswith(f"step {first}")
        assert len(source.pictures(document)) == len(document.images)
        seen.update(document.images)
    assert set(seen) == set(range(9))


def test_text_is_whole_or_a_piece_of_its_row(text_tokenizer: TextTokenizer) -> None:
    samples = one({"text": "two cats make it blue " * 20})
    whole = drawn(source_of(text_tokenizer, samples, "text"))
    parts = grammar.text_only("two cats make it blue " * 20)
    assert whole.sequence == build_sequence(parts, text_tokenizer)
    cut = source_of(text_tokenizer, samples, "text", replace(SMALL, max_length=32))
    pieces = {tuple(drawn(cut, seed=seed).sequence.ids) for seed in range(200)}
    assert sorted(i for piece in pieces for i in piece) == sorted(whole.sequence.ids)
    assert max(map(len, pieces)) == 32


def test_pictures_fill_exactly_their_grid(text_tokenizer: TextTokenizer) -> None:
    rng = random.Random(0)
    sizes = [(rng.randint(20, 300), rng.randint(20, 300)) for _ in range(12)]
    samples = MadeUpSet("m", [MadeUpEntry(f"{n}", {"caption": "a"}, (s,)) for n, s in
                              enumerate(sizes)])  # fmt: skip
    source = source_of(text_tokenizer, samples, "image_text", replace(SMALL, areas=(32, 64, 128)))
    grids = set()
    for index in range(len(samples)):
        document = drawn(source, index)
        (picture,) = source.pictures(document)
        rows, columns = document.sequence.images[0].grid
        assert picture.dtype == np.uint8
        assert picture.shape == (16 * rows, 16 * columns, 3)
        grids.add((rows, columns))
        expected = resize_and_crop(samples.pictures(index)[0], 16 * rows, 16 * columns)
        assert np.array_equal(picture, np.asarray(expected))
    assert len(grids) > 3


def test_released_buckets_and_given_grids() -> None:
    options = SourceOptions()
    assert options.grid(1000, 1000) == (16, 16)
    assert options.grid(1000, 250) == (32, 8)
    assert SourceOptions(areas=(256, 512)).grid(2000, 2000) == (32, 32)
    assert SourceOptions(areas=(256, 512)).grid(300, 300) == (16, 16)
    assert SourceOptions(grids=((8, 8), (4, 16))).grid(100, 500) == (4, 16)
    assert SourceOptions(areas=(384,), grids=((24, 24),)).grid(100, 500) == (24, 24)


def test_a_random_crop_is_one_for_all_pictures_of_a_sample(text_tokenizer: TextTokenizer) -> None:
    gradient = np.tile(np.arange(200, dtype=np.uint8), (64, 1))
    picture = Image.fromarray(np.stack([gradient] * 3, axis=-1))

    class Twice(MadeUpSet):
        def pictures(self, index: int) -> list[Image.Image]:
            return [picture, picture]

    samples = Twice("t", [MadeUpEntry("t", {"caption": "x"}, ((200, 64),) * 2)])
    options = replace(SMALL, grids=((4, 4),), crop="random")
    source = source_of(text_tokenizer, samples, "image_to_image", options)
    starts = set()
    for seed in range(40):
        document = drawn(source, seed=seed)
        a, b = source.pictures(document)
        assert np.array_equal(a, b)
        assert np.array_equal(a, source.pictures(drawn(source, seed=seed))[0])
        starts.add(int(a[0, 0, 0]))
    assert min(starts) < 20
    assert max(starts) > 115
    centre = source_of(text_tokenizer, samples, "image_to_image", replace(options, crop="centre"))
    assert int(centre.pictures(drawn(centre))[0][0, 0, 0]) == 68


def test_filters_leave_samples_out(text_tokenizer: TextTokenizer) -> None:
    samples = one("a logo", (64, 64), aesthetic=4.0)
    for filters in ({"height": 65}, {"aesthetic": 5}, {"keywords": {"logo": 1.0}}):
        options = replace(SMALL, filters=Filters.from_mapping(filters))
        assert source_of(text_tokenizer, samples, "image_text", options).document(0, 0) is None
    assert drawn(source_of(text_tokenizer, samples, "image_text"))


@pytest.mark.parametrize(
    ("kind", "samples", "reason"),
    [
        ("image_text", one({}, (64, 64)), "missing caption"),
        ("image_text", one("two", (64, 64), (64, 64)), "wrong tag count"),
        ("image_text", one("none"), "missing picture"),
        ("image_to_image", one("<image_0><image_0>x", (64, 64), (64, 64)), "wrong tag count"),
        ("interleaved", one("<image_0> and <image_1>", (64, 64)), "wrong tag count"),
        ("interleaved", one("no pictures"), "missing picture"),
        ("text", one({"text": " "}), "missing caption"),
    ],
)
def test_broken_samples_are_named(
    kind: str, samples: MadeUpSet, reason: str, text_tokenizer: TextTokenizer
) -> None:
    with pytest.raises(SampleError) as caught:
        source_of(text_tokenizer, samples, kind).document(0, 0)
    assert caught.value.reason == reason
    assert caught.value.key == "set/shard/key"


def test_a_picture_that_is_not_there_is_named(text_tokenizer: TextTokenizer) -> None:
    samples = one("a", (64, 64))
    source = source_of(text_tokenizer, samples, "image_text")
    document = drawn(source)
    samples.entries[0] = MadeUpEntry("set/shard/key", {"caption": "a"}, ())
    with pytest.raises(SampleError, match="missing picture"):
        source.pictures(document)


def test_the_same_seed_gives_the_same_document(text_tokenizer: TextTokenizer) -> None:
    captions = {"caption": "own", "caption_all": ["one", "two", "three"]}
    samples = MadeUpSet("m", [MadeUpEntry("k", captions, ((64, 90),))])
    options = replace(
        SMALL, captions={"caption": 1, "caption_all": 1}, drop_text_prob=0.5, crop="random"
    )
    first, second = (source_of(text_tokenizer, samples, "image_text", options) for _ in range(2))
    for seed in range(50):
        assert first.document(0, seed) == second.document(0, seed)
    assert len({tuple(drawn(first, seed=s).sequence.ids) for s in range(50)}) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_text_prob": 2.0}, "drop_text_prob is a share"),
        ({"captions": {"caption": 0.0}}, "above 0"),
        ({"captions": {"caption": -1.0}}, "not be negative"),
        ({"templates": ("none",)}, "exactly once"),
        ({"crop": "left"}, "centre or random"),
        ({"areas": ()}, "areas or grids"),
        ({"areas": (300,)}, "multiple of 256"),
        ({"grids": ((0, 4),)}, "from 1 up"),
        ({"max_length": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceOptions(**options)  # type: ignore[arg-type]


def test_unknown_kinds_are_refused(text_tokenizer: TextTokenizer) -> None:
    with pytest.raises(NextStepError, match="a source is one of text, image_text"):
        ShardSource(captioned(1), "video", text_tokenizer)
