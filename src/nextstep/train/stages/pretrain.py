"""Stage `pretrain`: cross-entropy on text, flow matching on image tokens.

Total = text weight * CE + image weight * FM (arXiv 2508.10711 table 1: 0.01 and 1). Stages `anneal`
and `sft` are the same with other data, rates and lengths, so only their recipes differ.

Legend: B rows, S positions, E hidden size; T text positions with a loss, M image tokens with a
loss, D values per token.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from nextstep.config import NextStepConfig
from nextstep.data.batch import ContextNoise, Picture, SequenceBatch, pack_rows
from nextstep.data.documents import Document
from nextstep.model.nextstep import NextStepModel
from nextstep.model.packed_attention import AttentionKind, Documents
from nextstep.train.flops import Work, train_flops
from nextstep.train.parallel import is_sharded
from nextstep.train.stages.encoding import PictureEncoder
from nextstep.vae.latents import token_norm
from nextstep.vae.tokenizer import ImageTokenizer


@dataclass(frozen=True)
class PreparedBatch:
    """A batch on its device with all that needs no gradient.

    Attributes:
        batch: with every image token encoded.
        documents: where attention keeps to.
        context: [M, D] image tokens as the backbone reads them.
        targets: [T, D] trained tokens, clean.
    """

    batch: SequenceBatch
    documents: Documents
    context: Tensor
    targets: Tensor


def states(model: NextStepModel, batch: PreparedBatch) -> Tensor:
    """Hidden states of all positions, [B*S, E]."""
    packed = batch.batch
    embeddings = model.embed(packed.ids, batch.context, packed.coordinates, packed.image_places)
    hidden = model.hidden(embeddings, packed.positions, documents=batch.documents)
    return hidden.flatten(0, 1)


class PretrainStage:
    """Losses of packed rows of text and pictures; satisfies `nextstep.train.contracts.Stage`.

    The parts are `lm_loss`, over positions whose next id is text, and `im_loss`, over trained image
    tokens, each of them the mean over its noise levels.

    Args:
        config: of the model.
        image_tokenizer: encodes pictures that come as pixels; not needed for image tokens.
        row_length: positions of a row that `batch_of` packs.
        text_weight, image_weight: of the parts; default the config's.
        head_batch_mul: noise levels per token; default the config's.
        context_noise: see `pack_rows`.
        attention: of attention; see `Documents`.
        compile: run layers and flow head through compiled code, which takes some minutes at first;
            a sharded model runs as it is.
    """

    def __init__(
        self,
        config: NextStepConfig,
        image_tokenizer: ImageTokenizer | None = None,
        *,
        row_length: int = 1024,
        text_weight: float | None = None,
        image_weight: float | None = None,
        head_batch_mul: int | None = None,
        context_noise: ContextNoise | float = 0.0,
        attention: AttentionKind | None = None,
        compile: bool = False,
    ) -> None:
        self.config, self.compile = config, compile
        self.encoder = PictureEncoder(image_tokenizer) if image_tokenizer else None
        # Image tokens that come without a tokenizer are normalised, as published.
        self.normalise = image_tokenizer is None or image_tokenizer.config.token_norm
        self.row_length, self.context_noise, self.attention = row_length, context_noise, attention
        self.head_batch_mul = head_batch_mul or config.fm_head_batch_mul
        self.loss_weights = {
            "lm_loss": config.lm_loss_weight if text_weight is None else text_weight,
            "im_loss": config.im_loss_weight if image_weight is None else image_weight,
        }

    def batch_of(self, rows: Seq[Seq[tuple[Document, Seq[Picture]]]]) -> SequenceBatch:
        """Pack rows of documents and their pictures; see `pack_rows`."""
        return self.packer(rows)

    @property
    def packer(self) -> Callable[[Seq[Seq[tuple[Document, Seq[Picture]]]]], SequenceBatch]:
        """What `batch_of` calls: small, so that it can be sent to other processes."""
        return partial(
            pack_rows,
            row_length=self.row_length,
            pad_id=self.config.pad_id,
            head_batch_mul=self.head_batch_mul,
            context_noise=self.context_noise,
            token_size=self.config.token_size,
        )

    @torch.no_grad()
    def prepare(self, batch: SequenceBatch, device: torch.device | str) -> PreparedBatch:
        """Encode pixels, add context noise, move to the device.

        Raises:
            ValueError: when there are pixels but no image tokenizer, or no draws.
        """
        if batch.u is None or batch.noise is None:
            raise ValueError("this batch has no draws to train with; make it with pack_rows")
        documents = Documents(batch.documents, device, self.attention)
        batch = self._encoded(batch.to(device))
        targets = batch.image_tokens[batch.target_rows]
        context = batch.image_tokens
        if batch.context_shift is not None:
            noisy = targets + batch.context_shift
            if self.normalise:
                noisy = token_norm(noisy)
            context = context.index_copy(0, batch.target_rows, noisy)
        return PreparedBatch(batch, documents, context, targets)

    def _encoded(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch with image tokens in place of pixels."""
        if not batch.pictures:
            return batch
        if self.encoder is None:
            raise ValueError("the pictures are pixels, so the stage needs an image tokenizer")
        tokens = batch.image_tokens.clone()
        for group in batch.pictures:
            tokens[group.rows] = self.encoder(group.pixels).to(tokens)
        return replace(batch, image_tokens=tokens, pictures=())

    def counts(self, batch: PreparedBatch) -> dict[str, float]:
        """Positions whose next id is text, and trained image tokens."""
        return {"lm_loss": len(batch.batch.text_places), "im_loss": len(batch.targets)}

    def losses(self, model: nn.Module, batch: PreparedBatch) -> dict[str, Tensor]:
        """Sums over what `counts` counts."""
        assert isinstance(model, NextStepModel)
        if self.compile and not is_sharded(model):
            model.compile_training()
        packed, hidden = batch.batch, self.hidden(model, batch)
        losses = {"lm_loss": model.text_loss_sum(hidden[packed.text_places], packed.text_targets)}
        if len(batch.targets):
            losses |= self.image_losses(model, batch, hidden)
        return losses

    def hidden(self, model: NextStepModel, batch: PreparedBatch) -> Tensor:
        """States of all positions, [B*S, E]."""
        return states(model, batch)

    def image_losses(
        self, model: NextStepModel, batch: PreparedBatch, hidden: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the learned image tokens, of which there are some."""
        packed = batch.batch
        assert packed.u is not None and packed.noise is not None
        condition = model.image_condition(hidden[packed.condition_places])
        draws = packed.u.flatten(), packed.noise.flatten(0, 1)
        return {"im_loss": model.image_loss_sum(condition, batch.targets, *draws)}

    def flops(self, batch: PreparedBatch) -> float:
        """Operations of forward and backward, padding not counted."""
        return train_flops(self.config, self.work(batch))

    def work(self, batch: PreparedBatch) -> Work:
        """What passes the model."""
        packed = batch.batch
        return Work(
            positions=packed.tokens,
            looked_at=batch.documents.looked_at,
            text_targets=len(packed.text_places),
            image_inputs=len(packed.image_places),
            image_targets=len(batch.targets),
            levels=0 if packed.u is None else len(packed.u),
        )
