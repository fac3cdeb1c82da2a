"""Checkpoints of a run: sharded, written in the background, whole or not there at all.

    RUN/checkpoints/step-00000200/   one file of tensors a rank, `.metadata`, `record.json`, and
                                     `SHA256SUMS` of them all
    RUN/checkpoints/latest           name of the newest one, for people and other programs

A checkpoint is written to `step-N.part`, forced to disk and then renamed; a run that is killed at
any moment leaves the last whole one and at most a `.part`, which is never read and is cleared away
at the next start. Tensors are stored by name and global shape (torch.distributed.checkpoint), so
any number of ranks may read what any other number wrote.

What a damaged one and one of somebody else may do is in `checkpoint_integrity`.

Legend: tensors of any shape, stored by name and whole shape, however they are sharded.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextstep.errors import ModelFileError
from nextstep.train.checkpoint_integrity import (
    CONTENTS,
    DamagedCheckpointError,
    checksums,
    damage,
    read_contents,
    reader,
    write_checksums,
)
from nextstep.utils.files import read_json, write_json

RECORD = "record.json"
FIELDS = {
    "step": int, "skipped": int, "ema_updates": int, "world": int, "batches": dict, "config": dict,
}  # fmt: skip
"""What a run's record must hold."""
POINTER = "latest"
ROOM = 2**20
"""Bytes; with less a disk counts as full."""
WHOLE = re.compile(r"step-(\d+)")
LEFTOVER = re.compile(r"step-\d+\.(part|old)")
DAMAGED = ".damaged"
"""Behind the name of a checkpoint that is never read again."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before are as they were."""


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if WHOLE.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Steps trained when a checkpoint was made, from its name."""
    match = WHOLE.fullmatch(path.name)
    if match is None:
        raise ModelFileError(f"{path} is not a checkpoint folder; they are named step-N")
    return int(match.group(1))


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither read nor in the way; the new path."""
    other, number = path.with_name(path.name + DAMAGED), 1
    while other.exists():
        number += 1
        other = path.with_name(f"{path.name}{DAMAGED}-{number}")
    return path.rename(other)


def read_record(path: Path) -> dict[str, Any]:
    """What a checkpoint of a run holds beside tensors.

    Raises:
        DamagedCheckpointError: when it is missing, or does not say what a run needs to go on.
    """
    try:
        record = read_json(path / RECORD)
    except ModelFileError as error:
        raise DamagedCheckpointError(str(error)) from None
    wrong = [name for name, kind in FIELDS.items() if type(record.get(name)) is not kind]
    if wrong:
        raise DamagedCheckpointError(f"{path / RECORD} does not say {', '.join(wrong)}")
    return record


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of a checkpoint's tensors, read without them.

    Raises:
        ModelFileError: when it is damaged.
    """
    contents: dict[str, Any] = read_contents(path).state_dict_metadata
    return {name: tuple(item.size) for name, item in contents.items()}


def read_tensors(path: Path, tensors: dict[str, Tensor], group: Any = None) -> None:
    """Fill tensors, which may be sharded in any way, in place from a checkpoint.

    Args:
        path: of a whole checkpoint.
        tensors: by stored name; what the checkpoint has beyond them is left unread.
        group: process group of the ranks that read; None for a process on its own.

    Raises:
        ModelFileError: when the files are damaged.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    _quiet()
    try:
        load(tensors, storage_reader=reader(path), process_group=group, no_dist=group is None)
    except (CheckpointException, Exception) as error:
        raise DamagedCheckpointError(
            f"the checkpoint {path} is damaged ({_cause(error)})"
        ) from error


def read_weights(path: Path, average: bool = True) -> dict[str, Tensor]:
    """A checkpoint's weights by parameter name, whole, without a model or other ranks.

    Args:
        path: of a whole checkpoint.
        average: take the averaged weights where there are any.

    Raises:
        ModelFileError: when it is damaged.
    """
    if found := damage(path):
        raise DamagedCheckpointError(f"the checkpoint {path} is damaged ({found})")
    stored: dict[str, Any] = read_contents(path).state_dict_metadata
    kinds = ("model", "ema") if average else ("model",)
    source = {
        key.partition("/")[2]: key for kind in kinds for key in stored if key.startswith(f"{kind}/")
    }
    tensors = {
        key: torch.empty(stored[key].size, dtype=stored[key].properties.dtype)
        for key in source.values()
    }
    read_tensors(path, tensors)
    return {name: tensors[key] for name, key in source.items()}


