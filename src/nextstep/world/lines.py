"""Samples with the lines that a model writes before it draws; see `text.reasoning`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nextstep.text.reasoning import SEPARATOR, Region, change_words
from nextstep.text.sequence import with_reasoning
from nextstep.world.descriptions import (
    changes_between,
    describe,
    name_with_places,
    name_with_style,
    relation_between,
)
from nextstep.world.examples import ImagePart, TextPart
from nextstep.world.lexicon import world_objects
from nextstep.world.scenes import Scene, SceneItem, Sign, changed_region

Grid = tuple[int, int]


def with_lines(
    parts: Sequence[TextPart | ImagePart], grid: Grid, source_line: bool
) -> list[TextPart | ImagePart]:
    """The parts with a line before every trained picture that follows text, and every answer.

    The line of an edit says what becomes of which objects, before it says which image tokens
    change; that of a character who comes back says first who that is. The line of an answer says
    what the pictures before its question show, and which of the objects the question is about and
    how they stand to each other, or what changed from the first picture to the last. Each stands
    there in the words of the scene's description, so that a model need only copy.

    Args:
        parts: of a sample, in reading order.
        grid: of its pictures.
        source_line: whether the line of an edit begins with the picture that it changes, where no
            line before that picture has said it. Without, that part is read and not learned.
    """
    found: list[TextPart | ImagePart] = []
    told: set[int] = set()
    for place, part in enumerate(parts):
        asked = found[-1] if found else None
        if isinstance(part, ImagePart) and part.trained and isinstance(asked, TextPart):
            found[-1] = replace(asked, text=with_reasoning(asked.text, ""))
            if part.kept is not None:
                before = parts[part.kept]
                assert isinstance(before, ImagePart)
                if part.kept not in told:
                    found.append(TextPart(f"{describe(before.scene)};", trained=source_line))
                region = region_of_change(before.scene, part.scene, grid)
                told_of = [change_words(region, grid), describe(part.scene)]
                changing = changes_between(before.scene, part.scene, asked.text)
                if changing:
                    told_of.insert(0, changing)
                space = "" if part.kept in told else " "
                found.append(TextPart(space + SEPARATOR.join(told_of)))
            else:
                met = _who_comes_back(asked, parts[:place])
                found.append(TextPart(SEPARATOR.join([*met, describe(part.scene)])))
            told.add(place)
        elif isinstance(part, TextPart) and part.answers and isinstance(asked, TextPart):
            found[-1] = replace(asked, text=with_reasoning(asked.text, ""))
            scenes = [one.scene for one in parts[:place] if isinstance(one, ImagePart)]
            line = SEPARATOR.join(map(describe, scenes))
            subject = what_is_asked_for(asked.about, scenes)
            if subject is None:
                found.append(TextPart(with_reasoning(line, ""), trained=source_line))
            else:
                found.append(TextPart(f"{line};", trained=source_line))
                found.append(TextPart(with_reasoning(f" {subject}", "")))
            found.append(replace(part, text=part.text.strip()))
            continue
        found.append(part)
    return _merged(found)


def what_is_asked_for(names: Sequence[str] | None, scenes: Sequence[Scene]) -> str | None:
    """The objects that a question is about, or what changed.

    Args:
        names: labels, in the order in which the answer needs them; None for a question that names
            no object.
        scenes: of the pictures before the question.

    Returns:
        Of several pictures the changes from the first to the last; of one the objects of these
        names by their words and places ("cat none" where it has no cat), and where there are two
        of them, how they stand to each other; or None.
    """
    if len(scenes) > 1:
        return changes_between(scenes[0], scenes[-1])
    if names is None:
        return None
    scene = scenes[-1]
    told = [
        name_with_places(scene, [name]) or f"{world_objects()[name].word} none" for name in names
    ]
    related = relation_between(scene, names)
    return SEPARATOR.join([", ".join(told), *([related] if related else [])])


def _who_comes_back(asked: TextPart, parts: Sequence[TextPart | ImagePart]) -> list[str]:
    """What the picture that came with a name shows, if the text calls that name back."""
    if asked.calls is None:
        return []
    name, place = asked.calls
    scenes = [part.scene for part in parts if isinstance(part, ImagePart)]
    return [f"{name} {name_with_style(scenes[place].items[0])}"]


def with_regions(parts: Sequence[TextPart | ImagePart], grid: Grid) -> list[TextPart | ImagePart]:
    """The parts, every changed picture with the tokens that change."""
    found: list[TextPart | ImagePart] = []
    for part in parts:
        if isinstance(part, ImagePart) and part.kept is not None:
            before = parts[part.kept]
            assert isinstance(before, ImagePart)
            region = region_of_change(before.scene, part.scene, grid)
            found.append(replace(part, region=None if region.covers(grid) else region))
        else:
            found.append(part)
    return found


def _merged(parts: Sequence[TextPart | ImagePart]) -> list[TextPart | ImagePart]:
    """Lines whose pieces are learned alike as one text, as a model writes them."""
    found: list[TextPart | ImagePart] = []
    for part in parts:
        last = found[-1] if found else None
        if (
            isinstance(part, TextPart)
            and isinstance(last, TextPart)
            and part.trained == last.trained
            and last.text.endswith(SEPARATOR.strip())
        ):
            found[-1] = replace(last, text=last.text + part.text)
        else:
            found.append(part)
    return found


def region_of_change(before: Scene, after: Scene, grid: Grid) -> Region:
    """The rectangle of image tokens that holds all that two scenes differ in.

    Objects count with all tokens of their places, so that the region does not depend on shapes.
    """
    whole = Region(0, 0, *grid)
    if before.background != after.background or before.grey != after.grey:
        return whole
    blocks = [
        block_of(item, grid)
        for ones, others in ((before, after), (after, before))
        for item in ones.items
        if item not in others.items
    ]
    if before.sign != after.sign:
        blocks += [block_of(sign, grid) for sign in (before.sign, after.sign) if sign]
    if before.hole != after.hole or not blocks:
        marked = changed_region(before, after)
        rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
        if not len(rows):
            return whole
        size = len(marked)
        blocks.append(
            Region(
                int(rows[0] * grid[0] // size), int(columns[0] * grid[1] // size),
                int(rows[-1] * grid[0] // size) + 1, int(columns[-1] * grid[1] // size) + 1,
            )
        )  # fmt: skip
    return Region(
        min(block.top for block in blocks), min(block.left for block in blocks),
        max(block.bottom for block in blocks), max(block.right for block in blocks),
    )  # fmt: skip


def block_of(item: SceneItem | Sign, grid: Grid) -> Region:
    """The tokens of an object's square, or of a sign."""
    if isinstance(item, Sign):
        top = math.floor((item.y - item.height / 2) * grid[0] + 1e-6)
        bottom = math.ceil((item.y + item.height / 2) * grid[0] - 1e-6)
        half = item.width / 2 if item.pitch is None else item.pitch * len(item.text) / 2
        left = math.floor((item.x - half) * grid[1] + 1e-6)
        return Region(top, left, bottom, math.ceil((item.x + half) * grid[1] - 1e-6))
    edges = []
    for centre, count in ((item.y, grid[0]), (item.x, grid[1])):
        side = math.ceil(item.size * count - 1e-6)
        # An object on the grid is a little smaller than its tokens and lies in their middle.
        first = math.floor(centre * count - side / 2 + 1e-6)
        last = math.ceil(centre * count + side / 2 - 1e-6)
        edges.append((max(0, first), min(count, last)))
    (top, bottom), (left, right) = edges
    return Region(top, left, bottom, right)
