"""Compiling the kernels once a machine, and calling them.

They are written for matrix units (AMX) and, where those are missing or `NEXTSTEP_KERNELS=avx512`
leaves them out, for vectors of AVX-512. Nothing here is needed: without a compiler, on another
machine, or with `NEXTSTEP_KERNELS=off` everything runs through torch, more slowly and with other
roundings. A process on a machine that could use them and cannot warns of it once and says why.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

FLAGS = (
    "-O3",
    "-ffp-contract=off",
    "-std=c++17",
    "-fopenmp",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
)
AMX, AVX512 = "AMX", "AVX-512"
"""What the kernels are compiled for."""
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
"""What Linux calls the vector instructions that they cannot do without."""
SWITCH = "NEXTSTEP_KERNELS"
NAMES = (
    "linear", "advance", "modulate", "solve", "tokens", "count_bytes", "count_patches",
    "squeeze",
)  # fmt: skip
Argument = int | Tensor | ctypes.Structure


def is_available() -> bool:
    """Whether this machine has what the kernels need, and them; they are compiled if need be."""
    return not why_not()


@functools.cache
def why_not() -> str:
    """Why this process computes without the kernels, a clause; empty where it can use them."""
    if _asked() == "off":
        return f"{SWITCH} is off"
    if not target():
        return "the processor has neither matrix units (AMX) nor AVX-512 with VNNI"
    reason = _hindrance()
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


def _asked() -> str:
    """What the switch says: on, off or avx512."""
    asked = os.environ.get(SWITCH, "on").lower()
    return "off" if asked in ("0", "no") else asked


@functools.cache
def target() -> str:
    """What kernels are for on this machine: AMX, AVX-512, or empty for none."""
    if platform.system() != "Linux":
        return ""
    # Linux lets a process use tiles only when it has asked; torch knows how.
    if _asked() != "avx512" and torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
        return AMX
    return AVX512 if processor_flags().issuperset(NEEDED) else ""


@functools.cache
def processor_flags() -> frozenset[str]:
    """What Linux says that the processor can."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _hindrance() -> str:
    """What stands against the kernels on a machine that has what they need."""
    if shutil.which(compiler()) is None and not is_trusted(library_file()):
        return f"there is no compiler {compiler()}"
    try:
        fits = kernels().nextstep_fits_machine()
    except subprocess.CalledProcessError as error:
        told = (error.stderr or "").strip() or str(error)
        return f"they do not compile with {compiler()}: {told.splitlines()[-1]}"
    except OSError as error:
        return f"they cannot be written or loaded: {error}"
    return "" if fits else "its processor lacks vector instructions (AVX-512)"


def flags() -> tuple[str, ...]:
    """The compiler's, for this machine."""
    march = ("-march=sapphirerapids",) if target() == AMX else ("-march=x86-64-v4", "-mavx512vnni")
    return (*FLAGS, *march)


def compiler() -> str:
    """The C++ compiler, `CXX` or g++."""
    return os.environ.get("CXX", "g++")


@functools.cache
def library_file() -> Path:
    """Where the compiled kernels are kept; another text or compiler has another name."""
    text = b"".join(path.read_bytes() for path in sources())
    told = " ".join((compiler(), *flags())).encode()
    name = hashlib.sha256(text + told).hexdigest()[:24]
    return cache_folder() / f"kernels-{name}.so"


def cache_folder() -> Path:
    """Where compiled kernels lie. As XDG has it, a cache that is empty or relative is none."""
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (asked if asked.is_absolute() else Path.home() / ".cache") / "nextstep"


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
    own_folder(library.parent)
    if not is_trusted(library):
        _compile(library)
    try:
        loaded = ctypes.CDLL(str(library))
    except OSError:
        # What lies there is no library of this machine, and would be in the way for ever.
        _compile(library)
        loaded = ctypes.CDLL(str(library))
    for name in NAMES:
        getattr(loaded, f"nextstep_{name}").restype = None
    loaded.nextstep_fits_machine.restype = ctypes.c_int64
    return loaded


def _compile(library: Path) -> None:
    """Compile beside the library, then put it in its place; several processes may do so at once."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        main = Path(__file__).parent / "kernels.cpp"
        command = [compiler(), *flags(), str(main), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        with made.open("rb") as written:
            os.fsync(written.fileno())  # half a library, after a crash, would end every process
        made.chmod(0o700)
        made.replace(library)


def call(name: str, *arguments: Argument) -> None:
    """Call a kernel with torch's number of threads: tensors as their addresses."""
    function = getattr(kernels(), f"nextstep_{name}")
    function(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def _argument(value: Argument) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.byref(value)
