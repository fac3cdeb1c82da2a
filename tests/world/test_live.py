"""The world as a source of training, as shards, and on the command line."""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.cli import main as cli
from nextstep.data.latents import CachedSource, LatentCache, build_cache, tokenizer_hash
from nextstep.data.shards import ShardSet
from nextstep.data.sources import ShardSource, SourceOptions
from nextstep.errors import NextStepError
from nextstep.recipe import live
from nextstep.text.tokenizer import TextTokenizer
from nextstep.vae.tokenizer import ImageTokenizer
from nextstep.world import drawings
from nextstep.world.build import build_shards
from nextstep.world.descriptions import changes_between, describe
from nextstep.world.examples import TextPart
from nextstep.world.live import WorldSource
from nextstep.world.scenes import Background, Scene, SceneItem, Sign
from nextstep.world.sheet import sheet
from nextstep.world.tasks import TASKS, example, examples
from tests.conftest import TINY_VAE

TOKENIZER = TextTokenizer.train(["a red apple on a blue background, noto style"], 400)


def test_documents_and_their_pictures() -> None:
    source = WorldSource(TOKENIZER, 64)
    assert len(source) == 100_000
    assert source.kind == "interleaved"
    seen = Counter()
    for index in range(80):
        document = source.document(index, 5)
        assert document == WorldSource(TOKENIZER, 64).document(index, 5)
        pictures = source.pictures(pickle.loads(pickle.dumps(document)))
        assert len(pictures) == len(document.sequence.images) == len(document.images)
        for span, picture in zip(document.sequence.images, pictures, strict=True):
            assert span.grid == (4, 4)
            assert picture.shape == (64, 64, 3)
            assert picture.dtype == np.uint8
        seen[TASKS[document.payload.task].group] += 1
    assert len(seen) >= 6
    assert source.document(3, 5).sequence.ids != source.document(3, 6).sequence.ids


def test_threads_draw_the_same() -> None:
    source = WorldSource(TOKENIZER, 64)
    documents = [source.document(index, 9) for index in range(40)]
    drawings.sprite.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(source.pictures, documents))
    for document, pictures in zip(documents, threaded, strict=True):
        assert all(map(np.array_equal, pictures, source.pictures(document)))


def test_a_recipe_can_name_it() -> None:
    module, _, name = live.SOURCES["world"].partition(":")
    assert (module, name) == (WorldSource.__module__, "WorldSource")


def test_samples_that_repeat_and_their_stills() -> None:
    source = WorldSource(TOKENIZER, 32, tasks=["editing", "single"], length=30, fresh=False)
    texts = set()
    for index in range(30):
        stills = source.stills(index)
        for seed in range(4):
            document = source.document(index + 30 * seed, seed)
            assert document.key == stills.key
            texts.add(tuple(document.sequence.ids))
            pictures = source.pictures(document)
            assert len(pictures) == len(document.images) == len(document.sequence.images)
            for image, picture in zip(document.images, pictures, strict=True):
                assert np.array_equal(picture, stills.pictures[image])
    assert 30 < len(texts) < 90, "only what is left out for guidance changes"
    assert source.is_still
    assert not WorldSource(TOKENIZER, 32).is_still
    assert source.shown() != WorldSource(TOKENIZER, 32, tasks=["single"]).shown()


def test_repeated_samples_are_read_from_a_latent_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(TINY_VAE)
    source = WorldSource(TOKENIZER, 32, tasks=["editing"], length=6, fresh=False, no_caption=0.5)
    build_cache(source, tokenizer, tmp_path, samples_per_part=4)
    cached = CachedSource(source, LatentCache(tmp_path, tokenizer_hash(tokenizer)))
    for use in range(24):
        document = cached.document(use, use)
        assert document is not None
        pixels = source.pictures(source.document(use, use))
        for tokens, picture in zip(cached.pictures(document), pixels, strict=True):
            scaled = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
            expected = tokenizer.encode_tokens(scaled)[0]
            assert torch.allclose(tokens.float(), expected, atol=5e-3)
    with pytest.raises(NextStepError, match="set crop to centre or fresh to false"):
        CachedSource(WorldSource(TOKENIZER, 32), cached.cache)


