"""Sheets of pictures during training, and the settings a trained model recommends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nextstep.engine.metadata import write_file
from nextstep.engine.settings import GenerationSettings, ModelDefaults
from nextstep.image.encode import encode

if TYPE_CHECKING:
    from PIL import Image

    from nextstep.engine.pretrained import Parts
    from nextstep.recipe.schema import Recipe
    from nextstep.vae.tokenizer import ImageTokenizer

GAP = 4
"""Pixels between pictures of a sheet."""


def defaults_of(recipe: Recipe) -> ModelDefaults:
    """Size and settings that a model of this recipe recommends: those of its sample sheets.

    Without any, the largest area it is trained at and the settings of the folder it starts from.
    """
    from nextstep.model.folder import local_folder

    start = recipe.model.folder if recipe.model else None
    folder = local_folder(start) if start else None
    before = ModelDefaults.of_folder(folder) if folder else ModelDefaults()
    asked = recipe.samples
    if recipe.stage == "distill":
        return _jumping(recipe, before)
    if asked is None:
        side = max(recipe.data.areas)
        return replace(before, height=side, width=side)
    generate = GenerationSettings().with_values(**asked.settings)
    edit = generate.with_values(image_guidance=max(generate.image_guidance, EDIT_IMAGE_GUIDANCE))
    return replace(before, height=asked.height, width=asked.width, generate=generate, edit=edit)


def _jumping(recipe: Recipe, before: ModelDefaults) -> ModelDefaults:
    """Drawings by as few calls of the head as it learned; edits so where it learned them."""
    told = recipe.distillation
    calls = min(told.calls) if told else 1
    scale = told.guidance[0] if told else before.generate.guidance
    jumps = {"solver": "flow_map", "steps": calls, "final_token_steps": 0, "guidance": scale}
    generate, edit = before.generate.with_values(**jumps), before.edit
    if told and told.image_guidance is not None:
        edit = edit.with_values(**jumps, image_guidance=told.image_guidance)
    return replace(before, generate=generate, edit=edit)


def fitting(defaults: ModelDefaults, image_tokenizer: ImageTokenizer) -> ModelDefaults:
    """Settings without token norm where the tokens of a model have none."""
    if image_tokenizer.config.token_norm:
        return defaults
    return replace(
        defaults,
        generate=defaults.generate.with_values(token_norm=False),
        edit=defaults.edit.with_values(token_norm=False),
    )


EDIT_IMAGE_GUIDANCE = 1.5
"""Source-picture guidance that edits get where a recipe says nothing."""


def draw_sheet(parts: Parts, recipe: Recipe, path: Path) -> None:
    """Draw the recipe's prompts and write them as one PNG, in rows of about a square."""
    from nextstep.pipeline import NextStepPipeline

    asked = recipe.samples
    assert asked is not None
    pipeline = NextStepPipeline(*parts)
    made = pipeline.generate(
        asked.prompts, height=asked.height, width=asked.width, seed=asked.seed, **asked.settings
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, encode(sheet([picture.image for picture in made])))


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size side by side."""
    from PIL import Image

    columns = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    size = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    canvas = Image.new("RGB", size, "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        canvas.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return canvas
