"""Hashes of what the kernels compute, the same on every processor; `python -m tests.kernels.hashes`
writes them anew, for other roundings or other weights.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from nextstep.kernels import targets

HERE = Path(__file__).parent
PORTABLE = HERE / "portable.txt"
ARM = "aarch64-linux-gnu-g++", "qemu-aarch64"
"""Compiler and emulator of 64-bit ARM, as Debian calls them."""


def emulated(target: targets.Target) -> bool:
    """Whether a target runs here under an emulator alone, and it is there."""
    other = target.machine != targets.machine()
    return other and target.machine == "arm64" and all(map(shutil.which, ARM))


def portable(target: targets.Target, folder: Path) -> str:
    """What `portable.cpp` prints with a target's instructions."""
    made = folder / f"portable-{target.name}"
    compiler, run = targets.compiler(), [str(made)]
    flags = [*targets.FLAGS]
    if target.machine != targets.machine():
        compiler, run = ARM[0], [ARM[1], str(made)]
        flags.append("-static")
    command = [compiler, *flags, *target.flags, "-fopenmp", f"-I{targets.HERE}"]
    subprocess.run([*command, str(HERE / "portable.cpp"), "-o", str(made)], check=True)
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Write all hashes."""
    import tempfile

    own = targets.best()
    assert own is not None
    with tempfile.TemporaryDirectory() as folder:
        PORTABLE.write_text(portable(own, Path(folder)))


if __name__ == "__main__":
    main()