def test_shares_of_tasks() -> None:
    source = WorldSource(TOKENIZER, 64, tasks={"add": 3, "plain": 1})
    tasks = Counter(source.example(index, 0).task for index in range(400))
    assert 0.68 < tasks["add"] / 400 < 0.82
    assert WorldSource(TOKENIZER, tasks=["drawing"]).kind == "image_text"
    assert WorldSource(TOKENIZER, tasks=["plain"]).kind == "text"
    assert WorldSource(TOKENIZER, tasks=["add", "style"]).kind == "image_to_image"


def test_conditions_are_left_out() -> None:
    source = WorldSource(TOKENIZER, 32, tasks=["remove"], no_caption=0.5)
    counts = Counter()
    for index in range(300):
        document = source.document(index, 0)
        has_text = "<" in TOKENIZER.decode(document.sequence.ids) or len(document.sequence) > 24
        counts[len(document.images), has_text] += 1
        assert document.sequence.images[-1].trained
    assert set(counts) == {(1, False), (2, False), (2, True)}
    assert 0.4 < counts[2, True] / 300 < 0.6
    alone = WorldSource(TOKENIZER, 32, tasks=["read_count"], no_caption=1.0)
    assert TOKENIZER.decode(alone.document(0, 0).sequence.ids)


def test_sentences() -> None:
    source = WorldSource(TOKENIZER, 32, tasks=["single"], no_caption=0, sentences=1)
    for index in range(10):
        text = TOKENIZER.decode(source.document(index, 0).sequence.ids[:-10])
        assert text[0].isupper() or text[0].isdigit()
        assert "." in text


def test_lines_stand_before_the_pictures_that_are_drawn() -> None:
    source = WorldSource(
        TOKENIZER, 32, tasks=["turns"], no_caption=0, reasoning_prob=1, sentences=0
    )
    plain = WorldSource(TOKENIZER, 32, tasks=["turns"], no_caption=0, sentences=0)
    for index in range(5):
        document, without = source.document(index, 0), plain.document(index, 0)
        assert document.payload == without.payload
        told = TOKENIZER.decode(document.sequence.ids)
        first, *others = document.payload.scenes
        assert f"\n{describe(first)}; " in told
        assert told.count("; change ") == len(others) - told.count("\nchange ")
        for scene in others:
            assert f"; {describe(scene)}" in told
        assert told.count("\n") == len(others)
        assert "\n" not in TOKENIZER.decode(without.sequence.ids)
    half = WorldSource(TOKENIZER, 32, tasks=["add", "plain"], no_caption=0, reasoning_prob=0.5)
    told = [TOKENIZER.decode(half.document(i, 0).sequence.ids) for i in range(400)]
    drawn = [half.example(i, 0).task == "add" for i in range(400)]
    assert 0.4 < sum("\n" in text for text in told) / sum(drawn) < 0.6
    assert not any("\n" in text for text, draws in zip(told, drawn, strict=True) if not draws)


def test_lines_stand_before_answers() -> None:
    source = WorldSource(
        TOKENIZER, 32, tasks=["read_change"], reasoning_prob=1, train_prompts=False
    )
    for index in range(20):
        document, made = source.document(index, 0), source.example(index, 0)
        before, after = map(describe, made.scenes)
        answer = made.parts[-1]
        assert isinstance(answer, TextPart)
        sequence = document.sequence
        learned = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label >= 0]
        line = f"{before}; {after}; {changes_between(*made.scenes)}\n"
        written = f"{line}{answer.answers[0]}"
        parts = f"{before}; {after};", line.removeprefix(f"{before}; {after};"), answer.answers[0]
        ids = [token for part in parts for token in TOKENIZER.encode(part)]
        # The size of a picture before is learned as well.
        assert learned[-len(ids) - 1 : -1] == ids
        assert TOKENIZER.decode(learned[:-1]).endswith(written)
        prompt = made.prompt(made.targets[0])
        assert f"{prompt.replace('<image>', '')}\n" in TOKENIZER.decode(sequence.ids)


def test_text_only_recalls_describe_the_pictures_that_no_line_tells_of() -> None:
    source = WorldSource(
        TOKENIZER, 32, tasks=["recall"], edition="core-48", no_caption=0, reasoning_prob=1,
        text_only_prob=1,
    )  # fmt: skip
    for index in range(20):
        document, made = source.document(index, 0), source.example(index, 0)
        assert not document.images
        told = TOKENIZER.decode(document.sequence.ids)
        for scene in made.scenes:
            assert describe(scene) in told


