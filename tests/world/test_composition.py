"""Composed image tokens against encoded ones."""

import pickle

import pytest
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


def test_scenes_are_composed_on_the_device_of_the_tokenizer() -> None:
    """The meta device refuses to compute with tensors of another one, as a GPU does."""
    tokenizer = load_image_tokenizer(find_folder("nano") / "vae").to("meta")
    made = Composer(tokenizer, 128, (8, 8), 2**26)
    for one in examples("two_objects", count=2, edition="core-48"):
        tokens = made(one.scenes[-1])
        assert (tokens.device.type, tuple(tokens.shape)) == ("meta", (64, 64))
    assert {block.device.type for block in made._blocks.values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_composes_nearly_the_tokens_of_a_cpu() -> None:
    tokenizer = load_image_tokenizer(find_folder("nano") / "vae", device="cuda")
    made, expected = Composer(tokenizer, 128, (8, 8), 2**26), composer()
    for one in examples("counting", count=6, edition="core-48"):
        tokens, scene = made(one.scenes[-1]), one.scenes[-1]
        assert tokens.device.type == "cuda"
        torch.testing.assert_close(tokens.cpu(), expected(scene), atol=0.05, rtol=0.05)


def test_a_composed_source_sent_to_another_process_composes_the_same_tokens() -> None:
    world = WorldSource(TOKENIZER, 128, tasks=["counting"], edition="core-48", no_caption=0)
    source = ComposedSource(world, composer().tokenizer)
    document = source.document(3, 1)
    assert document is not None
    (expected,) = source.pictures(document)
    sent = pickle.loads(pickle.dumps(source))
    assert (sent.name, sent.grid, sent.composer.held) == (source.name, source.grid, 0)
    assert torch.equal(sent.pictures(document)[0], expected)
