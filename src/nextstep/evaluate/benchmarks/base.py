"""What all benchmarks share: items, the official picture layout, judges by role, metrics.

Legend: R repeats of a prompt, one picture each.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from nextstep.engine.results import GeneratedPicture
from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.files import (
    data_hash,
    encoded,
    read_picture,
    write_below,
)
from nextstep.evaluate.benchmarks.statistics import Means
from nextstep.evaluate.judges.protocol import Judge, RefusedError, UnreadableError

if TYPE_CHECKING:
    from nextstep.pipeline import NextStepPipeline

UNVERIFIED = "not known: its published README names none, read the repository's before you use it"
"""For sets whose licence was looked for in vain when their benchmark was written."""
IMAGE, EDIT, INTERLEAVED, OWN = "image", "edit", "interleaved", "own"
"""Who makes a benchmark's outputs: the pipeline in one of three ways, or the benchmark itself."""


@dataclass(frozen=True)
class Item:
    """One prompt of a set.

    Attributes:
        key: its name, unlike all others of the set.
        prompt: what the model is asked.
        group: category in which scores are averaged and items resampled.
        record: everything that the official file says of it.
    """

    key: str
    prompt: str
    group: str
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """What a model made for one item.

    Attributes:
        pictures: in order of their index.
        text: that it wrote; empty for benchmarks of pictures alone.
    """

    pictures: Sequence[GeneratedPicture]
    text: str = ""


@dataclass(frozen=True)
class ItemOutput:
    """What a judge sees of an item.

    Attributes:
        pictures: as many as the item has; None where one is missing or cannot be read.
        text: that the model wrote.
        sources: pictures that were given to the model.
    """

    pictures: Sequence[Image.Image | None]
    text: str = ""
    sources: Sequence[Image.Image] = ()


