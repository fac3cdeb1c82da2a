"""Pictures to image tokens while training runs, each of them encoded once.

Legend: n pictures, H W pixels, N image tokens, D values per token.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from nextstep.vae.tokenizer import ImageTokenizer

PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**20}
"""Pixels that are encoded together; on a CPU more of them leave its caches."""
REMEMBERED = 2**29
"""Bytes of image tokens that are kept."""


class PictureEncoder:
    """Image tokens of pictures, remembered by content.

    A set that is small against the run, like scenes on plain backgrounds or pictures to fine-tune
    on, is encoded in its first epoch only; fresh pictures push the oldest out. Pictures are always
    encoded in groups of one size, so that the tokens of one do not depend on the rest of the batch,
    nor on what is remembered: a resumed run reads the same numbers. A GPU encodes faster than a
    processor tells contents apart, so nothing is remembered there.

    Args:
        tokenizer: that encodes.
        remembered: bytes of tokens that are kept.
    """

    def __init__(self, tokenizer: ImageTokenizer, remembered: int = REMEMBERED) -> None:
        self.tokenizer, self.remembered = tokenizer, remembered
        self.held = 0
        self._tokens: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Image tokens [n, N, D] of pixels [n, H, W, 3], uint8.

        They come in the tokenizer's precision and on the device of the pixels.
        """
        if pixels.device.type != "cpu":
            return self._encoded(pixels)
        keys = [_key(picture) for picture in pixels]
        found = {key: self._tokens[key] for key in keys if key in self._tokens}
        new = {key: place for place, key in enumerate(keys) if key not in found}
        if new:
            encoded = self._encoded(pixels[list(new.values())])
            found |= dict(zip(new, encoded, strict=True))
        for key in found:
            self._remember(key, found[key])
        return torch.stack([found[key] for key in keys])

    def _encoded(self, pixels: Tensor) -> Tensor:
        n, H, W, _ = pixels.shape
        at_once = max(1, PIXELS_AT_ONCE.get(pixels.device.type, 2**18) // (H * W))
        rest = pixels.new_zeros(-n % at_once, H, W, 3)
        parts = torch.cat((pixels, rest)).split(at_once)
        scaled = (part.permute(0, 3, 1, 2).float() / 127.5 - 1 for part in parts)
        return torch.cat([self.tokenizer.encode_tokens(part) for part in scaled])[:n]

    def _remember(self, key: bytes, tokens: Tensor) -> None:
        if key in self._tokens:
            self._tokens.move_to_end(key)
            return
        # A copy: a slice would keep its whole group alive.
        self._tokens[key] = tokens.clone()
        self.held += tokens.nbytes
        while self.held > self.remembered:
            self.held -= self._tokens.popitem(last=False)[1].nbytes


def _key(picture: Tensor) -> bytes:
    digest = hashlib.blake2b(picture.numpy().tobytes(), digest_size=16)
    digest.update(repr(tuple(picture.shape)).encode())
    return digest.digest()
