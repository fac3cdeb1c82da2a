"""GenEval: does a detector find the objects, numbers, colours and places that a prompt names?

Rule and thresholds: Ghosh et al. 2023 (arXiv 2310.11513) and its scorer, djghosh13/geneval.

Legend: R rows of a bootstrap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    UNVERIFIED,
    Benchmark,
    Item,
    ItemOutput,
    Judges,
    Measurement,
    Output,
    Role,
    column_mean,
    missing_pictures,
)
from nextstep.evaluate.benchmarks.files import read_lines, wanted, write_below
from nextstep.evaluate.benchmarks.statistics import Means
from nextstep.evaluate.judges.protocol import Judge, ScoredBox

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
MOST_OF_CLASS = 16
"""Objects of a class that are looked at, the most confident ones."""
REACH = 0.1
"""Share of both objects' size that an offset must exceed."""
GREY = "#999"
"""Laid over everything outside an object's mask before its colour is read."""
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}",
             "a photo of a {colour} object")  # fmt: skip
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's names that the prompts word otherwise."""

Objects = Mapping[str, Sequence[ScoredBox]]
"""Class -> detections, most confident first."""
Colours = Callable[[Sequence[ScoredBox], str], list[str]]
"""Detections of a class -> the colour of each."""


class GenEval(Benchmark):
    """553 prompts of six kinds, four pictures each."""

    name: ClassVar[str] = "geneval"
    title: ClassVar[str] = "GenEval"
    licence: ClassVar[str] = UNVERIFIED
    source: ClassVar[str] = "github.com/djghosh13/geneval, prompts/evaluation_metadata.jsonl"
    data_help: ClassVar[str] = "evaluation_metadata.jsonl"
    roles: ClassVar[Mapping[str, Role]] = {
        "detector": Role(("mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco",), ("detect",)),
        "colours": Role(("ViT-L-14", "clip-vit-large-patch14"), ("embed",)),
    }
    primary: ClassVar[str] = "overall"
    sizes: ClassVar[Mapping[str, int]] = dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "NextStep-1": {"overall": 0.63},
        "NextStep-1 (Self-CoT)": {"overall": 0.73},
    }

    def read(self, data: Path) -> list[Item]:
        """See `Benchmark.read`."""
        items = []
        for number, record in enumerate(read_lines(data)):
            where = f"line {number + 1} of {data}"
            prompt, tag = wanted(record, "prompt", str, where), wanted(record, "tag", str, where)
            if tag not in TAGS:
                raise NextStepError(f"{where} has the unknown tag '{tag}'")
            _check(record, where)
            items.append(Item(f"{number:05d}", prompt, tag, record))
        return self.check_items(items, data)

    def files(self, item: Item, model: str) -> list[str]:
        """See `Benchmark.files`."""
        return [f"{item.key}/samples/{number:05d}.png" for number in range(self.repeats)]

    def write(self, folder: Path, item: Item, output: Output, model: str) -> None:
        """The metadata of the prompt stands beside its samples, as the scorer wants it."""
        metadata = json.dumps(item.record)
        write_below(folder, f"{item.key}/metadata.jsonl", metadata.encode())
        super().write(folder, item, output, model)

    def lowest(self, item: Item) -> dict[str, float]:
        """See `Benchmark.lowest`."""
        return {"correct": 0.0, "any": 0.0}

    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """See `Benchmark.measure`."""
        measured = Measurement(failures=missing_pictures(outputs))
        correct, reasons = [], []
        for picture in outputs.pictures:
            right, why = False, ["missing"]
            if picture is not None:
                right, why = _judged(item, picture, judges)
            correct.append(float(right))
            reasons.append(why)
        measured.values = {"correct": column_mean(correct), "any": max(correct)}
        measured.evidence = {"correct": correct, "reasons": reasons}
        return measured

    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """See `Benchmark.metrics`; overall is the mean of the tags' means."""
        return {
            "overall": means.mean_of_groups("correct"),
            **{tag: means.of("correct", tag) for tag in TAGS},
            "pictures": means.of("correct"),
            "prompts": means.of("any"),
        }

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """From results.jsonl of evaluate_images.py."""
        found: dict[str, dict[int, tuple[float, str]]] = {}
        for number, line in enumerate(read_lines(path)):
            where = f"line {number + 1} of {path}"
            name = Path(wanted(line, "filename", str, where))
            if not isinstance(line.get("correct"), bool) or not name.stem.isdigit():
                raise NextStepError(f"{where} is no result of GenEval")
            key = name.parent.parent.name
            verdict = float(line["correct"]), str(line.get("reason") or "")
            found.setdefault(key, {})[int(name.stem)] = verdict
        results = {}
        for key, verdicts in found.items():
            none = 0.0, "the official scorer left it out"
            each = [verdicts.get(number, none) for number in range(self.repeats)]
            correct = [one for one, _ in each]
            results[key] = Measurement(
                {"correct": column_mean(correct), "any": max(correct)},
                [f"picture {n}: {none[1]}" for n in range(self.repeats) if n not in verdicts],
                {"correct": correct, "reasons": [why for _, why in each]},
            )
        return results


