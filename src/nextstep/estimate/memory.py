"""How much memory a rank needs, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nextstep.config import NextStepConfig
from nextstep.estimate.counting import (
    Parameters,
    document_lengths,
    mixture,
    noise_levels,
    size_of,
    step_positions,
    step_rows,
)

if TYPE_CHECKING:
    from nextstep.estimate.dry_run import Peak
    from nextstep.recipe.schema import Recipe

FP32, BF16 = 4, 2

PROCESS = {False: 1.0e9, True: 0.42e9}
"""What a process takes beside all tensors: a CUDA context and its libraries, or python and torch
(by whether it is the CPU; the latter measured)."""
DRAWINGS = {False: 0.3e9, True: 0.17e9}
"""What live sources hold in memory on a CPU, by whether they give crops: sheets of drawings,
finished drawings, and the holes that drawing leaves in the heap; measured."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the height of a step.

    Attributes:
        weights: fp32 master weights, and gathered copies of those that are split.
        gradients: of those weights that have one at that moment.
        optimizer: running means.
        average: of the weights.
        activations: what the forward pass keeps for the backward pass, cast weights included.
        workspace: what comes on top of it in the backward pass, while pictures are encoded, or when
            every weight has its gradient.
        image_tokenizer: its weights.
        pictures: image tokens that are remembered; on a GPU its host holds them.
        checkpoint: the copy that is written while training goes on; on a GPU its host holds it.
        drawings: what live sources hold; on a GPU its host holds it.
        fragments: what the allocator holds and nobody uses.
        process: what the program itself takes.
        reference: other weights that dpo and rl compare the model with.
        sampling: of rl the model that draws, with its keys and values; of distill the teacher.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    workspace: float
    image_tokenizer: float
    pictures: float
    checkpoint: float
    drawings: float
    fragments: float
    process: float
    reference: float = 0.0
    sampling: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


FRAGMENTS = {"gpu": 0.05, "cpu": 0.33, "cpu compiled": 0.0}
"""What the allocator holds and nobody uses, as a share of activations and workspace. On a CPU it is
measured (benchmarks/plan_memory.py): rows have other documents in every step, so that freed blocks
fit what comes next only in part. Compiled code keeps less than the dry run counts, about as much as
that."""


