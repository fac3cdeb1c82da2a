"""A recipe becomes the parts of a run: text tokenizer, image tokenizer, sources, settings.

    recipe -> SequenceParts | TokenizerParts -> nextstep.recipe.run -> Trainer

Nothing here decides anything: every choice stands in the recipe.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import gcd, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nextstep.data.augment import Shares
from nextstep.data.filters import Filters
from nextstep.data.latents import CachedSource, LatentCache, build_cache, tokenizer_hash
from nextstep.data.loader import Loader, LoaderConfig
from nextstep.data.sources import ShardSource, SourceOptions
from nextstep.data.steps import MakeCrop
from nextstep.model.folder import find_folder, tokenizer_folder
from nextstep.recipe.live import open_live, open_live_crops
from nextstep.recipe.load import RecipeError
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.config import TrainConfig
from nextstep.train.stages.crops import (
    CropBatches,
    RandomCrops,
    folder_crops,
    mixed_crops,
)
from nextstep.vae.files import load_image_tokenizer

if TYPE_CHECKING:
    from nextstep.data.documents import Source
    from nextstep.recipe.data_schema import Data, SourceSettings
    from nextstep.recipe.schema import Recipe
    from nextstep.train.parallel import Ranks
    from nextstep.vae.tokenizer import ImageTokenizer

TEXT_FOLDER = "text-tokenizer"
"""Folder inside a run that keeps a text tokenizer made for it."""


def train_config(recipe: Recipe, progress: bool = False) -> TrainConfig:
    """The loop's settings."""
    optimizer, schedule, saving = recipe.optimizer, recipe.schedule, recipe.saving
    return TrainConfig(
        steps=recipe.steps,
        minutes=recipe.minutes,
        learning_rate=optimizer.learning_rate,
        optimizer=optimizer.name,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        clip=optimizer.clip,
        schedule=schedule.kind,
        warmup=schedule.warmup,
        decay=schedule.decay,
        final_rate=schedule.final,
        rate_scales=recipe.model.lr_scale if recipe.model else {},
        freeze=tuple(recipe.model.freeze) if recipe.model else (),
        ema=recipe.ema,
        precision=recipe.precision,
        gradient_checkpointing=recipe.activation_checkpointing,
        reduce_every_batch=recipe.parallel.reduce_every_batch,
        reshard_after_forward=recipe.parallel.reshard_after_forward,
        max_bad_steps=recipe.max_bad_steps,
        seed=recipe.seed,
        log_every=recipe.logging.every,
        save_every=saving.steps,
        save_minutes=saving.minutes,
        save_in_background=saving.in_background,
        keep=saving.keep,
        keep_every=saving.keep_every,
        sample_every=callback_steps(recipe),
        progress=progress,
        tensorboard=recipe.logging.tensorboard,
        wandb=recipe.logging.wandb or "",
        # Samples of online learning come from the weights after the step before.
        prefetch=recipe.stage != "rl",
        # Frozen weights come from the model that a run starts from.
        save_frozen=recipe.lora is None and recipe.stage != "distill",
    )


def callback_steps(recipe: Recipe) -> int:
    """Steps between two looks at whether something is due; 0 for none."""
    every = [looked.every for looked in (recipe.samples, recipe.probes) if looked]
    return gcd(*every, *recipe.saving.milestones)


def open_text_tokenizer(recipe: Recipe, folder: Path) -> TextTokenizer:
    """The text tokenizer that a recipe names; one that is made for it must be in the run folder.

    Raises:
        ValueError: when it cannot be read.
    """
    assert recipe.model is not None
    if recipe.train_text_tokenizer is not None:
        return TextTokenizer.from_folder(folder / TEXT_FOLDER)
    named = recipe.text_tokenizer or recipe.model.folder or recipe.model.language_model
    tokenizer = TextTokenizer.from_folder(find_folder(str(named)))
    if recipe.model.language_model:
        tokenizer.add_image_tokens()
    return tokenizer


