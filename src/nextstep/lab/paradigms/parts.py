"""The arms of the paradigms study as runs of a recipe: what is trained, written and read again.

RUN/model/            of the continuous arms: a model folder as any other
RUN/model/            of the others: model.safetensors, config.json (shape and kind)

Legend: weights of any shape by their names.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextstep.config import NextStepConfig
from nextstep.engine.metadata import write_file
from nextstep.engine.settings import GenerationSettings
from nextstep.flow.solvers import SolverSettings
from nextstep.image.encode import encode
from nextstep.image.pictures import to_pictures
from nextstep.lab.paradigms.diffusion import DiffusionModel, DiffusionStage, Level
from nextstep.lab.paradigms.discrete import CodedModel, CodedStage, DiscreteModel, DiscreteStage
from nextstep.lab.paradigms.fsq import QuantizerConfig, QuantizerStage, TokenQuantizer
from nextstep.lab.paradigms.sampling import (
    DiffusionSampler,
    DiscreteSampler,
    DrawSettings,
    Paradigm,
    draw,
)
from nextstep.model.nextstep import NextStepModel
from nextstep.recipe.run import MakeParts
from nextstep.recipe.samples import sheet
from nextstep.recipe.sequence_parts import SequenceParts
from nextstep.text.sequence import Picture, Text, build_sequence
from nextstep.utils.files import read_json, write_json, writing

if TYPE_CHECKING:
    from nextstep.recipe.schema import Recipe
    from nextstep.train.parallel import Ranks

Kind = Literal[
    "continuous", "continuous-lm", "transfusion", "transfusion-causal", "causal-diffusion",
    "discrete", "quantizer",
]  # fmt: skip
DIFFUSION: dict[Kind, tuple[Level, bool]] = {
    "transfusion": ("picture", True),
    "transfusion-causal": ("picture", False),
    "causal-diffusion": ("token", False),
}
"""Kind -> what has a noise level of its own, and whether tokens of a picture see each other in both
directions."""
CODED: tuple[Kind, ...] = ("continuous-lm", "discrete")
"""Kinds that need a trained quantizer."""
CODE_WEIGHT = 0.05
"""Of the cross-entropy beside flow matching: in nats it begins at 8, flow matching at 1."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class ParadigmParts(SequenceParts):
    """A run of one arm.

    Args:
        kind: of the arm.
        quantizer: model folder of the trained quantizer, for the kinds that need it.
        recipe, folder, ranks, where: see `SequenceParts`.
    """

    model: Any

    def __init__(
        self,
        kind: Kind,
        quantizer: Path | None,
        recipe: Recipe,
        folder: Path,
        ranks: Ranks,
        where: str,
    ) -> None:
        self.kind, self.quantizer = kind, quantizer
        super().__init__(recipe, folder, ranks, where)

    def _open(self, folder: Path, where: str) -> None:
        """Make stage and batches, and the arm's own model in place of the usual one."""
        super()._open(folder, where)
        if self.kind == "continuous":
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            self.model = fresh_model(self.kind, self.config, self.quantizer).to(self.device)
        self.stage = self._stage()

    def _stage(self) -> Any:
        recipe, kind = self.recipe, self.kind
        if kind == "quantizer":
            return QuantizerStage()
        shared: dict[str, Any] = {
            "image_tokenizer": self.image_tokenizer,
            "row_length": recipe.data.row_length,
            "text_weight": recipe.loss.text,
            "image_weight": recipe.loss.image,
            "compile": recipe.compile,
        }
        if kind in DIFFUSION:
            level, both = DIFFUSION[kind]
            return DiffusionStage(self.config, level=level, both_directions=both, **shared)
        assert self.quantizer is not None
        quantizer = load_quantizer(self.quantizer)
        if kind == "discrete":
            return DiscreteStage(self.config, quantizer, head_batch_mul=1, **shared)
        shared |= {
            "head_batch_mul": recipe.loss.head_batch_mul,
            "context_noise": self.stage.context_noise,
        }
        return CodedStage(self.config, quantizer, CODE_WEIGHT, **shared)

    def save(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write a model folder with these whole weights."""
        if self.kind in ("continuous", "continuous-lm"):
            # The softmax of codes served its loss alone.
            own = {n: w for n, w in weights.items() if not n.startswith("image_code_head.")}
            super().save(own, folder)
            return
        folder.mkdir(parents=True)
        told: dict[str, Any] = {"kind": self.kind, "model": self.config.to_dict()}
        if self.kind == "quantizer":
            told["quantizer"] = asdict(self.model.config)
        write_json(folder / CONFIG, told)
        tied = self.config.tie_word_embeddings
        kept = {n: w.contiguous() for n, w in weights.items() if not (tied and n == TIED)}
        with writing(folder / WEIGHTS) as scratch:
            save_file(kept, scratch)

    def draw(self, weights: dict[str, Tensor], path: Path) -> None:
        """Draw the recipe's prompts with these whole weights, as one PNG."""
        if self.kind in ("continuous", "continuous-lm"):
            own = {n: w for n, w in weights.items() if not n.startswith("image_code_head.")}
            super().draw(own, path)
            return
        asked = self.recipe.samples
        assert asked is not None
        settings = GenerationSettings().with_values(**asked.settings)
        grid = asked.height // TOKEN_PIXELS, asked.width // TOKEN_PIXELS
        target, encode_text = Picture(grid), self.text_tokenizer
        prompts = [build_sequence([Text(p), target], encode_text).prompt() for p in asked.prompts]
        tokens, _ = draw(
            sampler(self.kind, self.config, weights, self.quantizer),
            [(prompt, []) for prompt in prompts],
            (build_sequence([target], encode_text).prompt(), []),
            [(asked.seed, number) for number in range(len(prompts))],
            DrawSettings(grid, SolverSettings("ab2", settings.steps), settings.guidance),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = to_pictures(self.image_tokenizer.decode_tokens(tokens, grid))
        write_file(path, encode(sheet(pictures)))


TOKEN_PIXELS = 16
"""Side of an image token in pixels."""
TIED = "lm_head.weight"
"""The embedding under another name, where a config ties them."""


def parts_of(kind: Kind, quantizer: Path | None = None) -> MakeParts:
    """For `run_recipe`: makes the parts of an arm of this kind."""
    return functools.partial(ParadigmParts, kind, quantizer)


def network(kind: Kind, config: NextStepConfig, codes: int) -> nn.Module:
    """The model of a kind, its weights not made."""
    if kind in DIFFUSION:
        return DiffusionModel(config)
    if kind == "discrete":
        return DiscreteModel(config, codes)
    if kind == "quantizer":
        return TokenQuantizer(QuantizerConfig(config.token_size))
    if kind == "continuous":
        return NextStepModel(config)
    return CodedModel(config, codes)


def fresh_model(kind: Kind, config: NextStepConfig, quantizer: Path | None) -> nn.Module:
    """The model of a kind with fresh weights, drawn from torch's generator."""
    codes = load_quantizer(quantizer).fsq.codes if quantizer is not None else 0
    model = network(kind, config, codes)
    if not isinstance(model, TokenQuantizer):
        model.reset_parameters()  # type: ignore[operator]
    return model


def load_quantizer(folder: Path) -> TokenQuantizer:
    """The quantizer that a run wrote, ready to give codes.

    Raises:
        ModelFileError: when it cannot be read.
    """
    told = read_json(folder / CONFIG)["quantizer"]
    model = TokenQuantizer(QuantizerConfig(**(told | {"levels": tuple(told["levels"])})))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval().requires_grad_(False)


def load_paradigm(folder: Path, quantizer: Path | None = None) -> Paradigm:
    """The sampler of an arm that a run wrote.

    Args:
        folder: model folder of the run.
        quantizer: that of the quantizer, for discrete tokens.

    Raises:
        ModelFileError: when it cannot be read.
    """
    told = read_json(folder / CONFIG)
    config = NextStepConfig.from_dict(told["model"])
    return sampler(told["kind"], config, load_file(folder / WEIGHTS), quantizer)


def sampler(
    kind: Kind, config: NextStepConfig, weights: dict[str, Tensor], quantizer: Path | None
) -> Paradigm:
    """The sampler of a kind that the product's engine does not draw with.

    Args:
        kind: of diffusion or of discrete tokens.
        config, weights: of its model.
        quantizer: see `load_paradigm`.
    """
    codes = load_quantizer(quantizer) if quantizer is not None else None
    model = network(kind, config, codes.fsq.codes if codes else 0)
    if config.tie_word_embeddings:
        weights = weights | {TIED: weights["embed_tokens.weight"]}
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)
    if isinstance(model, DiffusionModel):
        return DiffusionSampler(model, *DIFFUSION[kind])
    assert isinstance(model, DiscreteModel) and codes is not None
    return DiscreteSampler(model, codes)
