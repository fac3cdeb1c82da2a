"""Sheets of answers for people to look at: pictures, what was asked, and what the scorer says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from nextstep.engine.metadata import write_file
from nextstep.evaluate.benchmarks.generation import Run
from nextstep.evaluate.benchmarks.scoring import Scored
from nextstep.evaluate.world.questions import WorldQuestion
from nextstep.image.encode import encode
from nextstep.world.examples import TextPart
from nextstep.world.sheet import sheet_of

RIGHT, WRONG = "#1a7f37", "#cf222e"
"""Frames of pictures that were made, by verdict."""

Cell = tuple[list[Image.Image], str]


def write_answers(run: Run, scored: Sequence[Scored], count: int) -> list[Path]:
    """A sheet of the first answers of every task and split, right or wrong.

    Args:
        run: of the world; the sheets are "sheets/TASK-SPLIT.png" in its folder.
        scored: its items with their verdicts.
        count: items of a sheet at most.
    """
    folder = run.folder / "sheets"
    folder.mkdir(exist_ok=True)
    written = []
    for pair in dict.fromkeys(one.item.group for one in scored):
        some = [one for one in scored if one.item.group == pair]
        path = folder / f"{pair.replace('/', '-')}.png"
        write_file(path, encode(answers_sheet(run, some, count)))
        written.append(path)
    return written


def answers_sheet(run: Run, scored: Sequence[Scored], count: int) -> Image.Image:
    """One sheet of the first answers of several tasks, in their order.

    Args:
        run: of the world.
        scored: items with their verdicts.
        count: items of each task and split at most.
    """
    pairs = dict.fromkeys(one.item.group for one in scored)
    first = [[one for one in scored if one.item.group == pair][:count] for pair in pairs]
    cells = [_cell(run, one) for some in first for one in some]
    return sheet_of(cells, run.manifest["size"], columns=10)


def _cell(run: Run, one: Scored) -> Cell:
    """Given pictures, then made ones in a frame; the question, and the answer where it is text."""
    question: WorldQuestion = one.item.record["question"]
    outputs = run.benchmark.outputs(run.images, one.item, run.model)
    score = one.measured.values["score"]
    made = [_framed(picture, score) for picture in outputs.pictures if picture is not None]
    text = one.item.prompt.replace("<image>", " | ").strip(" |\n")
    part = question.example.parts[question.asked[-1]]
    if isinstance(part, TextPart):
        text += f' -> "{outputs.text}"' + ("" if score == 1 else f', not "{part.answers[0]}"')
    return [*outputs.sources, *made], text


def _framed(picture: Image.Image, score: float) -> Image.Image:
    framed = picture.copy()
    corner = (framed.width - 1, framed.height - 1)
    colour = RIGHT if score == 1 else WRONG
    ImageDraw.Draw(framed).rectangle((0, 0, *corner), outline=colour, width=2)
    return framed
