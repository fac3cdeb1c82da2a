"""What a trained paradigm is measured by: scores, losses, distances and costs.

Legend: H W pixels, uint8, RGB; D features of a picture.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from nextstep.errors import ModelFileError
from nextstep.evaluate.benchmarks.world import evaluate
from nextstep.evaluate.fidelity import Moments, frechet_distance
from nextstep.evaluate.world.detector import shipped_detector
from nextstep.evaluate.world.run import Plan
from nextstep.evaluate.world.scoring import Scorer
from nextstep.flow.solvers import SolverSettings, request_times
from nextstep.image.pictures import to_pixels
from nextstep.lab.paradigms.answering import Ceiling, ParadigmAnswers, true_picture
from nextstep.lab.paradigms.fsq import QuantizedTokenizer
from nextstep.lab.paradigms.parts import (
    CODED,
    DIFFUSION,
    Kind,
    ParadigmParts,
    load_paradigm,
    load_quantizer,
)
from nextstep.lab.paradigms.sampling import DrawSettings
from nextstep.lab.recipe_study import items_of
from nextstep.lab.study import MeasuredUnit, StudyUnit
from nextstep.lab.world_scores import EDITION, by_task, score_world
from nextstep.pipeline import NextStepPipeline
from nextstep.recipe.run import MODEL
from nextstep.vae.perceptual import FeatureNet

if TYPE_CHECKING:
    from nextstep.evaluate.benchmarks.scoring import Scored
    from nextstep.evaluate.world.questions import WorldQuestion
    from nextstep.lab.heldout import HeldOut
    from nextstep.vae.tokenizer import ImageTokenizer

QUANTIZER = "quantizer"
DRAWING, READING = ("single", "two_objects"), ("read_style", "read_count", "read_where")
GUIDANCE, SOLVER = 2.5, SolverSettings("ab2", 12)
CODE_GUIDANCE = 1.5
"""Of codes, whose logits answer to guidance more than velocities do."""


@dataclass(frozen=True)
class ParadigmMeasurement:
    """Measures one trained unit.

    Attributes:
        unit: arm and seed.
        kind: of the arm.
        size: pixels of a picture's side.
    """

    unit: StudyUnit
    kind: Kind
    size: int

    @property
    def quantizer(self) -> Path | None:
        """Folder of the codes that the arm reads, if any."""
        return self.unit.beside(QUANTIZER) / MODEL if self.kind in CODED else None

    def ceilings(self, image_tokenizer: ImageTokenizer) -> MeasuredUnit:
        """What drawings can score at most, with and without codes."""
        items: dict[str, Mapping[str, float]] = {}
        quantized = QuantizedTokenizer(image_tokenizer, load_quantizer(self.unit.run / MODEL))
        for name, given in (("continuous tokens", None), ("codes", quantized)):
            found = self._asked(Ceiling(image_tokenizer, self.size, given), f"ceiling {name}")
            items[f"ceiling of {name}"] = by_task(found)["score"]
        return MeasuredUnit({}, items)

    def drawn(self, tokenizer: Any, image_tokenizer: ImageTokenizer) -> MeasuredUnit:
        """Scores of drawing and reading, distance of features, cost of a picture."""
        unit, model = self.unit, self.unit.run / MODEL
        grid = (self.size // 16, self.size // 16)
        if self.kind in ("continuous", "continuous-lm"):
            # The product's engine draws and reads.
            pipeline = NextStepPipeline.from_pretrained(str(model))
            settings = {"guidance": GUIDANCE, "solver": SOLVER.name, "steps": SOLVER.steps}
            count = items_of(unit.scale)
            both = [
                score_world(pipeline, unit.folder / name, self._tasks(tasks), count, settings)
                for name, tasks in (("drawing", DRAWING), ("reading", READING))
            ]
            computed = 2 * grid[0] * grid[1]
        else:
            guidance = CODE_GUIDANCE if self.kind == "discrete" else GUIDANCE
            answers = ParadigmAnswers(
                load_paradigm(model, self._codes_drawn), tokenizer, image_tokenizer, self.size,
                DrawSettings(grid, SOLVER, guidance),
            )  # fmt: skip
            both = [self._asked(answers, "drawing"), self._asked(answers, "reading", READING)]
            computed = 2 * positions_drawn(self.kind, grid[0] * grid[1])
        drawing, reading = both
        items: dict[str, Mapping[str, float]] = {**by_task(drawing)}
        items["score reading"] = by_task(reading)["score"]
        seconds = statistics.fmean(one.measured.evidence["seconds"] for one in drawing)
        values = {
            "seconds a picture": seconds,
            "positions a picture": float(computed),
            "cache reuse": 1 - (computed - 2 * grid[0] * grid[1]) / computed,
        }
        distance = self._feature_distance()
        further = {} if distance is None else {"feature distance": distance}
        return MeasuredUnit(values | further, items)

    @torch.no_grad()
    def text_losses(self, parts: ParadigmParts, documents: HeldOut) -> dict[str, float]:
        """Cross-entropy of the learned text of every document, in nats a position."""
        model = self._trained(parts)
        found = {}
        for number, one in enumerate(documents.documents):
            batch = parts.stage.prepare(parts.stage.batch_of([[one]]), "cpu")
            count = parts.stage.counts(batch)["lm_loss"]
            if count:
                total = float(parts.stage.losses(model, batch)["lm_loss"])
                found[f"{number:05d}"] = round(total / count, 6)
        return found

    @property
    def _codes_drawn(self) -> Path | None:
        return self.quantizer if self.kind == "discrete" else None

    def _tasks(self, tasks: Sequence[str]) -> Sequence[str]:
        """Of a tiny run the first alone."""
        return tasks[:1] if self.unit.scale.tiny else tasks

    def _asked(self, answerer: Any, folder: str, tasks: Sequence[str] = DRAWING) -> list[Scored]:
        """Ask and judge; what is answered already is kept."""
        scorer = Scorer(shipped_detector(EDITION), self.size)
        return evaluate(self._plan(tasks), answerer, scorer, self.unit.folder / folder, folder)

    def _plan(self, tasks: Sequence[str]) -> Plan:
        count = items_of(self.unit.scale)
        return Plan.of(self._tasks(tasks), ["seen"], count, size=self.size, edition=EDITION)

    def _feature_distance(self) -> float | None:
        """Frechet distance of EfficientNet-Lite0 features of the drawings to those of the truth.

        None where its weights are not installed.
        """
        try:
            network = FeatureNet.from_package()
        except ModelFileError:
            return None
        made, true = Moments(), Moments()
        plan = self._plan(DRAWING)
        for task, split in plan.pairs:
            for question in plan.questions(task, split):
                made.add(_features(network, self._kept(question)))
                true.add(_features(network, true_picture(question, self.size)))
        return frechet_distance(made, true)

    def _kept(self, question: WorldQuestion) -> np.ndarray:
        """The picture that was drawn for a question, [H, W, 3]."""
        path = self.unit.folder / "drawing" / "images" / f"{question.key}-0.png"
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))

    def _trained(self, parts: ParadigmParts) -> Any:
        """The trained model of an arm, to ask its stage for losses."""
        parts.stage.compile = False
        model = self.unit.run / MODEL
        if self.kind in ("continuous", "continuous-lm"):
            pipeline = NextStepPipeline.from_pretrained(str(model))
            own = parts.model
            own.load_state_dict(pipeline.model.state_dict(), strict=False)
            return own.eval()
        return load_paradigm(model, self._codes_drawn).model


def positions_drawn(kind: Kind, tokens: int) -> int:
    """Positions of one branch that the backbone computes for a picture: `CacheRows.computed`."""
    if kind not in DIFFUSION:
        return tokens
    return tokens * (len(request_times(SOLVER)) + 1)


@torch.no_grad()
def _features(network: FeatureNet, picture: np.ndarray) -> torch.Tensor:
    """[1, D]: the deepest features, averaged over the picture."""
    return network(to_pixels([picture]))[-1].mean((2, 3)).double()
