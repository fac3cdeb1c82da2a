"""Draw the sheets of docs/gallery: fixed prompts, fixed seed, nothing chosen by hand."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nextstep import NextStepPipeline
from nextstep.evaluate.benchmarks.generation import generate
from nextstep.evaluate.benchmarks.scoring import score
from nextstep.evaluate.benchmarks.world import begin, judge_for
from nextstep.evaluate.world.run import Plan
from nextstep.evaluate.world.sheets import answers_sheet
from nextstep.world.captions import BACKGROUND_EDITS, STYLE_EDITS, default_caption
from nextstep.world.editions import editions
from nextstep.world.scenes import single
from nextstep.world.vocabulary import (
    COLOURS,
    OBJECTS,
    STYLES,
    background_allowed,
    is_held_out,
    sample_objects,
)

WORLD = {
    "drawing": 8, "editing": 3, "story": 10, "next_state": 10, "recall": 10, "reading": 8,
}  # fmt: skip
"""Groups of tasks of the emoji world, and how many of the first items of each task are shown."""

EDITION = "core-48"
"""Edition of the world that the sheets of scenes are of."""
DRAWINGS = (
    "a panda, noto style, blue background",
    "three mushrooms, mono style, yellow background",
    "a fox and a rocket, noto style, purple background",
    "a sailboat to the left of a palm tree, noto style, blue background",
    "a blue cat in the top left corner and a red bus at the bottom right, "
    "mono style, white background",
    'a sign that says "HELP" and an owl, noto style, green background',
)
EDITS = (
    "a cat in the top left corner and a pizza at the bottom right, noto style, yellow background",
    "add a crown in the top right corner",
    "replace the pizza with a guitar",
    "make the cat blue",
    "remove the crown",
    "make it mono style",
)
STORY = (
    "Once upon a time there was a penguin called Max. "
    "The pictures are in noto style on a blue background.",
    "Max finds a strawberry.",
    "Max meets an owl called Noa.",
    "Everything around turns pink.",
)
NEXT_STATES = (
    "a frog on the left and a key on the right, noto style, white background",
    "the frog and the key swap places",
    "the frog shrinks",
    "the key turns red",
)
QUESTIONS = (
    "How many mushrooms are there?",
    "Where is the sailboat, seen from the palm tree?",
    "What does the sign say?",
    "What can you see?",
)
"""What the first picture of the README shows; a question belongs to the drawing that it fits."""
READ = (1, 3, 5, 2)
SHEET_STYLES = ("noto", "3d", "mono")
SEED = 1
LABEL = 11
Cell = tuple[list[Image.Image], str]
Scene = tuple[str, str, str]


def colour_of(place: int, style: str) -> str:
    """Background of the place-th cell: the ten colours in turn, skipping invisible pairs."""
    names = list(COLOURS)
    while not background_allowed(style, names[place % len(names)]):
        place += 1
    return names[place % len(names)]


def pictures_of(prompts: Sequence[str], pipeline: NextStepPipeline) -> list[Cell]:
    """A picture of every prompt."""
    made = pipeline.generate(list(prompts), seed=SEED)
    return [([p.image], t) for p, t in zip(made, prompts, strict=True)]


def captions(scenes: list[Scene]) -> list[str]:
    """Usual captions of scenes."""
    return [default_caption(*scene) for scene in scenes]


def single_scenes() -> list[Scene]:
    """20 objects drawn by seed 0 in three styles; pairs never trained on have their own sheet."""
    scenes = []
    for name in sample_objects(len(OBJECTS), 0):
        if not any(is_held_out(name, style) for style in SHEET_STYLES):
            k = len(scenes)
            scenes += [(name, s, colour_of(k + 4 * i, s)) for i, s in enumerate(SHEET_STYLES)]
        if len(scenes) == 60:
            break
    return scenes


def held_out_scenes() -> list[Scene]:
    """Every pair of object and style that training never saw."""
    core = editions()[EDITION]
    seen = {(name, style) for name in core.objects for style in core.styles}
    pairs = [(n, s) for n in OBJECTS for s in STYLES if is_held_out(n, s) and (n, s) not in seen]
    return [(name, style, colour_of(i, style)) for i, (name, style) in enumerate(pairs)]


def edits(pipeline: NextStepPipeline, count: int, style_edits: bool) -> list[Cell]:
    """Source drawing and edited picture, one instruction each."""
    cells = []
    for i, name in enumerate(sample_objects(count, 7)):
        seen = [s for s in STYLES if not is_held_out(name, s)]
        n = len(seen)
        style = seen[i % n]
        if style_edits:
            other = seen[(i + 1 + i // n % (n - 1)) % n]
            colour = colour_of(i, "mono")
            text = STYLE_EDITS.forms[i % 3].format(style=other)
        else:
            colour = colour_of(i, style)
            # "a orange" too: these are the very words whose results were judged.
            form = BACKGROUND_EDITS.forms[i % 3].replace("{bg.a}", "a {bg}")
            text = form.format(bg=colour_of(i + 3, style))
        source = single(name, style, colour)
        made = pipeline.edit(source, text, seed=SEED)[0]
        # With a thought the prompt has a second line.
        cells.append(([source, made.image], made.settings["prompt"].replace("\n", " > ")))
    return cells


def sheet(cells: list[Cell], columns: int, shown: int = 2) -> Image.Image:
    """A grid of pictures with so many lines of their texts underneath."""
    width = sum(p.width for p in cells[0][0]) + 8
    height = cells[0][0][0].height + LABEL * shown + 8
    rows = -(-len(cells) // columns)
    canvas = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(9)
    for i, (pictures, text) in enumerate(cells):
        x, y = i % columns * width + 4, i // columns * height + 4
        for picture in pictures:
            canvas.paste(picture, (x, y))
            x += picture.width
        left = i % columns * width + 4
        words, lines = text.split(), [""]
        for word in words:
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) > width - 8:
                lines.append(word)
            else:
                lines[-1] = longer
        draw.multiline_text(
            (left, y + cells[0][0][0].height + 1),
            "\n".join(lines[:shown]),
            "black",
            font,
            spacing=0,
        )
    return canvas


def world(group: str, pipeline: NextStepPipeline) -> Image.Image:
    """Answers to the first items of a group's tasks, framed green where the scorer agrees."""
    size, count = pipeline.defaults.height, WORLD[group]
    plan = Plan.of([group], ["seen"], count, SEED, size, EDITION)
    with tempfile.TemporaryDirectory() as scratch:
        run, settings = begin(plan, Path(scratch) / "run", pipeline, "model")
        generate(run, pipeline, settings)
        judges = {"scorer": judge_for(plan, pipeline.image_tokenizer)}
        return answers_sheet(run, score(run, judges, "scorer"), count)


