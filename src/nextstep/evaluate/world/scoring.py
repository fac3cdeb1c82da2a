"""What an answer is worth, and why not more.

A picture is right when what the detector finds satisfies the spec of its part. Edits must also
leave the rest unchanged; stories are about characters and style throughout. Where the spec cannot
distinguish the pictures before and after (an object mirrored, a hole filled, colours restored), the
pixels decide.

Legend: H W pixels; masks are bool [H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from nextstep.evaluate.world.answering import Output
from nextstep.evaluate.world.detector import Detector
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.evaluate.world.reading import is_right
from nextstep.world.draw import CHARACTERS
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Scene, changed_region, render
from nextstep.world.spec import Detections, Spec, detections_of
from nextstep.world.tasks import TASKS

KEPT_DB = 25.0
"""Peak signal-to-noise ratio that an edit must leave outside of what it changes."""

HALO = 6
"""Pixels around a change that are not judged as kept: the image tokenizer's tokens overlap."""

LEAST_KEPT = 0.02
"""Share of a picture that must be outside the change for it to be judged."""

CLEAR = 40
"""Pixels count as changed for the pixel rule from this difference in one channel (0..255)."""

NEAR = 90
"""How far a changed pixel may be from what it should be, in any channel."""

CHANGED_SHARE = 0.6
"""Share of changed pixels that must be right for the pixel rule."""

