"""Instruction sets that the kernels are compiled for, which of them a machine has, and compiling.

The same source is compiled for each of them, into a library of its own, and computes the same to
the last bit. This needs the standard library alone: wheels are built where torch is not installed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

FLAGS = (
    "-O3",
    # A product and a sum are one rounding where the source says so, and nowhere else.
    "-ffp-contract=off",
    "-std=c++17",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-shared",
)
HERE = Path(__file__).parent
SHIPPED = HERE / "lib"
"""Where wheels, and `make` in a checkout, put compiled kernels."""


class Target(NamedTuple):
    """An instruction set.

    Attributes:
        name: what `NEXTSTEP_KERNELS` calls it.
        title: what people call it.
        machine: x86_64 or arm64.
        flags: of the compiler.
        needs: what the system calls the instructions that it cannot do without.
    """

    name: str
    title: str
    machine: str
    flags: tuple[str, ...]
    needs: frozenset[str]

    @property
    def file(self) -> str:
        """Name of its compiled library; another source has another name."""
        told = " ".join((*FLAGS, *self.flags)).encode()
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources()) + told)
        return f"kernels-{self.name}-{digest.hexdigest()[:24]}.so"


_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")
TARGETS = tuple(
    Target(name, title, machine, flags, frozenset(needs))
    for name, title, machine, flags, needs in (
        ("amx", "AMX", "x86_64", ("-march=sapphirerapids", "-DNEXTSTEP_TILES"),
         (*_AVX512, "amx_tile", "amx_int8", "amx_bf16")),
        ("avx512", "AVX-512", "x86_64", ("-march=x86-64-v4", "-mavx512vnni"), _AVX512),
        ("avxvnni", "AVX2 with VNNI", "x86_64", ("-march=x86-64-v3", "-mavxvnni"),
         (*_AVX2, "avx_vnni")),
        ("avx2", "AVX2", "x86_64", ("-march=x86-64-v3",), _AVX2),
        ("dotprod", "NEON with dot products", "arm64", ("-march=armv8.2-a+dotprod",),
         ("asimd", "asimddp")),
        ("neon", "NEON", "arm64", (), ("asimd",)),
    )
)  # fmt: skip
"""Fastest first."""


def machine() -> str:
    """x86_64, arm64, or another; the two of them have more than one name."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "aarch64": "arm64"}.get(name, name)


def best(asked: str = "on") -> Target | None:
    """The fastest target of this machine, from the asked one on; None where it has none."""
    if platform.system() not in ("Linux", "Darwin"):
        return None
    own = [target for target in TARGETS if target.machine == machine()]
    names = [target.name for target in own]
    own = own[names.index(asked) :] if asked in names else own
    flags = processor_flags()
    for target in own:
        if target.needs <= flags and (target.name != "amx" or _may_use_tiles()):
            return target
    return None


@functools.cache
def processor_flags() -> frozenset[str]:
    """What the system says that the processor can."""
    if platform.system() == "Darwin" and machine() == "arm64":
        return frozenset(("asimd", "asimddp"))  # every one that macOS runs on
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((x for x in lines if x.lower().startswith(("flags", "features"))), "").split()
    )


@functools.cache
def _may_use_tiles() -> bool:
    """Ask Linux for the matrix units, which it lets a process use only then (arch_prctl(2))."""
    call, permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(call, permission, tile_data) == 0


def sources() -> list[Path]:
    """What is compiled."""
    return sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")])


def compiler() -> str:
    """The C++ compiler: `CXX`, or the system's own."""
    return os.environ.get("CXX") or ("c++" if platform.system() == "Darwin" else "g++")


def command(target: Target, library: Path) -> list[str]:
    """The compiler's call."""
    flags = (*FLAGS, *target.flags, "-fopenmp")
    if platform.system() == "Darwin":
        # Apple's compiler has no runtime of its own for threads; torch brings one along.
        flags = (*flags[:-1], "-Xpreprocessor", flags[-1], "-undefined", "dynamic_lookup")
    return [compiler(), *flags, str(HERE / "kernels.cpp"), "-o", str(library)]


def compile_library(target: Target, library: Path) -> None:
    """Compile beside the library, then put it in its place; several processes may do so at once.

    Raises:
        subprocess.CalledProcessError: when the compiler refuses.
        OSError: when there is none, or the library cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        subprocess.run(command(target, made), capture_output=True, text=True, check=True)
        with made.open("rb") as written:
            os.fsync(written.fileno())  # half a library, after a crash, would end every process
        made.chmod(0o755)
        made.replace(library)


def compile_all(folder: Path = SHIPPED) -> list[Path]:
    """Compile for every instruction set of this kind of processor, into an emptied folder.

    Raises:
        subprocess.CalledProcessError, OSError: see `compile_library`.
    """
    own = [target for target in TARGETS if target.machine == machine()]
    folder.mkdir(parents=True, exist_ok=True)
    libraries = [folder / target.file for target in own]
    for old in set(folder.glob("kernels-*.so")) - set(libraries):
        old.unlink()
    for target, library in zip(own, libraries, strict=True):
        if not library.exists():
            compile_library(target, library)
    return libraries


if __name__ == "__main__":
    try:
        compile_all()
    except (OSError, subprocess.CalledProcessError) as error:
        told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
        print(f"the kernels are not compiled, so torch is used, more slowly: {' '.join(told)}")