@dataclass
class Measurement:
    """The verdict on one item.

    Attributes:
        values: column -> value, what metrics are means of.
        failures: what was missing or could not be read; each counts as the lowest value.
        evidence: answers behind the values, for people.
    """

    values: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)

    def attempt(
        self, what: str, lowest: Any, ask: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """What `ask(*args, **options)` gives; `lowest`, and a failure, when that is of no use."""
        try:
            found = ask(*args, **options)
        except (UnreadableError, RefusedError) as error:
            self.failures.append(f"{what}: {error}")
            return lowest
        if isinstance(found, float) and not math.isfinite(found):
            self.failures.append(f"{what}: the judge gave {found}, which is no number")
            return lowest
        return found


@dataclass(frozen=True)
class Role:
    """A part that a judge plays.

    Attributes:
        official: names of the judge in the official scorer, or in the papers that report it.
        needs: methods of `Judge` that it calls.
        own_prompt: whether the question is worded here, unlike the official one. A file with the
            official wording can take its place.
        optional: whether the rest can be scored without it.
    """

    official: tuple[str, ...]
    needs: tuple[str, ...]
    own_prompt: bool = False
    optional: bool = False

    def is_official(self, name: str) -> bool:
        """Whether a judge of this name is the official one, with or without its organisation."""
        return _last_part(name) in {_last_part(one) for one in self.official}


Judges = Mapping[str, Judge]
"""Role -> who plays it."""


class Benchmark(ABC):
    """A benchmark: its set, the layout of its pictures, its rule.

    Attributes:
        name: on the command line.
        title: in reports.
        licence, source: of the set, and where it comes from.
        official_hashes: hash of a published version of the set -> which one; empty where none could
            be computed when the benchmark was written.
        data_help: what `--data` names.
        data_patterns: files of that folder that are the set; others may change beside them.
        kind: IMAGE, EDIT, INTERLEAVED or OWN.
        repeats: pictures of an item.
        own_set: whether the set is a plan made for a run. It is then kept in the run's folder, and
            a later run of the same kind may ask other items there.
        judged_together: items that one call of `measure_all` is given.
        roles: of judges.
        primary: the metric that papers quote.
        scale: by which a metric is multiplied for its usual form.
        sizes: group -> items of the complete set.
        published: row of a table -> metric -> value, as papers print it.
        judge_prompt: the user's own wording of the judge's question; None for the one given here.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    licence: ClassVar[str]
    source: ClassVar[str]
    official_hashes: ClassVar[Mapping[str, str]] = {}
    data_help: ClassVar[str]
    data_patterns: ClassVar[Sequence[str]] = ("**/*",)
    kind: ClassVar[str] = IMAGE
    repeats: ClassVar[int] = 4
    own_set: ClassVar[bool] = False
    judged_together: ClassVar[int] = 1
    roles: ClassVar[Mapping[str, Role]]
    primary: ClassVar[str]
    sizes: ClassVar[Mapping[str, int]] = {}
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {}

    def __init__(self, judge_prompt: str | None = None) -> None:
        self.judge_prompt = judge_prompt

    @abstractmethod
    def read(self, data: Path) -> list[Item]:
        """The items of the official file or folder, in its order.

        Raises:
            NextStepError: naming what is missing or damaged.
        """

    @abstractmethod
    def files(self, item: Item, model: str) -> list[str]:
        """Paths of the item's pictures below the folder that the official scorer reads.

        Args:
            item: which.
            model: name of the model, where the layout has a folder for it.
        """

    @abstractmethod
    def measure(self, item: Item, outputs: ItemOutput, judges: Judges) -> Measurement:
        """Ask the judges and apply the rule.

        Raises:
            UnavailableError: when a judge cannot be reached.
        """

    def measure_all(
        self, items: Sequence[Item], outputs: Sequence[ItemOutput], judges: Judges
    ) -> list[Measurement]:
        """Verdicts on several items, for judges that are faster with many at once.

        Raises:
            UnavailableError: when a judge cannot be reached.
        """
        return [self.measure(item, one, judges) for item, one in zip(items, outputs, strict=True)]

    @abstractmethod
    def metrics(self, means: Means) -> dict[str, np.ndarray]:
        """Metric -> [R], the official averages of the columns."""

    @abstractmethod
    def lowest(self, item: Item) -> dict[str, float]:
        """The values of an item that failed altogether."""

    def set_hash(self, data: Path) -> str:
        """What tells this set from others, in hexadecimal digits.

        Raises:
            NextStepError: when there is no such file.
        """
        return data_hash(data, self.data_patterns)

    def version_of(self, sha256: str) -> str:
        """Which version of the set a hash tells, in words; "" where no version is published."""
        if self.own_set:
            return ""
        if not self.official_hashes:
            return f"set {sha256[:12]}: the hash of the official set is not pinned"
        known = self.official_hashes.get(sha256)
        told = f"the official {known}" if known else "none of the official versions that are known"
        return f"set {sha256[:12]}: {told}"

    def together(self, batch_size: int) -> int:
        """Items that are made before they are written, of `batch_size` pictures at a time."""
        return max(1, batch_size // max(1, self.repeats))

    def own_judges(self, manifest: Mapping[str, Any], items: Sequence[Item]) -> dict[str, Judge]:
        """Role -> judge of a run, of those that come with this package.

        Args:
            manifest: of the run.
            items: of its set.
        """
        return {}

    def write_more(self, report: Any) -> list[Path]:
        """Write what this benchmark tells besides the files of every report; their paths.

        Args:
            report: a `report.Report`, which stands above benchmarks.
        """
        return []

    def sources(self, item: Item) -> list[Image.Image]:
        """Pictures that the model is given; none by default."""
        return []

    def write(self, folder: Path, item: Item, output: Output, model: str) -> None:
        """Write an item's pictures in the official layout, each whole or not at all."""
        names = self.files(item, model)
        if len(names) != len(output.pictures):
            raise NextStepError(
                f"{item.key} needs {len(names)} pictures, not {len(output.pictures)}"
            )
        for name, picture in zip(names, output.pictures, strict=True):
            write_below(folder, name, encoded(picture.image, name, picture.settings))

    def outputs(self, folder: Path, item: Item, model: str) -> ItemOutput:
        """Read an item's pictures back from the official layout."""
        pictures = [read_picture(folder / name) for name in self.files(item, model)]
        return ItemOutput(pictures, sources=self.sources(item))

    def finish(self, folder: Path, items: Sequence[Item], model: str) -> None:
        """Write what the official scorer wants besides the pictures, once all are there."""
        return

    def read_results(self, path: Path, items: Sequence[Item]) -> dict[str, Measurement]:
        """Key -> verdict from a file that the official scorer wrote.

        Raises:
            NextStepError: when the file is not of this benchmark, or has none to read.
        """
        raise NextStepError(f"results of the official {self.title} scorer cannot be read back")

    def worded(self, part: str, ours: str) -> str:
        """One of several questions: from the user's JSON file of them, else ours.

        Raises:
            NextStepError: when the file has none for this part.
        """
        if self.judge_prompt is None:
            return ours
        try:
            return str(json.loads(self.judge_prompt)[part])
        except (ValueError, KeyError, TypeError):
            raise NextStepError(f"the judge's prompts have no text for '{part}'") from None

    def check_items(self, items: Sequence[Item], data: Path) -> list[Item]:
        """The items, if there are any and no two have the same key.

        Raises:
            NextStepError: otherwise.
        """
        if not items:
            raise NextStepError(f"{data} holds no prompts of {self.title}")
        seen: set[str] = set()
        for item in items:
            if item.key in seen:
                raise NextStepError(f"{data} names the item {item.key} twice")
            seen.add(item.key)
        return list(items)

    @classmethod
    def complete(cls, items: Sequence[Item]) -> bool:
        """Whether these items are the whole official set, by their number in every group."""
        counts: dict[str, int] = {}
        for item in items:
            counts[item.group] = counts.get(item.group, 0) + 1
        return counts == dict(cls.sizes)


class OwnBenchmark(Benchmark):
    """A benchmark that asks the model itself, in ways that the other kinds do not have."""

    kind: ClassVar[str] = OWN

    @abstractmethod
    def make(
        self, pipeline: NextStepPipeline | None, items: Sequence[Item], batch_size: int
    ) -> list[Output]:
        """What the model makes of some items, in their order; see `generation.generate`."""


def _last_part(name: str) -> str:
    return name.rsplit("/", maxsplit=1)[-1].lower()


def column_mean(values: Sequence[float]) -> float:
    """The mean of an item's pictures; 0 of none, since a missing picture is a failure."""
    return float(np.mean(values)) if len(values) else 0.0


def missing_pictures(outputs: ItemOutput) -> list[str]:
    """A failure for every picture that is not there."""
    return [
        f"picture {number} is missing or cannot be read"
        for number, picture in enumerate(outputs.pictures)
        if picture is None
    ]