def test_names_are_learned_where_prompts_are_not() -> None:
    source = WorldSource(
        TOKENIZER, 32, tasks=["names"], edition="core-48", no_caption=0, reasoning_prob=1,
        text_only_prob=1, train_prompts=False,
    )  # fmt: skip
    for index in range(20):
        document, made = source.document(index, 0), source.example(index, 0)
        assert not document.images
        sequence = document.sequence
        learned = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label >= 0]
        people = [scene.items[0] for scene in made.scenes]
        asked = made.parts[-2 * len(people) :][1::2]
        told = "".join(part.text for part in asked if isinstance(part, TextPart))
        assert TOKENIZER.decode(learned).replace("<|endoftext|>", "").endswith(told)


def test_text_only_samples_learn_the_line_from_what_the_picture_would_tell() -> None:
    source = WorldSource(
        TOKENIZER, 128, tasks=["move", "single"], edition="core-48", no_caption=0,
        reasoning_prob=1, text_only_prob=1, train_prompts=False, sentences=0,
    )  # fmt: skip
    for index in range(20):
        document = source.document(index, 0)
        sequence = document.sequence
        assert not sequence.images
        learned = [i for i, label in zip(sequence.ids, sequence.labels, strict=True) if label >= 0]
        line = TOKENIZER.decode(learned[:-1]).strip()
        whole = TOKENIZER.decode(sequence.ids[:-1])
        scene = source.example(index, 0).scenes[-1]
        assert line.endswith(describe(scene))
        assert ("; change " in line) == (source.example(index, 0).task == "move")
        prompt, _, rest = whole.partition("\n")
        pieces = TOKENIZER.encode(prompt + "\n") + TOKENIZER.encode(rest)
        assert sequence.ids[:-1] == pieces, "the pieces are read as the one text that is written"


def test_a_scene_in_words() -> None:
    dog = SceneItem("dog face", "flat")
    assert describe(Scene(Background("blue"), (dog,))) == "dog, flat style, blue background"
    smaller = replace(dog, size=0.3)
    said = describe(Scene(Background("blue"), (smaller,)))
    assert said == "small dog middle, flat style, blue background"
    scene = Scene(
        Background("red", "pink"),
        (
            SceneItem("grapes", "noto", 0.2, 0.8, 0.3),
            SceneItem("boy", "noto", 0.8, 0.5, 0.5, tone="dark"),
            SceneItem("cat face", "noto", 0.5, 0.2, 0.45, tint="orange", flip=True),
        ),
        Sign("HAT"),
    )
    assert describe(scene) == (
        "orange turned cat top, boy with dark skin right, small grapes bottom left, "
        'sign "HAT" middle, noto style, red to pink background'
    )


def test_small_pictures_have_short_words() -> None:
    for pixels, longest in ((64, 4), (128, 8)):
        source = WorldSource(TOKENIZER, pixels, tasks=["words"])
        signs = [source.example(i, 0).scenes[0].sign for i in range(60)]
        assert max(len(sign.text) for sign in signs if sign) == longest


def test_texts_leave_words_on_signs_spelled() -> None:
    source = WorldSource(TOKENIZER, 64, tasks=["words", "read_word", "single"])
    texts = list(source.texts(100))
    assert len(texts) > 100
    assert not any('"' in text.replace('""', "") for text in texts)


def test_glosses_are_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "glosses.txt"
    path.write_text("dog: a tame animal.\n")
    source = WorldSource(TOKENIZER, 64, tasks=["plain"], glosses=path)
    texts = Counter(source.example(index, 0).text for index in range(100))
    assert 30 < texts["dog: a tame animal."] < 70


