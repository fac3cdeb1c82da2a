"""Pictures from outside: checked by content before they are decoded, kept without anything else.

Only PNG, JPEG and WebP are taken, whatever name or media type they claim. What is kept is the
decoded pixels written anew as PNG, so nothing that travels beside them survives.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from collections.abc import Callable

from PIL import Image

from nextstep.image.masks import fit_mask, read_mask
from nextstep.image.pictures import open_picture
from nextstep.serve.jobs.limits import Limits
from nextstep.serve.problems import ApiError, bad

_DATA = re.compile(r"data:image/(?:png|jpe?g|webp);base64,([A-Za-z0-9+/=\s]*)", re.ASCII)
_PNG = b"\x89PNG\r\n\x1a\n"


def picture_of_uri(uri: str, limits: Limits, param: str) -> bytes:
    """The clean PNG of a data URI; see `bytes_of_uri` and `safe_picture`."""
    return safe_picture(bytes_of_uri(uri, limits, param), limits, param)


def bytes_of_uri(uri: str, limits: Limits, param: str) -> bytes:
    """The file in a data URI; other addresses are never fetched.

    Raises:
        ApiError: when it is no data URI of a picture.
    """
    if len(uri) > limits.picture_bytes * 4 // 3 + 100:
        raise _too_large(f"at most {limits.picture_bytes:,} bytes", param)
    match = _DATA.fullmatch(uri)
    if match is None:
        raise bad(
            "pictures are given as data URIs, such as data:image/png;base64,...; "
            "remote addresses are not fetched",
            param,
        )
    try:
        return base64.b64decode("".join(match[1].split()), validate=True)
    except (binascii.Error, ValueError):
        raise bad("the data URI does not hold valid base64", param) from None


def safe_mask(data: bytes, source: bytes, limits: Limits, param: str) -> bytes:
    """An uploaded mask as a fresh grey PNG, white where its picture may change.

    Raises:
        ApiError: as `safe_picture`, and when it has another size than its picture or marks nothing.
    """
    mask = _opened(data, limits, param, read_mask)
    with Image.open(io.BytesIO(source), formats=["PNG"]) as picture:
        size = picture.size
    try:
        fit_mask(mask, size, size[1], size[0])
    except ValueError as error:
        raise bad(str(error), param) from None
    return _fresh(mask)


def safe_picture(data: bytes, limits: Limits, param: str) -> bytes:
    """The pixels of an uploaded picture as a fresh PNG.

    Raises:
        ApiError: for other formats, trailing data, animations, damage, too many bytes or pixels.
    """
    return _fresh(_opened(data, limits, param, open_picture))


def _fresh(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    plain = Image.frombytes(picture.mode, picture.size, picture.tobytes())
    plain.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _opened(
    data: bytes, limits: Limits, param: str, decode: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """A checked picture, decoded."""
    if len(data) > limits.picture_bytes:
        raise _too_large(f"at most {limits.picture_bytes:,} bytes", param)
    kind = _kind(data)
    if kind is None:
        raise bad("only PNG, JPEG and WebP pictures are taken", param, "unsupported_picture")
    if not _ends_where_it_should(data, kind):
        raise bad("the picture is cut off, or other data follows it", param, "damaged_picture")
    try:
        with warnings.catch_warnings():
            # Pillow warns above its own limit; ours is checked right below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=[kind])
            if opened.width * opened.height > limits.picture_pixels:
                raise _too_large(f"at most {limits.picture_pixels:,} pixels", param)
            if getattr(opened, "n_frames", 1) != 1:
                raise bad("animated pictures are not taken", param, "unsupported_picture")
            return decode(opened)
    except Image.DecompressionBombError:
        raise _too_large(f"at most {limits.picture_pixels:,} pixels", param) from None
    except (ValueError, OSError, SyntaxError):
        raise bad("the picture is damaged and cannot be read", param, "damaged_picture") from None


def encode(png: bytes, form: str, quality: int) -> bytes:
    """A picture of ours in the form that was asked for; PNG keeps its settings inside.

    Args:
        png: as made.
        form: png, jpeg or webp.
        quality: of jpeg and webp, 0 to 100.
    """
    if form == "png":
        return png
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        picture.convert("RGB").save(buffer, form.upper(), quality=quality)
    return buffer.getvalue()


def _kind(data: bytes) -> str | None:
    if data.startswith(_PNG):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def _ends_where_it_should(data: bytes, kind: str) -> bool:
    """Whether the file ends with its own last byte: files that are two things at once do not."""
    if kind == "WEBP":
        size = int.from_bytes(data[4:8], "little") + 8
        return size <= len(data) <= size + 1
    if kind == "JPEG":
        return data.rstrip(b"\0").endswith(b"\xff\xd9")
    place = len(_PNG)
    while place + 12 <= len(data):
        name = data[place + 4 : place + 8]
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        if name == b"IEND":
            return place == len(data)
    return False


def _too_large(limit: str, param: str) -> ApiError:
    return ApiError(413, f"the picture is too large: {limit} are taken", param=param,
                    code="picture_too_large")  # fmt: skip
