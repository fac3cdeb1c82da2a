"""Rewards by name, as recipes and the command line say them; a Python function of your own is one.

A kind is a class that lies elsewhere and is imported when it is asked for, so that the parts that
judge may know this package and not the other way round.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from nextstep.errors import NextStepError
from nextstep.rollout.rewards import Candidate, Reward, Score

KINDS = {
    "world": "nextstep.evaluate.world.reward:WorldReward",
    "python": "nextstep.rollout.reward_kinds:FunctionReward",
    "ocr": "nextstep.evaluate.judges.rewards:OcrReward",
    "clip": "nextstep.evaluate.judges.rewards:EmbeddingReward",
    "pickscore": "nextstep.evaluate.judges.rewards:EmbeddingReward",
    "hpsv2": "nextstep.evaluate.judges.rewards:EmbeddingReward",
    "imagereward": "nextstep.evaluate.judges.rewards:ImageReward",
    "judge": "nextstep.evaluate.judges.rewards:JudgeReward",
}
"""Kind -> class with `open(argument, **options)`."""


def open_reward(kind: str, argument: str = "", options: Mapping[str, Any] | None = None) -> Reward:
    """A reward.

    Args:
        kind: one of `KINDS`.
        argument: what it reads: a function, a model folder.
        options: of the kind.

    Raises:
        NextStepError: for an unknown kind or option.
    """
    if kind not in KINDS:
        raise NextStepError(f"there is no reward '{kind}'; choose from {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    found = getattr(importlib.import_module(module), name)
    known = list(inspect.signature(found.open).parameters)[1:]
    for option in options or {}:
        if option not in known:
            raise NextStepError(
                f"the reward '{kind}' has no option '{option}'"
                + (f"; it takes {', '.join(known)}" if known else "")
            )
    reward: Reward = found.open(argument, **dict(options or {}))
    if kind != "python":
        reward.name = kind
    return reward


class FunctionReward:
    """Calls `function(image, text, line, facts)` for every candidate; it gives a number.

    Args:
        function: image is a PIL picture, None where text was asked for; text the prompt; line what
            the model wrote; facts what the prompt's file says beside it.
        name: in logs.
    """

    def __init__(self, function: Callable[..., float], name: str) -> None:
        self.function, self.name = function, name

    @classmethod
    def open(cls, place: str) -> FunctionReward:
        """The function at "FILE.py:NAME" or "package.module:NAME".

        Raises:
            NextStepError: when there is none.
        """
        module, _, name = place.rpartition(":")
        found = getattr(_module(module, place), name, None)
        if not callable(found):
            raise NextStepError(f"there is no function '{name}' in {module or 'nothing'}")
        return cls(found, name)

    def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores in the order of the candidates.

        Raises:
            NextStepError: when the function fails, or gives no finite number.
        """
        found: list[Score] = []
        for one in candidates:
            try:
                value = self.function(one.image, one.prompt.text, one.line, dict(one.prompt.facts))
            except Exception as error:
                raise NextStepError(
                    f"the reward {self.name} failed: {type(error).__name__}: {error}"
                ) from error
            # NumPy's numbers are such, too.
            if not isinstance(value, Real) or not math.isfinite(value):
                raise NextStepError(f"the reward {self.name} gave {value!r}, not a finite number")
            found.append(Score(float(value)))
        return found


def _module(name: str, place: str) -> Any:
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever stands in the file is run
        kind = "" if isinstance(error, ImportError | OSError | ValueError) else type(error).__name__
        told = f"{kind}: {error}" if kind else str(error)
        raise NextStepError(f"the reward {place} cannot be loaded: {told}") from error
