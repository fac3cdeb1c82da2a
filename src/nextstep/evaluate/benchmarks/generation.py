"""Making a set's pictures: resumable item by item, by several processes at once.

RUN/manifest.json    what is made, of which set, by which weights, with which settings
RUN/set.json         the set, where it was made for this run
RUN/images/          exactly what the official scorer reads
RUN/claims           which items a living process is at work on
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nextstep.data.documents import derived_seed
from nextstep.engine.backends import backend_of
from nextstep.engine.metadata import write_file
from nextstep.engine.results import GeneratedPicture
from nextstep.errors import NextStepError
from nextstep.evaluate.benchmarks.base import (
    EDIT,
    IMAGE,
    OWN,
    Benchmark,
    Item,
    Output,
    OwnBenchmark,
)
from nextstep.evaluate.benchmarks.files import Claims
from nextstep.text.vocabulary import PromptWarning
from nextstep.utils.files import read_json, write_json
from nextstep.utils.old_names import SETTINGS, renamed
from nextstep.version import __version__

if TYPE_CHECKING:
    from nextstep.pipeline import NextStepPipeline

RELEASED = {"guidance": 7.5, "steps": 28, "shift": 1.0}
"""Settings of the released evaluation code, which draws at 256 pixels (its repository, evals/)."""
RELEASED_SIZE = 256
MANIFEST = "manifest.json"
IMAGES = "images"
OWN_SET = "set.json"
"""A set that was made for a run, in its folder."""
MAY_DIFFER = ("data", "versions", "licence", "weights")
"""Entries of a manifest that may differ between two starts of one run."""
MAY_GROW = ("complete", "items", "limit")
"""Entries that may differ too where a run's set is its own."""
MOST_TEXT = 512
"""Text tokens of an interleaved answer at most, before every picture and after the last."""
MOST_PICTURES = 8
"""Pictures of an interleaved answer at most."""


@dataclass(frozen=True)
class Settings:
    """How pictures are made.

    Attributes:
        size: side in pixels; edits keep the shape of their source and take this area.
        seed: of the run; every item derives its own.
        batch_size: pictures made together; does not change them.
        limit: items at most, taken evenly over the set; None for all.
        sampling: fields of `GenerationSettings` that differ from the model's own.
    """

    size: int = RELEASED_SIZE
    seed: int = 0
    batch_size: int = 8
    limit: int | None = None
    sampling: dict[str, Any] = field(default_factory=lambda: dict(RELEASED))


