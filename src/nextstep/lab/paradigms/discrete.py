"""Discrete autoregression: image tokens are codes, read by an embedding and learned by softmax.

So do Chameleon (arXiv 2405.09818) and Emu3 (arXiv 2409.18869): one cross-entropy for text and
pictures. The codes come from `fsq`; where a picture begins and ends is known from the sequence, so
they have a softmax of their own beside that of the text, with ids of their own.

`CodedStage` is ours with the same cross-entropy beside flow matching: what a language-model loss
on image tokens changes while the tokens stay continuous.

Legend: B rows, S positions, M image tokens of all rows, T learned ones of them, D values per token,
E hidden size, C codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextstep.config import NextStepConfig
from nextstep.data.batch import SequenceBatch
from nextstep.lab.paradigms.fsq import TokenQuantizer, by_grid
from nextstep.model.backbone import embedding
from nextstep.model.nextstep import NextStepModel
from nextstep.train.flops import TRAINING, Work
from nextstep.train.stages.pretrain import PreparedBatch, PretrainStage


class DiscreteModel(NextStepModel):
    """The backbone with an embedding and a softmax of codes in place of projector and flow head."""

    def __init__(self, config: NextStepConfig, codes: int) -> None:
        super().__init__(config)
        del self.image_in_projector, self.image_out_projector, self.image_head
        self.image_code_embed = embedding(codes, config.hidden_size)
        self.image_code_head = nn.Linear(config.hidden_size, codes, bias=False)

    def reset_parameters(self) -> None:
        """Fresh weights: N(0, initializer_range) with zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embed_image(self, tokens: Tensor, coordinates: Tensor | None = None) -> Tensor:
        """Input embeddings [M, E] of codes [M]."""
        return self.add_positions(self.image_code_embed(tokens), coordinates)

    def code_logits(self, hidden: Tensor) -> Tensor:
        """States [..., E] of the positions before -> logits [..., C] of the next code."""
        return self.image_code_head(hidden)


class CodedModel(NextStepModel):
    """The continuous model with a softmax of codes beside its flow head, for its loss alone."""

    def __init__(self, config: NextStepConfig, codes: int) -> None:
        super().__init__(config)
        self.image_code_head = nn.Linear(config.hidden_size, codes, bias=False)

    def code_logits(self, hidden: Tensor) -> Tensor:
        """States [..., E] of the positions before -> logits [..., C] of the next code."""
        return self.image_code_head(hidden)


@dataclass(frozen=True)
class CodedBatch(PreparedBatch):
    """A prepared batch with the codes of its learned image tokens.

    Attributes:
        codes: [T].
    """

    codes: Tensor


class CodedStage(PretrainStage):
    """Ours, and the cross-entropy of the next image token's code as a third part, `code_loss`.

    Args:
        config: of the model.
        quantizer: trained; gives the codes.
        code_weight: of the third part.
        options: see `PretrainStage`.
    """

    def __init__(
        self, config: NextStepConfig, quantizer: TokenQuantizer, code_weight: float, **options: Any
    ) -> None:
        super().__init__(config, **options)
        self.quantizer = quantizer.eval().requires_grad_(False)
        self.loss_weights |= {"code_loss": code_weight}

    @torch.no_grad()
    def prepare(self, batch: SequenceBatch, device: torch.device | str) -> CodedBatch:
        """As for `PretrainStage`, with codes."""
        made = super().prepare(batch, device)
        codes = codes_of(self.quantizer.to(device), made.batch)[made.batch.target_rows]
        return CodedBatch(made.batch, made.documents, made.context, made.targets, codes)

    def counts(self, batch: PreparedBatch) -> dict[str, float]:
        """Positions whose next id is text, and learned image tokens, twice."""
        return super().counts(batch) | {"code_loss": len(batch.targets)}

    def image_losses(
        self, model: NextStepModel, batch: PreparedBatch, hidden: Tensor
    ) -> dict[str, Tensor]:
        """As for `PretrainStage`, and the codes'."""
        assert isinstance(model, CodedModel) and isinstance(batch, CodedBatch)
        return super().image_losses(model, batch, hidden) | {
            "code_loss": code_loss(model, hidden[batch.batch.condition_places], batch.codes)
        }

    def flops(self, batch: PreparedBatch) -> float:
        """Operations of forward and backward, those of the further softmax included."""
        return super().flops(batch) + softmax_flops(
            self.config, self.quantizer.fsq.codes, len(batch.targets)
        )


class DiscreteStage(PretrainStage):
    """Losses of packed rows whose image tokens are codes.

    `im_loss` is the cross-entropy of the next code, in nats.

    Args:
        config: of the model.
        quantizer: trained; gives the codes.
        options: see `PretrainStage`; noise on the context has no meaning here.
    """

    def __init__(self, config: NextStepConfig, quantizer: TokenQuantizer, **options: Any) -> None:
        super().__init__(config, **options)
        self.quantizer = quantizer.eval().requires_grad_(False)

    @torch.no_grad()
    def prepare(self, batch: SequenceBatch, device: torch.device | str) -> PreparedBatch:
        """As for `PretrainStage`; context and targets are codes, [M] and [T]."""
        made = super().prepare(batch, device)
        codes = codes_of(self.quantizer.to(device), made.batch)
        return PreparedBatch(made.batch, made.documents, codes, codes[made.batch.target_rows])

    def image_losses(
        self, model: NextStepModel, batch: PreparedBatch, hidden: Tensor
    ) -> dict[str, Tensor]:
        """The cross-entropy of the codes."""
        assert isinstance(model, DiscreteModel)
        return {"im_loss": code_loss(model, hidden[batch.batch.condition_places], batch.targets)}

    def flops(self, batch: PreparedBatch) -> float:
        """Operations of forward and backward, those of the softmax included."""
        return super().flops(batch) + softmax_flops(
            self.config, self.quantizer.fsq.codes, len(batch.targets)
        )

    def work(self, batch: PreparedBatch) -> Work:
        """What passes the model without projector and flow head."""
        return replace(super().work(batch), image_inputs=0.0, image_targets=0.0)


def codes_of(quantizer: TokenQuantizer, batch: SequenceBatch) -> Tensor:
    """Codes [M] of a batch's image tokens, picture by picture."""
    codes = torch.zeros(len(batch.image_tokens), dtype=torch.long, device=batch.ids.device)
    places = torch.arange(len(codes), device=codes.device)[:, None]
    for grid, own in by_grid(places, batch.coordinates).items():
        rows = own[..., 0]
        codes[rows] = quantizer.encode(batch.image_tokens[rows], grid)
    return codes


def code_loss(model: DiscreteModel | CodedModel, hidden: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy, fp32: sum over tokens, from the states [T, E] before them and codes [T]."""
    return F.cross_entropy(model.code_logits(hidden).float(), codes, reduction="sum")


def softmax_flops(config: NextStepConfig, codes: int, targets: int) -> float:
    """Operations of forward and backward of the logits of so many targets."""
    return float(TRAINING * 2 * targets * config.hidden_size * codes)
