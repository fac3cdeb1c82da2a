"""A whole evaluation: ask, keep every answer, judge; and go on where it was interrupted.

FOLDER/plan.json                         what is asked, and of whom
FOLDER/answers/TASK/SPLIT/00000.json     texts, picture files and seconds of one answer
FOLDER/answers/TASK/SPLIT/00000-0.png    its pictures
FOLDER/card.json, failures.png           the result, see `card`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nextstep.engine.metadata import write_file
from nextstep.errors import NextStepError
from nextstep.evaluate.world.answering import Answer, Answerer, Output
from nextstep.evaluate.world.questions import WorldQuestion, chosen, questions
from nextstep.evaluate.world.scoring import Scorer, Verdict
from nextstep.image.encode import encode
from nextstep.utils.files import read_json, write_json
from nextstep.world.signs import longest_word_at

TOGETHER = 32
"""Questions that are answered before their answers are written."""

SHOWN_FAILURES = 3
"""Failures of one task and split that the sheet shows at most."""


@dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
        pairs: (task, split).
        count: items of each pair.
        seed: of the items and of what the model draws.
        size: side of the pictures in pixels.
        edition: of the world.
    """

    pairs: tuple[tuple[str, str], ...]
    count: int
    seed: int = 0
    size: int = 128
    edition: str = "full"

    @classmethod
    def of(
        cls,
        tasks: Iterable[str] | None = None,
        splits: Iterable[str] | None = None,
        count: int = 50,
        seed: int = 0,
        size: int = 128,
        edition: str = "full",
    ) -> Plan:
        """A plan by names of tasks, groups and splits; None for all.

        Raises:
            NextStepError: for an unknown name or a number out of range.
        """
        if count < 1:
            raise NextStepError(f"at least 1 item of each task is asked, not {count}")
        if size < 32 or size % 16:
            raise NextStepError(f"pictures have a multiple of 16 pixels, at least 32, not {size}")
        pairs = chosen(list(tasks) if tasks else None, list(splits) if splits else None, edition)
        return cls(tuple(pairs), count, seed, size, edition)

    def questions(self, task: str, split: str) -> list[WorldQuestion]:
        """The items of one pair."""
        longest = longest_word_at(self.size)
        return questions(task, split, self.count, self.seed, self.edition, longest)

    def identity(self) -> dict[str, Any]:
        """What must agree for kept answers to be answers to these questions."""
        return {"seed": self.seed, "size": self.size, "edition": self.edition}


