"""Loss on documents that no training saw, one value a document, with the same noise for all.

Documents come from the recipe's own world sources with the split "seen": scenes like those of
training, from other seeds. Every document brings its own noise, so two models of one tokenizer
answer the very same questions, and their difference is that of the models.

Legend: P positions whose next id is text, T image tokens, K noise levels per token, D values per
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nextstep.data.documents import Document, derived_seed
from nextstep.engine.pretrained import load_parts
from nextstep.lab.study import MeasuredUnit, Scale, StudyUnit
from nextstep.recipe import build
from nextstep.recipe.data_schema import Live
from nextstep.recipe.run import MODEL
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.parallel import Ranks
from nextstep.train.stages.pretrain import PretrainStage, states

if TYPE_CHECKING:
    from nextstep.model.nextstep import NextStepModel
    from nextstep.recipe.schema import Recipe
    from nextstep.vae.tokenizer import ImageTokenizer

LEVELS = 8
"""Noise levels of every image token: twice the published number, for steadier values."""
DOCUMENTS = 4
"""For every item of a task."""
ROWS = 16
"""Documents that go through the model together."""


@dataclass(frozen=True)
class HeldOut:
    """Documents with their image tokens.

    Attributes:
        documents: each with its pictures.
        image_tokenizer: of pictures that come as pixels.
    """

    documents: Sequence[tuple[Document, Sequence[Any]]]
    image_tokenizer: ImageTokenizer


def held_out(
    recipe: Recipe, run: Path, tokenizer: TextTokenizer, count: int, source: int = 0
) -> HeldOut:
    """The first documents of a recipe's source with the split "seen".

    Args:
        recipe: whose source is live.
        run: folder of the run, for complaints alone.
        tokenizer: of the text.
        count: documents.
        source: place in `data.sources`.

    Raises:
        NextStepError: when the source cannot be had.
    """
    settings = recipe.data.sources[source]
    assert settings.world is not None
    world = Live(name=settings.world.name, options=settings.world.options | {"split": "seen"})
    image_tokenizer = build.open_image_tokenizer(recipe, Ranks())
    opened = build.open_source(
        settings.model_copy(update={"world": world}), recipe, tokenizer, image_tokenizer, str(run)
    )
    documents: list[tuple[Document, Sequence[Any]]] = []
    index = 0
    while len(documents) < count:
        document = opened.document(index, derived_seed("lab held out", index))
        index += 1
        if document is not None and document.images:
            documents.append((document, opened.pictures(document)))
    return HeldOut(documents, image_tokenizer)


@torch.no_grad()
def losses(model: NextStepModel, held: HeldOut) -> MeasuredUnit:
    """`im_loss` and `lm_loss` of every document: means over its image tokens and text positions.

    Args:
        model: in eval mode, fp32.
        held: documents.
    """
    longest = max(len(document) for document, _ in held.documents)
    stage = PretrainStage(
        model.config, held.image_tokenizer, row_length=longest, head_batch_mul=LEVELS
    )
    items: dict[str, dict[str, float]] = {"im_loss": {}, "lm_loss": {}}
    for first in range(0, len(held.documents), ROWS):
        rows = [[one] for one in held.documents[first : first + ROWS]]
        prepared = stage.prepare(stage.batch_of(rows), "cpu")
        batch, hidden = prepared.batch, states(model, prepared)
        assert batch.u is not None and batch.noise is not None
        condition = model.image_condition(hidden[batch.condition_places])
        velocity, target = model.image_velocities(
            condition, prepared.targets, batch.u.flatten(), batch.noise.flatten(0, 1)
        )
        error = (velocity - target).square().mean(-1).view(LEVELS, -1).mean(0)  # [T]
        surprise = -model.text_log_probs(hidden[batch.text_places], batch.text_targets)  # [P]
        for name, values, places in (
            ("im_loss", error, batch.condition_places),
            ("lm_loss", surprise, batch.text_places),
        ):
            items[name] |= _means(values, batch.owners(places), first)
    return MeasuredUnit(items=items)


def _means(values: Tensor, owners: Tensor, first: int) -> dict[str, float]:
    """Mean of the values of each document; documents without any are left out."""
    return {
        f"{first + int(owner):05d}": round(float(values[owners == owner].mean()), 6)
        for owner in owners.unique()
    }


def documents(scale: Scale) -> int:
    """Held-out documents."""
    return 8 if scale.tiny else DOCUMENTS * scale.items


def held_out_of(recipe: Recipe, unit: StudyUnit, model: Path | None = None) -> HeldOut:
    """The held-out documents of a unit's recipe.

    Args:
        recipe: whose sources they come from.
        unit: how many.
        model: folder with the text tokenizer; default the unit's own model.

    Raises:
        NextStepError: when its source or its image tokenizer cannot be had.
    """
    tokenizer = TextTokenizer.from_folder(model or unit.run / MODEL)
    return held_out(recipe, unit.run, tokenizer, documents(unit.scale))


def held_out_loss(recipe: Recipe, unit: StudyUnit) -> Mapping[str, Mapping[str, float]]:
    """`im_loss` and `lm_loss` of a unit's model, item by item."""
    model = load_parts(unit.run / MODEL, keep_dtype=True).model.float()
    return losses(model, held_out_of(recipe, unit)).items