def sequence_memory(
    recipe: Recipe, config: NextStepConfig, parameters: Parameters, ranks: int, cpu: bool
) -> Memory:
    """Memory of a rank that trains the transformer."""
    from nextstep.estimate.dry_run import sequence_peak

    data = recipe.data
    split = max(1, ranks // recipe.parallel.replicas)
    share = -(-step_rows(recipe) // ranks)
    rows = min(data.micro_batch_rows, share)
    micro = -(-share // rows)
    # A sharded model runs as it is.
    compiled = recipe.compile and split == 1
    peak = sequence_peak(
        config,
        document_lengths(data),
        rows,
        data.row_length,
        noise_levels(recipe, config),
        bf16=recipe.precision == "bf16",
        cast=split == 1,
        packed=cpu,
        checkpointing=recipe.activation_checkpointing,
        compiled=compiled,
    )
    if recipe.stage == "distill":
        peak = _head_peak(config, parameters, -(-int(step_positions(recipe)) // ranks))
    tokenizer, encoding, remembered = _pictures(recipe, config, ranks, cpu)
    made = _together(
        recipe,
        peak,
        state=FP32 * parameters.trained / split,
        optimizer=_optimizer_bytes(recipe, parameters) / split,
        weights=FP32 * parameters.total / split + _gathered(recipe, config, parameters, split),
        gradients=_gradients(recipe, config, parameters, split, micro, peak),
        encoding=encoding,
        compiled=compiled,
        image_tokenizer=tokenizer,
        pictures=remembered,
        cpu=cpu,
    )
    return replace(made, **_posttraining(recipe, parameters, split, cpu))


def _head_peak(config: NextStepConfig, parameters: Parameters, tokens: int) -> Peak:
    """What a step of distill keeps: states, a path, and ten vectors a block of the head."""
    from nextstep.estimate.dry_run import Peak

    width = 3 * config.hidden_size + 9 * config.token_size
    kept = float(FP32 * tokens * (width + 10 * config.fm_head_layers * config.fm_head_dim))
    return Peak(kept, 1.3 * kept, float(FP32 * parameters.head))


def _posttraining(
    recipe: Recipe, parameters: Parameters, split: int, cpu: bool
) -> dict[str, float]:
    """What the stages dpo, rl and distill hold beside the training."""
    near, again = recipe.policy and recipe.policy.needs_reference, recipe.rollouts
    held = bool(near) + bool(again and again.updates > 1)
    # While other weights look, the present ones are kept beside them.
    reference = (held + 1) * FP32 * parameters.trained / split if held else 0.0
    sampling = 0.0
    if recipe.rollouts is not None:
        # Whole on every rank where it computes; on a GPU its host holds what is handed over.
        sampling = (2 * FP32 if cpu else BF16) * parameters.total
        sampling += 1e9 * recipe.rollouts.cache_gb
    if recipe.stage == "distill":
        sampling = FP32 * parameters.head
    return {"reference": reference, "sampling": sampling}


def tokenizer_memory(recipe: Recipe, ranks: int, cpu: bool) -> Memory:
    """Memory of a rank that trains the image tokenizer."""
    from nextstep.estimate.counting import on_meta
    from nextstep.estimate.dry_run import tokenizer_peak
    from nextstep.recipe.shapes import autoencoder_config
    from nextstep.vae.autoencoder import Autoencoder

    options = recipe.tokenizer
    assert options is not None
    config = autoencoder_config(recipe)
    network = on_meta(Autoencoder, config)
    total = size_of(network)
    trained = size_of(network.decoder) if options.decoder_only else total
    split = max(1, ranks // recipe.parallel.replicas)
    crops = options.crops.per_micro or max(1, options.crops.batch // ranks)
    peak = tokenizer_peak(recipe, config, crops)
    gathered = BF16 * total if split > 1 else 0
    several = options.crops.batch > ranks * crops
    return _together(
        recipe,
        peak,
        state=FP32 * trained / split,
        optimizer=2 * FP32 * trained / split,
        weights=FP32 * total / split + gathered,
        gradients=FP32 * trained / split if several else peak.gradients / split,
        cpu=cpu,
    )


def _together(
    recipe: Recipe,
    peak: Peak,
    *,
    state: float,
    optimizer: float,
    weights: float,
    gradients: float,
    encoding: float = 0.0,
    compiled: bool = False,
    image_tokenizer: float = 0.0,
    pictures: float = 0.0,
    cpu: bool,
) -> Memory:
    """The parts of a rank.

    Args:
        recipe, cpu: as in `sequence_memory`.
        peak: of a micro-batch.
        state: bytes of the weights that are trained, and so of all their gradients.
        optimizer, weights, gradients, image_tokenizer, pictures: see `Memory`.
        encoding: bytes while pictures are encoded, which is before the forward pass.
        compiled: see `sequence_peak`.
    """
    kind = ("cpu compiled" if compiled else "cpu") if cpu else "gpu"
    average = state if recipe.ema else 0.0
    workspace = max(peak.kept, peak.highest, encoding, state - gradients) - peak.kept
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        activations=peak.kept,
        workspace=workspace,
        image_tokenizer=image_tokenizer,
        pictures=pictures,
        # On a GPU the copy lies in the memory of its host.
        checkpoint=state + average + optimizer if cpu else 0.0,
        drawings=_drawings(recipe) if cpu else 0.0,
        fragments=FRAGMENTS[kind] * (peak.kept + workspace),
        process=PROCESS[cpu],
    )


def _drawings(recipe: Recipe) -> float:
    """What live sources hold in memory; drawings cropped for the tokenizer stage lie in a file."""
    names = [source.world.name for source in recipe.data.sources if source.world]
    return DRAWINGS[recipe.stage == "tokenizer"] if set(names) - {"drawings"} else 0.0


def _gathered(recipe: Recipe, config: NextStepConfig, parameters: Parameters, split: int) -> float:
    """Whole copies of weights that are split: all outside the layers, and two layers or all."""
    if split == 1:
        return 0.0
    each = BF16 if recipe.precision == "bf16" else FP32
    layer = parameters.backbone / config.num_hidden_layers
    # The layer that computes and the one that is gathered for the next.
    inside = 2 * layer if recipe.parallel.reshard_after_forward else parameters.backbone
    return each * (parameters.total - parameters.backbone + inside)


def _gradients(
    recipe: Recipe,
    config: NextStepConfig,
    parameters: Parameters,
    split: int,
    micro: int,
    peak: Peak,
) -> float:
    """Bytes of gradients at the height of a step."""
    if split == 1:
        return FP32 * parameters.trained if micro > 1 else peak.gradients
    own = FP32 * parameters.trained / split
    if micro > 1 and not recipe.parallel.reduce_every_batch:
        return own + FP32 * parameters.trained
    layer = parameters.backbone / config.num_hidden_layers
    return own + FP32 * (parameters.total - parameters.backbone + 2 * layer)


def _optimizer_bytes(recipe: Recipe, parameters: Parameters) -> float:
    if recipe.optimizer.name == "adamw":
        return 2 * FP32 * parameters.trained
    if recipe.optimizer.name == "sgd":
        return FP32 * parameters.trained
    # Muon keeps one mean of hidden matrices, AdamW two of all else.
    hidden = min(parameters.backbone + parameters.head, parameters.trained)
    return FP32 * hidden + 2 * FP32 * (parameters.trained - hidden)


def _pictures(
    recipe: Recipe, config: NextStepConfig, ranks: int, cpu: bool
) -> tuple[float, float, float]:
    """Bytes of the image tokenizer, of encoding with it, and of the tokens that are remembered."""
    from nextstep.estimate.counting import fresh_share, on_meta
    from nextstep.estimate.dry_run import encoding_peak
    from nextstep.recipe.shapes import autoencoder_config
    from nextstep.train.stages.encoding import PIXELS_AT_ONCE, REMEMBERED
    from nextstep.vae.autoencoder import Autoencoder

    data, fresh = recipe.data, fresh_share(recipe.data)
    if not fresh:
        return 0.0, 0.0, 0.0
    tokenizer, bf16 = autoencoder_config(recipe), recipe.precision == "bf16"
    side, each = max(data.areas), BF16 if bf16 else FP32
    pictures = max(1, PIXELS_AT_ONCE["cpu" if cpu else "cuda"] // side**2)
    tokens = recipe.steps * data.rows / ranks * data.row_length * mixture(data).image_share
    return (
        each * size_of(on_meta(Autoencoder, tokenizer)),
        encoding_peak(tokenizer, pictures, side, bf16=bf16),
        min(each * config.token_size * tokens * fresh, REMEMBERED) if cpu else 0.0,
    )
