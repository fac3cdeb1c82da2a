"""Diffusion inside the sequence: the backbone reads noised image tokens and finds their velocity.

Two ways to noise a picture, on the same backbone and flow head:

    picture   one noise level for all tokens of a picture; they see each other in both directions
              (Transfusion, Zhou et al. 2024, arXiv 2408.11039), or causally, for comparison
    token     a level for every token, some of them clean, attention plainly causal (causal
              diffusion: Chen et al. 2024, arXiv 2407.01392; Deng et al. 2024, arXiv 2412.12095)

In autoregression the state *before* a token is the condition of the flow head, which alone sees
the noised token. Here the noised token itself goes through the backbone with its noise level, and
the state *at* it is the condition.

Legend: B rows, S positions, M image tokens of all rows, T learned and noised ones of them,
D values per token, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nextstep.config import NextStepConfig
from nextstep.data.batch import Picture, SequenceBatch, pack_rows
from nextstep.data.documents import Document
from nextstep.flow.path import interpolate, logit_normal_time
from nextstep.model.flow_head import TimeEmbedding
from nextstep.model.nextstep import NextStepModel
from nextstep.model.packed_attention import AttentionKind, Documents
from nextstep.train.flops import Work
from nextstep.train.stages.pretrain import PreparedBatch, PretrainStage
from nextstep.vae.tokenizer import ImageTokenizer

Level = Literal["picture", "token"]
CLEAN = 1.0
"""Time of a token without noise."""
DRAWS = 3
"""Normal draws of every token: of its noise level, of its picture's share of clean tokens, and of
whether it is one of them."""


class DiffusionModel(NextStepModel):
    """The model with embedded noise levels beside embedded image tokens."""

    def __init__(self, config: NextStepConfig) -> None:
        super().__init__(config)
        self.image_time_embed = TimeEmbedding(config.hidden_size)

    def embed_noised(
        self, tokens: Tensor, times: Tensor, coordinates: Tensor | None = None
    ) -> Tensor:
        """Input embeddings [M, E] of image tokens [M, D] at times [M]; 1 is clean."""
        return self.embed_image(tokens, coordinates) + self.image_time_embed(times)

    def velocity(self, x: Tensor, times: Tensor, hidden: Tensor) -> Tensor:
        """Velocities [M, D] of tokens x [M, D] at times [M], from the states [M, E] at them."""
        return self.image_head(x, times, self.image_condition(hidden))


@dataclass(frozen=True)
class NoisedBatch(PreparedBatch):
    """A prepared batch whose `context` is noised and whose `targets` are the noised tokens, clean.

    Attributes:
        times: [M] of every image token.
        places: [T] flat indices of the noised tokens.
        u, noise: [T] and [T, D], what they were noised with.
    """

    times: Tensor
    places: Tensor
    u: Tensor
    noise: Tensor


class DiffusionStage(PretrainStage):
    """Losses of packed rows whose learned pictures are noised where the backbone reads them.

    Args:
        config: of the model.
        image_tokenizer: see `PretrainStage`.
        level: what has a noise level of its own.
        both_directions: tokens of one picture see each other in both directions.
        row_length, text_weight, image_weight, attention, compile: see `PretrainStage`.

    Raises:
        ValueError: for levels by token that see each other in both directions, which nothing
            could sample one after another.
    """

    def __init__(
        self,
        config: NextStepConfig,
        image_tokenizer: ImageTokenizer | None = None,
        *,
        level: Level = "picture",
        both_directions: bool = True,
        row_length: int = 1024,
        text_weight: float | None = None,
        image_weight: float | None = None,
        attention: AttentionKind | None = None,
        compile: bool = False,
    ) -> None:
        if level == "token" and both_directions:
            raise ValueError("tokens with levels of their own are sampled one by one, causally")
        super().__init__(
            config,
            image_tokenizer,
            row_length=row_length,
            text_weight=text_weight,
            image_weight=image_weight,
            attention=attention,
            compile=compile,
        )
        self.level, self.both_directions = level, both_directions

    def batch_of(self, rows: Seq[Seq[tuple[Document, Seq[Picture]]]]) -> SequenceBatch:
        """Pack rows of documents; every token has `DRAWS` draws."""
        return pack_rows(
            rows, self.row_length, self.config.pad_id, DRAWS, 0.0, self.config.token_size
        )

    @torch.no_grad()
    def prepare(self, batch: SequenceBatch, device: torch.device | str) -> NoisedBatch:
        """Encode pixels, noise the learned pictures, move to the device.

        Raises:
            ValueError: when there are pixels but no image tokenizer, or no draws.
        """
        if batch.u is None or batch.noise is None or len(batch.u) < DRAWS:
            raise ValueError("this batch lacks draws; make it with the stage's own batch_of")
        pictures = picture_numbers(batch) if self.both_directions else None
        documents = Documents(batch.documents, device, self.attention, pictures)
        batch = self._encoded(batch.to(device))
        assert batch.u is not None and batch.noise is not None
        owners = picture_of_tokens(batch.coordinates)[batch.target_rows]  # [T]
        first = torch.searchsorted(owners, owners)  # first learned token of its picture
        if self.level == "picture":
            u, noised = batch.u[0, first], torch.ones_like(owners, dtype=torch.bool)
        else:
            u, noised = batch.u[0], _uniform(batch.u[2]) >= _uniform(batch.u[1, first])
        rows, u, noise = batch.target_rows[noised], u[noised], batch.noise[0, noised]
        times = torch.full((len(batch.image_tokens),), CLEAN, device=u.device)
        times[rows] = logit_normal_time(u)
        targets = batch.image_tokens[rows]
        context = batch.image_tokens.index_copy(
            0, rows, interpolate(targets, noise, times[rows, None])
        )
        batch = replace(batch, u=None, noise=None)
        return NoisedBatch(
            batch, documents, context, targets, times, batch.image_places[rows], u, noise
        )

    def hidden(self, model: NextStepModel, batch: PreparedBatch) -> Tensor:
        """States of all positions, [B*S, E]."""
        assert isinstance(model, DiffusionModel) and isinstance(batch, NoisedBatch)
        return noised_states(model, batch)

    def image_losses(
        self, model: NextStepModel, batch: PreparedBatch, hidden: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the noised tokens, each at its own level."""
        assert isinstance(batch, NoisedBatch)
        condition = model.image_condition(hidden[batch.places])
        return {"im_loss": model.image_loss_sum(condition, batch.targets, batch.u, batch.noise)}

    def work(self, batch: PreparedBatch) -> Work:
        """What passes the model; one noise level a token."""
        return replace(super().work(batch), levels=1.0)


def noised_states(model: DiffusionModel, batch: NoisedBatch) -> Tensor:
    """Hidden states of all positions, [B*S, E]."""
    packed, projected = batch.batch, None
    if len(batch.context):
        projected = model.embed_noised(batch.context, batch.times, packed.coordinates)
    embeddings = model.embed_with(packed.ids, projected, packed.image_places)
    return model.hidden(embeddings, packed.positions, documents=batch.documents).flatten(0, 1)


def picture_of_tokens(coordinates: Tensor) -> Tensor:
    """Number of the picture of every image token, [M], from rows and columns [M, 2]."""
    return (coordinates == 0).all(-1).long().cumsum(0) - 1


def picture_numbers(batch: SequenceBatch) -> Tensor:
    """[B, S] number of the picture at every position, -1 where there is none."""
    found = torch.full_like(batch.ids, -1).flatten()
    found[batch.image_places] = picture_of_tokens(batch.coordinates)
    return found.view_as(batch.ids)


def _uniform(u: Tensor) -> Tensor:
    """Standard normal draws as uniform ones in (0, 1)."""
    return torch.special.ndtr(u)