def make_text_tokenizer(recipe: Recipe, folder: Path, where: str) -> None:
    """Make the text tokenizer of a run from its live sources' texts, unless it is there.

    Raises:
        RecipeError: when a source has no texts to tell.
    """
    wanted = recipe.train_text_tokenizer
    target = folder / TEXT_FOLDER
    if wanted is None or (target / "tokenizer.json").exists():
        return
    # What a source says does not depend on a tokenizer, but its making needs one.
    letters = TextTokenizer.train([], vocab_size=300)
    streams = []
    for place, settings in enumerate(recipe.data.sources):
        path = f"{where}: data.sources[{place}]"
        source = open_live(settings, letters, path) if settings.world else None
        if source is None or not hasattr(source, "texts"):
            raise RecipeError(
                f"{path}: only live sources tell their texts; give text_tokenizer a folder in "
                "place of train_text_tokenizer"
            )
        streams.append(source.texts())
    each = -(-wanted.samples // len(streams))
    texts = itertools.chain.from_iterable(itertools.islice(s, each) for s in streams)
    target.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{TEXT_FOLDER}.part")
    scratch.mkdir(exist_ok=True)
    TextTokenizer.train(texts, wanted.vocab_size).save(scratch)
    (scratch / "tokenizer.json").replace(target / "tokenizer.json")
    scratch.rmdir()


def open_image_tokenizer(recipe: Recipe, ranks: Ranks) -> ImageTokenizer:
    """The image tokenizer that a recipe names, on the device.

    Raises:
        RecipeError: when it is not there.
        ModelFileError: when it cannot be read.
    """
    assert recipe.model is not None
    named = recipe.image_tokenizer or recipe.model.folder
    assert named is not None
    folder = tokenizer_folder(named)
    if folder is None:
        raise RecipeError(
            f"image_tokenizer: there is no folder '{named}'; train one with a tokenizer recipe or "
            "say image_tokenizer=nano"
        )
    half = recipe.precision == "bf16"
    return load_image_tokenizer(
        folder, torch.bfloat16 if half else torch.float32, str(ranks.device)
    )


def open_source(
    settings: SourceSettings,
    recipe: Recipe,
    tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    where: str,
) -> Source:
    """One source of documents.

    Raises:
        NextStepError: when its shards, its latent cache or its live source cannot be had.
    """
    source = open_plain(settings, recipe, tokenizer, where)
    if settings.compose_latents:
        from nextstep.world.composition import ComposedSource

        return ComposedSource(source, image_tokenizer)
    if settings.latents is None:
        return source
    _check_still(source, where)
    return CachedSource(source, LatentCache(settings.latents, tokenizer_hash(image_tokenizer)))


def open_plain(
    settings: SourceSettings, recipe: Recipe, tokenizer: TextTokenizer, where: str
) -> Any:
    """A source of documents whose pictures are pixels.

    Raises:
        NextStepError: when its shards or its live source cannot be had.
    """
    if settings.world:
        return open_live(settings, tokenizer, where)
    if settings.rollouts:
        from nextstep.rollout.pairs import Winners

        return Winners(
            Path(settings.rollouts), tokenizer, settings.best, settings.least_reward,
            settings.no_caption, settings.title,
        )  # fmt: skip
    return open_shards(settings, recipe, tokenizer)


def _check_still(source: Any, where: str) -> None:
    if not getattr(source, "is_still", False):
        raise RecipeError(
            f"{where}.latents: source {source.name} shows other pictures at every use; set crop to "
            "centre for shards or fresh to false for the world, or leave the cache out"
        )


def open_shards(settings: SourceSettings, recipe: Recipe, tokenizer: TextTokenizer) -> ShardSource:
    """A folder of shards as a source.

    Raises:
        NextStepError: when there are none.
    """
    from nextstep.data.shards import ShardSet

    assert settings.shards is not None
    shards = ShardSet(settings.shards, settings.title, settings.kind)
    options = source_options(settings, recipe.data)
    return ShardSource(shards, shards.kind, tokenizer, options, settings.title)


def make_latents(recipe: Recipe, folder: Path, ranks: Ranks) -> None:
    """Build this rank's share of the latent caches that sources name and are not whole.

    Raises:
        NextStepError: when a cache is of another tokenizer or other data.
    """
    if not any(settings.latents for settings in recipe.data.sources):
        return
    image_tokenizer = open_image_tokenizer(recipe, ranks)
    tokenizer = open_text_tokenizer(recipe, folder)
    for place, settings in enumerate(recipe.data.sources):
        if settings.latents:
            where = f"data.sources[{place}]"
            source = open_plain(settings, recipe, tokenizer, where)
            _check_still(source, where)
            build_cache(
                source,
                image_tokenizer,
                settings.latents,
                workers=recipe.data.workers,
                share=(ranks.rank, ranks.world),
            )


def source_options(settings: SourceSettings, data: Data) -> SourceOptions:
    """How a source's samples become documents."""
    filters, chances = settings.filters, data.probabilities
    least, most = filters.area[0], filters.area[1] if len(filters.area) == 2 else inf
    side = data.areas[0] // 16
    return SourceOptions(
        captions=settings.captions,
        templates=tuple(settings.templates),
        upper_first=chances.upper_first,
        drop_text_prob=chances.caption_last_prob,
        drop_condition_prob=chances.no_caption,
        shares=Shares(
            chances.tags_last, chances.drop_source_prob, chances.drop_one_source_prob,
            chances.drop_first_source_prob, chances.images_only,
        ),
        filters=Filters(
            filters.height, filters.width, (least, most), filters.aspect_ratio or inf,
            filters.keywords, filters.numbers,
        ),
        areas=tuple(sorted(data.areas)),
        grids=() if data.aspects else ((side, side),),
        crop=data.crop,
        max_length=data.row_length,
    )  # fmt: skip


def open_loader(
    recipe: Recipe,
    tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer,
    batch_of: Callable[[list[Any]], Any],
    ranks: Ranks,
    where: str,
) -> Loader:
    """The stream of steps of one rank.

    Raises:
        NextStepError: when a source cannot be had or mixed.
    """
    data = recipe.data
    composed = any(settings.compose_latents for settings in data.sources)
    if data.processes and composed and image_tokenizer.device.type != "cpu":
        raise RecipeError(
            f"{where}: data.processes: worker processes compose image tokens on a CPU alone; leave "
            "out compose_latents, and this device encodes the pictures"
        )
    sources = [
        open_source(settings, recipe, tokenizer, image_tokenizer, f"{where}: data.sources[{place}]")
        for place, settings in enumerate(data.sources)
    ]
    config = LoaderConfig(
        row_length=data.row_length,
        rows_per_step=data.rows,
        micro_batch_rows=data.micro_batch_rows,
        by=data.mix,
        seed=recipe.seed,
        window_rows=data.window_rows,
        workers=data.workers,
        processes=data.processes,
        ahead=data.ahead,
        max_broken_share=data.max_broken_share,
    )
    weights = [settings.weight for settings in data.sources]
    return Loader(sources, weights, batch_of, config, rank=ranks.rank, world=ranks.world)


def open_crops(recipe: Recipe, ranks: Ranks, where: str) -> CropBatches:
    """The stream of crops of one rank.

    Raises:
        NextStepError: when a source cannot be had.
    """
    options = recipe.tokenizer
    assert options is not None
    makers = [
        (_crops_of(settings, recipe, f"{where}: data.sources[{place}]"), settings.weight)
        for place, settings in enumerate(recipe.data.sources)
    ]
    crops = options.crops
    return CropBatches(
        mixed_crops([(maker, weight) for maker, weight in makers if weight]),
        crops.batch, crops.per_micro, recipe.seed, ranks.rank, ranks.world,
    )  # fmt: skip


def _crops_of(settings: SourceSettings, recipe: Recipe, where: str) -> MakeCrop:
    from nextstep.data.shards import ShardSet

    assert recipe.tokenizer is not None
    size = recipe.tokenizer.crops.size
    if settings.world:
        return open_live_crops(settings, size, where)
    if settings.pictures:
        return folder_crops(Path(settings.pictures), size, recipe.seed)
    assert settings.shards is not None
    shards = ShardSet(settings.shards, settings.title, settings.kind)

    def first_picture(index: int) -> Any:
        found = shards.pictures(index)
        if not found:
            raise ValueError("a sample without a picture")
        return found[0]

    return RandomCrops(len(shards), first_picture, size, recipe.seed)
