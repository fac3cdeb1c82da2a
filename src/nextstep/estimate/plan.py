"""What a recipe will take, before anything is trained: size, memory, arithmetic, time, disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextstep.errors import NextStepError
from nextstep.estimate import counting, memory
from nextstep.estimate.devices import USABLE, Device, at_precision
from nextstep.model.precision import resolved
from nextstep.recipe.load import RecipeError, load_recipe
from nextstep.recipe.run_schema import Published
from nextstep.recipe.shapes import autoencoder_config, check_pictures, model_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nextstep.recipe.schema import Recipe

STORED_PICTURE = 0.2
"""Bytes a pixel of a JPEG at the size it is trained at."""
STORED_TEXT = 4.0
"""Bytes a token of text."""
LATENT_BYTES = 2
"""Bytes a value in the latent cache."""
HOUR = 3600


@dataclass(frozen=True)
class PlanTotals:
    """Tokens of a stage, as computed and as published.

    Attributes:
        recipe, stage: whose they are.
        steps, ranks: of the recipe.
        tokens_per_rank: in one step.
        tokens: in all; padding, which packing keeps under 5 %, is counted in.
        published, published_per_rank: as a paper prints them.
        agree: whether all that is published reads the same when rounded alike.
    """

    recipe: str
    stage: str
    steps: int
    ranks: int
    tokens_per_rank: float
    tokens: float
    published: str | None
    published_per_rank: str | None
    agree: bool | None


@dataclass(frozen=True)
class RunPlan:
    """What a run of one recipe takes.

    Attributes:
        recipe, stage: the file and its stage.
        device, ranks: what it is planned for.
        parameters: by part.
        memory: bytes of a rank, by part, as `Memory` names them.
        memory_total, memory_usable: bytes of a rank, and how many the device has for it.
        tokens_per_step, tokens: over all ranks; of the tokenizer stage, pixels' image tokens.
        flops_per_step: over all ranks.
        hours: at the device's efficiency.
        disk: bytes of checkpoints, model folders and data.
        published: token totals of this stage and of all that follow.
    """

    recipe: str
    stage: str
    device: Device
    ranks: int
    parameters: dict[str, int]
    memory: dict[str, float]
    memory_total: float
    memory_usable: float
    tokens_per_step: float
    tokens: float
    flops_per_step: float
    hours: float
    disk: dict[str, float]
    published: list[PlanTotals]

    @property
    def fits(self) -> bool:
        """Whether a rank's memory is enough."""
        return self.memory_total <= self.memory_usable

    def refusal(self) -> str:
        """Why it does not fit and what would help."""
        return (
            f"{self.recipe} needs {self.memory_total / 1e9:.1f} GB a rank and {self.device.name} "
            f"has {self.memory_usable / 1e9:.1f} GB to give; split it over more ranks "
            "(parallel.ranks), set activation_checkpointing: true, or lower data.micro_batch_rows"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {**asdict(self), "fits": self.fits}


def make_plan(
    path: str | Path,
    device: Device,
    ranks: int | None = None,
    overrides: Sequence[str] = (),
) -> RunPlan:
    """Read a recipe and reckon with it.

    Args:
        path: the recipe file.
        device: what every rank runs on.
        ranks: processes; default the recipe's.
        overrides: as in `load_recipe`.

    Raises:
        NextStepError: when the recipe is wrong, or its rows cannot be dealt out to the ranks.
    """
    recipe = load_recipe(path, overrides)
    # Of a GPU in a list nothing can be tried; all of them compute bf16.
    precision = resolved(recipe.precision, "cpu") if device.is_cpu else recipe.precision
    precision = precision.replace("auto", "bf16")
    recipe = recipe.model_copy(update={"precision": precision})
    device = at_precision(device, precision)
    n = ranks or recipe.parallel.ranks
    check_ranks(recipe, n, str(path))
    stage = _tokenizer_plan if recipe.stage == "tokenizer" else _sequence_plan
    found = stage(recipe, device, n)
    hours = found.flops * recipe.steps / (n * device.flops * device.efficiency) / HOUR
    if recipe.minutes:
        hours = min(hours, recipe.minutes / 60)
    return RunPlan(
        recipe=str(path), stage=recipe.stage, device=device, ranks=n,
        parameters=found.parameters, memory=vars(found.memory),
        memory_total=found.memory.total, memory_usable=USABLE * device.memory,
        tokens_per_step=found.tokens, tokens=found.tokens * recipe.steps,
        flops_per_step=found.flops, hours=hours, disk=found.disk,
        published=stage_totals(Path(path), recipe),
    )  # fmt: skip


def check_ranks(recipe: Recipe, ranks: int, where: str) -> None:
    """Make sure that a step can be dealt out to the ranks.

    Raises:
        NextStepError: naming the numbers that do not fit.
    """
    if ranks % recipe.parallel.replicas:
        raise NextStepError(
            f"{where}: parallel.replicas: {ranks} ranks cannot hold {recipe.parallel.replicas} "
            "equal replicas"
        )
    for section, number in (
        ("rollouts.prompts", recipe.rollouts.prompts if recipe.rollouts else ranks),
        ("distillation.batch", recipe.distillation.batch if recipe.distillation else ranks),
    ):
        if number % ranks:
            raise NextStepError(
                f"{where}: {section}: {number} cannot be dealt out to {ranks} ranks alike"
            )
    if recipe.tokenizer is None:
        if counting.step_rows(recipe) < ranks and recipe.stage != "distill":
            raise NextStepError(
                f"{where}: data.rows: {recipe.data.rows} row(s) a step leave some of {ranks} ranks "
                "without any"
            )
        return
    crops = recipe.tokenizer.crops
    if crops.batch % (ranks * (crops.per_micro or 1)):
        raise NextStepError(
            f"{where}: tokenizer.crops.batch: {crops.batch} cannot be dealt out to {ranks} rank(s) "
            f"in micro-batches of {crops.per_micro or 1}"
        )


def stage_totals(path: Path, recipe: Recipe) -> list[PlanTotals]:
    """Token totals of this recipe and of those that `next` leads to.

    Raises:
        RecipeError: when the row of stages runs in a circle.
    """
    found: list[PlanTotals] = []
    seen: set[Path] = set()
    here, current = path, recipe
    while True:
        if here.resolve() in seen:
            raise RecipeError(f"{here}: next: leads back to a stage before it")
        seen.add(here.resolve())
        if current.stage != "tokenizer":
            found.append(_totals(here, current))
        if current.next is None:
            return found
        here = here.parent / current.next
        current = load_recipe(here)


def _totals(path: Path, recipe: Recipe) -> PlanTotals:
    ranks = recipe.parallel.ranks
    per_step = counting.step_positions(recipe)
    told = recipe.published or Published()
    pairs = [(per_step * recipe.steps, told.tokens), (per_step / ranks, told.tokens_per_rank)]
    agreements = [Published.agrees(value, text) for value, text in pairs if text]
    return PlanTotals(
        path.name, recipe.stage, recipe.steps, ranks, per_step / ranks, per_step * recipe.steps,
        told.tokens, told.tokens_per_rank, all(agreements) if agreements else None,
    )  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """What both kinds of stages are asked for."""

    parameters: dict[str, int]
    memory: memory.Memory
    tokens: float
    flops: float
    disk: dict[str, float]


def _sequence_plan(recipe: Recipe, device: Device, ranks: int) -> _Found:
    config = model_config(recipe)
    check_pictures(recipe, config)
    parts = counting.count_parameters(recipe, config)
    tokens = counting.step_positions(recipe)
    return _Found(
        {**asdict(parts), "total": parts.total},
        memory.sequence_memory(recipe, config, parts, ranks, device.is_cpu),
        tokens,
        counting.step_flops(recipe, config),
        _disk(recipe, parts.total, parts.trained, tokens * recipe.steps),
    )


def _tokenizer_plan(recipe: Recipe, device: Device, ranks: int) -> _Found:
    from nextstep.vae.autoencoder import Autoencoder

    options = recipe.tokenizer
    assert options is not None
    config = autoencoder_config(recipe)
    network = counting.on_meta(Autoencoder, config)
    encoder, decoder = counting.size_of(network.encoder), counting.size_of(network.decoder)
    tokens = options.crops.batch * (options.crops.size / config.token_pixels) ** 2
    trained = decoder if options.decoder_only else encoder + decoder
    return _Found(
        {"encoder": encoder, "decoder": decoder, "trained": trained, "total": encoder + decoder},
        memory.tokenizer_memory(recipe, ranks, device.is_cpu),
        tokens,
        counting.tokenizer_flops(recipe, config),
        _disk(recipe, encoder + decoder, trained, 0),
    )


def _disk(recipe: Recipe, total: int, trained: int, tokens: float) -> dict[str, float]:
    """Bytes of checkpoints (one more than kept, while it is written), model folders and data."""
    means = 2 * memory.FP32 * trained
    average = memory.FP32 * total if recipe.ema else 0
    kept = recipe.saving.keep + 1
    if recipe.saving.keep_every:
        kept += recipe.steps // recipe.saving.keep_every
    each = memory.FP32 if recipe.saving.dtype == "fp32" else memory.BF16
    disk: dict[str, float] = {
        "checkpoints": kept * (memory.FP32 * total + means + average),
        "model folders": (len(recipe.saving.milestones) + 1) * each * total,
    }
    if tokens and any(source.shards for source in recipe.data.sources):
        disk["data, if no sample is read twice"] = _data_bytes(recipe, tokens)
    return disk


def _data_bytes(recipe: Recipe, tokens: float) -> float:
    mix = counting.mixture(recipe.data)
    config = autoencoder_config(recipe)
    image = tokens * mix.image_share
    cached = any(source.latents for source in recipe.data.sources)
    pixels = image * config.token_pixels**2 * STORED_PICTURE
    latents = image * config.token_size * LATENT_BYTES if cached else 0
    return tokens * mix.documents * mix.text * STORED_TEXT + pixels + latents
