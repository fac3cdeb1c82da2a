"""Sheets of answers for people to look at: pictures, what was asked, and what the scorer says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nextstep.engine.metadata import write_file
from nextstep.evaluate.world.answering import Output
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.evaluate.world.run import Failure, Kept, Results
from nextstep.image.encode import encode
from nextstep.utils.files import read_json
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.scenes import render
from nextstep.world.sheet import sheet_of

SHEET_FAILURES = 48
"""Failures that a sheet shows at most."""

RIGHT, WRONG = "#1a7f37", "#cf222e"
"""Frames of pictures that were made, by verdict."""

GIVEN = 3
"""Pictures given before that a cell shows at most; a recall has eight, and the last tell enough."""

Cell = tuple[list[Image.Image], str]


def failure_sheet(failures: Sequence[Failure], size: int) -> Image.Image | None:
    """Wrong pictures with their prompts and reasons, sources first; None where there are none.

    Wrong answers in text are not shown: the verdicts tell them.
    """
    cells = []
    for failure in failures:
        question = failure.question
        if any(isinstance(output, np.ndarray) for output in failure.outputs):
            shown, text = _cell(question, failure.outputs, failure.verdict.score, size)
            reasons = "; ".join(failure.verdict.reasons)
            cells.append((shown, f"{question.task}, {question.split}: {text} -> {reasons}"))
    step = max(1, -(-len(cells) // SHEET_FAILURES))
    return sheet_of(cells[::step], size, columns=8) if cells else None


def write_failures(path: Path, results: Results) -> bool:
    """Write the sheet of failures beside `path`, then rename; whether there was anything."""
    made = failure_sheet(results.failures, results.plan.size)
    if made is not None:
        write_file(path, encode(made))
    return made is not None


def write_answers(folder: Path, results: Results, count: int) -> list[Path]:
    """A sheet of the first answers of every task and split, right or wrong.

    Args:
        folder: of the evaluation; the sheets are "sheets/TASK-SPLIT.png" there.
        results: of the evaluation.
        count: items of a sheet at most.
    """
    (folder / "sheets").mkdir(exist_ok=True)
    written = []
    for task, split in results.plan.pairs:
        path = folder / "sheets" / f"{task}-{split}.png"
        write_file(path, encode(answers_sheet(folder, results, [(task, split)], count)))
        written.append(path)
    return written


def answers_sheet(
    folder: Path, results: Results, pairs: Sequence[tuple[str, str]], count: int
) -> Image.Image:
    """One sheet of the first answers of several tasks, in their order.

    Args:
        folder: of the evaluation.
        results: of the evaluation.
        pairs: (task, split) of each.
        count: items of each at most.
    """
    kept, scores = Kept(folder, read_json(folder / "plan.json")), results.scores()
    size, cells = results.plan.size, list[Cell]()
    for task, split in pairs:
        for question in results.plan.questions(task, split)[:count]:
            answer = kept.read(question)
            if answer is not None:
                cells.append(_cell(question, answer.outputs, scores[question.key], size))
    return sheet_of(cells, size, columns=10)


def _cell(question: WorldQuestion, outputs: Sequence[Output], score: float, size: int) -> Cell:
    """Given pictures, then made ones in a frame; the question, and the answer where it is text."""
    parts = question.example.parts
    given = [
        Image.fromarray(render(part.scene, size))
        for place, part in enumerate(parts)
        if isinstance(part, ImagePart) and place not in question.asked
    ][-GIVEN:]
    made = [_framed(Image.fromarray(o), score) for o in outputs if isinstance(o, np.ndarray)]
    text = question.example.prompt(question.asked[-1]).replace("<image>", " | ").strip(" |\n")
    for place, output in zip(question.asked, outputs, strict=True):
        part = parts[place]
        if isinstance(output, str) and isinstance(part, TextPart):
            text += f' -> "{output}"' + ("" if score == 1 else f', not "{part.answers[0]}"')
    return [*given, *made], text


def _framed(picture: Image.Image, score: float) -> Image.Image:
    framed = picture.copy()
    corner = (framed.width - 1, framed.height - 1)
    colour = RIGHT if score == 1 else WRONG
    ImageDraw.Draw(framed).rectangle((0, 0, *corner), outline=colour, width=2)
    return framed
