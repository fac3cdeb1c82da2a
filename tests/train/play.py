"""Runs of the toy in processes of their own, forked from one server that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from nextstep.train.launch import free_port, launch

READY = [
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.multiprocessing",
    "torch.utils.serialization",
    "nextstep.model.nextstep",
    "nextstep.train.trainer",
]


def server() -> ForkServerContext:
    """Forking a process with torch loaded takes milliseconds, importing it takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(READY)
    return context


@dataclass
class Scene:
    """One run on so many ranks; `play` is given the folder and the settings."""

    ranks: int
    folder: Path
    play: Callable[..., None]
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = 0


def perform(scenes: list[Scene]) -> None:
    """Play scenes in order in one set of processes; a smaller scene has idle ones look on."""
    server()
    for scene in scenes:
        scene.folder.mkdir(parents=True, exist_ok=True)
        scene.port = free_port()
    launch(act, (scenes,), max(scene.ranks for scene in scenes), "forkserver")


def act(scenes: list[Scene]) -> None:
    """What each process does."""
    rank = int(os.environ["RANK"])
    for scene in scenes:
        if rank < scene.ranks:
            os.environ |= {"WORLD_SIZE": str(scene.ranks), "MASTER_PORT": str(scene.port)}
            scene.play(scene.folder, **scene.settings)
