"""Pictures are encoded once, and to the same numbers in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nextstep.train.stages import encoding
from nextstep.train.stages.encoding import PictureEncoder
from nextstep.vae.tokenizer import ImageTokenizer
from tests.conftest import TINY_VAE


class Counting(ImageTokenizer):
    """An image tokenizer that counts how often it encodes."""

    calls = 0

    def encode_tokens(self, pixels: Tensor) -> Tensor:
        """As the tokenizer does."""
        self.calls += 1
        return super().encode_tokens(pixels)


def tokenizer() -> Counting:
    torch.manual_seed(0)
    return Counting(TINY_VAE)


def pictures(count: int, side: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def test_a_picture_is_encoded_once() -> None:
    own = tokenizer()
    encode, seen = PictureEncoder(own), pictures(5)
    first = encode(seen)
    assert (own.calls, tuple(first.shape)) == (1, (5, 4, 64))
    assert torch.equal(encode(seen.flip(0)), first.flip(0))
    assert own.calls == 1
    assert torch.equal(encode(torch.cat((pictures(1, seed=9), seen)))[1:], first)
    assert own.calls == 2


def test_the_same_picture_twice_in_a_batch_is_one() -> None:
    (one,) = pictures(1)
    both = PictureEncoder(tokenizer())(torch.stack((one, one)))
    assert torch.equal(both[0], both[1])


def test_batch_composition_and_memory_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoding.PIXELS_AT_ONCE, "cpu", 4 * 32 * 32)
    many = pictures(11)
    together = PictureEncoder(tokenizer())(many)
    alone = torch.cat([PictureEncoder(tokenizer())(one[None]) for one in many])
    assert torch.equal(together, alone)
    warm = PictureEncoder(tokenizer())
    warm(many[3:7])
    assert torch.equal(warm(many), together)


def test_the_oldest_are_forgotten() -> None:
    own = tokenizer()
    room = 3 * 4 * 64 * 4
    encode, seen = PictureEncoder(own, remembered=room), pictures(4)
    for picture in seen:
        encode(picture[None])
    assert encode.held == room
    calls = own.calls
    encode(seen[1:])
    assert own.calls == calls
    encode(seen[:1])
    assert own.calls == calls + 1


def test_sizes_are_distinguished() -> None:
    encode = PictureEncoder(tokenizer())
    square = pictures(1)
    wide = square.reshape(1, 16, 64, 3)
    assert encode(square).shape == encode(wide).shape
    assert not torch.equal(encode(square), encode(wide))


def test_nothing_is_remembered_where_encoding_costs_less_than_telling_contents_apart() -> None:
    own = tokenizer().to("meta")
    encode, seen = PictureEncoder(own), pictures(5).to("meta")
    for turn in (1, 2):
        tokens = encode(seen)
        assert (own.calls, tuple(tokens.shape), tokens.device.type) == (turn, (5, 4, 64), "meta")
    assert encode.held == 0