@dataclass
class Tally:
    """What was found out about one task in one split.

    Attributes:
        verdicts: one an item.
        seconds: that the answers took.
        pictures: that were drawn for them.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0
    pictures: int = 0


@dataclass
class Failure:
    """An answer that was wrong, for people to look at."""

    question: WorldQuestion
    verdict: Verdict
    outputs: tuple[Output, ...]


@dataclass
class Results:
    """A finished evaluation.

    Attributes:
        plan: what was asked.
        tallies: (task, split) -> what was found out.
        failures: some of each pair.
    """

    plan: Plan
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def scores(self) -> dict[str, float]:
        """Key of an item -> its score."""
        return {v.key: v.score for tally in self.tallies.values() for v in tally.verdicts}


class Kept:
    """Answers in a folder, each written whole when it is there.

    Args:
        folder: of the evaluation.
        identity: who answers what; a folder with answers of another is refused.

    Raises:
        NextStepError: when the folder holds another evaluation.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder / "answers"
        plan = folder / "plan.json"
        if plan.exists():
            if read_json(plan) != identity:
                raise NextStepError(
                    f"{folder} holds the answers of another evaluation; choose another folder"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise NextStepError(f"{folder} exists already; choose another folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(plan, identity)

    def read(self, question: WorldQuestion) -> Answer | None:
        """The answer to a question, None where there is none yet."""
        path = self.folder / f"{question.key}.json"
        if not path.exists():
            return None
        kept = read_json(path)
        outputs: list[Output] = []
        for entry in kept["outputs"]:
            if "text" in entry:
                outputs.append(entry["text"])
            else:
                with Image.open(path.parent / entry["picture"]) as picture:
                    outputs.append(np.asarray(picture.convert("RGB")))
        return Answer(tuple(outputs), kept["seconds"])

    def write(self, question: WorldQuestion, answer: Answer) -> None:
        """Keep an answer; its pictures first, so that what is named is there."""
        path = self.folder / f"{question.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        told = []
        for number, output in enumerate(answer.outputs):
            if isinstance(output, str):
                told.append({"text": output})
                continue
            name = f"{path.stem}-{number}.png"
            prompt = question.example.prompt(question.asked[number])
            write_file(
                path.parent / name, encode(Image.fromarray(output), texts={"prompt": prompt})
            )
            told.append({"picture": name})
        write_json(path, {"outputs": told, "seconds": answer.seconds})


def evaluate(
    plan: Plan,
    answerer: Answerer,
    scorer: Scorer,
    folder: Path,
    who: str,
    on_answers: Callable[[str, str, int], None] | None = None,
) -> Results:
    """Ask everything that is not answered yet, and judge all.

    Args:
        plan: what to ask.
        answerer: who answers.
        scorer: who judges.
        folder: where answers are kept; one that was interrupted is gone on with.
        who: name of the answerer that tells it from others, such as a hash of its weights.
        on_answers: told task, split and number whenever answers are there.

    Raises:
        NextStepError: when the folder holds another evaluation.
    """
    kept, results = Kept(folder, {"who": who, **plan.identity()}), Results(plan)
    for task, split in plan.pairs:
        asked = plan.questions(task, split)
        answers = _answers(asked, answerer, kept, on_answers)
        verdicts = scorer.judge(asked, [answer.outputs for answer in answers])
        results.tallies[task, split] = Tally(
            verdicts, sum(a.seconds for a in answers), sum(one.pictures for one in asked)
        )
        wrong = [
            Failure(question, verdict, answer.outputs)
            for question, verdict, answer in zip(asked, verdicts, answers, strict=True)
            if verdict.score < 1
        ]
        results.failures += wrong[:SHOWN_FAILURES]
    return results


def _answers(
    asked: list[WorldQuestion],
    answerer: Answerer,
    kept: Kept,
    on_answers: Callable[[str, str, int], None] | None,
) -> list[Answer]:
    found = [kept.read(question) for question in asked]
    missing = [place for place, answer in enumerate(found) if answer is None]
    if on_answers is not None and len(missing) < len(asked):
        on_answers(asked[0].task, asked[0].split, len(asked) - len(missing))
    for start in range(0, len(missing), TOGETHER):
        places = missing[start : start + TOGETHER]
        made = answerer.answer([asked[place] for place in places])
        for place, answer in zip(places, made, strict=True):
            rounded = Answer(answer.outputs, round(answer.seconds, 4))
            kept.write(asked[place], rounded)
            found[place] = rounded
        if on_answers is not None:
            on_answers(asked[0].task, asked[0].split, len(places))
    return [answer for answer in found if answer is not None]


def write_verdicts(path: Path, results: Results) -> None:
    """One line of JSON an item: its key, score, reasons and measures."""
    lines = [
        json.dumps(asdict(verdict), ensure_ascii=False)
        for tally in results.tallies.values()
        for verdict in tally.verdicts
    ]
    write_file(path, ("\n".join(lines) + "\n").encode())


def read_scores(path: Path) -> dict[str, float]:
    """Key -> score of the verdicts that `write_verdicts` wrote.

    Raises:
        NextStepError: when the file is missing or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        told = [json.loads(line) for line in lines]
        return {one["key"]: float(one["score"]) for one in told}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NextStepError(f"{path} cannot be read as verdicts: {error}") from None
