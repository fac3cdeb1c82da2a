"""Make a picture again from the settings it carries, and compare."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from nextstep.engine import metadata as provenance
from nextstep.engine.backends.base import ROWS
from nextstep.engine.backends.torch import SMALLER
from nextstep.engine.engine import Engine
from nextstep.engine.results import GeneratedPicture
from nextstep.engine.settings import IGNORED, GenerationSettings, generation_settings
from nextstep.errors import NextStepError
from nextstep.image import pictures
from nextstep.image.pictures import PictureLike
from nextstep.model.quantization import quantised
from nextstep.text.sequence import picture_order
from nextstep.utils import old_names

LATER = (
    "noise_scale", "table", "final_token_steps", "jacobi_window", "jacobi_tolerance", "reasoning",
    "noise_from", "noise_steps", "mask_feather",
)  # fmt: skip
"""Settings that pictures of earlier versions do not have; their defaults are what was done then."""
MANY = 64
"""Threads that every machine can start."""
NEEDED = ("task", "prompt", "seed", "index", "height", "width", "model", "dtype")


@dataclass(frozen=True)
class Difference:
    """Where two pictures of one size differ.

    Attributes:
        pixels: how many, of `total`.
        largest: in grey levels of any channel.
        box: (left, top, right, bottom) around them, right and bottom outside; None when equal.
    """

    pixels: int
    total: int
    largest: int
    box: tuple[int, int, int, int] | None

    def __str__(self) -> str:
        if self.box is None:
            return "identical"
        left, top, right, bottom = self.box
        return (
            f"{self.pixels} of {self.total} pixels differ, by at most {self.largest} grey levels, "
            f"in columns {left} to {right - 1} and rows {top} to {bottom - 1}"
        )


def compare(one: Image.Image, other: Image.Image) -> Difference:
    """Where two pictures differ.

    Raises:
        NextStepError: when their sizes do.
    """
    if one.size != other.size:
        raise NextStepError(
            f"the pictures have {one.width}x{one.height} and {other.width}x{other.height} pixels"
        )
    values = [np.asarray(picture.convert("RGB")).astype(int) for picture in (one, other)]
    apart = np.abs(values[0] - values[1]).max(axis=2)
    rows, columns = apart.nonzero()
    box = None
    if len(rows):
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    return Difference(len(rows), apart.size, int(apart.max()), box)


def record_dtype(record: dict[str, Any]) -> torch.dtype:
    """The number format a picture was made in.

    Raises:
        NextStepError: for an unknown one.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = record.get("dtype")
    if name not in known:
        raise NextStepError(f"the picture was made in the number format '{name}', unknown here")
    return known[name]


def check_record(record: dict[str, Any]) -> None:
    """Make sure that a picture's settings are enough to make it again.

    Raises:
        NextStepError: saying what stands against it.
    """
    wanted = [*NEEDED, *(f.name for f in fields(GenerationSettings) if f.name not in LATER)]
    missing = [name for name in wanted if name not in record]
    if missing:
        raise NextStepError(f"the picture's settings lack {', '.join(missing)}")
    if record["task"] not in ("generate", "edit"):
        raise NextStepError(
            f"a picture of the task '{record['task']}' depends on what stood before it and cannot "
            "be made again from its settings alone"
        )
    if "origin" in record:
        raise NextStepError(
            f"the picture is a {record['origin']}; it is made again from that picture's state, "
            "not from settings alone"
        )
    if "rows_done" in record:
        raise NextStepError("the picture was stopped early; only whole pictures are made again")


class HasEngine(Protocol):
    """What a pipeline is here."""

    def engine(self, running: int, block_rows: int | None = None) -> Engine:
        """An engine of its model."""


def replay(
    models: HasEngine,
    record: dict[str, Any],
    images: Sequence[PictureLike] = (),
    mask: PictureLike | None = None,
) -> GeneratedPicture:
    """Make the picture of a record again, in the way it was made.

    Pictures of a batch-invariant backend come out byte-equal on a like machine. Others are made
    alone here, so one that was made in a batch may differ in rounding.

    Args:
        models: pipeline of the model, adapter and number format the picture was made with.
        record: what `provenance.read_record` gives.
        images: source pictures of an edit, in order.
        mask: of an edit inside one.

    Raises:
        NextStepError: when model, mask or sources are not the recorded ones, or the record is not
            enough.
    """
    record = old_names.renamed(record, old_names.RECORD)
    check_record(record)
    engine = _engine(models, record)
    _check_model(engine, record)
    if "mask" in record and mask is None:
        raise NextStepError("the picture was edited inside a mask; give it too (--mask FILE)")
    opened = [pictures.open_picture(image) for image in images]
    with _threads(record.get("threads")):
        _check_sources(engine, record, opened)
        made = _made(engine, record, opened, mask)
    if made.settings.get("mask") != record.get("mask"):
        raise NextStepError(
            "the picture was edited inside another mask" if "mask" in record else
            "the picture was edited without a mask"
        )  # fmt: skip
    return made


