"""Compiling the kernels once a machine, and calling them.

Nothing here is needed: without a compiler, on another machine, or with `NEXTSTEP_KERNELS=off`
everything runs through torch, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

FLAGS = (
    "-O3", "-march=sapphirerapids", "-std=c++17", "-fopenmp", "-fno-strict-aliasing", "-fPIC",
    "-shared",
)  # fmt: skip
SWITCH = "NEXTSTEP_KERNELS"
Argument = int | Tensor | ctypes.Structure


@functools.cache
def is_available() -> bool:
    """Whether this machine has the matrix units and the kernels; they are compiled if need be."""
    if os.environ.get(SWITCH, "on").lower() in ("off", "0", "no"):
        return False
    if platform.system() != "Linux" or not torch.cpu._is_amx_tile_supported():
        return False
    if shutil.which(compiler()) is None and not library_file().exists():
        return False
    try:
        fits = kernels().nextstep_fits_machine()
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"kernels do not compile with {compiler()}, so torch is used, more slowly: "
            f"{told.strip().splitlines()[-1]}",
            stacklevel=2,
        )
        return False
    # Linux lets a process use tiles only when it has asked; torch knows how.
    return bool(fits) and bool(torch.cpu._init_amx())


def compiler() -> str:
    """The C++ compiler, `CXX` or g++."""
    return os.environ.get("CXX", "g++")


@functools.cache
def library_file() -> Path:
    """Where the compiled kernels are kept; another text or compiler has another name."""
    text = b"".join(path.read_bytes() for path in sources())
    told = " ".join((compiler(), *FLAGS)).encode()
    name = hashlib.sha256(text + told).hexdigest()[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "nextstep" / f"kernels-{name}.so"


def sources() -> list[Path]:
    """What is compiled."""
    here = Path(__file__).parent
    return sorted([*here.glob("*.h"), *here.glob("*.cpp")])


@functools.cache
def kernels() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        subprocess.CalledProcessError: when they do not compile.
        OSError: when they cannot be written or loaded.
    """
    library = library_file()
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            main = Path(__file__).parent / "kernels.cpp"
            command = [compiler(), *FLAGS, str(main), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(library)
    loaded = ctypes.CDLL(str(library))
    for name in ("linear", "advance", "modulate", "solve", "tokens"):
        getattr(loaded, f"nextstep_{name}").restype = None
    loaded.nextstep_fits_machine.restype = ctypes.c_int64
    return loaded


def call(name: str, *arguments: Argument) -> None:
    """Call a kernel with torch's number of threads: tensors as their addresses."""
    function = getattr(kernels(), f"nextstep_{name}")
    function(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def _argument(value: Argument) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.byref(value)
