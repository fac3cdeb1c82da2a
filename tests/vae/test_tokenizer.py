"""ImageTokenizer against diffusers' AutoencoderKL and its own layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from nextstep.errors import ModelFileError
from nextstep.vae.config import AutoencoderConfig
from nextstep.vae.files import (
    load_image_tokenizer,
    save_image_tokenizer,
    save_released,
)
from nextstep.vae.latents import normalise_latents
from nextstep.vae.tokenizer import ImageTokenizer

RELEASABLE = AutoencoderConfig(block_channels=(32, 64, 64), layers_per_block=2)


def make(config: AutoencoderConfig) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(config)


def test_equals_diffusers(tmp_path: Path) -> None:
    """A folder that diffusers wrote gives diffusers' own numbers, then our normalisation."""
    reference = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()
    reference.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"token_norm": True, "patch": 2}))
    ours = load_image_tokenizer(tmp_path)
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        mean = reference.encode(pixels).latent_dist.mode()
        latents = (normalise_latents(mean) - 0.1) * 0.5
        decoded = reference.decode(latents / 0.5 + 0.1).sample.clamp(-1, 1)
    assert float((ours.encode(pixels) - latents).abs().max()) <= 2e-5
    assert float((ours.decode(latents) - decoded).abs().max()) <= 2e-5


@pytest.mark.parametrize("save", [save_image_tokenizer, save_released])
def test_round_trip_through_both_layouts(save, tmp_path: Path) -> None:
    tokenizer = make(RELEASABLE).to(memory_format=torch.channels_last)
    save(tokenizer, tmp_path / "vae")
    again = load_image_tokenizer(tmp_path / "vae")
    assert again.config == tokenizer.config
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    tokens = tokenizer.encode_tokens(pixels)
    assert torch.equal(again.encode_tokens(pixels), tokens)
    assert torch.equal(again.decode_tokens(tokens, (4, 4)), tokenizer.decode_tokens(tokens, (4, 4)))


def test_sampled_encoding_is_seeded() -> None:
    sampling = ImageTokenizer(
        AutoencoderConfig((32, 32), 1, 8, deterministic=False),
        make(AutoencoderConfig((32, 32), 1, 8)).autoencoder,
    )
    pixels = torch.rand(1, 3, 16, 16)
    draw = lambda seed: sampling.encode(pixels, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    # Without a generator nothing is drawn from global state: the mean.
    assert torch.equal(sampling.encode(pixels), sampling.encode(pixels))


@pytest.mark.parametrize("size", [(15, 16), (16, 40), (0, 16)])
def test_sizes_that_are_no_multiple(size: tuple[int, int]) -> None:
    tokenizer = ImageTokenizer(AutoencoderConfig((8, 8, 8, 8), 1, 16, 4))
    with pytest.raises(ValueError, match="multiples of 16"):
        tokenizer.grid(*size)


def test_a_shape_the_released_layout_cannot_say_is_written_in_diffusers(tmp_path: Path) -> None:
    tokenizer = make(AutoencoderConfig((8, 8), 1, 16, 4))
    save_released(tokenizer, tmp_path / "vae")
    assert not (tmp_path / "vae" / "checkpoint.pt").exists()
    assert load_image_tokenizer(tmp_path / "vae").config == tokenizer.config


def test_what_a_released_config_leaves_out_is_as_in_the_release(tmp_path: Path) -> None:
    save_released(make(RELEASABLE), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for name in ("psz", "encoder_norm", "deterministic", "scaling_factor", "shift_factor"):
        del raw[name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_image_tokenizer(tmp_path).config == RELEASABLE
    del raw["ch"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelFileError, match="lacks 'ch'"):
        load_image_tokenizer(tmp_path)


def test_every_mismatch_is_named(tmp_path: Path) -> None:
    save_released(make(RELEASABLE), tmp_path)
    weights = torch.load(tmp_path / "checkpoint.pt", weights_only=True)

    def written(change: dict, drop: tuple[str, ...] = ()) -> Path:
        kept = {k: v for k, v in weights.items() if k not in drop}
        torch.save(kept | change, tmp_path / "checkpoint.pt")
        return tmp_path

    with pytest.raises(ModelFileError, match=r"lacks 1 tensor.*decoder\.conv_in\.bias"):
        load_image_tokenizer(written({}, ("decoder.conv_in.bias",)))
    with pytest.raises(ModelFileError, match=r"1 unknown tensor.*decoder\.more"):
        load_image_tokenizer(written({"decoder.more": torch.zeros(1)}))
    with pytest.warns(UserWarning, match=r"outside encoder and decoder.*loss\.weight"):
        load_image_tokenizer(written({"loss.weight": torch.zeros(1)}))
    with pytest.raises(ModelFileError, match=r"conv_in\.bias.*shape \(3,\)"):
        load_image_tokenizer(written({"encoder.conv_in.bias": torch.zeros(3)}))


class _Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickles_with_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_released(make(RELEASABLE), tmp_path)
    torch.save({"weights": _Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match="not plain weights"):
        load_image_tokenizer(tmp_path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02}q"])
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    save_released(make(RELEASABLE), tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"checkpoint\.pt is damaged"):
        load_image_tokenizer(tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match="no table of tensors"):
        load_image_tokenizer(tmp_path)


def test_truncated_and_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        load_image_tokenizer(tmp_path)
    save_released(make(RELEASABLE), tmp_path)
    data = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(ModelFileError, match="neither"):
        load_image_tokenizer(tmp_path)
