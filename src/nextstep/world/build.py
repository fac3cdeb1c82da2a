"""The world written into tar shards, for programs that read files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from nextstep.data.documents import KINDS, derived_seed
from nextstep.data.shard_writer import RawSample, ShardWriter
from nextstep.errors import NextStepError
from nextstep.utils.files import new_folder
from nextstep.world.examples import Example, ImagePart, TextPart
from nextstep.world.scenes import check_side, render
from nextstep.world.signs import longest_word_at
from nextstep.world.tasks import TASKS, choose_tasks, example, tasks_with_split


def build_shards(
    folder: Path,
    count: int,
    tasks: Mapping[str, float] | Sequence[str] | None = None,
    split: str = "train",
    size: int = 128,
    seed: int = 0,
    edition: str = "full",
    on_sample: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Write samples; every task gets its share of them to within one sample.

    Tasks of one kind make one set in `folder`; tasks of several kinds make a set each in
    `folder/KIND`. Which parts of a sample are trained is then decided by its kind: of edits the
    last picture, of everything else all.

    Args:
        folder: must not exist.
        count: samples in all.
        tasks: as for `tasks.choose_tasks`.
        split: one of `splits.SPLITS`; tasks without it are left out.
        size: side of the pictures in pixels.
        seed: of all samples.
        edition: of the world, see `editions`.
        on_sample: told after every sample.

    Returns:
        Task -> samples written.

    Raises:
        NextStepError: for a bad argument or a folder that exists.
    """
    numbers = _dealt(tasks_with_split(choose_tasks(tasks, edition), split, edition), count)
    longest = longest_word_at(size)
    check_side(size, "the size")
    if folder.exists():
        raise NextStepError(f"{folder} exists already; choose another folder")
    kinds = [kind for kind in KINDS if any(TASKS[task].kind == kind for task in numbers)]
    with ExitStack() as stack:
        # Several sets appear together or not at all.
        root = folder if len(kinds) == 1 else stack.enter_context(new_folder(folder))
        writers = {}
        for kind in kinds:
            target = root if len(kinds) == 1 else root / kind
            writers[kind] = stack.enter_context(ShardWriter(target, f"world-{split}", kind))
        for task, number in numbers.items():
            for i in range(number):
                key = derived_seed("shard", task, split, seed, i)
                made = example(task, key, split, edition, longest)
                writers[TASKS[task].kind].add(_sample(made, key, size))
                on_sample()
    return numbers


def _dealt(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Whole numbers that add up to `count`, each within one of its share."""
    if count < 1:
        raise NextStepError(f"a set has at least 1 sample, not {count}")
    total = sum(weights.values())
    shares = {task: weight / total for task, weight in weights.items()}
    whole = {task: int(share * count) for task, share in shares.items()}
    left = sorted(shares, key=lambda task: whole[task] - shares[task] * count)
    for task in left[: count - sum(whole.values())]:
        whole[task] += 1
    return {task: number for task, number in whole.items() if number}


def _sample(made: Example, key: int, size: int) -> RawSample:
    """An example as a record with tagged text, and its pictures as PNG files."""
    kind = TASKS[made.task].kind
    number, text = 0, ""
    for part in made.parts:
        if isinstance(part, TextPart):
            text += part.text
        else:
            text += f"<image_{number}>"
            number += 1
    record: dict[str, object] = {"metadata": {"task": made.task, "targets": _targets(made)}}
    if kind in ("text", "image_text"):
        text = "".join(part.text for part in made.parts if isinstance(part, TextPart))
    record["text" if kind == "text" else "caption"] = text
    pictures = tuple(_png(part, size) for part in made.parts if isinstance(part, ImagePart))
    return RawSample(record, pictures, f"{key:016x}", made.task)


def _targets(made: Example) -> list[dict[str, object]]:
    return [made.metadata(place) for place in made.targets]


def _png(part: ImagePart, size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(render(part.scene, size)).save(file, "PNG")
    return file.getvalue()
