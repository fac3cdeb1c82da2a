"""What rounding weights costs: errors by layer, by image token, and of whole pictures.

Prints tables and ends with one line of JSON. Pictures are sampled in fp32. Every rounded model then
reads the same sequence: a layer's error is that of its output against fp32's, relative to it, with
all earlier layers rounded too. At every token it is given its own states and the same noise; the
distance of a token is the root of the mean square of a value, whose own is 1. Whole pictures are
compared by PSNR of their pixels; there errors pass on from token to token.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Prompt, SampleRequest
from nextstep.engine.request import Request
from nextstep.engine.scheduler import draw
from nextstep.engine.sequence import ImageSequence
from nextstep.flow.noise import KeyedNoise
from nextstep.kernels.linear import packed_bytes
from nextstep.pipeline import NextStepPipeline
from nextstep.vae.latents import raster_coordinates

FORMATS = ("bf16", "int8", "int8/bf16", "bf16/int8", "int4", "int4/int8", "int8/int4")
PROMPTS = (
    "red apple, noto style, white background", "two cats", "blue house, white background",
    "green car, noto style", "a yellow star", "dog face, noto style", "pizza", "snowman",
)  # fmt: skip


class Reader:
    """Reads finished pictures with one model and samples each of their tokens again."""

    def __init__(self, pipeline: NextStepPipeline, jobs: list[ImageSequence]) -> None:
        self.pipeline, self.model, self.jobs = pipeline, pipeline.model, jobs
        self.how = jobs[0].decode

    @torch.inference_mode()
    def states(self, tokens: Tensor, prompt: Prompt) -> tuple[Tensor, list[Tensor]]:
        """States before every token of one picture [N, D], and the layers' outputs."""
        model, kept = self.model, list[Tensor]()
        hooks = [
            layer.register_forward_hook(lambda *call: kept.append(call[2][0]))
            for layer in model.layers
        ]
        ids = [*prompt.ids, *[model.config.image_placeholder_id] * (len(tokens) - 1)]
        places = raster_coordinates(self.how.grid)[: len(tokens) - 1]
        hidden = model.hidden(model.embed(torch.tensor([ids]), tokens[:-1], places))[0]
        for hook in hooks:
            hook.remove()
        return hidden[len(prompt.ids) - 1 :], kept

    @torch.inference_mode()
    def tokens(self, pictures: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens sampled again [B, N, D], and all layers' outputs on the first branch."""
        how, backend, made, layers = self.how, backend_of(self.model), [], list[Tensor]()
        for tokens, job in zip(pictures, self.jobs, strict=True):
            read = [self.states(tokens, job.prompts[name]) for name in how.branches]
            layers += read[0][1]
            noise = KeyedNoise([job.key], how.solver.draws, tokens.shape[1])
            hidden = torch.stack([states for states, _ in read])
            asked = [
                SampleRequest(
                    hidden[:, i], noise.token(i)[:, 0], how.solver, tuple(how.branches),
                    how.guidance.weights(i, how.tokens, how.has_images), how.token_norm,
                )
                for i in range(len(tokens))
            ]  # fmt: skip
            made.append(torch.stack(backend.sample(asked)))
        return torch.stack(made), layers

    @torch.inference_mode()
    def pixels(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W]."""
        decode = self.pipeline.image_tokenizer.decode_tokens
        return torch.cat([decode(tokens[None], self.how.grid) for tokens in pictures])

    def drawn(self) -> Tensor:
        """Whole pictures [B, N, D]."""
        return torch.stack(draw(self.model, self.jobs))


def load(model: str, quantize: str | None) -> Reader:
    """A reader of one model."""
    pipeline = NextStepPipeline.from_pretrained(model, quantize=quantize)
    grid = pipeline.engine().grid(None, None)
    settings = pipeline.defaults.generate
    requests = [Request(text, grid, settings, 11, i) for i, text in enumerate(PROMPTS)]
    return Reader(
        pipeline, [request.sequence(pipeline.text_tokenizer, 10**9) for request in requests]
    )


def relative(made: Tensor, right: Tensor) -> float:
    """Error against what is right, relative to it."""
    return float((made - right).norm() / right.norm())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    asked = parser.parse_args()
    exact = load(asked.model, None)
    pictures = exact.drawn()
    right, right_layers = exact.tokens(pictures)
    shown, depth = exact.pixels(pictures), exact.model.config.num_hidden_layers
    rows: list[dict[str, Any]] = []
    print("weights       MB   layers' outputs, first to last             token  worst   PSNR")
    for name in FORMATS:
        other = load(asked.model, name)
        made, layers = other.tokens(pictures)
        error = (made - right).pow(2).mean(-1).sqrt().flatten()
        by_layer = [
            relative(torch.cat(layers[i::depth]), torch.cat(right_layers[i::depth]))
            for i in range(depth)
        ]
        pixels = other.pixels(other.drawn()).clamp(-1, 1)
        square = (pixels - shown.clamp(-1, 1)).pow(2).mean((1, 2, 3)) / 4
        row = {
            "weights": name, "megabytes": round(packed_bytes(other.model) / 1e6, 1),
            "layers": [round(value, 5) for value in by_layer],
            "token": round(float(error.mean()), 4), "worst_token": round(float(error.max()), 4),
            "psnr": round(float((-10 * square.clamp(min=1e-10).log10()).mean()), 2),
        }  # fmt: skip
        rows.append(row)
        some = " ".join(f"{value:.4f}" for value in by_layer[:: max(1, depth // 6)])
        print(f"{name:<12}{row['megabytes']:>6}   {some:<42}{row['token']:>7}"
              f"{row['worst_token']:>7}{row['psnr']:>7}", flush=True)  # fmt: skip
    print(json.dumps({"model": asked.model, "pictures": len(PROMPTS), "rows": rows}))


if __name__ == "__main__":
    main()
