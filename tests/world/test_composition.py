"""Composed image tokens against encoded ones."""

import torch

from nextstep.model.folder import find_folder
from nextstep.vae.files import load_image_tokenizer
from nextstep.world.composition import ComposedSource, Composer, composition_error
from nextstep.world.live import WorldSource
from nextstep.world.tasks import examples
from tests.world.test_live import TOKENIZER


def composer() -> Composer:
    return Composer(load_image_tokenizer(find_folder("nano") / "vae"), 128, (8, 8), 2**26)


def test_composed_pictures_are_nearly_the_encoded_ones() -> None:
    made = composer()
    for task, most in (("two_objects", 0.02), ("counting", 0.08), ("words", 0.01)):
        scenes = [one.scenes[-1] for one in examples(task, count=6, edition="core-48")]
        assert composition_error(made, scenes) < most
    single = [one.scenes[-1] for one in examples("single", count=2, edition="core-48")]
    assert composition_error(made, single) == 0


def test_a_composed_source_gives_the_tokens_of_its_pictures() -> None:
    world = WorldSource(TOKENIZER, 128, tasks=["two_objects"], edition="core-48", no_caption=0)
    source = ComposedSource(world, composer().tokenizer)
    document = source.document(0, 0)
    assert document is not None
    (tokens,) = source.pictures(document)
    assert tokens.shape == (64, 64)
    (scene,) = document.payload.scenes
    torch.testing.assert_close(tokens, source.composer(scene))
    assert len(source) == len(world)
    assert source.composer.held > 0


def test_the_oldest_parts_are_forgotten_first() -> None:
    made = composer()
    made.remembered = 3 * 64 * 64 * 2
    for one in examples("single", count=5, edition="core-48"):
        made(one.scenes[-1])
    assert made.held <= made.remembered