def _made(
    engine: Engine,
    record: dict[str, Any],
    opened: list[Image.Image],
    mask: PictureLike | None,
) -> GeneratedPicture:
    given = {f.name: record[f.name] for f in fields(GenerationSettings) if f.name in record}
    # Whole, so that what the folder recommends today fills no gap.
    settings = asdict(generation_settings(given, "the picture's settings"))
    if not opened:
        settings |= IGNORED["generate"]  # earlier versions recorded other values that had no effect
    request = engine.request(
        record["prompt"],
        opened,
        mask=mask,
        height=record["height"],
        width=record["width"],
        seed=record["seed"],
        index=record["index"],
        **settings,
    )
    (event,) = engine.wait([engine.submit(request)])
    assert event.request is not None
    return engine.picture(event.request, event.tokens)


def _engine(models: HasEngine, record: dict[str, Any]) -> Engine:
    """An engine that adds up in the order in which the picture was made."""
    rows = record.get("block_rows", 0)
    if rows not in (0, ROWS, *SMALLER):
        raise NextStepError(
            f"the picture was made in blocks of {rows} rows, this version uses at most "
            f"{ROWS}; use open-nextstep {record.get('version', 'of its time')}"
        )
    return models.engine(1, block_rows=rows)


@contextmanager
def _threads(count: Any) -> Iterator[None]:
    """Compute with as many threads as then; they decide in which order some sums are made."""
    here = torch.get_num_threads()
    if count:
        most = max(MANY, 8 * (os.cpu_count() or 1))
        if count > most:
            raise NextStepError(
                f"the picture was made with {count} threads; this machine runs at most {most}"
            )
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(here)


def _adapter_in_words(adapter: Mapping[str, Any]) -> str:
    if not adapter:
        return "no adapter"
    return f"the adapter {adapter['adapter']} at scale {adapter['adapter_scale']}"


def _check_model(engine: Engine, record: dict[str, Any]) -> None:
    fingerprint = engine.fingerprint
    if record["model"] != fingerprint.model:
        raise NextStepError(
            f"the picture was made by the model {record['model']}, this one is "
            f"{fingerprint.model}; name the folder of its model"
        )
    names = "adapter", "adapter_scale"
    adapter: dict[str, Any] = {name: record[name] for name in names if name in record}
    if adapter != fingerprint.adapter:
        raise NextStepError(
            f"the picture was made with {_adapter_in_words(adapter)}, here it is "
            f"{_adapter_in_words(fingerprint.adapter)}; name the adapter it was made with"
        )
    rounded = quantised(engine.model)
    if record.get("quantize", "") != rounded:
        raise NextStepError(
            f"the picture was made with weights in {record.get('quantize') or 'full'}, here they "
            f"are in {rounded or 'full'}; load the model as it was then"
        )
    here = engine.model.embed_tokens.weight.dtype
    if record_dtype(record) != here:
        raise NextStepError(f"the picture was made in {record['dtype']}, the model is in {here}")


def check_source_count(record: dict[str, Any], count: int) -> None:
    """Make sure that a picture gets as many sources as it was made from.

    Raises:
        NextStepError: when it does not.
    """
    wanted = len(record.get("sources", []))
    if wanted != count:
        raise NextStepError(
            f"the picture was made from {wanted} source picture{'s' * (wanted != 1)}, {count} "
            f"{'was' if count == 1 else 'were'} given; the command takes each with -i, in order"
        )


def _check_sources(engine: Engine, record: dict[str, Any], images: list[Image.Image]) -> None:
    wanted = record.get("sources", [])
    check_source_count(record, len(images))
    # Sources are recorded in the order given; earlier versions also had them in reading order.
    order = list(range(len(images)))
    if "block_rows" not in record:
        order = picture_order(f"{record['prompt']} {record['positive_prompt']}", len(images))
    made = [engine.encode(images[place]).tokens for place in order]
    if [provenance.tensor_hash(tokens) for tokens in made] != wanted:
        raise NextStepError("the source pictures are not those the picture was made from")
