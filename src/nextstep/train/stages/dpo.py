"""Stage `dpo`: winners are preferred to losers, in pictures and in the text before them.

A row holds pairs, the winner before the loser; both meet the same times and noise, because both
come with one seed. What the reference says of a document is its payload, so that the reference
itself is not needed while the stage trains (`rollout.reference` works it out beforehand). The known
fault of the image form is that both errors rise while the loss falls, so the log shows how far
winners and losers moved; `sft` adds the plain loss of the winners, and `safety` holds back the
loser's gradient (see `objectives.preference`).

Legend: Q pairs, K noise levels, T learned image tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nextstep.config import NextStepConfig
from nextstep.data.batch import Picture, SequenceBatch
from nextstep.data.documents import Document
from nextstep.model.nextstep import NextStepModel
from nextstep.train.objectives.preference import (
    safe_loser_scale,
    scaled_gradient,
    text_dpo_loss,
    velocity_dpo_loss,
    velocity_margin,
)
from nextstep.train.stages.by_document import DocumentRows, OwnedBatch, mean_by
from nextstep.train.stages.pretrain import states


@dataclass(frozen=True)
class PreferenceSettings:
    """What the loss is made of.

    Attributes:
        beta: of the image form, for errors that are means over tokens and values.
        image: weight of the image form.
        text: weight of the text form; 0 leaves it out.
        text_beta: of the text form.
        sft: weight of the winners' flow loss.
        safety: factor on the largest safe share of the loser's gradient; 0 always counts it whole.
        levels: noise levels per image token.
    """

    beta: float = 500.0
    image: float = 1.0
    text: float = 0.0
    text_beta: float = 0.1
    sft: float = 0.0
    safety: float = 0.0
    levels: int = 4


@dataclass(frozen=True)
class PairRows:
    """Pairs before they are moved.

    Attributes:
        batch: documents 2q and 2q + 1 are winner and loser of pair q.
        reference: [2Q, 2] mean squared velocity error and log-probability of every document.
    """

    batch: SequenceBatch
    reference: Tensor


@dataclass(frozen=True)
class PairBatch(OwnedBatch):
    """Pairs on their device; see `PairRows`."""

    reference: Tensor = field(kw_only=True)

    @property
    def pairs(self) -> int:
        """Q."""
        return self.documents // 2

    @property
    def with_pictures(self) -> Tensor:
        """Which pairs have image tokens that were sampled, [Q] bool."""
        return self._with(self.token_owners)

    @property
    def with_texts(self) -> Tensor:
        """Which pairs have text that was written, [Q] bool."""
        return self._with(self.text_owners)

    def _with(self, owners: Tensor) -> Tensor:
        return owners.bincount(minlength=self.documents).view(-1, 2).any(1)


class DpoStage:
    """Losses of pairs; satisfies `nextstep.train.contracts.Stage`.

    Besides what is minimised the log shows `winner_change` and `loser_change`, how far their errors
    moved from the reference, and `accuracy`, how often the winner gained on the loser.

    Args:
        config: of the model.
        settings: see `PreferenceSettings`.
    """

    def __init__(self, config: NextStepConfig, settings: PreferenceSettings) -> None:
        self.settings, self.rows = settings, DocumentRows(config, settings.levels)
        self.loss_weights = {
            "dpo_loss": settings.image, "text_dpo_loss": settings.text, "sft_loss": settings.sft,
            "winner_change": 0.0, "loser_change": 0.0, "accuracy": 0.0,
        }  # fmt: skip

    def batch_of(self, rows: Seq[Seq[tuple[Document, Seq[Picture]]]]) -> PairRows:
        """Pack rows of pairs; a document's payload is what the reference says of it, 0 for None."""
        told: list[Any] = [document.payload or (0.0, 0.0) for row in rows for document, _ in row]
        return PairRows(self.rows.pack(rows), torch.tensor(told))

    def prepare(self, rows: PairRows, device: torch.device | str) -> PairBatch:
        """Move pairs to the device."""
        owned = self.rows.prepare(rows.batch, device)
        return PairBatch(
            owned.prepared, owned.token_owners, owned.text_owners,
            reference=rows.reference.to(device),
        )  # fmt: skip

    def counts(self, batch: PairBatch) -> dict[str, float]:
        """Pairs with pictures, and for the text part those with text: answers have no picture."""
        found = dict.fromkeys(self.loss_weights, float(batch.with_pictures.sum()))
        return found | {"text_dpo_loss": float(batch.with_texts.sum())}

    def figures(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """Error and log-probability of every document, [2Q, 2]: what a reference says."""
        look = _Look.at(model, batch, bool(self.settings.text))
        return torch.stack((look.errors, look.log_probs), dim=1)

    def losses(self, model: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        """Sums over pairs."""
        settings = self.settings
        look = _Look.at(model, batch, bool(settings.text))
        winner, loser = look.errors[0::2], look.errors[1::2]
        reference, text_reference = batch.reference.unbind(1)
        if settings.safety and settings.image and len(batch.token_owners):
            scale = safe_loser_scale(*look.products(batch), settings.safety)
            held = scaled_gradient(loser, scale)
        else:
            held = loser
        margin = velocity_margin(winner, held, reference[0::2], reference[1::2])
        change = (look.errors - reference).detach()
        drawn = batch.with_pictures
        out = {
            "dpo_loss": velocity_dpo_loss(margin, settings.beta)[drawn].sum(),
            "sft_loss": winner.sum(),
            "winner_change": change[0::2].sum(),
            "loser_change": change[1::2].sum(),
            "accuracy": (margin.detach() > 0)[drawn].float().sum(),
        }
        if settings.text:
            gain = look.log_probs - text_reference
            text = text_dpo_loss(gain[0::2] - gain[1::2], settings.text_beta)
            out["text_dpo_loss"] = text[batch.with_texts].sum()
        return out


@dataclass(frozen=True)
class _Look:
    """What the model says of a batch.

    Attributes:
        differences: [K, T, D] predicted velocities less what they should be.
        errors: [2Q] mean squares of them.
        log_probs: [2Q] of the texts, summed; 0 when they were not asked for.
    """

    differences: Tensor
    errors: Tensor
    log_probs: Tensor = field(repr=False)

    @classmethod
    def at(cls, model: nn.Module, batch: PairBatch, with_text: bool) -> _Look:
        """One forward pass over a batch of pairs; log-probabilities of texts only if asked."""
        assert isinstance(model, NextStepModel)
        hidden, u = states(model, batch.prepared), batch.prepared.batch.u
        assert u is not None
        velocity, target = batch.velocities(model, hidden)
        differences = (velocity - target).view(*u.shape, velocity.shape[-1])
        errors = mean_by(differences.square().mean((0, 2)), batch.token_owners, batch.documents)
        log_probs = torch.zeros_like(errors)
        if with_text:
            found = batch.text_log_probs(model, hidden)
            log_probs = log_probs.index_add(0, batch.text_owners, found)
        return cls(differences, errors, log_probs)

    def products(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """|g_w|^2 and g_w.g_l of every pair, [Q], up to one factor.

        g is the gradient of a picture's error with respect to its predicted velocities: 0 where a
        token was given, so the two meet only where both were sampled.
        """
        owners, rows = batch.token_owners, batch.prepared.batch
        row, column = rows.coordinates[rows.target_rows].unbind(1)
        height, width = int(row.max()) + 1, int(column.max()) + 1
        number = owners.bincount(minlength=batch.documents)[owners]
        gradient = self.differences.detach() / number[None, :, None]
        levels, _, size = gradient.shape
        every = gradient.new_zeros(levels, batch.documents * height * width, size)
        every[:, (owners * height + row) * width + column] = gradient
        winner, loser = every.view(levels, batch.pairs, 2, -1).unbind(2)
        return winner.square().sum((0, 2)), (winner * loser).sum((0, 2))
