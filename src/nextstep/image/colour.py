"""Colour profiles: what a picture's numbers mean, brought to the sRGB that models are trained on.

A profile that is damaged, or that is not about the picture's kind of colours, is passed over.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

from PIL import Image, ImageCms

from nextstep.image.colour_spaces import SPACE, RGBSpace, converted

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Colour space of a profile -> Pillow's mode of the pictures it is about."""


def to_srgb(
    picture: Image.Image, profile: bytes | None, space: RGBSpace | None = None
) -> Image.Image:
    """A picture without transparency as RGB in sRGB.

    Args:
        picture: of any mode with 8 bits a value.
        profile: ICC profile that came with it.
        space: that the file names instead; without either its numbers are taken as they are.
    """
    colours = picture.convert("RGB") if picture.mode in ("P", "RGBX", "YCbCr", "HSV") else picture
    if colours.mode == "LAB":
        return _transformed(colours, ImageCms.createProfile("LAB")) or colours.getchannel(0)
    if profile:
        source = _opened(profile)
        kind = source.profile.xcolor_space.strip() if source else ""
        if MODES.get(kind) == colours.mode and not _is_srgb(source):
            colours = _transformed(colours, source) or colours
    flat = colours.convert("RGB")
    if space is not None and not profile and colours.mode in ("RGB", "L"):
        flat = converted(flat, space)
    flat.info.pop("icc_profile", None)
    flat.info.pop(SPACE, None)
    return flat


def _opened(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError, TypeError):
        return None


def _is_srgb(profile: Any) -> bool:
    """Whether it is sRGB by name: then rounding must not change a single value."""
    try:
        return "srgb" in ImageCms.getProfileDescription(profile).lower()
    except ImageCms.PyCMSError:
        return False


def _transformed(picture: Image.Image, source: Any) -> Image.Image | None:
    """As sRGB by the profile's own intent; None when the profile cannot do it."""
    try:
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
        return ImageCms.profileToProfile(picture, source, _srgb(), intent, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
