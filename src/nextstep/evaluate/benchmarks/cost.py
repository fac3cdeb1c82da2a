"""What a benchmark will take: hours of one accelerator for its pictures, money for its judge.

An image token costs a pass of the backbone for every branch of guidance and the flow head's steps.
Either the weights' way out of memory or the arithmetic takes longer; the larger of the two counts
(Williams et al. 2009, the roofline model).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nextstep.config import NextStepConfig
from nextstep.errors import NextStepError
from nextstep.estimate.devices import USABLE, Device
from nextstep.train.flops import head_numbers, layer_numbers

BANDWIDTH = {
    "b200": 8.0, "h200": 4.8, "h100": 3.35, "h100-pcie": 2.0, "a100": 2.039, "a100-40": 1.555,
    "l40s": 0.864, "rtx5090": 1.792, "rtx4090": 1.008, "mi300x": 5.3,
}  # fmt: skip
"""Device -> terabytes a second from its memory, as the makers' data sheets print it."""
WEIGHT_BYTES = 2
PRICES = {
    "gpt-4o-2024-05-13": (5.0, 15.0),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4o": (2.5, 10.0),
    "gemini-2.5-pro": (1.25, 10.0),
}
"""Judge -> dollars for a million tokens of questions and of answers, as listed in 2025."""


@dataclass(frozen=True)
class Size:
    """The complete official set.

    Attributes:
        prompts, repeats: and pictures of each.
        branches: of guidance: 2, or 3 for edits.
        judge: official one.
        calls: that a paid judge gets in all; 0 for judges that run on one's own machine.
        question, answer: tokens of a call, pictures (about 260 tokens each) included.
        side: of a picture in pixels; 512 is what the released edit models are for.
    """

    prompts: int
    repeats: int
    branches: int
    judge: str
    calls: int = 0
    question: int = 0
    answer: int = 0
    side: int = 256


SIZES = {
    "geneval": Size(553, 4, 2, "Mask2Former and CLIP"),
    "geneval2": Size(800, 1, 2, "Qwen3-VL-8B-Instruct"),
    "genai-bench": Size(1600, 4, 2, "CLIP-FlanT5-XXL"),
    "dpg-bench": Size(1065, 4, 2, "mPLUG-large"),
    "oneig": Size(1120, 4, 2, "Qwen2.5-VL-7B-Instruct and encoders"),
    "oneig-zh": Size(1320, 4, 2, "Qwen2.5-VL-7B-Instruct and encoders"),
    "wise": Size(1000, 1, 2, "gpt-4o-2024-05-13", 1000, 1150, 20),
    "wise-verified": Size(1000, 1, 2, "Qwen3.5-35B-A3B"),
    "gedit": Size(1212, 1, 3, "gpt-4.1", 2424, 1000, 120, 512),
    "imgedit": Size(737, 1, 3, "gpt-4o", 737, 900, 80, 512),
    "unigenbench": Size(600, 4, 2, "gemini-2.5-pro", 2400, 1000, 600),
    "unigenbench-zh": Size(600, 4, 2, "gemini-2.5-pro", 2400, 1000, 600),
    "ueval": Size(1000, 3, 2, "gemini-2.5-pro", 10000, 1500, 30),
}
"""Benchmark -> its size; ImgEdit's and UEval's are about right."""
PAPER = ("geneval", "genai-bench", "dpg-bench", "oneig", "wise", "gedit", "imgedit")
"""The sets of the paper's tables 2 to 5."""


@dataclass(frozen=True)
class BenchmarkCost:
    """What one benchmark takes.

    Attributes:
        benchmark: its name.
        pictures: that are made.
        side: of a picture in pixels.
        hours: of one device for them.
        judge: official one.
        calls: to a paid judge.
        dollars: for them; None where the judge runs on one's own machine.
    """

    benchmark: str
    pictures: int
    side: int
    hours: float
    judge: str
    calls: int
    dollars: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def seconds_per_token(
    config: NextStepConfig, device: Device, rows: int, steps: int, context: int
) -> float:
    """Of one image token of all pictures made together.

    Args:
        config: of the model.
        device: that computes.
        rows: pictures made together times branches.
        steps: of the solver.
        context: positions that stand before the token, on average.
    """
    if device.name not in BANDWIDTH:
        known = ", ".join(BANDWIDTH)
        raise NextStepError(f"no memory bandwidth is known of '{device.name}'; choose from {known}")
    bandwidth = BANDWIDTH[device.name] * 1e12
    rate = device.flops * device.efficiency
    once, each = head_numbers(config)
    layers = config.num_hidden_layers
    cache = 2 * layers * config.num_key_value_heads * config.head_dim * context
    backbone = layers * layer_numbers(config)
    seconds = max(
        WEIGHT_BYTES * (backbone + once + rows * cache) / bandwidth,
        2 * rows * (backbone + once) / rate,
    )
    return seconds + steps * max(WEIGHT_BYTES * each / bandwidth, 2 * rows * each / rate)


def parameters(config: NextStepConfig) -> int:
    """Numbers in the matrices of a model, its embeddings included."""
    embeddings = config.vocab_size * config.hidden_size
    embeddings *= 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * layer_numbers(config) + embeddings + sum(head_numbers(config))


def cost_of(
    name: str, config: NextStepConfig, device: Device, size: int | None = None, steps: int = 28,
    batch: int = 8, devices: int = 1, prices: Mapping[str, tuple[float, float]] = PRICES,
) -> BenchmarkCost:  # fmt: skip
    """What a benchmark takes with a model.

    Args:
        name: of the benchmark.
        config: of the model.
        device: that makes the pictures.
        size: side of a picture in pixels; None for the benchmark's own.
        steps: of the solver.
        batch: pictures made together.
        devices: that share the set.
        prices: judge -> dollars for a million tokens in and out.

    Raises:
        NextStepError: for an unknown benchmark, a device of unknown bandwidth, or one whose memory
            the weights do not fit into.
    """
    if name not in SIZES:
        raise NextStepError(f"there is no benchmark '{name}'; choose from {', '.join(SIZES)}")
    weights = WEIGHT_BYTES * parameters(config)
    if weights > device.memory * USABLE:
        raise NextStepError(
            f"{weights / 1e9:.0f} GB of weights do not fit into the {device.memory / 1e9:.0f} GB "
            f"of one {device.name}"
        )
    what = SIZES[name]
    side = size or what.side
    tokens = (side // 16) ** 2
    pictures = what.prompts * what.repeats
    # Edits read their source first, which is as many tokens as the result.
    context = 64 + tokens // 2 + (tokens if what.branches == 3 else 0)
    each = seconds_per_token(config, device, batch * what.branches, steps, context)
    hours = tokens * each * pictures / batch / devices / 3600
    dollars = None
    if what.calls:
        asked, answered = prices[what.judge]
        dollars = what.calls * (what.question * asked + what.answer * answered) / 1e6
    return BenchmarkCost(name, pictures, side, hours, what.judge, what.calls, dollars)
