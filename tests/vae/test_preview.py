"""Pictures that grow: only new rows are decoded, or shown roughly through one matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nextstep.engine.pretrained import load_parts
from nextstep.image import pictures
from nextstep.vae.preview import BLANK, GrowingPicture, LinearPreview, _drawn
from nextstep.vae.tokenizer import ImageTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    return load_parts("nano").image_tokenizer


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_growing_and_linear_previews_are_near_the_whole_picture(tokenizer: ImageTokenizer) -> None:
    pixels = _drawn(60, 96)[-1:]
    tokens = tokenizer.encode_tokens(pixels)[0].float()
    whole = np.asarray(pictures.to_pictures(tokenizer.decode_tokens(tokens[None], (6, 6)))[0])
    preview = LinearPreview(tokenizer)
    growing, calls = GrowingPicture(tokenizer, (6, 6)), []
    decode = tokenizer.decode_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tokenizer, "decode_tokens", lambda *given: calls.append(given[1]) or decode(*given)
        )
        assert np.asarray(growing.show(tokens[:5])).max() == BLANK[0]
        for row in (1, 2, 4):
            shown = np.asarray(growing.show(tokens[: row * 6 + 2]))
            assert (shown[row * 16 :] == BLANK[0]).all()
            assert apart(shown[: row * 16], whole[: row * 16]) < 20
        assert calls == [(1, 6), (2, 6), (3, 6)]
        shown = np.asarray(growing.show_linear_preview(tokens[:30], preview))
        again = np.asarray(growing.show(tokens[:24]))
        assert len(calls) == 3
    assert (shown[80:] == BLANK[0]).all() and (again[64:] == BLANK[0]).all()
    assert (shown[:64] == again[:64]).all()
    assert apart(shown[64:80], whole[64:80]) < 0.6 * apart(np.full_like(whole, 128)[64:80],
                                                          whole[64:80])  # fmt: skip


def test_linear_preview_pixels_are_in_place(tokenizer: ImageTokenizer) -> None:
    pixels = _drawn(49, 64)[-1:]
    tokens = tokenizer.encode_tokens(pixels)[0].float()
    made = LinearPreview(tokenizer).decode(tokens[:8], (2, 4))
    assert made.shape == (1, 3, 32, 64)
    flat = torch.corrcoef(torch.stack((made.flatten(), pixels[:, :, :32].flatten())))
    assert flat[0, 1] > 0.9
