"""Teach the nano model the OpenMoji style from 24 pictures, and show it on 16 other objects.

    python examples/finetune_openmoji.py runs/openmoji

The drawings are fetched with npm. They are CC-BY-SA 4.0 (OpenMoji): the adapter that comes out is
yours to try, not ours to ship.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nextstep.finetune.run import FinetuneSettings, finetune
from nextstep.world.captions import default_caption
from nextstep.world.scenes import single
from nextstep.world.vocabulary import COLOURS, sample_objects

STYLE, SEED = "openmoji", 3
TRAINED, SHOWN = 24, 16


def scenes() -> list[tuple[str, str]]:
    """Objects and backgrounds: the first are trained on, the others shown; drawn, not chosen."""
    colours = list(COLOURS)
    names = sample_objects(TRAINED + SHOWN, SEED)
    return [(name, colours[i * 3 % len(colours)]) for i, name in enumerate(names)]


def main() -> None:
    """Write the folder of pictures, fine-tune, say where the sheet is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of pictures and result")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    data = args.folder / "pictures"
    data.mkdir(parents=True, exist_ok=True)
    for name, colour in scenes()[:TRAINED]:
        file = data / f"{name.replace(' ', '-')}.png"
        single(name, STYLE, colour, size=256).save(file)
        file.with_suffix(".txt").write_text(default_caption(name, STYLE, colour))
    prompts = [default_caption(name, STYLE, colour) for name, colour in scenes()[TRAINED:]]
    done = finetune(
        FinetuneSettings(
            data,
            args.folder / "finetuned",
            args.model,
            steps=args.steps,
            minutes=args.minutes,
            prompts=tuple(prompts),
        ),
        progress=True,
    )
    print(f"{done.steps} steps, {done.seconds / 60:.1f} minutes; look at {done.sheet}")


if __name__ == "__main__":
    main()
