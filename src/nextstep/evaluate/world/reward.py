"""The emoji world's own scorer as a reward: the share of a scene's requirements that are met.

Legend: pictures are [H, W, 3], RGB, uint8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nextstep.errors import NextStepError
from nextstep.evaluate.world.answering import Output
from nextstep.evaluate.world.dense import dense_score, detections_of_line, text_share
from nextstep.evaluate.world.detector import Detector, shipped_detector
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.evaluate.world.scoring import Scorer, psnr
from nextstep.rollout.rewards import Candidate, Score
from nextstep.world.editions import editions
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.scenes import render
from nextstep.world.spec import Detections

FAR_DB, CLOSE_DB = 10.0, 20.0
"""Signal to noise at which a picture is nothing like the true one, and from there to alike."""


class WorldReward:
    """Judges samples of the world.

    A picture's score is the share of its requirements that are met, mixed with whether it is right
    in all; an edit must besides leave the rest alone. The line before a picture is judged by the
    same requirements, as what it says. An answer in words is right or a share of the right letters.

    Args:
        exact: weight of being right in all, the rest being that of the share.
        line: weight of the line before a picture, beside 1 for the picture.
        likeness: weight, beside 1 for the picture, of how near its pixels are to those of the true
            scene, from 0 at 10 dB of signal to noise to 1 at 30. It tells two wrong pictures apart,
            so that a model also learns where it hardly ever succeeds. Only for editions on the
            grid, where a prompt has one true picture.
        detector: that looks at pictures; default the one that ships, by the edition of the world
            that a prompt is from.
        size: side of the pictures in pixels.

    Raises:
        NextStepError: for a weight out of range.
    """

    name = "world"

    def __init__(
        self,
        exact: float = 0.25,
        line: float = 0.0,
        detector: Detector | None = None,
        size: int = 128,
        likeness: float = 0.0,
    ) -> None:
        if not 0 <= exact <= 1 or line < 0 or likeness < 0:
            raise NextStepError(
                "'exact' is a share from 0 to 1, 'line' and 'likeness' are weights of at least 0"
            )
        self.exact, self.line, self.given, self.size = exact, line, detector, size
        self.likeness = likeness

    @classmethod
    def open(
        cls,
        argument: str = "",
        exact: float = 0.25,
        line: float = 0.0,
        size: int = 128,
        likeness: float = 0.0,
    ) -> WorldReward:
        """By name; see `WorldReward`. There is nothing to read."""
        return cls(exact, line, None, size, likeness)

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores in the order of the candidates.

        Raises:
            NextStepError: for a prompt that is no sample of the world.
        """
        for one in candidates:
            if one.prompt.example is None:
                raise NextStepError(
                    f"the reward 'world' knows nothing of '{one.prompt.text[:60]}'; it judges "
                    "samples of the world alone"
                )
        found: list[Score | None] = [None] * len(candidates)
        for edition in dict.fromkeys(_edition(one) for one in candidates):
            places = [n for n, one in enumerate(candidates) if _edition(one) == edition]
            scores = self._scores(edition, [candidates[place] for place in places])
            for place, score in zip(places, scores, strict=True):
                found[place] = score
        return [score for score in found if score is not None]

    def _scores(self, edition: str, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores of candidates of one edition."""
        detector = self.given or shipped_detector(edition)
        drawn = [np.asarray(c.image.convert("RGB")) for c in candidates if c.image is not None]
        detections = iter(detector.detect(drawn)) if drawn else iter(())
        scorer = Scorer(detector, self.size)
        pictures = iter(drawn)
        return [
            self._answer(one, scorer)
            if one.image is None
            else self._picture(one, scorer, next(pictures), next(detections))
            for one in candidates
        ]

    def _answer(self, one: Candidate, scorer: Scorer) -> Score:
        example, target = one.prompt.example, one.prompt.target
        assert example is not None
        part = example.parts[target]
        if not isinstance(part, TextPart):
            return Score(0.0, {"right": 0.0})
        question = WorldQuestion(example.task, "train", 0, example, (target,), 0)
        verdict = scorer.verdict(question, (one.line.strip(),), [None])
        near = max(text_share(one.line, answer) for answer in part.answers)
        value = self.exact * verdict.score + (1 - self.exact) * max(near, verdict.score)
        return Score(value, {"right": verdict.score, "answer": near})

    def _picture(
        self, one: Candidate, scorer: Scorer, picture: np.ndarray, detections: Detections
    ) -> Score:
        example, target = one.prompt.example, one.prompt.target
        assert example is not None
        part = example.parts[target]
        assert isinstance(part, ImagePart) and part.spec is not None
        question = WorldQuestion(example.task, "train", 0, example, (target,), 0)
        outputs: tuple[Output, ...] = (picture,)
        verdict = scorer.verdict(question, outputs, [detections])
        share, parts = dense_score(part.spec, detections)
        if "kept" in verdict.measures:
            parts["kept"] = verdict.measures["kept"]
            share = (share + parts["kept"]) / 2
        value = self.exact * verdict.score + (1 - self.exact) * share
        parts |= {"right": verdict.score, "share": share}
        if one.line:
            parts["line"], _ = dense_score(part.spec, detections_of_line(one.line))
        if self.line:
            value = (value + self.line * parts.get("line", 0.0)) / (1 + self.line)
        if self.likeness and editions()[_edition(one)].on_grid:
            true = render(part.scene, len(picture))
            parts["likeness"] = min(1.0, max(0.0, (psnr(picture, true) - FAR_DB) / CLOSE_DB))
            value = (value + self.likeness * parts["likeness"]) / (1 + self.likeness)
        return Score(value, parts)


def _edition(one: Candidate) -> str:
    return str(one.prompt.facts.get("edition", "full"))
