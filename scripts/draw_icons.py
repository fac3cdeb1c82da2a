"""Draw every emoji of the tokenizer's styles into one array; see docs/how-to/train-nano.md."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nextstep.world.sources import all_drawings
from nextstep.world.vocabulary import TOKENIZER_STYLES

SIZE = 104


def main() -> None:
    """Write uint8 [n, SIZE, SIZE, 4], each drawing centred on a transparent square."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    drawn = []
    for style in TOKENIZER_STYLES:
        for _, icon in all_drawings(style, SIZE):
            square = np.zeros((SIZE, SIZE, 4), np.uint8)
            top, left = (SIZE - icon.height) // 2, (SIZE - icon.width) // 2
            square[top : top + icon.height, left : left + icon.width] = np.asarray(icon)
            drawn.append(square)
        print(f"{style}: {len(drawn)} drawings so far", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    np.save(args.output, np.stack(drawn))


if __name__ == "__main__":
    main()
