"""Train the nano image tokenizer; see docs/how-to/train-nano.md."""

from __future__ import annotations

import argparse
import copy
import functools
from pathlib import Path

import numpy as np
import torch

from nextstep.image.autoencoder import NANO_AUTOENCODER, Autoencoder
from nextstep.image.tokenizer import ImageTokenizer
from nextstep.image.vae_files import load_image_tokenizer, save_image_tokenizer
from nextstep.stages.tokenizer import tokenizer_loss
from nextstep.train.loop import Loop, LoopConfig
from nextstep.world.crops import CropMaker, load_photos


def main() -> None:
    """Train until the last step; the averaged weights land in FOLDER/ema."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--icons", type=Path, required=True, help="npy of RGBA drawings")
    parser.add_argument("--photos", type=Path, help="unpacked endless-sky-data")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--decay", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--gamma", type=float, default=0.4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--refine", type=Path, help="train the decoder alone, from this folder")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Autoencoder(NANO_AUTOENCODER)
    if args.refine:
        model = load_image_tokenizer(args.refine, torch.float32).autoencoder
        model.decoder.requires_grad_(True)
    photos = load_photos(args.photos) if args.photos else []
    crops = CropMaker(np.load(args.icons, mmap_mode="r"), photos, size=64, batch=args.batch)
    config = LoopConfig(
        steps=args.steps, learning_rate=args.learning_rate, decay=args.decay, warmup=100,
        weight_decay=0.01, ema=0.995, save_minutes=5,
    )  # fmt: skip
    loss = functools.partial(tokenizer_loss, gamma=args.gamma, decoder_only=bool(args.refine))
    loop = Loop(model, crops, loss, config, args.folder)
    loop.resume()
    loop.run(on_save=lambda done: save_average(done, args.folder / "ema"))


def save_average(loop: Loop, folder: Path) -> None:
    """Write the averaged tokenizer folder."""
    with loop.ema.applied(loop.model):
        save_image_tokenizer(ImageTokenizer(NANO_AUTOENCODER, copy.deepcopy(loop.model)), folder)


if __name__ == "__main__":
    main()
