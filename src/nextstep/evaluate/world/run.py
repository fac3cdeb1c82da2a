"""What an evaluation in the emoji world asks, and of whom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.files import read_any_json
from nextstep.evaluate.world.questions import WorldQuestion, chosen, questions
from nextstep.world.signs import longest_word_at

WHO = ("model", "decoded", "drawn")
"""Who answers: a model, or the truth, through the model's image tokenizer or as it is drawn."""


@dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
        pairs: (task, split).
        count: items of each pair.
        seed: of the items and of what the model draws.
        size: side of the pictures in pixels.
        edition: of the world.
        answers: who answers, one of `WHO`.
    """

    pairs: tuple[tuple[str, str], ...]
    count: int
    seed: int = 0
    size: int = 128
    edition: str = "full"
    answers: str = "model"

    @classmethod
    def of(
        cls,
        tasks: Iterable[str] | None = None,
        splits: Iterable[str] | None = None,
        count: int = 50,
        seed: int = 0,
        size: int = 128,
        edition: str = "full",
        answers: str = "model",
    ) -> Plan:
        """A plan by names of tasks, groups and splits; None for all.

        Raises:
            NextStepError: for an unknown name or a number out of range.
        """
        if count < 1:
            raise NextStepError(f"at least 1 item of each task is asked, not {count}")
        if size < 32 or size % 16:
            raise NextStepError(f"pictures have a multiple of 16 pixels, at least 32, not {size}")
        if answers not in WHO:
            raise NextStepError(f"answers come from {', '.join(WHO)}, not from '{answers}'")
        pairs = chosen(list(tasks) if tasks else None, list(splits) if splits else None, edition)
        return cls(tuple(pairs), count, seed, size, edition, answers)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a JSON file, as `to_json` writes it.

        Raises:
            NextStepError: when it is none, or names what there is not.
        """
        told = read_any_json(path)
        try:
            pairs = tuple((str(task), str(split)) for task, split in told.pop("pairs"))
            if not pairs:
                raise ValueError("it asks nothing")
            known = cls.of({t for t, _ in pairs}, {s for _, s in pairs}, **told)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NextStepError(f"{path} is no plan of the emoji world: {error}") from None
        for pair in pairs:
            if pair not in known.pairs:
                raise NextStepError(
                    f"{path} asks for the task '{pair[0]}' without a split {pair[1]}"
                )
        return cls(pairs, *list(asdict(known).values())[1:])

    def to_json(self) -> str:
        """For a file that `read` reads."""
        return json.dumps(asdict(self), indent=2)

    def questions(self, task: str, split: str) -> list[WorldQuestion]:
        """The items of one pair."""
        longest = longest_word_at(self.size)
        return questions(task, split, self.count, self.seed, self.edition, longest)

    def identity(self) -> str:
        """Hash of what must agree for kept answers to be answers to these questions."""
        told = [self.seed, self.size, self.edition, self.answers]
        return hashlib.sha256(json.dumps(["emoji world", *told]).encode()).hexdigest()