def test_a_split_keeps_the_tasks_that_have_it() -> None:
    source = WorldSource(TOKENIZER, 64, tasks=["single", "counting"], split="held_out_pairs")
    assert set(source.tasks) == {"counting"}
    assert source.document(0, 0).key.startswith("world/held_out_pairs-counting/0-0")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pixels": 100}, "multiple of 16"), ({"split": "x"}, "no split 'x'"),
        ({"tasks": ["x"]}, "no task 'x'"), ({"no_caption": 2.0}, "share from 0 to 1"),
        ({"length": 0}, "at least 1"), ({"longest_word": 9}, "1 to 8"),
        ({"glosses": "/none"}, "cannot be read"),
        ({"tasks": ["single"], "split": "held_out_pairs"}, "has the split"),
    ],
)  # fmt: skip
def test_bad_options_are_named(options: dict, why: str) -> None:
    with pytest.raises(NextStepError, match=why):
        WorldSource(TOKENIZER, **options)


def test_it_is_fast_enough() -> None:
    source = WorldSource(TOKENIZER, 128)

    def rate(first: int, count: int) -> float:
        begun = time.thread_time()
        for index in range(first, first + count):
            source.pictures(source.document(index, 0))
        return count / (time.thread_time() - begun)

    rate(0, 200)  # the first samples load and scale their drawings
    # 560 a second were measured beside a training run; a busy machine may be much slower.
    assert max(rate(200, 100), rate(300, 100)) > 60


def test_shards_hold_the_same_samples(tmp_path: Path) -> None:
    told = []
    counts = build_shards(
        tmp_path / "set", 40, ["single", "add", "story", "plain"], size=64, seed=3,
        on_sample=lambda: told.append(1),
    )  # fmt: skip
    assert sum(counts.values()) == len(told) == 40
    for kind in ("text", "image_text", "image_to_image", "interleaved"):
        shards = ShardSet(tmp_path / "set" / kind)
        assert shards.kind == kind
        source = ShardSource(
            shards, kind, TOKENIZER, SourceOptions(grids=((4, 4),), max_length=4096)
        )
        for index in range(len(shards)):
            document = source.document(index, 0)
            assert document is not None
            record = shards.record(index)
            key = int(shards.key(index).split("/")[-1], 16)
            made = example(record["metadata"]["task"], key, longest_word=4)
            assert len(made.scenes) == len(document.images)
            for picture in source.pictures(document):
                assert picture.shape == (64, 64, 3)
    again = build_shards(tmp_path / "one", 5, ["single"], size=64, seed=3)
    assert again == {"single": 5}
    assert len(ShardSet(tmp_path / "one")) == 5
    with pytest.raises(NextStepError, match="exists already"):
        build_shards(tmp_path / "one", 5)


def test_sheets() -> None:
    made = [*examples("single", count=3), *examples("story", count=1), *examples("plain", count=1)]
    picture = sheet(made, size=32, columns=2)
    assert picture.width >= 2 * 32
    assert len(picture.getcolors(1_000_000)) > 20
    with pytest.raises(NextStepError, match="needs a sample"):
        sheet([])
    with pytest.raises(NextStepError, match="too large"):
        sheet(made, size=4096, columns=100)


def command(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nextstep", "world", *map(str, args)])
        try:
            cli.run()
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    out = capsys.readouterr()
    return status, out.out, out.err


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "sheet.png"
    status, said, _ = command(capsys, "show", "-t", "counting", "-n", 2, "-o", path, "--json")
    assert status == 0
    told = json.loads(said)
    assert [one["task"] for one in told["samples"]] == ["counting"] * 2
    assert told["samples"][0]["targets"][0]["include"][0]["count"] >= 1
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    status, said, _ = command(capsys, "build", tmp_path / "set", "-t", "add", "-n", 4, "--json")
    assert (status, json.loads(said)["samples"]) == (0, {"add": 4})
    for args, why in (
        (("show", "-t", "x", "-o", path), "no task 'x'"),
        (("show", "--split", "x", "-o", path), "no split 'x'"),
        (("show", "-o", tmp_path / "a.gif"), "does not end in .png"),
        (("build", tmp_path / "set", "-n", 3), "exists already"),
        (("build", tmp_path / "b", "--size", 50, "-n", 3), "multiple of 16"),
        (("fetch", "--style", "x"), "no style 'x'"),
    ):
        status, _, err = command(capsys, *args)
        assert status == 2
        assert why in err
    assert not (tmp_path / "b").exists()


def test_fetch_without_npm_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("NEXTSTEP_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    status, _, err = command(capsys, "fetch")
    assert status == 2
    assert "npm, which is not installed" in err
