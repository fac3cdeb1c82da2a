"""What a model is asked in the emoji world: fixed items of every task and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextstep.data.documents import derived_seed
from nextstep.errors import NextStepError
from nextstep.world.examples import Example, ImagePart
from nextstep.world.splits import SPLITS
from nextstep.world.tasks import PRACTICE, TASKS, choose_tasks, examples, splits_of

TEST_SPLITS = tuple(split for split in SPLITS if split != "train")


@dataclass(frozen=True)
class WorldQuestion:
    """One item.

    Attributes:
        task, split, index: which one; item `index` is the same however many are asked.
        example: the sample with its truth.
        asked: places of the parts that the model makes, in order; all others are given.
        seed: of what the model draws.
    """

    task: str
    split: str
    index: int
    example: Example
    asked: tuple[int, ...]
    seed: int

    @property
    def key(self) -> str:
        """Its name in files, "TASK/SPLIT/INDEX"."""
        return f"{self.task}/{self.split}/{self.index:05d}"

    @property
    def pictures(self) -> int:
        """How many pictures the model draws for it."""
        return sum(isinstance(self.example.parts[place], ImagePart) for place in self.asked)


def asked_parts(example: Example) -> tuple[int, ...]:
    """Places of the parts that a model is asked for.

    Where pictures follow from one another, in stories, next states and turns of edits, the model
    goes on from its own. The first picture of a story is given where the words leave its style or
    background open, since the later ones are judged by them; so are first pictures of next states
    and the characters of a recall. Of all other samples the last target is asked for.
    """
    targets = example.targets
    if example.task == "story":
        first = example.parts[targets[0]]
        spec = first.spec if isinstance(first, ImagePart) else None
        told = spec is not None and bool(spec.background) and spec.style is not None
        return targets if told else targets[1:]
    if example.task in ("turns", "next_state"):
        return tuple(
            place
            for place in targets
            if isinstance(part := example.parts[place], ImagePart) and part.kept is not None
        )
    return targets[-1:]


def chosen(
    tasks: Sequence[str] | None = None, splits: Sequence[str] | None = None, edition: str = "full"
) -> list[tuple[str, str]]:
    """Pairs of task and split in the order of `TASKS`.

    Args:
        tasks: names of tasks or groups; None for all that can be judged.
        splits: None for all that each task has.
        edition: of the world; tasks that it does not have are left out.

    Raises:
        NextStepError: for an unknown name, or when nothing is left.
    """
    wanted = choose_tasks(list(tasks) if tasks else None, edition)
    for split in splits or ():
        if split not in TEST_SPLITS:
            raise NextStepError(
                f"there is no test split '{split}'; choose from {', '.join(TEST_SPLITS)}"
            )
    pairs = [
        (name, split)
        for name, task in TASKS.items()
        for split in splits or TEST_SPLITS
        if name in wanted
        and task.group not in PRACTICE
        and split in ("seen", *splits_of(name, edition))
    ]
    if not pairs:
        raise NextStepError("none of these tasks has such a split or an answer that can be judged")
    return pairs


def questions(
    task: str, split: str, count: int, seed: int = 0, edition: str = "full", longest_word: int = 8
) -> list[WorldQuestion]:
    """The first `count` items of a task and split.

    Args:
        task: a key of `TASKS`.
        split: one of its own.
        count: how many.
        seed: of the whole evaluation.
        edition: of the world.
        longest_word: letters of a sign at most.
    """
    made = examples(task, split, count, seed, edition, longest_word)
    return [
        WorldQuestion(
            task,
            split,
            index,
            example,
            asked_parts(example),
            derived_seed("evaluation", task, split, seed, index),
        )
        for index, example in enumerate(made)
    ]
