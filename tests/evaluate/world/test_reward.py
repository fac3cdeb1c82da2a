"""The world's scorer as a reward: which world it judges by, and in which order it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from nextstep.evaluate.world import reward
from nextstep.rollout.prompts import LivePrompts
from nextstep.rollout.rewards import Candidate
from nextstep.text.tokenizer import TextTokenizer
from nextstep.world.editions import editions
from nextstep.world.live import WorldSource
from nextstep.world.scenes import render
from nextstep.world.spec import Detections


@dataclass
class EditionDetector:
    """Sees everything where it is asked for, and remembers how many pictures that were."""

    edition: str
    looked_at: list[int] = field(default_factory=list)

    def detect(self, pictures: Sequence[np.ndarray]) -> list[Detections]:
        self.looked_at.append(len(pictures))
        return [Detections(style=self.edition) for _ in pictures]


def candidates(tokenizer: TextTokenizer, edition: str, task: str, count: int) -> list[Candidate]:
    stream = LivePrompts(WorldSource(tokenizer, tasks=[task], edition=edition), 64)
    prompts = [stream.prompt(number) for number in range(count)]
    pictures = [
        Image.fromarray(render(one.example.scenes[-1], 128)) if one.draws else None
        for one in prompts
    ]
    return [Candidate(one, image) for one, image in zip(prompts, pictures, strict=True)]


def test_pictures_are_judged_by_the_edition_of_their_prompt(
    text_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects of other editions are no answer, as in `nextstep eval world --edition`."""
    detectors = {name: EditionDetector(name) for name in editions()}
    monkeypatch.setattr(reward, "shipped_detector", detectors.__getitem__)
    share = {"core-48": 0.75, "full": 0.25}
    monkeypatch.setattr(reward, "dense_score", lambda spec, found: (share[found.style], {}))
    core = candidates(text_tokenizer, "core-48", "single", 3)
    full = candidates(text_tokenizer, "full", "single", 2)
    answers = candidates(text_tokenizer, "core-48", "read_count", 1)
    mixed = [core[0], full[0], answers[0], core[1], full[1], core[2]]
    scores = reward.WorldReward().score(mixed)
    shares = [score.parts.get("share") for score in scores]
    assert shares == [0.75, 0.25, None, 0.75, 0.25, 0.75]
    looked_at = {name: one.looked_at for name, one in detectors.items() if one.looked_at}
    assert looked_at == {"core-48": [3], "full": [2]}


def test_likeness_tells_wrong_pictures_apart(text_tokenizer: TextTokenizer) -> None:
    (core,) = candidates(text_tokenizer, "core-48", "single", 1)
    assert core.image is not None
    true = np.asarray(core.image)
    empty = np.broadcast_to(true[0, 0], true.shape)
    pictures = [true, (true.astype(float) * 0.5 + empty * 0.5).astype(np.uint8), empty, 255 - true]
    shown = [Candidate(core.prompt, Image.fromarray(picture)) for picture in pictures]
    judge = reward.WorldReward(detector=EditionDetector("core-48"), likeness=1.0)  # type: ignore[arg-type]
    scores = judge.score(shown)
    alike = [score.parts["likeness"] for score in scores]
    assert alike[0] == 1 and alike[3] == 0 and alike[0] > alike[1] > alike[2] > alike[3]
    plain = reward.WorldReward(detector=EditionDetector("core-48")).score(shown)  # type: ignore[arg-type]
    for both, alone, like in zip(scores, plain, alike, strict=True):
        assert "likeness" not in alone.parts
        assert both.value == pytest.approx((alone.value + like) / 2)
    (full,) = candidates(text_tokenizer, "full", "single", 1)
    assert "likeness" not in judge.score([full])[0].parts
