"""All tasks by name, and examples of them for training and for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nextstep.data.documents import derived_seed
from nextstep.errors import NextStepError
from nextstep.world import editions
from nextstep.world.draw import Draw
from nextstep.world.examples import Example
from nextstep.world.splits import SPLITS
from nextstep.world.tasks import drawing, editing, next_state, plain, reading, stories

__all__ = [
    "GROUPS", "PRACTICE", "TASKS", "Task", "choose_tasks", "example", "examples", "splits_of",
    "tasks_with_split",
]  # fmt: skip

_STYLES, _PAIRS, _PHRASES, _WORDS = (
    "held_out_styles", "held_out_pairs", "held_out_phrasings", "held_out_words",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One skill.

    Attributes:
        name: its key in `TASKS`.
        group: what kind of skill, a key of `GROUPS`.
        make: draws a sample.
        splits: held-out splits that it has; every task has `train` and `seen`.
        weight: its share within its group.
        kind: what its samples are in a set of shards, one of `documents.KINDS`.
        core: whether the core editions have it.
    """

    name: str
    group: str
    make: Callable[[Draw], Example]
    splits: tuple[str, ...]
    weight: float
    kind: str
    core: bool = True


GROUPS: dict[str, float] = {
    "drawing": 0.39, "editing": 0.25, "story": 0.08, "next_state": 0.08, "recall": 0.04,
    "reading": 0.1, "plain": 0.03, "lookup": 0.01, "letters": 0.01,
    "names": 0.005, "steps": 0.005,
}  # fmt: skip
"""Group -> its share of a mixture by default."""

PRACTICE = ("plain", "lookup", "letters", "names", "steps")
"""Groups that are for training alone: nothing in them can be judged."""

_ALL = (_STYLES, _PAIRS, _PHRASES)
_ONE = (_STYLES, _PHRASES)
_KINDS = {
    "drawing": "image_text", "editing": "image_to_image", "plain": "text", "lookup": "text",
    "letters": "image_text",
}  # fmt: skip
_LIST: list[tuple[str, str, Callable[[Draw], Example], tuple[str, ...], float]] = [
    ("single", "drawing", drawing.single, _ONE, 4),
    ("two_objects", "drawing", drawing.two_objects, _ALL, 3),
    ("counting", "drawing", drawing.counting, _ALL, 3),
    ("colours", "drawing", drawing.colours, _ONE, 2),
    ("position", "drawing", drawing.position, _ALL, 3),
    ("attributes", "drawing", drawing.attributes, _ALL, 3),
    ("sizes", "drawing", drawing.sizes, _ALL, 1),
    ("words", "drawing", drawing.words, (*_ONE, _WORDS), 3),
    ("add", "editing", editing.add, _ALL, 2),
    ("remove", "editing", editing.remove, _ALL, 2),
    ("replace", "editing", editing.replace_object, _ONE, 2),
    ("move", "editing", editing.move, _ALL, 2),
    ("resize", "editing", editing.resize, _ALL, 1),
    ("recolour", "editing", editing.recolour, _ALL, 2),
    ("background", "editing", editing.background, _ALL, 2),
    ("style", "editing", editing.style, _ALL, 2),
    ("skin_tone", "editing", editing.skin_tone, _ONE, 1),
    ("colourise", "editing", editing.colourise, _ALL, 1),
    ("fill", "editing", editing.fill, _ALL, 1),
    ("change_word", "editing", editing.change_word, (*_ONE, _WORDS), 1),
    ("combine", "editing", editing.combine, _ALL, 1),
    ("turns", "editing", editing.turns, _ALL, 1),
    ("story", "story", stories.story, (*_ALL, _WORDS), 1),
    ("next_state", "next_state", next_state.next_state, _ALL, 1),
    ("recall", "recall", stories.recall, _ONE, 1),
    ("read_caption", "reading", reading.read_caption, _ALL, 2),
    ("read_count", "reading", reading.read_count, _ALL, 2),
    ("read_where", "reading", reading.read_where, _ALL, 2),
    ("read_colour", "reading", reading.read_colour, _ONE, 2),
    ("read_change", "reading", reading.read_change, _ALL, 2),
    ("read_word", "reading", reading.read_word, (_PHRASES, _WORDS), 1),
    ("read_style", "reading", reading.read_style, _ONE, 1),
    ("read_yes_no", "reading", reading.read_yes_no, _ALL, 1),
    ("plain", "plain", plain.plain, (_PHRASES,), 1),
    ("lookup", "lookup", plain.lookup, (), 1),
    ("compare", "lookup", plain.compare, (), 1),
    ("letters", "letters", drawing.letters, (), 1),
    ("names", "names", stories.names, (), 1),
    ("steps", "steps", next_state.steps, (), 1),
]


