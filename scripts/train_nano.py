"""Train the nano model on single-object pictures; see docs/how-to/train-nano.md.

train_nano.py prepare --tokenizer-folder VAE --folder RUN      texts and latents, once
train_nano.py train --folder RUN --stage small|full --steps N  64 px first, then 128 px
"""

from __future__ import annotations

import argparse
import functools
import random
from pathlib import Path

import numpy as np
import torch

from nextstep.config import NextStepConfig
from nextstep.image.vae_files import load_image_tokenizer
from nextstep.model.checkpoints import load_model
from nextstep.model.nextstep import NextStepModel
from nextstep.stages.pretrain import sequence_loss
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.ema import load_average
from nextstep.train.loop import Loop, LoopConfig
from nextstep.world import captions
from nextstep.world.singles import COLOUR_NAMES, LatentStore, SinglesMaker
from nextstep.world.sources import emoji_names
from nextstep.world.vocabulary import OBJECTS, STYLES

PIXELS = {"small": 64, "full": 128}


def prepare(args: argparse.Namespace) -> None:
    """Train the text tokenizer and encode every picture."""
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    size = NextStepConfig.named("nano").vocab_size
    TextTokenizer.train(_training_texts(rng), size).save(args.folder)
    tokenizer = load_image_tokenizer(args.tokenizer_folder)

    def encode(pictures: list[np.ndarray]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            return tokenizer.encode_tokens(pixels).float()

    pixels = PIXELS[args.stage]
    path = args.folder / f"latents-{pixels}.npy"
    LatentStore.build(path, encode, pixels, ((pixels // 16) ** 2, 64))


def _training_texts(rng: random.Random) -> list[str]:
    texts = [f"{label}." for label in emoji_names()]
    for name in OBJECTS:
        for style in STYLES:
            for colour in COLOUR_NAMES:
                texts.append(captions.caption(rng, name, style, colour))
                texts += [captions.style_edit(rng, style), captions.background_edit(rng, colour)]
    return texts


def train(args: argparse.Namespace) -> None:
    """Run one stage; the second starts from the averaged weights of the first."""
    torch.manual_seed(0)
    model = NextStepModel(
        NextStepConfig.named("nano").with_values(image_position_side=args.position_side)
    )
    model.reset_parameters()
    if args.init_model:
        start = load_model(args.init_model, torch.float32).state_dict()
        missing, extra = model.load_state_dict(start, strict=False)
        if extra or any("image_row" not in n and "image_column" not in n for n in missing):
            raise SystemExit(f"{args.init_model} is of another model: {missing} {extra}")
    if args.compile:
        model.hidden = torch.compile(model.hidden, dynamic=False)  # type: ignore[method-assign]
        model.image_loss = torch.compile(model.image_loss, dynamic=False)  # type: ignore[method-assign]
    if args.init:
        load_average(model, torch.load(args.init, weights_only=True)["ema"]["shadow"])
    maker = SinglesMaker(
        LatentStore(args.folder / f"latents-{PIXELS[args.stage]}.npy"),
        TextTokenizer.from_folder(args.folder),
        pictures=args.pictures,
        edit_share=args.edit_share,
        seed=args.seed,
    )
    config = LoopConfig(
        steps=args.steps, learning_rate=args.learning_rate, warmup=args.warmup, decay=args.decay,
        weight_decay=0.05, ema=args.ema, muon=args.muon, save_minutes=args.save_minutes,
    )  # fmt: skip
    loss = functools.partial(
        sequence_loss, head_batch_mul=args.head_batch_mul, context_noise=args.context_noise
    )
    loop = Loop(model, maker, loss, config, args.folder / (args.name or args.stage))
    loop.resume()
    loop.run()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("prepare")
    first.add_argument("--tokenizer-folder", type=Path, required=True)
    second = commands.add_parser("train")
    for command, function in ((first, prepare), (second, train)):
        command.set_defaults(run=function)
        command.add_argument("--folder", type=Path, required=True)
        command.add_argument("--stage", choices=PIXELS, default="small")
    second.add_argument("--name", help="folder of this run inside FOLDER; default the stage")
    second.add_argument("--init", type=Path, help="state.pt to take averaged weights from")
    second.add_argument("--init-model", type=Path, help="model folder to start from")
    second.add_argument("--compile", action="store_true")
    second.add_argument("--position-side", type=int, default=0)
    second.add_argument("--steps", type=int, required=True)
    second.add_argument("--decay", type=int, default=0)
    second.add_argument("--warmup", type=int, default=100)
    second.add_argument("--pictures", type=int, default=128)
    second.add_argument("--edit-share", type=float, default=0.3)
    second.add_argument("--learning-rate", type=float, default=1.5e-3)
    second.add_argument("--ema", type=float, default=0.995)
    second.add_argument("--muon", action="store_true")
    second.add_argument("--context-noise", type=float, default=0.0)
    second.add_argument("--head-batch-mul", type=int, default=4, help="noise levels per token")
    second.add_argument("--seed", type=int, default=0)
    second.add_argument("--save-minutes", type=float, default=10)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
