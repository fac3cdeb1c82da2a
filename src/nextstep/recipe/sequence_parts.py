"""The stages on sequences of a recipe: model, stage, batches, and how the result is written.

Legend: weights of any shape by their names.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nextstep.data.batch import ContextNoise
from nextstep.engine.pretrained import Parts, check_fit, save_parts
from nextstep.errors import NextStepError
from nextstep.model.adapter_config import AdapterConfig
from nextstep.model.lora import add_adapter, folded_weights
from nextstep.model.nextstep import NextStepModel
from nextstep.recipe import build
from nextstep.recipe.samples import defaults_of, draw_sheet, fitting
from nextstep.recipe.shapes import check_pictures, model_config
from nextstep.recipe.weights import build_model
from nextstep.train.parallel import is_sharded

if TYPE_CHECKING:
    from nextstep.recipe.probes import Probe
    from nextstep.recipe.schema import Recipe
    from nextstep.text.vocabulary import Vocabulary
    from nextstep.train.parallel import Ranks
    from nextstep.train.trainer import Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class SequenceParts:
    """A run of pretrain, anneal or sft.

    Args:
        recipe: of the stage.
        folder: of the run, for a text tokenizer that was made for it.
        ranks: this process among all.
        where: name of the recipe file, for complaints.

    Raises:
        NextStepError: when a part cannot be had or does not fit.
    """

    stage: Any
    batches: Any

    def __init__(self, recipe: Recipe, folder: Path, ranks: Ranks, where: str) -> None:
        self.recipe, self.device, self.ranks = recipe, ranks.device, ranks
        self.config = model_config(recipe, fetch=True)
        check_pictures(recipe, self.config)
        self.text_tokenizer = build.open_text_tokenizer(recipe, folder)
        self.image_tokenizer = build.open_image_tokenizer(recipe, ranks)
        check_fit(self.config, self.image_tokenizer, self.text_tokenizer)
        self.model, self.mesh = build_model(
            recipe, self.config, ranks, self.text_tokenizer if recipe.train_text_tokenizer else None
        )
        self.probe: Probe | None = None
        self.scaling = self._adapt()
        self._open(folder, where)

    def _open(self, folder: Path, where: str) -> None:
        """Make stage and batches."""
        from nextstep.train.stages.pretrain import PretrainStage

        recipe = self.recipe
        self.stage = PretrainStage(
            self.config,
            self.image_tokenizer,
            row_length=recipe.data.row_length,
            text_weight=recipe.loss.text,
            image_weight=recipe.loss.image,
            head_batch_mul=recipe.loss.head_batch_mul,
            context_noise=ContextNoise(
                recipe.loss.context_noise,
                recipe.loss.context_noise_picture_prob,
                recipe.loss.context_noise_picture_std,
            ),
            compile=recipe.compile,
        )
        self.batches = build.open_loader(
            recipe, self.text_tokenizer, self.image_tokenizer, self.stage.packer, self.ranks,
            where,
        )  # fmt: skip

    def _adapt(self) -> float:
        """Put the recipe's adapter into the model; how much it counts, 0 without one.

        Raises:
            NextStepError: when the model is split over ranks.
        """
        lora = self.recipe.lora
        if lora is None:
            return 0.0
        if is_sharded(self.model):
            raise NextStepError(
                "an adapter is trained on whole copies of the model; set parallel.replicas to the "
                "number of ranks"
            )
        shape = AdapterConfig(lora.rank, lora.alpha, parts=tuple(lora.parts))
        add_adapter(self.model, shape, self.recipe.seed)
        return shape.scaling

    def attach(self, trainer: Trainer) -> None:
        """Take notice of the trainer before its first step."""

    def save(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write a model folder with these whole weights."""
        whole = self._whole(weights, DTYPES[self.recipe.saving.dtype])
        save_parts(whole._replace(vocabulary=self.vocabulary), folder)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What the recipe teaches to draw; None when not all of it comes from the world."""
        from nextstep.recipe.live import open_live
        from nextstep.world.words import vocabulary_of

        sources = self.recipe.data.sources
        if any(source.world is None for source in sources):
            return None
        return vocabulary_of(open_live(one, self.text_tokenizer, "data") for one in sources)

    def draw(self, weights: dict[str, Tensor], path: Path) -> None:
        """Draw the recipe's prompts with these whole weights, as one PNG."""
        on_gpu = self.device.type != "cpu"
        parts = self._whole(weights, torch.bfloat16 if on_gpu else torch.float32)
        parts.model.to(self.device)
        draw_sheet(parts, self.recipe, path)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Figures of the recipe's probes of this model, in eval mode."""
        from nextstep.recipe.probes import Probe

        assert self.recipe.probes is not None and isinstance(model, NextStepModel)
        if self.probe is None:
            pixels = max(self.recipe.data.areas)
            self.probe = Probe(
                self.recipe.probes, self.config, self.image_tokenizer, self.text_tokenizer, pixels
            )
        with self.autocast():
            return self.probe(model)

    def autocast(self) -> torch.autocast:
        """The precision that the run computes in."""
        half = self.recipe.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def close(self) -> None:
        """Stop the threads that make batches."""
        self.batches.close()

    def _whole(self, weights: dict[str, Tensor], dtype: torch.dtype) -> Parts:
        """A model of its own with these weights, and the tokenizers beside it."""
        with torch.device("meta"):
            model = NextStepModel(self.config)
        if self.scaling:
            weights = folded_weights(weights, self.scaling)
        given = {name: tensor.to(dtype) for name, tensor in weights.items()}
        if self.config.tie_word_embeddings:
            given.setdefault("lm_head.weight", given["embed_tokens.weight"])
        model.load_state_dict(given, assign=True)
        if self.config.tie_word_embeddings:
            model.lm_head.weight = model.embed_tokens.weight
        model.eval().requires_grad_(False)
        defaults = fitting(defaults_of(self.recipe), self.image_tokenizer)
        return Parts(model, self.image_tokenizer, self.text_tokenizer, defaults, "")
