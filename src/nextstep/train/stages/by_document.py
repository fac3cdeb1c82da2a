"""Rows of whole documents and figures of each: what the stages `dpo` and `rl` share.

Legend: n documents, K noise levels, T learned image tokens, P asked text ids, D values per token.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from nextstep.config import NextStepConfig
from nextstep.data.batch import Picture, SequenceBatch
from nextstep.data.documents import Document
from nextstep.model.nextstep import NextStepModel
from nextstep.train.stages.pretrain import PreparedBatch, PretrainStage

STEP = 16
"""Lengths of rows are multiples of this."""


@dataclass(frozen=True)
class OwnedBatch:
    """A micro-batch on its device.

    Attributes:
        prepared: documents.
        token_owners: [T] document of every learned token.
        text_owners: [P] document of every asked text id.
    """

    prepared: PreparedBatch
    token_owners: Tensor
    text_owners: Tensor

    @property
    def documents(self) -> int:
        """n."""
        return len(self.prepared.batch.keys)

    def velocities(self, model: NextStepModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities at the batch's own noise levels and what they should be, [K*T, D].

        Args:
            model: that predicts them.
            hidden: [B*S, E] of `states`.
        """
        rows = self.prepared.batch
        assert rows.u is not None and rows.noise is not None
        condition = model.image_condition(hidden[rows.condition_places])
        return model.image_velocities(
            condition, self.prepared.targets, rows.u.flatten(), rows.noise.flatten(0, 1)
        )

    def text_log_probs(
        self, model: NextStepModel, hidden: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Log-probability of every asked text id, [P]; see `velocities`."""
        rows = self.prepared.batch
        return model.text_log_probs(hidden[rows.text_places], rows.text_targets, temperature)


class DocumentRows:
    """Packs rows of documents as long as the longest needs, and prepares them.

    Args:
        config: of the model.
        levels: K.
    """

    def __init__(self, config: NextStepConfig, levels: int) -> None:
        self.stage = PretrainStage(config, head_batch_mul=levels)

    def pack(self, rows: Seq[Seq[tuple[Document, Seq[Picture]]]]) -> SequenceBatch:
        """Rows of documents, each with its pictures in reading order."""
        longest = max((sum(len(document) for document, _ in row) for row in rows), default=0)
        self.stage.row_length = max(STEP, -(-longest // STEP) * STEP)
        return self.stage.batch_of(rows)

    @torch.no_grad()
    def prepare(self, batch: SequenceBatch, device: torch.device | str) -> OwnedBatch:
        """Move packed documents to the device."""
        prepared = self.stage.prepare(batch, device)
        moved = prepared.batch
        owners = (moved.owners(places) for places in (moved.condition_places, moved.text_places))
        return OwnedBatch(prepared, *owners)


def mean_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Mean of the values [T] of every owner, [count]; 0 for one without any."""
    total = values.new_zeros(count).index_add(0, owner, values)
    number = values.new_zeros(count).index_add(0, owner, torch.ones_like(values))
    return total / number.clamp(min=1)
