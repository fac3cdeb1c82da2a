"""Prompts that rollouts are made of: lines of a file, or samples of a live source of the world."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from nextstep.data.documents import derived_seed
from nextstep.errors import NextStepError
from nextstep.text.sequence import Grid
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.lines import with_lines
from nextstep.world.scenes import render

TRIES = 1000
"""Samples of a live source that are looked at for one that asks for a single answer."""


@dataclass(frozen=True)
class RolloutPrompt:
    """What samples are drawn for.

    Attributes:
        key: names it; prompts of one key are the same.
        text: what the model reads, source pictures as `<image>` tags.
        images: the source pictures in order of their tags.
        draws: whether a picture is asked for; otherwise text.
        facts: JSON-like, for rewards; of a file all that stands beside the prompt.
        example, target: where a sample of the world asks for it, and which of its parts.
    """

    key: str
    text: str
    images: tuple[Image.Image, ...] = ()
    draws: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    example: Example | None = None
    target: int = 0


class PromptStream(Protocol):
    """Prompts by number; the same number gives the same prompt anywhere."""

    def prompt(self, number: int) -> RolloutPrompt:
        """Prompt `number` of the run."""


class ListedPrompts:
    """A list, in another order every epoch.

    Args:
        prompts: at least one.
        seed: of the orders; None keeps the order of the list.
    """

    def __init__(self, prompts: Sequence[RolloutPrompt], seed: int | None = 0) -> None:
        if not prompts:
            raise NextStepError("there are no prompts to draw samples for")
        self.prompts, self.seed = list(prompts), seed

    def __len__(self) -> int:
        return len(self.prompts)

    def prompt(self, number: int) -> RolloutPrompt:
        """Prompt `number` of the run."""
        epoch, place = divmod(number, len(self.prompts))
        if self.seed is None:
            return self.prompts[place]
        order = list(range(len(self.prompts)))
        random.Random(derived_seed(self.seed, "prompts", epoch)).shuffle(order)
        return self.prompts[order[place]]


class LivePrompts:
    """Samples of a live source that ask for one picture or one answer.

    Args:
        source: with `example(index, seed)`, `edition` and `grid`, such as `world.live.WorldSource`.
        pixels: side of source pictures.
        seed: of the samples.
        reasoning: see `world_prompt`.

    Raises:
        NextStepError: when the source has no examples.
    """

    def __init__(self, source: Any, pixels: int, seed: int = 0, reasoning: bool = False) -> None:
        if not hasattr(source, "example"):
            raise NextStepError(
                f"the live source '{source.name}' does not say what must hold of a picture; "
                "choose 'world', or prompts of a file"
            )
        self.source, self.pixels, self.seed, self.reasoning = source, pixels, seed, reasoning

    def prompt(self, number: int) -> RolloutPrompt:
        """Prompt `number` of the run.

        Raises:
            NextStepError: when no sample asks for a single answer.
        """
        for attempt in range(TRIES):
            seed = derived_seed(self.seed, "rollout", number, attempt)
            example = self.source.example(number, seed)
            if example.targets:
                key = f"{self.source.name}/{example.task}/{number}-{seed}"
                told = self.source.grid if self.reasoning else None
                return world_prompt(
                    example, example.targets[-1], self.pixels, key, self.source.edition, told
                )
        raise NextStepError(f"no sample of {self.source.name} asks for an answer")


def world_prompt(
    example: Example,
    target: int,
    pixels: int,
    key: str,
    edition: str = "full",
    lines: Grid | None = None,
) -> RolloutPrompt:
    """A part of a sample of the world as a prompt.

    Args:
        example: the sample.
        target: place of the part that is asked for; all before it are given.
        pixels: side of its pictures.
        key: names it.
        edition: of the world, by which answers are judged.
        lines: grid of the pictures, where each that is given comes with the true line before it,
            as a model that writes such lines would have it in a conversation; see
            `world.lines.with_lines`. None for none.
    """
    part, before = example.parts[target], example.parts[:target]
    if lines is not None:
        before = tuple(with_lines(before, lines, source_line=True))
    shown = [p for p in example.parts[:target] if isinstance(p, ImagePart)]
    images = tuple(Image.fromarray(render(p.scene, pixels)) for p in shown)
    facts: dict[str, Any] = {"task": example.task, "edition": edition}
    if isinstance(part, TextPart):
        facts["answers"] = list(part.answers)
    return RolloutPrompt(
        key,
        Example(example.task, before).text,
        images,
        isinstance(part, ImagePart),
        facts,
        example,
        target,
    )


def read_prompts(path: Path) -> list[RolloutPrompt]:
    """Prompts of a file: one a line, or with the ending .jsonl one JSON object a line.

    An object holds `prompt` and may hold `key`, `images` (paths beside the file) and whatever
    rewards want to know, such as `words` for OCR.

    Raises:
        NextStepError: when the file cannot be read, naming the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise NextStepError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise NextStepError(f"{path} is not UTF-8 text") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            found.append(_parsed(path, number, line))
        else:
            found.append(RolloutPrompt(f"{path.stem}/{number}", line.strip()))
    if not found:
        raise NextStepError(f"{path} holds no prompt")
    return found


def _parsed(path: Path, number: int, line: str) -> RolloutPrompt:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise NextStepError(f"{path} line {number} is not valid JSON: {error}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("prompt"), str) or not raw["prompt"]:
        raise NextStepError(f"{path} line {number} must be an object with a text 'prompt'")
    images, names = [], raw.get("images") or []
    if not isinstance(names, list):
        raise NextStepError(f"{path} line {number}: 'images' must be a list of paths")
    for name in names:
        try:
            images.append(Image.open(path.parent / str(name)).convert("RGB"))
        except OSError:
            raise NextStepError(f"{path} line {number}: {name} is no picture here") from None
    facts = {name: value for name, value in raw.items() if name not in ("prompt", "images", "key")}
    key = str(raw.get("key", f"{path.stem}/{number}"))
    return RolloutPrompt(key, raw["prompt"], tuple(images), True, facts)
