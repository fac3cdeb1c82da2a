"""Formats of picture files: which are read, the endings they go by, and what is said of others."""

from __future__ import annotations

import zlib
from functools import cache

FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI",
)  # fmt: skip
"""Pillow's names of the formats that are read: none of them runs a program, as PostScript does."""

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pnm", ".qoi",
)  # fmt: skip
HEIF_ENDINGS = (".heic", ".heif", ".hif")
UNREAD_ENDINGS = {
    ".jxl": "JPEG XL", ".psd": "Photoshop", ".xcf": "GIMP", ".svg": "SVG", ".eps": "PostScript",
    ".tga": "TGA", ".exr": "OpenEXR", ".hdr": "Radiance", ".dng": "raw", ".cr2": "raw",
    ".cr3": "raw", ".nef": "raw", ".arw": "raw", ".orf": "raw", ".rw2": "raw", ".raf": "raw",
}  # fmt: skip
"""Endings of pictures that are not read -> what they hold."""

HEIF_MISSING = "HEIC pictures need pillow-heif: pip install 'open-nextstep[heif]'"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@cache
def readable() -> tuple[str, ...]:
    """Pillow's names of what is read here: HEIF too, where pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def is_picture(ending: str) -> bool:
    """Whether files of an ending (with its dot) are taken for pictures that are read here."""
    ending = ending.lower()
    return ending in ENDINGS or (ending in HEIF_ENDINGS and "HEIF" in readable())


def unread_by_ending(ending: str) -> str:
    """Why files of an ending are pictures that are not read here; "" for anything else."""
    ending = ending.lower()
    if ending in HEIF_ENDINGS and "HEIF" not in readable():
        return HEIF_MISSING
    if ending in UNREAD_ENDINGS:
        return f"{UNREAD_ENDINGS[ending]} is not read; save it as PNG or JPEG"
    return ""


def unread_by_content(head: bytes) -> str:
    """Why a file that begins so is not read, when its format is known; "" when it is not.

    Args:
        head: the first 12 bytes or more.
    """
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" not in readable():
        return HEIF_MISSING
    if head.startswith(_JXL_STARTS):
        return "JPEG XL is not read; save it as PNG or JPEG"
    return ""


def is_whole_png(data: bytes) -> bool:
    """Whether a file is a PNG from its first to its last byte, with every checksum right.

    The format has a checksum a chunk (PNG specification, third edition, section 5).
    """
    if not data.startswith(PNG_SIGNATURE):
        return False
    place, name, first = len(PNG_SIGNATURE), b"", True
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        name, end = data[place + 4 : place + 8], place + 8 + size
        if first and name != b"IHDR":
            return False
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        place, first = end + 4, False
        if name == b"IEND":
            break
    return name == b"IEND" and place == len(data)