def _table() -> dict[str, Task]:
    found = {}
    for name, group, make, splits, weight in _LIST:
        kind = "interleaved" if name == "turns" else _KINDS.get(group, "interleaved")
        # No object of a core edition has skin tones.
        found[name] = Task(name, group, make, splits, weight, kind, core=name != "skin_tone")
    return found


TASKS: dict[str, Task] = _table()
"""Every task by name."""


def choose_tasks(
    wanted: Mapping[str, float] | Sequence[str] | None = None, edition: str = "full"
) -> dict[str, float]:
    """Weights of single tasks.

    Args:
        wanted: names of tasks or groups, with weights or alike; a group's weight is dealt out to
            its tasks. None takes every group by its usual share.
        edition: of the world; tasks that it does not have are left out.

    Returns:
        Task name -> weight; the weights add up to 1.

    Raises:
        NextStepError: for an unknown name or edition, a negative weight, or when nothing is left.
    """
    editions.edition(edition)
    if wanted is None:
        wanted = GROUPS
    weights = dict(wanted) if isinstance(wanted, Mapping) else {
        name: GROUPS.get(name, 1.0) for name in wanted
    }  # fmt: skip
    found: dict[str, float] = {}
    for name, weight in weights.items():
        if name not in GROUPS and name not in TASKS:
            known = ", ".join([*GROUPS, *(task for task in TASKS if task not in GROUPS)])
            raise NextStepError(f"the world has no task '{name}'; choose from {known}")
        if not weight >= 0:
            raise NextStepError(f"the weight of task '{name}' must not be negative")
        members = [task for task in TASKS.values() if task.group == name] or [TASKS[name]]
        members = [task for task in members if task.core or edition == "full"]
        total = sum(task.weight for task in members)
        for task in members:
            found[task.name] = found.get(task.name, 0.0) + weight * task.weight / total
    total = sum(found.values())
    if not total:
        raise NextStepError("no task is left; give one of them a weight above 0")
    return {name: weight / total for name, weight in found.items() if weight}


def splits_of(task: str, edition: str = "full") -> tuple[str, ...]:
    """The held-out splits of a task in an edition of the world."""
    held = editions.edition(edition).holds_out_styles
    return tuple(split for split in TASKS[task].splits if held or split != _STYLES)


def tasks_with_split(
    tasks: Mapping[str, float], split: str, edition: str = "full"
) -> dict[str, float]:
    """Those of the weighted tasks that have a split.

    Raises:
        NextStepError: for an unknown split, or when none of the tasks has it.
    """
    if split not in SPLITS:
        raise NextStepError(f"there is no split '{split}'; choose from {', '.join(SPLITS)}")
    kept = {
        task: weight
        for task, weight in tasks.items()
        if split in ("train", "seen", *splits_of(task, edition))
    }
    if not kept:
        raise NextStepError(f"none of the tasks {', '.join(tasks)} has the split '{split}'")
    return kept


def example(
    task: str, seed: int, split: str = "train", edition: str = "full", longest_word: int = 8
) -> Example:
    """One sample of a task, a pure function of the arguments.

    Args:
        task: a key of `TASKS`.
        seed: of all choices.
        split: one of `splits.SPLITS`.
        edition: of the world, see `editions`.
        longest_word: letters of a sign at most.

    Raises:
        NextStepError: when there is no such task, or it has no such split.
    """
    if task not in TASKS:
        raise NextStepError(f"the world has no task '{task}'; choose from {', '.join(TASKS)}")
    has = ("train", "seen", *splits_of(task, edition))
    if split not in has:
        known = split in SPLITS
        raise NextStepError(
            f"task '{task}' has no split '{split}'; {'it has' if known else 'choose from'} "
            f"{', '.join(has)}"
        )
    if edition != "full" and not TASKS[task].core:
        raise NextStepError(f"edition {edition} has no task '{task}'")
    return TASKS[task].make(Draw(seed, split, edition, longest_word))


def examples(
    task: str,
    split: str = "seen",
    count: int = 100,
    seed: int = 0,
    edition: str = "full",
    longest_word: int = 8,
) -> list[Example]:
    """Samples to test a model on; training never sees these seeds.

    Raises:
        NextStepError: when there is no such task, or it has no such split.
    """
    return [
        example(task, derived_seed("test", task, split, seed, i), split, edition, longest_word)
        for i in range(count)
    ]
