"""NextStepPipeline: what a caller may rely on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nextstep.engine.metadata import read_record
from nextstep.engine.pretrained import load_parts, save_parts
from nextstep.engine.results import Progress
from nextstep.engine.scheduler import draw
from nextstep.engine.settings import ModelDefaults
from nextstep.image.pictures import open_picture
from nextstep.pipeline import NextStepPipeline
from tests.engine.reference import reference_tokens


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def picture(seed: int = 0, size: tuple[int, int] = (32, 32)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def test_same_seed_alone_in_a_batch_and_in_another_order(tiny_pipeline: NextStepPipeline) -> None:
    prompts = [f"picture {i} {'x ' * i}" for i in range(8)]
    together = tiny_pipeline.generate(prompts, seed=list(range(8)))
    backwards = tiny_pipeline.generate(prompts[::-1], seed=list(range(8))[::-1])[::-1]
    for i in range(8):
        alone = tiny_pipeline.generate(prompts[i], seed=i)[0]
        assert difference(alone.image, together[i].image) <= 1
        assert difference(alone.image, backwards[i].image) <= 1
        assert alone.settings == together[i].settings


def test_chunks_of_any_size_make_the_same_pictures(tiny_pipeline: NextStepPipeline) -> None:
    call = dict(num_images=3, seed=4)
    whole = tiny_pipeline.generate(["a", "b b b"], batch_size=6, **call)
    parts = tiny_pipeline.generate(["a", "b b b"], batch_size=2, **call)
    assert [p.settings for p in whole] == [p.settings for p in parts]
    assert all(difference(a.image, b.image) <= 1 for a, b in zip(whole, parts, strict=True))
    assert [(p.settings["prompt"], p.settings["index"]) for p in whole] == [
        (text, i) for text in ("a", "b b b") for i in range(3)
    ]


def test_seeds_and_indices_make_different_pictures(tiny_pipeline: NextStepPipeline) -> None:
    made = [
        *tiny_pipeline.generate("a", num_images=2, seed=1),
        *tiny_pipeline.generate("a", seed=2),
    ]
    assert len({p.image.tobytes() for p in made}) == 3


@pytest.mark.parametrize(("height", "width"), [(16, 48), (48, 16), (32, 64), (16, 16)])
def test_any_size_that_is_a_multiple(
    tiny_pipeline: NextStepPipeline, height: int, width: int
) -> None:
    assert tiny_pipeline.generate("a", height=height, width=width)[0].image.size == (width, height)


def test_empty_prompt_is_allowed(tiny_pipeline: NextStepPipeline) -> None:
    assert tiny_pipeline.generate("")[0].settings["prompt"] == ""


@pytest.mark.parametrize(
    ("guidance", "image_guidance"),
    [(1.0, 1.0), (0.0, 1.0), (0.5, 1.0), (1.0, 3.0), (4.0, 4.0), (2.0, 0.5), (7.5, 1.5)],
)
@pytest.mark.parametrize("schedule", ["constant", "linear", "linear-rising"])
def test_any_scales(
    tiny_pipeline: NextStepPipeline, guidance: float, image_guidance: float, schedule: str
) -> None:
    """Every combination of branches draws what whole passes without a cache draw."""
    engine = tiny_pipeline.engine()
    scales = {"guidance": guidance, "schedule": schedule}
    for request in (
        engine.request("a", height=16, width=32, **scales),
        engine.request("b", [picture(size=(32, 16))], image_guidance=image_guidance, **scales),
    ):
        job = request.sequence(tiny_pipeline.text_tokenizer, 256)
        (tokens,) = draw(tiny_pipeline.model, [job])
        assert torch.allclose(tokens, reference_tokens(tiny_pipeline.model, job), atol=1e-3)


def test_edits_made_together_are_those_made_one_by_one(tiny_pipeline: NextStepPipeline) -> None:
    sources = [[picture(1)], [picture(2)], [picture(3), picture(4)]]
    texts = ["make it blue", "a longer wish than that", "both"]
    requests = [
        tiny_pipeline.request(text, own, height=32, width=32, seed=seed)
        for text, own, seed in zip(texts, sources, (5, 6, 7), strict=True)
    ]
    together = tiny_pipeline.run(requests)
    for given, text, seed, made in zip(sources, texts, (5, 6, 7), together, strict=True):
        alone = tiny_pipeline.edit(given, text, height=32, width=32, seed=seed)[0]
        assert difference(alone.image, made.image) <= 1
        assert alone.settings == made.settings
    with pytest.raises(ValueError, match="at least one source"):
        tiny_pipeline.edit([], "one", height=32, width=32)


def test_editing_reads_its_sources(tiny_pipeline: NextStepPipeline) -> None:
    edit = lambda source, text="make it blue": tiny_pipeline.edit(source, text)[0].image  # noqa: E731
    first = edit(picture(0))
    assert edit(picture(0)).tobytes() == first.tobytes()
    assert edit(picture(1)).tobytes() != first.tobytes()
    assert edit(picture(0), "<image>make it blue").tobytes() == first.tobytes()
    assert edit(picture(0), "make it blue<image>").tobytes() != first.tobytes()


def test_sources_follow_their_tags(tiny_pipeline: NextStepPipeline) -> None:
    one, two = picture(0), picture(1, (48, 16))
    tagged = tiny_pipeline.edit([one, two], "<image_1> and <image_0>", height=32, width=32)
    plain = tiny_pipeline.edit([two, one], "<image> and <image>", height=32, width=32)
    assert tagged[0].image.tobytes() == plain[0].image.tobytes()


def test_result_takes_the_size_of_the_first_source(tiny_pipeline: NextStepPipeline) -> None:
    assert tiny_pipeline.edit(picture(0, (64, 16)), "a")[0].image.size == (64, 16)
    # Larger than the model's own area: shrunk to about it, the shape kept.
    assert tiny_pipeline.edit(picture(0, (512, 128)), "a")[0].image.size == (64, 16)


def test_settings_travel_inside_the_png(tiny_pipeline: NextStepPipeline, tmp_path: Path) -> None:
    made = tiny_pipeline.generate('ünïcode 🍎 "quoted"', seed=3, guidance=1.5)[0]
    made.save(tmp_path / "a.png")
    record = read_record(tmp_path / "a.png")
    assert record == made.settings
    assert record["prompt"] == 'ünïcode 🍎 "quoted"'
    assert record["guidance"] == 1.5
    assert record["model"] == tiny_pipeline.model_hash
    known = {k: record[k] for k in ("guidance", "solver", "steps", "shift", "token_norm")}
    again = tiny_pipeline.generate(record["prompt"], seed=record["seed"], **known)[0]
    assert again.image.tobytes() == made.image.tobytes()
    assert open_picture(tmp_path / "a.png").tobytes() == made.image.tobytes()


def test_progress_and_previews(tiny_pipeline: NextStepPipeline) -> None:
    told: list[tuple[int, int, int]] = []
    shown: list[Image.Image] = []

    def watch(progress: Progress) -> None:
        told.append((progress.tokens, progress.total, progress.pictures))
        if progress.tokens in (2, 4):
            shown.extend(progress.preview())

    made = tiny_pipeline.generate(["a", "b"], batch_size=1, on_progress=watch)
    assert told == [(n, 4, p) for p in (0, 1) for n in (1, 2, 3, 4)]
    assert len(shown) == 4
    assert shown[1].tobytes() == made[0].image.tobytes()
    assert shown[0].tobytes() != made[0].image.tobytes()


@pytest.mark.parametrize("released", [False, True])
def test_folders_round_trip(tiny_folder: Path, tmp_path: Path, released: bool) -> None:
    parts = load_parts(tiny_folder)
    save_parts(parts, tmp_path / "copy", released)
    assert all(f.stat().st_mode & 0o044 for f in (tmp_path / "copy").rglob("*"))
    again = load_parts(tmp_path / "copy")
    defaults = ModelDefaults() if released else parts.defaults
    assert again.defaults == defaults
    call = dict(height=32, width=32, guidance=2.0, solver="ode", steps=2)
    before = NextStepPipeline(*parts).generate("a red apple", **call)[0]
    after = NextStepPipeline(*again).generate("a red apple", **call)[0]
    assert before.image.tobytes() == after.image.tobytes()


def test_parts_must_fit(tiny_folder: Path, tmp_path: Path) -> None:
    from nextstep.vae.config import AutoencoderConfig
    from nextstep.vae.files import save_image_tokenizer
    from nextstep.vae.tokenizer import ImageTokenizer

    save_image_tokenizer(ImageTokenizer(AutoencoderConfig((8, 8), 1, 4, 4)), tmp_path / "vae")
    with pytest.raises(ValueError, match="4 channels in tokens of 2x2, the model reads 16"):
        load_parts(tiny_folder, vae=tmp_path / "vae")


def test_stored_dtype_is_kept_when_asked_for(tiny_folder: Path, tmp_path: Path) -> None:
    import torch

    made = NextStepPipeline.from_pretrained(tiny_folder, torch.bfloat16)
    made.image_tokenizer.to(torch.bfloat16)
    made.save_pretrained(tmp_path / "b")
    kept = load_parts(tmp_path / "b", keep_dtype=True)
    assert kept.image_tokenizer.dtype == kept.model.lm_head.weight.dtype == torch.bfloat16
    assert load_parts(tmp_path / "b", device="cpu:0").image_tokenizer.dtype == torch.float32


def test_extreme_shapes_are_cropped(tiny_pipeline: NextStepPipeline) -> None:
    assert tiny_pipeline.edit(picture(0, (5000, 100)), "a")[0].image.size == (64, 16)


def test_public_names_read_folders(tiny_pipeline: NextStepPipeline, tmp_path: Path) -> None:
    import torch

    import nextstep

    tiny_pipeline.save_pretrained(tmp_path / "copy")
    model = nextstep.NextStepModel.from_pretrained(tmp_path / "copy", torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.config == nextstep.NextStepConfig.from_file(tmp_path / "copy" / "config.json")
    tokenizer = nextstep.ImageTokenizer.from_pretrained(tmp_path / "copy" / "vae")
    assert tokenizer.config == tiny_pipeline.image_tokenizer.config
    with pytest.raises(ValueError, match="exists already"):
        tiny_pipeline.save_pretrained(tmp_path / "copy")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = nextstep.Nothing


def test_hub_ids(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    from nextstep.model.folder import find_folder

    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        assert not any(p.endswith(".py") for p in allow_patterns)
        asked.append(name)
        if name == "no/network":
            raise OSError("the network is unreachable")
        if name == "no/connection":
            raise LocalEntryNotFoundError("Got: ConnectError: [Errno -2]")
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_folder("some/model") == tiny_folder
    with pytest.raises(ValueError, match="could not be fetched from the hub: the network is"):
        find_folder("no/network")
    with pytest.raises(ValueError, match="from the hub: there is no connection to it"):
        find_folder("no/connection")
    with pytest.raises(ValueError, match="no model folder 'plain'"):
        find_folder("plain")
    assert asked == ["some/model", "no/network", "no/connection"]
    monkeypatch.chdir(tiny_folder.parent)
    for path in ("./none", "../none", "tiny/none"):  # paths, and no hub ids
        with pytest.raises(ValueError, match="no model folder"):
            find_folder(path)
    (tiny_folder.parent / "nano").mkdir(exist_ok=True)
    assert find_folder("nano") != Path("nano")  # a folder here does not hide the shipped model


def test_bf16_draws_too(tiny_folder: Path) -> None:
    import torch

    pipeline = NextStepPipeline.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    assert pipeline.generate("a")[0].image.size == (32, 32)
    assert pipeline.edit(picture(), "a")[0].image.size == (32, 32)


def test_jacobi_decoding(tiny_pipeline: NextStepPipeline) -> None:
    """At tolerance 0 the same pictures up to a grey level."""
    prompts = ["a red apple", "two cats"]
    plain = tiny_pipeline.generate(prompts, seed=3, height=48)
    ahead = tiny_pipeline.generate(prompts, seed=3, height=48, jacobi_window=4, jacobi_tolerance=0)
    for one, other in zip(plain, ahead, strict=True):
        apart = np.asarray(one.image).astype(int) - np.asarray(other.image)
        assert np.abs(apart).max() <= 1
        assert (other.settings["jacobi_window"], other.settings["jacobi_tolerance"]) == (4, 0)
    with pytest.raises(ValueError, match="jacobi_window must be 1 to 64"):
        tiny_pipeline.generate("a red apple", jacobi_window=0)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("a prompt is a text, not 5", {"prompt": 5}),
    ("a prompt is a text, not None", {"prompt": ["a", None]}),
    ("a seed is a whole number, not 1.5", {"seed": 1.5}),
    ("a seed is a whole number, not '7'", {"seed": "7"}),
    ("height and width are whole numbers, not 32.0 x 32", {"height": 32.0, "width": 32}),
]


@pytest.mark.parametrize(("why", "given"), WRONG, ids=[why for why, _ in WRONG])
def test_values_of_another_type_get_a_sentence(
    tiny_pipeline: NextStepPipeline, why: str, given: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        tiny_pipeline.generate(**{"prompt": "a", **given})


def test_other_values_of_another_type(tiny_pipeline: NextStepPipeline, tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="has no pixels"):
        tiny_pipeline.edit(Image.new("RGB", (0, 0)), "a")
    with pytest.raises(ValueError, match=r"dtype is a torch\.dtype such as"):
        NextStepPipeline.from_pretrained(tiny_folder, dtype="bf16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a seed must lie between"):
        tiny_pipeline.next_state(picture(), "left", seed=-1)
    (numpy,) = tiny_pipeline.generate("a", seed=np.int64(3))  # type: ignore[arg-type]
    assert numpy.png() == tiny_pipeline.generate("a", seed=3)[0].png()
