"""PSNR, SSIM and feature distance of an image tokenizer on every drawing style and photographs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from nextstep.engine.pretrained import load_parts
from nextstep.evaluate.reconstruction import measure
from nextstep.image.pictures import open_picture, resize_and_crop
from nextstep.model.folder import find_folder
from nextstep.vae.perceptual import FeatureNet
from nextstep.world.scenes import compose, emoji_set
from nextstep.world.sources import emoji_names
from nextstep.world.vocabulary import COLOURS, HELD_OUT_STYLES, OBJECTS, STYLES

SIZE = 128


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
    features = FeatureNet.from_package()
    sets = {style: drawings(style) for style in (*STYLES, *HELD_OUT_STYLES)}
    if args.photos:
        sets["photographs"] = [crop for path in args.photos for crop in crops(open_picture(path))]
    found = {name: measure(tokenizer, given, features).rounded() for name, given in sets.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
