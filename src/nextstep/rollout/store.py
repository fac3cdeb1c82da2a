"""Rollouts on disk: shards of whole groups, each there or not at all.

    FOLDER/rollouts.json             what was asked, of which model
    FOLDER/shard-00000.safetensors   some groups: tokens, and as metadata all the rest

A run that is killed leaves whole shards, and goes on with the first that is missing.

Legend: N tokens of a sample, D values per token; rewards are scalars.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextstep.engine.settings import generation_settings
from nextstep.errors import ModelFileError, NextStepError
from nextstep.rollout.samples import RolloutGroup, RolloutSample
from nextstep.utils.files import read_json, write_json
from nextstep.version import __version__

INDEX = "rollouts.json"
SHARD = "shard-{:05d}.safetensors"


class RolloutStore:
    """A folder of rollouts.

    Args:
        folder: of them; made when it is not there.
        identity: what the rollouts are of; a folder of others is refused.

    Raises:
        NextStepError: when the folder holds something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(dict(identity)))
        path = folder / INDEX
        if path.exists():
            kept = read_json(path)
            if kept["identity"] != self.identity:
                told = _difference(kept["identity"], self.identity)
                raise NextStepError(
                    f"{folder} holds other rollouts ({told}); choose another folder"
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise NextStepError(f"{folder} exists already; choose another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NextStepError(f"{folder} cannot be made: {error.strerror}") from None
        write_json(path, {"identity": self.identity, "version": __version__})

    def has(self, number: int) -> bool:
        """Whether shard `number` is there."""
        return (self.folder / SHARD.format(number)).exists()

    def read(self, number: int) -> list[RolloutGroup]:
        """Groups of a shard.

        Raises:
            ModelFileError: when it is missing or damaged.
        """
        return read_shard(self.folder / SHARD.format(number))

    def write(self, number: int, groups: Sequence[RolloutGroup]) -> None:
        """Write a shard beside its name, then rename it."""
        write_shard(self.folder / SHARD.format(number), groups)


def read_rollouts(folder: Path) -> Iterator[RolloutGroup]:
    """All groups of a folder and the folders in it, in order of their names.

    Raises:
        NextStepError: when there are none.
    """
    paths = sorted(folder.rglob("shard-*.safetensors"))
    if not paths:
        raise NextStepError(f"{folder} holds no rollouts; make them with `nextstep rollout`")
    for path in paths:
        yield from read_shard(path)


def write_shard(path: Path, groups: Sequence[RolloutGroup]) -> None:
    """Write groups as one file, beside its name and renamed."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    records = []
    for place, group in enumerate(groups):
        for number, (tokens, _) in enumerate(group.sources):
            tensors[f"{place}/source/{number}"] = tokens.float().contiguous()
        for sample in group.samples:
            if sample.tokens is not None:
                tensors[f"{place}/tokens/{sample.index}"] = sample.tokens.float().contiguous()
        records.append(_record(group))
    told = json.dumps(records, ensure_ascii=False)
    scratch = path.with_name(path.name + ".part")
    # A shard of texts alone has no tensor of its own, and the format wants one.
    save_file(tensors or {"none": torch.zeros(1)}, scratch, {"format": "pt", "groups": told})
    scratch.replace(path)


def read_shard(path: Path) -> list[RolloutGroup]:
    """Groups of a file.

    Raises:
        ModelFileError: when it is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            records = json.loads((file.metadata() or {})["groups"])
            return [_group(record, place, file) for place, record in enumerate(records)]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} is no whole shard of rollouts: {error}") from None


def _record(group: RolloutGroup) -> dict[str, Any]:
    return {
        "key": group.key, "text": group.text, "seed": group.seed, "grid": group.grid,
        "settings": asdict(group.settings), "draws": group.draws, "facts": dict(group.facts),
        "policy": group.policy, "sources": [grid for _, grid in group.sources],
        "samples": [
            {
                "index": sample.index, "written": sample.written, "ended": sample.ended,
                "line": sample.line, "rewards": dict(sample.rewards),
            }
            for sample in group.samples
        ],
    }  # fmt: skip


def _group(record: dict[str, Any], place: int, file: Any) -> RolloutGroup:
    samples = tuple(
        RolloutSample(
            one["index"], tuple(one["written"]), one["ended"], one["line"],
            file.get_tensor(f"{place}/tokens/{one['index']}") if record["draws"] else None,
            one["rewards"],
        )
        for one in record["samples"]
    )  # fmt: skip
    sources = tuple(
        (file.get_tensor(f"{place}/source/{number}"), (grid[0], grid[1]))
        for number, grid in enumerate(record["sources"])
    )
    rows, columns = record["grid"]
    return RolloutGroup(
        record["key"], record["text"], record["seed"], (rows, columns),
        generation_settings(record["settings"], "its settings"), samples, sources, record["draws"],
        record["facts"], record["policy"],
    )  # fmt: skip


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = [n for n in {**one, **other} if one.get(n) != other.get(n)]
    return "; ".join(f"{n} {one.get(n)}, not {other.get(n)}" for n in names[:3])
