"""Pictures as files: PNG, JPEG or WebP by the ending of their name, with texts inside.

PNG carries texts as chunks of their own; JPEG and WebP carry all of them as one JSON object in the
EXIF field UserComment.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import ExifTags, Image, PngImagePlugin

from nextstep.errors import NextStepError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Endings -> Pillow's names."""
QUALITY = 95
"""Of JPEG and WebP; at it nothing that is drawn here shows a trace."""
SOFTWARE, OWN = "Software", "open-nextstep"
MARK = {SOFTWARE: OWN}
"""Texts of pictures that carry no settings, such as sheets."""
_ASCII = b"ASCII\0\0\0"
"""How EXIF marks a comment in ASCII."""


def format_of(path: Path) -> str:
    """Pillow's name of the format that a file's ending asks for.

    Raises:
        NextStepError: for another ending.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise NextStepError(
            f"pictures are written as PNG, JPEG or WebP; '{path}' does not end in "
            f"{', '.join([*FORMATS][:-1])} or {[*FORMATS][-1]}"
        )
    return form


def encode(
    picture: Image.Image,
    form: str = "PNG",
    texts: dict[str, str] | None = None,
    quality: int = QUALITY,
) -> bytes:
    """The contents of a picture file.

    Args:
        picture: RGB.
        form: "PNG", "JPEG" or "WEBP".
        texts: put inside, any characters.
        quality: of JPEG and WebP, 0 to 100.

    Raises:
        NextStepError: when the texts are too long for a JPEG file, which holds 64 KB of them.
    """
    buffer, texts = io.BytesIO(), texts or {}
    if form == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            chunks.add_itxt(key, value)
        picture.save(buffer, form, pnginfo=chunks)
        return buffer.getvalue()
    exif = Image.Exif()
    if texts:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + json.dumps(
            texts
        ).encode("ascii")
    try:
        picture.save(buffer, form, quality=quality, subsampling=0, exif=exif)
    except ValueError as error:
        raise NextStepError(f"the settings do not fit into a {form} file: {error}") from None
    return buffer.getvalue()


def texts_inside(picture: Image.Image) -> dict[str, str]:
    """What `encode` put into a picture that was opened and loaded; empty when there is nothing."""
    comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes) and comment.startswith(_ASCII):
        try:
            told = json.loads(comment.removeprefix(_ASCII))
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, dict):
            return {name: text for name, text in told.items() if isinstance(text, str)}
    found = picture.info.items()
    return {str(name): text for name, text in found if isinstance(text, str)}


def is_own(path: Path) -> bool:
    """Whether a picture file says that it was written here."""
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as picture:
            texts = texts_inside(picture)
    except Exception:  # a foreign file may hold anything
        return False
    return texts.get(SOFTWARE, "").startswith(OWN)
