"""Where a run's first weights come from, one tensor at a time.

So a process of many never holds more than its own rows of a model and one whole tensor, unless the
model is fresh from top to bottom.

Legend: weights of any shape by their names, read one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nextstep.config import NextStepConfig
from nextstep.errors import ModelFileError
from nextstep.model.checkpoints import IMAGE_PARTS, TOLERATED, read_tensors
from nextstep.model.flow_head import FlowHead
from nextstep.model.folder import find_folder, read_model_config
from nextstep.model.growth import carried_vocabulary, grown
from nextstep.model.nextstep import NextStepModel
from nextstep.text.tokenizer import TextTokenizer
from nextstep.train.parallel import build_mesh, fill, shard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from nextstep.recipe.schema import Recipe
    from nextstep.train.parallel import Ranks

POSITIONS = ("image_row_embed.", "image_column_embed.")
"""Parts that a model without learned positions lacks, and may be given."""


FLOW_MAP = ("image_head.net.span_embed.", "image_head.net.guidance_embed.")
"""Parts that a head lacks that has not learned to jump, and may be given."""


HEAD = "image_head."
"""The flow head, which a recipe may begin afresh."""


class ImageParts(nn.Module):
    """Projectors, learned positions and flow head alone, under the names of the whole model."""

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__()
        E, side = config.hidden_size, config.image_position_side
        self.image_in_projector = nn.Linear(config.token_size, E)
        if side:
            self.image_row_embed = nn.Embedding(side, E)
            self.image_column_embed = nn.Embedding(side, E)
        self.image_out_projector = nn.Linear(E, E)
        self.image_head = FlowHead(config)

    def reset_parameters(self, std: float) -> None:
        """As `NextStepModel.reset_parameters` does."""
        for name, parameter in self.named_parameters():
            if not name.startswith("image_head."):
                with torch.no_grad():
                    parameter.normal_(std=std) if parameter.ndim > 1 else parameter.zero_()
        self.image_head.reset_parameters()


def first_weights(
    recipe: Recipe, config: NextStepConfig, tokenizer: TextTokenizer | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Names and fp32 tensors that the model of a recipe starts from.

    Args:
        recipe: of a stage on sequences.
        config: of the model.
        tokenizer: of the text, for a model that grows and gets another one.

    Raises:
        ModelFileError: when a folder cannot be found, is damaged, or cannot grow to the config.
    """
    model = recipe.model
    assert model is not None
    source = model.folder or model.language_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if source is None or model.grow:
            whole = NextStepModel(config)
            whole.reset_parameters()
            made = whole.named_parameters()
            yield from _grown(source, made, config, tokenizer) if source else made
            return
        fresh = ImageParts(config)
        fresh.reset_parameters(config.initializer_range)
    given = set()
    for name, tensor in read_tensors(find_folder(source)):
        tied = config.tie_word_embeddings and name == "lm_head.weight"
        left_out = model.fresh_head and name.startswith(HEAD)
        if not tied and not left_out and not name.endswith(TOLERATED):
            given.add(name)
            yield name, tensor.float()
    may_lack = (*POSITIONS, *FLOW_MAP, *(IMAGE_PARTS if model.language_model else ()))
    may_lack = (*may_lack, *((HEAD,) if model.fresh_head else ()))
    for name, tensor in fresh.named_parameters():
        if name not in given and name.startswith(may_lack):
            yield name, tensor.detach()


def _grown(
    source: str,
    fresh: Iterator[tuple[str, Tensor]],
    config: NextStepConfig,
    tokenizer: TextTokenizer | None,
) -> Iterator[tuple[str, Tensor]]:
    """The weights of a folder in a larger model, for another text tokenizer if one is given."""
    folder = find_folder(source)

    def kept() -> Iterator[tuple[str, Tensor]]:
        old = TextTokenizer.from_folder(folder)
        for name, tensor in read_tensors(folder):
            if tokenizer is not None and name in ("embed_tokens.weight", "lm_head.weight"):
                yield name, carried_vocabulary(tensor, old, tokenizer)
            else:
                yield name, tensor

    return grown(kept(), fresh, read_model_config(folder), config)


def build_model(
    recipe: Recipe,
    config: NextStepConfig,
    ranks: Ranks,
    tokenizer: TextTokenizer | None = None,
) -> tuple[NextStepModel, DeviceMesh | None]:
    """The model with its first weights, fp32, on the device; sharded where there are many ranks.

    Args:
        recipe: of a stage on sequences.
        config: of the model.
        ranks: this process among all.
        tokenizer: see `first_weights`.

    Raises:
        ModelFileError: when what it starts from does not fit.
    """
    with torch.device("meta"):
        model = NextStepModel(config)
    mesh = build_mesh(ranks, recipe.parallel.replicas)
    if mesh is not None:
        shard(model, mesh, recipe.precision, recipe.parallel.reshard_after_forward)
    missing = fill(model, first_weights(recipe, config, tokenizer), ranks.device)
    if missing:
        assert recipe.model is not None
        raise ModelFileError(
            f"{recipe.model.folder or recipe.model.language_model} lacks {len(missing)} "
            f"tensor(s) of the model: {', '.join(missing[:4])}"
        )
    return model, mesh
