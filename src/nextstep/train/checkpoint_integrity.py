"""What is read of a checkpoint is what was written, and never code.

    SHA256SUMS    one line a file, as `sha256sum -c SHA256SUMS` reads it

Checksums find damage: a flipped bit, a file cut off or left out. They do not say who wrote a
checkpoint. For those of others it counts that nothing in one is run: torch keeps the table of
contents as a pickle, which here may name the few classes that such a table is made of and no other,
and the tensors are read as weights alone (`torch.load` with `weights_only`).
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nextstep.errors import ModelFileError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

SUMS, CONTENTS = "SHA256SUMS", ".metadata"
LINE = re.compile(r"([0-9a-f]{64})  ([\w.]+)")
DATA = re.compile(r"__\d+_\d+\.distcp")
"""Names of the files of tensors."""
CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}  # fmt: skip
"""Module -> what a table of contents may name in it, dtypes of torch beside them."""


class DamagedCheckpointError(ModelFileError):
    """A checkpoint that is not as it was written; the one before may be taken."""


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files in a folder, by name."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_checksums(folder: Path, sums: dict[str, str]) -> Path:
    """Write the list of checksums; its path comes back."""
    path = folder / SUMS
    path.write_text("".join(f"{sum_}  {name}\n" for name, sum_ in sorted(sums.items())), "utf-8")
    return path


def damage(folder: Path, rank: int = 0, world: int = 1) -> str:
    """What is wrong with a checkpoint's files, a clause; empty where nothing is.

    Checkpoints of versions without checksums pass.

    Args:
        folder: of the checkpoint.
        rank, world: of the processes that share the work; each looks at other files.
    """
    try:
        if not (folder / SUMS).exists():
            return ""
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        matches = [LINE.fullmatch(line) for line in lines]
        if not lines or None in matches:
            return f"{SUMS} is no list of checksums"
        for match in [match for match in matches if match][rank::world]:
            wanted, name = match.groups()
            if checksums(folder, [name])[name] != wanted:
                return f"{name} does not have its checksum"
    except (OSError, UnicodeDecodeError) as error:
        return f"{Path(getattr(error, 'filename', None) or SUMS).name} cannot be read"
    return ""


class Contents(pickle.Unpickler):
    """Reads a table of contents, and refuses a pickle that names anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of this name, if tables of contents are made of it."""
        if name in CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")


def read_contents(folder: Path) -> Metadata:
    """The table of contents of a checkpoint.

    Raises:
        DamagedCheckpointError: when it is missing, damaged, or names code or files elsewhere.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    try:
        with (folder / CONTENTS).open("rb") as file:
            found = Contents(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("it is no table of contents")
        for place in found.storage_data.values():
            if not DATA.fullmatch(place.relative_path):
                raise pickle.UnpicklingError("it names files that are not the checkpoint's")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DamagedCheckpointError(
            f"the checkpoint {folder} cannot be read: {error or type(error).__name__}"
        ) from None
    return found


def reader(folder: Path) -> Any:
    """What `torch.distributed.checkpoint.load` reads a checkpoint through."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        """The table of contents goes through `read_contents`."""

        def read_metadata(self, *_args: Any, **_named: Any) -> Metadata:
            """See `FileSystemReader`."""
            found = read_contents(folder)
            found.storage_meta = found.storage_meta or StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

    return Reader(folder)
