"""Loading the compiled kernels, and calling them.

They come compiled in wheels, by `make` in a checkout, or are compiled once a machine when they are
first used, where there is a compiler. Nothing here is needed: on a processor without AVX2 or NEON,
without a compiler, or with `NEXTSTEP_KERNELS=off`, everything runs through torch, more slowly and
with other roundings. A process on a machine that could use them and cannot warns of it once and
says why. `NEXTSTEP_KERNELS` may also name one of `targets.TARGETS`, such as avx2, to leave faster
ones out.

Legend: tensors of any shape are given to C by their address; they must be contiguous.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from nextstep.kernels import targets
from nextstep.kernels.targets import (
    SWITCH,
    Target,
    asked,
    compile_library,
    compiler,
    library_file,
)  # fmt: skip

NAMES = (
    "linear", "backbone_step", "sample", "count_bytes", "count_outliers", "compress", "convolve",
    "group_norm", "spatial_attention", "layer_norm",
)  # fmt: skip
Argument = int | Tensor | ctypes.Structure | None


def is_available() -> bool:
    """Whether this machine has what the kernels need, and them; they are compiled if need be."""
    return not why_not()


@functools.cache
def why_not() -> str:
    """Why this process computes without the kernels, a clause; empty where it can use them."""
    if asked() == "off":
        return f"{SWITCH} is off"
    own = target()
    if own is None:
        return "there are none for this processor or system: they need AVX2 with FMA, or NEON"
    reason = _hindrance(own)
    if reason:
        warnings.warn(
            f"this machine has what the kernels need, but {reason}; so torch is used, more slowly "
            f"and with other roundings ({SWITCH}=off hides this)",
            stacklevel=2,
        )
    return reason


def is_hindered() -> bool:
    """Whether the machine has what kernels need and this process cannot; `why_not` says why."""
    return bool(why_not()) and not why_not().startswith(SWITCH) and bool(target())


@functools.cache
def target() -> Target | None:
    """What kernels are for on this machine and by the switch; None where there are none."""
    return targets.best(asked())


def _hindrance(own: Target) -> str:
    """What stands against the kernels of a target that the machine has."""
    if shutil.which(compiler()) is None and not library_file(own).exists():
        return f"there is no compiler {compiler()}"
    try:
        load(own)
    except subprocess.CalledProcessError as error:
        told = (error.stderr or "").strip() or str(error)
        return f"they do not compile with {compiler()}: {told.splitlines()[-1]}"
    except OSError as error:
        return f"they cannot be written or loaded: {error}"
    return ""


def is_trusted(library: Path) -> bool:
    """Whether a file is there, belongs to this user, and nobody else can write to it.

    A library is code of whoever wrote it; one that another user may have put there is not loaded.
    """
    try:
        known = library.lstat()
    except OSError:
        return False
    own = known.st_uid == os.getuid() and not known.st_mode & 0o022
    return own and stat.S_ISREG(known.st_mode)


def own_folder(folder: Path) -> Path:
    """The folder, made if need be, which this user alone can write to.

    Raises:
        PermissionError: when it belongs to another user.
        OSError: when it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = folder.stat()
    if known.st_uid != os.getuid():
        raise PermissionError(f"the folder {folder} belongs to another user")
    if known.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def keep_compiled_code_private() -> None:
    """Have torch.compile keep its code where nobody else can plant any.

    By default that is a folder in /tmp with a known name, which another user may have made. torch
    itself writes that default into the environment, as when an optimizer is built. Where the user's
    cache cannot be written, each process has a folder of its own.
    """
    chosen = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    is_default = chosen.parent == Path(tempfile.gettempdir()) and chosen.name.startswith(
        "torchinductor_"
    )
    if chosen.name and not is_default:
        return
    try:
        folder = own_folder(targets.cache_folder() / "inductor")
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="inductor-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def kernels() -> ctypes.CDLL:
    """The compiled kernels of this process; raises as `load` does."""
    own = target()
    assert own is not None
    return load(own)


@functools.cache
def load(own: Target) -> ctypes.CDLL:
    """The kernels of a target that this machine has, compiled if need be.

    Raises:
        subprocess.CalledProcessError: when they do not compile.
        OSError: when they cannot be written or loaded.
    """
    library = library_file(own)
    if library.parent != targets.SHIPPED:
        own_folder(library.parent)
        if not is_trusted(library):
            compile_library(own, library)
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError:
        if library.parent == targets.SHIPPED:
            raise
        # What lies there is no library of this machine, and would be in the way for ever.
        compile_library(own, library)
        loaded = ctypes.CDLL(str(library))
    for name in NAMES:
        getattr(loaded, f"nextstep_{name}").restype = None
    return loaded


def call(name: str, *arguments: Argument) -> None:
    """Call a kernel with torch's number of threads: tensors as their addresses, None as none."""
    function = getattr(kernels(), f"nextstep_{name}")
    function(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def _argument(value: Argument) -> object:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.byref(value)
