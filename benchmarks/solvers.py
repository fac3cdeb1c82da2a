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
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from nextstep.engine.backends import backend_of
from nextstep.engine.backends.base import Backend, SampleRequest
from nextstep.engine.request import Request
from nextstep.engine.scheduler import draw
from nextstep.engine.sequence import ImageSequence
from nextstep.flow.solvers import SolverSettings, request_times
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


class Asking:
    """A backend that also asks other solvers at every token.

    Args:
        backend: that computes.
        others: the other solvers.

    Attributes:
        distances: by solver, of every token of every picture.
    """

    def __init__(self, backend: Backend, others: Sequence[SolverSettings]) -> None:
        self.backend = backend
        self.distances: dict[SolverSettings, list[Tensor]] = {solver: [] for solver in others}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def sample(self, requests: Sequence[SampleRequest]) -> list[Tensor]:
        """As usual; the distances are kept."""
        tokens = self.backend.sample(requests)
        for solver, errors in self.distances.items():
            made = self.backend.sample([replace(one, solver=solver) for one in requests])
            errors.append((torch.stack(made) - torch.stack(tokens)).pow(2).mean(-1))
        return tokens


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
    model, usual = pipeline.model, pipeline.defaults.generate
    grid = pipeline.engine().grid(None, None)
    names = sample_objects(asked.pictures, 3)
    texts = [default_caption(n, "noto", c) for n, c in zip(names, cycle(COLOURS), strict=False)]
    requests = [Request(text, grid, usual, 7, index) for index, text in enumerate(texts)]
    jobs = [
        with_solver(one.sequence(pipeline.text_tokenizer, 10**9), REFERENCE) for one in requests
    ]

    tried = [SolverSettings(name, steps, asked.shift) for name, steps in TRIED]
    if usual.table:
        tried.append(usual.with_values(solver="multistep").solver_settings)
    asking = Asking(backend_of(model), tried)
    right = draw(model, jobs, asking)
    with torch.inference_mode():
        shown = [pipeline.image_tokenizer.decode_tokens(row[None], grid) for row in right]
    table = []
    print("solver      steps  calls  distance of a token   worst tenth   PSNR of pictures")
    for solver in tried:
        errors = torch.cat(asking.distances[solver])
        with torch.inference_mode():
            made = draw(model, [with_solver(job, solver) for job in jobs])
            pixels = [pipeline.image_tokenizer.decode_tokens(row[None], grid) for row in made]
        row = {
            "solver": solver.name, "steps": solver.steps, "calls": len(request_times(solver)),
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


def with_solver(job: ImageSequence, solver: SolverSettings) -> ImageSequence:
    """The same picture by another solver."""
    return replace(job, decode=replace(job.decode, solver=solver))


if __name__ == "__main__":
    main()
