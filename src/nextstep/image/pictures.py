"""Pictures in and out: PIL images, pixel tensors, files.

Pixels are float tensors [B, 3, H, W] in [-1, 1].

Legend: B pictures, C channels (3, or 4 with alpha), H W pixels, height first.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, cast

import numpy as np
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from nextstep.image import formats
from nextstep.image.colour import to_srgb
from nextstep.image.colour_spaces import HEAD, SPACE, note_space, space_of

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs

MAX_PIXELS = 100_000_000
"""Pictures with more pixels are refused before they are decoded."""
MAX_PHOTO_PIXELS = 250_000_000
"""The same for JPEG files that are shrunk while they are decoded: phones make 200 million."""
FINE_PIXELS = 2_000_000
"""Pictures are halved while they keep as many: twice what the largest models read."""
ORIGINAL_SIZE = "original_size"
"""Key in `Image.info` of the (width, height) of a picture that was halved."""

LARGEST_DRAFT = 8
"""By how much the decoder of JPEG files can divide a side."""

PictureLike: TypeAlias = "Image.Image | str | Path | IO[bytes] | bytes | np.ndarray | Tensor"
"""What is taken for a picture: see `open_picture`."""


class PictureTooLargeError(ValueError):
    """A picture has more pixels than are decoded."""


def open_picture(source: PictureLike) -> Image.Image:
    """Load a picture: upright, sRGB, transparency laid on white; a large one halved on the way.

    Args:
        source: a path, an open file, the bytes of a file, a PIL picture, or values in uint8: an
            array [H, W, 3] (also [H, W] and [H, W, 4]) or a tensor [3, H, W] (also 1 or 4).

    Returns:
        RGB. `original_size` tells the size of one that was halved.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a picture, is damaged, or is too large.
    """
    with _told_by_name(source) as name:
        picture = open_header(source)
        ours, original = picture is not source, upright_size(picture)
        if 0 in original:
            raise ValueError(f"{name} has no pixels")
        _refuse_too_large(picture, name, whole=not ours)
        flat = flatten(_halved(_upright(picture, ours)))
        if flat.size != original:
            flat.info[ORIGINAL_SIZE] = original
        return flat


def load_upright(source: PictureLike) -> Image.Image:
    """Load a picture upright and whole, in its own mode.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: as `open_picture`.
    """
    with _told_by_name(source) as name:
        picture = open_header(source)
        _refuse_too_large(picture, name, whole=True)
        return _upright(picture, ours=picture is not source)


def original_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of a picture before `open_picture` halved it."""
    width, height = picture.info.get(ORIGINAL_SIZE, picture.size)
    factor = max(1, width // picture.width)
    # Whoever resized it since then took the note along.
    halved = picture.size == (-(-width // factor), -(-height // factor))
    return (width, height) if halved else picture.size


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) after EXIF orientation, from the header alone."""
    if picture.format == "TIFF":  # Pillow turns these itself, and says the size they will have
        return picture.size
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (picture.height, picture.width) if turned else picture.size


def not_text(source: PictureLike) -> PictureLike:
    """A picture where text could stand too: a name is its path."""
    return Path(source) if isinstance(source, str) else source


def listed(given: PictureLike | Iterable[PictureLike]) -> list[PictureLike]:
    """One or several pictures as a list."""
    kinds = Image.Image | str | Path | bytes | bytearray | np.ndarray
    one = isinstance(given, kinds) or _is_tensor(given)
    if one or hasattr(given, "read") or not isinstance(given, Iterable):
        return [cast(PictureLike, given)]
    return list(cast(Iterable[PictureLike], given))


def flatten(picture: Image.Image) -> Image.Image:
    """RGB in sRGB with transparency laid on white; 16-bit values are scaled to 8.

    Raises:
        ValueError: for floating-point pictures, whose range nothing tells.
    """
    profile, space = picture.info.get("icc_profile"), space_of(picture)
    picture = eight_bits(picture)
    if not has_transparency(picture):
        return to_srgb(picture, profile, space)
    layered = picture.convert("RGBA")
    # A grey profile is about grey values, which LA still has.
    colours = picture.convert("L") if picture.mode == "LA" else layered.convert("RGB")
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(to_srgb(colours, profile, space), mask=layered.getchannel("A"))
    return white


def eight_bits(picture: Image.Image) -> Image.Image:
    """A picture with 8 bits a value: as it is, or a grey one of 16 bits scaled.

    Raises:
        ValueError: for floating-point pictures, and for values beyond 16 bits.
    """
    if picture.mode == "F":
        raise ValueError("pictures of floating-point values are not read; save it as PNG or JPEG")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pictures of 32-bit values are not read; save it as PNG or JPEG")
        return Image.fromarray((values // 257).astype(np.uint8))
    return picture


def has_transparency(picture: Image.Image) -> bool:
    """Whether a picture has a channel, a palette entry or a colour that is transparent."""
    return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def open_header(source: PictureLike, wanted: Sequence[str] | None = None) -> Image.Image:
    """A picture whose header alone is read; decoders raise here what they like.

    Args:
        source: see `open_picture`.
        wanted: Pillow's names of the formats that are taken; default all of `formats.readable`.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray) or _is_tensor(source):
        return _of_values(source)
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            kind = " but a folder" if path.is_dir() else ""
            raise ValueError(f"{source} is not a picture file{kind}")
    elif not hasattr(source, "read"):
        raise ValueError(
            "a picture is a path, an open file, bytes, a PIL picture, or an array or tensor of "
            f"uint8, not {type(source).__name__}"
        )
    with warnings.catch_warnings():
        # Pillow warns above a limit of its own; ours is checked instead.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(source, formats=tuple(wanted or formats.readable()))
            note_space(picture, read_head(source, HEAD))
            return picture
        except Image.DecompressionBombError:
            return _beyond_pillows_limit(source)


def _beyond_pillows_limit(source: str | Path | IO[bytes]) -> Image.Image:
    """A JPEG file, which may have more pixels because it is shrunk while it is decoded.

    Raises:
        PictureTooLargeError: for other formats.
    """
    try:
        return JpegImagePlugin.JpegImageFile(source)
    except SyntaxError:
        name = source if isinstance(source, str | Path) else "the picture"
        raise PictureTooLargeError(
            f"{name} is too large: at most {MAX_PIXELS // 1_000_000} million pixels are read, of a "
            f"JPEG {MAX_PHOTO_PIXELS // 1_000_000} million"
        ) from None


def _is_tensor(value: object) -> TypeIs[Tensor]:
    """Whether it is a torch tensor; nobody has one who has not imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _of_values(values: np.ndarray | Tensor) -> Image.Image:
    """A picture from uint8 [H, W, C] of an array or [C, H, W] of a tensor."""
    kind, given = "array", values
    if _is_tensor(values):
        kind = "tensor"
        given = values.detach().cpu()
        given = given.permute(1, 2, 0).numpy() if given.ndim == 3 else given.numpy()
    array = cast(np.ndarray, given)
    shape = "[3, H, W]" if kind == "tensor" else "[H, W, 3]"
    if array.dtype != np.uint8:
        raise ValueError(
            f"a picture as {kind} holds uint8 from 0 to 255, not {array.dtype}: what other "
            "numbers mean cannot be told, so scale and round them, as in (x * 255).round()"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"a picture as {kind} has the shape {shape}, not {list(values.shape)}; "
            "give several pictures as a list"
        )
    if not array.size:
        raise ValueError(f"the {kind} of a picture is empty")
    return Image.fromarray(np.ascontiguousarray(array))


def _refuse_too_large(picture: Image.Image, name: object, whole: bool) -> None:
    """Refuse a picture whose decoding would take too much memory; shrink a JPEG file.

    Args:
        picture: not decoded yet.
        name: of it.
        whole: it is to be decoded at its full size.

    Raises:
        ValueError: for one.
    """
    shrinks = not whole and _shrinks(picture)
    most = MAX_PHOTO_PIXELS if shrinks else MAX_PIXELS
    if picture.width * picture.height > most:
        raise PictureTooLargeError(
            f"{name} has {picture.width}x{picture.height} pixels; "
            f"at most {most // 1_000_000} million are read"
        )
    if shrinks and (factor := _halvings(picture.size)) > 1:
        picture.draft(None, (picture.width // factor, picture.height // factor))


def _halvings(size: tuple[int, int]) -> int:
    """By what power of two a picture's sides are divided while it keeps `FINE_PIXELS`."""
    factor = 1
    while (size[0] // (2 * factor)) * (size[1] // (2 * factor)) >= FINE_PIXELS:
        factor *= 2
    return factor


def _upright(picture: Image.Image, ours: bool) -> Image.Image:
    """The picture turned as its EXIF data say; somebody else's object is copied."""
    if not ours:
        return ImageOps.exif_transpose(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _halved(picture: Image.Image) -> Image.Image:
    """The picture with sides divided by means of squares, where it has more than is fine."""
    factor = _halvings(picture.size)
    if factor == 1:
        return picture
    profile, space = picture.info.get("icc_profile"), space_of(picture)
    picture = eight_bits(picture)
    if picture.mode in ("P", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA" if has_transparency(picture) else "RGB")
    elif picture.mode == "1":
        picture = picture.convert("L")
    small = picture.reduce(factor)
    kept = {"icc_profile": profile, SPACE: space}
    small.info = {name: value for name, value in kept.items() if value}
    return small


def decoded_pixels(picture: Image.Image) -> int:
    """How many pixels are in memory when a picture is decoded; of a JPEG file fewer than it has."""
    factor = min(_halvings(picture.size), LARGEST_DRAFT) if _shrinks(picture) else 1
    return (picture.width // factor) * (picture.height // factor)


def _shrinks(picture: Image.Image) -> bool:
    """Whether it can be shrunk while it is decoded; a progressive file is held whole even then."""
    return isinstance(picture, JpegImagePlugin.JpegImageFile) and "progressive" not in picture.info


@contextmanager
def _told_by_name(source: object) -> Iterator[object]:
    """Turns what decoders raise into one sentence that names the picture."""
    name = source if isinstance(source, str | Path) else "the picture"
    try:
        yield name
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {name}") from None
    except (UnidentifiedImageError, SyntaxError):
        if reason := formats.unread_by_content(read_head(source)):
            raise ValueError(f"{name} cannot be read: {reason}") from None
        raise ValueError(f"{name} is not a picture that can be read") from None
    except ValueError:
        raise
    except Exception as error:  # decoders of rare formats raise what they like
        raise ValueError(f"{name} cannot be read: {error}") from None


def read_head(source: object, size: int = 16) -> bytes:
    """The first bytes of a file, whose place in an open one stays; none where it has no begin."""
    try:
        if isinstance(source, str | Path):
            with Path(source).open("rb") as file:
                return file.read(size)
        if isinstance(source, bytes | bytearray):
            return bytes(source[:size])
        if isinstance(source, io.IOBase) or (hasattr(source, "seek") and hasattr(source, "tell")):
            place = source.tell()
            source.seek(0)
            head = bytes(source.read(size))  # type: ignore[attr-defined]
            source.seek(place)
            return head
    except (OSError, ValueError):
        pass
    return b""


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
    import torch

    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> np.ndarray:
    """Pixels [B, 3, H, W] -> uint8 [B, H, W, 3], rounded to the nearest value."""
    import torch

    scaled = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
    array: np.ndarray = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return array


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] -> B RGB pictures."""
    return [Image.fromarray(array, "RGB") for array in to_bytes(pixels)]
