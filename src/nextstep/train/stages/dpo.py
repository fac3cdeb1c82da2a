"""Stage `dpo`: winners are preferred to losers, in pictures and in the text before them.

A row holds pairs, the winner before the loser; both meet the same times and noise, because both
come with one seed. The known fault of the image form is that both errors rise while the loss falls,
so the log shows how far winners and losers moved; `sft` adds the plain loss of the winners, and
`safety` holds back the loser's gradient (see `objectives.preference`).

Legend: Q pairs, K noise levels, T trained image tokens, P asked text ids, D values per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

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
from nextstep.train.stages.pretrain import PreparedBatch, PretrainStage, states

REFERENCE = "reference"
STEP = 16
"""Lengths of rows are multiples of this."""


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
class PairBatch:
    """Pairs on their device.

    Attributes:
        prepared: documents 2q and 2q + 1 are winner and loser of pair q.
        token_owners: [T] document of every trained token.
        text_owners: [P] document of every asked text id.
        reference: [2, 2Q] mean squared velocity error and log-probability of every document.
    """

    prepared: PreparedBatch
    token_owners: Tensor
    text_owners: Tensor
    reference: Tensor | None = None

    @property
    def pairs(self) -> int:
        """Q."""
        return len(self.prepared.batch.keys) // 2


class DpoStage:
    """Losses of pairs; satisfies `nextstep.train.contracts.Observer`.

    Besides what is minimised the log shows `winner_change` and `loser_change`, how far their errors
    moved from the reference, and `accuracy`, how often the winner gained on the loser.

    Args:
        config: of the model.
        settings: see `PreferenceSettings`.
        reference: weights to compare with, see `train.ema.copied`; None where batches bring what
            the reference says of them.
    """

    def __init__(
        self,
        config: NextStepConfig,
        settings: PreferenceSettings,
        reference: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings, self.reference = settings, reference
        self.base = PretrainStage(config, head_batch_mul=settings.levels)
        self.loss_weights = {
            "dpo_loss": settings.image, "text_dpo_loss": settings.text, "sft_loss": settings.sft,
            "winner_change": 0.0, "loser_change": 0.0, "accuracy": 0.0,
        }  # fmt: skip

    def batch_of(self, rows: Seq[Seq[tuple[Document, Seq[Picture]]]]) -> SequenceBatch:
        """Pack rows of pairs; a row is as long as the longest needs."""
        return packed(self.base, rows)

    @torch.no_grad()
    def prepare(self, batch: SequenceBatch, device: torch.device | str) -> PairBatch:
        """Move pairs to the device."""
        prepared = self.base.prepare(batch, device)
        return PairBatch(prepared, *owners(prepared))

    def counts(self, batch: PairBatch) -> dict[str, float]:
        """Pairs, for every part."""
        return dict.fromkeys(self.loss_weights, float(batch.pairs))

    def observed_weights(
        self, average: Mapping[str, Tensor] | None
    ) -> Mapping[str, Mapping[str, Tensor] | None]:
        """The reference, where there is one to look with."""
        return {} if self.reference is None else {REFERENCE: self.reference}

    def observe(self, model: nn.Module, batch: PairBatch, name: str) -> PairBatch:
        """The batch with the reference's errors and log-probabilities."""
        return replace(batch, reference=self.figures(model, batch).detach())

    def figures(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """Error and log-probability of every document, [2, 2Q]."""
        look = _Look.at(model, batch, bool(self.settings.text))
        return torch.stack((look.errors, look.log_probs))

    def losses(self, model: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        """Sums over pairs."""
        assert batch.reference is not None
        settings = self.settings
        look = _Look.at(model, batch, bool(settings.text))
        winner, loser = look.errors[0::2], look.errors[1::2]
        reference, text_reference = batch.reference
        if settings.safety and settings.image:
            scale = safe_loser_scale(*look.products(batch), settings.safety)
            held = scaled_gradient(loser, scale)
        else:
            held = loser
        margin = velocity_margin(winner, held, reference[0::2], reference[1::2])
        change = (look.errors - reference).detach()
        out = {
            "dpo_loss": velocity_dpo_loss(margin, settings.beta).sum(),
            "sft_loss": winner.sum(),
            "winner_change": change[0::2].sum(),
            "loser_change": change[1::2].sum(),
            "accuracy": (margin.detach() > 0).float().sum(),
        }
        if settings.text:
            gain = look.log_probs - text_reference
            text = text_dpo_loss(gain[0::2] - gain[1::2], settings.text_beta)
            out["text_dpo_loss"] = text.sum()
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
        assert isinstance(model, NextStepModel)
        prepared, count = batch.prepared, 2 * batch.pairs
        packed_batch, hidden = prepared.batch, states(model, prepared)
        assert packed_batch.u is not None and packed_batch.noise is not None
        levels = len(packed_batch.u)
        condition = model.image_condition(hidden[packed_batch.condition_places])
        velocity, target = model.image_velocities(
            condition, prepared.targets, packed_batch.u.flatten(), packed_batch.noise.flatten(0, 1)
        )
        differences = (velocity - target).view(levels, len(prepared.targets), -1)
        errors = mean_by(differences.square().mean((0, 2)), batch.token_owners, count)
        log_probs = torch.zeros_like(errors)
        if with_text:
            found = model.text_log_probs(
                hidden[packed_batch.text_places], packed_batch.text_targets
            )
            log_probs = log_probs.index_add(0, batch.text_owners, found)
        return cls(differences, errors, log_probs)

    def products(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """|g_w|^2 and g_w.g_l of every pair, up to one factor; both pictures are of one size."""
        owners, own = batch.token_owners, self.differences.detach()
        first, second = (owners % 2 == side for side in (0, 1))
        winner, loser = own[:, first], own[:, second]
        pair = owners[first] // 2
        zero = own.new_zeros(batch.pairs)
        return (
            zero.index_add(0, pair, winner.square().sum((0, 2))),
            zero.index_add(0, pair, (winner * loser).sum((0, 2))),
        )


def packed(base: PretrainStage, rows: Seq[Seq[tuple[Document, Seq[Picture]]]]) -> SequenceBatch:
    """Rows without more padding than the longest of them needs."""
    longest = max((sum(len(document) for document, _ in row) for row in rows), default=0)
    base.row_length = max(STEP, -(-longest // STEP) * STEP)
    return base.batch_of(rows)


def owners(prepared: PreparedBatch) -> tuple[Tensor, Tensor]:
    """Numbers of the documents that trained tokens [T] and asked text ids [P] belong to."""
    batch = prepared.batch
    return batch.owners(batch.condition_places), batch.owners(batch.text_places)


def mean_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Mean of the values [T] of every owner, [count]; 0 for one without any."""
    total = values.new_zeros(count).index_add(0, owner, values)
    number = values.new_zeros(count).index_add(0, owner, torch.ones_like(values))
    return total / number.clamp(min=1)
