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
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
)
SWITCH = "NEXTSTEP_KERNELS"
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


def asked() -> str:
    """What the switch says: on, off or the name of a target."""
    told = os.environ.get(SWITCH, "on").lower()
    return "off" if told in ("0", "no") else told


def best(name: str = "on") -> Target | None:
    """The fastest target of this machine, from the named one on; None where it has none."""
    if platform.system() not in ("Linux", "Darwin"):
        return None
    own = of_machine()
    names = [target.name for target in own]
    own = own[names.index(name) :] if name in names else own
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


def library_file(own: Target) -> Path:
    """Where its compiled kernels lie: shipped with the package, or else in this user's cache."""
    shipped = SHIPPED / own.file
    if shipped.exists():
        return shipped
    told = hashlib.sha256(f"{own.file} {compiler()}".encode()).hexdigest()
    return cache_folder() / f"kernels-{own.name}-{told[:24]}.so"


def cache_folder() -> Path:
    """Where compiled kernels lie. As XDG has it, a cache that is empty or relative is none."""
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (asked if asked.is_absolute() else Path.home() / ".cache") / "nextstep"


def compiler() -> str:
    """The C++ compiler: `CXX`, or the system's own."""
    return os.environ.get("CXX") or ("c++" if platform.system() == "Darwin" else "g++")


def commands(target: Target, library: Path) -> list[list[str]]:
    """Calls of the compiler and of the linker.

    No runtime for threads is linked: the library takes torch's, which is loaded by then, so both
    share their threads and nobody needs another one.
    """
    mac = platform.system() == "Darwin"
    openmp = ("-Xpreprocessor", "-fopenmp") if mac else ("-fopenmp",)
    link = ("-shared", "-undefined", "dynamic_lookup") if mac else ("-shared",)
    main, made = str(HERE / "kernels.cpp"), str(library.with_suffix(".o"))
    return [
        [compiler(), *FLAGS, *openmp, *target.flags, "-c", main, "-o", made],
        [compiler(), *link, made, "-o", str(library)],
    ]


def compile_library(target: Target, library: Path) -> None:
    """Compile beside the library, then put it in its place; several processes may do so at once.

    Raises:
        subprocess.CalledProcessError: when the compiler refuses.
        OSError: when there is none, or the library cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        for command in commands(target, made):
            subprocess.run(command, capture_output=True, text=True, check=True)
        with made.open("rb") as written:
            os.fsync(written.fileno())  # half a library, after a crash, would end every process
        made.chmod(0o755)
        made.replace(library)


def compile_into(folder: Path, wanted: Sequence[Target]) -> list[str]:
    """Compile targets, all at once, into a folder that keeps nothing else.

    Returns:
        A line for each that could not be compiled.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in set(folder.glob("kernels-*.so")) - {folder / target.file for target in wanted}:
        old.unlink()

    def compiled(target: Target) -> str:
        """Compile one library, unless it is there; why it could not be, or nothing."""
        try:
            if not (folder / target.file).exists():
                compile_library(target, folder / target.file)
        except (OSError, subprocess.CalledProcessError) as error:
            told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1:]
            return f"no kernels for {target.title}: {' '.join(told)}"
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [line for line in pool.map(compiled, wanted) if line]


def of_machine() -> list[Target]:
    """All targets of this kind of processor."""
    return [target for target in TARGETS if target.machine == machine()]


def in_use() -> str:
    """What samples on this machine, in words: kernels and how they come, or torch and why."""
    own = None if asked() == "off" else best(asked())
    if own is None:
        return (
            f"torch ({SWITCH} is off)" if asked() == "off" else "torch (no AVX2 with FMA, no NEON)"
        )
    library = library_file(own)
    if library.parent == SHIPPED:
        return f"kernels for {own.title}, compiled with the package"
    if library.exists() or shutil.which(compiler()):
        return f"kernels for {own.title}, compiled on this machine"
    return f"torch (no kernels for {own.title}: there is no compiler {compiler()})"


if __name__ == "__main__":
    own = best()
    for told in compile_into(SHIPPED, [own] if own else []):
        print(f"{told}; torch is used instead, more slowly")
