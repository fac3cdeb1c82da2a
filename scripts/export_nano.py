"""Put averaged weights, tokenizers and settings together as a model folder in bf16."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nextstep.config import NextStepConfig
from nextstep.folders import Parts, save_parts
from nextstep.image.vae_files import load_image_tokenizer
from nextstep.model.nextstep import NextStepModel
from nextstep.settings import GenerationSettings, ModelDefaults
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.ema import load_average

GENERATE = GenerationSettings(guidance=2.5, solver="ab2", steps=12)
EDIT = GENERATE.with_values(image_guidance=1.5)


def main() -> None:
    """Read a training folder, write a model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of scripts/train_nano.py")
    parser.add_argument("--stage", default="full")
    parser.add_argument("--tokenizer-folder", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    model = NextStepModel(NextStepConfig.named("nano"))
    state = torch.load(args.folder / args.stage / "state.pt", weights_only=True)
    load_average(model, state["ema"]["shadow"])
    parts = Parts(
        model.to(torch.bfloat16),
        load_image_tokenizer(args.tokenizer_folder, torch.bfloat16),
        TextTokenizer.from_folder(args.folder),
        ModelDefaults(args.size, args.size, GENERATE, EDIT),
        "",
    )
    save_parts(parts, args.output)


if __name__ == "__main__":
    main()