def chain(
    texts: Sequence[str],
    pipeline: NextStepPipeline,
    follow: Callable[[Image.Image, str], Image.Image],
) -> list[Cell]:
    """A picture of the first text, and what each text behind it makes of the picture before."""
    cells = pictures_of(texts[:1], pipeline)
    for text in texts[1:]:
        cells.append(([follow(cells[-1][0][0], text)], text))
    return cells


def skills(pipeline: NextStepPipeline) -> Image.Image:
    """A row of every skill: drawings, a chain of edits, a story, next states, questions."""
    drawn = pictures_of(DRAWINGS, pipeline)
    titles = "Draw", "Edit, and edit the result", "Tell a story", "What happens next", "Read"
    story = pipeline.conversation(SEED)
    rows = [
        drawn,
        chain(EDITS, pipeline, lambda image, text: pipeline.edit(image, text, seed=SEED)[0].image),
        [([story.draw_from(text).image], text) for text in STORY],
        chain(
            NEXT_STATES, pipeline, lambda image, text: pipeline.next_state(image, text, SEED).image
        ),
        [
            ([drawn[place][0][0]], f"{text} {pipeline.read(drawn[place][0][0], text)}")
            for place, text in zip(READ, QUESTIONS, strict=True)
        ],
    ]
    made = [sheet(cells, len(cells), shown=4) for cells in rows]
    head = 18
    canvas = Image.new(
        "RGB", (max(m.width for m in made), sum(m.height + head for m in made)), "white"
    )
    draw, font, top = ImageDraw.Draw(canvas), ImageFont.load_default(13), 0
    for title, one in zip(titles, made, strict=True):
        draw.text((4, top), title, "black", font)
        canvas.paste(one, (0, top + head))
        top += head + one.height
    return canvas


def main() -> None:
    """Write the sheets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--output", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--sheets", nargs="*", help="default: all")
    args = parser.parse_args()
    pipeline = NextStepPipeline.from_pretrained(args.model)
    makers: dict[str, Callable[[], Image.Image]] = {
        "skills": lambda: skills(pipeline),
        "singles": lambda: sheet(pictures_of(captions(single_scenes()), pipeline), 12),
        "held-out": lambda: sheet(pictures_of(captions(held_out_scenes()), pipeline), 9),
        "style": lambda: sheet(edits(pipeline, 30, style_edits=True), 5),
        "background": lambda: sheet(edits(pipeline, 30, style_edits=False), 5),
        **{group: partial(world, group, pipeline) for group in WORLD},
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for name in args.sheets or makers:
        made, path = makers[name](), args.output / f"{name}.webp"
        made.save(path, "WEBP", quality=75, method=6)
        print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
