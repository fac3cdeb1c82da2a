"""Masks: which pixels of a picture may change, and which image tokens that touches.

A mask is a bool array [H, W], True where the picture may change.

Legend: H W pixels, N image tokens in raster order; True may change.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from nextstep.image.pictures import PictureLike, eight_bits, has_transparency, load_upright

if TYPE_CHECKING:
    from torch import Tensor

HALF = 128


def read_mask(source: PictureLike) -> Image.Image:
    """A mask as a grey picture, 255 where the picture may change, else 0.

    A picture with transparency marks with its transparent pixels, as OpenAI's masks do; one
    without marks with its light ones.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a picture, or is damaged.
    """
    mask = eight_bits(load_upright(source))
    if has_transparency(mask):
        return mask.convert("RGBA").getchannel("A").point(lambda a: 255 if a < HALF else 0)
    return mask.convert("L").point(lambda grey: 255 if grey >= HALF else 0)


def fit_mask(mask: Image.Image, picture: tuple[int, int], height: int, width: int) -> np.ndarray:
    """A mask resized as its picture is.

    Args:
        mask: as `read_mask` gives it.
        picture: (width, height) of the picture it belongs to.
        height, width: that the picture is resized and cropped to.

    Returns:
        [height, width] bool; a pixel may change when any part of it was marked.

    Raises:
        ValueError: when mask and picture differ in size, or nothing is marked.
    """
    if mask.size != picture:
        raise ValueError(
            f"the mask has {mask.width}x{mask.height} pixels and its picture "
            f"{picture[0]}x{picture[1]}; give one of the picture's size"
        )
    fitted = ImageOps.fit(mask, (width, height), Image.Resampling.BOX)
    marked: np.ndarray = np.asarray(fitted) > 0
    if not marked.any():
        raise ValueError(
            "the mask marks nothing: make the places to change transparent, or white in a "
            "mask without transparency"
        )
    return marked


def touched(mask: np.ndarray, side: int) -> Tensor:
    """[N] bool in raster order: image tokens of side x side pixels with a pixel that may change."""
    rows, columns = mask.shape[0] // side, mask.shape[1] // side
    blocks = mask.reshape(rows, side, columns, side).any(axis=(1, 3))
    import torch

    return torch.from_numpy(blocks.reshape(-1))


def feathered(mask: np.ndarray, width: int) -> np.ndarray:
    """How much of a change is seen at each pixel of a mask [H, W]: 0 outside, 1 deep inside.

    It grows evenly over `width` pixels from the mask's border inwards, where 8 neighbours count as
    next to each other; the border of the picture is none of the mask.
    """
    inside, total = mask, mask.astype(np.float32)
    for _ in range(width):
        inside = _eroded(_eroded(inside).T).T
        total += inside
    return total / (width + 1)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Rows of a mask without the ends of their runs."""
    padded = np.pad(mask, ((0, 0), (1, 1)), constant_values=True)
    return padded[:, :-2] & padded[:, 1:-1] & padded[:, 2:]


def paste(
    changed: Image.Image, original: Image.Image, mask: np.ndarray, feather: int = 0
) -> Image.Image:
    """`changed` where the mask allows it, `original` elsewhere, pixel by pixel.

    Args:
        changed, original: RGB of one size.
        mask: [H, W] bool.
        feather: pixels over which the change grows from the mask's border inwards.
    """
    new, old = np.asarray(changed), np.asarray(original)
    if feather:
        share = feathered(mask, feather)[..., None]
        new = np.where(share < 1, (old + share * (new.astype(np.float32) - old)).round(), new)
    return Image.fromarray(np.where(mask[..., None], new, old).astype(np.uint8), "RGB")


def mask_hash(mask: np.ndarray) -> str:
    """16 hex digits of a mask."""
    data = np.packbits(mask).tobytes() + str(mask.shape).encode()
    return hashlib.sha256(data).hexdigest()[:16]
