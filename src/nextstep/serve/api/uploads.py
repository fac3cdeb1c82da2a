"""Pictures from outside: checked by content before they are decoded, kept without anything else.

What a file claims to be, by name or media type, does not count. What is kept is the decoded pixels
written anew as PNG, so nothing that travels beside or behind them survives. Large photos are halved
while they are decoded; what is kept of a photo's size is what a mask has to have.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from nextstep.image import formats
from nextstep.image.encode import encode, texts_inside
from nextstep.image.masks import HALF, fit_mask, read_mask
from nextstep.image.pictures import (
    MAX_PIXELS,
    ORIGINAL_SIZE,
    PictureTooLargeError,
    decoded_pixels,
    has_transparency,
    open_header,
    open_picture,
)
from nextstep.serve.jobs.limits import ServiceLimits
from nextstep.serve.problems import ApiError, bad

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "HEIF")
"""What is taken, as far as it can be read here."""
_DATA = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,([A-Za-z0-9+/=\s]*)", re.ASCII)
_PNG = b"\x89PNG\r\n\x1a\n"


def check_pictures(files: Sequence[bytes], limits: ServiceLimits, param: str) -> None:
    """Refuse pictures by their headers, before any of them is decoded.

    Raises:
        ApiError: for other formats, animations, too many bytes or pixels in one or in all.
    """
    pixels = sum(decoded_pixels(_header(data, limits, param)) for data in files)
    if pixels > limits.decoded_pixels:
        raise _too_large(
            f"at most {limits.decoded_pixels:,} pixels to decode in all pictures of a request",
            param,
        )


def bytes_of_uri(uri: str, limits: ServiceLimits, param: str) -> bytes:
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


def safe_mask(data: bytes, source: bytes, limits: ServiceLimits, param: str) -> bytes:
    """An uploaded mask as a fresh grey PNG, white where its picture may change.

    Args:
        data: the upload.
        source: what `safe_picture` made of its picture.
        limits: of the service.
        param: named in errors.

    Raises:
        ApiError: as `safe_picture`, and when it has another size than its picture or marks nothing.
    """
    mask = _decoded(data, limits, param, read_mask)
    with Image.open(io.BytesIO(source), formats=["PNG"]) as picture:
        kept = picture.size
        given = picture.info.get(ORIGINAL_SIZE, f"{kept[0]}x{kept[1]}")
    width, height = map(int, given.split("x"))
    try:
        marked = fit_mask(mask, (width, height), kept[1], kept[0])
    except ValueError as error:
        raise bad(str(error), param) from None
    return _fresh(Image.fromarray(marked.astype(np.uint8) * 255))


def has_hole(data: bytes) -> bool:
    """Whether an upload that was taken is transparent in some places and opaque in others."""
    with open_header(io.BytesIO(data)) as picture:
        if not has_transparency(picture):
            return False
        least, most = picture.convert("RGBA").getchannel("A").getextrema()
    return int(least) < HALF <= int(most)  # type: ignore[arg-type]


def safe_picture(data: bytes, limits: ServiceLimits, param: str) -> bytes:
    """The pixels of an uploaded picture as a fresh PNG.

    Raises:
        ApiError: for other formats, animations, damage, too many bytes or pixels.
    """
    return _fresh(_decoded(data, limits, param, open_picture))


def _fresh(picture: Image.Image) -> bytes:
    buffer, size = io.BytesIO(), PngImagePlugin.PngInfo()
    if ORIGINAL_SIZE in picture.info:
        size.add_text(ORIGINAL_SIZE, "{}x{}".format(*picture.info[ORIGINAL_SIZE]))
    plain = Image.frombytes(picture.mode, picture.size, picture.tobytes())
    plain.save(buffer, "PNG", compress_level=1, pnginfo=size)
    return buffer.getvalue()


def _decoded(
    data: bytes, limits: ServiceLimits, param: str, decode: Callable[[bytes], Image.Image]
) -> Image.Image:
    """A checked picture, decoded."""
    _header(data, limits, param)
    try:
        return decode(data)
    except PictureTooLargeError as error:
        raise ApiError(413, str(error), param=param, code="picture_too_large") from None
    except ValueError:
        raise bad("the picture is damaged and cannot be read", param, "damaged_picture") from None


def _header(data: bytes, limits: ServiceLimits, param: str) -> Image.Image:
    """A picture that may be decoded, of which only the header is read."""
    if len(data) > limits.picture_bytes:
        raise _too_large(f"at most {limits.picture_bytes:,} bytes", param)
    kinds = [kind for kind in FORMATS if kind in formats.readable()]
    try:
        opened = open_header(data, kinds)
        frames = getattr(opened, "n_frames", 1)
    except (UnidentifiedImageError, SyntaxError):
        reason = formats.unread_by_content(data) or f"only {', '.join(kinds)} pictures are taken"
        raise bad(reason, param, "unsupported_picture") from None
    except PictureTooLargeError:
        most = min(limits.picture_pixels, MAX_PIXELS)
        raise _too_large(f"at most {most:,} pixels of this format", param) from None
    except Exception:  # damaged headers raise what they like
        raise bad("the picture is damaged and cannot be read", param, "damaged_picture") from None
    if opened.width * opened.height > limits.picture_pixels:
        raise _too_large(f"at most {limits.picture_pixels:,} pixels", param)
    # The further pictures of a photo (depth, brighter tones, a preview) are no animation.
    if frames != 1 and opened.format not in ("MPO", "HEIF"):
        raise bad("animated pictures are not taken", param, "unsupported_picture")
    if opened.format == "PNG" and not _has_its_end(data):
        raise bad("the picture is cut off", param, "damaged_picture")
    return opened


def in_form(png: bytes, form: str, quality: int) -> bytes:
    """A picture of ours in the form that was asked for, its settings inside.

    Args:
        png: as made.
        form: png, jpeg or webp.
        quality: of jpeg and webp, 0 to 100.
    """
    if form == "png":
        return png
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        plain = picture.convert("RGB")
        return encode(plain, form.upper(), texts_inside(picture), quality)


def _has_its_end(png: bytes) -> bool:
    """Whether a PNG goes on to its last chunk; its decoder would not miss it."""
    place = len(_PNG)
    while place + 12 <= len(png):
        name = png[place + 4 : place + 8]
        place += 12 + int.from_bytes(png[place : place + 4], "big")
        if name == b"IEND":
            return place <= len(png)
    return False


def _too_large(limit: str, param: str) -> ApiError:
    return ApiError(413, f"the picture is too large: {limit} are taken", param=param,
                    code="picture_too_large")  # fmt: skip
