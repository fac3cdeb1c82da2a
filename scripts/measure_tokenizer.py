"""Reconstruction PSNR of an image tokenizer on held-out drawing styles and photographs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nextstep.folders import find_folder, load_parts
from nextstep.image.pictures import open_picture, resize_and_crop, to_pixels
from nextstep.image.tokenizer import ImageTokenizer
from nextstep.world.scenes import compose, emoji_set
from nextstep.world.sources import emoji_names
from nextstep.world.vocabulary import COLOURS, HELD_OUT_STYLES, OBJECTS, STYLES

SIZE = 128


def psnr(tokenizer: ImageTokenizer, pictures: list[Image.Image]) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    values = []
    for picture in pictures:
        pixels = to_pixels([picture])
        tokens = tokenizer.encode_tokens(pixels)
        grid = tokenizer.grid(picture.height, picture.width)
        error = (tokenizer.decode_tokens(tokens, grid) - pixels).square().mean()
        values.append(float(10 * torch.log10(4 / error)))
    return round(float(np.mean(values)), 2)


def drawings(style: str) -> list[Image.Image]:
    """Every vocabulary object that the style draws, on the ten backgrounds in turn."""
    made = []
    for i, name in enumerate(OBJECTS):
        code = emoji_names()[name]
        if code in emoji_set(style):
            icon = emoji_set(style).draw(code, round(SIZE * 0.82))
            made.append(compose(icon, list(COLOURS.values())[i % len(COLOURS)], SIZE))
    return made


def crops(picture: Image.Image) -> list[Image.Image]:
    """The whole picture at SIZE, and its middle at twice that scale."""
    double = resize_and_crop(picture, 2 * SIZE, 2 * SIZE)
    half = SIZE // 2
    return [resize_and_crop(picture, SIZE, SIZE), double.crop((half, half, half * 3, half * 3))]


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="held-out photographs")
    args = parser.parse_args()
    tokenizer = load_parts(find_folder(args.model)).image_tokenizer
    found = {style: psnr(tokenizer, drawings(style)) for style in (*STYLES, *HELD_OUT_STYLES)}
    if args.photos:
        pictures = [crop for path in args.photos for crop in crops(open_picture(path))]
        found["photographs"] = psnr(tokenizer, pictures)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