def must_match(
    path: Path, stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor]
) -> None:
    """Refuse a checkpoint that does not hold `wanted` in its shapes.

    Raises:
        ModelFileError: naming what differs.
    """
    lacking = [name for name in wanted if name not in stored]
    other = [
        f"{name} is {list(stored[name])}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in stored and stored[name] != tuple(wanted[name].shape)
    ]
    kinds = {name.partition("/")[0] for name in wanted}
    beyond = [n for n in stored if n.partition("/")[0] in kinds and n not in wanted]
    told = [
        f"{word} {len(names)} tensor(s) ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for word, names in (
            ("it lacks", lacking), ("it has", beyond), ("other shapes in", other),
        )
        if names
    ]  # fmt: skip
    if told:
        raise ModelFileError(
            f"{path} is a checkpoint of another model: {'; '.join(told)}; "
            "choose another run folder or build the model it was made from"
        )


class CheckpointWriter:
    """Writes the checkpoints of one run.

    Every rank calls `save` at the same steps. The state is copied to the host at once, so training
    may go on; one write is under way at a time.

    Args:
        folder: of the checkpoints; made when missing.
        keep: newest ones that stay.
        keep_every: those of steps divisible by this stay too; 0 for none.
        background: write in a thread.
        group: process group of all ranks, with a CPU backend and used by nobody else; None for one
            process.
        leads: whether this rank puts finished checkpoints in their place.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_every: int = 0,
        background: bool = True,
        group: Any = None,
        leads: bool = True,
    ) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.background, self.group, self.leads = background, group, leads
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # Plain copies to host memory, which is kept and used again for the next checkpoint.
        self.stager = DefaultStager(StagingOptions(False, False, False, False))
        self.pending: Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def clear_leftovers(self) -> None:
        """Remove what a killed run left half written or half removed."""
        for path in self.folder.iterdir() if self.leads else ():
            if LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Take the state of `step` and write it, in the background if so set.

        Args:
            step: steps trained.
            tensors: by name; sharded ones are written by the ranks that hold them.
            record: small and JSON-like, equal on all ranks.

        Raises:
            CheckpointError: when this write, or in the background the one before, failed.
        """
        self.wait()
        staged = self.stager.stage({name: tensor.detach() for name, tensor in tensors.items()})
        assert isinstance(staged, dict)
        if self.background:
            self.pending = self.pool.submit(self._write, step, staged, dict(record))
        else:
            self._write(step, staged, dict(record))

    def wait(self) -> None:
        """Until the write under way has ended.

        Raises:
            CheckpointError: when it failed.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish the write under way and its thread."""
        try:
            self.wait()
        finally:
            self.pool.shutdown()

    def _write(self, step: int, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        final = self.folder / f"step-{step:08d}"
        if final.exists():
            return
        scratch = final.with_suffix(".part")
        _quiet()
        # All ranks meet in `save` before any of them writes, and again after all have written.
        try:
            save(tensors, checkpoint_id=scratch, process_group=self.group, no_dist=not self.group)
            sums = self._checksums(scratch)
            if self.leads:
                self._put_in_place(scratch, final, {"step": step, **record}, sums)
        except (CheckpointException, Exception) as error:
            # Torch's writer hides what the system said of a full disk.
            full = shutil.disk_usage(self.folder).free < ROOM if self.folder.is_dir() else False
            if self.leads:
                shutil.rmtree(scratch, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint {final} could not be written: "
                f"{os.strerror(errno.ENOSPC) if full else _cause(error)}"
            ) from error

    def _checksums(self, scratch: Path) -> dict[str, str]:
        """Of the files of tensors of all ranks, each of which reads its own."""
        import torch.distributed as dist

        rank = dist.get_rank(self.group) if self.group else 0
        mine = checksums(scratch, (file.name for file in scratch.glob(f"__{rank}_*.distcp")))
        if not self.group:
            return mine
        found: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(found, mine, group=self.group)
        return {name: sum_ for sums in found for name, sum_ in sums.items()}

    def _put_in_place(
        self, scratch: Path, final: Path, record: dict[str, Any], sums: dict[str, str]
    ) -> None:
        write_json(scratch / RECORD, record)
        listed = write_checksums(scratch, sums | checksums(scratch, (CONTENTS, RECORD)))
        _to_disk([scratch / RECORD, listed, scratch])
        scratch.rename(final)
        pointer = self.folder / f"{POINTER}.part"
        pointer.write_text(final.name + "\n", encoding="utf-8")
        _to_disk([pointer])
        pointer.replace(self.folder / POINTER)
        _to_disk([self.folder])
        self._clear_old()

    def _clear_old(self) -> None:
        """Remove old checkpoints, first out of sight, so that half of one is never taken."""
        for path in checkpoints(self.folder)[: -self.keep]:
            if not (self.keep_every and step_of(path) % self.keep_every == 0):
                away = path.with_suffix(".old")
                path.rename(away)
                shutil.rmtree(away)


def _cause(error: BaseException) -> str:
    """The first failure of any rank, in one line."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join(str(error).split())[:200] or type(error).__name__


def _quiet() -> None:
    """Torch warns when one process reads or writes on its own, which is meant here."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def _to_disk(paths: Iterable[Path]) -> None:
    """Force files and folders to the disk, so that a rename never outruns what it names."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
