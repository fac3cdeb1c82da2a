"""What a fixed model says of pairs, worked out once and kept on disk, for the stage `dpo`.

    FOLDER/IDENTITY/draw-00-part-00003.safetensors    figures [Q, 2, 2] of some pairs: winner and
                                                      loser, velocity error and log-probability

The identity is a hash of the weights, of the samples and their rewards, of the seed (which fixes
pairs, times and noise) and of how figures are made. Runs that differ in other settings, such as
beta, may share a folder; and neither they nor a run that goes on need the reference in memory.

Legend: Q pairs of a part, G pairs of a draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nextstep.errors import ModelFileError
from nextstep.rollout.batches import Row
from nextstep.rollout.pairs import Pairs
from nextstep.train.ema import fingerprint
from nextstep.utils.files import write_whole

PART = "draw-{:02d}-part-{:05d}.safetensors"
PAIRS = 32
"""Pairs of a part."""

Figures = Callable[[Sequence[Row]], Tensor]
"""Rows of pairs -> [2 * rows, 2], computed by all ranks together."""


def reference_figures(
    figures: Figures, pairs: Pairs, draws: int, folder: Path, rank: int = 0, world: int = 1
) -> Tensor:
    """Figures of all pairs of the first `draws` draws, [draws, G, 2, 2]; missing parts are made.

    Args:
        figures: of the reference; every rank calls it equally often.
        pairs: of the run.
        draws: that the run meets.
        folder: for these weights and settings; see `reference_folder`.
        rank, world: this process among all.

    Raises:
        ModelFileError: when a part is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(d, first) for d in range(draws) for first in range(0, len(pairs), PAIRS)]
    missing = [part for part in parts if not _path(folder, *part).exists()]
    if world > 1:
        torch.distributed.barrier()  # all have looked before one writes
    for turn in range(0, len(missing), world):
        # A rank without a part of its own goes along with another's.
        draw, first = missing[min(turn + rank, len(missing) - 1)]
        some = range(first, min(first + PAIRS, len(pairs)))
        found = figures([pairs.pair(place, draw) for place in some])
        if turn + rank < len(missing):
            _write(_path(folder, draw, first), found.view(len(some), 2, 2))
    if world > 1:
        torch.distributed.barrier()
    found = torch.cat([_read(_path(folder, *part)) for part in parts])
    return found.view(draws, len(pairs), 2, 2)


def reference_folder(folder: Path, model: nn.Module, pairs: Pairs, *settings: object) -> Path:
    """The folder of figures of these weights, pairs and settings in a folder of many."""
    digest = hashlib.blake2b(digest_size=12)
    weights = fingerprint(dict(model.named_parameters()))
    digest.update(repr((weights, pairs.seed, pairs.winners, *settings)).encode())
    for group in pairs.groups:
        digest.update(repr((group.key, group.text, group.grid, group.settings)).encode())
        for sample in group.samples:
            told = sample.index, sample.written, sample.ended, sample.line, sample.reward
            digest.update(repr(told).encode())
            for tokens in group.pictures(sample):
                digest.update(tokens.contiguous().numpy().tobytes())
    return folder / digest.hexdigest()


def _path(folder: Path, draw: int, first: int) -> Path:
    return folder / PART.format(draw, first // PAIRS)


def _write(path: Path, figures: Tensor) -> None:
    from safetensors.torch import save

    write_whole(path, save({"figures": figures.float().cpu().contiguous()}))


def _read(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["figures"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelFileError(f"{path} is no whole part of a reference: {error}") from None