Reconstruct = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth.

    Attributes:
        key: of the question.
        score: 0 to 1: the share of its parts that are right, or all or nothing.
        reasons: what is wrong, in words; empty for a full score.
        measures: further figures, such as the share that kept the rest.
        part: a group of items within the task that is told apart, such as "up to 4 letters".
    """

    key: str
    score: float
    reasons: tuple[str, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)
    part: str = ""


class Scorer:
    """Judges answers.

    Args:
        detector: that looks at pictures.
        size: side of the pictures in pixels.
        reconstruct: a picture as the model's image tokenizer gives it back, so that nobody is
            asked to keep what no token can hold; None judges by the pictures as drawn alone.
    """

    def __init__(
        self, detector: Detector, size: int, reconstruct: Reconstruct | None = None
    ) -> None:
        self.detector, self.size, self.reconstruct = detector, size, reconstruct

    def judge(
        self, questions: list[WorldQuestion], answers: list[tuple[Output, ...]]
    ) -> list[Verdict]:
        """Verdicts on answers, in their order; all pictures are looked at together."""
        drawn = [o for outputs in answers for o in outputs if isinstance(o, np.ndarray)]
        detections = iter(self.detector.detect(drawn))
        verdicts = []
        for question, outputs in zip(questions, answers, strict=True):
            seen = [None if isinstance(output, str) else next(detections) for output in outputs]
            verdicts.append(self.verdict(question, outputs, seen))
        return verdicts

    def verdict(
        self, question: WorldQuestion, outputs: tuple[Output, ...], seen: list[Detections | None]
    ) -> Verdict:
        """The verdict on one answer whose pictures were looked at already."""
        if question.task == "story":
            return self._story(question, seen)
        found = [
            self._part(question, number, outputs, detections)
            for number, detections in enumerate(seen)
        ]
        right = [not reasons for reasons, _ in found]
        measures: dict[str, list[float]] = {}
        for _, told in found:
            for name, value in told.items():
                measures.setdefault(name, []).append(value)
        means = {name: float(np.mean(values)) for name, values in measures.items()}
        if len(right) > 1:
            means["all steps right"] = float(all(right))
        reasons = [
            f"step {number + 1}: {reason}" if len(right) > 1 else reason
            for number, (wrong, _) in enumerate(found)
            for reason in wrong
        ]
        return Verdict(
            question.key, float(np.mean(right)), tuple(reasons), means, _part_of(question)
        )

    def _part(
        self,
        question: WorldQuestion,
        number: int,
        outputs: tuple[Output, ...],
        detections: Detections | None,
    ) -> tuple[list[str], dict[str, float]]:
        """What is wrong with one output, and its measures."""
        part, output = question.example.parts[question.asked[number]], outputs[number]
        if isinstance(part, TextPart):
            assert isinstance(output, str)
            if is_right(question.task, output, part.answers):
                return [], {}
            return [f'said "{output}" for "{part.answers[0]}"'], {}
        assert part.spec is not None and detections is not None and not isinstance(output, str)
        reasons = part.spec.failures(detections)
        if part.kept is None:
            return reasons, {}
        before = question.example.parts[part.kept]
        assert isinstance(before, ImagePart)
        if not part.spec.failures(detections_of(before.scene, self.size)):
            reasons += self._unchanged(before.scene, part.scene, output)
        measures = {"asked": float(not reasons)}
        if TASKS[question.task].group == "editing":
            # A model that goes on from its own picture is to keep what that one shows.
            own = question.asked.index(part.kept) if part.kept in question.asked else None
            source = outputs[own] if own is not None else render(before.scene, self.size)
            assert not isinstance(source, str)
            kept = self._kept(before.scene, part.scene, source, output)
            if kept is not None:
                measures["kept"] = float(kept >= KEPT_DB)
                if kept < KEPT_DB:
                    reasons.append(f"the rest kept at {kept:.1f} dB")
        return reasons, measures

    def _unchanged(self, before: Scene, after: Scene, output: np.ndarray) -> list[str]:
        """Whether the pixels that had to change did, where a spec cannot tell."""
        old, new = (render(scene, self.size).astype(np.int32) for scene in (before, after))
        changed = np.abs(new - old).max(-1) >= CLEAR
        if not changed.any():
            return []
        to_new, to_old = (np.abs(output.astype(np.int32) - one)[changed] for one in (new, old))
        good = (to_new.sum(-1) < to_old.sum(-1)) & (to_new.max(-1) <= NEAR)
        share = float(good.mean())
        return [] if share >= CHANGED_SHARE else [f"{share:.0%} of the change made"]

    def _kept(
        self, before: Scene, after: Scene, source: np.ndarray, output: np.ndarray
    ) -> float | None:
        """PSNR in dB outside the change, by the source or by what the tokenizer makes of it."""
        rest = ~widened(changed_region(before, after, self.size), HALO)
        if rest.mean() < LEAST_KEPT:
            return None
        found = psnr(output[rest], source[rest])
        if found < KEPT_DB and self.reconstruct is not None:
            found = max(found, psnr(output[rest], self.reconstruct(source)[rest]))
        return found

    def _story(self, question: WorldQuestion, seen: list[Detections | None]) -> Verdict:
        """Right when every picture has the characters and the style that it should have."""
        reasons, whole = [], []
        for place, detections in zip(question.asked, seen, strict=True):
            part = question.example.parts[place]
            assert isinstance(part, ImagePart) and part.spec is not None and detections is not None
            style = detections_of(part.scene, self.size).style
            wrong = characters_of(part.spec, style).failures(detections)
            number = question.asked.index(place) + 1
            reasons += [f"picture {number}: {reason}" for reason in wrong]
            whole.append(not part.spec.failures(detections))
        return Verdict(
            question.key,
            float(not reasons),
            tuple(reasons),
            {"pictures right in all": float(np.mean(whole))},
        )


def characters_of(spec: Spec, style: str | None) -> Spec:
    """What of a spec is about characters: that they are there, in their colours, in one style."""
    constraints = [
        replace(constraint, region=None, relation=None, size=None, at=None, extent=None)
        for constraint in spec.include
        if world_objects()[constraint.name].kind in CHARACTERS
    ]
    return Spec(tuple(constraints), style=style)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of values 0..255; at most 99."""
    error = float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())
    return 99.0 if error == 0 else min(99.0, float(10 * np.log10(255**2 / error)))


def widened(region: np.ndarray, by: int) -> np.ndarray:
    """A region, bool [H, W], with all places at most `by` rows and columns away."""
    grown = np.zeros_like(region)
    padded = np.pad(region, by)
    height, width = region.shape
    across = np.zeros((height + 2 * by, width), bool)
    for step in range(2 * by + 1):
        across |= padded[:, step : step + width]
    for step in range(2 * by + 1):
        grown |= across[step : step + height]
    return grown


def _part_of(question: WorldQuestion) -> str:
    """Which items within a task are told apart."""
    if question.task in ("words", "change_word", "read_word"):
        sign = question.example.scenes[-1].sign
        return f"{'up to 4' if sign and len(sign.text) <= 4 else '5 to 8'} letters"
    if question.task == "recall":
        scenes = question.example.scenes
        names = [scene.items[0].name for scene in scenes]
        return f"distance {len(scenes) - 1 - names.index(names[-1])}"
    return ""
