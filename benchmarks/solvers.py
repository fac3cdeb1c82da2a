"""How near solvers come to a solution of many steps, against calls of the flow head.

Prints a table and ends with one line of JSON. Pictures are sampled with the reference (midpoint,
100 steps, 200 calls). At each of its tokens every solver is given the same states and the same
noise; the distance of its token to the reference's is the root of the mean square of a value, whose
own is 1. So errors do not add up from token to token here; whole pictures sampled by each solver
show what becomes of them (PSNR against the reference's pixels). Solvers that draw noise on the way
have no such solution: the world's scores compare them (`nextstep eval world`).
"""

from __future__ import annotations

import argparse
import json
from itertools import cycle

import torch
from torch import Tensor

from nextstep.engine.decode import DecodeSettings, TokenSampler, decode_tokens
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.noise import KeyedNoise
from nextstep.flow.solvers import SolverSettings, question_times
from nextstep.pipeline import NextStepPipeline
from nextstep.world.captions import default_caption
from nextstep.world.vocabulary import COLOURS, sample_objects

REFERENCE = SolverSettings("midpoint", 100)
TRIED = (
    *(("ode", steps) for steps in (4, 6, 8, 12, 20, 50)),
    *(("midpoint", steps) for steps in (2, 3, 4, 6, 10)),
    *(("heun", steps) for steps in (2, 3, 4, 6, 10)),
    *(("ab2", steps) for steps in (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20)),
)  # fmt: skip


class Recorder(TokenSampler):
    """A sampler that also asks other solvers at every token."""

    distances: dict[tuple[SolverSettings, int], Tensor]
    others: list[TokenSampler]

    def sample(self, hidden: Tensor, draws: Tensor, index: int) -> Tensor:
        """As usual; the distances are kept."""
        token = super().sample(hidden, draws, index)
        for other in self.others:
            error = other.sample(hidden, draws, index) - token
            key = (other.settings.solver, index)
            self.distances[key] = error.pow(2).mean(-1)
        return token


def psnr(one: Tensor, other: Tensor) -> float:
    """Mean over pictures [B, 3, H, W] in [-1, 1], in dB."""
    error = (one.clamp(-1, 1) - other.clamp(-1, 1)).pow(2).mean((1, 2, 3)) / 4
    return float((-10 * error.clamp(min=1e-10).log10()).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--shift", type=float, default=1.0)
    asked = parser.parse_args()
    pipeline = NextStepPipeline.from_pretrained(asked.model)
    model, size = pipeline.model, pipeline.model.config.token_size
    usual = pipeline.defaults.generate
    grid = pipeline.grid(None, None, (pipeline.defaults.height, pipeline.defaults.width))
    guidance = GuidanceSettings(usual.guidance, 1.0, usual.schedule)
    names = sample_objects(asked.pictures, 3)
    texts = [default_caption(n, "noto", c) for n, c in zip(names, cycle(COLOURS), strict=False)]
    jobs = [pipeline_job(pipeline, text, grid, guidance) for text in texts]
    rows = {name: [job[name] for job in jobs] for name in jobs[0]}
    keys = [(7, index) for index in range(len(jobs))]

    def made(solver: SolverSettings) -> Tensor:
        how = DecodeSettings(grid, solver, guidance)
        return decode_tokens(model, rows, how, KeyedNoise(keys, solver.draws, size))

    tried = [SolverSettings(name, steps, asked.shift) for name, steps in TRIED]
    if usual.table:
        tried.append(usual.with_values(solver="multistep").solver_settings)
    how = DecodeSettings(grid, REFERENCE, guidance)
    recorder = Recorder(model, how, how.branches)
    recorder.distances = {}
    recorder.others = [
        TokenSampler(model, DecodeSettings(grid, solver, guidance), how.branches)
        for solver in tried
    ]
    right = decode_tokens(model, rows, how, KeyedNoise(keys, 1, size), sampler=recorder)
    with torch.inference_mode():
        shown = [pipeline.image_tokenizer.decode_tokens(row[None], grid) for row in right]
    table = []
    print("solver      steps  calls  distance of a token   worst tenth   PSNR of pictures")
    for solver in tried:
        errors = torch.cat([recorder.distances[solver, i] for i in range(len(right[0]))])
        with torch.inference_mode():
            pixels = [
                pipeline.image_tokenizer.decode_tokens(row[None], grid) for row in made(solver)
            ]
        row = {
            "solver": solver.name, "steps": solver.steps, "calls": len(question_times(solver)),
            "distance": round(float(errors.mean().sqrt()), 4),
            "worst_tenth": round(float(errors.quantile(0.9).sqrt()), 4),
            "psnr": round(psnr(torch.cat(pixels), torch.cat(shown)), 2),
        }  # fmt: skip
        table.append(row)
        print(
            f"{row['solver']:<10}{row['steps']:>7}{row['calls']:>7}{row['distance']:>21}"
            f"{row['worst_tenth']:>14}{row['psnr']:>19}",
            flush=True,
        )
    print(json.dumps({"model": asked.model, "pictures": len(jobs), "rows": table}))


def pipeline_job(
    pipeline: NextStepPipeline, text: str, grid: tuple[int, int], guidance: GuidanceSettings
) -> dict[str, object]:
    """Rows of one picture by branch."""
    from nextstep.engine.request import Request

    settings = pipeline.defaults.generate
    job = Request(text, grid, settings).job(pipeline.text_tokenizer, 10**9)
    return {name: job.prompts[name] for name in guidance.branches(grid[0] * grid[1], False)}


if __name__ == "__main__":
    main()
