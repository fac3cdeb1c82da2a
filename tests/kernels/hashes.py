"""Hashes of what the kernels compute, the same on every processor; `python -m tests.kernels.hashes`
writes them anew, for other roundings or other weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from nextstep.engine.backends.base import Prompt
from nextstep.engine.decode import DecodeSettings
from nextstep.engine.scheduler import Scheduler
from nextstep.engine.sequence import ImageSequence
from nextstep.flow.guidance import GuidanceSettings
from nextstep.flow.solvers import SolverSettings
from nextstep.image.pictures import to_pixels
from nextstep.kernels import targets
from nextstep.model.nextstep import NextStepModel
from nextstep.model.quantization import pack_model
from nextstep.pipeline import NextStepPipeline
from tests.conftest import PACKABLE

HERE = Path(__file__).parent
PORTABLE, PICTURES = HERE / "portable.txt", HERE / "pictures.json"
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


def draw(model: NextStepModel) -> Tensor:
    """The tokens of one picture of 2 x 3 tokens with guidance, [6, D]."""
    how = DecodeSettings((2, 3), SolverSettings("ab2", 3), GuidanceSettings(2.0))
    ids = [*range(7, 40), PACKABLE.begin_of_image_id]
    prompts = {name: Prompt(ids[-1 - place * 7 - 5 :]) for place, name in enumerate(how.branches)}
    scheduler = Scheduler(model)
    scheduler.submit(ImageSequence(prompts, how, (1, 0)))
    return scheduler.run_until_idle()[-1].tokens


def made_up_model(dtype: torch.dtype) -> NextStepModel:
    """Weights that are the same on every processor, which fp32 draws of torch are not."""
    model = NextStepModel(PACKABLE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model.to(dtype).eval().requires_grad_(False)


def hash_of(values: bytes) -> str:
    """Short enough to be read."""
    return hashlib.sha256(values).hexdigest()[:16]


def made_up() -> dict[str, str]:
    """Hashes of tokens that a small model of made-up weights samples, by number format."""
    found = {}
    for name in ("fp32", "bf16", "int8", "int4"):
        model = made_up_model(torch.bfloat16 if name == "bf16" else torch.float32)
        pack_model(model, name)
        found[f"tokens {name}"] = hash_of(draw(model).numpy().tobytes())
    return found


def nano() -> dict[str, str]:
    """Hashes of pictures by the shipped weights, which change with them.

    Tokens and pixels of a drawing, and the tokens that its pixels are read as.
    """
    found = {}
    for name, quantize in (("fp32", None), ("int8", "int8")):
        pipeline = NextStepPipeline.from_pretrained("nano", dtype=torch.float32, quantize=quantize)
        engine = pipeline.engine()
        engine.submit(engine.request("red apple", height=64, width=64, seed=1))
        event = engine.run_until_idle()[-1]
        assert event.tokens is not None and event.picture is not None
        found[f"nano {name}"] = hash_of(event.tokens.numpy().tobytes())
        found[f"nano {name} pixels"] = hash_of(event.picture.image.tobytes())
    read = pipeline.image_tokenizer.encode_tokens(to_pixels([event.picture.image]))
    return found | {"nano read": hash_of(read.numpy().tobytes())}


def main() -> None:
    """Write all hashes."""
    own = targets.best()
    assert own is not None
    with tempfile.TemporaryDirectory() as folder:
        PORTABLE.write_text(portable(own, Path(folder)))
    PICTURES.write_text(json.dumps(made_up() | nano(), indent=2) + "\n")


if __name__ == "__main__":
    main()
