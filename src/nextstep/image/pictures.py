"""Pictures in and out: PIL images, pixel tensors, files.

Pixels are float tensors [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded."""


def open_picture(source: str | Path | IO[bytes] | Image.Image) -> Image.Image:
    """Load a picture: EXIF orientation applied, alpha laid on white, RGB.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a picture, is damaged, or is too large.
    """
    name = source if isinstance(source, str | Path) else "the picture"
    try:
        with warnings.catch_warnings():
            # Pillow warns above its own limit; ours is checked right below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = source if isinstance(source, Image.Image) else Image.open(source)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(
                f"{name} has {picture.width}x{picture.height} pixels; "
                f"at most {MAX_PIXELS // 1_000_000} million are read"
            )
        return flatten(ImageOps.exif_transpose(picture))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {name}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} is too large to be read safely") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that can be read") from None
    except ValueError:
        raise
    except Exception as error:  # decoders of rare formats raise what they like
        raise ValueError(f"{name} cannot be read: {error}") from None


def flatten(picture: Image.Image) -> Image.Image:
    """RGB with transparency laid on white; 16-bit values are scaled to 8.

    Raises:
        ValueError: for floating-point pictures, whose range nothing tells.
    """
    if picture.mode == "F":
        raise ValueError("pictures of floating-point values are not read; save it as PNG or JPEG")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return picture.convert("RGB")


def resize_and_crop(
    picture: Image.Image, height: int, width: int, place: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """Cover height x width with Lanczos, then crop.

    Args:
        picture: of any size.
        height, width: of the result.
        place: where the crop lies, (down, across): 0 keeps the upper or left edge, 1 the other one,
            0.5 the centre.
    """
    down, across = place
    return ImageOps.fit(
        picture, (width, height), Image.Resampling.LANCZOS, centering=(across, down)
    )


def to_pixels(pictures: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """RGB pictures (or uint8 [H, W, 3] arrays) of one size -> pixels [B, 3, H, W]."""
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> np.ndarray:
    """Pixels [B, 3, H, W] -> uint8 [B, H, W, 3], rounded to the nearest value."""
    scaled = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
    array: np.ndarray = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] -> B RGB pictures."""
    return [Image.fromarray(array, "RGB") for array in to_bytes(pixels)]


def png_bytes(picture: Image.Image, texts: dict[str, str]) -> bytes:
    """PNG file contents with `texts` as text chunks (international text, any characters)."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