def _check(record: Mapping[str, Any], where: str) -> None:
    for clause in ("include", "exclude"):
        for want in record.get(clause, []):
            fine = isinstance(want.get("class"), str) and isinstance(want.get("count"), int)
            if not fine:
                raise NextStepError(f"'{clause}' of {where} has no class and count")
    for number, want in enumerate(record.get("include", [])):
        if "position" in want and not 0 <= want["position"][1] < number:
            raise NextStepError(f"{where} places an object by one that does not stand before it")


def _judged(item: Item, picture: Image.Image, judges: Judges) -> tuple[bool, list[str]]:
    found = objects_of(judges["detector"].detect(picture), item.group)
    colours = judges["colours"]
    return verdict(
        item.record, found, lambda which, name: read_colours(colours, picture, which, name)
    )


def objects_of(detections: Sequence[ScoredBox], tag: str) -> dict[str, list[ScoredBox]]:
    """Class as the prompts call it -> its objects above the tag's threshold, best first."""
    least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE
    found: dict[str, list[ScoredBox]] = {}
    for one in sorted(detections, key=lambda one: -one.score):
        if one.score > least:
            found.setdefault(RENAMED.get(one.label, one.label), []).append(one)
    return {name: some[:MOST_OF_CLASS] for name, some in found.items()}


def verdict(
    wanted_of: Mapping[str, Any], objects: Objects, colours: Colours
) -> tuple[bool, list[str]]:
    """Whether a picture shows what its metadata asks, and what is wrong.

    Every `include` clause must hold, on the `count` most confident objects of its class; no class
    of `exclude` may have `count` or more.

    Args:
        wanted_of: metadata of the prompt.
        objects: that were found.
        colours: reads the colours of some objects.
    """
    wrong: list[str] = []
    matched: list[Sequence[ScoredBox] | None] = []
    for want in wanted_of.get("include", []):
        name, count = want["class"], want["count"]
        found = list(objects.get(name, []))[:count]
        why = f"expected {name}>={count}, found {len(found)}" if len(found) < count else ""
        if not why and "color" in want:
            read = colours(found, name)
            if read.count(want["color"]) < count:
                why = f"expected {want['color']} {name}, found {', '.join(read)}"
        if not why and "position" in want:
            why = _misplaced(found, want, matched)
        matched.append(None if why else found)
        wrong += [why] if why else []
    for want in wanted_of.get("exclude", []):
        number = len(objects.get(want["class"], []))
        if number >= want["count"]:
            wrong.append(f"expected {want['class']}<{want['count']}, found {number}")
    return not wrong, wrong


def _misplaced(
    found: Sequence[ScoredBox],
    want: Mapping[str, Any],
    matched: Sequence[Sequence[ScoredBox] | None],
) -> str:
    relation, other = want["position"]
    targets = matched[other]
    if targets is None:
        return f"no target for {want['class']} to be {relation}"
    for one in found:
        for target in targets:
            seen = relations(one.box, target.box)
            if relation not in seen:
                told = " and ".join(sorted(seen)) or "no relation to"
                return f"expected {want['class']} {relation} target, found {told} target"
    return ""


Box = tuple[float, float, float, float]


def relations(box: Box, other: Box) -> set[str]:
    """How a box lies to another one: left of, right of, above, below.

    The offset of the centres, less a tenth of both sizes, is divided by the length of the whole
    offset; a component beyond one half counts. Two relations can hold at once, or none.
    """
    offset, reduced = [], []
    for low, high in ((0, 2), (1, 3)):
        apart = (box[low] + box[high] - other[low] - other[high]) / 2
        sizes = abs(box[high] - box[low]) + abs(other[high] - other[low])
        offset.append(apart)
        reduced.append(math.copysign(max(abs(apart) - REACH * sizes, 0.0), apart))
    if all(abs(part) < 1e-3 for part in reduced):
        return set()
    length = math.hypot(*offset)
    across, down = (part / length for part in reduced)
    return {
        name
        for name, holds in (
            ("left of", across < -0.5), ("right of", across > 0.5),
            ("above", down < -0.5), ("below", down > 0.5),
        )
        if holds
    }  # fmt: skip


def read_colours(
    judge: Judge, picture: Image.Image, found: Sequence[ScoredBox], name: str
) -> list[str]:
    """The likeliest colour of each object, by CLIP on its crop with the rest greyed out."""
    texts = [t.format(colour=colour, name=name) for colour in COLOURS for t in TEMPLATES]
    classes = judge.embed(texts).reshape(len(COLOURS), len(TEMPLATES), -1).mean(1)
    classes /= np.linalg.norm(classes, axis=-1, keepdims=True)
    seen = judge.embed([crop_of(picture, one) for one in found])
    return [COLOURS[best] for best in (seen @ classes.T).argmax(1)]


def crop_of(picture: Image.Image, found: ScoredBox) -> Image.Image:
    """The box of an object, everything outside its mask in grey."""
    crop = picture
    if found.mask is not None:
        blank = Image.new("RGB", picture.size, GREY)
        crop = Image.composite(picture, blank, Image.fromarray(found.mask))
    left, top, right, bottom = found.box
    # PIL refuses an empty crop, which a box thinner than a pixel would be.
    return crop.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
