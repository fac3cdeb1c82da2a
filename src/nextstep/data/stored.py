"""Pictures as they lie in a shard: encoded bytes, their size, and their decoding.

Only the formats of `image.formats` are opened, and the size in the header is looked at before
anything is decoded.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from nextstep.data.documents import SampleError
from nextstep.image import formats, pictures
from nextstep.image.colour_spaces import HEAD, note_space
from nextstep.image.encode import encode

CORRUPT_PICTURE = "corrupt picture"
BOMB = "decompression bomb"


def stored_suffix(data: bytes) -> str | None:
    """The ending that belongs to encoded bytes, or None when a shard does not hold their format."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return None


def upright_size(data: bytes, key: str) -> tuple[int, int]:
    """(width, height) after EXIF orientation, from the header alone.

    Raises:
        SampleError: "corrupt picture".
    """
    picture = _open(data, key)
    try:
        return pictures.upright_size(picture) if _may_be_turned(picture, data) else picture.size
    except Exception as error:  # damaged EXIF data raises what it likes
        raise SampleError(key, CORRUPT_PICTURE, f"EXIF data: {error}") from None


def decode(data: bytes, key: str) -> Image.Image:
    """The picture upright, RGB, with transparency laid on white.

    Raises:
        SampleError: "corrupt picture" or "decompression bomb".
    """
    picture = _open(data, key)
    refuse_bomb(picture.width, picture.height, key)
    try:
        return pictures.flatten(ImageOps.exif_transpose(picture))
    except Exception as error:  # decoders raise what they like
        raise SampleError(key, CORRUPT_PICTURE, str(error)) from None


def refuse_bomb(width: int, height: int, key: str) -> None:
    """Refuse what would not fit into memory once decoded.

    Raises:
        SampleError: "decompression bomb".
    """
    if width * height > pictures.MAX_PIXELS:
        raise SampleError(key, BOMB, f"{width}x{height} pixels")


def as_stored(data: bytes, key: str) -> bytes:
    """Bytes that a shard can hold: as they are when JPEG, PNG or WebP, else encoded as PNG.

    Raises:
        SampleError: "corrupt picture" or "decompression bomb".
    """
    return data if stored_suffix(data) else encode(decode(data, key))


def _open(data: bytes, key: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=formats.readable())
        note_space(picture, data[:HEAD])
        return picture
    except Image.DecompressionBombError as error:
        raise SampleError(key, BOMB, str(error)) from None
    except UnidentifiedImageError:
        reason = formats.unread_by_content(data) or "not a picture that can be read"
        raise SampleError(key, CORRUPT_PICTURE, reason) from None
    except Exception as error:  # damaged headers raise what they like
        raise SampleError(key, CORRUPT_PICTURE, str(error)) from None


def _may_be_turned(picture: Image.Image, data: bytes) -> bool:
    """Whether a look at the orientation is worth it: for PNG it would decode the whole picture."""
    return picture.format != "PNG" or any(mark in data for mark in (b"eXIf", b"exif", b"xmp"))