class Run:
    """A folder in which a benchmark's pictures are made and scored.

    Args:
        folder: of the run.
        benchmark: whose set it is.
        items: of the set.
        manifest: as in manifest.json.
    """

    def __init__(
        self, folder: Path, benchmark: Benchmark, items: Sequence[Item], manifest: dict[str, Any]
    ) -> None:
        self.folder, self.benchmark, self.items = folder, benchmark, items
        self.manifest = manifest

    @property
    def images(self) -> Path:
        """The folder that the official scorer reads."""
        return self.folder / IMAGES

    @property
    def model(self) -> str:
        """Name of the model in the layout and in reports."""
        return str(self.manifest["model"])

    def done(self, item: Item) -> bool:
        """Whether all files of an item are there."""
        names = self.benchmark.files(item, self.model)
        return all((self.images / name).is_file() for name in names)

    def missing(self) -> list[Item]:
        """Items that are still to be made."""
        return [item for item in self.items if not self.done(item)]

    @classmethod
    def open(cls, folder: Path, benchmark: Benchmark, data: Path | None = None) -> Run:
        """A run that exists, its set read again.

        Args:
            folder: of the run.
            benchmark: whose it is.
            data: the set, when it has moved since.

        Raises:
            NextStepError: when the folder is no run of this benchmark, or the set has changed.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise NextStepError(
                f"{folder} holds no run; make one with nextstep eval {benchmark.name} generate"
            )
        manifest = read_json(path)
        if manifest.get("benchmark") != benchmark.name:
            raise NextStepError(
                f"{folder} is a run of {manifest.get('benchmark')}, not of {benchmark.name}"
            )
        data = data or folder / manifest["data"]["path"]
        if benchmark.set_hash(data) != manifest["data"]["sha256"]:
            raise NextStepError(f"{data} is not the set that {folder} was made from")
        items = spread(benchmark.read(data), manifest["limit"])
        return cls(folder, benchmark, items, manifest)

    @classmethod
    def begin(
        cls,
        folder: Path,
        benchmark: Benchmark,
        data: Path,
        pipeline: NextStepPipeline,
        model: str,
        settings: Settings,
        weights: Mapping[str, str | None] | None = None,
    ) -> Run:
        """A new run, or the one in the folder when it is the same.

        Args:
            folder: of the run.
            benchmark: whose it is.
            data: the set.
            pipeline: model and tokenizers.
            model: name of the model in the layout and in reports.
            settings: how pictures are made.
            weights: "model" and "vae" as they were named, for judges that need them again.

        Raises:
            NextStepError: when the folder holds another run, or files of something else.
        """
        producer = made_by(benchmark, pipeline, model, settings)
        return cls.begin_as(folder, benchmark, data, producer, settings, weights)

    @classmethod
    def begin_as(
        cls,
        folder: Path,
        benchmark: Benchmark,
        data: Path,
        producer: Mapping[str, Any],
        settings: Settings,
        weights: Mapping[str, str | None] | None = None,
    ) -> Run:
        """As `begin`, for a maker that is described as `made_by` does."""
        items = spread(benchmark.read(data), settings.limit)
        manifest = _manifest(benchmark, data, items, producer, settings)
        manifest["weights"] = dict(weights or {})
        path = folder / MANIFEST
        if path.exists():
            manifest = _joined(folder, read_json(path), manifest, benchmark.own_set)
        elif folder.exists() and any(map(_foreign, folder.iterdir())):
            raise NextStepError(f"{folder} exists already and is no run; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() or read_json(path) != manifest:
            write_json(path, manifest)
        if benchmark.own_set:
            write_file(folder / OWN_SET, data.read_bytes())
        return cls(folder, benchmark, items, manifest)


def _foreign(path: Path) -> bool:
    """Whether a file is none that another process writes before its manifest is there."""
    return not path.name.startswith(f".{MANIFEST}.")


def _joined(
    folder: Path, old: dict[str, Any], new: dict[str, Any], own_set: bool
) -> dict[str, Any]:
    """The manifest of a run that is gone on with.

    Raises:
        NextStepError: naming what differs, when the two are different runs.
    """
    old["settings"] = renamed(old["settings"], SETTINGS)
    grown = MAY_GROW if own_set else ()
    unlike = [name for name in new if new[name] != old.get(name)]
    unlike = [name for name in unlike if name not in (*MAY_DIFFER, *grown)]
    if old["data"]["sha256"] != new["data"]["sha256"]:
        unlike.append("data")
    if unlike:
        raise NextStepError(
            f"{folder} holds a run that differs in {', '.join(sorted(unlike))}; "
            "choose another folder"
        )
    return old | {name: new[name] for name in grown}


def generate(
    run: Run,
    pipeline: NextStepPipeline | None,
    settings: Settings,
    on_items: Callable[[int], None] | None = None,
) -> None:
    """Make what is missing and no other process is making.

    Args:
        run: of which the pictures are.
        pipeline: model and tokenizers; None for a benchmark that knows whom it asks.
        settings: of the run.
        on_items: told how many items are ready whenever some are.
    """
    claims, told = Claims(run.folder / "claims"), on_items or (lambda count: None)
    numbers = {item.key: number for number, item in enumerate(run.items)}
    missing = run.missing()
    told(len(run.items) - len(missing))
    together = run.benchmark.together(settings.batch_size)
    with claims:
        waiting = list(missing)
        while waiting:
            batch: list[Item] = []
            while waiting and len(batch) < together:
                item = waiting.pop(0)
                # Another process may have made it since the list was drawn up.
                if claims.take(numbers[item.key]) and not run.done(item):
                    batch.append(item)
            with warnings.catch_warnings():
                # Hundreds of prompts of a set are not the user's to reword.
                warnings.simplefilter("ignore", PromptWarning)
                made = make(run, pipeline, settings, batch)
            for item, output in zip(batch, made, strict=True):
                run.benchmark.write(run.images, item, output, run.model)
                told(1)
            for item in batch:
                claims.release(numbers[item.key])
    if not run.missing():
        run.benchmark.finish(run.images, run.items, run.model)


def make(
    run: Run, pipeline: NextStepPipeline | None, settings: Settings, items: Sequence[Item]
) -> list[Output]:
    """What the model makes of some items, in their order."""
    benchmark, seeds = run.benchmark, [seed_of(run.benchmark, item, settings) for item in items]
    if not items:
        return []
    if isinstance(benchmark, OwnBenchmark):
        return benchmark.make(pipeline, items, settings.batch_size)
    if pipeline is None:
        raise ValueError(f"{benchmark.title} needs a pipeline")
    if benchmark.kind == IMAGE:
        made = pipeline.generate(
            [item.prompt for item in items],
            height=settings.size,
            width=settings.size,
            num_images=benchmark.repeats,
            seed=seeds,
            batch_size=settings.batch_size,
            **settings.sampling,
        )
        count = benchmark.repeats
        return [Output(made[n * count : (n + 1) * count]) for n in range(len(items))]
    if benchmark.kind == EDIT:
        return [
            Output(
                pipeline.edit(
                    benchmark.sources(item), item.prompt, num_images=benchmark.repeats, seed=seed,
                    batch_size=settings.batch_size, **settings.sampling,
                )
            )
            for item, seed in zip(items, seeds, strict=True)
        ]  # fmt: skip
    return [
        _interleaved(pipeline, benchmark.sources(item), item.prompt, seed, settings)
        for item, seed in zip(items, seeds, strict=True)
    ]


def seed_of(benchmark: Benchmark, item: Item, settings: Settings) -> int:
    """Of an item, whatever else is made and wherever."""
    return derived_seed("benchmark", benchmark.name, item.key, settings.seed)


def _interleaved(
    pipeline: NextStepPipeline, sources: Sequence[Any], prompt: str, seed: int, settings: Settings
) -> Output:
    talk = pipeline.conversation(seed, **settings.sampling)
    talk.read(*sources, prompt)
    texts: list[str] = []
    pictures: list[GeneratedPicture] = []
    for part in talk.go_on(MOST_PICTURES, MOST_TEXT, height=settings.size, width=settings.size):
        if isinstance(part, str):
            texts.append(part)
        else:
            pictures.append(part)
    return Output(pictures, "\n".join(text.strip() for text in texts if text.strip()))


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, taken evenly over the set so that every category has its share."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]


def made_by(
    benchmark: Benchmark, pipeline: NextStepPipeline, model: str, settings: Settings
) -> dict[str, Any]:
    """Entries of a manifest that tell who makes the pictures, and how."""
    defaults = pipeline.defaults
    base = defaults.edit if benchmark.kind == EDIT else defaults.generate
    sampling = base.with_values(**settings.sampling).recorded()
    if benchmark.kind == OWN:
        sampling = {"generate": sampling, "edit": defaults.edit.recorded()}
    return {
        "model": model,
        "model_hash": pipeline.model_hash,
        "adapter": pipeline.adapter,
        "settings": sampling,
        "versions": {
            "nextstep": __version__,
            "torch": torch.__version__,
            "backend": backend_of(pipeline.model).name,
        },
    }


def _manifest(
    benchmark: Benchmark, data: Path, items: Sequence[Item], producer: Mapping[str, Any],
    settings: Settings,
) -> dict[str, Any]:  # fmt: skip
    place = OWN_SET if benchmark.own_set else str(data.resolve())
    told = {
        "benchmark": benchmark.name,
        "data": {"path": place, "sha256": benchmark.set_hash(data)},
        "licence": benchmark.licence,
        "complete": benchmark.complete(items),
        "items": len(items),
        "limit": settings.limit,
        "repeats": benchmark.repeats,
        "size": settings.size,
        "seed": settings.seed,
        **producer,
    }
    # As it is read back from its file, where tuples are lists.
    read_back: dict[str, Any] = json.loads(json.dumps(told))
    return read_back
